from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from annotations.errors import BeyondError
from benchmark.decoding import DecodedBatch, Failure
from benchmark.explanations import neighbours
from benchmark.explanations.neighbours import Features, nearest, open_features, penultimate, write_features
from tests.benchmark.explanations.networks import classifier_of, images, plain_cnn, timm_classifier


def features_of(matrix: npt.ArrayLike, ids: list[str] | None = None) -> Features:
    rows = np.asarray(matrix, dtype=np.float32)
    return Features(np.array(ids or [f"r{i:05d}" for i in range(len(rows))]), rows)


def everything(features: Features, classes: list[int]) -> dict[int, npt.NDArray[np.bool_]]:
    return {label: np.ones(len(features), dtype=bool) for label in classes}


def test_equals_scikit_learn_class_by_class() -> None:
    rng = np.random.default_rng(0)
    references = features_of(rng.gamma(0.5, size=(600, 40)))
    labels = rng.integers(0, 5, size=600)
    queries, classes = rng.gamma(0.5, size=(50, 40)), rng.integers(0, 5, size=50)
    found = nearest(queries, classes, references, {c: labels == c for c in range(5)}, k=7)
    for label in range(5):
        rows, mine = np.flatnonzero(labels == label), np.flatnonzero(classes == label)
        peer = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute")
        peer.fit(references.matrix[rows].astype(np.float64))
        distance, index = peer.kneighbors(queries[mine])
        assert np.array_equal(found.rows[mine], rows[index])
        np.testing.assert_allclose(found.similarity[mine], 1 - distance, atol=1e-12)
        assert np.array_equal(found.image_ids[mine], references.image_ids[rows[index]])


def test_ties_go_to_the_smaller_id_whatever_the_order_of_rows_and_chunks() -> None:
    rng = np.random.default_rng(1)
    distinct = rng.normal(size=(10, 33))
    # Every vector four times, once at another length: all four are equally near.
    matrix = np.concatenate([distinct, distinct, distinct * 4, distinct]).astype(np.float32)
    ids = [f"id{i:03d}" for i in rng.permutation(40)]
    query = distinct[:3] * 0.5
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(40)
        references = features_of(matrix[order], [ids[i] for i in order])
        for chunk in (1, 7, 40):
            found = nearest(
                query, np.zeros(3, int), references, everything(references, [0]), k=4, chunk=chunk
            )
            for q in range(3):
                assert found.image_ids[q].tolist() == sorted(ids[q + 10 * copy] for copy in range(4))


def test_bit_for_bit_whatever_the_chunks_and_the_other_queries() -> None:
    rng = np.random.default_rng(2)
    references = features_of(rng.normal(size=(257, 129)))
    queries = rng.normal(size=(9, 129))
    members = everything(references, [0])
    whole = nearest(queries, np.zeros(9, int), references, members, k=20)
    for chunk in (1, 20, 100):
        found = nearest(queries, np.zeros(9, int), references, members, k=20, chunk=chunk)
        assert np.array_equal(found.rows, whole.rows)
        assert np.array_equal(found.similarity, whole.similarity)
    alone = nearest(queries[4:5], np.zeros(1, int), references, members, k=20)
    assert np.array_equal(alone.similarity[0], whole.similarity[4])


def test_a_query_is_not_its_own_neighbour() -> None:
    references = features_of(np.eye(4), ["a", "b", "c", "d"])
    members = everything(references, [0])
    queries = np.eye(4)[:2]
    plain = nearest(queries, np.zeros(2, int), references, members, k=1)
    assert plain.image_ids[:, 0].tolist() == ["a", "b"]
    others = nearest(queries, np.zeros(2, int), references, members, k=1, query_ids=["a", "b"])
    assert others.image_ids[:, 0].tolist() == ["b", "a"]


def test_fewer_references_than_wanted() -> None:
    references = features_of(np.eye(3), ["a", "b", "c"])
    members = {0: np.array([True, False, True]), 1: np.zeros(3, dtype=bool)}
    found = nearest(np.ones((2, 3)), np.array([0, 1]), references, members, k=3)
    assert found.rows.tolist() == [[0, 2, -1], [-1, -1, -1]]
    assert found.image_ids.tolist() == [["a", "c", ""], ["", "", ""]]
    assert np.isnan(found.similarity[1]).all()
    np.testing.assert_allclose(found.similarity[0, :2], 3**-0.5)


def test_zeros_are_similar_to_nothing_and_nan_is_refused() -> None:
    references = features_of([[0, 0], [1, 0], [-1, 0]], ["z", "p", "n"])
    found = nearest(np.array([[1.0, 0.0]]), np.array([0]), references, everything(references, [0]), k=3)
    assert found.image_ids[0].tolist() == ["p", "z", "n"]
    assert found.similarity[0].tolist() == [1.0, 0.0, -1.0]
    with pytest.raises(BeyondError, match="NaN"):
        nearest(np.array([[np.nan, 0.0]]), np.array([0]), references, everything(references, [0]), k=1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"k": 0}, "at least 1"),
        ({"classes": np.array([9])}, "class 9 has no mask"),
        ({"queries": np.ones((1, 3))}, "same model"),
    ],
)
def test_refusals(arguments: dict[str, Any], reason: str) -> None:
    references = features_of(np.eye(2))
    given: dict[str, Any] = {"queries": np.ones((1, 2)), "classes": np.array([0]), "k": 1} | arguments
    with pytest.raises(BeyondError, match=reason):
        nearest(given["queries"], given["classes"], references, everything(references, [0]), k=given["k"])


