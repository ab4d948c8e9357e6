"""How the network is run under attack: options that change speed, never what counts as a success."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from annotations.errors import BeyondError
from benchmark.attacks.frozen import FreezeError, Frozen, freeze
from benchmark.attacks.patches import Change, Patches
from benchmark.memory import is_out_of_memory

Model = Callable[[torch.Tensor], torch.Tensor]
"""Images (B, C, H, W) in [0, 1] to logits (B, K); gradients reach the images."""

_PATCH_MEMORY = 2**30  # bytes that `Net.patches` may take

Losses = Callable[[torch.Tensor, slice], torch.Tensor]
"""Logits (b, K) of some rows of the batch, and which rows they are, to one or more values for each row."""

Useful = Callable[[torch.Tensor, slice], torch.Tensor]
"""Logits (b, K) of some rows of the batch, and which rows they are, to whether each needs a gradient."""


@dataclass(frozen=True)
class Execution:
    """Options of the network that attacks run on. Successes are re-predicted without any of them.

    Attributes:
        channels_last: Run in the channels-last memory layout.
        fold: Fold batch normalisation (in eval mode) into the convolution that feeds it.
        autocast: Run in this lower precision where torch thinks it safe, or None.
        compile: Run through `torch.compile`.
        checkpointing: Recompute activations in the backward pass, for less memory; the network, or one part
            of it, must offer `set_grad_checkpointing`.
        freeze: Run a frozen copy on a CPU in float32, see `benchmark.attacks.frozen`. Where the network or
            the other options do not allow it, it runs without, and `Net.unfrozen` says why.
        block: Run exactly so many rows at a time, the last block filled up with copies, so that a row's
            logits and gradients do not depend, even in their rounding, on how many rows there are.
    """

    channels_last: bool = False
    fold: bool = False
    autocast: Literal["bfloat16", "float16"] | None = None
    compile: bool = False
    checkpointing: bool = False
    freeze: bool = False
    block: int | None = None

    @classmethod
    def fast(cls) -> Execution:
        """Options that change results by rounding alone: channels-last, folding and freezing."""
        return cls(channels_last=True, fold=True, freeze=True)

    def describe(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        return asdict(self)


def fold_batch_norm(module: nn.Module, example: torch.Tensor) -> tuple[nn.Module, int]:
    """A copy of a network with batch normalisation folded into convolutions.

    A pair is folded only if one run on `example` shows that the normalisation reads the very tensor that the
    convolution returned, each once, and the folded copy gives the same logits; a pair that changes them, for
    instance because something else reads the convolution too, is left as it was.

    Args:
        module: A network in eval mode. It is not changed.
        example: A few images (B, C, H, W).

    Returns:
        The copy, and how many pairs were folded.
    """
    folded = copy.deepcopy(module).eval()
    outputs: dict[int, tuple[str, torch.Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    handles = []
    names = {name: m for name, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)}
    if len({id(m) for m in names.values()}) != len(names):
        return folded, 0

    def after_conv(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            outputs[id(output)] = (name, output)

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            seen = outputs.get(id(args[0]))
            if seen is not None:
                pairs.append((seen[0], name))

        return hook

    for name, m in names.items():
        if isinstance(m, nn.Conv2d):
            handles.append(m.register_forward_hook(after_conv(name)))
        elif m.track_running_stats:
            handles.append(m.register_forward_pre_hook(before_norm(name)))
    with torch.no_grad():
        expected = folded(example.clone())
    for handle in handles:
        handle.remove()
    outputs.clear()

    scale = float(expected.abs().max())
    candidates = [(conv, norm) for conv, norm in pairs if calls[conv] == 1 and calls[norm] == 1]

    def agrees() -> bool:
        with torch.no_grad():
            return bool((folded(example.clone()) - expected).abs().max() <= 1e-4 * max(scale, 1e-6))

    undo = [_fold_pair(folded, conv, norm) for conv, norm in candidates]
    if undo and not agrees():
        # Rare: find the pairs that may not be folded one by one.
        for restore in undo:
            restore()
        undo = []
        for conv, norm in candidates:
            restore = _fold_pair(folded, conv, norm)
            if agrees():
                undo.append(restore)
            else:
                restore()
    return folded, len(undo)


def _fold_pair(root: nn.Module, conv_name: str, norm_name: str) -> Callable[[], None]:
    """Fold one pair in place and return what undoes it."""
    conv, norm = root.get_submodule(conv_name), root.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    # timm's BatchNormAct2d is a batch normalisation with `drop` and `act` after it; those stay.
    tail = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
    tail = [m for m in tail if not isinstance(m, nn.Identity)]
    rest: nn.Module = nn.Identity() if not tail else tail[0] if len(tail) == 1 else nn.Sequential(*tail)
    fused = nn.utils.fuse_conv_bn_eval(conv, norm)
    root.set_submodule(conv_name, fused)
    root.set_submodule(norm_name, rest)

    def restore() -> None:
        root.set_submodule(conv_name, conv)
        root.set_submodule(norm_name, norm)

    return restore


class NoGradientError(BeyondError):
    """The model's logits carry no gradient with respect to its input."""


