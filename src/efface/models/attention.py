"""Reading and steering the cross-attention of a diffusers network by hooks on its projections.

Nothing is replaced: the stock attention runs (fused kernels included), a probe does not change its output by a bit, and when
a context manager ends, also by an exception, its hooks are gone. Inside, the network runs eagerly and stores its activations:
a compiled network would not see hooks that came after compilation, and gradient checkpointing would run the forward pass again
in backward, when they are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
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
    """The cross-attention layers of the named place. Raises UnknownName, and BadOption for a network that has none there."""
    if place not in PLACES:
        raise UnknownName("place of cross-attention", place, PLACES)
    # The blocks of a transformer are all alike: they are "inmidout".
    inside = (*PLACES[place], *(("transformer_blocks.", "blocks.") if place == "inmidout" else ()))
    found = [m for n, m in unet.named_modules() if n.endswith(".attn2") and n.startswith(inside)]
    if not found:
        raise BadOption(f"this network has no cross-attention in {place!r}; choose another place.")
    return found


@contextmanager
def hooked(unet: nn.Module, handles: Iterable[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Run plainly with these hooks, and remove them at the end, whatever happens."""
    handles = list(handles)
    recomputing = [m for m in unet.modules() if getattr(m, "gradient_checkpointing", False)]
    compiled = getattr(unet, "_compiled_call_impl", None) is not None
    try:
        for module in recomputing:
            module.gradient_checkpointing = False
        # Asked only when needed: the stance imports torch's compiler, which takes seconds.
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for module in recomputing:
            module.gradient_checkpointing = True
        for handle in handles:
            handle.remove()


@contextmanager
def probed(unet: nn.Module) -> Iterator[list[Tensor]]:
    """A list that every forward fills anew with one (B, heads, P, L) per cross-attention layer, in order of evaluation.

    Differentiable. The layers' own output is untouched; the maps are computed beside it from the same queries and keys.
    """
    maps: list[Tensor] = []
    handles = [unet.register_forward_pre_hook(lambda module, args: maps.clear())]
    for layer in cross_attentions(unet):
        seen: dict[str, Tensor] = {}

        def keep(name: str, seen: dict[str, Tensor] = seen) -> Callable[..., None]:
            return lambda module, args, output: seen.__setitem__(name, output)

        def collect(module: Any, args: Any, facts: Any, output: Any, seen: dict[str, Tensor] = seen) -> None:
            queries, keys = seen.pop("q"), seen.pop("k")
            with torch.autocast(queries.device.type, enabled=False):  # maps are float32, whatever the network runs in
                maps.append(probabilities(queries, keys, module.heads, facts.get("attention_mask")))

        # Where queries and keys are normalised, attention multiplies what the norms give.
        seen_at = [getattr(layer, f"norm_{x}", None) or getattr(layer, f"to_{x}") for x in "qk"]
        handles += [
            *(module.register_forward_hook(keep(x)) for module, x in zip(seen_at, "qk", strict=True)),
            layer.register_forward_hook(collect, with_kwargs=True),
        ]
    with hooked(unet, handles):
        yield maps


@contextmanager
def extended(unet: nn.Module, keys: Tensor, values: Tensor, place: str) -> Iterator[None]:
    """The layers of ``place`` read more text: ``K = W_K [c ; keys]``, ``V = W_V [c ; values]``, queries as before.

    keys, values: (B, m, d) in the space of the text encoder's output, or (1, m, d) for every row. A zero row is not no row:
    its logit 0 still takes softmax mass. m = 0 is the stock layer.
    """

    m = keys.shape[1]

    def longer(module: Any, args: Any, facts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "encoder_hidden_states" not in facts:  # Wan gives it by its place, and masks nothing
            return (args[0], nn.functional.pad(args[1], (0, 0, 0, m)), *args[2:]), facts
        context, mask = facts["encoder_hidden_states"], facts.get("attention_mask")
        facts = {**facts, "encoder_hidden_states": nn.functional.pad(context, (0, 0, 0, m))}
        return args, facts if mask is None else {**facts, "attention_mask": nn.functional.pad(mask, (0, m))}  # a bias of 0: read

    def filled(rows: Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            (context,) = args
            text = context[:, : context.shape[1] - m]
            return (torch.cat([text, rows.to(context.dtype).expand(len(context), -1, -1)], dim=1),)

        return hook

    layers = cross_attentions(unet, place)
    projections = [pair for layer in layers for pair in ((layer.to_k, keys), (layer.to_v, values))]
    handles = [layer.register_forward_pre_hook(longer, with_kwargs=True) for layer in layers]
    handles += [projection.register_forward_pre_hook(filled(rows)) for projection, rows in projections]
    with hooked(unet, handles):
        yield


@contextmanager
def start_detached(unet: nn.Module) -> Iterator[None]:
    """Key and value of position 0 (start of text) carry no gradient, so that training cannot use what every prompt shares."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    projections = [projection for layer in cross_attentions(unet) for projection in (layer.to_k, layer.to_v)]
    with hooked(unet, [projection.register_forward_hook(hook) for projection in projections]):
        yield
