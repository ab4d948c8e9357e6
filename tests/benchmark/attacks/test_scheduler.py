"""The scheduler: verdicts by image alone, both objectives, resuming, memory, masked gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from annotations.errors import BeyondError
from benchmark.attacks import (
    APGD,
    FAB,
    FGSM,
    Done,
    Example,
    Execution,
    Outcome,
    Progress,
    Square,
    Suite,
    curve,
    evaluate,
    evaluate_curve,
    minimal,
    quick,
    standard,
)
from benchmark.attacks.execution import fold_batch_norm
from benchmark.attacks.goals import Objective
from benchmark.attacks.scheduler import tolerance
from tests.benchmark.attacks.networks import CIFAR, MNIST, Linear, linear_examples, robust_small

EPS = 4 / 255


def short(eps: float) -> Suite:
    """All kinds of attack of `standard` with a tenth of its budgets."""
    attacks = (
        FGSM(norm="linf", eps=eps),
        APGD(norm="linf", eps=eps, steps=10),
        APGD(norm="linf", eps=eps, loss="dlr-targeted", steps=10, targets=3),
        FAB(norm="linf", eps=eps, targeted=True, steps=5, targets=2),
        Square(norm="linf", eps=eps, queries=30),
    )
    return Suite("short", "test", "linf", eps, attacks)


def verdicts(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], tuple[object, ...]]:
    return {(o.id, o.objective): (o.status, o.by, o.unit, o.steps, o.prediction) for o in outcomes}


@pytest.mark.shared
@pytest.mark.strength
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("name", "norm", "eps", "most"),
    [
        (MNIST, "linf", 0.1, 0.930),
        (MNIST, "linf", 0.2, 0.865),
        (CIFAR, "linf", 2 / 255, 0.565),
        (CIFAR, "linf", 4 / 255, 0.375),
        (CIFAR, "linf", 8 / 255, 0.115),
        (MNIST, "l2", 1.0, 0.835),
        (CIFAR, "l2", 0.5, 0.365),
    ],
)
def test_standard_is_as_strong_as_autoattack(
    shared_data: Path, name: str, norm: str, eps: float, most: float
) -> None:
    """The bounds are what AutoAttack's standard version, by its authors' package, leaves on these images."""
    model, examples = robust_small(shared_data, name)
    report = evaluate(model, examples, standard(norm, eps), batch_size=200)  # type: ignore[arg-type]
    assert report.robust_accuracy() <= most + 1e-9


@pytest.mark.shared
def test_quick_is_close_above_autoattack(shared_data: Path) -> None:
    model, examples = robust_small(shared_data, CIFAR)
    robust = evaluate(model, examples, quick("linf", EPS), batch_size=200).robust_accuracy()
    # AutoAttack leaves 0.375; a reduction may leave more, but little.
    assert 0.375 - 0.005 <= robust <= 0.40


@pytest.mark.shared
def test_adversarials_are_what_they_claim(shared_data: Path) -> None:
    model, examples = robust_small(shared_data, CIFAR, 60)
    found: dict[str, tuple[Outcome, torch.Tensor]] = {}

    def keep(outcome: Outcome, adversarial: torch.Tensor | None) -> None:
        if adversarial is not None:
            found[outcome.id] = (outcome, adversarial)

    report = evaluate(model, examples, short(EPS), on_outcome=keep, execution=Execution.fast())
    broken = [o for o in report.outcomes if o.status == "broken"]
    assert broken
    assert {o.id for o in broken} == set(found)
    by_id = {e.id: e for e in examples}
    for outcome, adversarial in found.values():
        assert adversarial.dtype == torch.float32
        assert float(adversarial.min()) >= 0
        assert float(adversarial.max()) <= 1
        distance = float((adversarial - by_id[outcome.id].image).abs().max())
        assert distance == pytest.approx(outcome.distance, abs=1e-8)
        assert distance <= EPS + tolerance(EPS, "linf")
        prediction = int(model(adversarial[None]).argmax())
        assert prediction == outcome.prediction != by_id[outcome.id].label


@pytest.mark.shared
def test_kill_and_resume_gives_the_same_verdicts(shared_data: Path) -> None:
    model, examples = robust_small(shared_data, CIFAR, 40)
    whole = evaluate(model, examples, short(EPS), batch_size=8)
    outcomes: list[Outcome] = []
    survived: dict[tuple[str, Objective], int] = {}

    class Killed(Exception):
        pass

    def record(image_id: str, objective: Objective, count: int) -> None:
        survived[image_id, objective] = count
        if count == 3 and sum(c == 3 for c in survived.values()) == 5:
            raise Killed

    with pytest.raises(Killed):
        evaluate(
            model,
            examples,
            short(EPS),
            batch_size=8,
            on_outcome=lambda o, _: outcomes.append(o),
            on_survived=record,
        )
    assert outcomes
    rest = evaluate(model, examples, short(EPS), batch_size=16, done=Done(outcomes, survived))
    assert {k: v[0] for k, v in verdicts(rest.outcomes).items()} == {
        k: v[0] for k, v in verdicts(whole.outcomes).items()
    }
    assert sum(s.entered for s in rest.stages) < sum(s.entered for s in whole.stages)


def rectified_sets(model: nn.Module, examples: list[Example]) -> list[Example]:
    """Accept the second likeliest class too; every fifth image's label is rejected in favour of it."""
    result = []
    for number, example in enumerate(examples):
        order = model(example.image[None])[0].argsort(descending=True).tolist()
        other = next(c for c in order if c != example.label)
        accepted = torch.zeros(10, dtype=torch.bool)
        accepted[other] = True
        accepted[example.label] = number % 5 != 0
        result.append(replace(example, accepted=accepted))
    return result


