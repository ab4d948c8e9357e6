"""The engine of the robustness track: classifier and images in, records of attacks out.

How to attack is `benchmark.attacks`; this module reads images for it, writes verdicts down as they fall, and
goes on where a killed run stopped.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from annotations.classes import NUM_CLASSES
from annotations.errors import BeyondError, one_line
from annotations.judgements import LabelSets, Verdict
from benchmark import attacks
from benchmark.attack_records import (
    MINIMAL,
    ROBUSTNESS,
    Adversarial,
    AttackInfo,
    AttackWriter,
    Evaluation,
    FindingInfo,
    Row,
    adversarial_names,
    compact,
    part_seconds,
    prune_adversarials,
    read_attacks,
)
from benchmark.attacks.goals import margin
from benchmark.attacks.scheduler import Status
from benchmark.classifier import Classifier
from benchmark.images import ImageSet, StreamedImageSet
from benchmark.memory import is_out_of_memory
from benchmark.preprocessing import Preprocessing, load_pixels
from benchmark.progress import status_line
from benchmark.radii import radius_text
from benchmark.records import part_paths

Pixels = npt.NDArray[np.uint8]

SUITES: Mapping[str, Callable[[attacks.Norm, float], attacks.Suite]] = {
    "quick": attacks.quick,
    "standard": attacks.standard,
    MINIMAL: lambda norm, _: attacks.minimal(norm),
}

NO_RADIUS = (0.0,)
"""What `AttackSettings.epsilons` is for `minimal`."""

_AHEAD = 4  # images decoded before they are asked for
_CACHED = 64  # images kept at least; no more than two batches, so memory does not grow with their number
_TOGETHER = 16  # adversarials predicted again at once


@dataclass(frozen=True)
class AttackSettings:
    """How to attack. The batch size and the device change nothing but rounding.

    Attributes:
        suite: `quick`, `standard` or `minimal`.
        threat: `linf` or `l2`.
        epsilons: Radii in [0, 1] pixels; `NO_RADIUS` for `minimal`.
        batch_size: Images at a time; halved when memory runs out.
        device: A torch device.
        seed: Seed of all randomness, mixed with image id, attack and restart.
        execution: How the network is run under attack; None takes `attacks.Execution.fast()` where the model
            allows it.
        keep_adversarials: Keep adversarial pixels in the run folder. They never leave the machine.
        quiet: No progress.
    """

    suite: str
    threat: attacks.Norm
    epsilons: tuple[float, ...]
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    execution: attacks.Execution | None = None
    keep_adversarials: bool = True
    quiet: bool = False


class AttackedImages:
    """The images to attack, read when they are asked for, a few ahead; the last ones used are kept.

    Memory does not grow with the number of images.
    """

    def __init__(
        self,
        images: ImageSet,
        rows: Sequence[int],
        preprocessing: Preprocessing,
        sets: Mapping[str, tuple[int, ...]],
        *,
        batch_size: int = 1,
    ) -> None:
        """Choose images.

        Args:
            images: An image set that can be read in any order.
            rows: Rows of it.
            preprocessing: What makes pixels of them.
            sets: Classes that the rectified objective must leave, by image id, where people judged.
            batch_size: Images in use at a time.
        """
        self._images = images
        self._rows = list(rows)
        self._preprocessing = preprocessing
        self.sets = sets
        self.ids = [str(images.ids[i]) for i in self._rows]
        self.labels = [int(images.labels[i]) for i in self._rows]
        self._capacity = max(_CACHED, 2 * batch_size)
        self._cache: OrderedDict[int, Future[Pixels]] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beyond-decode")

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def pixels(self, index: int) -> Pixels:
        """The clean input, uint8 (H, W, 3)."""
        for i in range(index, min(index + _AHEAD, len(self._rows))):
            if i not in self._cache:
                self._cache[i] = self._pool.submit(self._load, i)
        self._cache.move_to_end(index)
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return self._cache[index].result()

    def _load(self, index: int) -> Pixels:
        handle = self._images.handle(self._rows[index])
        # A copy, because what Pillow gives is read-only and torch warns of that.
        return load_pixels(handle.read(), self._preprocessing, name=handle.where).copy()

    def inside(self, index: int) -> tuple[int, ...]:
        """The classes that `rectified` must leave; the original label alone where nobody judged."""
        return self.sets.get(self.ids[index], (self.labels[index],))

    def __getitem__(self, index: int) -> attacks.Example:
        """One image with its goal."""
        image = torch.from_numpy(self.pixels(index)).permute(2, 0, 1).to(torch.float32).div_(255)
        accepted = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        accepted[list(self.inside(index))] = True
        return attacks.Example(self.ids[index], image, self.labels[index], accepted)


def accepted_sets(labels: LabelSets | None, image_ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Accepted and unsure classes of each image that the label sets can evaluate, ascending."""
    if labels is None or not len(labels):
        return {}
    rows = labels.rows(np.array(image_ids, dtype=object))
    sets = {}
    for image_id, row in zip(image_ids, rows.tolist()):
        if row < 0 or not labels.evaluable[row]:
            continue
        kept = {*labels.classes_of(row, Verdict.ACCEPTED), *labels.classes_of(row, Verdict.UNSURE)}
        if len(kept) < NUM_CLASSES:
            sets[image_id] = tuple(sorted(int(c) for c in kept))
    return sets


