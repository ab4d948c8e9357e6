"""Frozen networks and windows of maps beside the plain network, options of execution, short memory."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from annotations.errors import BeyondError
from benchmark.attacks import APGD, FAB, FGSM, Example, Execution, Net, Square, Suite, evaluate
from benchmark.attacks.attack import Runs
from benchmark.attacks.frozen import FreezeError, PackedConv, freeze
from benchmark.attacks.patches import Patches
from tests.benchmark.attacks.networks import Linear, linear_examples

SIDE = 32

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")


class Same(nn.Conv2d):
    """A convolution with the unequal padding of TensorFlow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, channels: int, kernel: int, act: type[nn.Module]) -> None:
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, wide, kernel, 1, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.body(x)
        return result


class Small(nn.Module):
    """What an EfficientNet has, in small: normalisation, padding, depthwise layers, sums, a head."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6, kernel: int = 3) -> None:
        super().__init__()
        self.stem = Same(3, 8, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = act()
        self.blocks = nn.Sequential(
            Block(8, kernel, act),
            Same(8, 8, 3, 2, groups=8),
            act(),
            Block(8, kernel, act),
            nn.Conv2d(8, 12, 3, 1, 1, groups=2),
            nn.Conv2d(12, 64, 3, 2, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem((x - 0.5) / 0.25)))
        logits: torch.Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits


def network(act: type[nn.Module] = nn.ReLU6, kernel: int = 3) -> Small:
    torch.manual_seed(1)
    net = Small(act, kernel)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    return net.eval()


def images(count: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def slope(run: Any, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    z = run(leaf)
    (gradient,) = torch.autograd.grad((z * torch.arange(1.0, 1 + z.shape[1])).sum(), leaf)
    return gradient


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("act", [nn.ReLU6, nn.ReLU, nn.Hardtanh, nn.SiLU])
def test_frozen_network_equals_the_network(act: type[nn.Module], kernel: int) -> None:
    net, x = network(act, kernel), images(5)
    frozen = freeze(net, images(4, seed=3))
    assert frozen.packed == 10
    assert not [
        n for n in frozen.graph.graph.nodes if "batch_norm" in str(n.target) or "pad" in str(n.target)
    ]
    with torch.no_grad():
        assert torch.allclose(frozen.graph(x), net(x), atol=1e-5)
    assert torch.allclose(slope(frozen.graph, x), slope(net, x), atol=1e-5)
    assert all(p.requires_grad for p in net.parameters())


class Normalised(Small):
    """With a mean and a deviation for each channel, and an image that is read once more."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.register_buffer("mean", torch.tensor([0.3, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / self.std
        logits: torch.Tensor = self.head(self.blocks(self.act(self.norm(self.stem(x)))).mean((2, 3)))
        return logits + x.mean((1, 2, 3))[:, None] if self.twice else logits


@pytest.mark.parametrize("twice", [False, True])
def test_a_deviation_of_each_channel_is_folded_where_nothing_else_reads_it(twice: bool) -> None:
    torch.manual_seed(4)
    net, x = Normalised(twice=twice).eval(), images(5)
    frozen = freeze(net, images(4, seed=3))
    assert any("div" in str(n.target) for n in frozen.graph.graph.nodes) == twice
    with torch.no_grad():
        assert torch.allclose(frozen.graph(x), net(x), atol=1e-5)
    assert torch.allclose(slope(frozen.graph, x), slope(net, x), atol=1e-5)


def test_chunks_join_to_the_whole() -> None:
    net, x = Net(network(), execution=Execution.fast(), example=images(2)), images(7)
    assert net.frozen is not None
    target = torch.arange(7)

    def loss(z: torch.Tensor, rows: slice) -> torch.Tensor:
        return z.gather(1, target[rows, None])[:, 0]

    whole = net.logits(x), *net.gradient(x, loss)
    net.frozen = replace(net.frozen, chunk=3)
    for a, b in zip((net.logits(x), *net.gradient(x, loss)), whole, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert (net.forwards, net.backwards) == (28, 14)


GEOMETRIES = [
    (kernel, stride, padding, groups, size)
    for kernel, stride, padding, groups, size in itertools.product(
        (1, 2, 3, 4), (1, 2, 3), ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (1, 2, 0, 1)), (1, 4), (7, 8)
    )
    if max(padding) < kernel
]


