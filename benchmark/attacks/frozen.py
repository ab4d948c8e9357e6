"""A frozen copy of a network for CPUs: convolutions packed once and fused, and no gradients of weights.

An attack calls one network with one input size thousands of times and never trains it. So its graph can be
captured once, batch normalisation and activations folded into the convolutions, padding into their kernels,
and the weights laid out as oneDNN wants them, for the forward pass and for the gradient to the input. The
result equals the network up to rounding, which is checked; where anything stands in the way, `FreezeError`
says what, and the network runs as it is.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from annotations.errors import BeyondError

_LOGITS = 1e-4  # largest error of a logit, as a share of the largest logit
_ACTIVATION = 24 * 2**20  # bytes of the largest activation: above 32 MiB glibc gives memory back each time
_GRADIENT = 1e-2  # error of the gradient as a share of its norm; a kink of an activation may fall either way

aten = torch.ops.aten
_RELU = {aten.relu.default, aten.relu_.default}
_CLAMP = {aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default, aten.relu6_.default}


class FreezeError(BeyondError):
    """A network cannot be frozen; the message says why."""


class PackedConv(nn.Module):
    """A convolution with fixed weights, its bias and a clamping activation, packed for oneDNN.

    Attributes:
        bounds: The activation clamps to (low, high); None for no activation, high None for ReLU.
        size: The size (C, H, W) of the input it was packed for.
        padding: What it adds on each side (rows, columns).
        stride: Stride (rows, columns).
        kernel: Size of the kernel (rows, columns).
        groups: Groups.
        channels: Output channels.
        alone: Whether the output is read by one packed convolution and nothing else. The gradient that comes
            back is then made for this layer alone, and may be overwritten.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        bounds: tuple[float, float | None] | None,
    ) -> None:
        """Pack.

        Args:
            weight: (O, I / groups, h, w).
            bias: (O,) or None.
            size: Of the input, (I, H, W).
            stride: Of rows and columns.
            padding: Zeros at the top, bottom, left and right.
            dilation: Of rows and columns.
            groups: Groups.
            bounds: See the class.
        """
        super().__init__()
        top, bottom, left, right = padding
        if top != bottom or left != right:
            # Unequal padding would need a copy of the input. A larger kernel with zeros at the edge that is
            # padded too much gives the same values.
            down, across = max(top, bottom), max(left, right)
            weight = F.pad(weight, (across - left, across - right, down - top, down - bottom))
            top, left = down, across
        self.size = tuple(size)
        self.padding = (top, left)
        self.stride = (int(stride[0]), int(stride[1]))
        self.kernel = (int(weight.shape[2]), int(weight.shape[3]))
        self.dilation = (int(dilation[0]), int(dilation[1]))
        self.groups = groups
        self.channels = int(weight.shape[0])
        self.bounds = bounds
        self.alone = False
        self._attr, self._scalars = "none", list[float]()
        if bounds is not None:
            self._attr = "relu" if bounds[1] is None else "hardtanh"
            self._scalars = [] if bounds[1] is None else [float(bounds[0]), float(bounds[1])]
        # Plain attributes and no buffers: packed weights cannot be copied or moved to another device.
        self._bias = bias
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._packed = self._pack(weight, self.padding, self.stride, self.dilation, (1, *self.size))
        self._prepare_backward(weight)

    @property
    def local(self) -> bool:
        """Whether each output looks at one pixel."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def _pack(
        self,
        weight: torch.Tensor,
        padding: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        size: Sequence[int],
    ) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            weight.contiguous(), list(padding), list(stride), list(dilation), self.groups, list(size)
        )
        return packed

    def _prepare_backward(self, weight: torch.Tensor) -> None:
        """Choose how the gradient to the input is computed: as another convolution where that is faster."""
        (h, w), (top, left), groups = self.kernel, self.padding, self.groups
        out, each = weight.shape[:2]
        self._back: torch.Tensor | None = None
        self._interleave = False
        if self.dilation != (1, 1) or h - 1 < top or w - 1 < left:
            return
        # Swap inputs and outputs within each group and turn the kernel around.
        turned = weight.view(groups, out // groups, each, h, w).transpose(1, 2)
        turned = turned.reshape(groups * each, out // groups, h, w).flip(2, 3)
        rows = (self.size[1] + 2 * top - h) // self.stride[0] + 1
        columns = (self.size[2] + 2 * left - w) // self.stride[1] + 1
        self._out_size = (out, rows, columns)
        if self.stride == (1, 1):
            self._back_padding = (h - 1 - top, w - 1 - left)
            self._back = self._pack(turned, self._back_padding, (1, 1), (1, 1), (1, *self._out_size))
        elif self.stride == (2, 2) and groups == 1 and each <= 4:
            # The first convolution of most networks. Its transpose is four convolutions, one for each phase
            # of the result, which here become one with four times the channels.
            half_h, half_w = -(-h // 2), -(-w // 2)
            full = F.pad(weight, (0, 2 * half_w - w, 0, 2 * half_h - h)).transpose(0, 1)
            phases = full.view(each, out, half_h, 2, half_w, 2).permute(0, 3, 5, 1, 2, 4)
            kernel = phases.reshape(4 * each, out, half_h, half_w).flip(2, 3)
            self._back_padding = (half_h - 1, half_w - 1)
            self._interleave = True
            self._back = self._pack(kernel, self._back_padding, (1, 1), (1, 1), (1, *self._out_size))

    def run(self, x: torch.Tensor, padding: tuple[int, int] | None = None) -> torch.Tensor:
        """Values without a graph, (B, O, H', W'), for any input size; optionally with other padding."""
        y: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x,
            self._packed,
            self._bias,
            list(self.padding if padding is None else padding),
            list(self.stride),
            list(self.dilation),
            self.groups,
            self._attr,
            self._scalars,
            "",
        )
        return y

    def to_input(self, gradient: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """The gradient to the input, (B, I, H, W), from that to the output."""
        if self.bounds is not None:
            low, high = self.bounds
            assert y is not None
            into = {"grad_input": gradient} if self.alone else {}
            if high is None:
                gradient = torch.ops.aten.threshold_backward(gradient, y, 0, **into)
            else:
                gradient = torch.ops.aten.hardtanh_backward(gradient, y, low, high, **into)
        if self._back is None:
            given: torch.Tensor = aten.convolution_backward(
                gradient,
                x,
                self._weight,
                None,
                list(self.stride),
                list(self.padding),
                list(self.dilation),
                False,
                [0, 0],
                self.groups,
                [True, False, False],
            )[0]
            return given
        given = torch.ops.mkldnn._convolution_pointwise(
            gradient.contiguous(memory_format=torch.channels_last),
            self._back,
            None,
            list(self._back_padding),
            [1, 1],
            [1, 1],
            self.groups,
            "none",
            [],
            "",
        )
        if self._interleave:
            given = self._interleaved(given)
        return given

    def _interleaved(self, phases: torch.Tensor) -> torch.Tensor:
        """The four phases (B, 4 I, h, w) of the gradient to the input, put together: (B, I, H, W)."""
        (top, left), (channels, height, width) = self.padding, self.size
        rows, columns = phases.shape[2:]
        given = phases.new_empty((len(phases), channels, 2 * rows, 2 * columns))
        # Much faster than F.pixel_shuffle, and contiguous, as callers want it in the end.
        for c, down, across in itertools.product(range(channels), range(2), range(2)):
            given[:, c, down::2, across::2] = phases[:, 4 * c + 2 * down + across]
        missing = (top + height - 2 * rows, left + width - 2 * columns)
        if max(missing) > 0:  # pixels at the end that no output looks at
            given = F.pad(given, (0, max(missing[1], 0), 0, max(missing[0], 0)))
        return given[:, :, top : top + height, left : left + width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values (B, O, H', W')."""
        if x.requires_grad and torch.is_grad_enabled():
            y: torch.Tensor = _Convolve.apply(x, self)
            return y
        return self.run(x.contiguous(memory_format=torch.channels_last))


