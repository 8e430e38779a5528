"""Four forms of one closed-form edit, equal by ``W' e = (W T) e = W (T e)``, and what can be said about it without an image.

folded weights    ``W' = W + W D`` in every layer                                   :func:`folded`
a Patch           ``W D`` by name, with provenance                                  :func:`to_patch`
a LoRA            ``up_l = W_l U`` and one ``down = V^T`` for all layers, D = U V^T :func:`lora`
a text filter     ``T e`` in place of e, no weight changes: d^2 numbers             :func:`text_filter`, :func:`filtered`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..equations.closed_form import F64, Edit, edited, low_rank, moved, preimage, singular_values
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..patches import Patch, PatchCard
from ..patches.export import diffusers_lora


def folded(base: Mapping[str, Tensor], edit: Edit) -> dict[str, Tensor]:
    """``W + W D`` of every weight (out, d), in float32 on the CPU; half-precision weights are widened first."""
    return {name: edited(w.detach().cpu(), edit) for name, w in base.items()}


def pooled_readers(model: DiffusionModel) -> dict[str, Tensor]:
    """Live weights that read the pooled text in their first columns, by name; none in families without one."""
    reads = model.reads("pooled")
    return {n: p for n, p in model.weights(lambda _: True).items() if reads(n)}


def to_patch(
    base: Mapping[str, Tensor], edit: Edit, card: PatchCard, pooled: tuple[Mapping[str, Tensor], Edit] | None = None
) -> Patch:
    """The edit as a Patch of these weights; ``pooled``: with another edit of what reads the pooled text, whose first columns
    it multiplies. Raises NonFiniteLoss when something is not finite."""
    new = folded(base, edit)
    if pooled is not None:
        readers, second = pooled
        base = {**base, **readers}
        for name, w in readers.items():
            new[name] = w.detach().float().cpu().clone()
            new[name][:, : len(second.left)] = edited(new[name][:, : len(second.left)], second)
    return Patch.between({n: w.detach().float().cpu() for n, w in base.items()}, new, card)


def lora(base: Mapping[str, Tensor], edit: Edit) -> dict[str, tuple[Tensor, Tensor]]:
    """``{weight name: (up (out, r), down (r, d))}`` in float32 with ``up @ down = W D``: exact, and ``down`` is the same tensor
    for every layer. The rank is that of D (singular values above 1e-6 of the largest)."""
    left, right = low_rank(edit)
    down = right.float()
    return {name: ((w.detach().cpu().double() @ left).float(), down) for name, w in base.items()}


def save_lora(path: str | Path, base: Mapping[str, Tensor], edit: Edit) -> None:
    """Write the LoRA under diffusers' names, ``unet.<module>.lora_A.weight`` (down) and ``lora_B.weight`` (up), with no alpha:
    the scale is 1. Raises BadFile when the place cannot be written."""
    # A copy per layer: safetensors refuses tensors that share memory, and readers expect one file entry per layer.
    tensors = {n: t.clone(memory_format=torch.contiguous_format) for n, t in diffusers_lora(lora(base, edit), {}).items()}
    atomic_write(Path(path), lambda p: save_file(tensors, p, metadata={"format": "pt"}))


def text_filter(edit: Edit, c: Cond) -> Cond:
    """``T e`` for every token vector e: feed it to the unedited network. Computed in float64, returned in e's dtype."""
    return replace(c, tokens=moved(edit, c.tokens.cpu()).to(c.tokens))


@contextmanager
def filtered(model: DiffusionModel, edit: Edit) -> Iterator[DiffusionModel]:
    """The model with every encoding filtered inside: the edit without touching a weight."""
    with model.encoding(lambda prompts, plain: text_filter(edit, plain)):
        yield model


@torch.no_grad()
def prompt_gram(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """``sum e e^T`` over every position of every prompt, (d, d) float64: all that a preserved corpus is to an edit. Some prompts
    at a time, so that a large corpus takes no memory."""
    width = model.encode([""]).tokens.shape[-1]
    total = torch.zeros(width, width, dtype=F64)
    for i in range(0, len(prompts), 64):
        rows = model.encode(prompts[i : i + 64]).rows("all").double()
        total += rows.T @ rows
    return total


def facts(edit: Edit, model: DiffusionModel, targets: Sequence[str]) -> dict[str, Any]:
    """What an edit's card says about itself; plain numbers.

    condition: largest over smallest singular value of T (None: T has no inverse); norm: the largest; null_gain:
    ``|T n| / |n|`` over the null prompt's rows; system_condition: of the linear system; rank: of D, as stored.
    bring_back: for the last word of every target, ``length = |c'| / |c|`` of the embedding ``c' = T^-1 c`` that brings the
    concept back exactly, and ``missed = |T c' - c| / |c|``, which is 0 unless T has no inverse there. The worst case is shown
    with its name, because a chain is as strong as that. Cost: 0 UNet evaluations, 4 d^3 operations.
    """
    s = singular_values(edit)
    null = model.encode([""]).tokens[0].cpu().double()
    c = model.encode(targets).last_token().cpu().double()
    back = preimage(edit, c)
    length = back.norm(dim=1) / c.norm(dim=1)
    missed = (moved(edit, back) - c).norm(dim=1) / c.norm(dim=1)
    easiest = int((length + 1e6 * (missed > 1e-3)).argmin())
    return {
        "condition": float(s[0] / s[-1]) if float(s[-1]) > 1e-14 * float(s[0]) else None,
        "norm": float(s[0]),
        "null_gain": float(moved(edit, null).norm() / null.norm()),
        "system_condition": edit.condition,
        "rank": edit.left.shape[1],
        "bring_back": {"target": targets[easiest], "length": float(length[easiest]), "missed": float(missed[easiest])},
    }
