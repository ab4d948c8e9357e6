"""The results of an explanation study as a Markdown report with pictures, and the pictures of power.

Everything depends on the results alone: the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape

from annotations.study.power import Power
from annotations.study.preregistration import Arm, Measure
from annotations.study.results import ArmShare, Difference, Group, Results
from benchmark.report.charts import Scale
from benchmark.report.text import clean, count, percent

RESULTS_FILE, REPORT_FILE = "results.json", "report.md"
AGREEMENT, CONTRASTS, CONFIDENCE, TIMES = "agreement.svg", "contrasts.svg", "confidence.svg", "times.svg"
FILES = (RESULTS_FILE, REPORT_FILE, AGREEMENT, CONTRASTS, CONFIDENCE, TIMES)

ARM_NAMES: dict[Arm, str] = {
    "none": "no explanation",
    "feature": "heat map",
    "example": "examples",
}
MEASURE_NAMES: dict[Measure, str] = {
    "agreement": "Agreement",
    "sham_acceptance": "Shams accepted",
    "over_acceptance": "Over-acceptance",
    "over_rejection": "Over-rejection",
}
MEASURE_TEXTS: dict[Measure, str] = {
    "agreement": "yes to what the model predicts",
    "sham_acceptance": "yes to a plainly wrong label of an unaltered image",
    "over_acceptance": "yes to a label that people reject (shams, and labels that label sets reject)",
    "over_rejection": "no to a label that people accept",
}
_REASONS = {
    "few attention checks": "too few attention checks answered",
    "attention": "attention checks wrong",
    "few answers": "too few answers",
    "fast rater": "too fast, by the median answer",
    "fast answer": "single answers that were too fast",
    "slow answer": "single answers that were too slow",
}
MAX_CLASSES = 30


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write JSON, Markdown and pictures of a study's results into a folder.

    Returns:
        What was written. Pictures of what was not measured are removed, not left from before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(results)
    texts = {RESULTS_FILE: results.to_json(), REPORT_FILE: markdown(results, drawn), **drawn}
    written = []
    for name in FILES:
        path = folder / name
        if name in texts:
            path.write_text(texts[name], encoding="utf-8", newline="\n")
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


# --------------------------------------------------------------------------------------------------- Markdown


def markdown(results: Results, drawn: Mapping[str, str] | None = None) -> str:
    """The report. It holds no time and no path.

    Args:
        results: What it reports.
        drawn: Its `pictures`, where they are drawn already.
    """
    drawn = pictures(results) if drawn is None else drawn
    parts = [f"# {_text(results.title)}", "", *_lede(results), ""]
    parts += ["## Agreement, by what raters saw", ""]
    if AGREEMENT in drawn:
        parts += [f"![Shares by arm, with 95 % intervals]({AGREEMENT})", ""]
    for measure, shares in results.measures.items():
        if not any(share.answers for share in shares):
            continue
        parts += [f"**{MEASURE_NAMES[measure]}**: {MEASURE_TEXTS[measure]}.", "", *_share_table(shares), ""]
    parts += ["## Differences between arms", ""]
    if results.contrasts:
        if CONTRASTS in drawn:
            parts += [f"![Differences between arms, with 95 % intervals]({CONTRASTS})", ""]
        parts += [*_contrast_table(results), ""]
        parts += [
            f"Tests permute arms over raters. p after Holm is corrected over the {len(results.hypotheses)} "
            "hypotheses of the plan; contrasts without it are exploratory.",
            "",
        ]
    else:
        parts += ["None can be told: two arms with two raters and two images each are needed.", ""]
    parts += _hypotheses(results)
    if results.odds_ratios:
        parts += [
            "Sensitivity, generalised estimating equations over raters (log odds ratios, on these items "
            "only):",
            "",
            "| arm | against | log odds ratio | 95 % interval | p |",
            "|---|---|---:|---|---:|",
            *(
                f"| {ARM_NAMES[o.arm]} | {ARM_NAMES[o.versus]} | {o.log_odds:+.2f} | {o.low:+.2f} to "
                f"{o.high:+.2f} | {_p(o.p)} |"
                for o in results.odds_ratios
            ),
            "",
        ]
    parts += _exclusions(results)
    parts += _groups(results, drawn)
    parts += _times(results, drawn)
    parts += _provenance(results)
    return "\n".join(parts).rstrip() + "\n"


def _lede(results: Results) -> list[str]:
    lines = []
    if results.made_up:
        lines += ["> **Made up for a test.** No person answered. Nothing of this may be published.", ""]
    total = sum(results.raters.values())
    lines.append(
        f"{count(total)} raters gave {count(results.answers)} answers; "
        f"{count(sum(share.raters for share in results.measures['agreement']))} raters are analysed."
    )
    notes = [note for note in results.notes if "made up for a test" not in note]
    if notes:
        lines += ["", *(f"* {_text(note)}" for note in notes)]
    return lines


def _share_table(shares: Sequence[ArmShare]) -> list[str]:
    return [
        "| arm | share | 95 % interval | raters | images | answers |",
        "|---|---:|---|---:|---:|---:|",
        *(
            f"| {ARM_NAMES[share.arm]} | {_percent(share.value)} | {_interval(share.low, share.high)} | "
            f"{count(share.raters)} | {count(share.items)} | {count(share.answers)} |"
            for share in shares
        ),
    ]


def _contrast_table(results: Results) -> list[str]:
    return [
        "| measure | arm | against | difference | 95 % interval | p | p after Holm | hypothesis |",
        "|---|---|---|---:|---|---:|---:|---|",
        *(
            f"| {MEASURE_NAMES[c.measure]} | {ARM_NAMES[c.arm]} | {ARM_NAMES[c.versus]} | "
            f"{points(c.value)} | {points(c.low)} to {points(c.high)} | {_p(c.p)} | {_p(c.p_holm)} | "
            f"{_text(c.hypothesis) if c.hypothesis else 'exploratory'} |"
            for c in results.contrasts
        ),
    ]


def _hypotheses(results: Results) -> list[str]:
    """What became of each hypothesis, where there was a plan."""
    if results.preregistration is None:
        return []
    lines = []
    tested = {c.hypothesis: c for c in results.contrasts if c.hypothesis}
    for hypothesis in results.hypotheses:
        c = tested.get(hypothesis.name)
        if c is None or c.p_holm is None:
            verdict = "could not be tested."
        elif c.p_holm <= results.analysis.alpha:
            verdict = f"a difference was found ({points(c.value)} points, p {_p(c.p_holm)})."
        else:
            verdict = (
                f"no difference was found; the interval is {points(c.low)} to {points(c.high)} points "
                f"(p {_p(c.p_holm)})."
            )
        lines.append(f"* **{_text(hypothesis.name)}** {_text(hypothesis.text)} *Result:* {verdict}")
    return [*lines, ""] if lines else []


def _exclusions(results: Results) -> list[str]:
    rules = results.exclusions
    lines = ["## Who was left out", ""]
    said = [
        f"attention checks: at least {rules.minimum_attention}, and at least "
        f"{percent(rules.attention_floor, 0)} % right",
        f"answers: at least {rules.minimum_answers}",
    ]
    if rules.fast_median_seconds:
        said.append(f"median answer of at least {rules.fast_median_seconds:g} s")
    if rules.fast_answer_seconds:
        said.append(f"single answers of at least {rules.fast_answer_seconds:g} s")
    if rules.slow_answer_seconds is not None:
        said.append(f"single answers of at most {rules.slow_answer_seconds:g} s")
    lines += [f"The rules: {'; '.join(said)}.", ""]
    if not results.excluded:
        lines += ["They left out nobody and no answer.", ""]
    else:
        lines += ["| reason | arm | raters | answers |", "|---|---|---:|---:|"]
        lines += [
            f"| {_REASONS[e.reason]} | {ARM_NAMES[e.arm]} | {count(e.raters) if e.raters else '–'} | "
            f"{count(e.answers)} |"
            for e in results.excluded
        ]
        lines += ["", "Agreement had nobody been left out:", "", *_share_table(results.everyone), ""]
    maybe = {arm: n for arm, n in results.maybe.items() if n}
    if maybe:
        how = {"no": "as no agreement", "half": "as half", "missing": "as no answer"}[results.analysis.maybe]
        listed = ", ".join(f"{count(n)} with {ARM_NAMES[arm]}" for arm, n in maybe.items())
        lines += [f"Maybe counts {how}: {listed}.", ""]
    return lines


def _groups(results: Results, drawn: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    if results.by_kind:
        lines += ["## By kind of item", "", "How often raters said yes.", ""]
        lines += [*_group_table("kind", [(g.name, g) for g in results.by_kind]), ""]
    if results.by_confidence:
        lines += ["## By the model's confidence", "", "Thirds of the items; not corrected for how many.", ""]
        if CONFIDENCE in drawn:
            lines += [f"![Agreement by confidence]({CONFIDENCE})", ""]
        named = [
            (f"{g.name} ({percent(g.low_edge or 0, 0)}–{percent(g.high_edge or 0, 0)} %)", g)
            for g in results.by_confidence
        ]
        lines += [*_group_table("confidence", named), ""]
    if results.by_class:
        largest = sorted(
            results.by_class, key=lambda g: (-sum(share.answers for share in g.shares), g.class_index or 0)
        )[:MAX_CLASSES]
        more = len(results.by_class) - len(largest)
        lines += [
            "## By class",
            "",
            "The class of the photograph, not the one shown. Not corrected for how many there are.",
        ]
        if more > 0:
            lines[-1] += f" The {MAX_CLASSES} with most answers; {more} more are in {RESULTS_FILE}."
        lines += ["", *_group_table("class", [(clean(g.name), g) for g in largest]), ""]
    return lines


def _group_table(what: str, groups: Sequence[tuple[str, Group]]) -> list[str]:
    arms = [share.arm for share in groups[0][1].shares]
    first = arms[0]
    head = [what, "images", *(ARM_NAMES[arm] for arm in arms)]
    head += [f"{ARM_NAMES[arm]} − {ARM_NAMES[first]}" for arm in arms[1:]]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for name, group in groups:
        cells = [_text(name), count(max(share.items for share in group.shares))]
        cells += [
            f"{_percent(share.value)} (n {count(share.answers)})" if share.answers else "–"
            for share in group.shares
        ]
        for arm in arms[1:]:
            d = next((d for d in group.differences if (d.arm, d.versus) == (arm, first)), None)
            cells.append(f"{points(d.value)} ({points(d.low)} to {points(d.high)})" if d else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(results: Results, drawn: Mapping[str, str]) -> list[str]:
    if not results.times:
        return []
    lines = ["## How long answers took", ""]
    if TIMES in drawn:
        lines += [f"![Response times by arm]({TIMES})", ""]
    lines += ["| arm | lower quartile | median | upper quartile | median of raters | raters | answers |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {ARM_NAMES[t.arm]} | {t.lower_quartile:.1f} s | {t.median:.1f} s | {t.upper_quartile:.1f} s | "
        f"{t.median_of_raters:.1f} s | {count(t.raters)} | {count(t.answers)} |"
        for t in results.times
    ]
    return [*lines, ""]


def _provenance(results: Results) -> list[str]:
    a = results.analysis
    return [
        "## How it was computed",
        "",
        f"* Intervals: two-way cluster bootstrap over raters and images, {count(a.resamples)} resamples, "
        f"seed {a.seed}; exact where all answers of an arm are the same.",
        f"* Tests: {count(a.permutations)} permutations of arms over raters, two-sided; Holm's correction; "
        f"level {a.alpha:g}.",
        f"* Agreement is over items of kind {', '.join(a.kinds)}.",
        f"* Preregistration: {results.preregistration or 'none'}.",
        f"* Stimuli: {results.pack or 'unknown'}.",
    ]


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign.

    Example:
        >>> points(0.123), points(-0.05), points(0.0)
        ('+12.3', '−5.0', '0.0')
    """
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{percent(value)} %"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{percent(low)}–{percent(high)}"


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _text(value: str) -> str:
    """Text that Markdown reads as text, in a table too."""
    out = clean(value)
    for character in "\\`*_[]<>|#":
        out = out.replace(character, f"\\{character}" if character != "<" else "&lt;")
    return out


