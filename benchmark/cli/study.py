"""`beyond study`: make a study of explanations, and serve it to raters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotations.campaign.cli import DEFAULT_HOST, DEFAULT_PORT, run_server
from annotations.errors import BeyondError, first_problem
from benchmark.cli.study_answers import analyse, import_answers, power

if TYPE_CHECKING:
    from annotations.study.preregistration import Preregistration
    from annotations.study.stimuli import Stimuli
    from benchmark.explanations.pack import Manifest

_TIMES = 6  # as many items are explained as are shown
PLAN_KEYS = ("title", "hypotheses", "exclusions", "analysis", "stopping", "ethics", "notes")


@click.group()
def study() -> None:
    """Ask people, in arms, whether they agree with a model's predictions when they see why.

    \b
    beyond study power --agreement 0.3,0.4,0.4
    beyond study create runs/resnet50 --references DIR --out study
    beyond study serve study
    beyond study analyse study
    """  # noqa: D301 - click reads the escape


for command in (analyse, import_answers, power):
    study.add_command(command)


@study.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the study."
)
@click.option(
    "--pack",
    type=click.Path(path_type=Path, file_okay=False),
    help="Explanations. [default: RUN/explanations]",
)
@click.option(
    "--references",
    metavar="DIR",
    help="Where RUN has no explanations yet: images to take neighbours from, for the arm example.",
)
@click.option(
    "--arms",
    "arms_text",
    default="none,feature,example",
    show_default=True,
    help="The first is compared with.",
)
@click.option(
    "--items", type=click.IntRange(1), help="Items a rater judges. [default: 60, or as many as there are]"
)
@click.option("--raters", type=click.IntRange(1), default=30, show_default=True, help="Planned in each arm.")
@click.option("--checks", type=click.IntRange(0), help="Attention checks. [default: one in ten, at least 4]")
@click.option("--practice", type=click.IntRange(0), default=4, show_default=True, help="Practice questions.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of items.")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML: hypotheses, exclusions, analysis, stopping, ethics, notes of the preregistration.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML: name, consent, instructions, debriefing, pay, prolific and other settings of the campaign.",
)
@click.option("--db", metavar="URL", help="Database. [default: campaign.db in the folder]")
@click.option(
    "--device", default="auto", show_default=True, help="For the explanations: auto, cpu, cuda, mps."
)
@click.option(
    "--made-up", is_flag=True, help="A rehearsal: mark all answers as made up, never to be published."
)
def create(
    run: Path,
    *,
    out: Path,
    pack: Path | None,
    references: str | None,
    arms_text: str,
    items: int | None,
    raters: int,
    checks: int | None,
    practice: int,
    seed: int,
    plan_file: Path | None,
    config_file: Path | None,
    db: str | None,
    device: str,
    made_up: bool,
) -> None:
    """Make a study of the adversarial predictions of RUN: stimuli, preregistration, and a campaign.

    Asks about successful adversarial predictions, clean controls and shams with a plainly wrong label,
    balanced by class and confidence. Each rater is in one arm: the photograph alone (none), with a heat map
    beside it (feature), or with reference images of the label (example). The preregistration is written and
    hashed before anybody answers; look at it first. Pictures derive from the images: keep the folder to
    yourself.
    """
    from annotations.campaign.store import Store
    from annotations.study import gather, preregistration
    from annotations.study.preregistration import MANIFEST_FILE
    from annotations.study.stimuli import write_stimuli
    from benchmark.cli.score import say
    from benchmark.explanations.pack import read_pack
    from benchmark.explanations.study import ITEMS, checks_for, choose, make_stimuli
    from benchmark.progress import meter

    arms = _parse_arms(arms_text)
    plan_values, settings = _read_yaml(plan_file), _read_yaml(config_file)
    url = gather.database(out, db)
    _require_new(out, url, db)
    if pack is None:
        pack = run / "explanations"
        if not (pack / MANIFEST_FILE).is_file():
            from benchmark.cli.explain import make_pack

            if "example" in arms and references is None:
                raise BeyondError(
                    f"{run} has no explanations yet, and the arm example needs reference images: pass "
                    "--references DIR, or make them with: beyond explain RUN --references DIR"
                )
            # Far more than are shown, so that they can be chosen; not all of 50,000.
            most = _TIMES * ((items or ITEMS) + (checks or checks_for(items or ITEMS)) + practice)
            make_pack(run, pack, references=references, most=most, complete=True, device=device)
    manifest = read_pack(pack)
    _require_run(manifest, run, pack)
    chosen = choose(manifest, arms=arms, items=items, checks=checks, practice=practice, seed=seed)
    digest = preregistration.pack_sha256(pack)
    stimuli = make_stimuli(manifest, chosen, sha256=digest, arms=arms, seed=seed)
    plan = _plan(stimuli, raters=raters, made_up=made_up, values=plan_values, where=plan_file)
    config = gather.study_config(plan, stimuli, settings, where=str(config_file or "settings"))
    files = {picture.file for picture in stimuli.pictures}
    with meter("Pictures", len(files), unit="pictures") as progress:
        write_stimuli(out / preregistration.PACK_FOLDER, stimuli, pack, advance=progress.advance)
    preregistration.write(out, plan, answered=False, overwrite=True)
    images, pairs, gold = gather.questions(stimuli)
    folder = str((out / preregistration.PACK_FOLDER).resolve())
    store = Store.create(url, config, images=images, pairs=pairs, gold=gold, images_spec=folder)
    gather.check(out, store)
    store.close()

    kinds = ", ".join(f"{number} {name}" for name, number in plan.items.items())
    say(
        f"{plan.items_per_rater} items for each rater ({kinds}), {len(chosen.attention)} attention checks, "
        f"{len(chosen.practice)} for practice; {len(arms)} arms: {', '.join(arms)}; {len(files):,} pictures "
        f"in {out}"
    )
    say(
        f"preregistered before any answer: {out / preregistration.PREREGISTRATION_FILE}, sha256 {plan.sha256}"
    )
    say(f"raters planned in each arm: {raters}; see what they can find with: beyond study power")
    where = "" if db is None else f" --db {db}"
    say(f"next: beyond study serve {out}{where}, and beyond campaign invite --db {db or out} --count N")


@study.command()
@click.argument("folder", metavar="STUDY", type=click.Path(path_type=Path, file_okay=False))
@click.option("--db", metavar="URL", help="Database. [default: campaign.db in the folder]")
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True)
@click.option("--public-url", metavar="URL", help="Address that raters use, where a proxy is in front.")
@click.option("--trust-proxy", metavar="ADDRESS", help="Believe this proxy about raters' addresses.")
def serve(
    folder: Path, *, db: str | None, host: str, port: int, public_url: str | None, trust_proxy: str | None
) -> None:
    """Serve a study to raters, as `beyond campaign serve --db STUDY` does, and print a manager's invitation.

    Nothing is served if a picture, the list of stimuli or the preregistration was changed or is missing.
    """
    from annotations.study import gather
    from annotations.study.preregistration import PACK_FOLDER

    run_server(
        gather.open_study(folder, db),
        images_spec=str(folder / PACK_FOLDER),
        host=host,
        port=port,
        public_url=public_url,
        trust_proxy=trust_proxy,
    )


def _parse_arms(text: str) -> Any:
    from annotations.study.preregistration import ARMS

    arms = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or len(set(arms)) != len(arms) or len(arms) < 2:
        what = f"no such arm {unknown[0]!r}" if unknown else f"{text!r} are not two or more different arms"
        raise BeyondError(f"{what}; arms are {', '.join(ARMS)}")
    return arms


def _read_yaml(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    from annotations.files import read_settings

    return read_settings(file, example="ethics: …")


def _require_new(out: Path, url: str, db: str | None) -> None:
    """Refuse to touch a study that is there: somebody may have answered."""
    from annotations.campaign.config import STUDY_FILE
    from annotations.campaign.database import Database, parse_url

    if (out / STUDY_FILE).exists():
        raise BeyondError(f"{out} holds a study already; choose another --out")
    if db is None:
        return
    database = Database(parse_url(url))
    try:
        there = not database.is_sqlite or Path(str(database.url.database)).is_file()
        if there and database.revision() is not None:
            raise BeyondError(f"{database.name} holds a campaign already; name another database with --db")
    finally:
        database.close()


def _require_run(manifest: Manifest, run: Path, pack: Path) -> None:
    """Refuse explanations of another model than that of the run, or of other attacks."""
    from annotations.classes import class_names
    from benchmark import runs
    from benchmark.cli.explain import broken_rows

    info = runs.read_run(run)
    if manifest.model.get("weights_sha256") != info.model.weights_sha256:
        raise BeyondError(
            f"{pack} explains {manifest.model.get('name', 'another model')}, and {run} is of "
            f"{info.model.name} with other weights; pass the pack of this run"
        )
    _, rows = broken_rows(run, runs.load_labels(runs.default_annotations(info)))
    reached = {row.image_id: row.adversarial_class for row in rows}
    for item in manifest.items:
        if item.kind == "adversarial" and reached.get(item.image_id) != item.shown_class:
            there = reached.get(item.image_id)
            raise BeyondError(
                f"{pack} was not made from {run}: it shows {item.image_id} as "
                f"{class_names()[item.shown_class]}, and the run "
                f"{'did not break it' if there is None else f'made it {class_names()[there]}'}; pass the "
                "pack of this run"
            )


def _plan(
    stimuli: Stimuli,
    *,
    raters: int,
    made_up: bool,
    values: dict[str, Any],
    where: Path | None,
) -> Preregistration:
    """The preregistration, with what the file of the plan says in place of the defaults."""
    from pydantic import ValidationError

    from annotations.study.preregistration import KINDS, Preregistration, default_hypotheses

    unknown = [name for name in values if name not in PLAN_KEYS]
    if unknown:
        raise BeyondError(f"{where}: no such key {unknown[0]!r}; a plan has {', '.join(PLAN_KEYS)}")
    items = stimuli.of_kind("adversarial", "clean", "sham")
    checks = len(stimuli.of_kind("attention"))
    settings = stimuli.source.settings
    exclusions = {
        "minimum_attention": max(1, checks // 2) if checks else 0,
        "attention_floor": 0.7 if checks else 0.0,
        "minimum_answers": max(1, len(items) // 2),
    }
    written = {
        "title": f"Explanations of {stimuli.source.model.get('name', 'a classifier')}",
        "hypotheses": default_hypotheses(stimuli.arms),
        "notes": (
            f"Model {stimuli.source.model.get('name')}, weights "
            f"{stimuli.source.model.get('weights_sha256')}. "
            f"Attack: {settings.get('suite')}, {settings.get('threat')} {settings.get('epsilon')}. "
            f"Heat maps: {settings.get('method')}. Neighbours: up to {settings.get('neighbours')}. "
            f"Label sets: {settings.get('annotations')}."
        ),
    }
    written |= {name: value for name, value in values.items() if name != "exclusions"}
    given = values.get("exclusions") or {}
    if not isinstance(given, dict):
        raise BeyondError(f"{where}: exclusions: write a name and a value on each line under it")
    try:
        return Preregistration.model_validate(
            {
                **written,
                "exclusions": exclusions | given,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "pack_sha256": stimuli.sha256,
                "arms": stimuli.arms,
                "raters_per_arm": raters,
                "items_per_rater": len(items),
                "items": {kind: len(stimuli.of_kind(kind)) for kind in KINDS},
                "made_up": made_up,
            }
        )
    except ValidationError as error:
        raise BeyondError(f"{where or 'the plan'}: {first_problem(error)}") from None
