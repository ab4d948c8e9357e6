"""Per-image worst case: one full batch of unbroken images at all times.

Attacks run one after the other, cheapest first. Within an attack the batch is made of rows that are moved one
step at a time; a row whose image is broken, or whose run is over, leaves at once, and the next image (or the
next run of an image) takes its place. An image that one attack breaks is never shown to the next. Images are
read again when a run starts, and nothing of the size of an image is kept after it leaves, so memory does not
grow with the number of images.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from annotations.errors import BeyondError
from benchmark.attacks.attack import Attack, ClosestState, Runs, State, join, put, take
from benchmark.attacks.execution import Execution, Model, Net, chunks
from benchmark.attacks.geometry import Norm, norm_of
from benchmark.attacks.goals import Objective, has_left
from benchmark.attacks.masking import Finding, black_box_stronger, inspect, nan_under_attack, zero_gradient
from benchmark.attacks.seeds import image_key
from benchmark.attacks.suites import Suite, label
from benchmark.memory import is_out_of_memory

Status = Literal["misclassified", "broken", "robust", "failed"]

_INSPECTED = 4  # images that the model is inspected on


@dataclass(frozen=True)
class Example:
    """One image to attack.

    Attributes:
        id: Its id, from which all randomness derives.
        image: float (C, H, W) in [0, 1].
        label: The original label.
        accepted: The classes that the rectified objective must leave, bool (K,): those people accept and
            those they are unsure of. None if only the original objective is run.
    """

    id: str
    image: torch.Tensor
    label: int
    accepted: torch.Tensor | None = None


class Examples(Protocol):
    """Images that can be read by position, more than once, each time the same."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """Read one."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The verdict on one image under one objective.

    Attributes:
        id: Image id.
        objective: `original` or `rectified`.
        status: `misclassified` (the clean prediction is already outside), `broken`, `robust` (the suite found
            nothing), or `failed` (the model returned no finite logits, and nothing else broke it).
        by: The attack that broke it, or empty.
        unit: Which of the attack's runs, counted from 0; -1 if none.
        steps: Steps of that run; -1 if none.
        clean_prediction: Predicted class of the clean image, -1 if its logits are not finite.
        prediction: Predicted class of the adversarial, or of the clean image.
        distance: Norm of the perturbation: 0 if misclassified, infinite if none was found.
        label_inside: Whether the objective's set has the original label in it.
        gradient: Whether gradients helped to break it.
        implied: Whether the verdict is that under the other objective, whose goal is the same.
    """

    id: str
    objective: Objective
    status: Status
    by: str = ""
    unit: int = -1
    steps: int = -1
    clean_prediction: int = -1
    prediction: int = -1
    distance: float = float("inf")
    label_inside: bool = True
    gradient: bool = False
    implied: bool = False


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands.

    Attributes:
        objective: Objective being run.
        stage: Attack being run.
        misclassified: Images whose clean prediction is outside, under this objective.
        broken: Images broken so far.
        robust: Images that the whole suite left.
        left: Images without a verdict.
        seconds: Time since the start.
        at_most_seconds: Time left if no further image breaks.
    """

    objective: Objective
    stage: str
    misclassified: int
    broken: int
    robust: int
    left: int
    seconds: float
    at_most_seconds: float


