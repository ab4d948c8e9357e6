from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import nn

from annotations.errors import BeyondError
from benchmark.classifier import Classifier
from benchmark.explanations.heatmaps import grad_cam
from benchmark.explanations.layers import SpatialLayer, find_spatial_layer, token_grid
from benchmark.models.from_hub import Logits
from tests.benchmark.explanations.networks import classifier_of, images, plain_cnn, timm_classifier

FAMILIES: dict[str, tuple[dict[str, Any], SpatialLayer, tuple[int, int]]] = {
    "resnet18": ({}, SpatialLayer("network.layer4", "nchw"), (7, 7)),
    "tf_efficientnet_lite0": ({}, SpatialLayer("network.bn2", "nchw"), (7, 7)),
    "mobilenetv3_small_050": ({}, SpatialLayer("network.blocks.5", "nchw"), (7, 7)),
    "convnext_atto": ({}, SpatialLayer("network.stages.3", "nchw"), (7, 7)),
    "swin_tiny_patch4_window7_224": ({}, SpatialLayer("network.layers.3", "nhwc"), (7, 7)),
    "vit_tiny_patch16_224": ({}, SpatialLayer("network.blocks.11.norm1", "tokens", 1), (14, 14)),
    # A class token and four registers before the patches.
    "vit_small_patch14_reg4_dinov2": (
        {"img_size": 112, "depth": 2},
        SpatialLayer("network.blocks.1.norm1", "tokens", 5),
        (8, 8),
    ),
    # A class and a distillation token.
    "deit_tiny_distilled_patch16_224": ({}, SpatialLayer("network.blocks.11.norm1", "tokens", 2), (14, 14)),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "resolved"])
def test_families_of_timm(name: str, declared: bool) -> None:
    """A network that a user's own file returns names no layer, and is found the same one."""
    arguments, expected, grid = FAMILIES[name]
    classifier = timm_classifier(name, declared=declared, **arguments)
    assert (classifier.explanation_layer is not None) == declared
    layer = find_spatial_layer(classifier)
    assert layer == expected
    x = images(2, classifier.preprocessing.input_size[0])
    heat = grad_cam(classifier, x, torch.tensor([1, 2]), layer=layer)
    assert heat.maps.shape == (2, *grid)
    assert heat.at_pixels().shape == (2, *x.shape[2:])
    assert not heat.blank.all()
    assert not torch.equal(heat.maps[0], heat.maps[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", SpatialLayer("network.layer4", "nchw")),
        ("squeezenet1_1", SpatialLayer("network.features", "nchw")),
        ("densenet121", SpatialLayer("network.features", "nchw")),
        ("swin_t", SpatialLayer("network.norm", "nhwc")),
    ],
)
def test_families_of_torchvision(name: str, expected: SpatialLayer) -> None:
    classifier = classifier_of(torchvision.models.get_model(name), 64)
    assert find_spatial_layer(classifier) == expected
    cells = 3 if name == "squeezenet1_1" else 2
    assert grad_cam(classifier, images(1, 64), torch.tensor([3])).maps.shape == (1, cells, cells)


