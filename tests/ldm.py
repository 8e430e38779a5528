"""Tiny models as single checkpoint files under the names of the original Stable Diffusion code, and a Hub cache for them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PREFIX = "model.diffusion_model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PLAIN = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _inside(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    head, _, tail = rest.partition(".")
    return f"{RESNET[head]}.{tail}"


def unet_name(name: str) -> str:
    """Of a network with two levels of one layer each; cross-attention is in the first going down and the last going up."""
    for ours, theirs in PLAIN.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    if m := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        return f"middle_block.{1 if m[1] == 'attentions' else 2 * int(m[2])}.{_inside(m[1], m[3])}"
    m = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert m, name
    side, block, kind, layer, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.2.0.{rest.replace('conv.', 'op.')}"
        return f"input_blocks.{1 + 2 * block}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    if kind == "upsamplers":
        return f"output_blocks.1.1.{rest}"
    return f"output_blocks.{2 * block + layer}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def vae_name(name: str) -> str:
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out")
    if "attn_1" in name:
        for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(ours, theirs)
    return name


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder with projection under OpenCLIP's names: q, k and v are one matrix, the projection is transposed."""
    found: dict[str, Tensor] = {}
    state = {k.removeprefix("text_model."): v for k, v in state.items()}
    for name, value in state.items():
        if m := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            found[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = torch.cat(parts)
        elif (m := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)) and m[2] in OPEN_CLIP:
            found[f"transformer.resblocks.{m[1]}.{OPEN_CLIP[m[2]]}.{m[3]}"] = value
    found["token_embedding.weight"] = state["embeddings.token_embedding.weight"]
    found["positional_embedding"] = state["embeddings.position_embedding.weight"]
    found |= {f"ln_final.{k}": state[f"final_layer_norm.{k}"] for k in ("weight", "bias")}
    found["text_projection"] = state["text_projection.weight"].T
    return found


def checkpoint(pipe: Any) -> dict[str, Tensor]:
    """The state of a tiny pipeline as one file holds it."""
    found = {PREFIX + unet_name(k): v for k, v in pipe.unet.state_dict().items()}
    for k, v in pipe.vae.state_dict().items():
        name = vae_name(k)
        linear = "mid.attn_1" in name and v.ndim == 2
        found[f"first_stage_model.{name}"] = v[:, :, None, None] if linear else v
    text = {f"transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in pipe.text_encoder.state_dict().items()}
    if hasattr(pipe, "text_encoder_2"):
        found |= {f"conditioner.embedders.0.{k}": v for k, v in text.items()}
        found |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(pipe.text_encoder_2.state_dict()).items()}
    else:
        found |= {f"cond_stage_model.{k}": v for k, v in text.items()}
    return {k: v.detach().clone().contiguous() for k, v in found.items()}


def cached(home: Path, repo: str, folder: Path, weights: bool = False) -> None:
    """Put a folder where the Hub's client looks for ``repo`` when it is offline."""
    root, commit = home / "hub" / f"models--{repo.replace('/', '--')}", "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit, "utf-8")
    leave = shutil.ignore_patterns() if weights else shutil.ignore_patterns("*.safetensors", "*.bin")
    shutil.copytree(folder, root / "snapshots" / commit, ignore=leave)
