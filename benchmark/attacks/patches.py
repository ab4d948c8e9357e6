"""Logits after a change to a small window of the image, without computing again what the change cannot reach.

A convolution passes a change on to the pixels whose kernels touch it, and no further. Random search changes a
small square at each query, so the early layers, which have the largest maps, need to be computed on a window
that grows with depth; the rest of each map is remembered. Where the window has grown to most of the map, the
whole map goes through the remaining layers. Values are those of a full pass.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from benchmark.attacks.frozen import Frozen, PackedConv

aten = torch.ops.aten
_POINTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.relu.default,
    aten.hardtanh.default,
    aten.relu6.default,
    aten.silu.default,
    aten.gelu.default,
    aten.hardswish.default,
    aten.sigmoid.default,
}
_IN_PLACE = {
    aten.add_.Tensor,
    aten.relu_.default,
    aten.hardtanh_.default,
    aten.relu6_.default,
    aten.silu_.default,
    aten.hardswish_.default,
    aten.mul_.Tensor,
}
_PER_VALUE = 8  # cost of writing a value, in multiplications
_WORTH = 0.85  # share of a full pass above which windows are not worth their trouble


@dataclass(frozen=True)
class _Map:
    """A remembered map: its node, its size, the zeros around it, and where it lies in a row of memory."""

    channels: int
    height: int
    width: int
    pad: tuple[int, int]
    offset: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height + 2 * self.pad[0], self.width + 2 * self.pad[1], self.channels

    @property
    def values(self) -> int:
        height, width, channels = self.shape
        return height * width * channels


@dataclass
class _Window:
    """The window of a map that a change reaches: its corner in each row, and its size, the same for all."""

    tops: list[int]
    lefts: list[int]
    height: int
    width: int
    patch: torch.Tensor | None = None


@dataclass(frozen=True)
class Change:
    """What a query found for the maps that are remembered: new values, and where they belong."""

    windows: tuple[tuple[_Map, _Window], ...]


class Patches:
    """Window by window evaluation of a frozen network.

    Attributes:
        values: How many numbers have to be remembered for each image.
    """

    def __init__(self, frozen: Frozen) -> None:
        """Find the layers that pass changes on locally."""
        self._root = frozen.graph
        self._size = frozen.size
        self._nodes = [n for n in frozen.graph.graph.nodes if n.op != "get_attr"]
        self._constants = {
            n: operator.attrgetter(str(n.target))(frozen.graph)
            for n in frozen.graph.graph.nodes
            if n.op == "get_attr"
        }
        self._position = {n: i for i, n in enumerate(self._nodes)}
        self._modules = dict(frozen.graph.named_modules())
        self._sizes = self._measure()
        self._local = self._find_local()
        self._cuts = self._find_cuts()
        # A window of one pixel goes deepest, so that is how far maps may have to be remembered.
        self._maps: dict[fx.Node, _Map] = {}
        deepest = self._cut(1, 1)
        if deepest is not None:
            self._maps = self._lay_out(deepest)
        self.values = sum(m.values for m in self._maps.values())

    # What the network looks like.

    def _measure(self) -> dict[fx.Node, tuple[int, ...]]:
        sizes: dict[fx.Node, tuple[int, ...]] = {}
        env: dict[fx.Node, Any] = {}
        with torch.no_grad():
            self._execute(self._nodes, env, torch.zeros(1, *self._size))
        for node, value in env.items():
            if isinstance(value, torch.Tensor) and value.dim() == 4:
                sizes[node] = tuple(value.shape[1:])
        return sizes

    def _execute(self, nodes: Sequence[fx.Node], env: dict[fx.Node, Any], x: torch.Tensor | None) -> Any:
        """Run nodes on whole maps; returns what the network returns, if its output is among them."""
        for node in nodes:
            if node.op == "placeholder":
                assert x is not None
                env[node] = x.contiguous(memory_format=torch.channels_last)
            elif node.op == "output":
                result = node.args[0]
                return env[result if isinstance(result, fx.Node) else result[0]]  # type: ignore[index]
            else:
                env[node] = self._apply(node, env)
        return None

    def _apply(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        def look(n: fx.Node) -> Any:
            return env[n] if n in env else self._constants[n]

        args, kwargs = fx.map_arg(node.args, look), fx.map_arg(node.kwargs, look)
        run = self._modules[str(node.target)] if node.op == "call_module" else node.target
        assert callable(run)
        return run(*args, **kwargs)

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if n not in self._constants]

    def _find_local(self) -> list[fx.Node]:
        """The longest beginning of the graph that consists of nodes that pass a change on locally."""
        local: list[fx.Node] = []
        for node in self._nodes:
            if node not in self._sizes or not (node.op == "placeholder" or self._is_local(node)):
                break
            local.append(node)
        return local

    def _is_local(self, node: fx.Node) -> bool:
        operands = self._operands(node)
        if node.op == "call_module":
            conv = self._modules[str(node.target)]
            return isinstance(conv, PackedConv) and conv.dilation == (1, 1)
        if node.target in _IN_PLACE and any(len(n.users) > 1 for n in operands[:1]):
            return False
        if node.target not in _POINTWISE | _IN_PLACE or not operands:
            return False
        if any(self._sizes.get(n, ())[1:] != self._sizes[node][1:] for n in operands):
            return False
        fixed = [self._constants[n] for n in node.all_input_nodes if n in self._constants]
        return all(c.dim() == 0 or (c.dim() >= 2 and c.shape[-2:] == (1, 1)) for c in fixed)

    def _find_cuts(self) -> list[fx.Node]:
        """Local nodes that are all that the rest of the graph reads."""
        cuts, last = [], 0
        for i, node in enumerate(self._local):
            if node.op != "placeholder" and last <= i:
                cuts.append(node)
            last = max([last, *(self._position[u] for u in node.users)])
        return cuts

    def _cost(self, node: fx.Node, share: float) -> float:
        """Multiplications on a share of a map, values written counted too."""
        if node not in self._sizes:
            return 0.0  # vectors: nothing beside maps
        channels, height, width = self._sizes[node]
        each = float(_PER_VALUE)
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, PackedConv):
            each += module.kernel[0] * module.kernel[1] * module.size[0] / module.groups
        return share * channels * height * width * each

    def _reach(self, node: fx.Node, windows: dict[fx.Node, _Window]) -> _Window:
        """The window of a node's map that changes, from those of its operands."""
        _, height, width = self._sizes[node]
        operands = [windows[n] for n in self._operands(node)]
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, PackedConv) and not module.local:
            (source,) = operands
            tops, down = _through(
                source.tops, source.height, module.kernel[0], module.stride[0], module.padding[0], height
            )
            lefts, across = _through(
                source.lefts, source.width, module.kernel[1], module.stride[1], module.padding[1], width
            )
            return _Window(tops, lefts, down, across)
        if len(operands) == 1:
            (source,) = operands
            return _Window(source.tops, source.lefts, source.height, source.width)
        tops, down = _union([(w.tops, w.height) for w in operands], height)
        lefts, across = _union([(w.lefts, w.width) for w in operands], width)
        return _Window(tops, lefts, down, across)

    @lru_cache(maxsize=64)  # noqa: B019 - lives as long as the network
    def _cut(self, height: int, width: int) -> fx.Node | None:
        """Where to stop with windows for a change of this size, or None if a full pass is better."""
        windows: dict[fx.Node, _Window] = {}
        full = [self._cost(n, 1.0) for n in self._nodes]
        saved, best, choice = 0.0, (1 - _WORTH) * sum(full), None
        for i, node in enumerate(self._local):
            if node.op == "placeholder":
                windows[node] = _Window([0], [0], min(height, self._size[1]), min(width, self._size[2]))
            else:
                windows[node] = self._reach(node, windows)
            share = windows[node].height * windows[node].width / (self._sizes[node][1] * self._sizes[node][2])
            # Reading, writing and putting back windows costs about half as much again.
            saved += full[i] - 1.5 * self._cost(node, share)
            if node in self._cuts and saved > best:
                best, choice = saved, node
        return choice

    def _remembered(self, cut: fx.Node) -> list[fx.Node]:
        """The maps that windows are read from again, up to a cut."""
        inside = self._local[: self._local.index(cut) + 1]
        kept = {cut}
        for node in inside:
            operands = self._operands(node)
            module = self._modules.get(str(node.target)) if node.op == "call_module" else None
            if len(operands) > 1 or (isinstance(module, PackedConv) and not module.local):
                kept.update(operands)
        return [n for n in inside if n in kept]

    def _lay_out(self, deepest: fx.Node) -> dict[fx.Node, _Map]:
        cuts = [c for c in self._cuts if self._position[c] <= self._position[deepest]]
        used = {n for c in cuts for n in self._remembered(c)}
        maps: dict[fx.Node, _Map] = {}
        offset = 0
        for node in (n for n in self._local if n in used):
            pads = [(0, 0)]
            for user in node.users:
                module = self._modules.get(str(user.target)) if user.op == "call_module" else None
                if isinstance(module, PackedConv):
                    pads.append(module.padding)
            pad = (max(p[0] for p in pads), max(p[1] for p in pads))
            channels, height, width = self._sizes[node]
            maps[node] = _Map(channels, height, width, pad, offset)
            offset += maps[node].values
        return maps

    # Use.

    def worthwhile(self, height: int, width: int) -> bool:
        """Whether windows of this size are faster than full passes."""
        return self._cut(height, width) is not None

    def _view(self, memory: torch.Tensor, kept: _Map) -> torch.Tensor:
        """The map of all rows, (B, H, W, C) with its zeros around."""
        return memory[:, kept.offset : kept.offset + kept.values].view(len(memory), *kept.shape)

    def remember(self, images: torch.Tensor, memory: torch.Tensor) -> None:
        """Fill memory with the maps of images.

        Args:
            images: (B, C, H, W).
            memory: Where to, (B, `values`).
        """
        memory.zero_()
        env: dict[fx.Node, Any] = {}
        last = max(self._position[n] for n in self._maps)
        with torch.no_grad():
            for node in self._nodes[: last + 1]:
                self._execute([node], env, images)
                kept = self._maps.get(node)
                if kept is not None:
                    inner = self._view(memory, kept)[:, kept.pad[0] :, kept.pad[1] :]
                    inner[:, : kept.height, : kept.width] = env[node].permute(0, 2, 3, 1)

    def query(
        self, memory: torch.Tensor, patch: torch.Tensor, tops: Sequence[int], lefts: Sequence[int]
    ) -> tuple[torch.Tensor, Change]:
        """Logits after a change to one window of each image.

        Args:
            memory: From `remember`, (B, `values`). It is not changed.
            patch: The new pixels, (B, C, h, w).
            tops: First row of each window.
            lefts: First column of each window.

        Returns:
            Logits (B, K), and what `accept` needs.
        """
        cut = self._cut(patch.shape[2], patch.shape[3])
        assert cut is not None
        windows: dict[fx.Node, _Window] = {}
        with torch.no_grad():
            for node in self._local[: self._local.index(cut) + 1]:
                if node.op == "placeholder":
                    window = _Window(list(tops), list(lefts), patch.shape[2], patch.shape[3], patch)
                else:
                    window = self._reach(node, windows)
                    window.patch = self._compute(node, window, windows, memory)
                windows[node] = window
            _, height, width = self._sizes[cut]
            nought = [0] * len(memory)
            whole = self._region(memory, cut, windows[cut], _Window(nought, nought, height, width))
            env: dict[fx.Node, Any] = {cut: whole}
            logits: torch.Tensor = self._execute(self._nodes[self._position[cut] + 1 :], env, None)
        return logits, Change(tuple((self._maps[n], w) for n, w in windows.items() if n in self._maps))

    def accept(self, memory: torch.Tensor, rows: Sequence[int], change: Change) -> None:
        """Make a change that a query tried the new state of some rows."""
        for kept, window in change.windows:
            view = self._view(memory, kept)
            assert window.patch is not None
            new = window.patch.permute(0, 2, 3, 1)
            for r in rows:
                top, left = window.tops[r] + kept.pad[0], window.lefts[r] + kept.pad[1]
                view[r, top : top + window.height, left : left + window.width] = new[r]

    def _region(self, memory: torch.Tensor, node: fx.Node, changed: _Window, wanted: _Window) -> torch.Tensor:
        """A region of a node's map with the changed window in it, (B, C, height, width), channels-last.

        It may begin before the map and end after it, where the map has zeros around.
        """
        kept = self._maps[node]
        _, row, channels = kept.shape
        size = (wanted.height, wanted.width, channels)
        strides = (row * channels, channels, 1)
        begin = memory.storage_offset() + kept.offset
        step = memory.stride(0)
        # One view each is much faster than slicing, and there are many.
        region = torch.stack(
            [
                memory.as_strided(
                    size, strides, begin + r * step + ((t + kept.pad[0]) * row + s + kept.pad[1]) * channels
                )
                for r, (t, s) in enumerate(zip(wanted.tops, wanted.lefts))
            ]
        )
        assert changed.patch is not None
        new = changed.patch.permute(0, 2, 3, 1)
        for r in range(len(region)):
            down, across = changed.tops[r] - wanted.tops[r], changed.lefts[r] - wanted.lefts[r]
            y, x = max(down, 0), max(across, 0)
            y_end = min(down + changed.height, wanted.height)
            x_end = min(across + changed.width, wanted.width)
            region[r, y:y_end, x:x_end] = new[r, y - down : y_end - down, x - across : x_end - across]
        return region.permute(0, 3, 1, 2)

    def _compute(
        self, node: fx.Node, window: _Window, windows: dict[fx.Node, _Window], memory: torch.Tensor
    ) -> torch.Tensor:
        """The new values of a node's window."""
        operands = self._operands(node)
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, PackedConv):
            (source,) = operands
            if module.local:
                patch = windows[source].patch
                assert patch is not None
                return module.run(patch.contiguous(memory_format=torch.channels_last))
            # The pixels that the window's kernels read; the map's own zeros stand for the padding.
            wanted = _Window(
                [t * module.stride[0] - module.padding[0] for t in window.tops],
                [t * module.stride[1] - module.padding[1] for t in window.lefts],
                (window.height - 1) * module.stride[0] + module.kernel[0],
                (window.width - 1) * module.stride[1] + module.kernel[1],
            )
            return module.run(self._region(memory, source, windows[source], wanted), (0, 0))
        env: dict[fx.Node, Any] = {}
        for source in operands:
            if len(operands) == 1:
                env[source] = windows[source].patch
            else:
                env[source] = self._region(memory, source, windows[source], window)
        result: torch.Tensor = self._apply(node, env)
        return result


def _through(
    starts: Sequence[int], length: int, kernel: int, stride: int, pad: int, limit: int
) -> tuple[list[int], int]:
    """Where the outputs begin that look at a changed interval, and how many there are at most.

    Output o looks at inputs o * stride - pad up to o * stride - pad + kernel - 1.
    """
    count = min((length + kernel - 2) // stride + 1, limit)
    first = [-((kernel - 1 - pad - start) // stride) for start in starts]
    return [min(max(f, 0), limit - count) for f in first], count


def _union(parts: Sequence[tuple[list[int], int]], limit: int) -> tuple[list[int], int]:
    """Intervals, of one length for all rows, that hold several."""
    starts = [min(row) for row in zip(*(begin for begin, _ in parts))]
    ends = [max(row) for row in zip(*([b + length for b in begin] for begin, length in parts))]
    count = min(max(end - start for start, end in zip(starts, ends)), limit)
    return [min(start, limit - count) for start in starts], count
