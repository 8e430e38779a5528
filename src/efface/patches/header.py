"""What a file of efface says about itself in its header, so that it can be checked without the patch that it was made from.

``efface_card``    the whole card as JSON, without pictures
``efface_format``  which of the formats of :mod:`efface.patches.export` it is
``efface_change``  the digest of the patch that it holds (:meth:`efface.Patch.digest`)
``efface_norms``   the Frobenius norm of the change of every layer, by the layer's name in the file; of a whole checkpoint, the
                   norm of every tensor
``efface_sha256``  the seal of the file (:mod:`efface.patches.seal`)

The seal finds every changed byte. Where another program wrote the file again, it kept the header at best and the seal fits no
more; the norms then still tell whether a layer is missing or scaled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import BadFile
from .dialects import role_of
from .patch import Patch
from .seal import BLANK, KEY

NOTICE = "An erasure is not a guarantee; see the card for what was measured."
VERSIONS = {  # of the base model, as kohya's trainer and the model specification call it
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    "sd2": ("sd_v2", "stable-diffusion-v2-768-v"),
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd3": ("sd3", "stable-diffusion-3-medium"),
    "flux": ("flux1", "flux-1-dev"),
    "flux-schnell": ("flux1", "flux-1-schnell"),
    "sana": ("sana", "sana"),  # of these three neither has a name
    "z-image": ("z-image", "z-image"),
    "wan": ("wan", "wan"),
}
CODES = {"diffusers": "diffusers", "single-file": "https://github.com/Stability-AI/generative-models"}
"""Whose code an export is laid out for, as the model specification names it."""


def header(patch: Patch, to: str, norms: Mapping[str, float], rank: int | None = None) -> dict[str, str]:
    """The header of an export; all values are strings. norms: of its layers (:func:`module_norms`) or, of a whole checkpoint, of
    its tensors (:func:`tensor_norms`). rank: of a LoRA, else None."""
    version, architecture = VERSIONS[_kind(patch.card.base)]
    title = f"{patch.card.method} without {', '.join(patch.card.request.asked)}"
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return {
        "format": "pt",
        "ss_base_model_version": version,
        **(network if rank and to == "kohya" else {}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture if to == "single-file" else f"{architecture}/lora",
        "modelspec.implementation": CODES.get(to, "https://github.com/kohya-ss/sd-scripts"),
        "modelspec.title": title,
        "modelspec.description": NOTICE,
        "efface_card": json.dumps(patch.card.json(pictures=False), sort_keys=True),
        "efface_format": to,
        "efface_change": patch.digest(),
        "efface_norms": json.dumps(dict(norms), sort_keys=True),
        KEY: BLANK,
    }


def _kind(base: Mapping[str, Any]) -> str:
    family = base.get("family", "")
    named = {"stable-diffusion-xl": "sdxl", "stable-diffusion-3": "sd3"}.get(family, family if family in VERSIONS else "")
    if named:
        return "flux-schnell" if named == "flux" and not base.get("takes_guidance", True) else named
    return "sd2" if base.get("cross_attention_dim") == 1024 else "sd1"


def module_norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """``{layer, as the file calls it: norm of its change}``: of a LoRA ``alpha / rank |up down|``, of a whole tensor its own.

    ``|up down|^2 = tr(up^T up down down^T)``, so that no product of the size of the layer is made. Raises BadFile for half a
    LoRA and for a tensor that is none of an adapter's.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = role_of(key)
        if found is None:
            raise BadFile(f"the tensor {key!r} is none of an adapter.")
        groups.setdefault(found[0], {})[found[1]] = tensor
    return {module: sum(_squares(module, group)) ** 0.5 for module, group in sorted(groups.items())}


def _squares(module: str, group: Mapping[str, Tensor]) -> list[float]:
    if ("up" in group) != ("down" in group):
        raise BadFile(f"{module!r} has one factor of a LoRA and not the other.")
    found = [float(group[role].double().square().sum()) for role in ("weight", "bias") if role in group]
    if "up" in group:
        up, down = group["up"].double().flatten(1), group["down"].double().flatten(1)
        if up.shape[1] != len(down) or not len(down):
            raise BadFile(f"the factors of {module!r} have ranks {up.shape[1]} and {len(down)}.")
        alpha = group.get("alpha")
        if alpha is not None and alpha.numel() != 1:
            raise BadFile(f"{module!r} has an alpha of {alpha.numel()} numbers.")
        scale = (float(alpha) if alpha is not None else len(down)) / len(down)
        found.append(scale**2 * float(((up.T @ up) * (down @ down.T)).sum()))
        if "up bias" in group:
            found.append(scale**2 * float(group["up bias"].double().square().sum()))
    return found


def tensor_norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """``{name: Frobenius norm}`` of every tensor of a whole checkpoint."""
    return {name: float(t.double().norm()) for name, t in sorted(tensors.items())}