def choose_images(
    images: ImageSet,
    *,
    skipped: set[str],
    ids: Sequence[str] | None,
    limit: int | None,
    warn: Callable[[str], None],
) -> list[int]:
    """Rows of the images to attack: those with a known label, of the list if there is one, the first `limit`.

    Raises:
        BeyondError: The set is streamed, an id is unknown, or nothing is left.
    """
    if isinstance(images, StreamedImageSet):
        raise BeyondError(
            f"{images.name} is streamed, and attacks read images more than once; download it first"
        )
    if ids is not None:
        images.select(ids=ids)  # says which id is unknown
    wanted = None if ids is None else set(ids)
    rows = [
        i
        for i, image_id in enumerate(images.ids)
        if image_id not in skipped and (not wanted or image_id in wanted)
    ]
    known = [i for i in rows if images.labels[i] >= 0]
    if len(known) < len(rows):
        warn(f"{len(rows) - len(known):,} images have no known original label and are not attacked")
    if not known:
        raise BeyondError("there is no image to attack: attacks need images with original labels")
    return known if limit is None else known[:limit]


def attack(
    classifier: Classifier,
    images: ImageSet,
    rows: Sequence[int],
    run: Path,
    settings: AttackSettings,
    *,
    labels: LabelSets | None,
    there: Sequence[AttackInfo],
    save: Callable[[AttackInfo], None],
    warn: Callable[[str], None],
) -> None:
    """Record the worst case of each image at each radius. The run must be locked and repaired.

    Radii ascend, and what breaks at one stays broken at the next.

    Args:
        classifier: What to attack.
        images: The image set.
        rows: Its rows to attack, see `choose_images`.
        run: Folder of the run.
        settings: How.
        labels: Label sets whose accepted and unsure classes the rectified objective must leave, or None.
        there: What `run.json` says of evaluations that were made or begun.
        save: Writes what an evaluation was into `run.json`, before and after it.
        warn: Called with one line for whatever the user should know.

    Raises:
        BeyondError: An evaluation of this name has other settings, or the model breaks its contract.
    """
    module = classifier.module.eval().to(settings.device).to(memory_format=torch.channels_last)
    sets = accepted_sets(labels, [str(images.ids[i]) for i in rows])
    known = {info.key: info for info in there}
    plan = []
    for epsilon in sorted(set(settings.epsilons)):
        suite = SUITES[settings.suite](settings.threat, epsilon)
        # As JSON has it, where a tuple is a list.
        described = plain(suite.describe())
        info = AttackInfo(
            threat=settings.threat,
            epsilon=epsilon,
            suite=settings.suite,
            note=suite.note,
            seed=settings.seed,
            settings=described,
            execution=plain((settings.execution or attacks.Execution.fast()).describe()),
            label_sets={labels.source: labels.revision} if labels is not None and sets else {},
        )
        old = known.get(info.key)
        if old is not None and old.identity() != info.identity():
            was, now = old.identity(), info.identity()
            differ = next(
                f"another {name}" if name != "budgets" else "other budgets"
                for name in was
                if was[name] != now[name]
            )
            raise BeyondError(
                f"{run} holds attacks of suite {info.suite} at {radius_text(info.threat, epsilon)} with "
                f"{differ}; choose another --out, or pass --overwrite"
            )
        plan.append((suite, info if old is None else info.model_copy(update={"findings": old.findings})))

    examples = AttackedImages(images, rows, classifier.preprocessing, sets, batch_size=settings.batch_size)
    # Made when the first evaluation needs it, and kept for the others.
    net = cache(lambda: _net(module, examples, settings, warn))
    try:
        for number, (suite, info) in enumerate(plan, 1):
            name = f"{classifier.name}, {suite.name}, {radius_text(suite.norm, info.epsilon)}"
            if len(plan) > 1:
                name += f" ({number} of {len(plan)})"
            _evaluate(module, net, examples, suite, info, run, settings, name=name, save=save, warn=warn)
    finally:
        examples.close()
    _carry_up(run, settings)
    compact(run)