# --------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_features_are_what_timm_calls_pre_logits(name: str) -> None:
    classifier = timm_classifier(name)
    x = images(2, 224)
    network: Any = classifier.module.get_submodule("network")
    spec = classifier.preprocessing
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.mean, spec.std))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features((x - mean) / std), pre_logits=True)
    torch.testing.assert_close(penultimate(classifier, x), expected.flatten(1))
    assert not any(part._forward_pre_hooks for part in classifier.module.modules())


def test_the_last_linear_layer_is_taken_when_none_is_named() -> None:
    classifier = classifier_of(plain_cnn())
    assert classifier.feature_layer is None
    features = penultimate(classifier, images(3, 32))
    assert features.shape == (3, 48)
    head = classifier.module.get_submodule("network.7")
    torch.testing.assert_close(head(features), classifier(images(3, 32)))


def test_a_network_without_a_linear_layer_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1000, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(BeyondError, match="no penultimate features"):
        penultimate(classifier_of(network), images(1, 32))


def batches(pixels: npt.NDArray[np.uint8], size: int, ids: list[str] | None = None) -> Iterator[DecodedBatch]:
    names = np.array(ids or [f"img{i}" for i in range(len(pixels))], dtype=object)
    for start in range(0, len(pixels), size):
        stop = min(start + size, len(pixels))
        yield DecodedBatch(pixels[start:stop].copy(), np.arange(start, stop), names[start:stop])


@pytest.fixture
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size=(11, 32, 32, 3), dtype=np.uint8)


def test_features_survive_the_disk(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    classifier = classifier_of(plain_cnn())
    written = write_features(tmp_path, classifier, batches(pixels, 4), images="abc")
    found = open_features(tmp_path, weights_sha256=classifier.weights_sha256, verify=True)
    assert isinstance(found.matrix, np.memmap)
    assert found.image_ids.tolist() == [f"img{i}" for i in range(11)]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_allclose(found.matrix, penultimate(classifier, x).numpy(), atol=1e-5)
    assert np.array_equal(written.matrix, found.matrix)
    # NumPy reads the file without us.
    assert np.load(tmp_path / "features" / "features.npy", allow_pickle=False).shape == (11, 48)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features"]


def test_images_that_failed_have_no_row(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    broken = DecodedBatch(
        pixels[:0], np.zeros(0, int), np.zeros(0, object), failures=(Failure(11, "bad", "bad is corrupt"),)
    )
    seen: list[int] = []
    found = write_features(
        tmp_path,
        classifier_of(plain_cnn()),
        [*batches(pixels, 4), broken],
        images="abc",
        on_batch=lambda batch: seen.append(len(batch)),
    )
    assert len(found) == 11
    assert seen == [4, 4, 3, 0]


def test_a_killed_extraction_leaves_the_old_features(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    classifier = classifier_of(plain_cnn())
    write_features(tmp_path, classifier, batches(pixels, 4), images="old")

    def dies() -> Iterator[DecodedBatch]:
        yield next(batches(pixels, 4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path, classifier, dies(), images="new")
    found = open_features(tmp_path, verify=True)
    assert found.info is not None
    assert found.info.images == "old"
    assert len(found) == 11


def test_damage_and_other_models_are_told(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(BeyondError, match="holds no features"):
        open_features(tmp_path)
    classifier = classifier_of(plain_cnn())
    write_features(tmp_path, classifier, batches(pixels, 4), images="abc")
    with pytest.raises(BeyondError, match="another model"):
        open_features(tmp_path, weights_sha256="0" * 64)
    path = tmp_path / "features" / "features.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BeyondError, match="checksum"):
        open_features(tmp_path, verify=True)
    path.write_bytes(data[:-8])
    with pytest.raises(BeyondError, match="damaged"):
        open_features(tmp_path)
    (tmp_path / "features" / "features.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(BeyondError, match="damaged"):
        open_features(tmp_path)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(BeyondError, match="twice"):
        write_features(tmp_path, classifier_of(plain_cnn()), batches(pixels[:2], 4, ["a", "a"]), images="abc")
    with pytest.raises(BeyondError, match="no images"):
        write_features(tmp_path, classifier_of(plain_cnn()), [], images="abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1), (50_000, 1280), (10**12, 99_999)])
def test_header_is_numpys(shape: tuple[int, int]) -> None:
    import io

    header = neighbours._npy_header(*shape)
    assert len(header) == 128
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype("<f4"))
    assert file.read() == b""
