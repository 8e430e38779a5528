"""Stage ``pack``: the trained parts -> a half-precision Stable Diffusion 1.x folder, the gold models' UNets in folders beside it.

The folder holds a copy of the table that the models were trained for. A part that is not trained yet is named and left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from efface.detectors.mini import ARCHITECTURES
from efface.io.files import write_text
from efface.models.icon_world import IconWorld
from miniature import networks
from miniature.pack import half, pack_clip, swap_in, tidy, unet, weigh, write_index
from miniature.train_unet import scheduler

from .settings import Build, table
from .table import WORLD
from .unet import vae

LIMIT_MB = 90.0
GOLD = {"base0": "gold", "gold-category": "gold-category", "gold-style": "gold-style"}
PACKAGE = WORLD.parent / "weights"


def text_encoder(work: Path, tokenizer: CLIPTokenizer, sizes: networks.Sizes) -> CLIPTextModel:
    """The contrastive text encoder as the plain one that a pipeline loads."""
    model = networks.text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, sizes)
    clip = CLIPModel.from_pretrained(work / "clip-init")
    getattr(model, "text_model", model).load_state_dict(clip.text_model.state_dict(), strict=True)
    return half(model)


def pack(world: IconWorld, work: Path, out: Path | None, build: Build, device: torch.device) -> None:
    """Write the whole folder beside its place, check its size, then swap it in: a failed pack changes nothing.

    The card of the weights that were there before goes with them, because it describes others.
    """
    final = out or PACKAGE
    folder = final.with_name(f"{final.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    trained = work / "base1" / "unet.safetensors"
    if not trained.exists():
        print("WARNING: base1 is not trained yet; the packed UNet is base0's, which never saw the reserved concepts.")
        trained = work / "base0" / "unet.safetensors"
    unet(trained, build.sizes).save_pretrained(folder / "unet")
    for part, name in GOLD.items():
        if (work / part / "unet.safetensors").exists():
            unet(work / part / "unet.safetensors", build.sizes).save_pretrained(folder / name / "unet")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    text_encoder(work, tokenizer, build.sizes).save_pretrained(folder / "text_encoder")
    half(vae(torch.device("cpu"))).save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    write_index(folder)
    if (work / "clip-score" / "model.safetensors").exists():
        pack_clip(work, tokenizer, folder / "clip")
    for name in ARCHITECTURES:
        if (work / "detectors" / f"{name}.safetensors").exists():
            (folder / "detectors").mkdir(exist_ok=True)
            shutil.copyfile(work / "detectors" / f"{name}.safetensors", folder / "detectors" / f"{name}.safetensors")
    write_text(folder / "world.toml", table(build.toy))
    tidy(folder)
    wanted = [f"detectors/{name}.safetensors" for name in ARCHITECTURES] + ["clip/model.safetensors"]
    wanted += [f"{name}/unet/config.json" for name in GOLD.values()]
    weigh(folder, LIMIT_MB, wanted)
    swap_in(folder, final)
