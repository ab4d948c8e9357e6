"""`beyond leaderboard verify`: run a submitted model again on images drawn after its submission.

Whoever submits cannot know which images will be drawn. If a share s of the published predictions is not what
the model predicts, n images drawn at random all agree with probability (1 − s)ⁿ at most; the bound that is
reported is the exact one-sided 95 % limit on s (Clopper & Pearson 1934, Biometrika 26:404).
"""

from __future__ import annotations

import json
import secrets
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotations.errors import BeyondError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from benchmark.classifier import Classifier
    from benchmark.images import ImageSet
    from benchmark.records import Predictions
    from leaderboard.entries import Entry

TOLERANCE = 0.02
"""Share of differing predictions that must be ruled out, by default."""

LOGIT_TOLERANCE = 0.05
"""How far logits may lie apart and still be the same but for rounding, by default."""

TOP = 5


@dataclass(frozen=True)
class Agreement:
    """How a re-run compares with what was published, image by image.

    Attributes:
        n: Images compared.
        agreed: Images that agree: the same top-1 class, or two whose logits rounding can swap; and, where
            logits were published, those of the five best within the tolerance.
        top1: Images with the same top-1 class.
        top5: Images with the same set of five best classes; None where fewer were published.
        logits: Largest difference of logits of the five best classes; None without published logits.
        upper: One-sided 95 % bound on the share of all images that differ.
        mismatches: Ids of images that do not agree.
    """

    n: int
    agreed: int
    top1: int
    top5: int | None
    logits: float | None
    upper: float
    mismatches: tuple[str, ...]


def draw(image_ids: npt.NDArray[np.object_], n: int, *seed: object) -> npt.NDArray[np.object_]:
    """Take n of the ids at random, each once, in the order of ids; the same for the same seed and ids."""
    import numpy as np

    from benchmark import statistics

    ids = np.sort(image_ids.astype(str)).astype(object)
    rng = statistics.seeded("verify", *seed)
    chosen: npt.NDArray[np.object_] = ids[np.sort(rng.choice(len(ids), min(n, len(ids)), replace=False))]
    return chosen


def compare(
    published: Predictions, rerun: Predictions, *, logit_tolerance: float = LOGIT_TOLERANCE
) -> Agreement:
    """Compare published predictions with those of a re-run, on the images of the re-run.

    Raises:
        BeyondError: An image of the re-run was not published.
    """
    import numpy as np

    from benchmark import statistics

    at = {image_id: row for row, image_id in enumerate(published.image_ids)}
    missing = [image_id for image_id in rerun.image_ids if image_id not in at]
    if missing:
        raise BeyondError(f"the published records have no image {missing[0]}")
    rows = np.array([at[image_id] for image_id in rerun.image_ids], dtype=np.intp)
    old, new = published.classes[rows], rerun.classes
    n, depth = len(rows), min(TOP, old.shape[1])
    same = old[:, 0] == new[:, 0]
    top5 = None
    if old.shape[1] >= TOP:
        top5 = int((np.sort(old[:, :TOP]) == np.sort(new[:, :TOP])).all(axis=1).sum())
    agree, largest = same.copy(), None
    if published.logits is not None and rerun.logits is not None:
        # The re-run's logit of each of the classes that were best when published.
        full = np.full((n, 1000), np.nan, dtype=np.float32)
        np.put_along_axis(full, new.astype(np.intp), rerun.logits, axis=1)
        theirs = published.logits[rows, :depth]
        ours = np.take_along_axis(full, old[:, :depth].astype(np.intp), axis=1)
        apart = np.abs(theirs - ours)
        apart = np.where(np.isnan(apart), np.inf, apart).max(axis=1)
        largest = float(apart.max()) if n else 0.0
        # A class that overtook by less than rounding is the same answer.
        gap = np.take_along_axis(full, new[:, :1].astype(np.intp), axis=1)[:, 0] - ours[:, 0]
        agree = (same | (gap <= 2 * logit_tolerance)) & (apart <= logit_tolerance)
    wrong = n - int(agree.sum())
    return Agreement(
        n=n,
        agreed=n - wrong,
        top1=int(same.sum()),
        top5=top5,
        logits=largest if largest is None or np.isfinite(largest) else float("inf"),
        upper=float(statistics.upper_bound(wrong, n)),
        mismatches=tuple(str(image_id) for image_id in rerun.image_ids[~agree]),
    )


def smallest_sample(tolerance: float) -> int:
    """Fewest images that can rule out a share of `tolerance`, when all of them agree."""
    import numpy as np

    return int(np.ceil(np.log(0.05) / np.log1p(-tolerance)))


