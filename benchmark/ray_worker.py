"""A worker of the Ray engine: keeps models loaded, and makes parts of their runs (`benchmark.engine_ray`)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from annotations.errors import BeyondError, one_line
from benchmark.engine_settings import Loaded, WorkerSettings
from benchmark.images import Chunk, Handle
from benchmark.parts import Part

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from benchmark.classifier import Classifier
    from benchmark.decoding import Decoder
    from benchmark.engine import Forward, Settings
    from benchmark.parts import Ranked

_T = TypeVar("_T")

LANES = 2
"""Parts that a worker has in hand: one is computed while the next is decoded."""


@dataclass(frozen=True)
class Failed:
    """Why a worker could not do something; comes back as a value, so that it is told from a lost worker."""

    message: str
    trace: str = ""


class Worker:
    """A process on some machine of the cluster, with its share of the devices. An actor of Ray."""

    def __init__(self, settings: WorkerSettings, folder: str) -> None:
        # The driver's folder, so that relative paths mean what they mean there.
        with suppress(OSError):
            os.chdir(folder)
        self._settings = settings
        self._models: dict[str, _Model] = {}
        self._lock = Lock()
        # One thread computes, whatever the lane: threads of a lane each would fight for the cores.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="beyond-compute")
        self._place = self._compute.submit(_place, settings).result()

    def hello(self, handle: Handle | None) -> tuple[str, bool]:
        """The worker's machine, and whether it can read the image at its place."""
        ray: Any = importlib.import_module("ray")
        node = str(ray.get_runtime_context().get_node_id())
        try:
            return node, handle is None or handle.read() is not None
        except (OSError, BeyondError):
            return node, False

    def load(self, spec: str, batch_size: int | None, compare: Sequence[Handle]) -> Loaded | Failed:
        """Load a model and say what it is."""
        return self._use(spec, lambda model: model.describe(batch_size, compare))

    def score(self, spec: str, batch_size: int, chunk: Chunk) -> tuple[Part, list[str]] | Failed:
        """Make one part; with it comes what there is to say."""
        return self._use(spec, lambda model: model.score(batch_size, chunk))

    def _use(self, spec: str, work: Callable[[_Model], _T]) -> _T | Failed:
        with self._lock:
            if spec not in self._models:
                # Those nobody uses any more make room; one is loaded while the last parts of another are
                # made.
                for idle in [name for name, model in self._models.items() if not model.users]:
                    self._models.pop(idle).close()
                self._models[spec] = _Model(spec, self._settings, self._place, self._compute)
            model = self._models[spec]
            model.users += 1
        try:
            return work(model)
        except BeyondError as error:
            return Failed(str(error))
        except Exception as error:  # noqa: BLE001 - a model of the user's may raise anything
            import traceback

            reason = one_line(error, 300)
            return Failed(f"{type(error).__name__}: {reason}", traceback.format_exc())
        finally:
            with self._lock:
                model.users -= 1


@dataclass(frozen=True)
class _Place:
    """A worker's device, its name, and how many processes decode for it."""

    device: torch.device
    name: str
    threads: int
    workers: int


def _place(settings: WorkerSettings) -> _Place:
    """Set torch up in the thread that computes."""
    import torch

    from benchmark.devices import choose_device, default_workers, device_name

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = choose_device(settings.device)
    workers = settings.workers
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or 1)
    if workers is None:
        ray: Any = importlib.import_module("ray")
        context = ray.get_runtime_context()
        here: dict[str, float] = next(
            (n["Resources"] for n in ray.nodes() if n["NodeID"] == context.get_node_id()), {}
        )
        share = float(context.get_assigned_resources().get("GPU", 1)) / max(1.0, float(here.get("GPU", 1)))
        workers = default_workers(device, cores=share * float(here.get("CPU", 2)))
    return _Place(device, device_name(device), torch.get_num_threads(), workers)


