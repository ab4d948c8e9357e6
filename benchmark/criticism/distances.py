"""How far each image is from the decision boundary: classifier and images in, records out.

The attacks are those of `benchmark.attacks`; the smallest perturbation that any of them finds is an upper
bound on the distance. What they leave on the table is taken back at the end: the point found is drawn towards
the image for as long as the prediction stays changed. Images go through in chunks, and a chunk's rows are
written whole, so a killed run loses one chunk and memory does not grow with the number of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from annotations.errors import BeyondError, one_line
from benchmark import attacks
from benchmark.attack_engine import AttackedImages, plain
from benchmark.attacks.goals import has_left
from benchmark.classifier import Classifier
from benchmark.criticism import records
from benchmark.criticism.info import DistancesInfo
from benchmark.images import ImageSet
from benchmark.memory import is_out_of_memory
from benchmark.progress import meter

HALVINGS = 10
"""Bisections on the way from the image to the point found: its distance is right to a thousandth along that
way."""

CHUNK = {"quick": 16, "standard": 8, "full": 4}
"""Images whose rows are written together on the CPU: the work that a kill can lose."""
CHUNK_ON_DEVICE = 128

SAVE_SECONDS = 10.0
"""Least time between two notes of what was spent; records are written with every chunk."""

BLOCK, BLOCK_ON_DEVICE = 4, 32
"""Rows that the network always runs on at once. Attacks amplify rounding, which depends on that number: left
open, distances moved by a hundredth with the batch size; fixed, they do not move at all."""


@dataclass(frozen=True)
class Closest:
    """The smallest perturbation found for one image.

    Attributes:
        id: Id of the image.
        status: `found`, `none` or `failed`, see `benchmark.criticism.records.Row`.
        distance: Its L2 norm in [0, 1] pixels; NaN if there is none.
        attack: The attack that found it, or empty.
        neighbour: The class predicted there, −1 if there is none.
    """

    id: str
    status: str
    distance: float = float("nan")
    attack: str = ""
    neighbour: int = -1


@dataclass(frozen=True)
class DistanceSettings:
    """How to measure. The batch size and the device change nothing but rounding.

    Attributes:
        tier: Budget: `quick`, `standard` or `full`.
        batch_size: Images at a time; halved when memory runs out. None takes the size of a chunk.
        device: A torch device.
        random: Begin at random points, so that `seed` matters.
        seed: Seed of that randomness, mixed with image id and attack.
        quiet: No progress.
    """

    tier: str = "quick"
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    random: bool = False
    seed: int = 0
    quiet: bool = False

    @property
    def suite(self) -> attacks.Suite:
        """The attacks."""
        return attacks.boundary(self.tier, random=self.random)

    @property
    def name(self) -> str:
        """What the records call the suite."""
        return suite_name(self.tier, random=self.random)

    @property
    def chunk(self) -> int:
        """Images whose rows are written together."""
        return CHUNK[self.tier] if self.device.type == "cpu" else CHUNK_ON_DEVICE


def suite_name(tier: str, *, random: bool = False) -> str:
    """What records call a suite."""
    return f"{tier}-random" if random else tier


def closest(
    model: Callable[[torch.Tensor], torch.Tensor] | attacks.Net,
    examples: Sequence[attacks.Example] | attacks.scheduler.Examples,
    suite: attacks.Suite,
    *,
    batch_size: int = 32,
    execution: attacks.Execution | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    on_progress: Callable[[], None] | None = None,
) -> tuple[list[Closest], attacks.Report]:
    """The smallest perturbation that changes each image's label, over all attacks of a suite.

    All adversarials are in memory at once, so call it with a few hundred images at most.

    Args:
        model: From images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode, on `device`; or such a model
            made ready to run, which serves many calls.
        examples: The images; `label` is the class to leave, which must be the one predicted.
        suite: Minimal attacks, see `benchmark.attacks.boundary`.
        batch_size: Images at a time.
        execution: Options that change speed, for a model that is not made ready.
        device: Where to compute; the same where the model is made ready.
        seed: Seed of random starts.
        on_progress: Called now and then.

    Returns:
        One result an image, in order, and the report of the attacks. An image on the boundary itself, which
        rounding predicts otherwise than its label, has distance 0.
    """
    found: dict[str, torch.Tensor] = {}

    def keep(outcome: attacks.Outcome, adversarial: torch.Tensor | None) -> None:
        if adversarial is not None:
            found[outcome.id] = adversarial

    report = attacks.evaluate(
        model,
        examples,
        suite,
        batch_size=batch_size,
        execution=execution,
        device=device,
        seed=seed,
        on_outcome=keep,
        on_progress=None if on_progress is None else lambda _: on_progress(),
    )
    reference = model.reference if isinstance(model, attacks.Net) else model
    results = []
    waiting: list[int] = []
    for i, outcome in enumerate(report.outcomes):
        if outcome.status == "broken":
            waiting.append(i)
            results.append(Closest(outcome.id, "found", outcome.distance, outcome.by, outcome.prediction))
        elif outcome.status == "misclassified":
            results.append(Closest(outcome.id, "found", 0.0, "", outcome.clean_prediction))
        else:
            results.append(Closest(outcome.id, "failed" if outcome.status == "failed" else "none"))
    for start in range(0, len(waiting), batch_size):
        part = waiting[start : start + batch_size]
        clean = torch.stack([examples[i].image for i in part]).to(device, torch.float32)
        labels = torch.tensor([examples[i].label for i in part], device=device)
        far = torch.stack([found[results[i].id] for i in part]).to(device)
        lengths, classes = _draw_back(reference, clean, far, labels)
        for i, length, neighbour in zip(part, lengths.tolist(), classes.tolist()):
            old = results[i]
            results[i] = Closest(
                old.id, "found", length, old.attack, neighbour if neighbour >= 0 else old.neighbour
            )
    return results, report


@torch.no_grad()
def _draw_back(
    model: Callable[[torch.Tensor], torch.Tensor],
    clean: torch.Tensor,
    far: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bisect the way from each image to its adversarial for where the prediction changes.

    Returns:
        Length of the way to there, float64 (B,), and the class predicted there, int64 (B,), −1 where the
        adversarial itself is the nearest point.
    """
    way = far - clean
    low = clean.new_zeros(len(clean))
    high = torch.ones_like(low)
    nearest, classes = far.clone(), torch.full_like(labels, -1)
    inside: torch.Tensor | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        x = clean + middle.view(-1, 1, 1, 1) * way
        logits = model(x.clone()).float()
        if inside is None:
            inside = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            inside[torch.arange(len(labels), device=logits.device), labels] = True
        left = has_left(logits, inside)
        high, low = torch.where(left, middle, high), torch.where(left, low, middle)
        nearest[left], classes[left] = x[left], logits.argmax(1)[left]
    return (nearest.double() - clean.double()).flatten(1).norm(dim=1), classes


