"""Stage ``pack``: the trained parts -> ``src/efface/models/mini/weights``, a half-precision Stable Diffusion 1.x folder.

``gold/unet`` is base0's UNet: the model that never saw the reserved concepts. It shares every other part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from efface.detectors.mini import ARCHITECTURES
from efface.models.icon_world import IconWorld

from . import networks
from .train_unet import scheduler

LIMIT_MB = 40.0


def weights_folder() -> Path:
    return Path(str(resources.files("efface.models.mini"))) / "weights"


def half(module: nn.Module) -> nn.Module:
    return module.to(torch.float16).eval()


def unet(path: Path, sizes: networks.Sizes = networks.MINI) -> UNet2DConditionModel:
    model = networks.unet(sizes)
    model.load_state_dict(load_file(path))
    return half(model)


def text_encoder(work: Path, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    model = networks.text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    model.load_state_dict(load_file(work / "base0" / "text_encoder.safetensors"))
    return half(model)


def pack_clip(work: Path, tokenizer: CLIPTokenizer, folder: Path) -> None:
    half(CLIPModel.from_pretrained(work / "clip-score")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": networks.IMAGE_PX},
        "do_center_crop": True,
        "crop_size": {"height": networks.IMAGE_PX, "width": networks.IMAGE_PX},
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "image_mean": [0.5] * 3,  # trained on images in [-1, 1]
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def pack(world: IconWorld, work: Path) -> None:
    """Write the whole folder beside its place, check its size, then swap it in: a failed pack changes nothing."""
    final = weights_folder()
    folder = final.with_name("weights.new")
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    shipped = work / "base1" / "unet.safetensors"
    if not shipped.exists():
        print("WARNING: base1 is not trained yet; the packed UNet is base0's, which never saw the reserved concepts.")
        shipped = work / "base0" / "unet.safetensors"
    unet(shipped).save_pretrained(folder / "unet")
    unet(work / "base0" / "unet.safetensors").save_pretrained(folder / "gold" / "unet")
    text_encoder(work, tokenizer).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    half(AutoencoderKL.from_pretrained(work / "vae")).save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    write_index(folder)
    if (work / "clip-score" / "model.safetensors").exists():
        pack_clip(work, tokenizer, folder / "clip")
    for name in ARCHITECTURES:
        source = work / "detectors" / f"{name}.safetensors"
        if source.exists():
            (folder / "detectors").mkdir(exist_ok=True)
            shutil.copyfile(source, folder / "detectors" / source.name)
    tidy(folder)
    wanted = (*(f"detectors/{name}.safetensors" for name in ARCHITECTURES), "clip/model.safetensors")
    weigh(folder, LIMIT_MB, wanted)
    swap_in(folder, final)


def write_index(folder: Path) -> None:
    """``model_index.json`` of a Stable Diffusion 1.x without a safety checker."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def tidy(folder: Path) -> None:
    """Configurations without the machine that built them, and files that everybody can read."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where the part was built is nobody's business
        if "dtype" in config:
            # transformers 5 loads in this type, diffusers in float32: a plain from_pretrained would mix the two.
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files that only their owner can read


def weigh(folder: Path, limit: float, wanted: Sequence[str]) -> float:
    """Print what the folder weighs, in megabytes, and what of ``wanted`` it lacks. Stops above the limit."""
    megabytes = {str(p.relative_to(folder)): p.stat().st_size / 1e6 for p in sorted(folder.rglob("*")) if p.is_file()}
    total = sum(megabytes.values())
    for name, size in megabytes.items():
        if size > 0.05:
            print(f"{size:7.2f} MB  {name}")
    for part in wanted:
        if part not in megabytes:
            print(f"WARNING: {part} is not trained yet and not packed.")
    print(f"{total:7.2f} MB  in all (limit {limit:.0f})")
    if total > limit:
        raise SystemExit(f"the weights need {total:.1f} MB, more than the {limit:.0f} MB that may be released; left in {folder}")
    return total


def swap_in(folder: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)
