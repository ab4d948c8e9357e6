"""How models are run, and what is known of one that is loaded: the same for every engine. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker runs; as `benchmark.engine.Settings`, but it can be made without torch.

    Attributes:
        batch_size: Images a forward pass; None lets the first worker find out.
        workers: Decoding processes of a worker; None is none on the CPU, on a GPU what its machine
            has to spare.
        device: `auto`, `cpu` or `cuda`.
        threads: Threads of the network on the CPU, and CPUs of a worker; None is one.
        top_k: Classes kept a record.
        skip_errors: Leave unreadable images out.
        precision: `float32` or `bfloat16`.
        compile: Use torch.compile.
        quiet: No progress.
    """

    batch_size: int | None = 64
    workers: int | None = None
    device: str = "auto"
    threads: int | None = None
    top_k: int = 1000
    skip_errors: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Loaded:
    """What a worker says of a model that it has loaded.

    Attributes:
        model: As `Classifier.describe`.
        device: Name of the device.
        threads: Threads of the network.
        workers: Decoding processes.
        batch_size: Images a forward pass.
        precision_check: Images compared with float32, how many predictions changed, and the largest
            difference of a logit; None if nothing was compared.
    """

    model: Mapping[str, Any]
    device: str
    threads: int
    workers: int
    batch_size: int
    precision_check: tuple[int, int, float] | None = None
