"""Nodes for ComfyUI that apply erasures of efface. Copy this folder into ``custom_nodes``, patches into ``models/efface``.

``Efface: apply``         a patch on MODEL and CLIP, with a strength; chain several for a stack
``Efface: certificate``   what a patch says of itself: target, method, base, and what was measured

It needs nothing but ComfyUI: efface itself need not be installed. Weights are changed through ComfyUI's own patcher, which keeps
the originals. A patch of another base model, and a file with a changed byte, are refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct

import comfy.lora
import folder_paths
import torch
from safetensors.torch import load_file

PLACE = re.compile(rb'"efface_sha256":\s*"([0-9a-f]{64})"')
NARROW, SMALLEST = 2.0**-8 + 2.0**-11, 2.0**-24
"""How far an entry of the base may be from the recorded one: the rounding of both half precisions."""

folder_paths.folder_names_and_paths.setdefault("efface", ([os.path.join(folder_paths.models_dir, "efface")], {".safetensors"}))


def read_header(path: str) -> dict[str, str]:
    """The header's texts of a patch whose every byte is as it was written. Raises ValueError for anything else."""
    with open(path, "rb") as f:
        data = f.read()
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        raise ValueError(f"{path} is truncated or no safetensors file.")
    places = [m.start(1) + 8 for m in PLACE.finditer(data[8 : 8 + length])]
    if len(places) != 1:
        raise ValueError(f"{path} is no sealed patch of efface; write it again with a current version.")
    (at,) = places
    if hashlib.sha256(data[:at] + b"0" * 64 + data[at + 64 :]).hexdigest() != data[at : at + 64].decode():
        raise ValueError(f"{path} is not as it was written: it is damaged, or somebody changed it.")
    facts: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if facts.get("format") != "efface-patch":
        raise ValueError(f"{path} is an export of efface; load it with ComfyUI's own LoRA loader.")
    return facts


def keys_of(model: object, clip: object | None, names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """``{our weight name: ComfyUI's}`` of the denoiser and of the text encoders. Raises ValueError for one without a name."""
    unet = comfy.lora.model_lora_keys_unet(model.model, {})
    text = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip is not None else {}
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name in names:
        part, _, rest = name.partition(".")
        module, _, kind = rest.rpartition(".")
        flat = module.replace(".", "_")
        if part == "unet":
            key, mine = unet.get(f"lora_unet_{flat}"), found[0]
        elif clip is None:
            raise ValueError("the patch changes the text encoder: connect CLIP too.")
        else:
            prefixes = ("lora_te2_",) if part == "text_encoder_2" else ("lora_te1_", "lora_te_")
            text_model = flat if module == "text_projection" else f"text_model_{flat}"
            key, mine = next((text[p + text_model] for p in prefixes if p + text_model in text), None), found[1]
        if key is None:
            raise ValueError(f"this model has no weight {name}: the patch was made for another family of models.")
        mine[name] = f"{key.removesuffix('.weight')}.{kind}"
    return found


def check_base(card: dict, live: dict[str, torch.Tensor], keys: dict[str, str], known: list[str]) -> None:
    """Compare one entry of every tensor of the denoiser with those on the card. Raises ValueError for another base model.

    The card has the entries of all tensors in the order of their names, in which those of the denoiser come last. ``known``: the
    names of all weights of the denoiser. A fine-tune by less than the rounding of half precision passes.
    """
    raw = base64.b64decode(card["base"]["sketch"])
    entries = struct.unpack(f"<{len(raw) // 4}f", raw)[-len(known) :]
    if len(entries) < len(known):
        raise ValueError("the patch was made for a smaller model than this one.")
    for name, entry in zip(sorted(known), entries, strict=True):
        w = live[keys[name]].reshape(-1)
        x = float(w[int(0.618 * w.numel())].float())
        if abs(x - entry) > NARROW * max(abs(x), abs(entry)) + SMALLEST:
            raise ValueError(f"the patch was made for {card['base'].get('name')!r}, and this is another model: {name} differs.")


class EffaceApply:
    """A patch on a model."""

    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "certificate")
    FUNCTION = "apply"
    CATEGORY = "efface"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        strength = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.01})
        return {
            "required": {"model": ("MODEL",), "patch": (folder_paths.get_filename_list("efface"),), "strength": strength},
            "optional": {"clip": ("CLIP",)},
        }

    def apply(self, model: object, patch: str, strength: float, clip: object | None = None) -> tuple:
        path = folder_paths.get_full_path("efface", patch)
        card = json.loads(read_header(path)["card"])
        deltas = {n.removeprefix("delta."): d for n, d in load_file(path).items()}
        in_unet, in_text = keys_of(model, clip, list(deltas))
        if in_unet:
            known = names_of_unet(model)
            every, _ = keys_of(model, None, known)
            check_base(card, dict(model.model.state_dict()), every, known)
        model = self._patched(model, in_unet, deltas, strength)
        clip = self._patched(clip, in_text, deltas, strength) if clip is not None else None
        return model, clip, certificate(card, strength)

    @staticmethod
    def _patched(patcher: object, keys: dict[str, str], deltas: dict[str, torch.Tensor], strength: float) -> object:
        made = patcher.clone()
        taken = made.add_patches({keys[n]: ("diff", (deltas[n],)) for n in keys}, strength)
        missed = sorted(set(keys.values()) - set(taken))
        if missed:
            raise ValueError(f"ComfyUI did not take {missed[0]} (and {len(missed) - 1} more); the erasure would be incomplete.")
        return made


def names_of_unet(model: object) -> list[str]:
    """Every weight of the denoiser under diffusers' names, with ``unet.`` in front, from ComfyUI's own table."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    live = model.model.state_dict()
    return sorted(f"unet.{n}" for n, key in names.items() if f"diffusion_model.{key}" in live)


class EffaceCertificate:
    """What a patch says of itself."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "read"
    CATEGORY = "efface"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"patch": (folder_paths.get_filename_list("efface"),)}}

    def read(self, patch: str) -> tuple[str]:
        return (certificate(json.loads(read_header(folder_paths.get_full_path("efface", patch))["card"])),)


def certificate(card: dict, strength: float = 1.0) -> str:
    """The card in a few lines. What was measured holds at strength 1."""
    lines = [f"{', '.join(card['request']['targets'])} erased by {card['method']} from {card['base'].get('name')}"]
    rates = (card.get("measured", {}).get("evaluation") or {}).get("rates", {})
    if strength != 1.0:
        lines.append(f"Strength {strength:g}: nothing was measured at this strength.")
    elif not rates:
        lines.append("Nothing was measured.")
    else:
        lines += [
            f"{axis}: {r['measure']} {r['k']} of {r['n']} [{100 * r['low']:.0f}, {100 * r['high']:.0f}] %"
            for axis, r in rates.items()
        ]
    return "\n".join([*lines, "An erasure is not a guarantee."])


NODE_CLASS_MAPPINGS = {"EffaceApply": EffaceApply, "EffaceCertificate": EffaceCertificate}
NODE_DISPLAY_NAME_MAPPINGS = {"EffaceApply": "Efface: apply", "EffaceCertificate": "Efface: certificate"}