class Net:
    """A model under attack: logits, gradients, and a count of what they cost.

    Attributes:
        reference: The model as given.
        execution: The options that are in use.
        folded: How many batch normalisations were folded.
        frozen: The frozen copy that runs instead, or None.
        unfrozen: Why there is none though it was asked for, or empty.
        patches: Evaluates small changes of an image in part, or None where that is not possible.
        forwards: Images run forward so far.
        backwards: Images run backward so far.
        protect: Hand the model copies, because it writes into its input.
    """

    def __init__(
        self,
        model: Model,
        *,
        execution: Execution | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        example: torch.Tensor | None = None,
        rows: int = 32,
    ) -> None:
        """Prepare the model.

        Args:
            model: The model. If it is an `nn.Module` it must be in eval mode on `device`.
            execution: Options, or None for none. Those that change the network need an `nn.Module`.
            device: Where images go.
            dtype: Precision that attacks compute in: float32, or float64 in tests.
            example: A few images (B, C, H, W) in [0, 1], needed to fold and to freeze.
            rows: Most images at a time, which decides whether there is memory for `patches`.

        Raises:
            BeyondError: An option cannot be applied to this model.
        """
        self.reference = model
        self.execution = execution or Execution()
        self.device = torch.device(device)
        self.dtype = dtype
        self.forwards = 0
        self.backwards = 0
        self.folded = 0
        self.protect = False
        self.frozen, self.unfrozen = self._freeze(model, example)
        self.patches = None if self.frozen is None else self._remember(self.frozen, rows)
        self._run = model if self.frozen is not None else self._prepare(model, example)

    def _prepare(self, model: Model, example: torch.Tensor | None) -> Model:
        options = replace(self.execution, block=None)
        if options == Execution():
            return model
        if not isinstance(model, nn.Module):
            if options.autocast is not None and options == Execution(autocast=options.autocast):
                return model
            raise BeyondError("execution options need a torch module: pass Execution() for a plain function")
        module: nn.Module = model
        if options.fold:
            if example is None:
                raise BeyondError("folding batch normalisation needs example images: pass example=")
            module, self.folded = fold_batch_norm(module, example.to(self.device, self.dtype))
        elif options.channels_last or options.checkpointing:
            module = copy.deepcopy(module)
        if module is not model:
            module.requires_grad_(False)
        if options.channels_last:
            module = module.to(memory_format=torch.channels_last)
        if options.checkpointing:
            parts = [m for m in module.modules() if hasattr(m, "set_grad_checkpointing")]
            if not parts:
                raise BeyondError("this model has no set_grad_checkpointing: run without checkpointing")
            parts[0].set_grad_checkpointing(True)  # type: ignore[operator]
        if options.compile:
            compiled: Model = torch.compile(module)
            return compiled
        return module

    def _freeze(self, model: Model, example: torch.Tensor | None) -> tuple[Frozen | None, str]:
        """The frozen copy, or why there is none."""
        options = self.execution
        if not options.freeze or not isinstance(model, nn.Module):
            return None, ""
        if example is None:
            raise BeyondError("freezing needs example images: pass example=")
        if options.compile or options.checkpointing or options.autocast is not None:
            return None, "autocast, compile and checkpointing need the network as it is"
        try:
            return freeze(model, example.to(self.device, self.dtype)), ""
        except FreezeError as error:
            return None, str(error)

    @staticmethod
    def _remember(frozen: Frozen, rows: int) -> Patches | None:
        patches = Patches(frozen)
        return patches if 0 < 4 * patches.values * rows <= _PATCH_MEMORY else None

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.execution.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.execution.autocast))

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += len(x)
        block = self.execution.block
        if block is None or len(x) == block:
            return self._forward(x)
        parts = []
        for rows in chunks(len(x), block):
            part = x[rows]
            missing = block - len(part)
            if missing:
                filled = torch.cat([part, part[-1:].detach().expand(missing, *part.shape[1:])])
                parts.append(self._forward(filled)[: len(part)])
            else:
                parts.append(self._forward(part))
        return torch.cat(parts)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.frozen is not None and x.shape[1:] == self.frozen.size:
            frozen: torch.Tensor = self.frozen.graph(x.contiguous(memory_format=torch.channels_last))
            return frozen
        if self.protect:
            x = x.clone()
        if self.execution.channels_last and x.shape[1] > 1:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits = self._run(x)
        return logits.to(self.dtype)

    def _parts(self, count: int) -> list[slice]:
        """Rows to run at a time."""
        return list(chunks(count, self.at_once or count))

    @property
    def at_once(self) -> int | None:
        """How many rows to run at a time: None for all, or as many as suit the frozen network."""
        return None if self.frozen is None else self.execution.block or self.frozen.chunk

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of images (B, C, H, W), without a graph."""
        if not len(x):
            raise ValueError("no images")
        with torch.no_grad():
            found = [self._call(x[rows]) for rows in self._parts(len(x))]
            return found[0] if len(found) == 1 else torch.cat(found)

    def query(
        self, memory: torch.Tensor, patch: torch.Tensor, tops: Sequence[int], lefts: Sequence[int]
    ) -> tuple[torch.Tensor, Change]:
        """Logits after a change to one window of each image, see `Patches.query`."""
        assert self.patches is not None
        self.forwards += len(patch)
        return self.patches.query(memory, patch, tops, lefts)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the model as given, with no option in use."""
        try:
            with torch.no_grad():
                logits = self.reference(x.clone() if self.protect else x)
        except (RuntimeError, MemoryError) as error:
            if len(x) == 1 or not is_out_of_memory(error):
                raise
            half = len(x) // 2
            return torch.cat([self.predict(x[:half]), self.predict(x[half:])])
        self.forwards += len(x)
        return logits.to(self.dtype)

    def gradient(self, x: torch.Tensor, loss: Losses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, loss and the gradient of the loss at `x`.

        Args:
            x: Images (B, C, H, W).
            loss: One value for each row, (b,).

        Returns:
            Logits (B, K), losses (B,) and gradients (B, C, H, W), detached. A gradient that is not finite is
            returned as zero there.

        Raises:
            NoGradientError: Nothing connects the logits to the image.
        """
        logits, values, gradients = self.gradients(x, lambda z, rows: loss(z, rows)[:, None])
        return logits, values[:, 0], gradients[:, 0]

    def gradients(self, x: torch.Tensor, losses: Losses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `gradient` for J losses at once, with one backward pass each on one graph.

        Args:
            x: Images (B, C, H, W).
            losses: J values for each row, (b, J).

        Returns:
            Logits (B, K), losses (B, J) and gradients (B, J, C, H, W).
        """
        logits, values, gradients, _ = self._by_parts(x, losses, None)
        return logits, values, gradients

    def gradient_where(
        self, x: torch.Tensor, loss: Losses, useful: Useful
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, and on the same forward pass the gradient where it is of use.

        What is run at once gets one backward pass or none. It gets one where that costs less than running
        the rows of use again, forward and backward.

        Args:
            x: Images (B, C, H, W).
            loss: One value for each row, (b,).
            useful: Whether the gradient is of use, (b,), from the logits (b, K) of some rows and which rows
                they are.

        Returns:
            As `gradient`, and which rows have a gradient, bool (B,). It is zero for the others.
        """
        logits, values, gradients, given = self._by_parts(x, lambda z, r: loss(z, r)[:, None], useful)
        return logits, values[:, 0], gradients[:, 0], given

    def _by_parts(
        self, x: torch.Tensor, losses: Losses, useful: Useful | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`gradients`, or where useful, of as many rows at once as suit the network."""
        parts = self._parts(len(x))
        if len(parts) == 1:
            return self._gradients(x, losses, parts[0], useful)
        found = []
        gradients: torch.Tensor | None = None
        for rows in parts:
            *rest, part, given = self._gradients(x[rows], losses, rows, useful)
            if gradients is None:
                gradients = part.new_empty((len(x), *part.shape[1:]))
            gradients[rows] = part
            found.append((*rest, given))
        assert gradients is not None
        logits, values, given = (torch.cat(p) for p in zip(*found))
        return logits, values, gradients, given

    def _gradients(
        self, x: torch.Tensor, losses: Losses, rows: slice, useful: Useful | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`_by_parts` of rows that are run at once."""
        message = "the model gives no gradient: use attacks that need none, such as Square"
        with torch.enable_grad():
            # A frozen network does not write into its input, any other might.
            safe = self.frozen is not None and x.shape[1:] == self.frozen.size
            leaf = (x.detach() if safe else x.detach().clone()).requires_grad_()
            logits = self._call(leaf)
            if not logits.requires_grad:
                raise NoGradientError(message)
            values = losses(logits, rows)
            columns = values.shape[1]
            if useful is not None:
                wanted = int(useful(logits.detach(), rows).sum())
                if not worth_backward(wanted, len(x)):
                    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
                    nought = x.new_zeros((len(x), columns, *x.shape[1:]))
                    return logits.detach(), values.detach(), nought, none
            parts = []
            for j in range(columns):
                (part,) = torch.autograd.grad(
                    values[:, j].sum(), leaf, retain_graph=j < columns - 1, allow_unused=True
                )
                if part is None:
                    raise NoGradientError(message)
                self.backwards += len(x)
                parts.append(part.contiguous())
        gradients = parts[0][:, None] if columns == 1 else torch.stack(parts, dim=1)
        gradients = torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)
        all_rows = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return logits.detach(), values.detach(), gradients, all_rows


def worth_backward(wanted: int, rows: int) -> bool:
    """Whether a backward pass on all rows costs less than a forward and a backward on the wanted ones."""
    return rows * 1.5 < wanted * 2.5  # they cost about 1 and 1.5


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(count)`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