class _Model:
    """A model in a worker: loaded when first used, and kept."""

    def __init__(
        self, spec: str, settings: WorkerSettings, place: _Place, compute: ThreadPoolExecutor
    ) -> None:
        self.users = 0
        self._spec = spec
        self._settings = settings
        self._place = place
        self._compute = compute
        self._loading = Lock()
        self._classifier: Classifier | None = None
        self._forward: Forward | None = None
        self._batch_size = 0
        self._open = ExitStack()
        self._decoders: SimpleQueue[Decoder] = SimpleQueue()
        self._lines: SimpleQueue[str] = SimpleQueue()

    def close(self) -> None:
        """End the decoding processes."""
        self._open.close()

    def _load(self) -> Classifier:
        with self._loading:
            if self._classifier is None:
                from benchmark.models import load

                self._classifier = load(self._spec)
            return self._classifier

    def _engine_settings(self, batch_size: int) -> Settings:
        from benchmark.engine import Settings

        return Settings(
            batch_size=batch_size,
            workers=self._place.workers,
            device=self._place.device,
            top_k=self._settings.top_k,
            skip_errors=self._settings.skip_errors,
            precision=self._settings.precision,
            compile=self._settings.compile,
            quiet=True,
        )

    def _ready(self, batch_size: int) -> Forward:
        """The classifier on the device, for batches of a size, with a decoder for each lane."""
        classifier = self._load()
        with self._loading:
            if self._forward is None or batch_size != self._batch_size:
                from benchmark.decoding import Decoder
                from benchmark.engine import Forward

                make = partial(Forward, classifier, self._engine_settings(batch_size), self._lines.put)
                self._forward = self._compute.submit(make).result()
                self._batch_size = batch_size
                self._open.close()
                self._decoders = SimpleQueue()
                for lane in range(LANES):
                    # Together the lanes have as many processes as asked for, each at least one if any.
                    share = (self._place.workers + LANES - 1 - lane) // LANES
                    workers = max(1, share) if self._place.workers else 0
                    decoder = Decoder(classifier.preprocessing, workers=workers, batch_size=batch_size)
                    self._decoders.put(self._open.enter_context(decoder))
            return self._forward

    def describe(self, batch_size: int | None, compare: Sequence[Handle]) -> Loaded:
        """Load, choose the batch size if nobody did, and compare the precision with float32 if asked to."""
        classifier = self._load()
        if batch_size is None:
            batch_size = self._compute.submit(self._choose_batch_size, classifier).result()
        self._ready(batch_size)
        check = None
        if compare:
            from benchmark.precision import count_changes

            settings = self._engine_settings(batch_size)
            found = self._compute.submit(count_changes, classifier, compare, settings).result()
            check = (found.images, found.changed, found.logit_error)
        place = self._place
        return Loaded(
            classifier.describe(), place.name, place.threads, place.workers, batch_size, precision_check=check
        )

    def _choose_batch_size(self, classifier: Classifier) -> int:
        from benchmark.batch_size import automatic
        from benchmark.engine import Forward

        return automatic(
            lambda size: Forward(classifier, self._engine_settings(size), lambda _: None),
            classifier.preprocessing.input_size,
            self._place.device,
        )

    def score(self, batch_size: int, chunk: Chunk) -> tuple[Part, list[str]]:
        """Make one part."""
        from benchmark.engine import score_chunks

        forward = _Elsewhere(self._ready(batch_size), self._compute)
        decoder = self._decoders.get()
        try:
            (part,) = score_chunks([chunk], decoder, forward, skip_errors=self._settings.skip_errors)
        finally:
            self._decoders.put(decoder)
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        return part, lines


class _Elsewhere:
    """A `Forward` that computes in a thread of its own."""

    def __init__(self, forward: Forward, compute: ThreadPoolExecutor) -> None:
        self._forward = forward
        self._compute = compute
        self.ahead = forward.ahead

    def start(
        self, pixels: npt.NDArray[np.uint8], image_ids: npt.NDArray[np.object_]
    ) -> Callable[[], Ranked]:
        """See `Forward.start`."""
        return self._compute.submit(self._forward.start, pixels, image_ids).result()