def _evaluate(
    module: torch.nn.Module,
    net: Callable[[], attacks.Net],
    examples: AttackedImages,
    suite: attacks.Suite,
    info: AttackInfo,
    run: Path,
    settings: AttackSettings,
    *,
    name: str,
    save: Callable[[AttackInfo], None],
    warn: Callable[[str], None],
) -> None:
    objectives: tuple[attacks.Objective, ...] = ("original", "rectified") if examples.sets else ("original",)
    _plan_rows(run, examples, info.key, objectives, settings)
    _carry_up(run, settings)
    _mirror(run, examples, info.key)
    resume = _resume(run, examples, suite, info.key, objectives, settings)
    if not resume.left:
        return
    save(info)
    began = time.monotonic()
    network = net()
    with (
        AttackWriter(run, keep=settings.keep_adversarials) as writer,
        status_line(name, quiet=settings.quiet) as line,
    ):
        collector = _Collector(writer, examples, info.key, module, settings, resume.best)

        def on_progress(progress: attacks.Progress) -> None:
            line.update(_progress_text(progress))
            collector.flush_if_due()

        try:
            report = attacks.evaluate(
                network,
                examples,
                suite,
                objectives=objectives,
                batch_size=settings.batch_size,
                seed=settings.seed,
                done=resume.done,
                on_outcome=collector.outcome,
                on_survived=collector.survived,
                on_progress=on_progress,
            )
            collector.finish()
        except RuntimeError as error:
            raise _explain(error) from error
        finally:
            collector.flush()
    if info.suite == MINIMAL:
        prune_adversarials(run)
    findings = {f.kind: f for f in info.findings}
    findings |= {
        f.kind: FindingInfo(kind=f.kind, message=f.message, images=f.images) for f in report.findings
    }
    for finding in report.findings:
        warn(f"{name}: {finding.message}")
    save(
        info.model_copy(
            update={
                "note": report.suite.note,
                "execution": plain(report.settings["execution"]),
                "environment": {
                    "batch_size": report.settings["batch_size_at_end"],
                    "device": report.settings["device"],
                    "dtype": report.settings["dtype"],
                    "folded": report.settings["folded"],
                    "packed": report.settings["packed"],
                    "unfrozen": report.settings["unfrozen"],
                    "seconds": round(time.monotonic() - began, 1),
                    "images_forward": sum(s.forwards for s in report.stages),
                    "images_backward": sum(s.backwards for s in report.stages),
                    "refuted": sum(s.refuted for s in report.stages),
                },
                "findings": [findings[kind] for kind in sorted(findings)],
            }
        )
    )


