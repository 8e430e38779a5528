"""What cross-attention looks at: the probabilities that every layer gives to every token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .base import DiffusionModel


@contextmanager
def attention_maps(model: DiffusionModel) -> Iterator[list[Tensor]]:
    """A list that each forward call inside fills with one (B, heads, pixels, tokens) tensor per cross-attention layer.

    The list is emptied when the next call begins. Gradients flow through it. The hooks are gone afterwards, also after an error.
    """
    maps: list[Tensor] = []
    handles = [model.network.register_forward_pre_hook(lambda *_: maps.clear())]
    for name, module in model.network.named_modules():
        if not name.endswith(".attn2"):
            continue
        seen: dict[str, Tensor] = {}

        def query(_: object, __: object, out: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["q"] = out

        def key(
            _: object,
            __: object,
            out: Tensor,
            seen: dict[str, Tensor] = seen,
            heads: int = module.heads,
            scale: float = module.scale,
        ) -> None:
            q, k = (v.unflatten(-1, (heads, -1)).transpose(1, 2) for v in (seen["q"], out))
            maps.append(torch.softmax(scale * q @ k.transpose(-1, -2), dim=-1))

        handles += [module.to_q.register_forward_hook(query), module.to_k.register_forward_hook(key)]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
