"""A patch in the formats that other tools read. What was written is read again and compared with the patch before it counts.

``diffusers``  a LoRA for ``load_lora_weights``: ``unet.<module>.lora_A.weight`` (down), ``lora_B.weight`` (up), ``lora_B.bias``;
               ``transformer.<module>`` for Stable Diffusion 3 and FLUX
``kohya``      a LoRA for web interfaces: ``lora_unet_<module>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``
``diff``       whole weights for web interfaces, norms, biases and text encoders too: ``<kohya name>.diff``, ``.diff_b``,
               ``.w_norm``, ``.b_norm``
``folder``     a diffusers pipeline folder with the changed weights in it; whatever the patch changes
``single-file``  the whole model as one checkpoint of Stable Diffusion 1.x or SDXL, under the original names; the same

A LoRA holds matrices: of the denoiser, and of the text encoders that are CLIPs (``text_encoder.text_model.<module>``,
``lora_te_text_model_<module>``, with two of them ``lora_te1_`` and ``lora_te2_``). One rank serves all of them, alpha is the rank
and the scale is in the matrices: whatever a reader assumes about alpha, the strength is 1. kohya's LoRA has no place for biases,
and peft can fuse one with biases only where every adapted layer of a part has one: ``diffusers`` holds them there. What a LoRA
has no place for is left out and named in a warning. Where layers without a matrix (norms, embeddings) are more than MOST of the
patch's norm, the patch is refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import BadOption, UnknownName
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from ..models.select import ENCODERS, in_checkpoint
from .header import header, module_norms
from .patch import Patch, residual
from .seal import seal
from .whole import SINGLE, write_folder, write_single_file

FORMATS = {
    "diffusers": "LoRA for diffusers pipelines (load_lora_weights)",
    "kohya": "LoRA for web interfaces (kohya's names)",
    "diff": "whole weights for web interfaces (.diff)",
    "folder": "diffusers pipeline folder with the changed weights",
    SINGLE: "whole checkpoint in one file with the original code's names, for web interfaces (SD 1.x, SDXL)",
}
WHOLE = ("folder", SINGLE)
"""Formats that hold the whole model."""
FACTORS = {"diffusers": (".lora_B.weight", ".lora_A.weight"), "kohya": (".lora_up.weight", ".lora_down.weight")}
"""How the names of the two factors of a LoRA end: (up, down)."""
SGM = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
"""Layers that readers know by the name of the original SDXL code alone: diffusers loses them under its own."""
DIFF = {
    ".diff": (False, "weight"),
    ".diff_b": (False, "bias"),
    ".w_norm": (True, "weight"),
    ".b_norm": (True, "bias"),
}
"""How names of whole weights end: whether of a norm, and of which of its tensors."""
TOLERANCE, MOST = 1e-3, 0.1
"""Share of a patch's norm that a LoRA leaves out unless told otherwise; and the most that a given rank may leave out, or that
layers without a matrix may be."""


def export(
    patch: Patch,
    model: DiffusionModel,
    path: str | Path,
    to: str,
    *,
    rank: int = 0,
    tolerance: float | None = None,
    half: bool = False,
) -> dict[str, Any]:
    """Write the patch as ``to`` (one of FORMATS) and return what is in the file.

    rank: of a LoRA; 0: the smallest whose ``residual`` = |written - patch| / |patch| (Frobenius, over all tensors) is at most
    ``tolerance`` (None: TOLERANCE). half: store float16. Returns format, path, tensors, rank, bytes, the residual of what was
    read back, and ``left_out``: tensors of the patch, or components of the folder, that the file does not hold, and tensors that
    no reader of the format looks at. A warning names them. Raises WrongBaseModel, UnknownName for a format, BadOption where the
    format cannot hold the patch or ``rank`` leaves more than MOST of it out, BadFile when the place cannot be written. Cost: one
    SVD per matrix; no UNet evaluation.
    """
    if to not in FORMATS:
        raise UnknownName("export format", to, FORMATS)
    if to not in FACTORS and (rank or tolerance is not None):
        raise BadOption(f"{to} holds whole weights; leave rank and tolerance out, or choose {' or '.join(FACTORS)}.")
    if to in WHOLE and half:
        raise BadOption(f"{to}: the whole model is written in the precision it was loaded in (--dtype); leave half out.")
    if rank < 0 or (rank and tolerance is not None) or not 0 <= (tolerance or 0.0) < 1:
        raise BadOption(f"give a rank of at least 1, or a tolerance from 0 to below 1; got rank={rank}, tolerance={tolerance}.")
    tolerance = TOLERANCE if tolerance is None else tolerance
    patch.check_base(model)
    patch.check_in_checkpoint()
    path = Path(path)
    if to == "folder":
        off, missing = write_folder(patch, model, path)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        facts = {"format": to, "path": str(path), "tensors": len(patch.deltas), "rank": None, "bytes": size}
        return {**facts, "residual": off, "left_out": missing}
    if to == SINGLE:
        off, count = write_single_file(patch, model, path)
        facts = {"format": to, "path": str(path), "tensors": count, "rank": None, "bytes": path.stat().st_size}
        return {**facts, "residual": off, "left_out": []}
    if not model.lora_reader:
        family = model.info["family"]
        raise BadOption(f"diffusers' pipeline of {model.name!r} ({family}) loads no LoRA and no .diff; use the format folder.")
    if model.part != "unet" and to != "diffusers":
        raise BadOption(
            f"{to} has names for UNets alone, and {model.name!r} has a transformer: diffusers reads kohya's names of one without "
            "an error and without an effect. Use the format diffusers, which web interfaces read for this family too, or folder."
        )
    names, chosen = kohya_names(model), None
    live = model.weights(in_checkpoint)
    left_out: list[str] = []
    if to == "diff":
        tensors = {_diff_key(n, names, live): d for n, d in patch.deltas.items()}
        unread = [n for n in patch.deltas if _unread(n)]
        what = "are in the file, but no web interface that reads .diff is known to look at them there; use the format folder"
        _warn(patch, unread, what)
    else:
        matrices, biases = held_by_lora(patch, to, live)
        left_out = sorted(patch.deltas.keys() - matrices.keys() - biases.keys())
        _warn(patch, left_out, f"are left out: a LoRA ({to}) has no place for them; use diff or folder")
        flat, chosen = low_rank_factors(matrices, rank, tolerance)
        factors = {n: _shaped(up, down, patch.deltas[n]) for n, (up, down) in flat.items()}
        tensors = diffusers_lora(factors, biases) if to == "diffusers" else _kohya(factors, names)
    kept = {n: (t.half() if half else t).contiguous() for n, t in tensors.items()}
    told = header(patch, to, module_norms(kept), chosen)
    found = float("nan")
    held = Patch({n: d for n, d in patch.deltas.items() if n not in left_out}, patch.card)

    def write(temporary: Path) -> None:
        nonlocal found
        save_file(kept, temporary, metadata=told)
        seal(temporary)
        stored = load_file(temporary)
        read = read_back(stored, to, names)
        off = residual(held, read)
        if to != "diff":  # by the code of the reader that the documentation names
            off = max(off, residual(held, model.read_lora(stored)))
        # 2^-11 is what half precision may lose of every number, of both factors.
        allowed = (MOST if rank else tolerance) + (2**-10 if half else 1e-5)
        if not off <= allowed:
            raise BadOption(
                f"what was written differs from the patch by {off:.2g} of its norm, more than {allowed:.2g}. "
                + ("Raise the rank, or say with tolerance how much may be left out." if rank else "Leave half out.")
            )
        found = residual(patch, {**{n: torch.zeros_like(patch.deltas[n]) for n in left_out}, **read})

    atomic_write(path, write)
    return {
        "format": to,
        "path": str(path),
        "tensors": len(kept),
        "rank": chosen,
        "bytes": path.stat().st_size,
        "residual": found,
        "left_out": unread if to == "diff" else left_out,
    }


def _warn(patch: Patch, names: Sequence[str], what: str) -> None:
    if names:
        more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
        told = f"{names[0]}{more} ({100 * _share(patch, names):.2g} % of the patch's norm) {what}."
        warnings.warn(told, UserWarning, stacklevel=3)


def _unread(name: str) -> bool:
    """Whether readers of ``.diff`` pass over a tensor: of text encoders they know the linear layers alone."""
    return name.startswith(ENCODERS) and ("norm" in name or ".embeddings." in name)


# -- factors -----------------------------------------------------------------------------------------------------------


def low_rank_factors(matrices: Mapping[str, Tensor], rank: int, tolerance: float) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
    """``{name: (up (out, r), down (r, in))}`` with one r for all: ``rank``, or the smallest whose residual over all matrices is
    at most ``tolerance``. A matrix of a smaller rank is filled up with zeros. Convolutions are read as (out, in k k)."""
    parts = {n: torch.linalg.svd(d.reshape(len(d), -1), full_matrices=False) for n, d in matrices.items()}
    longest = max(len(s) for _, s, _ in parts.values())
    squares = torch.stack([torch.nn.functional.pad(s.double().square(), (0, longest - len(s))) for _, s, _ in parts.values()])
    left_out = 1 - squares.sum(0).cumsum(0) / squares.sum()  # entry r - 1: share of the squared norm that rank r leaves out
    r = rank or 1 + int((left_out > tolerance**2).sum())
    found = {}
    for name, (u, s, v) in parts.items():
        k = min(r, len(s))
        root = s[:k].sqrt()
        up, down = u[:, :k] * root, root[:, None] * v[:k]
        found[name] = torch.nn.functional.pad(up, (0, r - k)), torch.nn.functional.pad(down, (0, 0, 0, r - k))
    return found, r


# -- names -------------------------------------------------------------------------------------------------------------


def kohya_names(model: DiffusionModel) -> dict[str, str]:
    """``{module: kohya's name}`` of every module with weights. One text encoder is called te, of two each has its number."""
    modules = {n.rpartition(".")[0] for n in model.weights(in_checkpoint)}
    two = any(m.startswith("text_encoder_2.") for m in modules)
    prefixes = {
        model.part: "lora_unet_",
        "text_encoder": f"lora_te{'1' if two else ''}_text_model_",
        "text_encoder_2": "lora_te2_text_model_",
    }
    found = {}
    for module in modules:
        part, _, inside = module.partition(".")
        prefix = prefixes[part].removesuffix("text_model_") if inside == "text_projection" else prefixes[part]
        found[module] = prefix + SGM.get(inside, inside.replace(".", "_"))
    return found


def _diff_key(name: str, names: Mapping[str, str], live: Mapping[str, Tensor]) -> str:
    module, _, kind = name.rpartition(".")
    norm = live[f"{module}.weight"].ndim == 1
    return names[module] + next(end for end, part in DIFF.items() if part == (norm, kind))


def held_by_lora(patch: Patch, to: str, live: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The matrices of the patch that a LoRA of this format has a place for, and the biases. live: the weights of the base.

    Raises BadOption where there are none, where more than MOST of the patch's norm is in layers that have no matrix (norms,
    embeddings), and for weights of a T5, for which no reader loads a LoRA.
    """
    for name in patch.deltas:
        if name not in live:
            part = name.partition(".")[0]
            raise BadOption(
                f"a LoRA ({to}) cannot hold {name}: no reader loads one for the {part} of this family, which is a T5."
            )
    matrices = {n: d for n, d in patch.deltas.items() if d.ndim >= 2 and ".embeddings." not in n}
    biases: dict[str, Tensor] = {}
    if to == "diffusers":
        for part in dict.fromkeys(n.partition(".")[0] for n in matrices):
            layers = [n.removesuffix("weight") for n in matrices if n.startswith(f"{part}.")]
            if all(f"{layer}bias" in live for layer in layers):
                biases |= {f"{layer}bias": patch.deltas[f"{layer}bias"] for layer in layers if f"{layer}bias" in patch.deltas}
    rest = sorted(patch.deltas.keys() - matrices.keys() - biases.keys())
    apart = [n for n in rest if f"{n.removesuffix('bias')}weight" not in matrices]
    share = _share(patch, apart)
    if not matrices or share > MOST:
        more = f" and {len(apart) - 1} more tensors" if len(apart) > 1 else ""
        what = f"{apart[0]}{more}, {100 * share:.2g} % of its norm," if apart else "no tensor"
        kv = "" if any(n.startswith(ENCODERS) for n in patch.deltas) else ", or erase with train=xattn-kv"
        raise BadOption(
            f"a LoRA ({to}) cannot hold this patch: it changes {what} and a LoRA has places for matrices. Use the format diff or "
            f"folder{kv}."
        )
    return matrices, biases


def _share(patch: Patch, names: Sequence[str]) -> float:
    """Of the patch's norm, what these tensors are."""
    return Patch({n: patch.deltas[n] for n in names}, patch.card).norm() / patch.norm() if names else 0.0


# -- formats -----------------------------------------------------------------------------------------------------------


def diffusers_lora(factors: Mapping[str, tuple[Tensor, Tensor]], biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA under diffusers' names. factors: ``{weight name: (up, down)}``; biases: by name, of the same layers."""
    up_end, down_end = FACTORS["diffusers"]
    tensors = {}
    with_bias = {n.partition(".")[0] for n in biases}
    for name, (up, down) in factors.items():
        module = name.removesuffix(".weight")
        key = diffusers_name(module)
        tensors[key + down_end], tensors[key + up_end] = down, up
        if module.partition(".")[0] in with_bias:  # readers want a bias for every module of a part, or for none
            tensors[f"{key}.lora_B.bias"] = biases.get(f"{module}.bias", torch.zeros(len(up)))
    return tensors


def diffusers_name(module: str) -> str:
    """A layer's name in a LoRA for diffusers. Of text encoders it has ``text_model.``, which transformers dropped in version 5;
    readers take it off where the encoder is without."""
    part, _, inside = module.partition(".")
    return f"{part}.text_model.{inside}" if f"{part}." in ENCODERS and inside != "text_projection" else module


def _kohya(factors: Mapping[str, tuple[Tensor, Tensor]], names: Mapping[str, str]) -> dict[str, Tensor]:
    up_end, down_end = FACTORS["kohya"]
    tensors = {}
    for name, (up, down) in factors.items():
        key = names[name.removesuffix(".weight")]
        tensors[key + down_end], tensors[key + up_end] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return tensors


def _shaped(up: Tensor, down: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The factors in the shapes of a layer: a convolution's down has its kernel, its up is 1 x 1."""
    if delta.ndim == 2:
        return up, down
    return up.reshape(*up.shape, *(1,) * (delta.ndim - 2)), down.reshape(len(down), *delta.shape[1:])


def read_back(tensors: Mapping[str, Tensor], to: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """``{weight name: change}`` as a reader of the format would make it, from the file's tensors alone. A LoRA of kohya's must
    have its alphas; without one, diffusers' has a scale of 1."""
    modules = {key: module for module, key in names.items()} if to != "diffusers" else {diffusers_name(m): m for m in names}
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if to == "diff":
            name, _, end = key.rpartition(".")
            found[f"{modules[name]}.{DIFF['.' + end][1]}"] = value.float()
        elif key.endswith(FACTORS[to][0]):
            base = key.removesuffix(FACTORS[to][0])
            up, down = value.float(), tensors[base + FACTORS[to][1]].float()
            alpha = tensors[f"{base}.alpha"] if to == "kohya" else tensors.get(f"{base}.alpha", len(down))
            found[f"{modules[base]}.weight"] = float(alpha) / len(down) * (up.flatten(1) @ down.flatten(1))
        elif key.endswith(".lora_B.bias") and bool(value.any()):  # zeros fill up a file whose other layers have one
            found[f"{modules[key.removesuffix('.lora_B.bias')]}.bias"] = value.float()
    return found
