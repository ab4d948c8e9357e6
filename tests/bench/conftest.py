"""What the JSON of a run says about the machine, so that the table can say it, too."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

PACKAGES = (
    "beyond-accuracy", "torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "ray", "foolbox",
    "pyautoattack", "grad-cam", "crowd-kit", "statsmodels", "itables",
)  # fmt: skip


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    """Add cores, memory, load and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = ""
    if Path("/proc/driver/nvidia").is_dir():
        import torch

        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    machine_info["beyond"] = {
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "gpu": device,
    }
