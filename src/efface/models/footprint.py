"""How many bytes a network keeps for a backward pass, counted without computing anything.

The network is built again on the device "meta", where tensors have shapes and no numbers, and its forward pass is run there.
Every tensor that autograd saves is counted once by its storage, weights left out. Attention is counted as its fused kernels
work: queries, keys, values and the output are kept, and the attention matrix is not. Autocast, which does nothing on "meta", is
imitated: on a GPU it takes norms in float32, whose inputs are then kept at twice the width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .base import DiffusionModel
from .cond import MASK, Cond
from .select import Select

NARROW = frozenset(
    ["linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"]
)
"""Functions that autocast computes in its dtype. Attention is one, too, and is replaced here."""
WIDE = frozenset(["layer_norm", "group_norm", "rms_norm", "softmax", "pow", "__pow__", "rsqrt", "sum", "exp", "log", "norm"])
"""Functions that autocast computes in float32 on a GPU, and in the dtype of their input on the CPU."""


class _Fused(torch.autograd.Function):
    """Attention by shapes: the output of the right shape, and what a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError("bytes are counted and nothing is computed")


@contextmanager
def _fused_attention() -> Iterator[None]:
    original = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        # Only autocast lets them differ. It brings them to its own dtype, in which values come out of their projection.
        return _Fused.apply(*(x.to(value.dtype) for x in (query, key, value)))

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


class _Autocast(TorchFunctionMode):
    """What ``torch.autocast`` does to dtypes, for tensors on "meta". ``copies``: the storages of the weights that it has cast."""

    def __init__(self, dtype: torch.dtype, wide: frozenset[str], weights: Iterator[Tensor]) -> None:
        super().__init__()
        self.dtype, self.wide, self.weights = dtype, wide, {id(w) for w in weights}
        self.copies = set[int]()
        self._kept: dict[int, Tensor] = {}  # as autocast keeps them: a weight with a gradient is cast once

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        to = self.dtype if name in NARROW else torch.float32 if name in self.wide else None
        if to is not None:
            args, kwargs = tree_map_only(Tensor, self._cast(to), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _cast(self, to: torch.dtype) -> Callable[[Tensor], Tensor]:
        def cast(x: Tensor) -> Tensor:
            if not x.is_floating_point() or x.dtype == to:
                return x
            if id(x) not in self.weights:
                return x.to(to)
            if (found := self._kept.get(id(x))) is None:
                found = x.to(to)
                self.copies.add(found.untyped_storage()._cdata)
                self._kept[id(x)] = found  # it lives on, so that its storage's number is not given away
            return found

        return cast


class Kept:
    """Bytes of the tensors that autograd keeps inside :meth:`counting`, each storage once, ``parameters`` left out. ``copies``:
    numbers of the storages that are counted apart."""

    def __init__(self, parameters: Iterator[Tensor], copies: Collection[int] = ()) -> None:
        self.own = {p.untyped_storage()._cdata for p in parameters}
        self.copies = copies
        self.found: dict[int, tuple[Tensor, int]] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.found[storage._cdata] = tensor, storage.nbytes()  # the tensor lives on, so that its number is not given away
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        with hooks, _fused_attention(), torch.enable_grad():
            yield

    @property
    def bytes(self) -> int:
        return sum(n for number, (_, n) in self.found.items() if number not in self.copies)

    @property
    def copied(self) -> int:
        return sum(n for number, (_, n) in self.found.items() if number in self.copies)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes that are kept for the backward pass."""

    row: int
    """Of one row with a gradient."""
    copies: int
    """Of weights that autocast has cast, whatever the number of rows."""


def footprint(
    model: DiffusionModel,
    select: Select,
    *,
    loaded: torch.dtype,
    computed: torch.dtype,
    checkpointing: bool = False,
    through_encodings: bool = False,
) -> Footprint:
    """What the student of a model keeps whose selected weights are float32 and whose other weights are ``loaded``, if it computes
    in ``computed``. With ``checkpointing`` these are the inputs of the blocks, and the largest block, which is computed again.
    ``through_encodings``: the encoded text carries a gradient, too."""
    twin: Any = copy.copy(model)
    twin.rounded = None
    with torch.device("meta"):
        network: nn.Module = type(model.network).from_config(dict(model.network.config))
    nn.Module.to(network, loaded)  # diffusers' own .to warns of layers that it would keep
    for name, p in network.named_parameters():
        if p.requires_grad_(select(f"{model.part}.{name}")).requires_grad:
            p.data = p.data.float()
    setattr(twin, model.part, network)
    twin.evals = dataclasses.replace(twin.evals)
    twin.configure(autocast=str(computed).removeprefix("torch."))
    wide = frozenset[str]() if model.device.type == "cpu" else WIDE
    cast = _Autocast(computed, wide, network.parameters())
    # In the place of torch's, so that the adapter's own conditions decide when it is in force.
    twin._autocast = lambda device=None: nullcontext() if computed == torch.float32 else cast
    c = _on_meta(model.encode([""]), loaded, through_encodings)
    z = torch.empty((1, *model.latent_shape), device="meta")
    t = model.schedule.numbered([model.schedule.size // 2], torch.device("cpu")).to("meta")

    kept, blocks = Kept(network.parameters(), cast.copies), _Blocks()
    with kept.counting(), blocks.watched(network, kept):
        twin.predict(z, t, c)
    if not checkpointing:
        return Footprint(kept.bytes, kept.copied)
    network.enable_gradient_checkpointing()
    network.train()  # diffusers checkpoints in training mode alone
    inputs = Kept(network.parameters(), cast.copies)
    with inputs.counting():
        twin.predict(z, t, c)
    return Footprint(inputs.bytes + max(blocks.sizes), kept.copied)


def _on_meta(c: Cond, dtype: torch.dtype, through: bool) -> Cond:
    """Encodings as text encoders in ``dtype`` give them."""

    def moved(x: Tensor) -> Tensor:
        return x.detach().to("meta", dtype).requires_grad_(through) if x.is_floating_point() else x.to("meta")

    extras = {k: v if k == MASK else moved(v) for k, v in c.extras.items()}  # the mask says how many tokens there are
    return dataclasses.replace(c, tokens=moved(c.tokens), extras=extras)


class _Blocks:
    """What each of the blocks keeps that diffusers computes again under checkpointing."""

    def __init__(self) -> None:
        self.sizes, self.begun = [0], dict[nn.Module, int]()

    @contextmanager
    def watched(self, network: nn.Module, kept: Kept) -> Iterator[None]:
        def begin(module: nn.Module, _: Any) -> None:
            self.begun[module] = kept.bytes

        def end(module: nn.Module, _: Any, __: Any) -> None:
            self.sizes.append(kept.bytes - self.begun[module])

        names = {m: type(m).__name__ for m in network.modules()}
        blocks = [m for m, name in names.items() if name.startswith("Resnet") or name.endswith("TransformerBlock")]
        handles = [h for m in blocks for h in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