class _Convolve(torch.autograd.Function):
    """A packed convolution whose gradient goes to its input alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, conv: PackedConv) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = conv.run(x)
        ctx.conv = conv
        ctx.save_for_backward(x if conv._back is None else None, y if conv.bounds is not None else None)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, y = ctx.saved_tensors
        return ctx.conv.to_input(gradient, x, y), None


@dataclass(frozen=True)
class Frozen:
    """A frozen network.

    Attributes:
        graph: Runs it, on any number of images of one size.
        size: That size, (C, H, W).
        packed: How many layers were packed.
        chunk: How many images to run at a time, so that activations stay in the cache and the memory that
            holds them is used again. Results do not depend on it.
    """

    graph: fx.GraphModule
    size: tuple[int, ...]
    packed: int
    chunk: int


def freeze(module: nn.Module, example: torch.Tensor) -> Frozen:
    """A frozen copy of a network for inputs of one size.

    Args:
        module: A network in eval mode, float32 on a CPU. It is not changed.
        example: A few images (B, C, H, W) in [0, 1].

    Raises:
        FreezeError: The network cannot be captured, has nothing to pack, or its copy gives other values.
    """
    _refuse(module, example)
    graph_module = _capture(module, example)
    try:
        sizes = _sizes(graph_module, example)
        packed = _rewrite(graph_module, sizes)
    except Exception as error:  # a graph of any shape may come in; the plain network is right
        raise FreezeError(f"its graph cannot be rewritten: {_line(error)}") from error
    if not packed:
        raise FreezeError("it has no convolution to pack")
    _compare(module, graph_module, example)
    largest = 4 * max(math.prod(size) for size in sizes.values())
    chunk = 1 << max((_ACTIVATION // largest).bit_length() - 1, 0)
    # Many threads need more than a few images to share.
    chunk = min(chunk * max(torch.get_num_threads() // 4, 1), 64)
    return Frozen(graph_module, tuple(example.shape[1:]), packed, chunk)


def _line(error: Exception) -> str:
    """The first line of an error, cut."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]