class _Chunk:
    """Consecutive images of a set, with what the model predicts as the class to leave."""

    def __init__(self, images: AttackedImages, start: int, labels: Sequence[int]) -> None:
        self._images, self._start, self._labels = images, start, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> attacks.Example:
        if not 0 <= index < len(self._labels):
            raise IndexError(index)
        i = self._start + index
        image = torch.from_numpy(self._images.pixels(i)).permute(2, 0, 1).to(torch.float32).div_(255)
        return attacks.Example(self._images.ids[i], image, self._labels[index])


def measure(
    classifier: Classifier,
    images: ImageSet,
    rows: Sequence[int],
    run: Path,
    settings: DistanceSettings,
    *,
    predicted: Mapping[str, int],
    there: Sequence[DistancesInfo],
    save: Callable[[DistancesInfo], None],
    warn: Callable[[str], None],
    title: str = "Distances",
) -> None:
    """Record the distance of each image that has none yet. The run must be locked and repaired.

    Args:
        classifier: Whose boundary it is.
        images: An image set that can be read in any order.
        rows: Its rows to measure, each with a known label.
        run: Folder of the run.
        settings: How.
        predicted: Predicted class by image id.
        there: What `run.json` says of distances that were measured or begun.
        save: Writes what was done into `run.json`, before and after.
        warn: Called with one line for whatever the user should know.
        title: What progress calls it.

    Raises:
        BeyondError: The run holds distances of this name with other settings, or the model has no gradient or
            breaks its contract.
    """
    suite = settings.suite
    info = DistancesInfo(
        suite=settings.name, seed=settings.seed, note=suite.note, settings=plain(suite.describe())
    )
    old = next((i for i in there if i.key == info.key), None)
    if old is not None and old.settings != info.settings:
        raise BeyondError(
            f"{run} holds distances of tier {info.suite} with other settings; choose another --out, or pass "
            "--overwrite to beyond score"
        )
    info = old or info
    done = records.finished(run, info.suite, info.seed)
    size = settings.chunk
    # The plan is fixed by the images alone, so a run that goes on computes the chunks that it would have.
    plan = [rows[start : start + size] for start in range(0, len(rows), size)]
    plan = [[i for i in part if str(images.ids[i]) not in done] for part in plan]
    plan = [part for part in plan if part]
    if not plan:
        return
    save(info)
    module = classifier.module.eval().to(settings.device).to(memory_format=torch.channels_last)
    todo = [i for part in plan for i in part]
    source = AttackedImages(images, todo, classifier.preprocessing, {})
    findings = {finding["kind"]: finding for finding in info.findings}
    seconds, measured = info.seconds, info.measured
    began = saved = time.monotonic()
    try:
        # Once a run: a frozen copy takes seconds to make, and what it was traced with stays in memory.
        net = _ready(module, _Chunk(source, 0, [0])[0].image[None], settings, warn)
        with meter(f"{title} {classifier.name}, {info.suite}", len(todo), quiet=settings.quiet) as progress:
            start = 0
            for part in plan:
                labels = [predicted[str(images.ids[i])] for i in part]
                results, report = _measure(
                    net,
                    _Chunk(source, start, labels),
                    suite,
                    batch_size=settings.batch_size or size,
                    device=settings.device,
                    seed=settings.seed,
                )
                start += len(part)
                truth = [int(images.labels[i]) for i in part]
                records.write(run, [_row(*found, info) for found in zip(results, truth, labels)])
                for finding in report.findings:
                    before = findings.get(finding.kind)
                    if before is None:
                        warn(f"{classifier.name}, {info.suite}: {finding.message}")
                    count = finding.images + (int(before["images"]) if before else 0)
                    findings[finding.kind] = {
                        "kind": finding.kind, "message": finding.message, "images": count
                    }  # fmt: skip
                progress.advance(len(part))
                seconds += time.monotonic() - began
                measured += len(part)
                began = time.monotonic()
                info = info.model_copy(
                    update={
                        "findings": [findings[kind] for kind in sorted(findings)],
                        "measured": measured,
                        "seconds": round(seconds, 2),
                        "environment": {
                            "device": str(settings.device),
                            "threads": torch.get_num_threads(),
                            "batch_size": settings.batch_size or size,
                        },
                    }
                )
                if began - saved >= SAVE_SECONDS:
                    save(info)
                    saved = began
    finally:
        source.close()
        save(info)
    records.compact(run)


