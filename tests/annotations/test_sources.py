"""Every source: the published figures, what it says about single images, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from annotations import sources
from annotations.classes import package_file, validation_id, validation_ids, validation_labels
from annotations.errors import BeyondError
from annotations.factors import AVERAGE, FACTORS, error_ratios, factor_accuracies
from annotations.judgements import LabelSets, Verdict

HEADER = (
    "id,category,original_label,proposed_labels,manually_validated,unclear_multi_labels,wrong_multi_labels,"
    "is_problematic\n"
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and no development data to fall back on."""
    monkeypatch.setenv("BEYOND_SHARED_DATA", str(tmp_path / "nowhere"))
    return tmp_path / "store"


def write_mla(path: Path, *rows: str) -> Path:
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def original(number: int) -> int:
    return int(validation_labels()[number - 1])


# ReaL -------------------------------------------------------------------------------------------------


def test_real_has_the_published_number_of_evaluable_images_and_loads_fast() -> None:
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        real = sources.load("real")
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.4  # the best of three, since other work shares the machine
    assert int(real.evaluable.sum()) == 46_837
    assert len(real) == 50_000
    assert real.closed_world.all()
    assert "sha256:" in real.revision


def test_real_equals_the_lists_that_timm_ships() -> None:
    """Row by row, against timm's own reader, which the loader does not use."""
    from timm.data.real_labels import RealLabelsImagenet

    ids = validation_ids()
    reader = RealLabelsImagenet([f"{name}.JPEG" for name in ids])  # type: ignore[no-untyped-call]
    theirs = reader.real_labels
    real = sources.load("real")
    for row in range(0, 50_000, 97):
        expected = sorted(theirs[f"{ids[row]}.JPEG"])
        assert real.classes_of(row, Verdict.ACCEPTED).tolist() == expected


@pytest.mark.shared
@pytest.mark.parametrize(("model", "figure"), [("resnet50", 82.958), ("alexnet", 63.061), ("vgg16", 79.040)])
def test_real_gives_the_known_accuracy(shared_data: Path, model: str, figure: float) -> None:
    top1 = np.load(shared_data / "predictions" / f"{model}.npy")[:, 0]
    real = sources.load("real")
    right = real.lookup(np.arange(50_000), top1)[real.evaluable] == Verdict.ACCEPTED
    assert round(100 * right.mean(), 3) == figure


# MLA --------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_mla_has_the_published_numbers_of_images(shared_data: Path) -> None:
    mla = sources.load(f"mla={shared_data / 'multilabel' / 'multilabel.csv'}")
    assert len(mla) == 20_000
    assert int(mla.evaluable.sum()) == 18_692
    assert int((~mla.evaluable).sum()) == 1_308
    assert not mla.closed_world.any()


@pytest.mark.shared
@pytest.mark.parametrize(("model", "figure"), [("resnet50", 85.080), ("alexnet", 64.280), ("vgg16", 80.417)])
def test_mla_gives_the_known_class_mean(shared_data: Path, model: str, figure: float) -> None:
    top1 = np.load(shared_data / "predictions" / f"{model}.npy")[:, 0]
    mla = sources.load(f"mla={shared_data / 'multilabel' / 'multilabel.csv'}")
    rows = mla.rows(validation_ids())
    verdict = mla.lookup(rows, top1)
    counted = (rows >= 0) & mla.evaluable[rows]
    right = pd.Series(np.isin(verdict[counted], [Verdict.ACCEPTED, Verdict.UNSURE]))
    assert round(100 * right.groupby(validation_labels()[counted]).mean().mean(), 3) == figure


@pytest.mark.shared
def test_mla_equals_the_file_row_by_row(shared_data: Path) -> None:
    path = shared_data / "multilabel" / "multilabel.csv"
    mla = sources.load(f"mla={path}")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False).sample(500, random_state=0)
    for entry in frame.itertuples():
        row = int(mla.rows(np.array([Path(str(entry.id)).stem], dtype=object))[0])
        seen: set[int] = set()
        for text, verdict in (
            (entry.proposed_labels, Verdict.ACCEPTED),
            (entry.unclear_multi_labels, Verdict.UNSURE),
            (entry.wrong_multi_labels, Verdict.REJECTED),
        ):
            listed = {int(part) for part in str(text).split(",") if part.strip()} - seen
            seen |= listed
            assert set(mla.classes_of(row, verdict).tolist()) == listed


