"""`beyond study import`, `analyse` and `power`: what people answered, and what it takes to know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotations.errors import BeyondError

if TYPE_CHECKING:
    from annotations.study.answers import StudyAnswers
    from annotations.study.power import Power
    from annotations.study.preregistration import Preregistration
    from annotations.study.results import Results

REPORT_FOLDER = "report"


FIELDS = (
    "rater, item, arm, answer, correct, seconds, milliseconds, position, role, image_id, kind, shown_class, "
    "predicted_class, original_label, verdict, confidence"
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how to read answers from a CSV file."""
    for option in reversed(
        [
            click.option(
                "--map",
                "columns",
                multiple=True,
                metavar="FIELD=COLUMN",
                help=f"Of a CSV file: which column is what. Fields: {FIELDS}.",
            ),
            click.option(
                "--value",
                "values",
                multiple=True,
                metavar="FIELD:VALUE=MEANING",
                help="Of a CSV file: what a value means, such as arm:heatmap=feature.",
            ),
            click.option(
                "--kind",
                type=click.Choice(["adversarial", "clean", "sham"]),
                default="adversarial",
                show_default=True,
                help="Of a CSV file without such a column: what its items are.",
            ),
            click.option(
                "--correct",
                type=click.Choice(["label", "rater"]),
                default="label",
                show_default=True,
                help="Of a CSV file: whether its column correct says that the label is right, or the rater.",
            ),
            click.option("--made-up", is_flag=True, help="Mark the answers as made up for a test."),
        ]
    ):
        command = option(command)
    return command


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@reading_options
def import_answers(file: Path, *, out: Path, **reading: Any) -> None:
    """Read the answers of a study made elsewhere from FILE, a long CSV, into a folder.

    One row an answer: rater, item, arm, answer, and whether the label shown is correct. Names of raters do
    not come in; they are numbered.

    \b
    beyond study import trial.csv --out studies/trial
    beyond study import trial.csv --out studies/trial --map rater=worker_id --value arm:heatmap=feature
    """  # noqa: D301 - click reads the escape
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise BeyondError(f"{out} is there already; choose another --out")
    found = _read_csv(file, **reading)
    found.write(out)
    raters = found.answers["rater"].nunique()
    click.echo(
        f"{len(found.answers):,} answers of {raters:,} raters to {len(found.items):,} items in {out}; next: "
        f"beyond study analyse {out}",
        err=True,
    )


@click.command()
@click.argument("study_path", metavar="STUDY|CSV", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to. [default: STUDY/report, CSV-report]")
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Put the answers into RUN and score it again: agreement becomes part of its scorecard.",
)
@click.option("--db", metavar="URL", help="The study's database. [default: campaign.db in the folder]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on standard output.")
@reading_options
def analyse(
    study_path: Path, *, out: Path | None, run: Path | None, db: str | None, as_json: bool, **reading: Any
) -> None:
    """Analyse the answers of STUDY, a folder, or of a long CSV file, as preregistered.

    Gathers what people answered out of the study's database, if there is one, and writes results.json,
    report.md and pictures. The same stimuli, plan and answers give the same bytes; a
    plan or a stimulus that was changed is refused.

    \b
    beyond study analyse studies/resnet50
    beyond study analyse studies/resnet50 --run runs/resnet50
    beyond study analyse trial.csv --map rater=worker_id --map item=image
    """  # noqa: D301 - click reads the escape
    from annotations.study.results import analyse as analyse_answers
    from benchmark.report.study import write_report

    answers, plan = _load(study_path, db, **reading)
    if plan is not None:
        results = analyse_answers(answers, plan)
    else:
        results = analyse_answers(answers, title=study_path.stem)
    if out is None:
        out = (
            study_path / REPORT_FOLDER
            if study_path.is_dir()
            else study_path.with_name(f"{study_path.stem}-{REPORT_FOLDER}")
        )
    write_report(results, out)
    if run is not None:
        from benchmark import agreement, runs

        agreement.put_into_run(run, answers, plan)
        runs.score_run(run)
        click.echo(f"agreement is in the scorecard of {run}; see it with: beyond show {run}", err=True)
    if as_json:
        click.echo(results.to_json(), nl=False)
    else:
        _print(results)
    click.echo(f"report in {out}", err=True)


def _load(path: Path, db: str | None, **reading: Any) -> tuple[StudyAnswers, Preregistration | None]:
    """Answers, and the plan where there is one."""
    from annotations.campaign.config import STUDY_FILE
    from annotations.study.answers import read_answers, read_study
    from annotations.study.preregistration import PREREGISTRATION_FILE

    if not path.exists():
        raise BeyondError(f"no such study: {path}")
    if path.is_file():
        return _read_csv(path, **reading), None
    if (path / PREREGISTRATION_FILE).is_file():
        if db is not None or (path / STUDY_FILE).is_file():
            from annotations.study.gather import gather

            gather(path, db).write(path)
        return read_study(path)
    if db is not None:
        raise BeyondError(f"{path} holds no {PREREGISTRATION_FILE}, so that --db has nothing to go with")
    return read_answers(path), None


