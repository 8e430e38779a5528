"""Four equal forms of one closed-form edit ``W' = W T = W (I + D)``, and what can be said about it
without an image.

They are equal because ``W' e = (W T) e = W (T e)`` for every text vector e:

    folded weights    ``W' = W + W D`` in every layer                             :func:`folded`
    a patch           ``W D`` by name, with a card                                :func:`to_patch`
    a LoRA            ``up_l = W_l U``, one ``down = V^T`` for all; D = U V^T     :func:`lora`
    a text filter     ``T e`` in place of e; no weight changes, d^2 numbers       :func:`text_filter`
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

from ..concepts.spaces import ConceptSpace
from ..equations.closed_form import F64, Edit, answered, edited, low_rank, moved, preimage, singular_values
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..patches import Patch, PatchCard
from ..patches.export import diffusers_lora


def folded(base: Mapping[str, Tensor], edit: Edit) -> dict[str, Tensor]:
    """``W + W D`` of every weight (out, d), in float32 on the CPU. Half-precision weights are
    widened first."""
    return {name: edited(w.detach().cpu(), edit) for name, w in base.items()}


def pooled_readers(model: DiffusionModel) -> dict[str, Tensor]:
    """The model's weights that read the pooled text vector in their first columns, by name. Some
    families have none."""
    reads = model.reads("pooled")
    return {n: p for n, p in model.weights(lambda _: True).items() if reads(n)}


def to_patch(
    base: Mapping[str, Tensor], edit: Edit, card: PatchCard, pooled: tuple[Mapping[str, Tensor], Edit] | None = None
) -> Patch:
    """The edit as a patch of these weights. Raises NonFiniteLoss when something is not finite.

    ``pooled`` gives weights that read the pooled text vector in their first columns, and another
    edit for those columns.
    """
    deltas = _changes(base, edit)
    if pooled is not None:
        readers, second = pooled
        read = len(second.left)
        for name, change in _changes({n: w[:, :read] for n, w in readers.items()}, second).items():
            deltas[name] = torch.zeros(readers[name].shape)
            deltas[name][:, :read] = change
    return Patch.of(deltas, card)


def _changes(base: Mapping[str, Tensor], edit: Edit) -> dict[str, Tensor]:
    """``W' - W`` of every weight in float32 on the CPU, made on the GPU where the weights lie on one: of SDXL's 140 matrices, the
    CPU would first have to get and widen all numbers. On other devices float64 may be missing."""
    lies = next(iter(base.values())).device
    device = lies if lies.type == "cuda" else torch.device("cpu")
    there, wide = edit.to(device), (w.detach().to(device, torch.float32) for w in base.values())
    return {name: (edited(w, there) - w).cpu() for name, w in zip(base, wide, strict=True)}


def lora(base: Mapping[str, Tensor], edit: Edit) -> dict[str, tuple[Tensor, Tensor]]:
    """The edit as a LoRA: ``{weight name: (up (out, r), down (r, d))}`` in float32 with ``up @ down
    = W D``.

    This is exact, and ``down`` is the same tensor for every layer. The rank is that of D, counting
    singular values above 1e-6 of the largest.
    """
    left, right = low_rank(edit)
    down = right.float()
    return {name: ((w.detach().cpu().double() @ left).float(), down) for name, w in base.items()}


def save_lora(path: str | Path, base: Mapping[str, Tensor], edit: Edit) -> None:
    """Write the LoRA under diffusers' names, ``unet.<module>.lora_A.weight`` (down) and
    ``lora_B.weight`` (up).

    There is no alpha, so the scale is 1. Raises BadFile when the file cannot be written.
    """
    # Every layer gets a copy, because safetensors refuses tensors that share memory and readers expect an entry for each layer.
    tensors = {n: t.clone(memory_format=torch.contiguous_format) for n, t in diffusers_lora(lora(base, edit), {}).items()}
    atomic_write(Path(path), lambda p: save_file(tensors, p, metadata={"format": "pt"}))


def text_filter(edit: Edit, c: Cond) -> Cond:
    """``T e`` in place of every token vector e, for the unedited network. Computed in float64 and
    returned in the dtype of e."""
    return replace(c, tokens=moved(edit, c.tokens.cpu()).to(c.tokens))


OTHERS, BATCH = 64, 16
"""How many other names are looked at, and how many of them the text encoders read together: some need gigabytes for more."""
READ = 32768
"""How many keys and values of a token are looked at, evenly spaced, where there are more. SDXL has 166,400; on a CPU, all of them
would take longer than the edit. Stable Diffusion 1.x has 24,960."""


def side_effect(edit: Edit, model: DiffusionModel, targets: Sequence[str]) -> dict[str, Any] | None:
    """See :func:`facts`. None where the model knows no other names, and where the edit does not move the targets."""
    space = ConceptSpace.of("world", model.concept_names) if model.concept_names else ConceptSpace.english()
    others = space.without(targets).candidates
    if not others:
        return None
    others = others[:: -(-len(others) // OTHERS)]
    # In float32 and where the weights lie: two digits are asked for, and on the CPU the sums take as long as the edit.
    maps = [w.detach() for w in model.weights(model.reads()).values()]
    every = -(-sum(len(w) for w in maps) // READ) | 1  # odd, so that it meets all places of an attention head
    s = sum((w.T @ w for w in (w[::every].float() for w in maps)), torch.zeros((), device=model.device))
    there = edit.to(s)

    def squares(names: Sequence[str]) -> Tensor:
        """(n, 2) in float64 on the CPU: of every name, the square of the change and of what is read without the edit."""
        c = model.encode(names)
        each = [c[[i]].rows("last..end") for i in range(len(c))]
        rows = torch.cat(each).to(s)
        change = rows @ there.left.T if there.right is None else (rows @ there.right.T) @ there.left.T
        found = torch.stack([answered(change, s), answered(rows, s)], dim=1).cpu().double()
        return torch.stack([of_name.sum(0) for of_name in found.split([len(r) for r in each])])

    change, plain = squares(targets).sum(0)
    if not change:
        return None
    found = torch.cat([squares(others[start : start + BATCH]) for start in range(0, len(others), BATCH)])
    shares = sorted(zip(((found[:, 0] / found[:, 1]) / (change / plain)).sqrt().tolist(), others, strict=True))
    return {
        "names": len(others),
        "median": shares[len(shares) // 2][0],
        "worst": {"name": shares[-1][1], "share": shares[-1][0]},
    }


@contextmanager
def filtered(model: DiffusionModel, edit: Edit) -> Iterator[DiffusionModel]:
    """Inside this context, the model filters every encoding: the edit without a changed weight."""
    with model.encoding(lambda prompts, plain: text_filter(edit, plain)):
        yield model


@torch.no_grad()
def prompt_gram(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """``sum e e^T`` over every position of every prompt, (d, d) float64: all that an edit needs to
    know of preserved prompts.

    A few prompts are encoded at a time, so that memory does not grow with their number.
    """
    width = model.encode([""]).tokens.shape[-1]
    total = torch.zeros(width, width, dtype=F64)
    for i in range(0, len(prompts), 64):
        rows = model.encode(prompts[i : i + 64]).rows("all").double()
        total += rows.T @ rows
    return total


def facts(edit: Edit, model: DiffusionModel, targets: Sequence[str]) -> dict[str, Any]:
    """What the card of an edit says about it, as plain numbers.

    - condition: largest over smallest singular value of T; None where T has no inverse.
    - norm: the largest singular value of T.
    - null_gain: ``|T n| / |n|`` over the rows n of the empty prompt.
    - system_condition: condition number of the linear system that was solved.
    - rank: the rank of D as it is stored.
    - side_effect: how much the network reads of other names changes, relative to what it reads of the targets. What it reads
      of a name are the keys and values of its rows from the last word to the end, of which evenly spaced ones are looked at
      where a row has more than ``READ``. Their change is ``|W D q| / |W q|``. The ``median`` is over ``names`` other names of
      the model's world, or English nouns; ``worst`` is the name that changes most.
    - bring_back: for the last word c of a target, the ``length = |c'| / |c|`` of the embedding ``c'
      = T^-1 c`` that brings the target back exactly, and ``missed = |T c' - c| / |c|``, which is 0
      unless T has no inverse there. Only the target that is brought back most easily is shown, with
      its name, because the edit is as strong as that.

    Cost: no UNet evaluations, 4 d^3 operations, and the encodings of the other names.
    """
    s = singular_values(edit)
    null = model.encode([""]).rows("all").double()
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
        "side_effect": side_effect(edit, model, targets),
        "bring_back": {"target": targets[easiest], "length": float(length[easiest]), "missed": float(missed[easiest])},
    }
