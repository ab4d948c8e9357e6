"""`beyond campaign`: make a campaign, serve it, look after it, and bring its votes home."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from annotations.errors import BeyondError, database_trouble

if TYPE_CHECKING:
    from annotations.campaign.config import CampaignConfig
    from annotations.campaign.store import Store
    from annotations.campaign.types import Status

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DB = "campaign.db"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8008


def db_option(command: F) -> F:
    """The `--db` option, the same for every command."""
    return click.option(
        "--db",
        default=DEFAULT_DB,
        show_default=True,
        envvar="BEYOND_CAMPAIGN_DB",
        metavar="URL",
        help="Database: a SQLite file, the folder of a study, or postgresql://… ($BEYOND_CAMPAIGN_DB).",
    )(command)


def json_option(command: F) -> F:
    """The `--json` option."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")(command)


class _Group(click.Group):
    """A group whose commands say in one line what is wrong with the database."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            BeyondError: The database is none of a campaign, or cannot be reached.
        """
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = database_trouble(error)
            if line is None:
                raise
            raise BeyondError(line) from error


@click.group(cls=_Group)
def campaign() -> None:
    """Ask people whether labels apply to images: make a campaign, serve it, collect the votes.

    \b
    beyond propose runs/* --out pairs.parquet
    beyond campaign create --pairs pairs.parquet --images DIR --gold mla
    beyond campaign serve
    beyond campaign export --out votes
    """  # noqa: D301 - click reads the escape


# Making ----------------------------------------------------------------------------------------------------


@campaign.command()
@click.option(
    "--pairs", "pairs_file", required=True, type=click.Path(path_type=Path), help="Pairs: Parquet or CSV."
)
@click.option("--images", "images_spec", required=True, metavar="DIR", help="Folder of images, or sample.")
@click.option(
    "--gold", "gold_spec", metavar="SOURCE", help="Known answers: a source of label sets (mla), or a file."
)
@click.option(
    "--gold-limit", type=click.IntRange(2), default=1000, show_default=True, help="Gold drawn from a source."
)
@db_option
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option("--name", help="Name that raters see.")
@click.option("--votes", type=int, help="Votes a pair gets. [default: 5]")
@click.option("--accept-at", type=int, help="Equal votes that decide a pair. [default: 4 of 5]")
@click.option(
    "--maybe/--no-maybe", "maybe_allowed", default=None, help="Allow the answer maybe. [default: yes]"
)
@click.option("--gold-rate", type=float, help="Share of gold in the work. [default: 0.1]")
@click.option("--practice", "practice_questions", type=int, help="Practice questions. [default: 5]")
@click.option("--qualification", "qualification_questions", type=int, help="Its questions. [default: 10]")
@click.option("--qualification-floor", type=float, help="Share right to pass. [default: 0.7]")
@click.option("--quality-floor", type=float, help="Share right on gold below which to pause. [default: 0.7]")
@click.option("--quota", type=int, help="Answers one rater may give. [default: no limit]")
@click.option("--lease-seconds", type=float, help="How long a question is held. [default: 900]")
@click.option(
    "--stop-early/--no-stop-early", default=None, help="Stop once a verdict is certain. [default: no]"
)
@click.option("--minimum-dwell-ms", type=int, help="No answer before. [default: 250]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw of gold.")
@click.option("--skip-missing", is_flag=True, help="Leave out pairs whose image is not there.")
def create(
    *,
    pairs_file: Path,
    images_spec: str,
    gold_spec: str | None,
    gold_limit: int,
    db: str,
    config_file: Path | None,
    seed: int,
    skip_missing: bool,
    **settings: Any,
) -> None:
    """Make a campaign out of pairs to judge, images, and gold.

    --config holds any setting, among them the consent text with its version, the instructions, and Prolific's
    completion code; options go before it.
    """
    from annotations import sources
    from annotations.campaign import making
    from annotations.campaign.pictures import find_images, images_folder
    from annotations.campaign.store import Store

    config = making.read_config(config_file, settings)
    folder = images_folder(images_spec)
    images = find_images(images_spec)
    pairs = making.require_images(making.read_pairs(pairs_file), images, skip=skip_missing)
    gold = []
    if gold_spec is not None:
        if Path(gold_spec).suffix.lower() in (".csv", ".parquet"):
            gold = making.read_gold(Path(gold_spec))
        else:
            here = {image.image_id for image in images}
            asked = {(pair.image_id, pair.class_index) for pair in pairs}
            gold = making.gold_from_labels(
                sources.load(gold_spec), here, limit=gold_limit, seed=seed, exclude=asked
            )
    gold = making.with_practice(gold, config.practice_questions)
    spec = images_spec if images_spec == "sample" else str(folder)
    store = Store.create(db, config, images=images, pairs=pairs, gold=gold, images_spec=spec)
    practice = sum(known.practice for known in gold)
    click.echo(
        f"{config.name}: {len(pairs):,} pairs to judge, {config.votes} votes each; "
        f"{len(gold) - practice:,} gold, {practice} for practice; kept in {store.database.name}"
    )
    if len(gold) == practice:
        click.echo("note: without gold nobody is qualified or checked; give some with --gold")
    store.close()
    click.echo(f"next: beyond campaign serve{'' if db == DEFAULT_DB else f' --db {db}'}")


