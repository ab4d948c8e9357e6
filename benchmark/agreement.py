"""Agreement of people with a run's adversarial predictions, from the answers of a study put into the run.

```
RUN/agreement/part-00000-….parquet    one row an answer, with its item; the plan is in the file's metadata
```

The numbers are computed from these rows whenever the run is scored, as a part of the robustness track. They
are given only while the items asked about are predictions that the run's records of attacks hold, and never
for answers that are marked as made up.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from annotations.errors import BeyondError
from annotations.study.answers import ANSWERS, ITEMS, StudyAnswers, study_answers
from annotations.study.preregistration import MADE_UP_NOTE, Preregistration
from annotations.study.results import ArmShare, Difference, Results, analyse
from annotations.tables import read_parquet
from benchmark import records
from benchmark.attack_records import AttackRecords, has_attacks, read_attacks
from benchmark.scorecard import Cell, Metric, Track
from benchmark.tracks import ROBUSTNESS

AGREEMENT = "agreement"
SCHEMA = pa.schema([*ANSWERS, *(field for field in ITEMS if field.name != "item")])
"""Columns of a part: an answer, and the item it is to."""

MAX_RATERS, MAX_ITEMS, MAX_PLAN_BYTES = 5_000, 2_000, 1_000_000
"""What a study can have at most: records may come from strangers, and scoring takes as long as they are."""

_PLAN = b"beyond.preregistration"

Table = list[dict[str, Cell]]


@dataclass(frozen=True)
class AgreementPart:
    """What a study adds to the robustness track."""

    metrics: dict[str, Metric]
    tables: dict[str, Table]
    notes: list[str]

    def added_to(self, track: Track) -> Track:
        """The robustness track with it."""
        merged = {**track.metrics, **self.metrics}
        order = [info.name for info in ROBUSTNESS.metrics]
        return track.model_copy(
            update={
                "metrics": {name: merged[name] for name in order if name in merged},
                "tables": {**track.tables, **self.tables},
                "notes": [*track.notes, *self.notes],
            }
        )


def has_agreement(run: Path) -> bool:
    """Whether answers of a study were put into a run."""
    return bool(records.part_paths(run / AGREEMENT))


def put_into_run(run: Path, study: StudyAnswers, plan: Preregistration | None) -> None:
    """Put a study's answers into a run, in place of those of another one.

    Raises:
        BeyondError: The run has no attacks, or the study asked about other predictions than its.
    """
    from benchmark import runs

    runs.read_run(run)
    if not has_attacks(run):
        raise BeyondError(f"{run} holds no attacks, so that no study can be of its adversarial predictions")
    problem = foreign_item(study.items, read_attacks(run))
    if problem is not None:
        raise BeyondError(f"the study does not belong to {run}: {problem}")
    frame = study.answers.merge(study.items, on="item", how="left", validate="many_to_one")
    table = pa.Table.from_pandas(frame[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    table = table.replace_schema_metadata({} if plan is None else {_PLAN: plan.to_json().encode()})
    with runs.locked(run):
        shutil.rmtree(run / AGREEMENT, ignore_errors=True)
        records.write_part(run / AGREEMENT, 0, table)


def read_agreement(run: Path) -> tuple[StudyAnswers, Preregistration | None]:
    """The answers that were put into a run, and the plan they were given under.

    Raises:
        BeyondError: There are none, or they are damaged.
    """
    paths = records.part_paths(run / AGREEMENT)
    again = "put them in again with: beyond study analyse STUDY --run RUN"
    if len(paths) != 1:
        raise BeyondError(f"{run} holds {len(paths)} files of answers instead of one; {again}")
    if not records.part_is_sound(paths[0]):
        raise BeyondError(f"{paths[0]} is damaged (checksum); {again}")
    types = {field.name: field.type for field in SCHEMA}
    filled = [field.name for field in SCHEMA if not field.nullable]
    table = read_parquet(paths[0], types, filled=filled, remedy=again)
    if set(table.column_names) != set(SCHEMA.names):
        raise BeyondError(f"{paths[0]} has other columns than answers of a study; {again}")
    plan = None
    text = (table.schema.metadata or {}).get(_PLAN)
    if text is not None:
        if len(text) > MAX_PLAN_BYTES:
            raise BeyondError(f"{paths[0]} holds a plan of {len(text):,} bytes, which is none; {again}")
        try:
            plan = Preregistration.model_validate_json(text)
        except ValidationError:
            raise BeyondError(f"{paths[0]} holds a plan that is none; {again}") from None
        if plan.to_json().encode() != text:
            raise BeyondError(f"{paths[0]} holds a plan that was changed; {again}")
    frame = table.to_pandas()
    if frame["rater"].nunique() > MAX_RATERS or frame["item"].nunique() > MAX_ITEMS:
        raise BeyondError(f"{paths[0]} holds more raters or items than a study can have")
    items = frame[ITEMS.names].drop_duplicates().reset_index(drop=True)
    return study_answers(items, frame[ANSWERS.names], where=str(paths[0])), plan


def foreign_item(items: pd.DataFrame, attacks: AttackRecords) -> str | None:
    """What is wrong with the first item that is not of a run's records, or None.

    Adversarial items must be what an attack of the run made; clean ones and shams must name what the run
    predicts for the unaltered image.
    """
    table = attacks.table
    broken = table[(table["objective"] == "original") & (table["status"] == "broken")]
    made = set(zip(broken["image_id"], broken["adversarial_class"].astype(int)))
    clean = set(zip(table["image_id"], table["clean_class"].astype(int)))
    columns = (
        items[name].tolist() for name in ("item", "kind", "image_id", "shown_class", "predicted_class")
    )
    for item, kind, image_id, shown, predicted in zip(*columns):
        if kind == "adversarial":
            if shown < 0 or predicted not in (-1, shown):
                return f"item {item} does not say which prediction it shows (shown_class)"
            if (image_id, shown) not in made:
                return (
                    f"no attack turned {image_id} into class {shown} (item {item}); it is a study of another "
                    "model or another attack"
                )
        elif kind in ("clean", "sham") and predicted >= 0 and (image_id, predicted) not in clean:
            return f"{image_id} was not predicted as class {predicted} (item {item})"
    if not (items["kind"] == "adversarial").any():
        return "it asks about no adversarial prediction"
    return None


def score_agreement(
    study: StudyAnswers, plan: Preregistration | None, attacks: AttackRecords
) -> AgreementPart:
    """Agreement as a part of the robustness track, from answers alone.

    Args:
        study: The answers.
        plan: What was preregistered.
        attacks: The run's records, which hold the predictions that were asked about.
    """
    problem = foreign_item(study.items, attacks)
    if problem is not None:
        note = f"The answers of a study in this run are left out: {problem}."
        return AgreementPart({}, {}, [note])
    try:
        results = analyse(study, plan, descriptions=False)
    except BeyondError as error:
        return AgreementPart({}, {}, [f"The answers of a study in this run are left out: {error}."])
    return part_of(results)


def part_of(results: Results) -> AgreementPart:
    """The metrics, tables and notes that results of a study give."""
    tables: dict[str, Table] = {
        "agreement": [
            _share_row(measure, share)
            for measure, shares in results.measures.items()
            for share in shares
            if share.answers
        ],
        "agreement_contrasts": [_contrast_row(contrast) for contrast in results.contrasts],
        "agreement_study": [
            {
                "title": results.title,
                "preregistration": results.preregistration,
                "stimuli": results.pack,
                "made_up": results.made_up,
                "raters": sum(results.raters.values()),
                "answers": results.answers,
                "raters_left_out": sum(e.raters for e in results.excluded),
                "answers_left_out": sum(e.answers for e in results.excluded),
                "hypotheses": len(results.hypotheses),
                "resamples": results.analysis.resamples,
                "permutations": results.analysis.permutations,
            }
        ],
    }
    if results.made_up:
        return AgreementPart({}, tables, [f"The answers of the study in this run are {MADE_UP_NOTE}."])
    metrics = {}
    for share in results.measures["agreement"]:
        if share.value is not None:
            metrics[f"agreement_{share.arm}"] = Metric(
                value=share.value,
                ci_low=share.low,
                ci_high=share.high,
                n=share.items,
                method=share.method,
                raters=share.raters,
            )
    for arm in ("feature", "example"):
        gain = results.contrast(arm, "none")
        if gain is not None:
            one, other = results.share(arm), results.share("none")
            metrics[f"agreement_gain_{arm}"] = Metric(
                value=gain.value,
                ci_low=gain.low,
                ci_high=gain.high,
                n=max(one.items, other.items),
                method=gain.method,
                raters=one.raters + other.raters,
            )
    return AgreementPart(metrics, tables, _notes(results))


def _notes(results: Results) -> list[str]:
    asked = sum(share.raters for share in results.measures["agreement"])
    study = "a preregistered study" if results.preregistration else "a study that was not preregistered"
    notes = [
        f"Agreement is what {asked:,} people answered in {study}, on some of the adversarial predictions; "
        "intervals are over raters and images."
    ]
    left = sum(e.raters for e in results.excluded)
    if left:
        notes.append(f"{left:,} raters are left out of it by the study's rules.")
    return notes


def _share_row(measure: str, share: ArmShare) -> dict[str, Cell]:
    return {
        "measure": measure,
        "arm": share.arm,
        "value": share.value,
        "ci_low": share.low,
        "ci_high": share.high,
        "method": share.method,
        "raters": share.raters,
        "images": share.items,
        "answers": share.answers,
        "total": share.total,
    }


def _contrast_row(contrast: Difference) -> dict[str, Cell]:
    return {
        "measure": contrast.measure,
        "arm": contrast.arm,
        "versus": contrast.versus,
        "value": contrast.value,
        "ci_low": contrast.low,
        "ci_high": contrast.high,
        "method": contrast.method,
        "p": contrast.p,
        "p_holm": contrast.p_holm,
        "hypothesis": contrast.hypothesis,
    }


def is_made_up(tables: Mapping[str, Sequence[Mapping[str, Cell]]]) -> bool:
    """Whether the tables of a robustness track say that a program answered."""
    return any(row.get("made_up") is not False for row in tables.get("agreement_study", []))


def add_agreement(run: Path, track: Track) -> Track:
    """The robustness track of a run with the agreement that was measured, if it was.

    Raises:
        BeyondError: The answers are damaged.
    """
    if not has_agreement(run):
        return track
    study, plan = read_agreement(run)
    return score_agreement(study, plan, read_attacks(run)).added_to(track)