@dataclass(frozen=True)
class Done:
    """What an interrupted evaluation had finished, to resume it.

    Attributes:
        outcomes: Verdicts, which are taken over.
        survived: For an image id and objective, how many attacks of the suite it survived.
    """

    outcomes: Sequence[Outcome] = ()
    survived: Mapping[tuple[str, Objective], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What one attack did.

    Attributes:
        objective: Objective.
        attack: Name of the attack.
        entered: Images shown to it.
        broken: Images it broke.
        refuted: Successes that did not hold when predicted again without execution options.
        forwards: Images run forward.
        backwards: Images run backward.
        seconds: Time.
    """

    objective: Objective
    attack: str
    entered: int
    broken: int
    refuted: int
    forwards: int
    backwards: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        suite: What was run.
        outcomes: One an image and objective, in the order of the images, objectives one after the other.
        findings: Reasons for care.
        stages: What each attack did.
        settings: Batch size, seed, dtype, device and execution options, as JSON-ready values.
        seconds: Time.
    """

    suite: Suite
    outcomes: tuple[Outcome, ...]
    findings: tuple[Finding, ...]
    stages: tuple[Stage, ...]
    settings: Mapping[str, Any]
    seconds: float

    def of(self, objective: Objective) -> tuple[Outcome, ...]:
        """The outcomes under one objective."""
        return tuple(o for o in self.outcomes if o.objective == objective)

    def robust_accuracy(self, objective: Objective = "original") -> float:
        """Share of all images that are neither misclassified, broken nor failed."""
        outcomes = self.of(objective)
        if not outcomes:
            raise BeyondError(f"the evaluation did not run the objective {objective!r}")
        return sum(o.status == "robust" for o in outcomes) / len(outcomes)


OnOutcome = Callable[[Outcome, torch.Tensor | None], None]
"""Called with each verdict as it falls and the adversarial, float32 (C, H, W) on the CPU, if there is one.

The last call for an image and objective counts: what was robust under one objective may yet be broken by what
is found for the other.
In a suite of minimal perturbations it is called each time an image's distance shrinks.
"""
OnSurvived = Callable[[str, Objective, int], None]
"""Called with image id, objective and how many attacks of the suite the image has now survived."""
OnProgress = Callable[[Progress], None]


def tolerance(eps: float, norm: Norm) -> float:
    """How far over eps a stored float32 adversarial may lie: its rounding, no more."""
    return 1.2e-7 if norm == "linf" else 1e-6 * eps + 1e-7


def evaluate(
    model: Model | Net,
    examples: Examples,
    suite: Suite,
    *,
    objectives: Sequence[Objective] = ("original",),
    batch_size: int = 32,
    execution: Execution | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    done: Done | None = None,
    on_outcome: OnOutcome | None = None,
    on_survived: OnSurvived | None = None,
    on_progress: OnProgress | None = None,
    progress_seconds: float = 1.0,
) -> Report:
    """Attack a model with a suite and keep the worst case of each image.

    Args:
        model: From images (B, C, H, W) in [0, 1] to logits (B, K), with gradients to the images, in eval
            mode, on `device` in `dtype`. Or a `Net` made of it, with options of its own, which saves making
            one in each of several evaluations.
        examples: The images. Read when needed, and again for each run.
        suite: The attacks, with norm and radius.
        objectives: Objectives. With both, every break found for one that also breaks the other counts for
            both, even where the other had its verdict, and an image whose set is the original label alone
            is attacked once.
        batch_size: Rows at a time; halved if memory runs out. Changes nothing but rounding.
        execution: Options that change speed, or None for none; a `Net` has its own.
        device: Where to compute, unless a `Net` says so.
        dtype: Precision of the attacks, unless a `Net` says so.
        seed: Seed of all random starts, mixed with image id, attack and run.
        done: What an interrupted evaluation had finished.
        on_outcome: Receives verdicts and adversarials as they fall.
        on_survived: Receives, for resuming, which attacks an image has survived.
        on_progress: Receives progress.
        progress_seconds: Least time between two calls of `on_progress`.

    Returns:
        The report, without adversarials.

    Raises:
        BeyondError: No images, a repeated id, images or labels out of range, a set that is missing or has all
            classes, or a model that does not return logits.
    """
    if not len(examples):
        raise BeyondError("there are no images to attack: pass at least one")
    if batch_size < 1:
        raise BeyondError(f"the batch size must be at least 1, got {batch_size}")
    if not objectives or len(set(objectives)) != len(objectives):
        raise BeyondError("name each objective once: original, rectified or both")
    if isinstance(model, Net):
        net = model
    else:
        first = [examples[i].image for i in range(min(_INSPECTED, len(examples)))]
        alike = torch.stack([image for image in first if image.shape == first[0].shape])
        net = Net(
            model,
            execution=execution,
            device=device,
            dtype=dtype,
            example=alike.to(device, dtype),
            rows=batch_size,
        )
    run = _Evaluation(
        net, examples, suite, batch_size, seed, on_outcome, on_survived, on_progress, progress_seconds
    )
    # The original objective first: it is the easier one, and much of what it finds decides the other.
    order: list[Objective] = [o for o in ("original", "rectified") if o in objectives]
    return run.run(order, done or Done())


def evaluate_curve(
    model: Model,
    examples: Examples,
    suites: Sequence[Suite],
    **options: Any,
) -> list[Report]:
    """Evaluate suites of ascending radius; what one radius breaks stays broken at the next.

    Args:
        model: See `evaluate`.
        examples: See `evaluate`.
        suites: See `benchmark.attacks.suites.curve`.
        **options: Other arguments of `evaluate`, but `done`.

    Returns:
        One report a suite.
    """
    reports: list[Report] = []
    for suite in suites:
        if reports and (
            reports[-1].suite.norm != suite.norm or (reports[-1].suite.eps or 0) > (suite.eps or 0)
        ):
            raise BeyondError(
                "the suites of a curve need one norm and ascending radii: make them with curve()"
            )
        settled = [o for o in reports[-1].outcomes if o.status == "broken"] if reports else []
        reports.append(evaluate(model, examples, suite, done=Done(outcomes=settled), **options))
    return reports


class _Evaluation:
    """One evaluation in progress."""

    def __init__(
        self,
        net: Net,
        examples: Examples,
        suite: Suite,
        batch_size: int,
        seed: int,
        on_outcome: OnOutcome | None,
        on_survived: OnSurvived | None,
        on_progress: OnProgress | None,
        progress_seconds: float,
    ) -> None:
        self.net = net
        self.examples = examples
        self.suite = suite
        self.batch_size = batch_size
        self.seed = seed
        self.on_outcome = on_outcome
        self.on_survived = on_survived
        self.on_progress = on_progress
        self.progress_seconds = progress_seconds
        self.ids: list[str] = []
        self.clean: list[int] = []
        self.classes = 0
        self.objectives: list[Objective] = []
        self.verdicts: dict[tuple[int, Objective], Outcome] = {}
        self.label_inside: dict[tuple[int, Objective], bool] = {}
        self.same_goal: set[int] = set()
        self.nan: set[int] = set()
        self.flat: set[int] = set()
        self.refuted = 0
        self.stages: list[Stage] = []
        self.began = time.monotonic()
        self.reported = 0.0

    # The whole.

    def run(self, objectives: list[Objective], done: Done) -> Report:
        self.objectives = objectives
        requested = self.batch_size
        findings = self._inspect()
        if any(f.kind == "no_gradient" for f in findings):
            self.suite = self.suite.without_gradients()
        self._predict_clean()
        self._take_over(done)
        for objective in objectives:
            if objective == "rectified" and "original" in objectives:
                self._imply()
            for number, attack in enumerate(self.suite.attacks):
                pending = [
                    i
                    for i in range(len(self.ids))
                    if self._open(i, objective) and done.survived.get((self.ids[i], objective), 0) <= number
                ]
                self._stage(attack, objective, number, pending)
            self._close(objective)
        findings += self._late_findings(findings)
        settings = {
            "batch_size": requested,
            "batch_size_at_end": self.batch_size,
            "seed": self.seed,
            "dtype": str(self.net.dtype).removeprefix("torch."),
            "device": str(self.net.device),
            "execution": self.net.execution.describe(),
            "folded": self.net.folded,
            "packed": self.net.frozen.packed if self.net.frozen is not None else 0,
            "unfrozen": self.net.unfrozen,
        }
        outcomes = tuple(self.verdicts[i, o] for o in objectives for i in range(len(self.ids)))
        seconds = time.monotonic() - self.began
        return Report(self.suite, outcomes, tuple(findings), tuple(self.stages), settings, seconds)

    def _inspect(self) -> list[Finding]:
        examples = [self.examples[i] for i in range(min(_INSPECTED, len(self.examples)))]
        alike = [e for e in examples if e.image.shape == examples[0].image.shape]
        x = torch.stack([self._image(e) for e in alike])
        logits = self.net.predict(x.clone())
        if logits.dim() == 2:
            self.classes = logits.shape[1]
        inside = torch.zeros(len(x), max(self.classes, 1), dtype=torch.bool, device=x.device)
        inside[torch.arange(len(x)), [min(max(e.label, 0), inside.shape[1] - 1) for e in alike]] = True
        return inspect(self.net, x, inside)

    def _image(self, example: Example) -> torch.Tensor:
        image = example.image.to(self.net.device, self.net.dtype)
        if image.dim() != 3 or not bool(((image >= 0) & (image <= 1)).all()):
            raise BeyondError(
                f"image {example.id} is not (channels, height, width) in [0, 1]: "
                "give pixels, not normalised values"
            )
        return image

    def _inside(self, example: Example, objective: Objective) -> torch.Tensor:
        if not 0 <= example.label < self.classes:
            raise BeyondError(
                f"image {example.id} has label {example.label}, but the model has {self.classes} classes"
            )
        if objective == "original":
            inside = torch.zeros(self.classes, dtype=torch.bool)
            inside[example.label] = True
            return inside
        inside_set = example.accepted
        if inside_set is None or inside_set.shape != (self.classes,):
            raise BeyondError(
                f"image {example.id} has no accepted set over {self.classes} classes for `rectified`"
            )
        if not bool(inside_set.any()) or bool(inside_set.all()):
            raise BeyondError(
                f"the accepted set of image {example.id} has no class or every class, "
                "so nothing can be left: leave the image out"
            )
        return inside_set.to("cpu", torch.bool)

    def _predict_clean(self) -> None:
        """Predict all clean images; record those that are already outside."""
        seen: set[str] = set()
        for part in chunks(len(self.examples), self.batch_size):
            examples = [self.examples[i] for i in range(part.start, part.stop)]
            logits = self.net.predict(torch.stack([self._image(e) for e in examples])).cpu()
            finite = logits.isfinite().all(1)
            for row, example in enumerate(examples):
                i = part.start + row
                if example.id in seen:
                    raise BeyondError(f"image id {example.id} appears twice: ids must be unique")
                seen.add(example.id)
                prediction = int(logits[row].argmax()) if finite[row] else -1
                self.ids.append(example.id)
                self.clean.append(prediction)
                sets = {objective: self._inside(example, objective) for objective in self.objectives}
                if len(sets) == 2 and torch.equal(sets["original"], sets["rectified"]):
                    self.same_goal.add(i)
                for objective, inside in sets.items():
                    self.label_inside[i, objective] = bool(inside[example.label])
                    if not finite[row]:
                        self._decide(i, objective, "failed", None)
                    elif not inside[prediction]:
                        self._decide(i, objective, "misclassified", None, prediction=prediction, distance=0.0)

    def _take_over(self, done: Done) -> None:
        index = {image_id: i for i, image_id in enumerate(self.ids)}
        for outcome in done.outcomes:
            i = index.get(outcome.id)
            if i is not None and outcome.objective in self.objectives:
                self.verdicts.setdefault((i, outcome.objective), outcome)

    def _imply(self) -> None:
        """One verdict for both objectives where the set to leave is the original label alone."""
        for i in sorted(self.same_goal):
            original = self.verdicts[i, "original"]
            if (i, "rectified") not in self.verdicts and original.status in ("robust", "failed"):
                self._decide(i, "rectified", original.status, None, prediction=self.clean[i], implied=True)

    def _close(self, objective: Objective) -> None:
        for i in range(len(self.ids)):
            if (i, objective) not in self.verdicts:
                status: Status = "failed" if i in self.nan else "robust"
                self._decide(i, objective, status, None, prediction=self.clean[i])
        if self.on_progress is not None:
            self._progress(objective, "done", 0.0)

    def _late_findings(self, early: list[Finding]) -> list[Finding]:
        findings = []
        # Only what gradient attacks had had their turn on says anything.
        white = self.suite.attacks[0].white_box
        black = {o.id for o in self.verdicts.values() if o.status == "broken" and not o.gradient}
        if white and black:
            findings.append(black_box_stronger(len(black)))
        if self.nan:
            findings.append(nan_under_attack(len(self.nan)))
        if self.flat and not any(f.kind == "zero_gradient" for f in early):
            findings.append(zero_gradient(len(self.flat)))
        return findings

    def _decide(
        self,
        i: int,
        objective: Objective,
        status: Status,
        adversarial: torch.Tensor | None,
        *,
        by: str = "",
        unit: int = -1,
        steps: int = -1,
        prediction: int = -1,
        distance: float = float("inf"),
        gradient: bool = False,
        implied: bool = False,
    ) -> None:
        outcome = Outcome(
            id=self.ids[i],
            objective=objective,
            status=status,
            by=by,
            unit=unit,
            steps=steps,
            clean_prediction=self.clean[i],
            prediction=prediction,
            distance=distance,
            label_inside=self.label_inside[i, objective],
            gradient=gradient,
            implied=implied,
        )
        self.verdicts[i, objective] = outcome
        if self.on_outcome is not None:
            self.on_outcome(outcome, adversarial)

    def _open(self, i: int, objective: Objective) -> bool:
        """Whether attacks have something to do: no verdict, or a distance that may still shrink."""
        known = self.verdicts.get((i, objective))
        if known is not None and objective == "rectified" and i in self.same_goal:
            return False  # the original objective's attacks have had their turn
        return known is None or (self._minimal and known.status == "broken")

    # One attack.

    def _stage(self, attack: Attack[Any], objective: Objective, number: int, pending: list[int]) -> None:
        """Run one attack on the images that are left, in one batch that is kept full."""
        if not pending:
            return
        net, name = self.net, label(attack)
        began, forwards, backwards, refuted = time.monotonic(), net.forwards, net.backwards, self.refuted
        before = self._count(objective, "broken")
        ready = deque((i, 0) for i in pending)
        owners: list[tuple[int, int]] = []
        state: State | None = None
        leaving: list[int] = []
        while ready or owners:
            try:
                owners, state = self._refill(attack, objective, ready, owners, state, leaving)
                leaving = []
                attack.step(net, state)
            except (RuntimeError, MemoryError) as error:
                if self.batch_size == 1 or not is_out_of_memory(error):
                    raise
                # A run is a function of its image and unit, so starting it again loses time and nothing else.
                self.batch_size = max(min(self.batch_size, len(owners) or self.batch_size) // 2, 1)
                gone = set(leaving)
                ready.extendleft(reversed([o for row, o in enumerate(owners) if row not in gone]))
                owners, state, leaving = [], None, []
                continue
            broken = self._successes(attack, objective, owners, state)
            over = state.done.tolist()
            flat = state.flat.tolist()
            bad = self._not_finite(state, over, broken)
            leaving = []
            for row, (i, unit) in enumerate(owners):
                if bad[row]:
                    self.nan.add(i)
                if not (over[row] or row in broken):
                    continue
                leaving.append(row)
                if attack.white_box and flat[row]:
                    self.flat.add(i)
                if row in broken and not self._minimal:
                    continue
                if unit + 1 < attack.units:
                    ready.append((i, unit + 1))
                elif self.on_survived is not None and i not in self.nan and i not in self.flat:
                    # What was noted of the others is in memory only, so they start again after a kill.
                    self.on_survived(self.ids[i], objective, number + 1)
            if len(leaving) == len(owners) and not ready:
                break
            if self._due():
                spent = net.forwards - forwards + 2 * (net.backwards - backwards)
                self._progress(objective, name, self._at_most(attack, objective, number, spent, len(pending)))
        self.stages.append(
            Stage(
                objective=objective,
                attack=name,
                entered=len(pending),
                broken=self._count(objective, "broken") - before,
                refuted=self.refuted - refuted,
                forwards=net.forwards - forwards,
                backwards=net.backwards - backwards,
                seconds=time.monotonic() - began,
            )
        )

    @property
    def _minimal(self) -> bool:
        return self.suite.eps is None

    def _refill(
        self,
        attack: Attack[Any],
        objective: Objective,
        ready: deque[tuple[int, int]],
        owners: list[tuple[int, int]],
        state: State | None,
        leaving: list[int],
    ) -> tuple[list[tuple[int, int]], State]:
        """Let rows leave and start the next runs in their place."""
        kept = len(owners) - len(leaving)
        fresh: list[tuple[int, int]] = []
        while ready and kept + len(fresh) < self.batch_size:
            fresh.append(ready.popleft())
        try:
            started = self._start(attack, objective, fresh) if fresh else None
        except (RuntimeError, MemoryError):
            ready.extendleft(reversed(fresh))
            raise
        if started is None:
            assert state is not None
            if leaving:
                gone = set(leaving)
                keep = [row for row in range(len(owners)) if row not in gone]
                return [owners[r] for r in keep], take(state, torch.tensor(keep, device=state.x0.device))
            return owners, state
        if state is None or not kept:
            return fresh, started
        if len(fresh) == len(leaving):
            put(state, torch.tensor(leaving, device=state.x0.device), started)
            owners = list(owners)
            for row, owner in zip(leaving, fresh, strict=True):
                owners[row] = owner
            return owners, state
        gone = set(leaving)
        keep = [row for row in range(len(owners)) if row not in gone]
        rest = take(state, torch.tensor(keep, device=state.x0.device))
        return [owners[r] for r in keep] + fresh, join([rest, started])

    def _start(self, attack: Attack[Any], objective: Objective, fresh: list[tuple[int, int]]) -> State:
        examples = [self.examples[i] for i, _ in fresh]
        device = self.net.device
        name = label(attack)
        keys = [
            image_key(e.id, f"{name}:{objective}", unit, self.seed) for e, (_, unit) in zip(examples, fresh)
        ]
        runs = Runs(
            x0=torch.stack([self._image(e) for e in examples]),
            inside=torch.stack([self._inside(e, objective) for e in examples]).to(device),
            unit=torch.tensor([unit for _, unit in fresh], dtype=torch.int64, device=device),
            key=torch.tensor(keys, dtype=torch.int64, device=device),
        )
        state: State = attack.start(self.net, runs)
        return state

    def _not_finite(self, state: State, over: list[bool], broken: set[int]) -> list[bool]:
        """Rows whose logits are not finite where they are now."""
        bad = ~state.logits.isfinite().all(1)
        ended = [row for row, end in enumerate(over) if end and row not in broken]
        if self.net.frozen is not None and ended:
            # Fused activations turn NaN into a number, so the model itself has a look at where a run ended.
            bad[ended] |= ~self.net.predict(state.point[ended]).isfinite().all(1)
        return bad.tolist()

    def _successes(
        self, attack: Attack[Any], objective: Objective, owners: list[tuple[int, int]], state: State
    ) -> set[int]:
        """Rows whose image is now broken, after predicting each candidate again from its stored form."""
        limit = float("inf") if self.suite.eps is None else self.suite.eps
        norm = self.suite.norm
        if self._minimal:
            assert isinstance(state, ClosestState)
            candidates, points = state.done & state.distance.isfinite(), state.best
        else:
            candidates, points = has_left(state.logits, state.inside), state.point
        rows = candidates.nonzero()[:, 0]
        if len(rows) and limit < float("inf"):
            # Most that are too far away are so by much, which is seen without doubles.
            rough = norm_of(points[rows] - state.x0[rows], norm)
            rows = rows[rough <= 1.01 * limit + 1e-4]
        if not len(rows):
            return set()
        # What is stored is float32 pixels, so that is what is measured and predicted.
        stored = points[rows].to(torch.float32).clamp_(0, 1)
        clean = state.x0[rows].to(torch.float32)
        measured = norm_of(stored.double() - clean.double(), norm)
        near = measured <= limit + tolerance(limit, norm)
        if not bool(near.any()):
            return set()
        rows, stored, distances = rows[near], stored[near], measured[near].tolist()
        logits = self.net.predict(stored.to(self.net.dtype))
        left = has_left(logits, state.inside[rows])
        if self._minimal:
            # A closest point may lie so near the boundary that rounding it to float32 takes it back.
            for factor in (1.001, 1.01, 1.05):
                short = (~left).nonzero()[:, 0]
                if not len(short):
                    break
                origin = state.x0[rows[short]].to(torch.float32)
                stored[short] = (origin + factor * (stored[short] - origin)).clamp_(0, 1)
                measured[near.nonzero()[:, 0][short]] = norm_of((stored[short] - origin).double(), norm)
                logits[short] = self.net.predict(stored[short].to(self.net.dtype))
                left[short] = has_left(logits[short], state.inside[rows[short]])
            distances = measured[near].tolist()
        holds = left.tolist()
        predictions = logits.argmax(1).tolist()
        steps = state.step[rows].tolist()
        broken: set[int] = set()
        for k, row in enumerate(rows.tolist()):
            i, unit = owners[row]
            if not holds[k]:
                self.refuted += 1
                if not bool(logits[k].isfinite().all()):
                    self.nan.add(i)
                continue
            broken.add(row)
            previous = self.verdicts.get((i, objective))
            if previous is not None and previous.distance <= distances[k]:
                continue
            adversarial = stored[k].cpu()
            for goal in self._goals_reached(i, objective, predictions[k], distances[k]):
                self._decide(
                    i,
                    goal,
                    "broken",
                    adversarial,
                    by=label(attack),
                    unit=unit,
                    steps=steps[k],
                    prediction=predictions[k],
                    distance=distances[k],
                    gradient=attack.used_gradient(steps[k]),
                )
        return broken

    def _goals_reached(
        self, i: int, objective: Objective, prediction: int, distance: float
    ) -> Iterable[Objective]:
        """The objectives that a break with this prediction decides, brings closer, or overturns.

        The original objective comes first: no kill between two records then leaves a break of the harder
        goal without one of the easier.
        """
        for goal in self.objectives:
            if goal == objective:
                yield goal
                continue
            known = self.verdicts.get((i, goal))
            news = known is None or known.status in ("robust", "failed")
            if known is not None and known.status == "broken":
                news = distance < known.distance
            if news and not bool(self._inside(self.examples[i], goal)[prediction]):
                yield goal

    # Progress.

    def _count(self, objective: Objective, status: Status) -> int:
        return sum(1 for (_, o), v in self.verdicts.items() if o == objective and v.status == status)

    def _at_most(
        self, attack: Attack[Any], objective: Objective, number: int, spent: float, pending: int
    ) -> float:
        """Passes still to come if no further image breaks: an upper bound."""
        left = sum((i, objective) not in self.verdicts for i in range(len(self.ids)))
        broken_here = pending - min(pending, left)
        here = max((pending - broken_here) * attack.units * attack.passes - spent, 0.0)
        later = sum(a.units * a.passes for a in self.suite.attacks[number + 1 :])
        return here + left * later

    def _due(self) -> bool:
        now = time.monotonic()
        return self.on_progress is not None and now - self.reported >= self.progress_seconds

    def _progress(self, objective: Objective, stage: str, at_most: float) -> None:
        assert self.on_progress is not None
        now = time.monotonic()
        self.reported = now
        decided = sum(1 for _, o in self.verdicts if o == objective)
        # Passes cost different time on different attacks; the mean so far is what is known.
        pace = (now - self.began) / max(self.net.forwards + 2 * self.net.backwards, 1)
        self.on_progress(
            Progress(
                objective=objective,
                stage=stage,
                misclassified=self._count(objective, "misclassified"),
                broken=self._count(objective, "broken"),
                robust=self._count(objective, "robust"),
                left=len(self.ids) - decided,
                seconds=now - self.began,
                at_most_seconds=at_most * pace,
            )
        )
