"""Number raters' answers, so that the latest are found at once; forgive gold; only ever add to events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SQLITE = """
CREATE TRIGGER events_no_{verb} BEFORE {verb} ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added to'); END
"""
_POSTGRESQL_FUNCTION = """
CREATE FUNCTION events_are_kept() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'events are only ever added to'; END $$
"""
_POSTGRESQL = """
CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events
FOR EACH ROW EXECUTE FUNCTION events_are_kept()
"""


def upgrade() -> None:
    """Bring the schema forward."""
    op.add_column("campaign", sa.Column("images", sa.Text(), nullable=False, server_default=""))
    op.add_column("raters", sa.Column("sequence", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("raters", sa.Column("forgiven_seen", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("raters", sa.Column("forgiven_right", sa.Double(), nullable=False, server_default="0"))
    op.add_column("assignments", sa.Column("sequence", sa.Integer(), nullable=True))
    op.execute(
        """
        UPDATE assignments SET sequence = numbered.number FROM (
            SELECT id, row_number() OVER (PARTITION BY rater_ref ORDER BY answered_at, position, id) AS number
            FROM assignments WHERE answer IS NOT NULL
        ) AS numbered
        WHERE numbered.id = assignments.id
        """
    )
    op.execute(
        """
        UPDATE raters SET sequence = (
            SELECT count(*) FROM assignments WHERE rater_ref = raters.id AND answer IS NOT NULL
        )
        """
    )
    op.create_index("assignments_latest", "assignments", ["rater_ref", "sequence"])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(_SQLITE.format(verb=verb))
    else:
        op.execute(_POSTGRESQL_FUNCTION)
        op.execute(_POSTGRESQL)