def _refuse(module: nn.Module, example: torch.Tensor) -> None:
    tensors = [*module.parameters(), *module.buffers()]
    if example.device.type != "cpu" or any(t.device.type != "cpu" for t in tensors):
        raise FreezeError("packed convolutions are for CPUs")
    if example.dtype != torch.float32 or any(
        t.is_floating_point() and t.dtype != torch.float32 for t in tensors
    ):
        raise FreezeError("packed convolutions compute in float32")
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        raise FreezeError("this build of torch has no oneDNN")
    if any(part.training for part in module.modules()):
        raise FreezeError("it is in training mode")


def _capture(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The network's graph of ATen operations, with weights as attributes and any number of images."""
    x = example.clone()
    if len(x) == 1:
        x = torch.cat([x, x])  # a size of 1 would be taken for a constant
    x = x.contiguous(memory_format=torch.channels_last)
    level = logging.getLogger("torch").level
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch").setLevel(logging.CRITICAL)
            plain = copy.deepcopy(module).requires_grad_(False)
            batch = torch.export.Dim("batch", min=1)
            exported = torch.export.export(plain, (x,), dynamic_shapes=({0: batch},))
            graph_module = exported.module(check_guards=False)
    except Exception as error:  # whatever stops the capture, the plain network still runs
        raise FreezeError(f"its graph cannot be captured: {_line(error)}") from error
    finally:
        logging.getLogger("torch").setLevel(level)
    assert isinstance(graph_module, fx.GraphModule)
    graph = graph_module.graph
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        raise FreezeError("it takes more than one input")
    for node in list(graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            schema = node.target._schema
            for argument, value in zip(schema.arguments, node.args):
                written = argument.alias_info is not None and argument.alias_info.is_write
                if written and (value is inputs[0] or getattr(value, "op", "") == "get_attr"):
                    raise FreezeError("it writes into its input or its own weights")
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                raise FreezeError("it is random")
    return graph_module


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _rewrite(root: fx.GraphModule, sizes: dict[fx.Node, tuple[int, ...]]) -> int:
    """Replace convolutions and what surrounds them by packed ones, in place; the number replaced."""
    graph = root.graph
    made: list[fx.Node] = []

    def value(node: Any) -> torch.Tensor | None:
        if not isinstance(node, fx.Node):
            return None
        found = operator.attrgetter(str(node.target))(root)
        assert isinstance(found, torch.Tensor)
        return found.detach()

    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.conv2d.default:
            continue
        arguments = dict(zip(("x", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args))
        arguments |= {{"input": "x"}.get(k, k): v for k, v in node.kwargs.items()}
        if getattr(arguments["weight"], "op", "") != "get_attr":
            continue
        weight = value(arguments["weight"])
        assert weight is not None
        bias = value(arguments.get("bias"))
        source, last = arguments["x"], node
        if len(sizes.get(source, ())) != 3 or weight.dtype != torch.float32:
            continue
        padding = _pair(arguments.get("padding", 0))
        sides = [padding[0], padding[0], padding[1], padding[1]]
        dilation = _pair(arguments.get("dilation", 1))
        before = _zero_padding(source)
        if before is not None and dilation == (1, 1):
            source = source.args[0]
            sides = [a + b for a, b in zip(sides, before)]
        scale = _divided(source, value) if int(arguments.get("groups", 1)) == 1 else None
        if scale is not None and scale.numel() in (1, weight.shape[1]):
            # Zeros around the map stay zeros, so a division of its channels can be one of the kernels.
            weight = (weight.double() / scale.double().view(1, -1, 1, 1)).float()
            source = source.args[0]
        after = _only_user(last)
        if after is not None and _is_norm(after):
            weight, bias = _fold(weight, bias, after, value)
            last = after
            after = _only_user(last)
        bounds: tuple[float, float | None] | None = None
        if after is not None and after.args[0] is last:
            if after.target in _RELU:
                bounds, last = (0.0, None), after
            elif after.target in _CLAMP:
                limits: Any = after.args[1:]
                if "relu6" in str(after.target):
                    limits = (0.0, 6.0)
                low, high = (*(float(v) for v in limits), *(-1.0, 1.0)[len(limits) :])
                bounds, last = (low, high), after
        conv = PackedConv(
            weight,
            bias,
            size=sizes[source],
            stride=_pair(arguments.get("stride", 1)),
            padding=sides,
            dilation=dilation,
            groups=int(arguments.get("groups", 1)),
            bounds=bounds,
        )
        name = f"packed_{len(made)}"
        root.add_submodule(name, conv)
        with graph.inserting_before(last):
            new = graph.call_module(name, (source,))
        sizes[new] = sizes[last]
        last.replace_all_uses_with(new)
        made.append(new)
        graph.eliminate_dead_code(is_impure_node=_impure)
    _pack_linear(root, {n for n, size in sizes.items() if len(size) == 1}, value)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=_impure)
    root.delete_all_unused_submodules()
    graph.lint()
    for node in made:
        user = _only_user(node)
        if user is not None and user.op == "call_module":
            modules = root.get_submodule(str(node.target)), root.get_submodule(str(user.target))
            if isinstance(modules[0], PackedConv) and isinstance(modules[1], PackedConv):
                modules[0].alone = True
    root.recompile()
    return len(made)


class PackedLinear(nn.Module):
    """A linear layer on vectors as a packed convolution, which rounds the same way in a batch of any size."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._conv = PackedConv(
            weight[:, :, None, None],
            bias,
            size=(weight.shape[1], 1, 1),
            stride=(1, 1),
            padding=(0, 0, 0, 0),
            dilation=(1, 1),
            groups=1,
            bounds=None,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values (B, O) of vectors (B, I)."""
        y: torch.Tensor = self._conv(x[:, :, None, None])
        return y.flatten(1)


def _pack_linear(
    root: fx.GraphModule, vectors: set[fx.Node], value: Callable[[Any], torch.Tensor | None]
) -> None:
    """Pack the linear layers that read vectors (B, I), such as a classifier's last."""
    for number, node in enumerate(list(root.graph.nodes)):
        if node.target is not aten.linear.default or node.args[0] not in vectors or node.kwargs:
            continue
        if getattr(node.args[1], "op", "") != "get_attr":
            continue
        weight = value(node.args[1])
        assert weight is not None
        name = f"packed_linear_{number}"
        root.add_submodule(name, PackedLinear(weight, value(node.args[2]) if len(node.args) > 2 else None))
        with root.graph.inserting_before(node):
            new = root.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(new)


def _impure(node: fx.Node) -> bool:
    """What may not be dropped though nobody reads it. In-place activations that were folded may."""
    return node.op in ("placeholder", "output") or (node.op == "call_module" and node.target == "_guards_fn")


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _zero_padding(node: fx.Node) -> list[int] | None:
    """Rows and columns of zeros (top, bottom, left, right) that a node adds, if that is all it does."""
    if _only_user(node) is None:
        return None
    if node.target is aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        fill = node.args[3] if len(node.args) > 3 else 0.0
    elif node.target is aten.constant_pad_nd.default:
        mode, fill = "constant", node.args[2] if len(node.args) > 2 else 0.0
    else:
        return None
    pads: Any = list(node.args[1])  # type: ignore[arg-type]
    if mode != "constant" or (fill or 0.0) != 0.0 or any(p < 0 for p in pads) or any(pads[4:]):
        return None
    left, right, top, bottom = (*pads, 0, 0)[:4]
    return [int(top), int(bottom), int(left), int(right)]


def _divided(node: fx.Node, value: Callable[[Any], torch.Tensor | None]) -> torch.Tensor | None:
    """What a node divides all channels, (), or each, (C, 1, 1), by, if that is all it does."""
    if node.target is not aten.div.Tensor or _only_user(node) is None or node.kwargs:
        return None
    by = node.args[1]
    if isinstance(by, int | float):
        return torch.tensor(float(by), dtype=torch.float64) if by else None
    if getattr(by, "op", "") != "get_attr" or getattr(node.args[0], "op", "") == "get_attr":
        return None
    scale = value(by)
    assert scale is not None
    each = scale.shape[-2:] == (1, 1) and scale.dim() in (3, 4) and scale.numel() == scale.shape[-3]
    return scale if each and bool((scale != 0).all()) else None


def _is_norm(node: fx.Node) -> bool:
    return node.target is aten.batch_norm.default and not node.args[5] and node.args[3] is not None


def _fold(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: fx.Node,
    value: Callable[[Any], torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution and the batch normalisation after it, in float64."""
    scale, shift, mean, variance = (value(a) for a in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    factor = (variance.double() + float(norm.args[7])).rsqrt()  # type: ignore[arg-type]
    if scale is not None:
        factor = factor * scale.double()
    offset = -mean.double() * factor
    if shift is not None:
        offset = offset + shift.double()
    if bias is not None:
        offset = offset + bias.double() * factor
    return (weight.double() * factor.view(-1, 1, 1, 1)).float(), offset.float()


def _sizes(root: fx.GraphModule, example: torch.Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """The size of what each node returns for the example: (C, H, W) of maps, (K,) of vectors."""
    sizes: dict[fx.Node, tuple[int, ...]] = {}

    class Look(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = None if n.target == "_guards_fn" else super().run_node(n)
            if isinstance(result, torch.Tensor) and n.op != "get_attr" and result.dim() in (2, 4):
                sizes[n] = tuple(result.shape[1:])
            return result

    with torch.no_grad():
        Look(root).run(example[:2].contiguous(memory_format=torch.channels_last))
    return sizes


def _compare(module: nn.Module, frozen: fx.GraphModule, example: torch.Tensor) -> None:
    """Compare logits and gradients of the copy with the network's own."""

    def both(run: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = example.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad():
            logits = run(leaf)
            (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum() - logits[:, 0].sum(), leaf)
        return logits.detach(), gradient

    try:
        expected, slope = both(module)
        logits, gradient = both(frozen)
    except Exception as error:  # see above
        raise FreezeError(f"its copy does not run: {_line(error)}") from error
    if logits.shape != expected.shape or not bool(logits.isfinite().all()):
        raise FreezeError("its copy gives other logits")
    off = float((logits - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)
    bent = float((gradient - slope).norm()) / max(float(slope.norm()), 1e-12)
    if off > _LOGITS or not bent <= _GRADIENT:
        raise FreezeError(f"its copy differs: logits by {off:.1e}, gradients by {bent:.1e} of their size")
