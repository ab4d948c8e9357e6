"""The maintainers' sample judgements fit the photographs that foolbox ships, and call themselves no study."""

from __future__ import annotations

import pandas as pd
import pytest

from annotations.classes import package_file
from annotations.judgements import LabelSets, Verdict

FOLDER = package_file("annotations", "data", "sample", "judgements.csv").parent


@pytest.fixture(scope="module")
def labels() -> LabelSets:
    judgements = pd.read_csv(FOLDER / "judgements.csv")
    images = pd.read_csv(FOLDER / "images.csv")
    return LabelSets.from_tables(judgements, images, source="sample", revision="1")


def test_images_and_original_labels_are_those_of_the_files(labels: LabelSets) -> None:
    folder = package_file("foolbox", "data", "imagenet_00_243.jpg").parent
    stems = sorted(path.stem for path in folder.glob("imagenet_*.jpg"))
    assert labels.image_ids.tolist() == stems
    assert labels.original_labels.tolist() == [int(stem.rsplit("_", 1)[1]) for stem in stems]


def test_judgements_are_neither_votes_nor_complete(labels: LabelSets) -> None:
    assert not labels.votes.any()
    assert not labels.closed_world.any()
    assert set(labels.pair_source) == {"sample"}
    assert "not a human study" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_original_label_is_judged_and_accepted_unless_excluded(labels: LabelSets) -> None:
    verdicts = labels.lookup(labels.rows(labels.image_ids), labels.original_labels)
    assert (verdicts[labels.evaluable] == Verdict.ACCEPTED).all()
    assert set(verdicts[~labels.evaluable].tolist()) <= {int(Verdict.REJECTED), int(Verdict.UNSURE)}
    assert (~labels.evaluable).sum() == 3
