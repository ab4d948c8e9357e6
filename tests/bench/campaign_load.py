"""Fifty made-up raters, two answers a second each, over real HTTP; the server is killed five times.

Prints what was acknowledged, recorded and counted, and how long answers took while the server was up:

    python -m tests.bench.campaign_load            SQLite and PostgreSQL, about four minutes
    python -m tests.bench.campaign_load --raters 20 --kills 1 --databases sqlite
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.annotations.web.raters import Report, load
from tests.postgresql import PostgreSQL, running_server


def main() -> int:
    """Run on each database; exit status 1 if anything acknowledged was lost, or redundancy is not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--pace", type=float, default=0.5, help="seconds between two answers of a rater")
    parser.add_argument("--up", type=float, default=9.0, help="seconds between two kills")
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sound = True
    with tempfile.TemporaryDirectory() as name:
        for kind in options.databases:
            with database(kind, Path(name)) as url:
                report = load(
                    url,
                    raters=options.raters,
                    pairs=options.pairs,
                    kills=options.kills,
                    pace=options.pace,
                    up=options.up,
                )
            sound &= not report.problems
            if options.json:
                print(json.dumps({"database": kind, **dataclasses.asdict(report)}))  # noqa: T201
            else:
                print(line(kind, report))  # noqa: T201
    return 0 if sound else 1


class database:
    """An empty database of a kind, as a context."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.stack = ExitStack()

    def __enter__(self) -> str:
        if self.kind == "sqlite":
            return str(self.folder / "campaign.db")
        return PostgreSQL(self.stack.enter_context(running_server()).get_uri()).new_database()

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def line(kind: str, report: Report) -> str:
    """What a person wants to know."""
    times = "; ".join(
        f"{name}s: n {report.requests[name]:,}, 50 % {q[0]:.1f} ms, 90 % {q[1]:.1f}, 99 % {q[2]:.1f}, "
        f"most {q[3]:.1f}"
        for name, q in report.quantiles.items()
    )
    return (
        f"{kind}: {report.raters} raters, {report.kills} kills, {report.seconds:.0f} s; "
        f"{report.acknowledged:,} answers acknowledged, {report.recorded:,} of them recorded once; "
        f"{report.counted:,} counted of {report.wanted:,} wanted; {report.failures:,} requests broke off\n"
        f"  {times}\n"
        f"  {'; '.join(report.problems) or 'no contradiction'}"
    )


if __name__ == "__main__":
    sys.exit(main())
