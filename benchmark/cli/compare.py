"""`beyond compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmark.cli.score import annotations_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from benchmark.comparison import AttackComparison, Comparison, Difference

_NAMED = 10  # images named on the terminal


@click.command()
@click.argument("run_a", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("run_b", metavar="RUN", type=click.Path(path_type=Path))
@annotations_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on standard output.")
def compare(run_a: Path, run_b: Path, *, annotations: list[str] | None, as_json: bool) -> None:
    """Compare two runs, image by image, on the images they share.

    Differences are first minus second, paired: a small one shows where both runs saw the same images. Without
    --annotations, the label sets are those that the first run was last scored against. Where both were
    attacked alike, robust accuracy is compared too, and the images whose verdict differs are named.
    """
    from benchmark import runs
    from benchmark.comparison import compare_attacks, compare_runs

    infos = [runs.read_run(run) for run in (run_a, run_b)]
    names = [info.model.name for info in infos]
    if names[0] == names[1]:
        names = [str(run_a), str(run_b)]
    labels = runs.load_labels(annotations or runs.default_annotations(infos[0]))
    a, b = (runs.rectified_result(run, labels=labels) for run in (run_a, run_b))
    comparison = compare_runs(a, b, name_a=names[0], name_b=names[1])
    attacked = [runs.robustness_result(run, labels) for run in (run_a, run_b)]
    if attacked[0] is not None and attacked[1] is not None:
        found, notes = compare_attacks(
            attacked[0],
            attacked[1],
            attacks_a=infos[0].attacks,
            attacks_b=infos[1].attacks,
            name_a=names[0],
            name_b=names[1],
        )
        comparison = comparison.model_copy(update={"attacks": found, "notes": [*comparison.notes, *notes]})
    if as_json:
        click.echo(comparison.model_dump_json(indent=2, exclude_none=True))
    else:
        show(comparison)


def show(comparison: Comparison) -> None:
    """Print a comparison as tables for people."""
    from rich.console import Console

    from benchmark.radii import radius_text
    from benchmark.report.text import clean, count

    console = Console()
    name_a, name_b = clean(comparison.name_a), clean(comparison.name_b)
    console.print(f"A: {name_a}\nB: {name_b}\n", soft_wrap=True, markup=False, highlight=False)
    console.print(_table("rectified", comparison.differences))
    share = comparison.same_answer / comparison.n
    console.print(
        f"\n{count(comparison.n)} common images; the same answer on {share:.1%} of them.", highlight=False
    )
    _left_out(console, comparison.left_out_a, comparison.left_out_b)
    for attack in comparison.attacks:
        where = radius_text(attack.threat, attack.epsilon)
        console.print(f"\nUnder attack: {where}, suite {attack.suite}\n", markup=False, highlight=False)
        console.print(_table("robustness", attack.differences, threat=attack.threat))
        console.print(f"\n{count(attack.n)} images that both attacked.", highlight=False)
        _left_out(console, attack.left_out_a, attack.left_out_b)
        for note in attack.notes:
            console.print(note, soft_wrap=True, markup=False, highlight=False)
        if attack.epsilon:
            _changes(console, attack)
    if comparison.notes:
        console.print()
    for note in comparison.notes:
        console.print(clean(note), soft_wrap=True, markup=False, highlight=False)


def _table(track: str, differences: Sequence[Difference], *, threat: str = "") -> Table:
    """One row a metric, in percent; distances in the threat's own unit."""
    from rich.table import Table

    from benchmark.report.names import metric_name
    from benchmark.report.robustness import distance_text
    from benchmark.report.text import count

    # No lines and single spaces, so that it fits 80 columns.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("in percent", no_wrap=True)
    for column in ("A", "B", "A − B", "95 % interval", "p", "n", "A only", "B only"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in differences:
        clear = row.ci_low > 0 or row.ci_high < 0
        style = ("green" if row.difference > 0 else "red") if clear else ""
        values = (row.a, row.b, row.difference, row.ci_low, row.ci_high)
        if row.metric.startswith("median_distance"):
            a, b, difference, low, high = (distance_text(threat, value) for value in values)
        else:
            a, b = f"{100 * row.a:.2f}", f"{100 * row.b:.2f}"
            difference, low, high = (f"{100 * value:+.2f}" for value in values[2:])
        table.add_row(
            metric_name(track, row.metric).technical,
            a,
            b,
            difference,
            f"{low} to {high}",
            "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}",
            count(row.n),
            "" if row.only_a is None else str(row.only_a),
            "" if row.only_b is None else str(row.only_b),
            style=style,
        )
    return table


def _left_out(console: Console, a: int, b: int) -> None:
    from benchmark.report.text import count

    if a or b:
        console.print(
            f"Left out: {count(a)} images that only A has, {count(b)} that only B has.", highlight=False
        )


def _changes(console: Console, attack: AttackComparison) -> None:
    """Name the images whose verdict differs: all of a few, the first of many."""
    from benchmark.report.text import clean, count

    if not attack.changes:
        console.print("The same verdict on every image, under both objectives.", highlight=False)
        return
    images = len({change.image_id for change in attack.changes})
    many = "image" if images == 1 else "images"
    console.print(f"Verdicts differ on {count(images)} {many}:", highlight=False)
    for change in attack.changes[:_NAMED]:
        line = f"  {clean(change.image_id)} ({change.objective}): A {change.a}, B {change.b}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if len(attack.changes) > _NAMED:
        console.print(f"  and {count(len(attack.changes) - _NAMED)} more: --json has all", highlight=False)
