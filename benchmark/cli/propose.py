"""`beyond propose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotations.errors import BeyondError
from benchmark.cli.score import say, split_list

if TYPE_CHECKING:
    from annotations.judgements import LabelSets
    from benchmark.records import Predictions


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Parquet file to write.")
@click.option(
    "--annotations",
    callback=split_list,
    metavar="NAME,…",
    help="What is judged already, or none. [default: mla and label-errors, where they are here]",
)
@click.option(
    "--top-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="Predictions that count."
)
@click.option("--budget", type=click.IntRange(1), help="Pairs to draw. [default: all]")
@click.option(
    "--uniform-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Drawn regardless."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON on standard output.")
def propose(
    runs: tuple[Path, ...],
    *,
    out: Path,
    annotations: list[str] | None,
    top_k: int,
    budget: int | None,
    uniform_share: float,
    seed: int,
    as_json: bool,
) -> None:
    """List unjudged pairs of image and class for people to judge: those that would move the ranking most.

    \b
    beyond propose runs/resnet50 runs/vgg16 --budget 5000 --out pairs.parquet
    beyond propose predictions/*.npy --annotations mla --out pairs.parquet

    RUN is a run's folder or a file of predictions. Each pair carries the probability with which it was drawn,
    so that estimates from the answers stay unbiased.
    """  # noqa: D301 - click reads the escape
    from benchmark import proposals

    labels = _labels(annotations, runs)
    loaded = [read_predictions(path) for path in runs]
    names = [name for name, _ in loaded]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise BeyondError(f"{repeated!r} is named twice; name every run once")
    candidates = proposals.find_candidates(loaded, labels, top_k=top_k)
    proposal = proposals.propose(candidates, budget=budget, seed=seed, uniform_share=uniform_share)
    about: dict[str, object] = {
        "annotations": None if labels is None else {labels.source: labels.revision},
        "top_k": top_k,
        "budget": budget,
        "uniform_share": uniform_share,
        "seed": seed,
    }
    proposal.save(out, about=about)
    kinds = [reason.partition(":")[0] for reason in proposal.reasons]
    facts = {
        "pairs": len(proposal.rows),
        "candidates": len(candidates),
        "images": len(candidates.image_ids),
        "models": len(loaded),
        "certain": int((proposal.sampling_probability[proposal.rows] == 1).sum()),
        "share_of_priority": float(proposal.priority[proposal.rows].sum()),
        "reasons": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "out": str(out),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(
        f"{facts['pairs']:,} of {facts['candidates']:,} unjudged pairs, on {facts['images']:,} images of "
        f"{facts['models']} models; they hold {facts['share_of_priority']:.1%} of all priority"
    )
    for kind in sorted(set(kinds)):
        click.echo(f"  {kinds.count(kind):>7,}  {kind}")
    click.echo(f"kept in {out}; next: beyond campaign create --pairs {out} --images DIR --gold mla")


def _labels(specs: list[str] | None, runs: tuple[Path, ...]) -> LabelSets | None:
    from annotations import sources

    if specs == ["none"]:
        return None
    if specs is None:
        specs = [name for name in ("mla", "label-errors") if sources.is_available(name)]
        if _is_sample(runs[0]):
            specs = ["sample"]
        if not specs:
            say("no label sets are here, so every pair counts as unjudged (see: beyond annotations list)")
            return None
    if len(specs) == 1:
        return sources.load(specs[0])
    return sources.load("consolidated:" + "+".join(specs))


def _is_sample(path: Path) -> bool:
    from benchmark.runs import RUN_FILE, read_run

    return (path / RUN_FILE).is_file() and read_run(path).images.name == "sample"


def read_predictions(path: Path) -> tuple[str, Predictions]:
    """A run's name and predictions, or those of a file."""
    from benchmark.prediction_files import read_prediction_file

    if path.is_dir():
        return path.name, _of_run(path)
    return path.stem, read_prediction_file(path)


def _of_run(run: Path) -> Predictions:
    import numpy as np

    from benchmark.records import Predictions, iter_predictions
    from benchmark.runs import read_run

    read_run(run)
    parts = list(iter_predictions(run))
    width = min(part.classes.shape[1] for part in parts)
    return Predictions(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.original_labels for part in parts]),
        np.concatenate([part.classes[:, :width] for part in parts]),
    )