def _measure(net: attacks.Net, chunk: _Chunk, suite: attacks.Suite, **options: Any) -> Any:
    try:
        return closest(net, chunk, suite, **options)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise BeyondError(
                "measuring distances runs out of memory; use a smaller --attack-batch-size"
            ) from error
        if "modified by an inplace operation" in str(error):
            raise BeyondError(
                "the model overwrites what its own gradient needs, so its boundary cannot be found; write "
                "y = x + 1 instead of x += 1 in its forward"
            ) from error
        raise


def _row(result: Closest, label: int, predicted: int, info: DistancesInfo) -> records.Row:
    return records.Row(
        image_id=result.id,
        class_index=label,
        suite=info.suite,
        seed=info.seed,
        predicted=predicted,
        correct=predicted == label,
        status=result.status,
        distance=result.distance,
        attack=result.attack,
        neighbour=result.neighbour,
    )


def execution_on(device: torch.device) -> attacks.Execution:
    """Options that change distances by rounding alone, in blocks that suit the device."""
    on_cpu = device.type == "cpu"
    block = BLOCK if on_cpu else BLOCK_ON_DEVICE
    return attacks.Execution(channels_last=True, fold=True, freeze=on_cpu, block=block)


def _ready(
    module: torch.nn.Module,
    example: torch.Tensor,
    settings: DistanceSettings,
    warn: Callable[[str], None],
) -> attacks.Net:
    """The model with options that change results by rounding alone, where it allows them.

    Raises:
        BeyondError: The model gives no gradient.
    """
    example = example.to(settings.device)
    try:
        attacks.Net(module, device=settings.device).gradient(example, lambda z, _: z[:, 0])
    except attacks.NoGradientError:
        raise BeyondError(
            "the model gives no gradient, so its distance to the decision boundary cannot be followed; the "
            "criticism track needs a model that gives one"
        ) from None
    fast = execution_on(settings.device)
    try:
        return attacks.Net(module, execution=fast, device=settings.device, example=example)
    except Exception as error:  # noqa: BLE001 - a user's module may refuse to be copied in any way it likes
        reason = one_line(error, 120)
        warn(f"measuring the model as it is, without folding batch normalisation: {reason}")
        return attacks.Net(module, execution=attacks.Execution(block=fast.block), device=settings.device)