LABELS: dict[str, Any] = {"num_labels": 1000}
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    **LABELS,
}
TRANSFORMERS: dict[str, tuple[Callable[[], Any], SpatialLayer, tuple[int, int]]] = {
    "vit": (
        lambda: transformers.ViTConfig(image_size=64, intermediate_size=64, **SMALL),
        SpatialLayer("network.network.vit.layers.1.layernorm_before", "tokens", 1),
        (4, 4),
    ),
    "dinov2": (
        lambda: transformers.Dinov2Config(image_size=56, patch_size=14, **SMALL),
        SpatialLayer("network.network.dinov2.encoder.layer.1.norm1", "tokens", 1),
        (4, 4),
    ),
    "swin": (
        lambda: transformers.SwinConfig(
            image_size=64, embed_dim=24, depths=[1, 1, 2], num_heads=[2, 2, 2], window_size=4, **LABELS
        ),
        SpatialLayer("network.network.swin.layernorm", "tokens", 0),
        (4, 4),
    ),
    "convnext": (
        lambda: transformers.ConvNextConfig(
            image_size=64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], **LABELS
        ),
        SpatialLayer("network.network.convnext.encoder.stages.3", "nchw"),
        (2, 2),
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_families_of_transformers(kind: str) -> None:
    make, expected, grid = TRANSFORMERS[kind]
    config = make()
    auto: Any = transformers.AutoModelForImageClassification
    network = auto.from_config(config)
    classifier = classifier_of(Logits(network), config.image_size)
    layer = find_spatial_layer(classifier)
    if kind == "vit":  # its list of blocks has another name in other versions
        assert layer.name.endswith("1.layernorm_before")
        expected = replace(expected, name=layer.name)
    assert layer == expected
    assert grad_cam(classifier, images(1, config.image_size), torch.tensor([3])).maps.shape == (1, *grid)


def test_a_plain_network_of_no_library() -> None:
    """The last activation before the pooling, though nobody named it."""
    assert find_spatial_layer(classifier_of(plain_cnn())) == SpatialLayer("network.4", "nchw")


def test_tokens_keep_their_places() -> None:
    """Token i of the grid is row i // columns, column i % columns; prefix tokens are dropped."""
    layer = SpatialLayer("l", "tokens", 2)
    output = torch.arange(2 + 8.0).view(1, 10, 1)
    assert layer.as_grid(output, (32, 64))[0, 0].tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    channels_last = torch.arange(24.0).view(1, 2, 3, 4)
    assert SpatialLayer("l", "nhwc").as_grid(channels_last, (8, 12))[0, 1].tolist() == [
        [1, 5, 9],
        [13, 17, 21],
    ]


@pytest.mark.parametrize(
    ("patches", "size"), [(195, (224, 224)), (0, (224, 224)), (-3, (8, 8)), (6, (32, 64))]
)
def test_tokens_that_are_no_grid(patches: int, size: tuple[int, int]) -> None:
    with pytest.raises(BeyondError, match="no grid over"):
        token_grid(patches, size)


class Attention(nn.Module):
    """A network of a family that nobody knows."""

    def __init__(self, *, class_token: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.mix = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.LayerNorm(16)
        self.head = nn.Linear(16, 1000)
        self.class_token = class_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = self.last(tokens + self.mix(tokens, tokens, tokens)[0])
        result: torch.Tensor = self.head(tokens[:, 0] if self.class_token else tokens.mean(dim=1))
        return result


class Twice(nn.Module):
    """A network that uses one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.again(self.again(self.stem(x))).mean(dim=(2, 3)))
        return result


def declared(network: nn.Module, name: str, layout: Any, prefix: int = 0) -> Classifier:
    """A classifier whose maker named a layer, rightly or not."""
    classifier = classifier_of(network, 32)
    return replace(classifier, explanation_layer=name, layout=layout, prefix_tokens=prefix)


class Integer(nn.Module):
    """Rounds activations to whole numbers, as quantised networks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 16).to(torch.int8).float() / 16


REFUSALS: dict[str, tuple[Callable[[], Classifier], str]] = {
    "unknown family": (lambda: classifier_of(Attention()), "no known family"),
    "mixer": (lambda: timm_classifier("mixer_s32_224"), "no grid in the layout nchw"),
    "no spatial layer": (
        lambda: classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(3072, 1000))),
        "no layer with a grid",
    ),
    "past the last attention": (
        lambda: declared(Attention(class_token=True), "network.last", "tokens", 1),
        "no logit depends on the positions",
    ),
    "wrong prefix": (lambda: declared(Attention(), "network.last", "tokens", 0), "17 patch tokens"),
    "wrong layout": (lambda: declared(plain_cnn(), "network.4", "nhwc"), "no map of a 32×32 image"),
    "not there": (lambda: declared(plain_cnn(), "network.nine", "nchw"), "no layer network.nine"),
    "used twice": (lambda: declared(Twice(), "network.again", "nchw"), "runs 2 times"),
    "no tensor": (lambda: declared(Attention(), "network.mix", "tokens", 1), "returns a tuple"),
    "quantised": (
        lambda: declared(plain_cnn().insert(6, Integer()), "network.4", "nchw"),
        "no gradient at layer network.4",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_the_reason_in_one_line(case: str) -> None:
    make, reason = REFUSALS[case]
    classifier = make()
    with pytest.raises(BeyondError, match=reason) as error:
        find_spatial_layer(classifier)
    message = str(error.value)
    assert "\n" not in message
    assert classifier.name in message
    assert "explanation_layer" in message
    assert not any(part._forward_hooks for part in classifier.module.modules())


def test_a_token_network_can_be_named_by_its_maker() -> None:
    """What is refused unnamed works when its maker says what it is, as the refusal proposes."""
    classifier = declared(Attention(), "network.last", "tokens", 1)
    assert grad_cam(classifier, images(3, 32), torch.tensor([1, 2, 3])).maps.shape == (3, 4, 4)
