"""A question may show a picture beside its image, as studies of explanations do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Bring the schema forward."""
    op.add_column("questions", sa.Column("beside", sa.String(length=1000), nullable=False, server_default=""))
