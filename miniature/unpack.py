"""Stage ``unpack``: the released weights -> a work folder, so that training can go on from them on another machine.

Optimizer states are not released; a continued stage starts a new schedule from these weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel

from efface.models.icon_world import IconWorld
from efface.models.mini import WEIGHTS, card


def _state(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: v.float().contiguous() if v.is_floating_point() else v for n, v in module.state_dict().items()}, path)


def unpack(world: IconWorld, work: Path) -> None:
    """Refuses a work folder that already holds a trained UNet: that would be newer than the release."""
    if (work / "base0").exists():
        raise SystemExit(f"{work / 'base0'} exists; unpack into an empty work folder.")
    _state(UNet2DConditionModel.from_pretrained(WEIGHTS / "gold", subfolder="unet"), work / "base0" / "unet.safetensors")
    _state(CLIPTextModel.from_pretrained(WEIGHTS, subfolder="text_encoder"), work / "base0" / "text_encoder.safetensors")
    _state(UNet2DConditionModel.from_pretrained(WEIGHTS, subfolder="unet"), work / "base1" / "unet.safetensors")
    AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae").float().save_pretrained(work / "vae")
    CLIPModel.from_pretrained(WEIGHTS / "clip").float().save_pretrained(work / "clip-score")
    (work / "clip-score" / "training.json").write_text(json.dumps(card()["clip"]["training"]))
    shutil.copytree(WEIGHTS / "tokenizer", work / "tokenizer")
    shutil.copytree(WEIGHTS / "detectors", work / "detectors")
    for name in ("report", "selection"):
        (work / "detectors" / f"{name}.json").write_text(json.dumps(card()["detectors"][name]["training"]))
    print(f"unpacked to {work}; go on with render, latents, unet --part base0, unet --part base1, pack, suite, card")
