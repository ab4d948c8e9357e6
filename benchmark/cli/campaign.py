"""`beyond campaign`: the commands of `annotations.campaign.cli`, and a demo that builds on the demo run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from annotations.campaign.cli import DEFAULT_HOST, DEFAULT_PORT, campaign, run_server
from annotations.errors import BeyondError

if TYPE_CHECKING:
    from annotations.campaign.store import Store
    from annotations.campaign.types import NewPair

__all__ = ["campaign"]

DEMO_DB = Path("runs/campaign-demo.db")
DEMO_RUN = Path("runs/demo")


@campaign.command()
@click.option(
    "--db",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEMO_DB,
    show_default=True,
    help="Database.",
)
@click.option("--run", type=click.Path(path_type=Path), default=DEMO_RUN, show_default=True, help="Demo run.")
@click.option("--host", default=DEFAULT_HOST, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True)
def demo(*, db: Path, run: Path, host: str, port: int) -> None:
    """Make a small campaign on the 20 sample photographs, and serve it.

    It asks about what the demo run predicts and nobody has judged, and what the sample's judges were unsure
    of. Their verdicts are the gold. Open the printed links in a browser; the same command goes on later.
    """
    from annotations.campaign.store import Store

    if db.exists():
        store = Store.open(str(db))
        click.echo(f"going on with {db}; delete it to begin again", err=True)
    else:
        store = make_demo(db, run)
    run_server(store, host=host, port=port, rater_links=2)


def make_demo(db: Path, run: Path) -> Store:
    """A campaign on the sample images: pairs from a run's predictions, gold from the sample's judgements."""
    from annotations import sources
    from annotations.campaign import making
    from annotations.campaign.config import CampaignConfig
    from annotations.campaign.pictures import find_images
    from annotations.campaign.store import Store
    from annotations.campaign.types import NewPair
    from annotations.judgements import Verdict

    images = find_images("sample")
    labels = sources.load("sample")
    unsure = [
        NewPair(
            labels.image_ids[labels.pair_image[i]], int(labels.pair_class[i]), reason="the judges were unsure"
        )
        for i in (labels.verdict == Verdict.UNSURE).nonzero()[0]
    ]
    pairs = {(pair.image_id, pair.class_index): pair for pair in [*_of_run(run), *unsure]}
    gold = making.gold_from_labels(labels, {image.image_id for image in images}, exclude=pairs)
    config = CampaignConfig(
        name="Demo: twenty photographs",
        votes=2,
        accept_at=2,
        practice_questions=3,
        qualification_questions=5,
        qualification_floor=0.6,
        gold_rate=0.15,
    )
    return Store.create(
        str(db),
        config,
        images=images,
        pairs=list(pairs.values()),
        gold=making.with_practice(gold, config.practice_questions),
        images_spec="sample",
    )


def _of_run(run: Path) -> list[NewPair]:
    """What the demo run predicts and nobody has judged; nothing where there is no run."""
    from annotations import sources
    from annotations.campaign.types import NewPair
    from benchmark import proposals
    from benchmark.cli.propose import read_predictions

    if not run.is_dir():
        return []
    try:
        candidates = proposals.find_candidates([read_predictions(run)], sources.load("sample"), top_k=5)
    except BeyondError:
        return []  # all of it is judged
    proposal = proposals.propose(candidates)
    frame = proposal.to_arrow().to_pylist()
    return [
        NewPair(
            row["image_id"], row["class_index"], row["priority"], row["sampling_probability"], row["reason"]
        )
        for row in frame
    ]
