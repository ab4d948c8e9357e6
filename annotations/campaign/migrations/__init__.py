"""Alembic migrations of a campaign's database."""
