"""Whole models under the names of the original code of CompVis and Stability, as one checkpoint file holds them.

``model.diffusion_model.``                     the UNet, its blocks numbered (:func:`efface.patches.dialects.ldm_names`)
``first_stage_model.``                         the VAE
``cond_stage_model.transformer.``              the text encoder of Stable Diffusion 1.x
``conditioner.embedders.0.transformer.``       the first of SDXL
``conditioner.embedders.1.model.``             the second of SDXL, under OpenCLIP's names

In OpenCLIP's layout the weights of queries, keys and values of a layer are one matrix, (3 d, d), and the projection stands
transposed. In the VAE's attention matrices are convolutions of one pixel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import BadFile, BadOption
from ..models.base import DiffusionModel
from ..models.select import in_checkpoint
from .dialects import ldm_names

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {False: "cond_stage_model.transformer.", True: "conditioner.embedders.0.transformer."}
"""Where the first text encoder stands; True: beside a second one."""
OPEN_CLIP = {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}
"""Where a text encoder under OpenCLIP's names stands; the first is that of Stable Diffusion 2.x."""
IN_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
AROUND_LAYERS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
NO_WEIGHTS = ("logit_scale", "attn_mask")
"""Of OpenCLIP in a checkpoint, what no text encoder computes with."""
VAE_RESNETS = {**{name: name for name in ("norm1", "conv1", "norm2", "conv2")}, "conv_shortcut": "nin_shortcut"}
BETAS = 0.00085, 0.012
"""First and last beta that readers assume, between which square roots rise evenly over 1,000 levels."""
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def to_original(model: Any) -> dict[str, Tensor]:
    """The weights of the model as they are now, and its VAE's, under the original names; on the CPU.

    Raises BadOption for another family than Stable Diffusion 1.x and SDXL, for a layer that has no name there, and for a noise
    schedule or prediction that readers of such a file would not assume.
    """
    _check(model)
    live = {n: w.detach().cpu() for n, w in model.weights(in_checkpoint).items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, w in live.items():
        part, _, inside = name.partition(".")
        parts.setdefault(part, {})[inside] = w
    names = ldm_names({n.rpartition(".")[0] for n in parts["unet"]})
    found = {}
    for name, w in parts["unet"].items():
        module, _, kind = name.rpartition(".")
        if module not in names:
            raise BadOption(f"the original layout of {model.name!r} has no place for unet.{name}. Use the format folder.")
        found[f"{UNET}{names[module]}.{kind}"] = w
    vae = {n: w.detach().cpu() for n, w in model.vae.state_dict().items()}
    levels = len({n.split(".")[2] for n in vae if n.startswith("decoder.up_blocks.")})
    for name, w in vae.items():
        linear = ".attentions." in name and w.ndim == 2
        found[f"{VAE}{_vae_name(name, levels)}"] = w[:, :, None, None] if linear else w
    two = "text_encoder_2" in parts
    found |= {f"{CLIP[two]}text_model.{n}": w for n, w in parts["text_encoder"].items()}
    if two:
        found |= {OPEN_CLIP["text_encoder_2"] + n: w for n, w in to_open_clip(parts["text_encoder_2"]).items()}
    return {n: w.contiguous() for n, w in found.items()}


def from_original(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """What diffusers' own converters make of such a file for a model of this structure: its weights by our names, and those of
    its VAE with ``vae.`` in front."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    kept = dict(tensors)
    clip = {k.removeprefix("text_model."): t for k, t in convert_ldm_clip_checkpoint(kept).items()}
    found = {f"text_encoder.{n}": t for n, t in clip.items()}
    if any(n.startswith(OPEN_CLIP["text_encoder_2"]) for n in kept):
        found |= from_open_clip(kept, "text_encoder_2", model.text_encoder_2)
    found |= {f"unet.{n}": t for n, t in convert_ldm_unet_checkpoint(dict(kept), dict(model.unet.config)).items()}
    return found | {f"vae.{n}": t for n, t in convert_ldm_vae_checkpoint(dict(kept), dict(model.vae.config)).items()}


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's weights, named without ``text_model.``, under OpenCLIP's names."""
    found = {}
    for name, w in weights.items():
        if name in AROUND_LAYERS:
            found[AROUND_LAYERS[name]] = w
        elif name == "text_projection.weight":
            found["text_projection"] = w.T
        else:
            _, _, number, rest = name.split(".", 3)
            layer, (module, _, kind) = f"transformer.resblocks.{number}", rest.rpartition(".")
            if module == "self_attn.q_proj":
                three = [weights[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                found[f"{layer}.attn.in_proj_{kind}"] = torch.cat(three)
            elif module in IN_LAYERS:
                found[f"{layer}.{IN_LAYERS[module]}.{kind}"] = w
    return found


def from_open_clip(tensors: Mapping[str, Tensor], part: str, encoder: Any) -> dict[str, Tensor]:
    """The weights of a text encoder by our names, from a checkpoint that holds it under OpenCLIP's, as diffusers' converter reads
    them. Raises BadFile for a name that it does not know, and for a tensor of another shape than a text encoder's."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING, convert_open_clip_checkpoint

    prefix = OPEN_CLIP[part]
    own = {k: t for k, t in tensors.items() if k.startswith(prefix)}
    known = set(DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values())
    inside = {k.removeprefix(prefix) for k in own}
    strange = [k for k in inside if k not in known and not k.startswith("transformer.resblocks.") and k not in NO_WEIGHTS]
    if strange:
        raise BadFile(f"{prefix + strange[0]!r} names no weight of a text encoder of OpenCLIP.")
    flat = [k for k, t in own.items() if t.ndim != (2 if k.endswith(("in_proj_weight", "text_projection")) else t.ndim)]
    if flat:
        raise BadFile(f"{flat[0]!r} is no matrix; the file is damaged.")
    read = convert_open_clip_checkpoint(encoder, own, prefix=prefix)
    found = {f"{part}.{k.removeprefix('text_model.')}": t for k, t in read.items()}
    if not hasattr(encoder, "text_projection"):
        found.pop(f"{part}.text_projection.weight", None)
    return found


def _vae_name(name: str, levels: int) -> str:
    """The original name of a tensor of the VAE; decoders are numbered from their last block there."""
    match = re.match(r"(encoder|decoder)\.(?:(?:down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)\.(\w+)$", name)
    if match is None:
        return name.replace("conv_norm_out", "norm_out")
    side, block, kind, number, module, end = match.groups()
    if block is None:
        if kind == "attentions":
            return f"{side}.mid.attn_{int(number) + 1}.{VAE_ATTENTION[module]}.{end}"
        return f"{side}.mid.block_{int(number) + 1}.{VAE_RESNETS[module]}.{end}"
    level = f"down.{block}" if side == "encoder" else f"up.{levels - 1 - int(block)}"
    if kind == "resnets":
        return f"{side}.{level}.block.{number}.{VAE_RESNETS[module]}.{end}"
    return f"{side}.{level}.{'downsample' if side == 'encoder' else 'upsample'}.{module}.{end}"


def _check(model: DiffusionModel) -> None:
    family, width = model.info["family"], model.info.get("cross_attention_dim")
    if family not in ("stable-diffusion", "stable-diffusion-xl") or width == 1024:
        why = "its text encoder has a layer there that diffusers' does not have" if width == 1024 else f"it is a {family}"
        raise BadOption(
            f"a single file holds Stable Diffusion 1.x or SDXL, and not {model.name!r}: {why}. Use the format folder."
        )
    schedule: Any = model.schedule
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, 1000, dtype=torch.float64) ** 2
    usual, levels = (1 - betas).cumprod(0), schedule.alphas_cumprod.double().cpu()
    same = levels.shape == usual.shape and torch.allclose(levels, usual, atol=1e-5, rtol=0)  # sums in float32
    if schedule.prediction_type != "epsilon" or not same:
        raise BadOption(
            "a single file does not hold the scheduler, and readers take the family's: the network predicts eps, and betas go "
            f"from {BETAS[0]} to {BETAS[1]}. {model.name!r} predicts {schedule.prediction_type}, or has other betas. Use the "
            "format folder."
        )
