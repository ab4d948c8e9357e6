"""Values that are asked for again and again, kept for a while."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The latest values, each for some seconds at most, for what is asked again and again."""

    def __init__(self, seconds: float, size: int = 20_000) -> None:
        self.seconds, self.size = seconds, size
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, or None if there is none (any more)."""
        with self._lock:
            found = self._values.get(key)
        return found[1] if found and time.monotonic() - found[0] < self.seconds else None

    def put(self, key: K, value: V) -> None:
        """Keep a value, unless a younger one is kept."""
        with self._lock:
            found = self._values.get(key)
            if found is None or time.monotonic() - found[0] >= self.seconds:
                self._values[key] = (time.monotonic(), value)
                self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget a value."""
        with self._lock:
            self._values.pop(key, None)