@pytest.mark.parametrize("bounds", [None, (0.0, None), (-0.5, 0.7)])
def test_packed_convolution_for_every_geometry(bounds: tuple[float, float | None] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    for kernel, stride, padding, groups, size in GEOMETRIES:
        weight = torch.randn(8, 4 // groups, kernel, kernel, generator=generator)
        bias = torch.randn(8, generator=generator)
        top, bottom, left, right = padding
        conv = PackedConv(
            weight,
            bias,
            size=(4, size, size),
            stride=(stride, stride),
            padding=padding,
            dilation=(1, 1),
            groups=groups,
            bounds=bounds,
        )

        def plain(x: torch.Tensor, weight: torch.Tensor = weight, bias: torch.Tensor = bias) -> torch.Tensor:
            y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, 1, groups)  # noqa: B023
            return y if bounds is None else y.clamp(bounds[0], bounds[1])

        x = torch.randn(2, 4, size, size, generator=generator)
        case = (kernel, stride, padding, groups, size)
        assert torch.allclose(conv(x), plain(x), atol=1e-5), case
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = conv(leaf)
        weights = torch.randn(y.shape, generator=generator)
        (got,) = torch.autograd.grad((y * weights).sum(), leaf)
        (expected,) = torch.autograd.grad((plain(other) * weights).sum(), other)
        assert torch.allclose(got, expected, atol=1e-4), case


class Random(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.01 * torch.randn_like(x))


class Overwrites(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(0.1))


class Branches(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0.5 else -x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Random().eval(), "random"),
        (lambda: Overwrites().eval(), "writes into its input"),
        (lambda: Branches().eval(), "cannot be captured"),
        (lambda: Small().train(), "training mode"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)).eval(), "no convolution"),
        (lambda: network().double(), "float32"),
    ],
)
def test_networks_that_cannot_be_frozen_say_why_and_run_as_they_are(make: Any, words: str) -> None:
    net = make()
    with pytest.raises(FreezeError, match=words):
        freeze(net, images(2))
    x = images(2).to(next(net.parameters()).dtype)
    prepared = Net(net, execution=Execution(freeze=True), example=x, dtype=x.dtype)
    assert prepared.frozen is None
    assert words in prepared.unfrozen
    assert prepared.logits(x.clone()).shape == (2, net(x).shape[1])


def test_a_wrong_copy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedConv.run
    monkeypatch.setattr(PackedConv, "run", lambda self, x, padding=None: right(self, x, padding) * 1.01)
    with pytest.raises(FreezeError, match="differs"):
        freeze(network(), images(2))


def test_images_of_another_size_go_through_the_network_itself() -> None:
    net = network()
    prepared = Net(net, execution=Execution.fast(), example=images(2))
    assert prepared.frozen is not None
    larger = torch.rand(2, 3, SIDE + 8, SIDE + 8)
    assert torch.allclose(prepared.logits(larger), net(larger).detach(), atol=1e-6)


# Windows.