@campaign.command()
@db_option
@click.option("--images", "images_spec", metavar="DIR", help="Folder of images, if they were moved.")
@click.option(
    "--references", type=click.Path(path_type=Path), help="Thumbnails of labels: folders by index or wnid."
)
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True)
@click.option("--public-url", metavar="URL", help="Address that raters use, where a proxy is in front.")
@click.option("--trust-proxy", metavar="ADDRESS", help="Believe this proxy about raters' addresses.")
def serve(
    *,
    db: str,
    images_spec: str | None,
    references: Path | None,
    host: str,
    port: int,
    public_url: str | None,
    trust_proxy: str | None,
) -> None:
    """Serve a campaign to raters and managers, and print a manager's invitation.

    Stop it with Ctrl-C at any time: no answer is lost. For raters elsewhere put a proxy with HTTPS in front,
    and say --public-url https://…
    """
    from annotations.campaign.store import Store

    store = Store.open(db)
    run_server(
        store,
        images_spec=images_spec,
        references=references,
        host=host,
        port=port,
        public_url=public_url,
        trust_proxy=trust_proxy,
    )


def run_server(
    store: Store,
    *,
    images_spec: str | None = None,
    references: Path | None = None,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    public_url: str | None = None,
    trust_proxy: str | None = None,
    rater_links: int = 0,
) -> None:
    """Serve until interrupted; prints where, once the port is open."""
    from annotations.campaign.pictures import Pictures, images_folder
    from annotations.web.app import WebSettings, create_app
    from annotations.web.server import listen, serve_forever, settle

    folder = images_folder(images_spec or store.images_spec)
    secure = (public_url or "").startswith("https://")
    study = store.config.study
    if study is not None:
        from annotations.study import gather

        if references is not None:
            raise BeyondError("a study shows the same in each arm, so it takes no --references")
        gather.check(folder.parent, store)
    pictures = Pictures(folder, references=references, exact=study is not None)
    app = create_app(store, pictures, WebSettings(secure=secure, public_url=public_url))
    manager = store.invite("manager", days=1, label="from the server's start")[0]
    raters = store.invite("rater", count=rater_links) if rater_links else []
    settle()
    with listen(host, port) as socket:
        port = socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else "127.0.0.1" if host in ("", "0.0.0.0") else host
        base = (public_url or f"http://{shown}:{port}").rstrip("/")
        click.echo(f"{store.config.name} at {base}")
        click.echo(f"manager  {base}/join/{manager.token}")
        for invitation in raters:
            click.echo(f"rater    {base}/join/{invitation.token}")
        click.echo("Each link works once. Stop with Ctrl-C; no answer is lost.")
        try:
            serve_forever(app, socket, trust_proxy=trust_proxy)
        except KeyboardInterrupt:  # uvicorn raises it again once it has ended in good order
            click.echo("\nstopped; every answer is kept, and the same command goes on", err=True)
        finally:
            store.close()


# People ----------------------------------------------------------------------------------------------------