# --------------------------------------------------------------------------------------------------- pictures

_WIDTH, _LEFT, _RIGHT, _ROW = 720, 250, 60, 26
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#222}.t{font-size:11px;fill:#666}.b{font-weight:600}"
    ".g{stroke:#ddd}.z{stroke:#888}.i{stroke-width:3}.p0{stroke:#666;fill:#666}.p1{stroke:#b35900;"
    "fill:#b35900}.p2{stroke:#1a6fb0;fill:#1a6fb0}.p3{stroke:#357a38;fill:#357a38}.l{fill:none;"
    "stroke-width:2}@media(prefers-color-scheme:dark){svg{background:#15181c}text{fill:#e6e6e6}"
    ".t{fill:#aaa}.g{stroke:#333}.p0{stroke:#bbb;fill:#bbb}.p1{stroke:#f0a050;fill:#f0a050}"
    ".p2{stroke:#6bb6ee;fill:#6bb6ee}.p3{stroke:#7cc47f;fill:#7cc47f}}</style>"
)


@dataclass(frozen=True)
class _Row:
    """One line of a chart: a heading without a value, or a value with its interval; text at the right."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    tone: int = 0
    text: str = ""


def pictures(results: Results) -> dict[str, str]:
    """Pictures as SVG, by file name; what was not measured has none."""
    tones = {arm: number for number, arm in enumerate(results.arms)}
    found: dict[str, str] = {}
    rows: list[_Row] = []
    for measure, shares in results.measures.items():
        if any(share.answers for share in shares):
            rows.append(_Row(f"{MEASURE_NAMES[measure]}, %"))
            rows += [_share_row(share, tones[share.arm]) for share in shares]
    if rows:
        found[AGREEMENT] = _chart(rows, Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)), "Shares by arm")
    rows = []
    for measure in results.measures:
        mine = [c for c in results.contrasts if c.measure == measure]
        if mine:
            rows.append(_Row(f"{MEASURE_NAMES[measure]}, points"))
            rows += [_difference_row(c, tones[c.arm]) for c in mine]
    if rows:
        ends = [e for row in rows for e in (row.low, row.high) if e is not None]
        found[CONTRASTS] = _chart(rows, _around_zero(ends), "Differences between arms", zero=True)
    if results.by_confidence:
        rows = []
        for group in results.by_confidence:
            edges = f"{percent(group.low_edge or 0, 0)}–{percent(group.high_edge or 0, 0)} %"
            rows.append(_Row(f"Confidence {group.name}, {edges}"))
            rows += [_share_row(share, tones[share.arm]) for share in group.shares]
        found[CONFIDENCE] = _chart(
            rows, Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)), "Agreement by confidence"
        )
    if results.times:
        rows = [_Row("Seconds an answer: median, and the middle half")]
        rows += [
            _Row(
                ARM_NAMES[t.arm],
                t.median,
                t.lower_quartile,
                t.upper_quartile,
                tones[t.arm],
                f"{t.median:.1f}",
            )
            for t in results.times
        ]
        top = max(t.upper_quartile for t in results.times)
        found[TIMES] = _chart(rows, Scale.around([0.0, max(top, 1e-3)], zero=True), "Times", unit=1.0)
    return found


def _share_row(share: ArmShare, tone: int) -> _Row:
    text = "–" if share.value is None else percent(share.value)
    return _Row(ARM_NAMES[share.arm], share.value, share.low, share.high, tone, text)


def _difference_row(c: Difference, tone: int) -> _Row:
    label = f"{ARM_NAMES[c.arm]} − {ARM_NAMES[c.versus]}"
    return _Row(label, c.value, c.low, c.high, tone, points(c.value))


def _around_zero(ends: Sequence[float]) -> Scale:
    most = max(0.05, *(abs(end) for end in ends))
    step = next(s for s in (0.05, 0.1, 0.25, 0.5, 1.0) if 2 * s >= most or s == 1.0)
    number = -(-most // step)
    ticks = tuple(step * k for k in range(-int(number), int(number) + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _chart(rows: Sequence[_Row], scale: Scale, label: str, *, zero: bool = False, unit: float = 100.0) -> str:
    """Rows one under another over one axis."""
    span = _WIDTH - _LEFT - _RIGHT
    height = _ROW * len(rows) + 34

    def x(value: float) -> float:
        return _LEFT + span * (min(max(value, scale.low), scale.high) - scale.low) / (scale.high - scale.low)

    body = []
    foot = _ROW * len(rows) + 8
    for tick in scale.ticks:
        name = f"{unit * tick:+g}".replace("-", "−") if zero and tick else f"{unit * tick:g}"
        css = "z" if zero and tick == 0 else "g"
        body.append(f'<line class="{css}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{foot}"/>')
        body.append(f'<text class="t" x="{x(tick):.1f}" y="{foot + 16}" text-anchor="middle">{name}</text>')
    for number, row in enumerate(rows):
        y = _ROW * number + 20
        indent, css = (0, ' class="b"') if row.value is None and not row.text else (14, "")
        body.append(f'<text{css} x="{8 + indent}" y="{y + 4}">{escape(row.label)}</text>')
        if row.text:
            body.append(f'<text x="{_WIDTH - 8}" y="{y + 4}" text-anchor="end">{escape(row.text)}</text>')
        if row.value is None:
            continue
        if row.low is not None and row.high is not None:
            ends = f'x1="{x(row.low):.1f}" x2="{x(row.high):.1f}"'
            body.append(f'<line class="i p{row.tone}" {ends} y1="{y}" y2="{y}"/>')
        body.append(f'<circle class="p{row.tone}" cx="{x(row.value):.1f}" cy="{y}" r="5"/>')
    return _svg("".join(body), height, label)


def _svg(body: str, height: int, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(label)}">{_STYLE}{body}</svg>\n'
    )


def power_plot(found: Sequence[Power], contrast: tuple[str, str], *, target: float) -> str:
    """Power against raters an arm, one line for each number of items, with the level that is wanted.

    Args:
        found: What was simulated; plans that differ in raters and items alone.
        contrast: Whose power.
        target: The power wanted, drawn as a line.
    """
    items = sorted({power.plan.items for power in found})
    most = max(power.plan.raters for power in found)
    across = Scale.around([0.0, most / 100], zero=True)  # in hundreds, so that steps are whole numbers
    height, top, foot, left = 360, 20, 300, 60

    def x(raters: float) -> float:
        return left + (_WIDTH - left - 130) * raters / (100 * across.high)

    def y(share: float) -> float:
        return foot - (foot - top) * share

    body = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(
            f'<line class="g" x1="{left}" x2="{_WIDTH - 130}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        )
        name = f"{100 * share:g} %"
        body.append(f'<text class="t" x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{name}</text>')
    body += [
        f'<text class="t" x="{x(100 * t):.1f}" y="{foot + 18}" text-anchor="middle">{100 * t:g}</text>'
        for t in across.ticks
    ]
    body.append(
        f'<line class="z" stroke-dasharray="5 4" x1="{left}" x2="{_WIDTH - 130}" y1="{y(target):.1f}" '
        f'y2="{y(target):.1f}"/>'
    )
    body.append(f'<text x="{left}" y="{foot + 42}">Raters an arm</text>')
    for number, n in enumerate(items):
        mine = sorted((p for p in found if p.plan.items == n), key=lambda p: p.plan.raters)
        at = [(x(p.plan.raters), p.power[p.contrasts.index(contrast)], p) for p in mine]
        tone = number % 4
        path = " ".join(f"{px:.1f},{y(share):.1f}" for px, share, _ in at)
        body.append(f'<polyline class="l p{tone}" style="fill:none" points="{path}"/>')
        for px, share, p in at:
            low, high = max(share - p.error(share), 0), min(share + p.error(share), 1)
            body.append(
                f'<line class="p{tone}" x1="{px:.1f}" x2="{px:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
                f'<circle class="p{tone}" cx="{px:.1f}" cy="{y(share):.1f}" r="4"/>'
            )
        body.append(
            f'<circle class="p{tone}" cx="{_WIDTH - 114}" cy="{top + 8 + 22 * number}" r="5"/>'
            f'<text x="{_WIDTH - 102}" y="{top + 12 + 22 * number}">{n} items</text>'
        )
    arm, versus = contrast
    label = f"Power to tell {arm} from {versus} against raters an arm"
    return _svg("".join(body), height, label)