@pytest.mark.parametrize("kernel", [3, 5])
def test_windows_give_what_full_passes_give(kernel: int) -> None:
    frozen = freeze(network(kernel=kernel), images(2))
    patches = Patches(frozen)
    sides = [side for side in range(1, SIDE) if patches.worthwhile(side, side)]
    assert len(sides) >= 4
    generator = torch.Generator().manual_seed(4)
    x, rows = images(5), 5
    memory = torch.full((rows, patches.values), torch.nan)
    for side in sides[:: max(len(sides) // 6, 1)]:
        patches.remember(x, memory)
        for number in range(6):
            last = SIDE - side
            tops = torch.randint(0, last + 1, (rows,), generator=generator).tolist()
            lefts = torch.randint(0, last + 1, (rows,), generator=generator).tolist()
            # The corners of the image are where windows are cut off.
            tops[0], lefts[0], tops[1], lefts[1] = 0, last, last, 0
            patch = torch.rand(rows, 3, side, side, generator=generator)
            changed = x.clone()
            for r in range(rows):
                changed[r, :, tops[r] : tops[r] + side, lefts[r] : lefts[r] + side] = patch[r]
            before = memory.clone()
            logits, change = patches.query(memory, patch, tops, lefts)
            with torch.no_grad():
                assert torch.allclose(logits, frozen.graph(changed), atol=1e-6, rtol=1e-5), (side, number)
            assert torch.equal(memory, before)
            kept = [r for r in range(rows) if r % 2 == number % 2]
            patches.accept(memory, kept, change)
            x[kept] = changed[kept]


def square_state(net: Net, steps: int, arrivals: int) -> Any:
    attack = Square(norm="linf", eps=0.05, queries=200)
    x = images(6)
    inside = F.one_hot(torch.zeros(6, dtype=torch.int64), 7).bool()
    key = torch.arange(6) + 77
    state = attack.start(net, Runs(x, inside, torch.zeros(6, dtype=torch.int64), key))
    # Rows at different points of the schedule, so that squares of several sizes are in one batch.
    state.step = torch.tensor([0, 0, 45, 190, 190, 600]) * arrivals
    for _ in range(steps):
        attack.step(net, state)
    return state


@pytest.mark.parametrize("arrivals", [0, 1])
def test_square_with_windows_takes_the_same_path(arrivals: int) -> None:
    net = Net(network(), execution=Execution.fast(), example=images(2), rows=6)
    assert net.patches is not None
    whole = Net(network(), execution=Execution.fast(), example=images(2), rows=10**9)
    assert whole.patches is None  # there is no memory for so many
    windows, full = square_state(net, 25, arrivals), square_state(whole, 25, arrivals)
    assert torch.equal(windows.best, full.best)
    assert torch.allclose(windows.best_margin, full.best_margin, atol=1e-6)
    assert bool((windows.best != images(6)).flatten(1).any(1).all())
    assert windows.memory.shape[1] > 0
    assert full.memory.shape[1] == 0


def test_a_gradient_is_given_where_it_is_of_use() -> None:
    net, x = Net(network(), execution=Execution.fast(), example=images(2)), images(6)
    assert net.frozen is not None
    net.frozen = replace(net.frozen, chunk=2)

    def loss(z: torch.Tensor, rows: slice) -> torch.Tensor:
        return z.square().sum(1)

    of_use = torch.tensor([True, True, False, True, False, False])
    expected = net.gradient(x, loss)
    net.forwards = net.backwards = 0
    logits, values, gradients, given = net.gradient_where(x, loss, lambda z, rows: of_use[rows])
    # One of two is not worth a backward pass of both.
    assert given.tolist() == [True, True, False, False, False, False]
    assert (net.forwards, net.backwards) == (6, 2)
    assert torch.equal(logits, expected[0])
    assert torch.equal(values, expected[1])
    assert torch.equal(gradients[:2], expected[2][:2])
    assert not gradients[2:].any()


def test_fab_takes_the_same_path_whatever_it_guesses() -> None:
    """Forward passes used twice change what an attack costs, and not one bit of where it goes."""
    # This network is nearly linear, so that with the usual overshoot every iteration would cross.
    x, steps, overshoot = images(8), 14, 0.97
    inside = F.one_hot(network()(x).argmax(1), 7).bool()
    guess = {"rhythm": 2, "never": 0, "always": 10**6}
    paths, costs = {}, {}
    for name, spell in guess.items():
        net = Net(network(), execution=Execution.fast(), example=images(2))
        assert net.frozen is not None
        net.frozen = replace(net.frozen, chunk=2)
        attack = FAB(norm="linf", targeted=True, targets=3, steps=steps, overshoot=overshoot)
        unit = torch.arange(8) % 3
        state = attack.start(net, Runs(x, inside, unit, unit))
        path = []
        for _ in range(steps + attack.search):
            if name != "rhythm":
                state.spell.fill_(spell)
            attack.step(net, state)
            path.append((state.point.clone(), state.logits, state.distance))
        paths[name], costs[name] = path, net.forwards + 1.5 * net.backwards
    assert state.distance.isfinite().any()
    for name in ("never", "always"):
        for ours, theirs in zip(paths["rhythm"], paths[name], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert costs["rhythm"] < min(costs["never"], costs["always"]), costs


# Options.


def examples(count: int) -> tuple[nn.Module, list[Example]]:
    net, x = network(), images(count)
    return net, [Example(f"i{k}", x[k], int(label)) for k, label in enumerate(net(x).argmax(1).tolist())]


def suite(eps: float = 0.004) -> Suite:
    attacks = (
        FGSM(norm="linf", eps=eps),
        APGD(norm="linf", eps=eps, steps=8),
        Square(norm="linf", eps=eps, queries=40),
    )
    return Suite("short", "", "linf", eps, attacks)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(channels_last=True),
        Execution(fold=True),
        Execution(freeze=True),
        Execution.fast(),
        Execution(autocast="bfloat16"),
        Execution(autocast="bfloat16", freeze=True),
    ],
    ids=lambda e: "+".join(name for name, value in e.describe().items() if value),
)
def test_options_change_speed_and_not_verdicts(execution: Execution) -> None:
    net, some = examples(8)
    plain = evaluate(net, some, suite(), batch_size=4)
    found: dict[str, torch.Tensor] = {}

    def keep(outcome: Any, adversarial: torch.Tensor | None) -> None:
        if adversarial is not None:
            found[outcome.id] = adversarial

    report = evaluate(net, some, suite(), batch_size=4, execution=execution, on_outcome=keep)
    assert report.settings["execution"] == execution.describe()
    assert (report.settings["packed"] > 0) == (execution.freeze and execution.autocast is None)
    assert {o.status for o in plain.outcomes} == {"broken", "robust"}
    differ = [a.id for a, b in zip(plain.outcomes, report.outcomes, strict=True) if a.status != b.status]
    # Low precision may cost strength on an image near the boundary; nothing else may.
    assert len(differ) <= (1 if execution.autocast else 0)
    # Whatever ran, what counts as broken is broken in the network itself.
    labels = {e.id: e.label for e in some}
    assert found
    for image_id, adversarial in found.items():
        assert int(net(adversarial[None]).argmax()) != labels[image_id]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_network_gives_the_same_logits_and_gradients() -> None:
    model, x = network(), images(4)
    net, plain = Net(model, execution=Execution(compile=True), example=x), Net(model)

    def loss(z: torch.Tensor, _: slice) -> torch.Tensor:
        return z[:, 1] - z[:, 0]

    for a, b in zip(net.gradient(x, loss), plain.gradient(x, loss), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class Explodes(Small):
    """NaN as soon as any pixel leaves the grey that the clean image has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        off = ((x * 50).frac() != 0).flatten(1).any(1)
        return super().forward(x.masked_fill(off[:, None, None, None], torch.nan))


def test_nan_is_seen_behind_fused_activations() -> None:
    model = Explodes().eval()
    grey = torch.full((3, SIDE, SIDE), 0.5)
    some = [Example("grey", grey, int(model(grey[None]).argmax()))]
    report = evaluate(model, some, suite(), execution=Execution.fast())
    assert report.settings["packed"] > 0
    assert [o.status for o in report.outcomes] == ["failed"]
    assert "nan_logits" in {f.kind for f in report.findings}


class Checkpointed(Small):
    recompute = False
    passes = 0

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.recompute = enable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem((x - 0.5) / 0.25)))

        def body(value: torch.Tensor) -> torch.Tensor:
            Checkpointed.passes += 1
            result: torch.Tensor = self.blocks(value)
            return result

        if self.recompute and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            x = checkpoint(body, x, use_reentrant=False)
        else:
            x = body(x)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def test_checkpointing_computes_twice_and_gives_the_same_gradient() -> None:
    torch.manual_seed(1)
    model, x = Checkpointed().eval(), images(3)
    before = slope(model, x)
    net = Net(model, execution=Execution(checkpointing=True), example=x)
    Checkpointed.passes = 0
    _, _, gradient = net.gradient(x, lambda z, _: (z * torch.arange(1.0, 8)).sum(1))
    assert Checkpointed.passes == 2
    assert torch.allclose(gradient, before, atol=1e-6)
    assert not model.recompute
    with pytest.raises(BeyondError, match="set_grad_checkpointing"):
        Net(network(), execution=Execution(checkpointing=True), example=x)


def test_one_prepared_network_serves_several_evaluations() -> None:
    model, some = examples(4)
    net = Net(model, execution=Execution.fast(), example=images(2), rows=4)
    twice = [evaluate(net, some, suite(), batch_size=4) for _ in range(2)]
    alone = evaluate(model, some, suite(), batch_size=4, execution=Execution.fast())
    assert twice[0].outcomes == twice[1].outcomes == alone.outcomes
    assert [s.forwards for s in twice[0].stages] == [s.forwards for s in twice[1].stages]


# Memory.


class Short(Linear):
    """Runs out of memory above some images, as an allocator of a CPU or a GPU does."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error, self.refused = most, error, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            self.refused += 1
            raise self.error
        return super().forward(x)


CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CPU),
        RuntimeError("not enough memory: you tried to allocate 1 bytes"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
)
def test_batch_is_halved_until_it_fits_and_no_image_is_lost(error: Exception) -> None:
    some = linear_examples(Linear(), 20)
    eps = 0.002
    apgd_t = APGD(norm="linf", eps=eps, loss="dlr-targeted", steps=5, targets=2)
    short = Suite("x", "", "linf", eps, (FGSM(norm="linf", eps=eps), apgd_t))
    plain = evaluate(Linear().eval(), some, short, batch_size=16)
    model = Short(5, error).eval()
    report = evaluate(model, some, short, batch_size=16)
    assert model.refused
    assert report.settings["batch_size_at_end"] == 4
    assert {o.status for o in plain.outcomes} == {"broken", "robust"}
    assert [(o.id, o.status) for o in report.outcomes] == [(o.id, o.status) for o in plain.outcomes]


def test_what_does_not_fit_alone_and_other_errors_are_raised() -> None:
    some = linear_examples(Linear(), 3)
    with pytest.raises(RuntimeError, match="can't allocate"):
        evaluate(Short(0, RuntimeError(CPU)).eval(), some, suite())
    with pytest.raises(RuntimeError, match="shape"):
        evaluate(Short(2, RuntimeError("shape mismatch")).eval(), some, suite())