def _read_csv(
    file: Path, *, columns: tuple[str, ...], values: tuple[str, ...], kind: str, correct: Any, made_up: bool
) -> StudyAnswers:
    from annotations.study.importing import parse_map, parse_values, read_long_csv

    return read_long_csv(
        file,
        columns=parse_map(columns),
        values=parse_values(values),
        kind=kind,
        correct=correct,
        made_up=made_up,
    )


def _print(results: Results) -> None:
    """Shares and contrasts as two tables."""
    from rich.console import Console
    from rich.table import Table

    from benchmark.report.study import ARM_NAMES, MEASURE_NAMES, points
    from benchmark.report.text import percent

    console = Console()
    table = Table("", "arm", "share", "95 %", "raters", "images", "answers", box=None, padding=(0, 2, 0, 0))
    for measure, shares in results.measures.items():
        for number, share in enumerate(shares):
            if share.value is None:
                continue
            low, high = share.low, share.high
            table.add_row(
                MEASURE_NAMES[measure] if number == 0 else "",
                ARM_NAMES[share.arm],
                f"{percent(share.value)} %",
                "" if low is None or high is None else f"{percent(low)}–{percent(high)}",
                *(f"{n:,}" for n in (share.raters, share.items, share.answers)),
            )
    console.print(table)
    if results.contrasts:
        table = Table("", "difference", "points", "95 %", "p, Holm", box=None, padding=(0, 2, 0, 0))
        for c in results.contrasts:
            table.add_row(
                MEASURE_NAMES[c.measure],
                f"{ARM_NAMES[c.arm]} − {ARM_NAMES[c.versus]}",
                points(c.value),
                f"{points(c.low)} to {points(c.high)}",
                "exploratory" if c.p_holm is None else f"{c.p_holm:.4f}",
            )
        console.print()
        console.print(table)
    for note in results.notes:
        console.print(f"\n{note}", markup=False, highlight=False, end="")
    console.print()


# ------------------------------------------------------------------------------------------------------ power