@campaign.command()
@db_option
@click.option("--role", type=click.Choice(["rater", "manager"]), default="rater", show_default=True)
@click.option("--count", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many links.")
@click.option(
    "--uses",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="People that each lets in, for Prolific.",
)
@click.option("--label", default="", help="A note for managers; never published.")
@click.option("--days", type=click.FloatRange(0, min_open=True), default=30, show_default=True)
@click.option("--rater", metavar="PSEUDONYM", help="To come back as this rater, from another browser.")
@click.option("--base", default=f"http://{DEFAULT_HOST}:{DEFAULT_PORT}", show_default=True, metavar="URL")
@json_option
def invite(
    *,
    db: str,
    role: Any,
    count: int,
    uses: int,
    label: str,
    days: float,
    rater: str | None,
    base: str,
    as_json: bool,
) -> None:
    """Print invitations: one link a line, shown once. For Prolific add the parameters that it fills in."""
    store = _open(db)
    rater_id = None if rater is None else _rater_id(store, rater)
    made = store.invite(role, count=count, uses=uses, label=label, days=days, rater_id=rater_id)
    links = [f"{base.rstrip('/')}/join/{one.token}" for one in made]
    if store.config.prolific is not None and role == "rater":
        query = "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
        links = [f"{link}?{query}" for link in links]
    store.audit("command line", "invited", f"{count} for role {role}, {uses} uses")
    store.close()
    click.echo(json.dumps(links, indent=2) if as_json else "\n".join(links))


@campaign.command()
@db_option
@click.argument("pseudonym")
@click.argument("action", type=click.Choice(["pause", "reinstate"]))
@click.option("--reason", default="", help="Why; kept in the log.")
def rater(*, db: str, pseudonym: str, action: str, reason: str) -> None:
    """Pause a rater, whose answers are kept and replaced, or let them go on."""
    store = _open(db)
    rater_id = _rater_id(store, pseudonym)
    if action == "pause":
        store.pause(rater_id, reason or "paused at the command line")
    else:
        store.reinstate(rater_id)
    store.audit("command line", f"rater {action}d", f"{pseudonym}: {reason}")
    store.close()
    click.echo(f"{pseudonym}: {'paused' if action == 'pause' else 'may go on'}")


def _rater_id(store: Store, pseudonym: str) -> int:
    for report in store.status().raters:
        if report.pseudonym == pseudonym:
            return report.rater_id
    raise BeyondError(f"there is no rater {pseudonym!r}; beyond campaign status lists them")


# Looking ---------------------------------------------------------------------------------------------------


@campaign.command()
@db_option
@json_option
def status(*, db: str, as_json: bool) -> None:
    """Say how far a campaign is: coverage, pace, agreement, raters, gold, and pairs to decide."""
    store = _open(db)
    found = store.status()
    config = store.config
    store.close()
    if as_json:
        click.echo(json.dumps(_finite(dataclasses.asdict(found)), indent=2, ensure_ascii=False))
        return
    _print_status(found, config)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _print_status(found: Status, config: CampaignConfig) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=140)
    c, t = found.coverage, found.throughput
    share = c.answers / c.wanted if c.wanted else 1.0
    left = "" if t.seconds_left is None else f", {t.seconds_left / 3600:.1f} h left at this pace"
    console.print(f"{escape(found.name)}{' (frozen)' if found.frozen else ''}", style="bold")
    console.print(
        f"votes      {c.answers:,} of {c.wanted:,} ({share:.1%}); {t.last_hour:,} answers in the last hour, "
        f"{t.active} raters active{left}"
    )
    if config.study:
        # A study's questions take as many answers as there are raters, and no verdict comes of them.
        console.print(f"questions  {c.pairs:,}, {c.untouched:,} untouched, {c.in_flight:,} held now")
    else:
        verdicts = ", ".join(f"{number:,} {name}" for name, number in found.verdicts.items())
        console.print(
            f"pairs      {c.pairs:,}: {c.complete:,} complete ({verdicts}), {c.untouched:,} untouched, "
            f"{c.in_flight:,} held now"
        )
    for arm in config.arms:
        here = [rater for rater in found.raters if rater.arm == arm]
        done = sum(rater.stage == "done" and not rater.reason for rater in here)
        wanted = f" of {config.study.raters:,}" if config.study else ""
        console.print(f"arm        {arm}: {done:,}{wanted} raters done, {len(here):,} came")
    if not config.study:
        console.print(
            f"to decide  {found.flagged:,} complete pairs without a verdict: beyond campaign flagged"
        )
    if found.agreement:
        table = Table("agreement", "value", "95 % interval", "n", box=None, pad_edge=False)
        for one in found.agreement:
            table.add_row(
                one.name, _figure(one.value), f"{_figure(one.low)} to {_figure(one.high)}", f"{one.n:,}"
            )
        console.print(table)
    gold = Table("gold", "answered yes", "no", "maybe", box=None, pad_edge=False)
    for expected, counts in found.gold.counts.items():
        gold.add_row(expected, *(f"{counts[answer]:,}" for answer in ("yes", "no", "maybe")))
    console.print(gold)
    if not found.raters:
        console.print("no rater yet: beyond campaign invite")
        return
    headers = (
        "rater",
        "note",
        "arm",
        "stage",
        "answers",
        "gold",
        "quality (95 %)",
        "yes",
        "ms",
        "fast",
        "reason",
    )
    table = Table(*headers, box=None, pad_edge=False)
    for person in found.raters:
        interval = f"{person.quality:.2f} ({person.quality_low:.2f} to {person.quality_high:.2f})"
        table.add_row(
            person.pseudonym,
            escape(person.label),
            person.arm,
            person.stage,
            f"{person.answered:,}",
            f"{person.gold_right:g}/{person.gold_seen}",
            interval if person.gold_seen else "",
            "" if person.yes is None else f"{person.yes:.0%}",
            "" if person.median_ms is None else f"{person.median_ms:.0f}",
            f"{person.fast:,}" if person.fast else "",
            escape(person.reason),
        )
    console.print(table)


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


