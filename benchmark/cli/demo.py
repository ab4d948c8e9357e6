"""`beyond demo`: the main job on what packages ship, with nothing else to download."""

from __future__ import annotations

from pathlib import Path

import click

from benchmark.cli.score import score_models, show

MODEL = "efficientnet-lite0"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder."
)
def demo(out: Path) -> None:
    """Score EfficientNet-Lite0 on 20 sample photographs, and write the page that shows the result."""
    from benchmark.report.page import render_page
    from benchmark.runs import write_atomically

    click.echo(f"beyond score {MODEL} --images sample --annotations sample --out {out}", err=True)
    scorecards = score_models(
        [MODEL],
        images_spec="sample",
        annotations=["sample"],
        out=out,
        device="auto",
        batch_size=20,
        workers=0,
        threads=None,
        top_k=1000,
        limit=None,
        on_error="stop",
        overwrite=False,
    )
    show(scorecards, as_json=False)
    page = out / "index.html"
    write_atomically(page, render_page(scorecards[0][1]))
    click.echo(
        "\nTwenty photographs show how it works; they measure nothing. The label sets are the maintainers'\n"
        "illustrative judgements, not a human study.\n"
        f"\nLook at  {page}            the same as a page\n"
        f"         {out / 'scorecard.json'}     every number, for machines\n"
        f"         {out / 'predictions'}/        the records they come from\n"
        "\nNext     beyond score MODEL --images FOLDER_OF_VALIDATION_IMAGES --annotations real\n"
        "         beyond score --predictions FILE.npy --annotations real"
    )
