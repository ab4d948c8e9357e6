"""Checks of a classifier against the contract (`benchmark.classifier`), before any long run.

The checks of form need no images. The canary checks need a few labelled photographs: they look for the two
mistakes that leave everything running and every number wrong, another normalisation and another class order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from annotations.classes import NUM_CLASSES, class_names
from annotations.errors import BeyondError, one_line
from benchmark.classifier import Classifier, Normalized
from benchmark.models.weights import check_classes, fingerprint

CANARY_IMAGES = 64
_FEWEST = 10
_BATCH = 16
# Far below any published ImageNet classifier (AlexNet: 0.57) and far above chance (0.001).
_LOWEST_TOP1 = 0.2
# Measured on EfficientNet-Lite 0 to 2: with the right normalisation no alternative reached t = 2.5, and the
# first batch norm's divergence was at most 0.03; with a wrong one it was at least 0.4.
_CLEAR_T, _CLEAR_NATS = 2.5, 0.1
_CLEAR_DIVERGENCE, _NO_DIVERGENCE = 0.1, 0.05

_Stat = tuple[float, float, float]


@dataclass(frozen=True)
class Check:
    """The verdict on one part of the contract.

    Attributes:
        name: A short name.
        passed: True or False; None if it could not be judged.
        detail: What was seen; for a failure, what is wrong and what to do.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Alternative:
    """Another way in which a network may have wanted its pixels.

    Attributes:
        about: What the network would want, in words.
        remedy: What to do if it does.
        change: Takes float (N, 3, H, W) in [0, 1]; returns what makes the network inside see its wish.
        scale: Whether mean or std differ, and not only the order of channels.
    """

    about: str
    remedy: str
    change: Callable[[torch.Tensor], torch.Tensor]
    scale: bool = True


@dataclass(frozen=True)
class _Seen:
    """How a network does on labelled photographs.

    Attributes:
        top: int (N,), predicted class of each.
        loss: float (N,), cross-entropy in nats, at most that of guessing.
        divergence: How far the input of the first batch norm is from what it saw in training, or None.
    """

    top: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]
    divergence: float | None


def validate(
    classifier: Classifier,
    images: npt.NDArray[np.uint8] | None = None,
    labels: npt.NDArray[np.integer] | None = None,
) -> list[Check]:
    """Check a classifier against the contract.

    Args:
        classifier: What to check, as it is; nothing in it is changed.
        images: uint8 (N, H, W, 3), photographs prepared with its preprocessing. None skips the canary checks.
        labels: int (N,), class index of each, −1 where unknown.

    Returns:
        The checks in a fixed order. After a failure that leaves the others without meaning (the module does
        not run, or has not 1000 outputs) the rest is not judged.

    Example:
        >>> from benchmark.preprocessing import Preprocessing
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1001))
        >>> checks = validate(Classifier("x", "x", net.eval(), Preprocessing(), ""))
        >>> [(check.name, check.passed) for check in checks[:2]]
        [('eval mode', True), ('classes', False)]
    """
    module, size = classifier.module, classifier.preprocessing.input_size
    x = _pixels(images, size).to(_device(module))
    checks = [_eval_mode(module)]
    before = fingerprint(module)
    try:
        with torch.no_grad():
            logits = module(x[:2].clone())
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        reason = one_line(error)
        detail = (
            f"the module fails ({type(error).__name__}: {reason}); it must take float (N, 3, H, W) in [0, 1]"
        )
        return [*checks, Check("classes", False, detail)]
    checks.append(_classes(logits))
    if not checks[-1].passed:
        return checks
    checks += [
        _finite(module, x, logits),
        _logits(logits),
        _input_kept(module, x),
        _input_range(module, x),
        _deterministic(module, x),
        _batch_invariant(module, x),
        _gradient(module, x),
    ]
    after = fingerprint(module)
    checks.append(
        Check("weights kept", True, "no parameter or buffer changed")
        if after == before
        else Check(
            "weights kept", False, "a forward pass changes parameters or buffers; call .eval() on the module"
        )
    )
    if images is None or labels is None or not checks[2].passed:
        why = (
            "no labelled photographs; give some with --images" if checks[2].passed else "needs finite logits"
        )
        return [
            *checks,
            *(Check(name, None, why) for name in ("canary accuracy", "normalisation", "class order")),
        ]
    return [*checks, *_canary(classifier, x, np.asarray(labels, dtype=np.int64))]


