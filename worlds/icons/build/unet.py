"""Stages ``latents`` and ``unet``: the denoisers. The text encoder of stage ``clip`` and the miniature's VAE stay as they are.

``base0`` never sees the reserved concepts, style and category; ``base1`` goes on from it with them and is the shipped model.
``gold-category`` and ``gold-style`` are trained from scratch on everything that ``base1`` sees but one category or one style.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from efface.io.files import write_text
from efface.models.icon_world import IconWorld
from efface.models.mini import WEIGHTS as MINI
from miniature import networks
from miniature.train_unet import MIN_SNR_GAMMA, latent_table, scheduler, splits
from miniature.trainer import PARTS, Part, Tables, Trainer, rows_of, tables, train

from . import settings, sheets

GOLD = {"gold-category": Part("gold-category", 63, 1e-3), "gold-style": Part("gold-style", 64, 1e-3)}


@dataclass(frozen=True)
class Frozen:
    """Tokenizer, text encoder and VAE, as the packaged model will have them."""

    tokenizer: CLIPTokenizer
    text_encoder: Any
    device: torch.device

    @classmethod
    def load(cls, work: Path, device: torch.device) -> Frozen:
        text_encoder = CLIPModel.from_pretrained(work / "clip-init").text_model.to(device).eval().requires_grad_(False)
        return cls(CLIPTokenizer.from_pretrained(work / "tokenizer"), text_encoder, device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch: int = 2048) -> tuple[Tensor, Tensor]:
        """(B, tokens, width), what Stable Diffusion 1.x hands to its UNet, and pooled (B, width), which it does not use."""
        hidden, pooled = [], []
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            ids = self.tokenizer(part, padding="max_length", truncation=True, return_tensors="pt").input_ids
            out = self.text_encoder(ids.to(self.device))
            hidden.append(out.last_hidden_state.half())
            pooled.append(out.pooler_output.half())
        return torch.cat(hidden), torch.cat(pooled)


def vae(device: torch.device) -> AutoencoderKL:
    """The miniature's, which was trained on the pictures of six icon sets and reconstructs these as well as those."""
    return AutoencoderKL.from_pretrained(MINI, subfolder="vae", torch_dtype=torch.float32).to(device).eval().requires_grad_(False)


def encode_latents(world: IconWorld, work: Path, device: torch.device, augmentations: int) -> None:
    """Stage ``latents``: every picture of every style, the computed ones included, which only the detectors see."""
    latents, backgrounds = latent_table(world, sheets.all_renders(world, work), vae(device), augmentations)
    save_file({"latents": latents.cpu(), "backgrounds": backgrounds.cpu()}, work / "latents.safetensors")
    print(f"latents {tuple(latents.shape)}")


def encoded_tables(world: IconWorld, work: Path, frozen: Frozen, captions: int) -> Tables:
    """The tables of both base models, kept in the work folder: encoding the captions costs minutes on a CPU."""
    path = work / "captions.safetensors"
    if not path.exists():
        stored = load_file(work / "latents.safetensors")
        data = tables(world, stored["latents"], stored["backgrounds"], frozen, captions, settings.P_STYLE)
        save_file({f.name: getattr(data, f.name).cpu().contiguous() for f in dataclasses.fields(data)}, path)
    return Tables(**load_file(path, device=str(frozen.device)))


def without(world: IconWorld, data: Tables, category: str = "", style: str = "") -> Tables:
    """All that base1 sees, less the concepts of a category or one style."""
    n_styles = len(world.all_styles)
    kept = [
        (i, j)
        for i, j in (cell for cells in splits(world) for cell in cells)
        if world.concepts[i].group != category and world.styles[j] != style
    ]
    rows = rows_of(kept, n_styles, len(data.latents) // (len(world.concepts) * n_styles)).to(data.latents.device)
    return dataclasses.replace(data, ordinary=rows, reserved=rows[:0])


class NoiseTrainer(Trainer):
    """Predicts the noise of z = sqrt(a) x0 + sqrt(1 - a) n, as Stable Diffusion 1.x does, weighted by min(SNR, 5) / SNR (Hang et
    al. 2023, arXiv:2303.09556)."""

    def __init__(self, network: Any, data: Tables, part: Part, batch: int) -> None:
        super().__init__(network, data, part, batch)
        self.alphas = scheduler().alphas_cumprod.to(self.device)
        snr = self.alphas / (1 - self.alphas)
        self.weight = snr.clamp(max=MIN_SNR_GAMMA) / snr

    def draw_levels(self) -> None:
        self.s.random_(0, len(self.alphas), generator=self.rng)

    def error(self, s: Tensor, text: Tensor) -> Tensor:
        t = self.s.long()
        a = self.alphas[t][:, None, None, None]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            z = a.sqrt() * self.x0 + (1 - a).sqrt() * self.noise
            eps = self.network(z, t, self.data.hidden[text].float(), return_dict=False)[0]
        return ((eps.float() - self.noise).square().mean((1, 2, 3)) * self.weight[t]).mean()


def train_part(
    world: IconWorld, work: Path, part: str, seconds: float, device: torch.device, batch: int, build: settings.Build
) -> None:
    """Train one UNet until its clock runs out. Run again with more time to continue from the checkpoint."""
    data = encoded_tables(world, work, Frozen.load(work, device), build.captions)
    chosen = (PARTS | GOLD)[part]
    if part == "gold-category":
        data = without(world, data, category=settings.GOLD_CATEGORY)
    elif part == "gold-style":
        data = without(world, data, style=settings.GOLD_STYLE)
    torch.manual_seed(chosen.seed)
    network = networks.unet(build.sizes).to(device).train()
    folder = work / part
    folder.mkdir(exist_ok=True)
    if part == "base1" and not (folder / "resume.pt").exists():
        network.load_state_dict(load_file(work / "base0" / "unet.safetensors"))

    def save(state: dict[str, Tensor], facts: dict[str, Any]) -> None:
        half = {n: v.detach().to("cpu", torch.float16).contiguous() for n, v in state.items()}  # as it will be released
        save_file(half, folder / "unet.safetensors")
        write_text(folder / "training.json", json.dumps(facts, indent=1) + "\n")

    train(NoiseTrainer(network, data, chosen, batch), seconds, save, checkpoint=folder / "resume.pt")
