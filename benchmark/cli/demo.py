"""`beyond demo`: the main job on what packages ship, with nothing else to download."""

from __future__ import annotations

from pathlib import Path

import click

from benchmark.cli.score import AttackPlan, score_models, show

MODEL = "efficientnet-lite0"
RADII = ("0.25/255", "1/255", "4/255")
EXAMPLES = 6


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder."
)
def demo(out: Path) -> None:
    """Score, attack and criticize EfficientNet-Lite0 on 20 sample photographs, and write pages about it."""
    from annotations.files import write_atomically
    from benchmark import runs
    from benchmark.cli.criticize import plan_of
    from benchmark.images import open_image_set
    from benchmark.models import load
    from benchmark.radii import parse_radius
    from benchmark.report.examples import adversarial_examples
    from benchmark.report.montage import montages
    from benchmark.report.page import render_page

    click.echo(
        f"beyond score {MODEL} --images sample --annotations sample --tracks rectified,robustness,criticism "
        f"--attributes co-occurrence --eps {','.join(RADII)} --out {out}",
        err=True,
    )
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
        plan=AttackPlan(epsilons=tuple(parse_radius(radius) for radius in RADII)),
        # Twenty photographs cannot tell how firm anything is, and probes need packages of their own.
        criticism=plan_of(attributes=["co-occurrence"], stability=0, probes=()),
    )
    show(scorecards, as_json=False)
    page, local = out / "index.html", out / "with-images.html"
    write_atomically(page, render_page(scorecards[0][1]))
    examples = adversarial_examples(out, EXAMPLES)
    result = runs.criticism_result(out, runs.load_labels(["sample"]))
    shown = [] if result is None else montages(result, open_image_set("sample"), load(MODEL).preprocessing)
    write_atomically(local, render_page(scorecards[0][1], examples=examples, montages=shown))
    click.echo(
        "\nTwenty photographs show how it works; they measure nothing. The label sets are the maintainers'\n"
        "illustrative judgements, not a human study.\n"
        f"\nLook at  {page}            the same as a page\n"
        f"         {local}      and with pictures: for you alone\n"
        f"         {out / 'scorecard.json'}     every number, for machines\n"
        f"         {out / 'predictions'}/        the records they come from, and {out / 'robustness'}/\n"
        "\nNext     beyond campaign demo     judge yourself what the model predicts, in a browser\n"
        "         beyond score MODEL --images FOLDER_OF_VALIDATION_IMAGES --annotations real\n"
        "         beyond score --predictions FILE.npy --annotations real"
    )