def test_mla_import_resolves_and_counts_contradictions(tmp_path: Path, store: Path) -> None:
    label = original(1)
    rows = (
        f'{validation_id(1)}.JPEG,A,{label},"{label}, 5",True,"5, 6","6, 7, {label}",False',
        f"{validation_id(2)}.JPEG,A,{original(2)},,True,,3,True",
    )
    imported = sources.import_file("mla", write_mla(tmp_path / "m.csv", *rows), cache_dir=store)
    assert len(imported.notes) == 1
    assert imported.notes[0].startswith("3 classes are listed under two verdicts")
    mla = sources.load("mla", cache_dir=store)
    assert mla.classes_of(0, Verdict.ACCEPTED).tolist() == sorted({label, 5})
    assert mla.classes_of(0, Verdict.UNSURE).tolist() == [6]
    assert mla.classes_of(0, Verdict.REJECTED).tolist() == [7]
    assert mla.evaluable.tolist() == [True, False]
    assert mla.revision == imported.label_sets.revision
    facts = json.loads((store / "mla" / "source.json").read_text())
    assert facts["imported_from"] == "m.csv"

    # A second import replaces the first.
    sources.import_file("mla", write_mla(tmp_path / "m.csv", rows[1]), cache_dir=store)
    assert len(sources.load("mla", cache_dir=store)) == 1


def test_mla_is_found_among_development_data_or_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEYOND_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BEYOND_SHARED_DATA", raising=False)
    (tmp_path / "repo").mkdir()
    (tmp_path / "shared/data/multilabel").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repo")
    with pytest.raises(BeyondError, match=r"'mla' is not here; .*beyond annotations import mla FILE\.csv"):
        sources.load("mla")
    row = f"{validation_id(1)}.JPEG,A,{original(1)},1,True,,,False"
    file = write_mla(tmp_path / "shared/data/multilabel/multilabel.csv", row)
    assert len(sources.load("mla")) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEYOND_SHARED_DATA", str(tmp_path / "shared/data"))
    assert len(sources.load("mla")) == 1
    monkeypatch.delenv("BEYOND_SHARED_DATA")
    sources.import_file("mla", file)
    assert (tmp_path / "cache/annotations/mla/images.parquet").is_file()
    assert len(sources.load("mla")) == 1


def test_a_damaged_import_is_noticed(tmp_path: Path, store: Path) -> None:
    row = f"{validation_id(1)}.JPEG,A,{original(1)},1,True,,,False"
    sources.import_file("mla", write_mla(tmp_path / "m.csv", row), cache_dir=store)
    with (store / "mla" / "images.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BeyondError, match=r"images\.parquet is missing or was changed"):
        sources.load("mla", cache_dir=store)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ILSVRC2012_val_00000001.JPEG,A,{label},1;2,True,,,False", "proposed_labels holds '1;2'"),
        (
            "ILSVRC2012_val_00000001.JPEG,A,{label},1000,True,,,False",
            "class index 1000 is not a whole number",
        ),
        ("ILSVRC2012_val_00000001.JPEG,A,{label},1,True,,,perhaps", "is_problematic is 'perhaps'"),
        ("ILSVRC2012_val_00000001.JPEG,A,{wrong},1,True,,,False", "original labels are not those"),
        ("ILSVRC2012_val_00050001.JPEG,A,{label},1,True,,,False", "is not the id of a validation image"),
        ("ILSVRC2012_val_00000001.JPEG,A,x,1,True,,,False", "original labels are not those"),
    ],
)
def test_bad_mla_files_are_refused(tmp_path: Path, row: str, message: str) -> None:
    label = original(1)
    file = write_mla(tmp_path / "m.csv", row.format(label=label, wrong=(label + 1) % 1000))
    with pytest.raises(BeyondError) as error:
        sources.load(f"mla={file}")
    assert message in str(error.value)