def _explain(error: RuntimeError) -> Exception:
    """What to tell the user of an error from inside the model, or the error itself."""
    if is_out_of_memory(error):
        return BeyondError("attacking runs out of memory; use a smaller --attack-batch-size")
    if "modified by an inplace operation" in str(error):
        return BeyondError(
            "the model overwrites what its own gradient needs, so it cannot be attacked; write y = x + 1 "
            "instead of x += 1 in its forward"
        )
    return error


def plain(value: Any) -> Any:
    """Settings as JSON has them, where a tuple is a list."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _net(
    module: torch.nn.Module, examples: AttackedImages, settings: AttackSettings, warn: Callable[[str], None]
) -> attacks.Net:
    """The network with the options asked for, tried once; or the fast ones, where the model allows them.

    Raises:
        BeyondError: The model does not run, or gives no gradient, with the options that were asked for.
    """
    asked = settings.execution
    options = asked or attacks.Execution.fast()
    example = examples[0].image[None].to(settings.device)
    try:
        net = attacks.Net(
            module, execution=options, device=settings.device, example=example, rows=settings.batch_size
        )
        if asked is not None:
            with suppress(attacks.NoGradientError):  # what that means is found out, and said, by the attacks
                net.gradient(example, lambda logits, _: logits.sum(1))
    except Exception as error:
        reason = one_line(error, 120)
        if asked is not None:
            raise BeyondError(f"the model cannot be attacked with this --execution: {reason}") from error
        warn(f"attacking the model as it is, without folding batch normalisation: {reason}")
        return attacks.Net(module, device=settings.device)
    return net


def _plan_rows(
    run: Path,
    examples: AttackedImages,
    evaluation: Evaluation,
    objectives: Sequence[str],
    settings: AttackSettings,
) -> None:
    """Write a pending row for each image and objective that has none, or whose set of classes has changed."""
    there: dict[tuple[str, str], tuple[int, ...]] = {}
    if part_paths(run / ROBUSTNESS):
        found = read_attacks(run)
        for row in found.rows(found.rows_of(evaluation)):
            there[row.objective, row.image_id] = row.inside
    new = []
    for objective in objectives:
        for i, image_id in enumerate(examples.ids):
            if objective == "rectified" and image_id not in examples.sets:
                continue
            inside = examples.inside(i) if objective == "rectified" else (examples.labels[i],)
            if there.get((objective, image_id)) != inside:
                new.append(Row(image_id, examples.labels[i], *evaluation, objective=objective, inside=inside))
    if new:
        with AttackWriter(run, keep=settings.keep_adversarials) as writer:
            for row in new:
                writer.add(row)


def _mirror(run: Path, examples: AttackedImages, evaluation: Evaluation) -> None:
    """Give images whose set is the label alone one verdict, where a kill fell between the two rows of it."""
    found = read_attacks(run)
    rows = {(row.objective, row.image_id): row for row in found.rows(found.rows_of(evaluation))}
    late = []
    for image_id, label in zip(examples.ids, examples.labels):
        original, rectified = rows.get(("original", image_id)), rows.get(("rectified", image_id))
        if original is None or rectified is None or examples.sets.get(image_id) != (label,):
            continue
        begun = original.status != "pending" or np.isfinite(original.distance)
        if begun and (rectified.status, rectified.adversarial) != (original.status, original.adversarial):
            late.append(replace(original, objective="rectified", implied=True))
    if late:
        with AttackWriter(run, keep=False) as writer:
            for row in late:
                writer.add(row)


@dataclass(frozen=True)
class _Resume:
    """Where an evaluation stands.

    Attributes:
        done: What the scheduler need not do again.
        left: Verdicts that are left to find.
        best: The closest adversarial so far of images that `minimal` is not through with.
    """

    done: attacks.Done
    left: int
    best: dict[tuple[str, str], Row]


def _resume(
    run: Path,
    examples: AttackedImages,
    suite: attacks.Suite,
    evaluation: Evaluation,
    objectives: Sequence[attacks.Objective],
    settings: AttackSettings,
) -> _Resume:
    """Read where an evaluation stands, from its records."""
    found = read_attacks(run)
    stored = adversarial_names(run) if settings.keep_adversarials else set()
    index = set(examples.ids)
    outcomes: list[attacks.Outcome] = []
    survived: dict[tuple[str, attacks.Objective], int] = {}
    best: dict[tuple[str, str], Row] = {}
    left = len(examples) + (len(examples.sets) if "rectified" in objectives else 0)
    for row in found.rows(found.rows_of(evaluation)):
        if row.image_id not in index or row.objective not in objectives:
            continue
        objective: attacks.Objective = "rectified" if row.objective == "rectified" else "original"
        if objective == "rectified" and row.image_id not in examples.sets:
            continue
        if row.adversarial and settings.keep_adversarials and row.adversarial not in stored:
            continue  # its pixels are lost, so it is attacked anew
        if row.status != "pending":
            outcomes.append(_outcome(row, objective))
            left -= 1
            if evaluation.suite == MINIMAL:
                survived[row.image_id, objective] = len(suite.attacks)
            continue
        survived[row.image_id, objective] = row.survived
        if row.adversarial:
            best[row.image_id, objective] = row
            outcomes.append(_outcome(replace(row, status="broken"), objective))
    # Without a set of their own, images have the label as their set, and one verdict decides both.
    outcomes += [
        replace(outcome, objective="rectified", implied=True)
        for outcome in outcomes
        if outcome.objective == "original" and "rectified" in objectives and outcome.id not in examples.sets
    ]
    return _Resume(attacks.Done(outcomes, survived), left, best)


def _outcome(row: Row, objective: attacks.Objective) -> attacks.Outcome:
    statuses: dict[str, Status] = {
        "misclassified": "misclassified",
        "broken": "broken",
        "robust": "robust",
        "failed": "failed",
    }
    status = statuses[row.status]
    distance = 0.0 if status == "misclassified" else row.distance if status == "broken" else float("inf")
    return attacks.Outcome(
        id=row.image_id,
        objective=objective,
        status=status,
        by=row.attack,
        unit=row.unit,
        steps=row.steps,
        clean_prediction=row.clean_class,
        prediction=row.adversarial_class if status == "broken" else row.clean_class,
        distance=distance,
        label_inside=row.original_label in row.inside,
        gradient=row.gradient,
        implied=row.implied,
    )


def _carry_up(run: Path, settings: AttackSettings) -> None:
    """Give every image that is broken at one radius the same verdict at the larger ones, where it lacks one.

    An adversarial within a smaller ball is one within a larger, so this only ever lowers robust accuracy.
    """
    if not part_paths(run / ROBUSTNESS):
        return
    found = read_attacks(run)
    broken: dict[tuple[str, str], Row] = {}
    rows: list[Row] = []
    for evaluation in found.evaluations():  # radii ascend
        if (evaluation.threat, evaluation.suite) != (settings.threat, settings.suite):
            continue
        for row in found.rows(found.rows_of(evaluation)):
            lower = broken.get((row.objective, row.image_id))
            if row.status == "broken" and lower is None:
                broken[row.objective, row.image_id] = row
            elif (
                lower is not None
                and row.status not in ("broken", "misclassified")
                and lower.inside == row.inside
            ):
                rows.append(replace(lower, epsilon=evaluation.epsilon))
    if rows:
        with AttackWriter(run, keep=False) as writer:
            for row in rows:
                writer.add(row)


class _Collector:
    """Turns outcomes into rows, predicting adversarials once more in float32, several at a time.

    Under `minimal` a verdict is final once all attacks are over, so until then rows stay pending.
    """

    def __init__(
        self,
        writer: AttackWriter,
        examples: AttackedImages,
        evaluation: Evaluation,
        module: torch.nn.Module,
        settings: AttackSettings,
        best: Mapping[tuple[str, str], Row],
    ) -> None:
        self._writer = writer
        self._examples = examples
        self._evaluation = evaluation
        self._module = module
        self._device = settings.device
        self._index = {image_id: i for i, image_id in enumerate(examples.ids)}
        self._waiting: list[tuple[Row, torch.Tensor]] = []
        self._since = time.monotonic()
        self._minimal = evaluation.suite == MINIMAL
        self._best = dict(best)

    def _row(self, image_id: str, objective: str) -> Row | None:
        """An empty row, or None for an objective that this image does not have."""
        i = self._index[image_id]
        if objective == "rectified" and image_id not in self._examples.sets:
            return None
        inside = self._examples.inside(i) if objective == "rectified" else (self._examples.labels[i],)
        return Row(image_id, self._examples.labels[i], *self._evaluation, objective=objective, inside=inside)

    def outcome(self, outcome: attacks.Outcome, adversarial: torch.Tensor | None) -> None:
        """Take a verdict."""
        row = self._row(outcome.id, outcome.objective)
        if row is None:
            return
        broken = outcome.status == "broken"
        row = replace(
            row,
            status=outcome.status,
            attack=outcome.by,
            unit=outcome.unit,
            steps=outcome.steps,
            clean_class=outcome.clean_prediction,
            adversarial_class=outcome.prediction if broken else -1,
            distance=outcome.distance if broken else float("nan"),
            gradient=outcome.gradient,
            implied=outcome.implied,
        )
        if not broken or adversarial is None:
            self._writer.add(row)
            return
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((row, adversarial))
        if len(self._waiting) >= _TOGETHER:
            self._predict()

    def survived(self, image_id: str, objective: attacks.Objective, count: int) -> None:
        """Note that an image has survived so many attacks."""
        row = self._row(image_id, objective)
        if row is None:
            return
        if self._minimal:
            self._predict()
            row = self._best.get((image_id, objective), row)
            if row.adversarial:
                self._best[image_id, objective] = replace(row, survived=count)
        self._writer.add(replace(row, survived=count))

    def _predict(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        inside = torch.zeros(len(waiting), NUM_CLASSES, dtype=torch.bool)
        for k, (row, _) in enumerate(waiting):
            inside[k, list(row.inside)] = True
        with torch.no_grad():
            logits = self._module(torch.stack([x for _, x in waiting]).to(self._device)).float().cpu()
        margins = margin(logits, inside).tolist()
        for (row, x), value in zip(waiting, margins):
            clean = self._examples.pixels(self._index[row.image_id])
            adversarial = Adversarial(row.image_id, clean, x.numpy())
            row = replace(row, margin=value)
            if self._minimal:
                key = row.image_id, row.objective
                count = self._best[key].survived if key in self._best else 0
                row = replace(row, status="pending", survived=count, adversarial=adversarial.name)
                self._best[key] = row
            self._writer.add(row, adversarial)

    def finish(self) -> None:
        """Make the best that `minimal` found final."""
        self._predict()
        for row in self._best.values():
            self._writer.add(replace(row, status="broken", survived=0))

    def flush_if_due(self) -> None:
        """Write a part if it is time."""
        if self._waiting and time.monotonic() - self._since >= part_seconds():
            self._predict()
        self._writer.flush_if_due()

    def flush(self) -> None:
        """Write everything."""
        self._predict()
        self._writer.flush()


def _progress_text(progress: attacks.Progress) -> str:
    minutes, seconds = divmod(int(progress.at_most_seconds), 60)
    return (
        f"{progress.objective}, {progress.stage}: {progress.broken:,} broken, {progress.robust:,} robust, "
        f"{progress.left:,} left, at most {minutes}:{seconds:02d}"
    )
