"""How many bytes a network keeps for a backward pass, counted without computing anything.

The network is built again on the device "meta", where tensors have shapes and no numbers, and its forward pass is run there.
Every tensor that autograd saves is counted once by its storage, weights left out. Attention is counted as its fused kernels
work: queries, keys, values and the output are kept, and the attention matrix is not.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import DiffusionModel
from .cond import MASK
from .select import Select


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
    functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Fused.apply(query, key, value)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


class Kept:
    """Bytes of the tensors that autograd keeps inside :meth:`counting`, each storage once, ``parameters`` left out."""

    def __init__(self, parameters: Iterator[Tensor]) -> None:
        self.own = {p.untyped_storage()._cdata for p in parameters}
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
        return sum(n for _, n in self.found.values())


def on_meta(model: DiffusionModel, dtype: torch.dtype) -> DiffusionModel:
    """A twin whose network has shapes and no numbers. It encodes nothing: give it encodings of the model, moved to "meta"."""
    twin = copy.copy(model)
    twin.rounded = None
    with torch.device("meta"):
        network = type(model.network).from_config(dict(model.network.config))
    setattr(twin, model.part, nn.Module.to(network, dtype))  # diffusers' own .to warns of layers that it would keep
    twin.evals = dataclasses.replace(model.evals)
    twin.configure(autocast="float32")  # the network is in the precision that it computes in
    return twin


def activations(model: DiffusionModel, select: Select, dtype: torch.dtype, *, checkpointing: bool = False) -> int:
    """Bytes that one row with a gradient keeps in ``dtype``. With ``checkpointing`` these are the inputs of the blocks, and the
    largest block, which is computed again."""
    twin = on_meta(model, dtype)
    network: nn.Module = twin.network
    for name, p in network.named_parameters():
        p.requires_grad_(select(f"{model.part}.{name}"))
    c = model.encode([""])
    extras = {k: v.to("meta", dtype) if v.is_floating_point() else v.to("meta") for k, v in c.extras.items()}
    extras |= {k: v for k, v in c.extras.items() if k == MASK}  # it says how many tokens there are
    c = dataclasses.replace(c, tokens=c.tokens.to("meta", dtype), extras=extras)
    z = torch.empty((1, *model.latent_shape), dtype=dtype, device="meta")
    t = model.schedule.numbered([model.schedule.size // 2], torch.device("cpu")).to("meta")
    kept, blocks = Kept(network.parameters()), _Blocks()
    with kept.counting(), blocks.watched(network, kept):
        twin.predict(z, t, c)
    if not checkpointing:
        return kept.bytes
    network.enable_gradient_checkpointing()
    network.train()  # diffusers checkpoints in training mode alone
    inputs = Kept(network.parameters())
    with inputs.counting():
        twin.predict(z, t, c)
    return inputs.bytes + max(blocks.sizes)


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