@pytest.mark.shared
def test_rectified_is_the_harder_goal(shared_data: Path) -> None:
    model, examples = robust_small(shared_data, CIFAR, 60)
    examples = rectified_sets(model, examples)
    found: dict[tuple[str, Objective], torch.Tensor] = {}

    def keep(outcome: Outcome, adversarial: torch.Tensor | None) -> None:
        if adversarial is not None:
            found[outcome.id, outcome.objective] = adversarial

    report = evaluate(model, examples, short(EPS), objectives=("rectified", "original"), on_outcome=keep)
    original = {o.id: o for o in report.of("original")}
    rectified = {o.id: o for o in report.of("rectified")}
    accepted = {e.id: e.accepted for e in examples}
    gone = {"broken", "misclassified"}
    for image_id, outcome in rectified.items():
        if outcome.label_inside and outcome.status in gone:
            assert original[image_id].status in gone
        if outcome.status == "broken":
            mask = accepted[image_id]
            assert mask is not None
            assert not mask[int(model(found[image_id, "rectified"][None]).argmax())]
    inside = [i for i, o in rectified.items() if o.label_inside]
    assert any(original[i].status == "broken" and rectified[i].status == "robust" for i in inside)
    assert any(not o.label_inside for o in rectified.values())
    alone = evaluate(model, examples, short(EPS), objectives=("rectified",))
    differs = [o.id for o in alone.outcomes if (o.status == "robust") != (rectified[o.id].status == "robust")]
    # Taking over what the other objective found may only break more.
    assert all(rectified[i].status == "broken" for i in differs)


@pytest.mark.shared
def test_nothing_is_implied_but_where_the_goals_are_one(shared_data: Path) -> None:
    """What the harder goal's attacks find counts for the easier goal, even after that had its verdict."""
    model, examples = robust_small(shared_data, CIFAR, 60)
    examples = rectified_sets(model, examples)
    whole = evaluate(model, examples, short(EPS), objectives=("original", "rectified"))
    sets = {e.id: e.accepted for e in examples}
    for outcome in whole.of("rectified"):
        accepted = sets[outcome.id]
        assert accepted is not None
        assert not outcome.implied or int(accepted.sum()) == 1

    # As if the attacks on the label had missed what they found.
    missed = [
        replace(o, status="robust", by="", unit=-1, steps=-1, distance=float("inf"))
        for o in whole.of("original")
        if o.status == "broken"
    ]
    calls: list[tuple[str, str]] = []
    again = evaluate(
        model,
        examples,
        short(EPS),
        objectives=("original", "rectified"),
        done=Done(missed),
        on_outcome=lambda o, _: calls.append((o.id, o.objective)) if o.status == "broken" else None,
    )
    label_in = {o.id for o in again.of("rectified") if o.label_inside and o.status == "broken"}
    original = {o.id: o.status for o in again.of("original")}
    overturned = label_in & {o.id for o in missed}
    assert overturned
    assert all(original[i] == "broken" for i in overturned)
    for image_id in overturned:  # the easier goal is written first, so no kill leaves the harder one alone
        assert calls.index((image_id, "original")) < calls.index((image_id, "rectified"))


