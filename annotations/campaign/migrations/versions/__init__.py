"""Revisions of the schema of a campaign's database."""
