"""hf: specs against a local server that speaks the Hub's API to the real client."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import nn

from annotations.classes import class_names, wnids
from annotations.errors import BeyondError
from benchmark.models import available, from_hub, load
from benchmark.preprocessing import Preprocessing, load_pixels
from tests.benchmark.models.test_weights import Payload
from tests.hub_server import HubServer

transformers: Any = pytest.importorskip("transformers")

LABELS = {str(i): name for i, name in enumerate(class_names())}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with HubServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def text(value: object) -> bytes:
    return json.dumps(value).encode()


# timm checkpoints

TIMM_CONFIG: dict[str, Any] = {
    "architecture": "mobilenetv3_small_050",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 64, 64], "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bilinear",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "num_classes": 1000, "license": "mit",
        "classifier": "classifier", "first_conv": "conv_stem",
        # Where to load from is not a stranger's to say.
        "file": "/etc/passwd", "url": "http://127.0.0.1:9/evil.pth", "source": "local-dir",
        "custom_load": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def timm_network() -> nn.Module:
    torch.manual_seed(3)
    network: nn.Module = timm.create_model("mobilenetv3_small_050").eval()
    return network


def timm_files(network: nn.Module) -> dict[str, bytes]:
    return {"config.json": text(TIMM_CONFIG), "model.safetensors": save_safetensors(network.state_dict())}


def test_timm_checkpoint(server: HubServer, tmp_path: Path, timm_network: nn.Module) -> None:
    sha = server.add_repo("model", "org/tiny", timm_files(timm_network))
    classifier = load("hf:org/tiny", cache_dir=tmp_path)
    x = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.equal(classifier(x), timm_network((x - mean) / std))
    assert classifier.preprocessing == Preprocessing(
        (64, 64), 71, "bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    assert classifier.source["repository"] == "org/tiny"
    assert classifier.source["revision"] == sha
    assert (classifier.licence, classifier.name) == ("mit", "tiny")


def test_revisions_are_pinned(server: HubServer, tmp_path: Path, timm_network: nn.Module) -> None:
    first = server.add_repo("model", "org/tiny", timm_files(timm_network), tag="v1")
    other = timm.create_model("mobilenetv3_small_050")
    second = server.add_repo("model", "org/tiny", timm_files(other))
    by_tag, by_sha = (
        load("hf:org/tiny@v1", cache_dir=tmp_path),
        load(f"hf:org/tiny@{first}", cache_dir=tmp_path),
    )
    newest = load("hf:org/tiny", cache_dir=tmp_path)
    assert by_tag.source["revision"] == by_sha.source["revision"] == first
    assert newest.source["revision"] == second
    assert by_tag.weights_sha256 == by_sha.weights_sha256 != newest.weights_sha256


def test_cache_serves_offline(
    server: HubServer, tmp_path: Path, timm_network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = timm_files(timm_network)
    buffer = io.BytesIO()
    torch.save(timm_network.state_dict(), buffer)
    # Only a .bin, so that offline the cache must remember that there is no safetensors file.
    sha = server.add_repo(
        "model", "org/bin", {"config.json": files["config.json"], "pytorch_model.bin": buffer.getvalue()}
    )
    online = load("hf:org/bin", cache_dir=tmp_path)
    requests = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = load("hf:org/bin", cache_dir=tmp_path)
    assert len(server.requests) == requests
    assert offline.weights_sha256 == online.weights_sha256
    assert offline.source["revision"] == sha
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert load("hf:org/bin", cache_dir=tmp_path).weights_sha256 == online.weights_sha256
    with pytest.raises(
        BeyondError, match="org/other is not in the local cache and the Hub cannot be reached"
    ):
        load("hf:org/other", cache_dir=tmp_path)


def test_timm_names_fetch_from_the_hub(
    server: HubServer, tmp_path: Path, timm_network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = server.add_repo("model", "timm/mobilenetv3_small_050.lamb_in1k", timm_files(timm_network))
    classifier = load("timm:mobilenetv3_small_050", cache_dir=tmp_path)
    assert classifier.source["revision"] == sha
    assert classifier.licence == "apache-2.0"
    assert classifier.preprocessing.input_size == (224, 224)  # timm's own, not the repository's
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    listed = {item.spec: item for item in available.offline(tmp_path)}
    item = listed["timm:mobilenetv3_small_050.lamb_in1k"]
    assert item.parameters == sum(t.numel() for t in timm_network.state_dict().values())
    assert item.input_size == 224
    assert load(item.spec, cache_dir=tmp_path).weights_sha256 == classifier.weights_sha256


def test_hub_refusals(server: HubServer, tmp_path: Path, timm_network: nn.Module) -> None:
    files = timm_files(timm_network)
    weights = files["model.safetensors"]
    server.add_repo("model", "org/tiny", files)
    server.add_repo("model", "org/gated", files, gated=True)

    def variant(name: str, **changes: Any) -> None:
        server.add_repo(
            "model", f"org/{name}", {"config.json": text(TIMM_CONFIG | changes), "model.safetensors": weights}
        )

    variant("remote", auto_map={"AutoModelForImageClassification": "modeling_evil.Evil"})
    variant("background", num_classes=1001)
    variant("many", num_classes=21841)
    variant("arch", architecture="not_in_timm")
    variant("chase", architecture="hf-hub:org/tiny")
    variant("path", model_args={"checkpoint_path": "/etc/passwd"})
    variant("argument", model_args={"no_such_argument": 3})
    variant("misfit", architecture="mobilenetv3_small_075")
    server.add_repo("model", "org/noconfig", {"model.safetensors": weights})
    server.add_repo("model", "org/noweights", {"config.json": files["config.json"]})
    server.add_repo("model", "org/nojson", {"config.json": b"{", "model.safetensors": weights})
    server.add_repo("model", "org/list", {"config.json": b"[1]", "model.safetensors": weights})
    cases = {
        "org/tiny@nope": "org/tiny has no revision 'nope'",
        "org/absent": "no repository 'org/absent'",
        "org/gated": "asks for agreement to its terms",
        "a/b/c": "is no repository name",
        "org/remote": "is refused: its config.json has an auto_map",
        "org/background": "background class first",
        "org/many": "21841 outputs",
        "org/arch": "architecture 'not_in_timm', unknown to timm",
        "org/chase": "architecture 'hf-hub:org/tiny', unknown to timm",
        "org/path": "sets the argument 'checkpoint_path'",
        "org/argument": "do not fit",
        "org/misfit": "do not fit",
        "org/noconfig": "has no config.json",
        "org/noweights": "has no weights for PyTorch",
        "org/nojson": "is not JSON",
        "org/list": "is not a JSON object",
    }
    for name, message in cases.items():
        with pytest.raises(BeyondError, match=message) as error:
            load(f"hf:{name}", cache_dir=tmp_path)
        assert "\n" not in str(error.value)


def test_pickled_code_from_the_hub_does_not_run(server: HubServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"classifier.weight": Payload(tmp_path / "ran")}, buffer)
    configs: dict[str, Any] = {"timm": TIMM_CONFIG, "transformers": vit_config().to_dict()}
    for name, config in configs.items():
        server.add_repo(
            "model",
            f"org/{name}",
            {
                "config.json": text(config),
                "preprocessor_config.json": text({"image_processor_type": "ViTImageProcessor"}),
                "pytorch_model.bin": buffer.getvalue(),
            },
        )
        with pytest.raises(BeyondError, match=r"pytorch_model\.bin is refused"):
            load(f"hf:org/{name}", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


# transformers checkpoints


def vit_config(**changes: Any) -> Any:
    return transformers.ViTConfig(
        **{
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "image_size": 32, "patch_size": 8, "id2label": LABELS,
            "architectures": ["ViTForImageClassification"], **changes,
        }
    )  # fmt: skip


def resnet_config() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=LABELS,
        architectures=["ResNetForImageClassification"],
    )  # fmt: skip


VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
}  # fmt: skip
# As microsoft/resnet-50 and others of its time spell it.
CONVNEXT_PROCESSOR = {
    "feature_extractor_type": "ConvNextFeatureExtractor", "size": 64, "crop_pct": 0.875, "resample": 3,
    "do_resize": True, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def transformers_network(config: Any) -> Any:
    torch.manual_seed(4)
    network = transformers.AutoModelForImageClassification.from_config(config).eval()
    nn.init.normal_(list(network.parameters())[-2], std=1.0)
    return network


def transformers_files(network: Any, processor: dict[str, Any], **changes: Any) -> dict[str, bytes]:
    return {
        "config.json": text(network.config.to_dict() | changes),
        "preprocessor_config.json": text(processor),
        "model.safetensors": save_safetensors({k: v.contiguous() for k, v in network.state_dict().items()}),
    }


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_transformers_checkpoint(server: HubServer, tmp_path: Path, kind: str) -> None:
    network = transformers_network(vit_config() if kind == "vit" else resnet_config())
    processor = VIT_PROCESSOR if kind == "vit" else CONVNEXT_PROCESSOR
    sha = server.add_repo("model", f"org/{kind}", transformers_files(network, processor))
    classifier = load(f"hf:org/{kind}@main", cache_dir=tmp_path)
    spec = classifier.preprocessing
    assert classifier.source["revision"] == sha
    assert "transformers" in classifier.source
    if kind == "vit":
        assert (spec.input_size, spec.resize, spec.interpolation) == ((32, 32), (32, 32), "bicubic")
        assert (classifier.layout, classifier.prefix_tokens) == ("tokens", 1)
    else:
        assert (spec.input_size, spec.resize) == ((64, 64), 73)
        assert classifier.layout == "nchw"
    x = torch.rand(2, 3, *spec.input_size)
    normalised = (x - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.no_grad():
        expected = network(pixel_values=normalised).logits
        torch.testing.assert_close(classifier(x), expected, rtol=1e-5, atol=1e-5)
    assert classifier.feature_layer is not None
    assert classifier.explanation_layer is not None
    seen = []
    handle = classifier.module.get_submodule(classifier.explanation_layer).register_forward_hook(
        lambda _, __, output: seen.append(output)
    )
    logits = classifier(x.requires_grad_(True))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 5].sum(), seen[0])
    patches = gradient[:, 1:] if kind == "vit" else gradient.flatten(2).transpose(1, 2)
    assert patches.shape[1] == 16 if kind == "vit" else patches.shape[1] > 4
    assert bool((patches.abs().sum(-1) > 0).all())


def test_sharded_checkpoint(server: HubServer, tmp_path: Path) -> None:
    network = transformers_network(vit_config())
    files = transformers_files(network, VIT_PROCESSOR)
    whole = load_whole(server, tmp_path, files)
    del files["model.safetensors"]
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        files[shard] = save_safetensors({name: state[name] for name in members})
    index = {name: shard for shard, members in shards.items() for name in members}
    files["model.safetensors.index.json"] = text({"weight_map": index})
    server.add_repo("model", "org/sharded", files)
    assert load("hf:org/sharded", cache_dir=tmp_path).weights_sha256 == whole
    del files["b.safetensors"]
    server.add_repo("model", "org/torn", files)
    with pytest.raises(BeyondError, match="lacks a shard"):
        load("hf:org/torn", cache_dir=tmp_path)


def load_whole(server: HubServer, tmp_path: Path, files: dict[str, bytes]) -> str:
    server.add_repo("model", "org/whole", files)
    return load("hf:org/whole", cache_dir=tmp_path).weights_sha256


def test_transformers_refusals(server: HubServer, tmp_path: Path) -> None:
    network = transformers_network(vit_config())
    good = transformers_files(network, VIT_PROCESSOR)
    headless = {k: v.contiguous() for k, v in network.state_dict().items() if not k.startswith("classifier.")}
    reversed_labels = {str(i): name for i, name in enumerate(reversed(class_names()))}
    birds = {str(i): f"bird species {i}" for i in range(1000)}
    with_background = {"0": "background", **{str(i + 1): name for i, name in enumerate(class_names())}}
    base = network.config.to_dict()

    def config(**changes: Any) -> dict[str, bytes]:
        return good | {"config.json": text(base | changes)}

    def processor(value: dict[str, Any]) -> dict[str, bytes]:
        return good | {"preprocessor_config.json": text(value)}

    bit = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "do_center_crop": False,
    }
    two = vit_config(id2label={"0": "cat", "1": "dog"}).to_dict()
    variants: dict[str, tuple[dict[str, bytes], str]] = {
        "code": (config(auto_map={"AutoConfig": "x.Y"}), r"config\.json has an auto_map"),
        "code2": (
            processor(VIT_PROCESSOR | {"auto_map": {"A": "x.Y"}}),
            r"preprocessor_config\.json has an auto",
        ),
        "noprocessor": (
            {name: data for name, data in good.items() if not name.startswith("pre")},
            "no preprocessor_config.json",
        ),
        "few": (good | {"config.json": text(two)}, "2 outputs"),
        "background": (config(id2label=with_background), "background class first"),
        "order": (config(id2label=reversed_labels), "in another order than ILSVRC2012"),
        "other": (config(id2label=birds), "knows other classes"),
        "quantised": (config(quantization_config={"bits": 4}), "is quantised"),
        "headless": (
            good | {"model.safetensors": save_safetensors(headless)},
            "lacks weights for classifier",
        ),
        "unknown": (config(model_type="nonesuch"), "do not fit|nonesuch"),
        "perceiver": (
            processor({"image_processor_type": "PerceiverImageProcessor"}),
            "Perceiver's own steps",
        ),
        "varying": (processor(bit), "images of varying size"),
        "bytes": (processor(VIT_PROCESSOR | {"do_rescale": False}), r"does not scale pixels to \[0, 1\]"),
    }
    for name, (files, message) in variants.items():
        server.add_repo("model", f"org/{name}", files)
        with pytest.raises(BeyondError, match=message) as error:
            load(f"hf:org/{name}", cache_dir=tmp_path)
        assert "\n" not in str(error.value), name


def test_transformers_is_an_extra(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_repo("model", "org/vit", {"config.json": text(vit_config().to_dict())})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BeyondError, match=r"pip install 'beyond-accuracy\[hf\]'"):
        load("hf:org/vit", cache_dir=tmp_path)


def test_label_names_in_other_spellings_pass() -> None:
    from_hub.check_label_order(dict(enumerate(wnids())), "model")
    from_hub.check_label_order({i: f"LABEL_{i}" for i in range(1000)}, "model")
    from_hub.check_label_order(
        {i: name.upper().replace(" ", "_") for i, name in enumerate(class_names())}, "model"
    )
    with pytest.raises(BeyondError, match="another order"):
        from_hub.check_label_order({i: wnids()[i - 1] for i in range(1000)}, "model")


PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": VIT_PROCESSOR | {"size": {"height": 40, "width": 40}},
    "vit-old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "resample": 2},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 64, "width": 64},
             "crop_size": {"height": 56, "width": 56}},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": {"height": 48, "width": 48},
             "do_center_crop": False},
    "bit": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 64},
            "crop_size": {"height": 56, "width": 56}},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
             "crop_size": {"height": 56, "width": 56}},
    "convnext": CONVNEXT_PROCESSOR,
    "convnext-384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "levit": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 56},
              "crop_size": {"height": 56, "width": 56}},
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 56},
                   "crop_pct": 0.875, "crop_size": {"height": 56, "width": 56}},
    "mobilevit": {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 76},
                  "crop_size": {"height": 64, "width": 64}, "resample": 2},
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor",
                     "size": {"height": 56, "width": 56}, "resample": 0,
                     "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.4, 0.5]},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_are_transformers_own(
    name: str, tmp_path: Path, odd_images: list[Image.Image]
) -> None:
    """The pixels equal those of transformers' own processor on Pillow.

    Its centre crop rounds an odd margin down, torchvision's to even: no image here has a margin that differs.
    """
    (tmp_path / "preprocessor_config.json").write_bytes(text(PROCESSORS[name]))
    spec, bgr = from_hub.read_processor(tmp_path, name)
    assert bgr == (name == "mobilevit")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for image in odd_images:
        buffer = io.BytesIO()
        image.save(buffer, "png")
        pixels = load_pixels(buffer.getvalue(), spec, name="test").astype(np.float32) / 255
        ours = (pixels - np.array(spec.mean)) / np.array(spec.std)
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(ours.transpose(2, 0, 1)[:: -1 if bgr else 1], expected, atol=1e-4)


def test_listing_the_cache(server: HubServer, tmp_path: Path, timm_network: nn.Module) -> None:
    assert [item.spec for item in available.offline(tmp_path)] == [
        "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2",
    ]  # fmt: skip
    vit = transformers_network(vit_config())
    server.add_repo("model", "org/vit", transformers_files(vit, VIT_PROCESSOR))
    server.add_repo("model", "org/tiny", timm_files(timm_network), tag="v1")
    load("hf:org/vit", cache_dir=tmp_path)
    load("hf:org/tiny@v1", cache_dir=tmp_path)
    listed = {item.spec: item for item in available.offline(tmp_path)}
    assert listed["hf:org/vit"].parameters == sum(p.numel() for p in vit.parameters())
    assert listed["hf:org/vit"].input_size == 32
    assert listed["hf:org/tiny@v1"].input_size == 64
    assert {item.where for item in listed.values()} == {"package", "Hub cache"}
