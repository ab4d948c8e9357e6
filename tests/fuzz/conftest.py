"""How many inputs are tried: a few hundred, always the same, or new ones for minutes (`make fuzz`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "beyond-few", max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=SLOW
)
settings.register_profile(
    "beyond-many",
    max_examples=int(os.environ.get("BEYOND_FUZZ", "0")) or 1000,
    derandomize=False,
    deadline=None,
    suppress_health_check=SLOW,
    print_blob=True,
)
settings.load_profile("beyond-many" if os.environ.get("BEYOND_FUZZ") else "beyond-few")
