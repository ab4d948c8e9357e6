"""Shape bias and error consistency: hand-worked cases, scikit-learn's kappa, the published answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotations.classes import class_names
from annotations.errors import BeyondError
from benchmark.probes import CUE_CONFLICT
from benchmark.probes.cue_conflict import (
    Decisions,
    all_probabilities,
    categories,
    category_probabilities,
    cues_of,
    decide,
    decisions_of,
    find_people,
    open_images,
    score_decisions,
)
from benchmark.probes.people import (
    Answers,
    answers_from_table,
    consistency_with_people,
    error_consistency,
    peoples_bias,
    read_answers,
    shape_bias,
)
from benchmark.records import Predictions
from tests.benchmark.synthetic import jpeg

# From 1000 classes to 16 --------------------------------------------------------------------------------


def test_the_sixteen_categories_are_those_of_the_literature() -> None:
    sizes = {name: len(classes) for name, classes in categories().items()}
    assert len(sizes) == 16
    # Geirhos et al. 2018: 207 of the 1000 classes; dogs and birds are by far the largest.
    assert sum(sizes.values()) == 207
    assert sorted(sizes, key=lambda name: -sizes[name])[:2] == ["dog", "bird"]
    every = np.concatenate(list(categories().values()))
    assert len(np.unique(every)) == len(every)
    for category, word in {"airplane": "airliner", "clock": "clock", "keyboard": "keyboard"}.items():
        assert all(word in class_names()[c] for c in categories()[category])


@pytest.mark.shared
def test_the_categories_equal_the_shared_file(shared_data: Path) -> None:
    import json

    stored = json.loads((shared_data / "cue-conflict" / "categories.json").read_text())
    assert {name: sorted(classes) for name, classes in stored.items()} == {
        name: classes.tolist() for name, classes in categories().items()
    }


probabilities = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(1000, 0.05), size=3)
)


@settings(max_examples=30, deadline=None)
@given(probabilities)
def test_aggregation_is_the_mean_over_a_categorys_classes(p: npt.NDArray[np.float64]) -> None:
    ours = category_probabilities(p)
    for column, classes in enumerate(categories().values()):
        np.testing.assert_allclose(ours[:, column], [row[classes].mean() for row in p], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(probabilities, st.integers(0, 2**32 - 1))
def test_shuffling_probability_within_a_category_changes_nothing(
    p: npt.NDArray[np.float64], seed: int
) -> None:
    rng, shuffled = np.random.default_rng(seed), p.copy()
    for classes in categories().values():
        shuffled[:, classes] = p[:, rng.permutation(classes)]
    np.testing.assert_allclose(category_probabilities(shuffled), category_probabilities(p), rtol=1e-9)


def test_the_mean_decides_and_not_the_sum() -> None:
    p = np.zeros((1, 1000))
    p[0, categories()["dog"]] = 0.006  # in all 0.654, for one class 0.006
    p[0, 499] = 0.1  # the only class of knives
    assert decide(p).tolist() == ["knife"]


def test_a_certain_class_decides_for_its_category() -> None:
    for name, classes in categories().items():
        assert set(decide(np.eye(1000)[classes])) == {name}


def test_probabilities_are_read_back_from_a_record() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 1000)).astype(np.float32)
    order = np.argsort(-logits, axis=1, kind="stable")
    lse = np.log(np.exp(logits.astype(np.float64)).sum(axis=1)).astype(np.float32)
    record = Predictions(
        np.array(list("abcd"), dtype=object),
        np.full(4, -1, np.int16),
        order.astype(np.int16),
        np.take_along_axis(logits, order, axis=1),
        lse,
    )
    from scipy.special import softmax

    np.testing.assert_allclose(all_probabilities(record), softmax(logits, axis=1), atol=1e-6)
    few = order[:, :5].astype(np.int16)
    best = np.take_along_axis(logits, order[:, :5], axis=1)
    with pytest.raises(BeyondError, match="keep 5"):
        all_probabilities(Predictions(record.image_ids, record.original_labels, few, best, lse))
    with pytest.raises(BeyondError, match="have none"):
        all_probabilities(Predictions(record.image_ids, record.original_labels, record.classes))


# Shape bias ---------------------------------------------------------------------------------------------


def made(rows: list[tuple[str, str, str]]) -> Decisions:
    columns = np.array(rows, dtype=object)
    ids = np.array([f"{s}{i}-{t}1" for i, (s, t, _) in enumerate(rows)], dtype=object)
    return Decisions(ids, columns[:, 0], columns[:, 1], columns[:, 2])


def test_shape_bias_by_hand() -> None:
    result = score_decisions(
        made(
            [
                ("cat", "dog", "cat"),
                ("cat", "dog", "cat"),
                ("cat", "clock", "clock"),
                ("dog", "clock", "bear"),  # neither
                ("dog", "oven", "oven"),
                ("dog", "oven", "dog"),
                ("oven", "oven", "oven"),  # no conflict: left out
            ]
        )
    )
    bias, decided = result.metrics["shape_bias"], result.metrics["cue_accuracy"]
    assert (bias.value, bias.n) == (3 / 5, 5)
    assert (decided.value, decided.n) == (5 / 6, 6)
    rows = {row["category"]: row for row in result.tables["cue_conflict_categories"]}
    assert set(rows) == {"cat", "dog"}
    assert rows["dog"] == {
        "category": "dog",
        "n": 3,
        "shape": 1,
        "texture": 1,
        "other": 1,
        "shape_bias": 0.5,
    }
    assert "human_error_consistency" not in result.metrics
    assert any(r.who == "10 people, pooled" for r in result.references)


def test_nothing_decided_gives_no_shape_bias() -> None:
    result = score_decisions(made([("cat", "dog", "oven"), ("dog", "cat", "bear")]))
    assert set(result.metrics) == {"cue_accuracy"}
    assert result.metrics["cue_accuracy"].value == 0


def test_no_conflict_is_one_clear_line() -> None:
    with pytest.raises(BeyondError, match="differ"):
        score_decisions(made([("cat", "cat", "cat")]))


def test_shape_bias_of_nothing_is_not_a_number() -> None:
    np.testing.assert_array_equal(shape_bias([3, 0, 0], [1, 2, 0]), [0.75, 0.0, np.nan])


# Error consistency --------------------------------------------------------------------------------------


def test_error_consistency_by_hand() -> None:
    # Ten images: both right on 5, both wrong on 2, only a on 2, only b on 1.
    a = np.array([1, 1, 1, 1, 1, 0, 0, 1, 1, 0])
    b = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 1])
    # observed 7/10; p_a = 7/10, p_b = 6/10; expected 0.42 + 0.12 = 0.54; (0.70 − 0.54) / 0.46
    assert float(error_consistency(a, b)) == pytest.approx(0.16 / 0.46)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_error_consistency_equals_cohens_kappa_of_scikit_learn(seed: int, n: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(seed)
    a, b = rng.random((2, n)) < rng.random((2, 1))
    ours = float(error_consistency(a, b))
    if (a == b).all():
        assert ours == 1  # where scikit-learn may have 0/0, the authors' code says 1
    else:
        assert ours == pytest.approx(cohen_kappa_score(a, b), abs=1e-9)


def test_error_consistency_of_independent_errors_is_nothing() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 200, 400)) < np.array([0.7, 0.4])[:, None, None]
    kappa = error_consistency(a, b)
    assert kappa.shape == (200,)
    assert abs(kappa.mean()) < 4 * kappa.std() / np.sqrt(200)
    assert float(error_consistency([1, 0], [0, 1])) == -1


def test_consistency_with_people_is_the_mean_of_kappas_over_shared_images() -> None:
    rng = np.random.default_rng(3)
    correct, people = rng.random(80) < 0.6, rng.random((4, 80)) < 0.8
    seen = rng.random((4, 80)) < 0.9
    found = consistency_with_people(correct, people, seen)
    each = [float(error_consistency(correct[s], p[s])) for p, s in zip(people, seen)]
    np.testing.assert_allclose(found.each, each, atol=1e-12)
    assert found.mean == pytest.approx(np.mean(each))
    pairs = [
        float(error_consistency(people[i][seen[i] & seen[j]], people[j][seen[i] & seen[j]]))
        for i in range(4)
        for j in range(i)
    ]
    assert found.among_people == pytest.approx(np.mean(pairs))
    assert found.interval.low < found.mean < found.interval.high


def test_a_model_that_copies_a_person_is_as_consistent_as_people_are() -> None:
    rng = np.random.default_rng(4)
    hard = rng.random(300)  # people share what they find hard
    people = hard + 0.3 * rng.random((6, 300)) < 0.8
    found = consistency_with_people(people[0], people[1:], np.ones((5, 300), bool))
    assert found.mean == pytest.approx(found.among_people, abs=0.1)
    assert found.mean > 0.3


def test_one_person_alone_has_nobody_to_agree_with() -> None:
    rng = np.random.default_rng(5)
    found = consistency_with_people(rng.random(50) < 0.5, rng.random((1, 50)) < 0.5, np.ones((1, 50), bool))
    assert np.isfinite(found.mean)
    assert np.isnan(found.among_people)


# People's answers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(shared_data: Path) -> Answers:
    return read_answers(shared_data / "cue-conflict" / "human-trials")


def cues(ids: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    return np.array([cues_of(i) for i in ids], dtype=object)


@pytest.mark.shared
def test_ten_people_go_by_shape(answers: Answers) -> None:
    shape, texture = cues(answers.image_ids).T
    differ = shape != texture
    assert answers.response.shape == (10, 1280)
    assert int(answers.seen[:, differ].sum()) == 12_000
    assert (answers.seen[:, differ].sum(axis=1) == 1_200).all()
    response = answers.response[:, differ]
    found = peoples_bias(response == shape[differ], response == texture[differ], answers.seen[:, differ])
    assert found.pooled == pytest.approx(0.9587, abs=5e-5)
    assert found.mean == pytest.approx(0.9576, abs=5e-5)
    assert (found.people, found.trials) == (10, 12_000)
    quoted = {r.who: r for r in CUE_CONFLICT.references}
    for who, value, interval in (
        ("10 people, pooled", found.pooled, found.pooled_interval),
        ("10 people, mean", found.mean, found.mean_interval),
    ):
        reference = quoted[who]
        assert (value, *map(float, interval)) == pytest.approx(
            (reference.value, reference.ci_low, reference.ci_high), abs=6e-5
        )


@pytest.mark.shared
def test_peoples_shape_bias_equals_a_plain_count(shared_data: Path, answers: Answers) -> None:
    files = sorted((shared_data / "cue-conflict" / "human-trials").glob("*.csv"))
    each = []
    for file in files:
        table = pd.read_csv(file)
        texture = table["imagename"].str.extract(r"-([a-z]+)\d+\.png$")[0]
        table = table[texture != table["category"]].assign(texture=texture)
        by_shape = (table["object_response"] == table["category"]).sum()
        by_texture = (table["object_response"] == table["texture"]).sum()
        each.append(by_shape / (by_shape + by_texture))
    assert np.mean(each) == pytest.approx(0.9576, abs=5e-5)


@pytest.mark.shared
def test_people_scored_like_models_agree_as_people_do(answers: Answers) -> None:
    shape, texture = cues(answers.image_ids).T
    kappas, biases = [], []
    for p in range(10):
        rest = Answers(
            np.delete(answers.people, p), answers.image_ids, np.delete(answers.response, p, axis=0)
        )
        person = Decisions(answers.image_ids, shape, texture, answers.response[p])
        result = score_decisions(person, rest)
        kappas.append(result.metrics["human_error_consistency"].value)
        biases.append(result.metrics["shape_bias"].value)
        assert len(result.tables["cue_conflict_people"]) == 9
        # The people at hand replace the published figures, which are of the same people.
        assert not any(r.who == "10 people, pooled" for r in result.references)
    assert np.mean(biases) == pytest.approx(0.9576, abs=5e-5)
    # Every pair of people is in two of the ten means.
    correct, seen = answers.response == shape, answers.seen
    among = consistency_with_people(correct[0], correct, seen).among_people
    assert np.mean(kappas) == pytest.approx(among)
    assert 0.25 < among < 0.5


def trials(folder: Path, rows: str, name: str = "a.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("subj,session,trial,rt,object_response,category,condition,imagename\n" + rows)
    return folder


GOOD = "s1,1,1,0.5,cat,cat,0,0001_s5n_s01_0_cat_00_cat1-dog2.png\n"


def test_answers_are_read_and_none_counts_as_neither(tmp_path: Path) -> None:
    folder = trials(tmp_path / "t", GOOD + "s1,1,2,NaN,na,dog,0,0002_x_00_dog1-cat2.png\n")
    trials(folder, "s2,1,1,1,dog,cat,0,0001_x_00_cat1-dog2.png\n", "b.csv")
    answers = read_answers(folder)
    assert answers.people.tolist() == ["s1", "s2"]
    assert answers.image_ids.tolist() == ["cat1-dog2", "dog1-cat2"]
    assert answers.response.tolist() == [["cat", "na"], ["dog", None]]
    shape, texture = cues(answers.image_ids).T
    found = peoples_bias(answers.response == shape, answers.response == texture, answers.seen)
    assert (found.pooled, found.mean, found.trials) == (0.5, 0.5, 3)
    assert answers.of(np.array(["dog1-cat2", "bear1-cat1"], dtype=object)).response.tolist() == [
        ["na", None],
        [None, None],
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (GOOD + GOOD, "s1 answers cat1-dog2 twice"),
        ("s1,1,1,0.5,cat,cat,0,0001_x_00_dog1-cat2.png\n", "listed under 'cat'"),
        ("s1,1,1,0.5,cat,cat,0,photo.png\n", "shapeN-textureM"),
        ("", "holds no answers"),
    ],
)
def test_bad_answers_are_one_clear_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        read_answers(trials(tmp_path / "t", rows))


def test_missing_answers_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BeyondError, match=r"no \*\.csv"):
        read_answers(tmp_path / "nowhere")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BeyondError, match="no column 'subj'"):
        read_answers(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BeyondError, match="cannot be read as CSV"):
        read_answers(tmp_path)


def test_people_who_saw_none_of_the_images_give_no_consistency() -> None:
    table = pd.DataFrame({"subj": ["p"], "image_id": ["bear1-oven2"], "object_response": ["bear"]})
    result = score_decisions(made([("cat", "dog", "cat")]), answers_from_table(table, where="t"))
    assert "human_error_consistency" not in result.metrics
    assert any("answered none" in note for note in result.notes)


# Folders ------------------------------------------------------------------------------------------------


def lay(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i, kind="PNG"))
    return folder


def test_a_folder_of_cue_conflict_images(tmp_path: Path) -> None:
    names = ("cat/cat1-dog2.png", "cat/cat2-cat1.png", "oven/oven1-bear3.png")
    images = open_images(lay(tmp_path / "images", *names))
    assert images.ids.tolist() == ["cat1-dog2", "cat2-cat1", "oven1-bear3"]
    assert set(images.labels.tolist()) == {-1}
    assert images.read(2) == (tmp_path / "images" / names[2]).read_bytes()
    # The folder above, which also holds the answers, means the same.
    (tmp_path / "human-trials").mkdir()
    assert open_images(tmp_path).fingerprint == images.fingerprint
    assert find_people(tmp_path) == find_people(tmp_path / "images") == (tmp_path / "human-trials").resolve()


def test_a_limit_takes_images_of_all_shapes(tmp_path: Path) -> None:
    names = [f"{c}/{c}{i}-{t}1.png" for c in categories() for i in range(4) for t in ("cat", "dog")]
    lay(tmp_path, *names)
    few = open_images(tmp_path, limit=32)
    assert len(few) == 32
    assert len({cues_of(i)[0] for i in few.ids}) > 8
    assert few.ids.tolist() == open_images(tmp_path, limit=32).ids.tolist()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "there is no folder"),
        (("n01440764/ILSVRC2012_val_00000293.png",), "does not say its shape and texture"),
        (("cat/cat1.png",), "does not say its shape and texture"),
        (("cat/cat1-zebra1.png",), "'zebra' is not one of the 16"),
        (("dog/cat1-dog1.png",), "lies in another folder"),
        (("cat1-dog1.png",), "holds no cue-conflict images"),
        (("cat/cat1-cat2.png", "dog/dog1-dog1.png"), "no conflict"),
    ],
)
def test_a_wrong_layout_is_one_clear_line(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        open_images(lay(tmp_path / "d", *names))


# A real model -------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_lite0_goes_by_texture(shared_data: Path, tmp_path: Path, answers: Answers) -> None:
    import torch

    from benchmark.engine import Settings
    from benchmark.models import load
    from benchmark.probes.cue_conflict import observe, score
    from benchmark.probes.execution import Evidence, Observation

    folder = shared_data / "cue-conflict"
    images = open_images(folder / "images")
    assert len(images) == 278
    observation = Observation(
        load("efficientnet-lite0"),
        images,
        tmp_path / "p",
        Settings(workers=0, device=torch.device("cpu"), quiet=True),
        warn=lambda line: None,
        people=folder / "human-trials",
    )
    observe(observation)
    result = score(Evidence(folder=tmp_path / "p"))
    bias = result.metrics["shape_bias"]
    assert bias.value == pytest.approx(0.218, abs=0.03)
    assert bias.ci_low is not None
    assert bias.ci_high is not None
    assert bias.ci_low < 0.218 < bias.ci_high < 0.5
    assert result.metrics["cue_accuracy"].n == 259
    rows = result.tables["cue_conflict_categories"]
    shape, texture = (sum(int(row[key] or 0) for row in rows) for key in ("shape", "texture"))
    assert abs(shape - 38) <= 4
    assert abs(texture - 136) <= 6
    # Its errors are less like people's than people's are like each other's.
    kappa = result.metrics["human_error_consistency"]
    among = next(r for r in result.references if r.who == "people with each other")
    assert 0 < kappa.value < among.value
    # The decisions are those of a plain forward pass with a plain mean.
    decided = decisions_of(_parts(tmp_path / "p" / "plain"))
    from benchmark.preprocessing import load_pixels

    some = [0, 90, 181, 277]
    classifier = observation.classifier
    x = torch.stack(
        [
            torch.from_numpy(load_pixels(images.read(i), classifier.preprocessing, name="x").copy()).permute(
                2, 0, 1
            )
            for i in some
        ]
    )
    with torch.inference_mode():
        p = classifier(x.float() / 255).softmax(1).numpy()
    by_hand = [max(categories(), key=lambda c: row[categories()[c]].mean()) for row in p]
    of = dict(zip(decided.image_ids, decided.decision))
    assert [of[images.ids[i]] for i in some] == by_hand


def _parts(folder: Path) -> list[Predictions]:
    from benchmark.records import iter_predictions

    return list(iter_predictions(folder))