def test_files_that_are_no_mla_are_refused(tmp_path: Path) -> None:
    row = f"{validation_id(1)}.JPEG,A,{original(1)},1,True,,,False"
    with pytest.raises(BeyondError, match="is listed twice"):
        sources.load(f"mla={write_mla(tmp_path / 'twice.csv', row, row)}")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BeyondError, match="has no column 'id'"):
        sources.load(f"mla={tmp_path / 'other.csv'}")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(BeyondError, match=r"is not a readable CSV file|has no column 'id'"):
        sources.load(f"mla={tmp_path / 'binary.csv'}")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(BeyondError, match="is not a readable CSV file"):
        sources.load(f"mla={tmp_path / 'empty.csv'}")
    with pytest.raises(BeyondError, match=r"no file .*none\.csv"):
        sources.load(f"mla={tmp_path / 'none.csv'}")


# Label errors -----------------------------------------------------------------------------------------


def label_error(number: int, guess: int, **votes: int) -> dict[str, object]:
    tally = {"given": 0, "guessed": 0, "both": 0, "neither": 0, **votes}
    return {
        "id": number,
        "given_original_label": original(number),
        "our_guessed_label": guess,
        "mturk": tally,
    }


@pytest.mark.parametrize(
    ("votes", "given", "guessed"),
    [
        ({"given": 5}, "accepted", "rejected"),
        ({"guessed": 4, "neither": 1}, "rejected", "accepted"),
        ({"both": 4, "neither": 1}, "accepted", "accepted"),
        ({"given": 2, "both": 2, "guessed": 1}, "accepted", "unsure"),
        ({"given": 3, "guessed": 2}, "unsure", "unsure"),
        ({"neither": 4, "given": 1}, "rejected", "rejected"),
    ],
)
def test_four_of_five_votes_decide(tmp_path: Path, votes: dict[str, int], given: str, guessed: str) -> None:
    guess = (original(7) + 1) % 1000
    file = tmp_path / "votes.json"
    file.write_text(json.dumps([label_error(7, guess, **votes)]))
    judgements, images = sources.load(f"label-errors={file}").to_tables()
    got = dict(zip(judgements.class_index, judgements.verdict))
    assert got == {original(7): given, guess: guessed}
    assert (judgements.votes == 5).all()
    scores = dict(zip(judgements.class_index, judgements.score))
    yes = votes.get("given", 0) + votes.get("both", 0)
    assert scores[original(7)] == pytest.approx(yes / 5)
    assert images.status.tolist() == ["evaluable" if "accepted" in (given, guessed) else "excluded"]


@pytest.mark.shared
def test_label_errors_reproduce_counts_taken_from_the_file(shared_data: Path) -> None:
    path = shared_data / "multilabel" / "label_errors_mturk.json"
    votes = [entry["mturk"] for entry in json.loads(path.read_text())]
    label_sets = sources.load(f"label-errors={path}")
    assert len(label_sets) == 5_440
    assert len(label_sets.verdict) == 2 * 5_440
    accepted = sum((v["given"] + v["both"] >= 4) + (v["guessed"] + v["both"] >= 4) for v in votes)
    assert int((label_sets.verdict == Verdict.ACCEPTED).sum()) == accepted


def test_files_that_are_no_label_errors_are_refused(tmp_path: Path) -> None:
    for text, message in (
        ("{", "is not a list of label errors"),
        ("[{}]", "is not a list of label errors"),
        ("[]", "no validation image number"),
        (json.dumps([{**label_error(1, 5, given=5), "id": 0}]), "no validation image number"),
        (json.dumps([label_error(1, 5)]), "has no votes"),
        (
            json.dumps([{**label_error(1, 5, given=5), "given_original_label": 999}]),
            "not those of the validation set",
        ),
        (json.dumps([label_error(1, original(1), given=5)]), "is judged twice"),
    ):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(BeyondError, match=message):
            sources.load(f"label-errors={tmp_path / 'f.json'}")