def rerun(classifier: Classifier, images: ImageSet, ids: list[str], **settings: Any) -> Predictions:
    """Predict some images of a set."""
    import numpy as np

    from benchmark import runs
    from benchmark.engine import Settings, predict
    from benchmark.records import Predictions, iter_predictions

    with tempfile.TemporaryDirectory(prefix="beyond-verify-") as made:
        run = Path(made) / "run"
        with runs.locked(run):
            chosen = images.select(ids=ids)
            predict(
                classifier,
                chosen,
                run,
                Settings(**settings),
                done=set(),
                warn=lambda line: click.echo(line, err=True),
            )
        parts = list(iter_predictions(run))
    return Predictions(
        image_ids=np.concatenate([part.image_ids for part in parts]),
        original_labels=np.concatenate([part.original_labels for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        logits=np.concatenate([part.logits for part in parts if part.logits is not None]),
        logsumexp=np.concatenate([part.logsumexp for part in parts if part.logsumexp is not None]),
    )


def published(entry: Entry, *, records: Path | None, hub: bool) -> Predictions:
    """The predictions that an entry points to, their hash checked.

    Raises:
        BeyondError: They are not here, or not those that the entry names.
    """
    import numpy as np

    from benchmark.prediction_files import read_prediction_file
    from benchmark.records import Predictions, iter_predictions
    from leaderboard.records import find_records

    path = find_records(entry.info.records, folder=records, online=hub)
    if path is None:
        kind = entry.info.records.kind
        how = {
            "hub": "download them with --hub",
            "file": "name the folder that holds them with --records",
            "none": "it published none, so it cannot be verified",
        }[kind]
        raise BeyondError(f"the records of {entry.slug} are not here; {how}")
    if path.is_file():
        return read_prediction_file(path)
    parts = list(iter_predictions(path))
    whole = all(part.logits is not None for part in parts)
    return Predictions(
        image_ids=np.concatenate([part.image_ids for part in parts]),
        original_labels=np.concatenate([part.original_labels for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        logits=np.concatenate([part.logits for part in parts if part.logits is not None]) if whole else None,
    )


def model_spec(entry: Entry, given: str | None) -> str:
    """What to load: what the maintainer names, else what the entry names, if that executes nothing of theirs.

    Raises:
        BeyondError: The entry names a Python file, or a file of predictions.
    """
    if given is not None:
        return given
    spec = entry.scorecard.model.spec
    named = spec.startswith(("timm:", "torchvision:", "hf:")) or spec.startswith("efficientnet-lite")
    if not named or (spec.startswith("timm:") and "@" in spec):
        raise BeyondError(
            f"the entry names {spec!r}, which cannot be loaded by name alone; read its code, and name what "
            "to run with --model"
        )
    return spec


@click.command()
@click.argument("entry", metavar="ENTRY")
@click.option("--images", "images_spec", required=True, metavar="DIR", help="The validation images.")
@click.option(
    "--sample", type=click.IntRange(1), default=500, show_default=True, help="Images to draw at random."
)
@click.option("--seed", metavar="TEXT", help="What to draw with. [default: fresh from this system]")
@click.option("--model", "spec", metavar="SPEC", help="What to run. [default: what the entry names]")
@click.option(
    "--entries", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder of entries."
)
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with the records that entries name by path.",
)
@click.option("--hub", is_flag=True, help="Download the records that lie on the Hub, at their pinned commit.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=TOLERANCE,
    show_default=True,
    help="Share of differing predictions that must be ruled out.",
)
@click.option(
    "--logit-tolerance",
    type=click.FloatRange(0),
    default=LOGIT_TOLERANCE,
    show_default=True,
    help="How far logits may lie apart.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--batch-size", type=click.IntRange(1, 65536), default=64, show_default=True)
@click.option("--dry-run", is_flag=True, help="Do not write the result into the entry.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.pass_context
def verify(context: click.Context, /, entry: str, **asked: Any) -> None:
    """Run a submitted model again on random images, and mark its entry verified if it agrees.

    \b
    beyond leaderboard verify my-model --images ILSVRC2012_img_val --hub
    beyond leaderboard verify my-model --images ILSVRC2012_img_val --records DIR --sample 2000

    The images are drawn now, after the submission, from a fresh seed that is kept in the entry. Exit status 1
    if the predictions differ by more than the tolerance; the entry is then left as it is.
    """  # noqa: D301 - a backslash-b keeps click from joining the lines
    context.exit(0 if run_verification(entry, **asked) else 1)


def run_verification(
    name: str,
    *,
    images_spec: str,
    sample: int,
    seed: str | None,
    spec: str | None,
    folder: Path | None,
    records: Path | None,
    hub: bool,
    tolerance: float,
    logit_tolerance: float,
    device: str,
    batch_size: int,
    dry_run: bool,
    as_json: bool,
) -> bool:
    """Verify one entry; whether it agrees. See the command for the arguments."""
    import numpy as np

    from benchmark.images import open_image_set
    from leaderboard.entries import ENTRIES_FOLDER, ENTRY_FILE, read_entry

    path = Path(name) if (Path(name) / ENTRY_FILE).is_file() else (folder or ENTRIES_FOLDER) / name
    if not (path / ENTRY_FILE).is_file():
        raise BeyondError(f"no entry {name!r} in {path.parent}; name a slug, or the folder of an entry")
    entry = read_entry(path)
    needed = smallest_sample(tolerance)
    spec = model_spec(entry, spec)
    theirs = published(entry, records=records, hub=hub)
    images = open_image_set(images_spec)
    here = theirs.image_ids
    if images.total is not None:  # a stream is only known once it was read
        there = {image_id for chunk in images.chunks(4096) for image_id in chunk.ids}
        here = np.array([image_id for image_id in here if image_id in there], dtype=object)
    if min(sample, len(here)) < needed:
        raise BeyondError(
            f"{min(sample, len(here))} images cannot rule out {tolerance:.1%} of differing predictions; it "
            f"takes {needed}: draw more with --sample, or state another --tolerance"
        )
    fresh = seed is None
    seed = seed or str(secrets.randbits(64))
    ids = draw(here, sample, entry.slug, entry.info.records.sha256, seed)

    import torch

    from benchmark.devices import choose_device, default_workers, device_name
    from benchmark.models import load

    place = choose_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    classifier = load(spec)
    _check_weights(entry, classifier)
    ours = rerun(
        classifier,
        images,
        ids.tolist(),
        batch_size=batch_size,
        device=place,
        workers=default_workers(place),
        precision="bfloat16" if entry.scorecard.provenance.get("dtype") == "bfloat16" else "float32",
    )
    found = compare(theirs, ours, logit_tolerance=logit_tolerance)
    passed = found.upper <= tolerance
    done: dict[str, Any] = {
        "checked": date.today(),
        "n": found.n,
        "agreed": found.agreed,
        "seed": seed,
        "tolerance": tolerance,
        "differing_at_most": found.upper,
        "top5_agreed": found.top5,
        "logit_tolerance": None if found.logits is None else logit_tolerance,
        "largest_logit_difference": found.logits
        if found.logits is not None and np.isfinite(found.logits)
        else None,
        "model": spec,
        "versions": _versions(device_name(place)),
    }
    if passed and not dry_run:
        _write(entry, done)
    _report(
        entry,
        found,
        done,
        passed=passed,
        fresh=fresh,
        drawn_from=len(here),
        of=len(theirs),
        wrote=passed and not dry_run,
        as_json=as_json,
    )
    return passed


def _check_weights(entry: Entry, classifier: Classifier) -> None:
    stated, loaded = entry.scorecard.model.weights_sha256, classifier.describe().get("weights_sha256")
    if stated and loaded and stated != loaded:
        raise BeyondError(
            f"{classifier.name} has weights {str(loaded)[:12]}…, the entry was made with {stated[:12]}…: "
            "it is another model"
        )


def _versions(device: str) -> dict[str, str]:
    from benchmark.runs import environment

    state = environment()
    versions = {
        name: str(state["versions"][name])
        for name in ("beyond-accuracy", "torch", "timm")
        if name in state["versions"]
    }
    return {**versions, "python": str(state["python"]), "device": device}


def _write(entry: Entry, done: dict[str, Any]) -> None:
    from leaderboard.entries import EntryInfo, Verification, write_entry

    verification = Verification.model_validate(
        {key: value for key, value in done.items() if value is not None}
    )
    info = EntryInfo.model_validate({**dict(entry.info), "status": "verified", "verification": verification})
    write_entry(entry.folder.parent, info, entry.scorecard, entry.correctness)


def _report(
    entry: Entry,
    found: Agreement,
    done: dict[str, Any],
    *,
    passed: bool,
    fresh: bool,
    drawn_from: int,
    of: int,
    wrote: bool,
    as_json: bool,
) -> None:
    from benchmark.report.text import count

    if as_json:
        data = {**done, "checked": str(done["checked"]), "passed": passed, "drawn_from": drawn_from}
        data |= {key: value for key, value in asdict(found).items() if key not in ("logits",)}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    click.echo(
        f"{count(found.agreed)} of {count(found.n)} images agree, drawn from {count(drawn_from)} with seed "
        f"{done['seed']}{'' if fresh else ' (given, not fresh)'}."
    )
    click.echo(
        f"Top-1 the same on {count(found.top1)}"
        + ("" if found.top5 is None else f", top-5 on {count(found.top5)}")
        + "."
    )
    if found.logits is not None:
        click.echo(
            f"Logits of the five best differ by at most {found.logits:.2g} "
            f"(allowed: {done['logit_tolerance']:g})."
        )
    else:
        click.echo("No logits were published, so only classes were compared.")
    if drawn_from < of:
        click.echo(f"{count(of - drawn_from)} published images are not among the images here.")
    click.echo(
        f"With 95 % confidence at most {found.upper:.2%} of all predictions differ; "
        f"{'this is within' if passed else 'this is not within'} the tolerance of {done['tolerance']:.2%}."
    )
    for image_id in found.mismatches[:10]:
        click.echo(f"  differs: {image_id}")
    if wrote:
        click.echo(f"{entry.slug} is marked verified; commit {entry.folder}.")
    elif not passed:
        click.echo("The entry was left as it is.")
