"""Stages ``latents``, ``captions`` and ``unet``: the denoisers.

The text encoder of stage ``clip`` and the miniature's VAE stay as they are.

All four models go on from one ``trunk``, which saw nothing that any of them must not see, with what the trunk saw and what is new
to them. ``base1`` is the shipped model and sees everything that is trained on; ``base0`` never sees the reserved concepts, style
and category, ``gold-category`` not one category more, ``gold-style`` not one style more. So a gold model differs from the shipped
one by what it never saw and by nothing else.
"""

from __future__ import annotations

import json
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
from miniature.train_unet import MIN_SNR_GAMMA, P_RESERVED, latent_table, scheduler, splits
from miniature.trainer import Part, Tables, Trainer, drawn_captions, rows_of, train

from . import settings, sheets

TRUNK = Part("trunk", 61, 1e-3, constant=1.0)
BRANCHES = {
    name: Part(name, seed, 1e-3, P_RESERVED, constant=0.3)
    for name, seed in (("base0", 62), ("base1", 63), ("gold-category", 64), ("gold-style", 65))
}
Cells = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Frozen:
    """The text encoder as the packaged model will have it."""

    text_encoder: Any
    device: torch.device

    @classmethod
    def load(cls, work: Path, device: torch.device) -> Frozen:
        text_encoder = CLIPModel.from_pretrained(work / "clip-init").text_model.to(device).eval().requires_grad_(False)
        return cls(text_encoder, device)

    @torch.no_grad()
    def encode(self, ids: Tensor, batch: int = 2048) -> tuple[Tensor, Tensor]:
        """(B, tokens) ids -> (B, tokens, width), what Stable Diffusion 1.x hands to its UNet, and pooled (B, width), which it
        does not use."""
        hidden, pooled = [], []
        for part in ids.split(batch):
            out = self.text_encoder(part.to(self.device).long())
            hidden.append(out.last_hidden_state.half())
            pooled.append(out.pooler_output.half())
        return torch.cat(hidden), torch.cat(pooled)


def vae(device: torch.device) -> AutoencoderKL:
    """The miniature's, which was trained on the pictures of six icon sets and reconstructs these as well as those."""
    return AutoencoderKL.from_pretrained(MINI, subfolder="vae", torch_dtype=torch.float32).to(device).eval().requires_grad_(False)


def encode_latents(world: IconWorld, work: Path, device: torch.device, augmentations: int) -> None:
    """Stage ``latents``: every picture of every style, the computed ones included, which only the detectors see."""
    latents, backgrounds = latent_table(world, sheets.all_renders(world, work).to(device), vae(device), augmentations)
    save_file({"latents": latents.cpu(), "backgrounds": backgrounds.cpu()}, work / "latents.safetensors")
    print(f"latents {tuple(latents.shape)}")


def write_captions(world: IconWorld, work: Path, captions: int) -> None:
    """Stage ``captions``: so many of every picture that is trained on, tokenized."""
    backgrounds = load_file(work / "latents.safetensors")["backgrounds"]
    texts, drawn = drawn_captions(world, backgrounds, captions, settings.P_STYLE)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    save_file({"drawn": drawn.int(), "ids": ids.short()}, work / "captions.safetensors")
    print(f"captions {len(texts)}")


def seen(world: IconWorld, part: str) -> Cells:
    """The (concept, style) cells that a model sees."""
    ordinary, reserved = (frozenset(cells) for cells in splits(world))

    def of_category(cell: tuple[int, int]) -> bool:
        return world.concepts[cell[0]].group == settings.GOLD_CATEGORY

    def in_style(cell: tuple[int, int]) -> bool:
        return world.styles[cell[1]] == settings.GOLD_STYLE

    if part == "base0":
        return ordinary
    hidden = {
        "base1": lambda cell: False,
        "gold-category": of_category,
        "gold-style": in_style,
        "trunk": lambda cell: cell in reserved or of_category(cell) or in_style(cell),
    }[part]
    return frozenset(cell for cell in ordinary | reserved if not hidden(cell))


def tables_of(world: IconWorld, work: Path, part: str, frozen: Frozen) -> Tables:
    """What a training of this part reads: as ``ordinary`` the rows of the trunk, as ``reserved`` what is new to the part."""
    stored, words = load_file(work / "latents.safetensors"), load_file(work / "captions.safetensors")
    n_styles, augmentations = stored["latents"].shape[1:3]
    hidden, pooled = frozen.encode(words["ids"])
    old = seen(world, "trunk")
    ordinary, new = (
        rows_of(sorted(cells), n_styles, augmentations).to(frozen.device) for cells in (old, seen(world, part) - old)
    )
    return Tables(
        latents=stored["latents"].flatten(0, 2).to(frozen.device),
        captions=words["drawn"].flatten(0, 2).long().to(frozen.device),
        hidden=hidden,
        pooled=pooled,
        ordinary=ordinary,
        reserved=new,
    )


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
    world: IconWorld,
    work: Path,
    part: str,
    seconds: float,
    device: torch.device,
    batch: int,
    build: settings.Build,
    until: float | None = None,
) -> None:
    """Train one UNet until its clock runs out. Run again with more time to continue from the checkpoint."""
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    chosen = TRUNK if part == "trunk" else BRANCHES[part]
    data = tables_of(world, work, part, Frozen.load(work, device))
    torch.manual_seed(chosen.seed)
    network = networks.unet(build.sizes).to(device).train()
    folder = work / part
    folder.mkdir(exist_ok=True)
    if part != "trunk" and not (folder / "resume.pt").exists():
        network.load_state_dict(load_file(work / "trunk" / "unet.safetensors"))

    def save(state: dict[str, Tensor], facts: dict[str, Any]) -> None:
        half = {n: v.detach().to("cpu", torch.float16).contiguous() for n, v in state.items()}  # as it will be released
        save_file(half, folder / "unet.safetensors")
        write_text(folder / "training.json", json.dumps(facts, indent=1) + "\n")

    train(NoiseTrainer(network, data, chosen, batch), seconds, save, checkpoint=folder / "resume.pt", until=until)