@click.command()
@click.option(
    "--agreement",
    "agreement_text",
    default="0.4,0.5,0.5",
    show_default=True,
    metavar="NONE,FEATURE,EXAMPLE",
    help="Assumed share of agreement in each arm, in (0, 1); two shares: none and feature.",
)
@click.option("--raters", type=click.IntRange(2, 5000), help="Raters an arm. [default: 30]")
@click.option(
    "--items",
    "items_text",
    metavar="N[,N…]",
    help="Adversarial items that each rater judges; several to compare. [default: 40]",
)
@click.option("--rater-sd", type=click.FloatRange(0, 5), default=0.5, show_default=True, help="In log-odds.")
@click.option("--item-sd", type=click.FloatRange(0, 5), default=1.0, show_default=True, help="In log-odds.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Level after correction. [default: 0.05]",
)
@click.option(
    "--study",
    "study_path",
    type=click.Path(path_type=Path),
    metavar="STUDY",
    help="Take raters, adversarial items and level from the preregistration of STUDY.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Find the fewest raters an arm with which the contrast has this power, for each number of items.",
)
@click.option("--contrast", metavar="ARM:VERSUS", help="Which contrast. [default: feature:none]")
@click.option(
    "--simulations", type=click.IntRange(100, 100_000), default=1000, show_default=True, help="For each plan."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Draw power by raters.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on standard output.")
def power(
    *,
    agreement_text: str,
    raters: int | None,
    items_text: str | None,
    rater_sd: float,
    item_sd: float,
    alpha: float | None,
    study_path: Path | None,
    target: float | None,
    contrast: str | None,
    simulations: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Simulate how often the planned analysis finds an effect, and how many raters and items that takes.

    Every simulated study goes through the permutation test and Holm's correction that the analysis uses. The
    standard deviations of raters and items are assumptions too: take them from a pilot if there is one.

    \b
    beyond study power --agreement 0.35,0.45,0.50 --raters 40 --items 60
    beyond study power --agreement 0.35,0.45,0.50 --target 0.8 --items 20,40,80 --plot power.svg
    beyond study power --agreement 0.35,0.45,0.50 --study studies/resnet50
    """  # noqa: D301 - click reads the escape
    import json

    from annotations.study.power import Plan, curve, raters_needed
    from benchmark.progress import meter
    from benchmark.report.study import power_plot

    shares = _numbers(agreement_text, "--agreement", float)
    if study_path is not None:
        from annotations.study.preregistration import read

        written = read(study_path)
        raters = raters or written.raters_per_arm
        items_text = items_text or str(written.items.get("adversarial", 0))
        alpha = alpha or written.analysis.alpha
    raters, alpha = raters or 30, alpha or 0.05
    items = sorted(set(_numbers(items_text or "40", "--items", int)))
    arms = ("none", "feature", "example")[: len(shares)]
    if len(shares) not in (2, 3):
        raise BeyondError(f"--agreement {agreement_text!r} gives {len(shares)} shares; give two or three")
    if min(items) < 1:
        raise BeyondError("--items must be at least 1")
    arm, _, versus = (contrast or f"{arms[1]}:{arms[0]}").partition(":")
    wanted = _contrast(arm, versus, arms)
    plans = [
        Plan(tuple(shares), raters, n, rater_sd=rater_sd, item_sd=item_sd, alpha=alpha, arms=arms)
        for n in items
    ]
    found: list[Power] = []
    needed: list[Power] = []
    most = 24  # plans that a search tries, at the very most
    total = len(plans) * simulations * (most if target else 5 if plot else 1)
    with meter("Simulating", total, unit="studies") as progress:
        for number, plan in enumerate(plans, start=1):
            share = total // len(plans)
            if target is not None:
                needed.append(
                    raters_needed(
                        plan,
                        target=target,
                        contrast=wanted,
                        simulations=simulations,
                        seed=seed,
                        progress=found.append,
                        advance=progress.advance,
                    )
                )
            else:
                sizes = (
                    [raters] if plot is None else sorted({max(2, raters * k // 4) for k in (1, 2, 4, 6, 8)})
                )
                found += curve(plan, sizes, simulations=simulations, seed=seed, advance=progress.advance)
            progress.advance(max(share * number - progress.done, 0))
    if plot is not None:
        if not plot.parent.is_dir():
            raise BeyondError(f"there is no folder {plot.parent}; make it, or draw elsewhere")
        plot.write_text(power_plot(found, wanted, target=target or 0.8), encoding="utf-8", newline="\n")
        click.echo(f"wrote {plot}", err=True)
    shown = sorted(needed or found, key=lambda p: (p.plan.items, p.plan.raters))
    if as_json:
        data = {
            "assumed": {
                "agreement": dict(zip(arms, shares)),
                "rater_sd": rater_sd,
                "item_sd": item_sd,
                "alpha": alpha,
            },
            "target": target,
            "contrast": list(wanted),
            "simulations": simulations,
            "seed": seed,
            "needed": [_power_json(p) for p in needed],
            "tried": [_power_json(p) for p in sorted(found, key=lambda p: (p.plan.items, p.plan.raters))],
        }
        click.echo(json.dumps(data, indent=2))
        return
    _print_power(shown, target=target, wanted=wanted)


def _power_json(found: Power) -> dict[str, Any]:
    return {
        "raters_per_arm": found.plan.raters,
        "raters": found.plan.raters * len(found.plan.arms),
        "items": found.plan.items,
        "answers": found.plan.raters * len(found.plan.arms) * found.plan.items,
        "power": [
            {"arm": arm, "versus": versus, "value": share, "half_width": round(found.error(share), 6)}
            for (arm, versus), share in zip(found.contrasts, found.power)
        ],
        "any": found.any,
    }


def _print_power(shown: list[Power], *, target: float | None, wanted: tuple[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmark.report.study import ARM_NAMES

    names: dict[str, str] = {arm: name for arm, name in ARM_NAMES.items()}  # noqa: C416 - wider keys
    console = Console()
    first = shown[0]
    assumed = ", ".join(f"{100 * s:g} % {names[a]}" for a, s in zip(first.plan.arms, first.plan.agreement))
    console.print(
        f"Assumed agreement: {assumed}; raters vary by {first.plan.rater_sd:g}, items by "
        f"{first.plan.item_sd:g} in log-odds.",
        highlight=False,
    )
    if target is not None:
        console.print(
            f"The fewest raters an arm that tell {names[wanted[0]]} from {names[wanted[1]]} with "
            f"{100 * target:g} % power, for each number of items:",
            highlight=False,
        )
    heads = [f"{names[a]} − {names[b]}" for a, b in first.contrasts]
    table = Table("items", "raters an arm", "answers", *heads, "any", box=None, padding=(0, 2, 0, 0))
    for found in shown:
        answers = found.plan.raters * len(found.plan.arms) * found.plan.items
        table.add_row(
            f"{found.plan.items:,}",
            f"{found.plan.raters:,}",
            f"{answers:,}",
            *(f"{100 * share:.1f} ± {100 * found.error(share):.1f} %" for share in found.power),
            f"{100 * found.any:.1f} %",
        )
    console.print(table)
    console.print(
        f"Simulated {first.simulations:,} times each, with the permutation test and Holm's correction over "
        f"{len(first.contrasts)} contrasts at {first.plan.alpha:g}.",
        highlight=False,
    )


def _numbers(text: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise BeyondError(f"{option} {text!r} is no list of numbers; write them with commas") from None


def _contrast(arm: str, versus: str, arms: tuple[str, ...]) -> tuple[str, str]:
    """A contrast as the analysis names it: the later arm first."""
    if arm not in arms or versus not in arms or arm == versus:
        raise BeyondError(f"--contrast needs two of {', '.join(arms)}, such as {arms[1]}:{arms[0]}")
    return (arm, versus) if arms.index(arm) > arms.index(versus) else (versus, arm)