@campaign.command()
@db_option
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@json_option
def flagged(*, db: str, limit: int, as_json: bool) -> None:
    """List complete pairs that the votes do not decide, most important first."""
    from annotations.classes import class_names

    store = _open(db)
    total, pairs = store.flagged(0, limit)
    store.close()
    if as_json:
        click.echo(json.dumps({"total": total, "pairs": [dataclasses.asdict(p) for p in pairs]}, indent=2))
        return
    names = class_names()
    for pair in pairs:
        decided = f"  decided: {pair.verdict}" if pair.verdict else ""
        click.echo(
            f"{pair.question_id:>7}  {pair.image_id}  {names[pair.class_index]}  "
            f"{pair.yes} yes, {pair.no} no, {pair.maybe} maybe{decided}"
        )
    click.echo(f"{total:,} in all; decide one with: beyond campaign adjudicate NUMBER accepted")


@campaign.command()
@db_option
@click.argument("number", type=click.IntRange(1, 2**31 - 1))
@click.argument("verdict", type=click.Choice(["accepted", "rejected", "unsure", "none"]))
@click.option("--note", default="", help="Why; kept with the decision.")
def adjudicate(*, db: str, number: int, verdict: Any, note: str) -> None:
    """Decide a pair, whatever its votes say; none takes a decision back."""
    store = _open(db)
    store.adjudicate(number, None if verdict == "none" else verdict, note=note)
    store.audit("command line", "adjudicated", f"question {number}: {verdict}")
    store.close()
    click.echo(f"{number}: {verdict}")


@campaign.command()
@db_option
def check(*, db: str) -> None:
    """Compare all tables with the log of events; exit status 1 if they contradict each other."""
    from annotations.errors import CheckFailedError

    store = _open(db)
    problems = store.check()
    store.close()
    if problems:
        raise CheckFailedError("; ".join(problems))
    click.echo("all answers are where they should be")


# Votes -----------------------------------------------------------------------------------------------------