# ImageNet-X -------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("which", ["top", "multi"])
def test_factor_figures_equal_those_of_the_imagenet_x_package(
    shared_data: Path, tmp_path: Path, which: str
) -> None:
    from imagenet_x import error_ratio, get_factor_accuracies

    factors = sources.imagenet_x_factors()
    ids, labels = validation_ids(), validation_labels()
    models = ("resnet50", "vgg16", "alexnet")
    # The package wants the files in its own order.
    order = pd.read_csv(package_file("imagenet_x", "annotations", "filename_label.csv"))[
        "file_name"
    ].to_numpy()
    top1 = {model: np.load(shared_data / "predictions" / f"{model}.npy")[:, 0] for model in models}
    for model in models:
        predicted = pd.Series(top1[model], index=[f"{name}.JPEG" for name in ids])
        columns = {
            "file_name": order,
            "predicted_class": predicted[order].to_numpy(),
            "predicted_probability": 1.0,
        }
        pd.DataFrame(columns).to_csv(tmp_path / f"{model}.csv", index=False)
    theirs = get_factor_accuracies(str(tmp_path), which_factor=which)
    ratios = error_ratio(theirs)
    for model in models:
        correct = pd.Series(top1[model] == labels, index=ids)
        ours = factor_accuracies(factors, correct, which="top" if which == "top" else "multi")
        expected = theirs.loc[model, [*FACTORS, AVERAGE]]
        np.testing.assert_allclose(ours["accuracy"], expected.astype(float), rtol=0, atol=1e-9)
        np.testing.assert_allclose(
            error_ratios(ours), ratios.loc[model, list(FACTORS)].astype(float), atol=1e-9
        )
        assert ours["accuracy"].min() == pytest.approx(theirs.loc[model, "worst_factor"], abs=1e-9)


