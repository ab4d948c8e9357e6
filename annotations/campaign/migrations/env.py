"""Runs migrations on the connection that `Database.migrate` gives."""

from __future__ import annotations

from alembic import context

from annotations.campaign.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
