"""Records of attacks: what is written is read, the last row counts, and damage is noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotations.errors import BeyondError
from benchmark.attack_records import (
    ADVERSARIALS,
    ROBUSTNESS,
    Adversarial,
    AttackRecords,
    AttackWriter,
    Evaluation,
    Row,
    compact,
    has_attacks,
    iter_adversarials,
    read_attacks,
    repair,
)
from benchmark.radii import check_radii, epsilon_text, parse_radius
from benchmark.records import part_paths


def row(image_id: str, status: str = "robust", objective: str = "original", **more: object) -> Row:
    values = {"original_label": 3, "threat": "linf", "epsilon": 4 / 255, "suite": "quick", "inside": (3,)}
    return Row(image_id, objective=objective, status=status, **(values | more))  # type: ignore[arg-type]


def adversarial(seed: int, size: int = 8) -> Adversarial:
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 256, (size, size + 2, 3), dtype=np.uint8)
    noise = rng.normal(0, 0.01, (3, size, size + 2))
    pixels = (clean.transpose(2, 0, 1) / 255 + noise).clip(0, 1).astype(np.float32)
    return Adversarial(f"image{seed}", clean, pixels)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        row("a", "broken", attack="pgd", unit=2, steps=7, clean_class=3, adversarial_class=900, distance=0.01)
        , row("b", "pending", survived=2, inside=(1, 3, 999)),
        row("c", "robust", objective="rectified", implied=True, inside=()),
    ]  # fmt: skip
    rows[0] = replace(rows[0], margin=0.25, adversarial="0123456789abcdef")
    with AttackWriter(tmp_path) as writer:
        for r in reversed(rows):
            writer.add(r)
    found = read_attacks(tmp_path)
    back = found.rows(np.arange(len(found)))
    for one, other in zip(rows, back, strict=True):
        assert repr(one) == repr(other)  # NaN is not equal to itself, but reads the same
    assert found.evaluations() == [Evaluation("linf", 4 / 255, "quick")]


def test_the_last_row_of_a_key_counts() -> None:
    rows = [row("a", "pending"), row("b", "pending"), row("a", "broken"), row("a", "robust", epsilon=0.5)]
    found = AttackRecords.from_rows(rows)
    got = [(r.image_id, r.epsilon, r.status) for r in found.rows(np.arange(len(found)))]
    assert got == [("a", 4 / 255, "broken"), ("b", 4 / 255, "pending"), ("a", 0.5, "robust")]


def test_compacting_changes_nothing_and_does_not_depend_on_the_order(tmp_path: Path) -> None:
    contents = []
    for name, order in (("one", 1), ("two", -1)):
        run = tmp_path / name
        for image in list("abcdefg")[::order]:
            with AttackWriter(run) as writer:
                writer.add(row(image, "pending"))
                writer.add(row(image, "broken", adversarial_class=4, inside=(3, 9), objective="rectified"))
        before = read_attacks(run)
        compact(run)
        after = read_attacks(run)
        assert before.table.equals(after.table)
        assert before.inside.tolist() == after.inside.tolist() == [3] * 7 + [3, 9] * 7
        (part,) = part_paths(run / ROBUSTNESS)
        contents.append(part.read_bytes())
    assert contents[0] == contents[1]


def test_adversarials_come_back_exactly_and_before_their_rows(tmp_path: Path) -> None:
    made = {a.name: a for a in map(adversarial, range(40))}
    with AttackWriter(tmp_path) as writer:
        for a in made.values():
            writer.add(row(a.image_id, "broken"), a)
            named = set(read_attacks(tmp_path).table["adversarial"]) if has_attacks(tmp_path) else set()
            assert named <= {x.name for x in iter_adversarials(tmp_path)}
    found = {a.name: a for a in iter_adversarials(tmp_path)}
    assert found.keys() == made.keys()
    for name, a in made.items():
        assert np.array_equal(found[name].pixels, a.pixels)
        assert np.array_equal(found[name].clean, a.clean)
        assert found[name].image_id == a.image_id
    wanted = set(list(made)[17:19])
    assert {a.name for a in iter_adversarials(tmp_path, wanted)} == wanted


def test_adversarials_are_kept_once_and_only_if_asked(tmp_path: Path) -> None:
    one = adversarial(1)
    with AttackWriter(tmp_path / "kept") as writer:
        writer.add(row("image1", "broken"), one)
        writer.add(row("image1", "broken", objective="rectified"), one)
    assert len(list(iter_adversarials(tmp_path / "kept"))) == 1
    assert set(read_attacks(tmp_path / "kept").table["adversarial"]) == {one.name}
    with AttackWriter(tmp_path / "not", keep=False) as writer:
        writer.add(row("image1", "broken"), one)
    assert not (tmp_path / "not" / ADVERSARIALS).exists()
    assert set(read_attacks(tmp_path / "not").table["adversarial"]) == {one.name}


def test_damage_is_said_and_moved_out_of_the_way(tmp_path: Path) -> None:
    with AttackWriter(tmp_path) as writer:
        writer.add(row("image1", "broken"), adversarial(1))
    for kind in (ROBUSTNESS, ADVERSARIALS):
        (part,) = part_paths(tmp_path / kind)
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(bytes(data))
    with pytest.raises(BeyondError, match="damaged"):
        read_attacks(tmp_path)
    with pytest.raises(BeyondError, match="damaged"):
        list(iter_adversarials(tmp_path))
    moved = repair(tmp_path)
    assert len(moved) == 2
    assert all(path.is_file() and "quarantine" in path.parts for path in moved)
    with pytest.raises(BeyondError, match="no attacks"):
        read_attacks(tmp_path)


def test_an_error_in_the_block_loses_no_row(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AttackWriter(tmp_path) as writer:  # noqa: PT012
        writer.add(row("a"))
        raise RuntimeError
    assert len(read_attacks(tmp_path)) == 1


@pytest.mark.parametrize("text", ["", "0", "-1", "4/0", "x", "inf", "nan", "4/255/2"])
def test_what_is_no_radius_is_refused(text: str) -> None:
    with pytest.raises(BeyondError, match="is no radius"):
        parse_radius(text)


def test_radii_are_read_and_shown() -> None:
    for text in ("4/255", "0.5/255", "0.25/255", "12/255"):
        assert epsilon_text("linf", parse_radius(text)) == text
    assert epsilon_text("l2", parse_radius("0.5")) == "0.5"
    assert epsilon_text("linf", 0.1) == "25.5/255"
    check_radii("l2", [3.0])
    with pytest.raises(BeyondError, match="write 4/255"):
        check_radii("linf", [4.0])
