"""`beyond compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmark.cli.score import annotations_option

if TYPE_CHECKING:
    from benchmark.comparison import Comparison


@click.command()
@click.argument("run_a", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("run_b", metavar="RUN", type=click.Path(path_type=Path))
@annotations_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on standard output.")
def compare(run_a: Path, run_b: Path, *, annotations: list[str] | None, as_json: bool) -> None:
    """Compare two runs, image by image, on the images they share.

    Differences are first minus second, paired: a small one shows where both runs saw the same images. Without
    --annotations, the label sets are those that the first run was last scored against.
    """
    from benchmark import runs
    from benchmark.comparison import compare_runs

    names = [runs.read_run(run).model.name for run in (run_a, run_b)]
    if names[0] == names[1]:
        names = [str(run_a), str(run_b)]
    labels = runs.load_labels(annotations or runs.default_annotations(runs.read_run(run_a)))
    a, b = (runs.rectified_result(run, labels=labels) for run in (run_a, run_b))
    comparison = compare_runs(a, b, name_a=names[0], name_b=names[1])
    if as_json:
        click.echo(comparison.model_dump_json(indent=2, exclude_none=True))
    else:
        show(comparison)


def show(comparison: Comparison) -> None:
    """Print a comparison as a table for people."""
    from rich.console import Console
    from rich.table import Table

    from benchmark.report.names import metric_name
    from benchmark.report.text import clean, count

    console = Console()
    name_a, name_b = clean(comparison.name_a), clean(comparison.name_b)
    console.print(f"A: {name_a}\nB: {name_b}\n", soft_wrap=True, markup=False, highlight=False)
    # No lines and single spaces, so that it fits 80 columns.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("in percent", no_wrap=True)
    for column in ("A", "B", "A − B", "95 % interval", "p", "n", "A only", "B only"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparison.differences:
        clear = row.ci_low > 0 or row.ci_high < 0
        style = ("green" if row.difference > 0 else "red") if clear else ""
        table.add_row(
            metric_name("rectified", row.metric).technical,
            f"{100 * row.a:.2f}",
            f"{100 * row.b:.2f}",
            f"{100 * row.difference:+.2f}",
            f"{100 * row.ci_low:+.2f} to {100 * row.ci_high:+.2f}",
            "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}",
            count(row.n),
            "" if row.only_a is None else str(row.only_a),
            "" if row.only_b is None else str(row.only_b),
            style=style,
        )
    console.print(table)
    share = comparison.same_answer / comparison.n
    console.print(
        f"\n{count(comparison.n)} common images; the same answer on {share:.1%} of them.", highlight=False
    )
    if comparison.left_out_a or comparison.left_out_b:
        console.print(
            f"Left out: {count(comparison.left_out_a)} images that only A has, "
            f"{count(comparison.left_out_b)} that only B has.",
            highlight=False,
        )
    for note in comparison.notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)