@pytest.mark.shared
def test_curve_never_rises(shared_data: Path) -> None:
    model, examples = robust_small(shared_data, MNIST, 40)
    suites = [replace(short(eps), eps=eps) for eps in (0.05, 0.2, 0.3)]
    values = [r.robust_accuracy() for r in evaluate_curve(model, examples, suites)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    assert [s.eps for s in curve("linf", [0.2, 0.1])] == [0.1, 0.2]


@pytest.mark.shared
def test_smallest_perturbations_beat_each_attack_alone(shared_data: Path) -> None:
    model, examples = robust_small(shared_data, CIFAR, 20)
    whole = minimal("l2", targeted=False)
    report = evaluate(model, examples, whole)
    for attack in whole.attacks:
        alone = evaluate(model, examples, Suite("x", "", "l2", None, (attack,)))
        for both, one in zip(report.outcomes, alone.outcomes, strict=True):
            assert both.distance <= one.distance + 1e-9


class Counted:
    """Images made when asked for, that count how many are alive at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.model = Linear()
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        generator = torch.Generator().manual_seed(index)
        x = 0.5 + 0.02 * torch.randn(3, 6, 6, generator=generator)
        return Example(f"{index}", x, int(self.model(x[None]).argmax()))


def test_memory_does_not_grow_with_the_images() -> None:
    import gc

    peaks = []
    for count in (64, 512):
        examples, most, calls = Counted(count), 0, 0

        def watch(_: Progress) -> None:
            nonlocal most, calls
            calls += 1
            if calls % 24:
                return  # looking at every object takes long
            sizes = [
                o.numel()
                for o in gc.get_objects()
                if type(o) is torch.Tensor and o.dim() >= 3 and o.shape[-1] == 6
            ]
            most = max(most, sum(sizes))

        suite = Suite("x", "", "linf", 0.001, (APGD(norm="linf", eps=0.001, steps=5),))
        evaluate(examples.model, examples, suite, batch_size=8, on_progress=watch, progress_seconds=0)
        assert most > 0
        peaks.append(most)
    assert peaks[1] <= 1.2 * peaks[0]


def test_batch_stays_full_and_nobody_is_attacked_in_vain() -> None:
    model = Linear()
    sizes: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                sizes.append(len(x))
            logits: torch.Tensor = model(x)
            return logits

    suite = Suite("x", "", "linf", 1e-3, (APGD(norm="linf", eps=1e-3, steps=20),))
    report = evaluate(Watched().eval(), linear_examples(model, 50), suite, batch_size=8)
    stage = report.stages[0]
    assert 0 < stage.broken < 50
    sizes = sizes[1:]  # the first is the inspection
    shrinking = next(i for i, size in enumerate(sizes) if size < 8)
    assert all(size == 8 for size in sizes[:shrinking])
    assert sizes[shrinking:] == sorted(sizes[shrinking:], reverse=True)
    # A robust image gets all its steps, a broken one those up to its break.
    spent = sum(
        21 if o.status == "robust" else o.steps for o in report.outcomes if o.status != "misclassified"
    )
    assert sum(sizes) == spent


def test_progress_adds_up_and_time_left_ends_at_zero() -> None:
    seen: list[Progress] = []
    model = Linear()
    evaluate(
        model,
        linear_examples(model, 12),
        short(1e-3),
        batch_size=4,
        on_progress=seen.append,
        progress_seconds=0,
    )
    assert all(p.misclassified + p.broken + p.robust + p.left == 12 for p in seen)
    assert seen[-1].left == 0
    assert seen[-1].at_most_seconds == 0


# Models that give trouble.


class Noisy(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.randn(len(x), 4)


class Writes(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(0.5)
        logits: torch.Tensor = x.flatten(1) @ self.weight.T
        return logits


class Quantised(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward((x * 255).round() / 255)


class Rounded(Linear):
    """Gradients exist and are zero; the logits do change."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x * 50).round() / 50)


class Explodes(Linear):
    """NaN as soon as any pixel leaves the grey that all test images share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        off = ((x * 50).frac() != 0).flatten(1).any(1)
        return z.masked_fill(off[:, None], torch.nan)


def kinds(model: Linear, examples: list[Example], suite: Suite) -> tuple[set[str], list[Outcome]]:
    report = evaluate(model.eval(), examples, suite)
    return {f.kind for f in report.findings}, list(report.outcomes)


def test_random_model_is_named() -> None:
    assert "randomised" in kinds(Noisy(), linear_examples(Linear(), 6), short(0.01))[0]


def test_model_that_writes_into_its_input_gets_copies() -> None:
    plain, examples = Linear(), linear_examples(Linear(), 8)
    before = [e.image.clone() for e in examples]
    found, outcomes = kinds(Writes(), examples, short(1e-3))
    assert found == {"mutates_input"}
    assert verdicts(outcomes) == verdicts(evaluate(plain.eval(), examples, short(1e-3)).outcomes)
    assert all(torch.equal(e.image, b) for e, b in zip(examples, before, strict=True))


def test_model_without_gradient_gets_the_black_box_part() -> None:
    report = evaluate(Quantised().eval(), linear_examples(Linear(), 6), short(0.05))
    assert {f.kind for f in report.findings} == {"no_gradient"}
    assert [s.attack for s in report.stages] == ["square"]
    assert any(o.status == "broken" for o in report.outcomes)
    with pytest.raises(BeyondError, match="needs gradients"):
        evaluate(Quantised().eval(), linear_examples(Linear(), 2), minimal("linf"))


def test_zero_gradients_and_a_stronger_black_box_are_named() -> None:
    model = Rounded()
    examples = [e for e in linear_examples(Linear(), 40) if int(model(e.image[None]).argmax()) == e.label]
    suite = Suite(
        "x", "", "linf", 0.05, (FGSM(norm="linf", eps=0.05), Square(norm="linf", eps=0.05, queries=50))
    )
    found, outcomes = kinds(model, examples, suite)
    assert found == {"zero_gradient", "black_box_stronger"}
    assert all(not o.gradient for o in outcomes if o.status == "broken")


def test_nan_under_attack_is_failed_and_never_robust_or_broken() -> None:
    x = torch.full((3, 6, 6), 0.5)
    x[0] = 0.48
    model = Explodes()
    label = int(Linear()(x[None]).argmax())
    found, outcomes = kinds(model, [Example("grey", x, label)], short(0.0101))
    assert "nan_logits" in found
    assert [o.status for o in outcomes] == ["failed"]


def test_nan_under_attack_is_not_forgotten_by_a_kill() -> None:
    """An image that was noted counts as having survived nothing, so a resumed run meets its NaN again."""
    x = torch.full((3, 6, 6), 0.5)
    x[0] = 0.48
    examples = [Example("grey", x, int(Linear()(x[None]).argmax()))]
    survived: dict[tuple[str, Objective], int] = {}
    suite = short(0.0101)
    whole = evaluate(
        Explodes().eval(), examples, suite, on_survived=lambda i, o, count: survived.update({(i, o): count})
    )
    resumed = evaluate(Explodes().eval(), examples, suite, done=Done((), survived))
    assert [o.status for o in whole.outcomes] == [o.status for o in resumed.outcomes] == ["failed"]


def test_training_mode_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, 4))
    examples = linear_examples(Linear(), 3)
    assert "training" in {f.kind for f in evaluate(model.train(), examples, short(0.01)).findings}
    assert "training" not in {f.kind for f in evaluate(model.eval(), examples, short(0.01)).findings}


@pytest.mark.parametrize(
    ("examples", "options", "words"),
    [
        ([], {}, "no images"),
        ([Example("a", torch.full((3, 6, 6), 2.0), 0)], {}, "not .* in \\[0, 1\\]"),
        ([Example("a", torch.rand(3, 6, 6), 7)], {}, "label 7"),
        ([Example("a", torch.rand(3, 6, 6), 0)] * 2, {}, "twice"),
        ([Example("a", torch.rand(3, 6, 6), 0)], {"objectives": ("rectified",)}, "accepted set"),
        ([Example("a", torch.rand(3, 6, 6), 0)], {"batch_size": 0}, "batch size"),
        (
            [Example("a", torch.rand(3, 6, 6), 0, torch.ones(4, dtype=torch.bool))],
            {"objectives": ("rectified",)},
            "every class",
        ),
    ],
)
def test_bad_input_is_refused(examples: list[Example], options: dict[str, object], words: str) -> None:
    with pytest.raises(BeyondError, match=words):
        evaluate(Linear().eval(), examples, short(0.01), **options)  # type: ignore[arg-type]


def test_folding_changes_rounding_alone_and_respects_shared_convolutions() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.other = nn.Conv2d(4, 4, 1)
            self.second = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            # The convolution is read twice, so its normalisation must stay.
            z = self.norm(y).relu() + y
            out: torch.Tensor = self.second(self.other(z)).mean((2, 3))
            return out

    model = Block().eval()
    for norm in (model.norm, model.second):
        norm.running_mean = torch.randn(4)
        norm.running_var = torch.rand(4) + 0.5
        norm.weight.data = torch.rand(4) + 0.5
    x = torch.rand(5, 3, 8, 8)
    folded, count = fold_batch_norm(model, x)
    assert count == 1
    assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)
    assert torch.allclose(folded(x), model(x), atol=1e-5)
    assert isinstance(model.second, nn.BatchNorm2d)


def test_options_need_a_module() -> None:
    model = Linear()
    with pytest.raises(BeyondError, match="torch module"):
        evaluate(lambda x: model(x), linear_examples(model, 2), short(0.01), execution=Execution.fast())
