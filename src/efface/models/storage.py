"""Frozen weights of a network stored in eight bits, and cast to the precision that it computes in layer by layer.

Which layers are stored so is the rule of diffusers' layerwise casting: linear layers, convolutions and embeddings, without norms,
positions and what a family's network names as sensitive. Its hook could not be trained through: a convolution keeps the weight
itself for the backward pass, which is in eight bits again by then, and a linear layer keeps its cast alive until then, so that
nothing is saved. Here a graph keeps the eight bits, and casts them again in the backward pass.

The unrounded weights stay in the computer's memory. What is trained or patched gets them back, so that every change is one of the
model's own weights; see :meth:`Rounded.restore`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN, LayerwiseCastingHook
from torch import Tensor, nn

from ..errors import BadOption
from .plain import FP8, STORING_HOOK, is_stored
from .select import Select

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Embedding)


def storable(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network whose weights can be stored in eight bits, by name."""
    patterns = (
        *DEFAULT_SKIP_MODULES_PATTERN,
        *(getattr(network, "_keep_in_fp32_modules", None) or ()),
        *(getattr(network, "_skip_layerwise_casting_patterns", None) or ()),
    )
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        parts = name.split(".")
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))  # diffusers asks every level on the way down
        if isinstance(module, LAYERS) and not any(re.search(p, level) for level in above for p in patterns):
            found[name] = module
    return found


class Cast(NamedTuple):
    """A weight as a layer computes with it, and the eight bits that it is the cast of."""

    weight: Tensor
    stored: Tensor


_casts: dict[int, Cast] = {}
"""The weights of the layers that are computing now, by the address of their numbers."""


class CastingHook(LayerwiseCastingHook):
    """While a layer computes, its weights are cast from eight bits. Copies of a network share the weights."""

    unrounded_is_kept = True
    """See :func:`efface.models.plain.is_stored`."""

    def __init__(self, compute_dtype: torch.dtype) -> None:
        super().__init__(FP8, compute_dtype, non_blocking=False)
        self.fn_ref: Any = None

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        return module  # the weights are in eight bits before

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
        return module  # the unrounded weights are put back afterwards

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stored = {n: p for n, p in module._parameters.items() if p is not None and p.dtype == FP8}
        mine = {n: Cast(p.data.to(self.compute_dtype), p.data) for n, p in stored.items()}
        _casts.update({cast.weight.data_ptr(): cast for cast in mine.values()})
        try:
            # Others than the parameters themselves: a graph would keep those, and find them in eight bits again.
            module._parameters.update({n: cast.weight for n, cast in mine.items()})
            return self.fn_ref.original_forward(*args, **kwargs)
        finally:
            module._parameters.update(stored)
            for cast in mine.values():
                del _casts[cast.weight.data_ptr()]


class _View(NamedTuple):
    """How a graph keeps a weight, or a view of it, that was cast from eight bits."""

    stored: Tensor
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _packed(t: Tensor) -> Tensor | _View:
    cast = _casts.get(t.untyped_storage().data_ptr())
    return t if cast is None else _View(cast.stored, t.dtype, t.size(), t.stride(), t.storage_offset())


def _unpacked(kept: Tensor | _View) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    return kept.stored.to(kept.dtype).as_strided(kept.size, kept.stride, kept.offset)


@contextmanager
def kept_in_eight_bits() -> Iterator[None]:
    """Inside, a graph that is recorded keeps the eight bits of the weights that it needs for the backward pass."""
    with torch.autograd.graph.saved_tensors_hooks(_packed, _unpacked):
        yield


@dataclass(frozen=True)
class Rounded:
    """What a network stores in eight bits, and what was there before."""

    network: nn.Module
    unrounded: dict[str, Tensor]
    """The weights as they were loaded, in the computer's memory, by their names in the network."""

    @classmethod
    def of(cls, network: nn.Module, compute_dtype: torch.dtype) -> Rounded:
        """Stores every layer of :func:`storable`. Raises BadOption for a weight that eight bits cannot hold."""
        layers, largest = storable(network), torch.finfo(FP8).max
        for name, layer in layers.items():
            for n, p in layer.named_parameters(recurse=False):
                if p.numel() and not float(p.detach().abs().max()) <= largest:
                    raise BadOption(
                        f"{name}.{n} has an entry that is not a number or larger than {largest:g}, the largest in fp8; load the "
                        "model without storage=fp8."
                    )
        unrounded = {}
        for name, layer in layers.items():
            for n, p in layer.named_parameters(recurse=False):
                unrounded[f"{name}.{n}"] = p.data.cpu()
                p.data = p.data.to(FP8)
            HookRegistry.check_if_exists_or_initialize(layer).register_hook(CastingHook(compute_dtype), STORING_HOOK)
        return cls(network, unrounded)

    def original(self, name: str, p: nn.Parameter) -> Tensor:
        """A parameter's numbers before they were rounded."""
        return self.unrounded[name] if p.dtype == FP8 else p

    def restore(self, select: Select) -> None:
        """Gives the layers that hold a selected parameter their unrounded weights back, from now on."""
        for name, layer in self.network.named_modules():
            mine = dict(layer.named_parameters(recurse=False))
            if is_stored(layer) and any(select(f"{name}.{n}") for n in mine):
                for n, p in mine.items():
                    p.data = self.unrounded[f"{name}.{n}"].to(p.device)
                HookRegistry.check_if_exists_or_initialize(layer).remove_hook(STORING_HOOK, recurse=False)
