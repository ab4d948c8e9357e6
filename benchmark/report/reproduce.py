"""The command that makes a scorecard again, from what the scorecard says about itself."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from benchmark.report import robustness
from benchmark.report.text import clean
from benchmark.scorecard import Scorecard

_PREDICTION_FILES = (".npy", ".csv", ".parquet")


def command(scorecard: Scorecard) -> str:
    """The `beyond score` command of a scorecard, quoted for a POSIX shell.

    The folder of the images is the reader's own, so it appears as DIR, unless it is the sample set.
    """
    spec = clean(scorecard.model.spec)
    words = ["beyond", "score"]
    if spec.lower().endswith(_PREDICTION_FILES):
        words += ["--predictions", shlex.quote(PurePath(spec).name)]
    else:
        words += [shlex.quote(spec), "--images", "sample" if scorecard.images.name == "sample" else "DIR"]
    sources = [clean(source) for source in sorted(scorecard.annotations.sources)]
    if sources:
        words += ["--annotations", shlex.quote(",".join(sources))]
    track = scorecard.tracks.get("robustness")
    rows = robustness.curve(track) if track else []
    criticism = scorecard.tracks.get("criticism")
    tier = (
        next((clean(row.get("tier")) for row in criticism.tables.get("boundary", [])), "")
        if criticism
        else ""
    )
    distances = track.tables.get("minimal") if track and not rows else None
    tracks = ["rectified", *(["robustness"] if rows or distances else []), *(["criticism"] if tier else [])]
    if len(tracks) > 1:
        named = rows[0].suite if rows else "minimal" if distances else tier
        words += ["--tracks", ",".join(tracks), "--tier", shlex.quote(named)]
    if rows:
        words += ["--norm", shlex.quote(rows[0].threat), "--eps", ",".join(row.short for row in rows)]
        if rows[0].seed:
            words += ["--seed", str(rows[0].seed)]
    elif distances:
        words += ["--norm", shlex.quote(clean(distances[0].get("threat", "")))]
    return " ".join([*words, "--out", "RUN"])