def test_factors_equal_the_package_and_do_not_import_it() -> None:
    code = """
import sys
from annotations import sources
factors = sources.imagenet_x_factors()
assert not {"imagenet_x", "torch", "timm"} & set(sys.modules), sorted(sys.modules)
print(len(factors), len(sources.imagenet_x_factors(prototypes=True)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    from imagenet_x import load_annotations

    filtered, whole = load_annotations(), load_annotations(filter_prototypes=False)
    assert done.stdout.split() == [str(len(filtered)), str(len(whole))]
    ours = sources.imagenet_x_factors()
    assert ours["image_id"].is_monotonic_increasing
    theirs = (
        filtered.assign(image_id=filtered["file_name"].str[:-5]).set_index("image_id").loc[ours["image_id"]]
    )
    np.testing.assert_array_equal(ours["class"], theirs["class"])
    for factor in FACTORS:
        np.testing.assert_array_equal(ours["top_factor"] == factor, theirs[factor] == 1)


def test_factor_accuracies_join_by_id_and_have_no_figure_without_images() -> None:
    factors = pd.DataFrame({"image_id": ["a", "b", "c"], "top_factor": ["pose", "style", None]})
    correct = pd.Series([False, True, True], index=["c", "a", "z"])
    table = factor_accuracies(factors, correct)
    assert tuple(table.loc["pose"]) == (1, 1, 1.0)
    assert tuple(table.loc[AVERAGE]) == (2, 1, 0.5)
    assert table.loc["style", "n"] == 0
    assert np.isnan(table.loc["style", "accuracy"])  # type: ignore[arg-type]
    assert error_ratios(table)["pose"] == 0
    with pytest.raises(BeyondError, match="none of these images has factor annotations"):
        factor_accuracies(factors, pd.Series([True], index=["z"]))
    with pytest.raises(BeyondError, match="'a' is listed twice"):
        factor_accuracies(factors, pd.Series([True, True], index=["a", "a"]))


# The rest ---------------------------------------------------------------------------------------------


def test_sample_is_valid_and_marked_as_what_it_is() -> None:
    sample = sources.load("sample")
    assert len(sample) == 20
    assert set(sample.pair_source) == {"sample"}
    assert sample.evaluable.sum() >= 10
    # The name of each photograph holds its original label.
    for image_id, label in zip(sample.image_ids, sample.original_labels):
        assert int(image_id.rsplit("_", 1)[1]) == label
    assert "illustrative" in sources.SOURCES["sample"].description
    assert "not a human study" in sources.SOURCES["sample"].description


def test_a_folder_is_a_source_and_cannot_pass_for_another(tmp_path: Path) -> None:
    real = sources.load("real")
    small = LabelSets.from_tables(
        *(frame[frame.image_id.isin(real.image_ids[:50])] for frame in real.to_tables()),
        source="x",
        revision="r",
    )
    small.save(tmp_path / "mine")
    small.save(tmp_path / "mla")
    loaded = sources.load(str(tmp_path / "mine"))
    assert (loaded.source, len(loaded)) == ("mine", 50)
    assert loaded.revision.startswith("sha256:")
    assert sources.load(str(tmp_path / "mla")).source == "folder-mla"
    sources.write_folder(small, tmp_path / "written")
    assert (sources.load(str(tmp_path / "written")).source, small.revision) == ("x", "r")
    (tmp_path / "written" / "source.json").write_text("{}")
    with pytest.raises(BeyondError, match=r"source\.json is damaged"):
        sources.load(str(tmp_path / "written"))


def test_write_folder_never_replaces_something_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(BeyondError, match="holds other files"):
        sources.write_folder(sources.load("sample"), tmp_path / "photos")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "cat.jpg"]

    # A source with somebody's notes beside it is not thrown away either.
    sources.write_folder(sources.load("sample"), tmp_path / "labels")
    sources.write_folder(sources.load("sample"), tmp_path / "labels")
    (tmp_path / "labels" / "notes.txt").write_text("mine")
    with pytest.raises(BeyondError, match="holds other files"):
        sources.write_folder(sources.load("sample"), tmp_path / "labels")
    assert (tmp_path / "labels" / "notes.txt").read_text() == "mine"


def test_consolidated_takes_what_is_here(tmp_path: Path, store: Path) -> None:
    assert sources.load("consolidated", cache_dir=store).revision.count("@") == 1
    row = f"{validation_id(1)}.JPEG,A,{original(1)},1,True,,,False"
    sources.import_file("mla", write_mla(tmp_path / "m.csv", row), cache_dir=store)
    merged = sources.load("consolidated", cache_dir=store)
    assert merged.source == "consolidated"
    assert "mla@" in merged.revision
    assert "real@" in merged.revision
    explicit = sources.load("consolidated:real+mla", cache_dir=store)
    np.testing.assert_array_equal(explicit.verdict, merged.verdict)
    with pytest.raises(BeyondError, match="'label-errors' is not here"):
        sources.load("consolidated:real+label-errors", cache_dir=store)
    with pytest.raises(BeyondError, match="cannot be part of a merge"):
        sources.load("consolidated:real+consolidated", cache_dir=store)


def test_unknown_specs_are_refused(store: Path) -> None:
    for spec, message in (
        ("reel", "did you mean 'real'"),
        ("flickr", "known: real, mla"),
        ("imagenet-x", "holds attributes of images, not judgements"),
        ("./nothing/here", "there is no such folder"),
        ("real=file.csv", "no such source"),
    ):
        with pytest.raises(BeyondError, match=message):
            sources.load(spec, cache_dir=store)
    with pytest.raises(BeyondError, match="is named twice"):
        sources.split_specs("real,mla,real")
    with pytest.raises(BeyondError, match="no source of annotations is named"):
        sources.split_specs(" , ")
    with pytest.raises(BeyondError, match="is not imported from a file"):
        sources.import_file("real", Path("x"), cache_dir=store)
    with pytest.raises(BeyondError, match="no source 'x' can be imported"):
        sources.import_file("x", Path("x"), cache_dir=store)