def read_canary(
    images: str, classifier: Classifier, *, limit: int = CANARY_IMAGES
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Labelled photographs of an image set, prepared for a classifier.

    Args:
        images: Spec of the image set, e.g. `sample` or a folder.
        classifier: Whose preprocessing to use.
        limit: At most so many, spread evenly over the labelled ones.

    Returns:
        uint8 (N, H, W, 3) pixels and int64 (N,) labels.

    Raises:
        BeyondError: The set cannot be opened, or an image of it cannot be read.
    """
    from benchmark.images import open_image_set
    from benchmark.preprocessing import load_pixels

    found = open_image_set(images)
    labelled = np.flatnonzero(np.asarray(found.labels) >= 0)
    if not len(labelled):
        raise BeyondError(f"{images} has no image with a known label; give --images a set that has")
    chosen = labelled[
        np.unique(np.linspace(0, len(labelled) - 1, min(limit, len(labelled))).round().astype(int))
    ]
    pixels = [
        load_pixels(found.read(int(i)), classifier.preprocessing, name=str(found.ids[int(i)])) for i in chosen
    ]
    return np.stack(pixels), np.asarray(found.labels)[chosen].astype(np.int64)


def _pixels(images: npt.NDArray[np.uint8] | None, size: tuple[int, int]) -> torch.Tensor:
    """Photographs, or noise where there are none: float (N, 3, H, W) in [0, 1], N at least 3."""
    if images is None or len(images) < 3:
        noise = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
        images = noise if images is None or not len(images) else np.concatenate([images, noise])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise BeyondError(
            f"images have dtype {images.dtype} and shape {images.shape}; give uint8 (N, H, W, 3)"
        )
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous().float() / 255


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _eval_mode(module: nn.Module) -> Check:
    training = [name or "the module itself" for name, part in module.named_modules() if part.training]
    if training:
        return Check(
            "eval mode", False, f"{len(training)} parts are in train mode, first {training[0]}; call .eval()"
        )
    return Check("eval mode", True, "no part is in train mode")


def _classes(logits: object) -> Check:
    if not isinstance(logits, torch.Tensor):
        return Check("classes", False, f"the module returns {type(logits).__name__}; return the logits alone")
    if logits.ndim != 2 or logits.shape[0] != 2:
        shape = tuple(logits.shape)
        return Check(
            "classes", False, f"2 images give shape {shape}; return logits of shape (2, {NUM_CLASSES})"
        )
    try:
        check_classes(logits.shape[1], "the module")
    except BeyondError as error:
        return Check("classes", False, str(error))
    if not logits.is_floating_point():
        return Check("classes", False, f"logits have dtype {logits.dtype}; return floating-point logits")
    return Check("classes", True, f"(N, {NUM_CLASSES}) {str(logits.dtype).removeprefix('torch.')}")


@torch.no_grad()
def _finite(module: nn.Module, x: torch.Tensor, logits: torch.Tensor) -> Check:
    for what, seen in (
        ("photographs" if len(x) else "noise", logits),
        ("a black image", module(torch.zeros_like(x[:1]))),
        ("a white image", module(torch.ones_like(x[:1]))),
    ):
        bad = int((~torch.isfinite(seen)).sum())
        if bad:
            return Check(
                "finite logits",
                False,
                f"{bad} of {seen.numel()} logits for {what} are NaN or infinite; look for damaged weights, a "
                "division by zero, or float16 overflow",
            )
    return Check("finite logits", True, f"from {float(logits.min()):.3g} to {float(logits.max()):.3g}")


def _logits(logits: torch.Tensor) -> Check:
    sums = logits.float().sum(1)
    if bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return Check("logits", False, "the outputs are probabilities that sum to 1; leave the softmax out")
    return Check("logits", True, "the outputs are not probabilities")


@torch.no_grad()
def _input_kept(module: nn.Module, x: torch.Tensor) -> Check:
    given = x[:2].clone()
    module(given)
    if not torch.equal(given, x[:2]):
        return Check(
            "input kept",
            False,
            "the module changes its input in place; write x = (x - mean) / std",
        )
    return Check("input kept", True, "the input is the same after a forward pass")


@torch.no_grad()
def _input_range(module: nn.Module, x: torch.Tensor) -> Check:
    """Whether pixels in [0, 1] drive the outputs; a second division by 255 makes them all but constant."""
    logits = module(x[:3]).float()
    spread = float((logits - logits.mean(0)).abs().max())
    scale = float((logits - logits.mean(1, keepdim=True)).abs().max())
    if not spread > 1e-2 * scale:
        return Check(
            "input range",
            False,
            f"different images give almost the same logits ({spread:.2g} apart of {scale:.2g}); pixels arrive"
            " in [0, 1]: do not divide by 255 again",
        )
    return Check("input range", True, "pixels in [0, 1] drive the logits")


@torch.no_grad()
def _deterministic(module: nn.Module, x: torch.Tensor) -> Check:
    first, second = module(x[:2].clone()), module(x[:2].clone())
    if not torch.equal(first, second):
        # NaN differs from itself; that is another check's finding.
        if torch.equal(torch.nan_to_num(first), torch.nan_to_num(second)):
            return Check("determinism", None, "logits are NaN")
        worst = float((first - second).abs().max())
        return Check(
            "determinism",
            False,
            f"the same input gives logits that differ by {worst:.2g}; switch off dropout and all randomness",
        )
    return Check("determinism", True, "the same input gives the same bits twice")


@torch.no_grad()
def _batch_invariant(module: nn.Module, x: torch.Tensor) -> Check:
    together = module(x[:3].clone()).float()
    alone = torch.cat([module(image[None].clone()).float() for image in x[:3]])
    worst = float((together - alone).abs().max())
    # Kernels may sum in another order at another batch size; 1e-3 of the largest logit is far above that.
    allowed = 1e-3 * max(1.0, float(alone.abs().max()))
    if not worst <= allowed or not torch.equal(together.argmax(1), alone.argmax(1)):
        return Check(
            "batch invariance",
            False,
            f"an image's logits depend on its batch (they differ by {worst:.2g}); batch norm must use its "
            "running statistics: call .eval()",
        )
    return Check("batch invariance", True, f"alone and in a batch, logits differ by at most {worst:.1g}")


def _gradient(module: nn.Module, x: torch.Tensor) -> Check:
    given = x[:2].clone().requires_grad_(True)
    cut = "the gradient does not reach the input; remove no_grad, detach and conversions to NumPy"
    try:
        with torch.enable_grad():
            logits = module(given + 0)  # a module that works in place must not hit a leaf here
            chosen = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
            (gradient,) = torch.autograd.grad(chosen, given)
    except RuntimeError as error:
        reason = one_line(error, 120)
        return Check("gradient", False, f"{cut} ({reason})")
    if not bool(torch.isfinite(gradient).all()):
        return Check("gradient", False, "the gradient at the input has NaN or infinity")
    norms = gradient.flatten(1).norm(dim=1)
    if not bool((norms > 0).all()):
        return Check(
            "gradient",
            False,
            "the gradient at the input is zero; remove rounding and hard limits",
        )
    return Check(
        "gradient", True, f"reaches the input, norms {float(norms.min()):.2g} to {float(norms.max()):.2g}"
    )


def _canary(classifier: Classifier, x: torch.Tensor, labels: npt.NDArray[np.int64]) -> list[Check]:
    """The three checks on labelled photographs."""
    names = ("canary accuracy", "normalisation", "class order")
    x, labels = x[: len(labels)][labels >= 0], labels[labels >= 0]
    if len(labels) < _FEWEST:
        return [
            Check(name, None, f"{len(labels)} labelled photographs; {_FEWEST} are needed") for name in names
        ]
    base = _observe(classifier.module, x, labels, lambda pixels: pixels)
    hits = int((base.top == labels).sum())
    order = _class_order(base.top, labels)
    normalisation = _normalisation(classifier, x, labels, base)
    good = hits >= _LOWEST_TOP1 * len(labels)
    detail = f"top-1 right on {hits} of {len(labels)} photographs"
    if not good:
        detail += "; a working classifier gets more than half right: "
        detail += (
            "see below" if False in (order.passed, normalisation.passed) else "is it trained on ImageNet-1k?"
        )
    return [Check("canary accuracy", good, detail), normalisation, order]


def _observe(
    module: nn.Module,
    x: torch.Tensor,
    labels: npt.NDArray[np.int64],
    change: Callable[[torch.Tensor], torch.Tensor],
) -> _Seen:
    tops, losses = [], []
    with torch.no_grad(), _first_batch_norm(module, min(x.shape[2:])) as inputs:
        for start in range(0, len(x), _BATCH):
            logits = module(change(x[start : start + _BATCH])).double().nan_to_num(0.0)
            target = torch.from_numpy(labels[start : start + _BATCH]).to(logits.device)
            tops.append(logits.argmax(1).cpu().numpy())
            losses.append(nn.functional.cross_entropy(logits, target, reduction="none").cpu().numpy())
        divergence = inputs.divergence()
    # Guessing costs log 1000; a few absurdly sure mistakes must not drown everything else.
    loss = np.minimum(np.concatenate(losses), math.log(NUM_CLASSES))
    return _Seen(np.concatenate(tops), loss, divergence)


class _Moments:
    """Mean and variance, per channel, of what goes into a batch norm."""

    def __init__(self, norm: _BatchNorm | None, smallest: int) -> None:
        self.norm, self.smallest = norm, smallest
        self.count = 0
        self.total: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def add(self, values: torch.Tensor) -> None:
        if values.ndim != 4 or min(values.shape[2:]) < self.smallest:
            return  # deep in the network, or not on a grid: it says little about the input's scale
        channels = values.detach().double().transpose(0, 1).flatten(1)
        self.count += channels.shape[1]
        self.total = self.total + channels.sum(1)
        self.squares = self.squares + channels.square().sum(1)

    def divergence(self) -> float | None:
        """Median over channels of KL(N(seen) ‖ N(running statistics)), in nats.

        A normal's KL divergence from another: ½ (Δμ²/σ² + s²/σ² − 1 − ln(s²/σ²)).
        """
        norm = self.norm
        if norm is None or not self.count or norm.running_mean is None or norm.running_var is None:
            return None
        mean = torch.as_tensor(self.total) / self.count
        variance = torch.as_tensor(self.squares) / self.count - mean.square()
        usual = norm.running_var.double() + norm.eps
        ratio = (variance.clamp(min=0) + norm.eps) / usual
        shift = (mean - norm.running_mean.double()).square() / usual
        return float((0.5 * (shift + ratio - 1 - ratio.log())).median())


@contextmanager
def _first_batch_norm(module: nn.Module, side: int) -> Iterator[_Moments]:
    """Watch the first batch norm of a network: it remembers what normalised images look like.

    Its running statistics were taken from training images under the right normalisation, so they tell a wrong
    one without any label, and from a handful of images.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    moments = _Moments(norms[0] if norms else None, side // 8)
    handle = norms[0].register_forward_pre_hook(lambda _, inputs: moments.add(inputs[0])) if norms else None
    try:
        yield moments
    finally:
        if handle is not None:
            handle.remove()


_IMAGENET: tuple[_Stat, _Stat] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WISHES: dict[str, tuple[_Stat, _Stat]] = {
    "ImageNet's mean and std": _IMAGENET,
    "mean 0.5 and std 0.5 (Inception)": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP's mean and std": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "pixels in [0, 1] as they are": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "pixels in 0..255 minus ImageNet's mean": (_IMAGENET[0], (1 / 255, 1 / 255, 1 / 255)),
}


def alternatives(classifier: Classifier) -> list[Alternative]:
    """Other normalisations that a classifier's network may want.

    What happens inside is either what its preprocessing declares or, for a module of a user's own, perhaps
    nothing; each alternative undoes that and applies another wish.
    """
    declared = classifier.preprocessing.mean, classifier.preprocessing.std
    insides = {"declared": declared}
    if not isinstance(classifier.module, Normalized):
        insides["nothing"] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    found = []
    for inside, (mean, std) in insides.items():
        for about, wish in _WISHES.items():
            if np.allclose(np.ravel(wish), np.ravel((mean, std)), atol=0.01):
                continue
            wanted = f"mean=({_numbers(wish[0])}), std=({_numbers(wish[1])})"
            remedy = (
                f"set {wanted} in its Preprocessing"
                if inside == "declared"
                else f"its module seems not to normalise: return Normalized(network, {wanted})"
            )
            found.append(Alternative(about, remedy, _renormalise((mean, std), wish)))
    flip = "flip the channels inside the module: x.flip(1)"
    found.append(Alternative("blue, green, red channels", flip, lambda x: x.flip(1), scale=False))
    caffe = _WISHES["pixels in 0..255 minus ImageNet's mean"]
    change = _renormalise(declared, (caffe[0][::-1], caffe[1]))
    found.append(
        Alternative(
            "Caffe's input (blue, green, red; 0..255 minus the mean)",
            "flip the channels inside the module and set std=(1/255, 1/255, 1/255)",
            lambda x: change(x.flip(1)),
        )
    )
    return found


def _renormalise(
    inside: tuple[_Stat, _Stat], wish: tuple[_Stat, _Stat]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What to feed so that a network behind `inside` sees images normalised as it wishes."""

    def change(x: torch.Tensor) -> torch.Tensor:
        mean, std, wish_mean, wish_std = (
            torch.tensor(values, device=x.device).view(3, 1, 1) for values in (*inside, *wish)
        )
        return mean + std * ((x - wish_mean) / wish_std)

    return change


def _numbers(values: _Stat) -> str:
    return ", ".join("1/255" if math.isclose(value, 1 / 255) else f"{value:.4g}" for value in values)


def _normalisation(
    classifier: Classifier, x: torch.Tensor, labels: npt.NDArray[np.int64], base: _Seen
) -> Check:
    """Whether another normalisation is clearly better than the one that the classifier applies."""
    others = alternatives(classifier)
    if base.divergence is not None and base.divergence < _NO_DIVERGENCE:
        # Mean and std are settled; the order of channels is not, since it hardly moves these statistics.
        others = [other for other in others if not other.scale]
    tried = [(other, _observe(classifier.module, x, labels, other.change)) for other in others]
    better = [
        (seen.loss.mean(), i) for i, (_, seen) in enumerate(tried) if _clearly_better(seen, base, labels)
    ]
    if not better:
        evidence = "" if base.divergence is None else f"first batch norm off by {base.divergence:.2g} nats; "
        return Check("normalisation", True, f"{evidence}clearly better alternatives: 0 of {len(tried)}")
    other, seen = tried[min(better)[1]]
    hits = [int((s.top == labels).sum()) for s in (base, seen)]
    figures = (
        f"top-1 {hits[0]} → {hits[1]} of {len(labels)}, loss {base.loss.mean():.2f} → {seen.loss.mean():.2f}"
    )
    if base.divergence is not None and seen.divergence is not None:
        figures += f", first batch norm off by {base.divergence:.2g} → {seen.divergence:.2g} nats"
    return Check("normalisation", False, f"the network fits {other.about} better ({figures}): {other.remedy}")


def _clearly_better(seen: _Seen, base: _Seen, labels: npt.NDArray[np.int64]) -> bool:
    gain = base.loss - seen.loss
    more_hits = int((seen.top == labels).sum()) - int((base.top == labels).sum())
    error = max(float(gain.std(ddof=1)) / math.sqrt(len(gain)), 1e-9)
    if more_hits >= 0 and gain.mean() >= _CLEAR_NATS and gain.mean() / error >= _CLEAR_T:
        return True
    if base.divergence is None or seen.divergence is None:
        return False
    remembered = base.divergence > _CLEAR_DIVERGENCE and seen.divergence < base.divergence / 4
    return remembered and more_hits >= -0.05 * len(labels) and gain.mean() >= -_CLEAR_NATS


def _class_order(top: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Check:
    """Whether reading the outputs in another order gets clearly more photographs right."""
    n = len(labels)
    right = int((top == labels).sum())
    half = NUM_CLASSES // 2
    shifts, counts = np.unique((top - labels + half) % NUM_CLASSES - half, return_counts=True)
    moved = shifts != 0
    found: list[tuple[int, str]] = []
    if moved.any():
        at = int(np.argmax(np.where(moved, counts, -1)))
        shift = int(shifts[at])
        text = f"every class index is {abs(shift)} too {'high' if shift > 0 else 'low'}"
        why = " (a background class?)" if shift == 1 else ""
        found.append((int(counts[at]), f"{text}{why}: shift the outputs by {-shift:+d}"))
    names = np.array([name.lower() for name in class_names()])
    numbers = np.array([str(index) for index in range(NUM_CLASSES)])
    for about, keys in (
        ("the classes are in alphabetical order of their names", names),
        ("the classes are in the order of their numbers as text (0, 1, 10, 100, …)", numbers),
    ):
        order = np.argsort(keys, kind="stable")
        found.append((int((order[top] == labels).sum()), f"{about}: put the outputs into ILSVRC2012's order"))
    hits, detail = max(found)
    if hits >= right + max(3, math.ceil(0.25 * n)):
        return Check(
            "class order", False, f"{detail}; then {hits} of {n} photographs are right instead of {right}"
        )
    return Check("class order", True, "no shifted or alphabetical order fits better")
