"""Fixtures of the annotation tests."""

from tests.hub_server import hub

__all__ = ["hub"]