@campaign.command()
@db_option
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write."
)
@click.option(
    "--method",
    type=click.Choice(["k-of-n", "majority", "dawid-skene", "one-coin"]),
    default="k-of-n",
    show_default=True,
)
@click.option("--incomplete", is_flag=True, help="Also pairs that still take votes.")
@json_option
def aggregate(*, db: str, out: Path, method: Any, incomplete: bool, as_json: bool) -> None:
    """Turn the votes into label sets, ready for `beyond score --annotations OUT`."""
    from annotations import sources
    from annotations.campaign import exchange

    store = _open(db)
    judged = exchange.judge(store, method=method, incomplete=incomplete)
    name = store.config.name
    store.close()
    sources.write_folder(judged.label_sets, out, about={"campaign": name, "method": judged.aggregate.method})
    verdicts = {"accepted": 1, "unsure": 2, "rejected": 3}
    counts = {n: int((judged.label_sets.verdict == code).sum()) for n, code in verdicts.items()}
    facts = {
        "method": judged.aggregate.method,
        "pairs": len(judged.label_sets.verdict),
        **counts,
        "converged": judged.aggregate.converged,
        "iterations": len(judged.aggregate.trace),
        "revision": judged.label_sets.revision,
        "folder": str(out),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    if not judged.aggregate.converged:
        click.echo("note: the method did not converge; take its scores with care", err=True)
    said = ", ".join(f"{number:,} {n}" for n, number in counts.items())
    click.echo(f"{judged.aggregate.method}: {facts['pairs']:,} pairs, {said}; kept in {out}")


@campaign.command("export")
@db_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder (parquet), or file.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "label-studio", "mturk"]),
    default="parquet",
    show_default=True,
)
@click.option(
    "--method",
    type=click.Choice(["k-of-n", "majority", "dawid-skene", "one-coin"]),
    default="k-of-n",
    show_default=True,
    help="How judgements come from votes (parquet).",
)
@click.option("--incomplete", is_flag=True, help="Also judgements on pairs that still take votes (parquet).")
@click.option("--image-prefix", default="", help="What makes an address of an image's path (other formats).")
def export_(*, db: str, out: Path, kind: str, method: Any, incomplete: bool, image_prefix: str) -> None:
    """Write the votes: Parquet to publish, tasks for Label Studio, or the input of an MTurk batch.

    Raters appear under salted pseudonyms. No image is written.
    """
    from annotations.campaign import exchange

    store = _open(db)
    try:
        if store.config.study is not None and kind != "parquet":
            raise BeyondError(f"{kind} cannot show what a study shows; its raters answer in the app alone")
        if kind == "parquet":
            notes = exchange.export_parquet(store, out, method=method, incomplete=incomplete)
            for note in notes:
                click.echo(f"note: {note}", err=True)
        elif kind == "label-studio":
            tasks = exchange.label_studio_tasks(store, image_prefix=image_prefix)
            _write(out, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
            _write(out.with_suffix(".xml"), exchange.LABEL_STUDIO_CONFIG)
            click.echo(f"the labelling interface is in {out.with_suffix('.xml')}")
        else:
            _write(out, exchange.mturk_input(store, image_prefix=image_prefix))
    finally:
        store.close()
    click.echo(f"written: {out}")


@campaign.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@db_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "label-studio", "mturk"]),
    default="parquet",
    show_default=True,
)
def import_(*, file: Path, db: str, kind: Any) -> None:
    """Bring in votes that people gave elsewhere on this campaign's questions; they count where there is room.

    The same file twice is the same votes.
    """
    from annotations.campaign import exchange

    store = _open(db)
    try:
        totals = store.import_votes(exchange.read_votes(file, kind), origin=kind)
    finally:
        store.close()
    click.echo(", ".join(f"{number:,} {name}" for name, number in totals.items()))


@campaign.command()
@db_option
@click.argument("target", type=click.Path(path_type=Path))
def backup(*, db: str, target: Path) -> None:
    """Copy a SQLite campaign while it is served; the copy is checked, and can be served in its place.

    A PostgreSQL campaign is copied with pg_dump --format=custom, and restored with pg_restore.
    """
    store = _open(db)
    try:
        store.backup(target)
    finally:
        store.close()
    click.echo(f"{target}: {target.stat().st_size / 2**20:.1f} MiB; serve it with: --db {target}")


@campaign.command()
@db_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def freeze(*, db: str, yes: bool) -> None:
    """End a campaign for publication: no answer and no withdrawal comes after this."""
    store = _open(db)
    if not yes:
        click.confirm("Raters can then no longer answer, undo or withdraw. Freeze it?", abort=True)
    store.freeze()
    store.close()
    click.echo(f"frozen at {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}")


def _open(db: str) -> Store:
    from annotations.campaign.store import Store

    return Store.open(db)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
