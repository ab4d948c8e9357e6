"""Which images a classifier gets right, as packed bits: what paired tests of any two entries need.

`correct.bits`, version 1, all numbers little-endian:

```
bytes 0–7     the ASCII text BYNDBIT1
bytes 8–11    uint32, length H of the header
bytes 12–     the header: H bytes of JSON in UTF-8, padded with spaces so that 12 + H is a multiple of 8
from 12 + H   the sections, one after the other, at the offsets that the header gives
```

The header:

```
{"annotations": {"real": "sha256:…", …},     revision of each source the bits were computed against
 "ids": "ILSVRC2012_val" | ["…", …],          image i is ILSVRC2012_val_{i + 1:08d}, or the ids, sorted
 "n": 50000,
 "sections": [{"bytes": 6250, "kind": "bits", "name": "top1", "offset": 0}, …],
 "version": 1}
```

`offset` counts from 12 + H. A section of kind `bits` holds ⌈n / 8⌉ bytes; image i is bit i mod 8 (least
significant first) of byte ⌊i / 8⌋, and bits past n are 0. A section of kind `indices` holds ascending uint32.

| Section | Kind | Image i is in it if |
|---|---|---|
| `top1` | bits | the prediction is the original label |
| S, one a source (`real`, `mla`, …) | bits | S accepts the prediction, and can evaluate the image |
| `S_open` | indices | S can evaluate the image, but nobody judged the prediction; absent for a closed world |

Which images S can evaluate does not depend on the classifier: `leaderboard/evaluable.bits` holds it once for
all, in the same format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from annotations.classes import NUM_VALIDATION_IMAGES, validation_ids
from annotations.errors import BeyondError

if TYPE_CHECKING:
    from benchmark.tracks.rectified import RectifiedResult

MAGIC = b"BYNDBIT1"
VERSION = 1
ALL_IDS = "ILSVRC2012_val"
TOP1 = "top1"
OPEN = "_open"

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Correctness:
    """Which of N images a classifier gets right, by several measures.

    Attributes:
        image_ids: object (N,) of str, sorted, unique.
        packed: By name (`top1` and sources), uint8 (⌈N / 8⌉,): the bits as in the file.
        open: By source, uint32 (M,): positions of images whose prediction nobody judged, ascending.
        annotations: By source, the revision of the label sets.
    """

    image_ids: npt.NDArray[np.object_]
    packed: dict[str, Bytes]
    open: dict[str, npt.NDArray[np.uint32]] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def full(self) -> bool:
        """Whether these are exactly the 50,000 validation images."""
        return self.image_ids is validation_ids()

    @property
    def sources(self) -> list[str]:
        """The sources of annotations, in the file's order."""
        return [name for name in self.packed if name != TOP1]

    def right(self, name: str) -> Bools:
        """Whether each image is right by `top1` or by a source: bool (N,)."""
        return np.unpackbits(self.packed[name], count=len(self), bitorder="little").astype(bool)

    def unjudged(self, source: str) -> Bools:
        """Whether each image's prediction is unjudged by a source that can evaluate the image: bool (N,)."""
        mask = np.zeros(len(self), dtype=bool)
        mask[self.open.get(source, [])] = True
        return mask

    @classmethod
    def of(
        cls,
        image_ids: npt.NDArray[np.object_],
        right: Mapping[str, Bools],
        unjudged: Mapping[str, Bools] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Correctness:
        """Pack boolean arrays (N,) in the order of `image_ids`; the result is in the order of sorted ids."""
        order = np.argsort(image_ids.astype(str), kind="stable")
        ids = image_ids[order]
        if len(ids) == NUM_VALIDATION_IMAGES and np.array_equal(ids, validation_ids()):
            ids = validation_ids()
        return cls(
            image_ids=ids,
            packed={name: np.packbits(bits[order], bitorder="little") for name, bits in right.items()},
            open={
                source: np.flatnonzero(bits[order]).astype(np.uint32)
                for source, bits in (unjudged or {}).items()
                if bits.any()
            },
            annotations=dict(annotations or {}),
        )

    @classmethod
    def from_result(cls, result: RectifiedResult, annotations: Mapping[str, str]) -> Correctness:
        """What a scored run gets right.

        Args:
            result: The rectified track's result.
            annotations: Revision of each source, as in the scorecard.
        """
        right, unjudged = {TOP1: result.top1_correct}, {}
        for source, answers in result.answers.items():
            right[source] = answers.right & answers.evaluable
            unjudged[source] = answers.open
        pinned = {source: annotations[source] for source in result.answers}
        return cls.of(result.image_ids, right, unjudged, pinned)

    def to_bytes(self) -> bytes:
        """The bytes of `correct.bits`; the same content always gives the same bytes."""
        sections: list[tuple[str, str, bytes]] = []
        for name, bits in self.packed.items():
            sections.append((name, "bits", bits.tobytes()))
        for source, rows in self.open.items():
            sections.append((source + OPEN, "indices", rows.astype("<u4").tobytes()))
        described, offset = [], 0
        for name, kind, data in sections:
            described.append({"name": name, "kind": kind, "offset": offset, "bytes": len(data)})
            offset += len(data)
        header = {
            "version": VERSION,
            "n": len(self),
            "ids": ALL_IDS if self.full else self.image_ids.tolist(),
            "annotations": self.annotations,
            "sections": described,
        }
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-(len(MAGIC) + 4 + len(text)) % 8)
        return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, *(data for _, _, data in sections)])

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "correct.bits") -> Correctness:
        """Read what `to_bytes` wrote. Every byte is accounted for: other bytes never mean the same content.

        Raises:
            BeyondError: It is not of this format, or of a newer version.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise BeyondError(f"{where} is no file of correctness bits; make it again with: beyond submit")
        start = len(MAGIC) + 4 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
        try:
            header = json.loads(data[len(MAGIC) + 4 : start])
            if header["version"] != VERSION:
                raise BeyondError(
                    f"{where} has version {header['version']!r}; this beyond reads {VERSION}: update it"
                )
            found = cls._from_header(header, data[start:])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BeyondError(f"{where} is damaged ({type(error).__name__}: {error})") from None
        if found.to_bytes() != data:
            raise BeyondError(f"{where} is damaged: it holds more or other bytes than its content needs")
        return found

    @classmethod
    def _from_header(cls, header: dict[str, Any], body: bytes) -> Correctness:
        n, listed = header["n"], header["ids"]
        if listed == ALL_IDS:
            ids = validation_ids()
        else:
            if not all(isinstance(i, str) and i for i in listed) or sorted(set(listed)) != listed:
                raise ValueError("ids are not sorted, unique texts")
            ids = np.array(listed, dtype=object)
        if n != len(ids):
            raise ValueError(f"n is {n}, but there are {len(ids)} ids")
        packed: dict[str, Bytes] = {}
        opened: dict[str, npt.NDArray[np.uint32]] = {}
        for section in header["sections"]:
            name, at, size = section["name"], section["offset"], section["bytes"]
            part = body[at : at + size]
            if len(part) != size or at < 0:
                raise ValueError(f"section {name!r} is cut off")
            if section["kind"] == "bits":
                bits = np.frombuffer(part, dtype=np.uint8)
                if size != -(-n // 8) or (n % 8 and bits[-1] >> (n % 8)):
                    raise ValueError(f"section {name!r} has not {n} bits")
                packed[name] = bits
            elif section["kind"] == "indices" and name.endswith(OPEN):
                rows = np.frombuffer(part, dtype="<u4").astype(np.uint32)
                if len(rows) and (rows[-1] >= n or (np.diff(rows.astype(np.int64)) <= 0).any()):
                    raise ValueError(f"section {name!r} is not ascending in 0..{n - 1}")
                opened[name.removesuffix(OPEN)] = rows
            else:
                raise ValueError(f"section {name!r} has kind {section['kind']!r}")
        annotations = header["annotations"]
        if TOP1 not in packed or set(annotations) != set(packed) - {TOP1} or set(opened) - set(annotations):
            raise ValueError("sections and annotations do not name the same sources")
        if not all(isinstance(revision, str) for revision in annotations.values()):
            raise ValueError("a revision is no text")
        return cls(ids, packed, opened, dict(annotations))
