"""Reading and steering the cross-attention of a diffusers UNet by hooks on its projections.

Nothing is replaced: the stock attention runs (fused kernels included), a probe does not change its output by a bit, and when
a context manager ends, also by an exception, its hooks are gone. Hooks see one forward pass: do not use them around a
forward that gradient checkpointing will run again during backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..equations.attention import probabilities
from ..errors import BadOption, UnknownName

PLACES = {
    "mid": ("mid_block.",),
    "midout": ("mid_block.", "up_blocks."),
    "inmidout": ("down_blocks.", "mid_block.", "up_blocks."),
}
"""Named sets of cross-attention layers; all 16 of Stable Diffusion 1.x are "inmidout"."""


def cross_attentions(unet: nn.Module, place: str = "inmidout") -> list[nn.Module]:
    """The cross-attention layers of the named place. Raises UnknownName, and BadOption for a UNet that has none there."""
    if place not in PLACES:
        raise UnknownName("place of cross-attention", place, PLACES)
    found = [m for n, m in unet.named_modules() if n.endswith(".attn2") and n.startswith(PLACES[place])]
    if not found:
        raise BadOption(f"this UNet has no cross-attention in {place!r}; choose another place.")
    return found


@contextmanager
def hooks(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove the given hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def probed(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Every forward inside appends the probabilities of each cross-attention layer, (B, heads, P, L), in order of evaluation.

    Differentiable. The layers' own output is untouched; the maps are computed beside it from the same queries and keys.
    """
    maps: list[Tensor] = []
    handles = []
    for layer in cross_attentions(unet):
        seen: dict[str, Tensor] = {}

        def keep(name: str, seen: dict[str, Tensor] = seen) -> Callable[..., None]:
            return lambda module, args, output: seen.__setitem__(name, output)

        def collect(module: Any, args: Any, output: Any, seen: dict[str, Tensor] = seen) -> None:
            maps.append(probabilities(seen.pop("q"), seen.pop("k"), module.heads))

        handles += [
            layer.to_q.register_forward_hook(keep("q")),
            layer.to_k.register_forward_hook(keep("k")),
            layer.register_forward_hook(collect),
        ]
    with hooks(*handles):
        yield maps


@contextmanager
def extended(unet: nn.Module, keys: Tensor, values: Tensor, place: str) -> Iterator[None]:
    """The layers of ``place`` read more text: ``K = W_K [c ; keys]``, ``V = W_V [c ; values]``, queries as before.

    keys, values: (B, m, d) in the space of the text encoder's output, or (1, m, d) for every row. A zero row is not no row:
    its logit 0 still takes softmax mass. m = 0 is the stock layer.
    """

    def append(rows: Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            (context,) = args
            return (torch.cat([context, rows.to(context.dtype).expand(len(context), -1, -1)], dim=1),)

        return hook

    layers = cross_attentions(unet, place)
    with hooks(
        *(layer.to_k.register_forward_pre_hook(append(keys)) for layer in layers),
        *(layer.to_v.register_forward_pre_hook(append(values)) for layer in layers),
    ):
        yield


@contextmanager
def start_detached(unet: nn.Module) -> Iterator[None]:
    """Key and value of position 0 (start of text) carry no gradient, so that training cannot use what every prompt shares."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    layers = cross_attentions(unet)
    with hooks(*(p.register_forward_hook(hook) for layer in layers for p in (layer.to_k, layer.to_v))):
        yield
