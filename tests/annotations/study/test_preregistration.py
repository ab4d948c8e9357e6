from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from annotations.errors import BeyondError
from annotations.study import preregistration
from annotations.study.answers import read_study, study_answers
from annotations.study.preregistration import Preregistration
from tests.annotations.study.made_up import CHANCE, answers, items, plan


def write_study(folder: Path) -> Preregistration:
    """A whole study folder with two pictures, made up."""
    pack = folder / "pack"
    pack.mkdir(parents=True)
    pictures = []
    for number in range(2):
        data = f"picture {number}".encode()
        name = hashlib.sha256(data).hexdigest() + ".png"
        (pack / name).write_bytes(data)
        pictures.append({"item": "item000", "arm": ("none", "feature")[number], "file": name})
    asked = items()
    listed = json.loads(asked.to_json(orient="records"))
    (pack / "manifest.json").write_text(json.dumps({"items": listed, "pictures": pictures}))
    chosen = plan(pack_sha256=preregistration.pack_sha256(pack))
    preregistration.write(folder, chosen, answered=False)
    study_answers(asked, answers(asked, CHANCE, plan=chosen)).write(folder)
    return chosen


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    found = preregistration.write(tmp_path, plan(), answered=False)
    data = (tmp_path / "preregistration.json").read_bytes()
    assert found == hashlib.sha256(data).hexdigest() == plan().sha256
    assert preregistration.read(tmp_path) == plan()
    assert preregistration.write(tmp_path, plan(), answered=True) == found


def test_one_that_was_answered_under_is_never_replaced(tmp_path: Path) -> None:
    preregistration.write(tmp_path, plan(), answered=False)
    before = (tmp_path / "preregistration.json").read_bytes()
    other = plan(title="Another")
    with pytest.raises(BeyondError, match="--overwrite"):
        preregistration.write(tmp_path, other, answered=False)
    for overwrite in (False, True):
        with pytest.raises(BeyondError, match="has answers under it"):
            preregistration.write(tmp_path, other, answered=True, overwrite=overwrite)
    assert (tmp_path / "preregistration.json").read_bytes() == before
    preregistration.write(tmp_path, other, answered=False, overwrite=True)
    assert preregistration.read(tmp_path) == other


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"arms": ["none", "none"]},
        {"arms": ["none", "sound"]},
        {"pack_sha256": "xyz"},
        {"created": "yesterday"},
        {"raters_per_arm": 0},
        {"analysis": {"maybe": "perhaps"}},
        {"analysis": {"resamples": 10}},
        {"exclusions": {"attention_floor": 1.5}},
        {"arms": ["none", "feature"]},  # the hypotheses speak of examples
        {"hypotheses": [{"name": "H", "text": "x", "arm": "none", "versus": "none"}]},
    ],
)
def test_what_is_no_plan_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        plan(**changes)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def picture(folder: Path) -> Path:
    return next(path for path in sorted((folder / "pack").iterdir()) if path.suffix == ".png")


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: edit(f / "preregistration.json", '"raters_per_arm": 12', '"raters_per_arm": 9'),
        "another plan",
    ),
    (lambda f: edit(f / "preregistration.json", "{\n", "{\n\n"), "was changed after it was written"),
    (lambda f: edit(f / "preregistration.json", '"title"', '"tilte"'), "is damaged"),
    (lambda f: (f / "preregistration.json").unlink(), "no preregistration.json"),
    (
        lambda f: edit(f / "pack" / "manifest.json", "item000", "item00x"),
        "changed since the study was prereg",
    ),
    (lambda f: picture(f).write_bytes(b"another picture"), "its checksum is not its name"),
    (lambda f: (f / "pack" / "manifest.json").unlink(), "holds no pack"),
    (lambda f: (f / "answers.parquet").unlink(), "has no answers.parquet"),
    (
        lambda f: (f / "answers.parquet").write_bytes(b"nonsense"),
        "answers.parquet is not a readable Parquet file",
    ),
]


@pytest.mark.parametrize(("change", "words"), CHANGES[1:])
def test_a_change_is_seen(tmp_path: Path, change: Callable[[Path], object], words: str) -> None:
    write_study(tmp_path)
    read_study(tmp_path)
    change(tmp_path)
    with pytest.raises(BeyondError, match=words) as error:
        read_study(tmp_path)
    assert "\n" not in str(error.value)


def test_a_plan_that_was_edited_well_is_seen_in_the_answers(tmp_path: Path) -> None:
    """Its bytes are canonical, yet answers carry the hash of the one they were given under."""
    from annotations.study.results import analyse

    chosen = write_study(tmp_path)
    CHANGES[0][0](tmp_path)
    study, changed = read_study(tmp_path)
    with pytest.raises(BeyondError, match="another preregistration"):
        analyse(study, changed)
    with pytest.raises(BeyondError, match="changed after answers were given"):
        preregistration.verify(tmp_path, expected=chosen.sha256)


def test_pictures_may_be_elsewhere(tmp_path: Path) -> None:
    """They may not be passed on, so whoever analyses may have the manifest alone."""
    write_study(tmp_path)
    picture(tmp_path).unlink()
    study, _ = read_study(tmp_path)
    assert study.notes == (
        "1 of the 2 pictures are not here, so that only the manifest was checked for changes.",
    )


def test_items_that_are_not_those_of_the_stimuli_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path)
    study, _ = read_study(tmp_path)
    changed = study.items.assign(verdict="accepted")
    study_answers(changed, study.answers).write(tmp_path)
    with pytest.raises(BeyondError, match="not what the stimuli say"):
        read_study(tmp_path)
