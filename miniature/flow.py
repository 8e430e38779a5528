"""The flow miniature: what its transformer is given, how it is sampled and how it is stored. Training, judging, packing and the
adapter of the packed model must agree on every line of this page.

It is a Stable Diffusion 3 without its T5 encoder: SD3's transformer between the text encoder, tokenizer and VAE of the miniature,
all three frozen and not stored again.

**Text.** SD3 reads two CLIP encoders side by side; here the miniature's one encoder (128 wide, 24 tokens) is both of them, as a
``CLIPTextModelWithProjection`` whose projection is the identity (the miniature has none). What the stock pipeline then makes of a
prompt, with ``max_sequence_length=0`` rows for the missing T5, is:

- ids: padded to 24 tokens with the end-of-text token, cut at 24, no attention mask (the encoder is causal);
- ``encoder_hidden_states`` (B, 24, 256): the hidden states *before* the last layer, without the final norm
  (``hidden_states[-2]``), written twice side by side;
- ``pooled_projections`` (B, 256): the output of the last layer after the final norm at the *first* end-of-text token
  (``pooler_output``), written twice side by side.

The empty prompt is what guidance moves away from.

**Latents.** z = scaling_factor * mean of the VAE's posterior, (B, 4, 12, 12), unpacked. The VAE's configuration has no shift;
SD3's pipeline wants a number there, so a pipeline is built with ``shift_factor = 0.0``.

**Time and output.** z_s = (1 - s) x0 + s n; the network is told ``timestep`` = 1000 s in float32 and predicts v = n - x0
(Esser et al. 2024, arXiv:2403.03206). Sampling is Euler on the grid of ``FlowMatchEulerDiscreteScheduler(shift=1)``; its first
level is s = 1 and its last evaluation is at s = 0.001.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from efface.concepts.prompts import Case
from efface.models.mini import WEIGHTS

from . import networks

FILES = {"base0": "mini-flow-gold.safetensors", "base1": "mini-flow.safetensors"}
"""Stage of training -> its weights. base0 never saw the reserved concepts and the reserved style."""


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """36 image tokens need no shift of the levels."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def twice(text: Tensor) -> Tensor:
    """Both CLIP slots of SD3 hold the same encoder: (..., 128) -> (..., 256)."""
    return torch.cat([text, text], -1)


@dataclass(frozen=True)
class Frozen:
    """The miniature's parts that the flow miniature shares."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    device: torch.device

    @classmethod
    def load(cls, device: torch.device) -> Frozen:
        text_encoder = CLIPTextModel.from_pretrained(WEIGHTS, subfolder="text_encoder", dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae", torch_dtype=torch.float32)
        for module in (text_encoder, vae):
            module.to(device).eval().requires_grad_(False)
        return cls(CLIPTokenizer.from_pretrained(WEIGHTS, subfolder="tokenizer"), text_encoder, vae, device)

    def encode(self, prompts: Sequence[str], batch: int = 2048) -> tuple[Tensor, Tensor]:
        """(B, 24, 128) tokens and (B, 128) pooled vectors, one slot each; :func:`twice` makes the network's input of them."""
        hidden, pooled = [], []
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            ids = self.tokenizer(part, padding="max_length", truncation=True, return_tensors="pt").input_ids
            out = self.text_encoder(ids.to(self.device), output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled.append(out.pooler_output)
        return torch.cat(hidden), torch.cat(pooled)

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images (B, 3, 48, 48) in [0, 1]."""
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class FlowSampler:
    """Draws cases as efface's adapters do: start noise from each case's seed on the CPU, guidance by two branches."""

    transformer: SD3Transformer2DModel
    frozen: Frozen

    @torch.no_grad()
    def sample(self, cases: Sequence[Case], steps: int, batch: int = 512) -> Tensor:
        """Images (N, 3, 48, 48) in [0, 1] on the CPU. Cost: 2 N evaluations for each step."""
        parts = [cases[start : start + batch] for start in range(0, len(cases), batch)]
        return torch.cat([self._draw(part, steps).cpu() for part in parts])

    def _draw(self, cases: Sequence[Case], steps: int) -> Tensor:
        device, n = self.frozen.device, len(cases)
        hidden, pooled = self.frozen.encode([case.prompt for case in cases] + [""] * n)
        hidden, pooled = twice(hidden), twice(pooled)
        guidance = torch.tensor([case.guidance for case in cases], device=device)[:, None, None, None]
        shape = (1, 4, networks.LATENT_PX, networks.LATENT_PX)
        z = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(case.seed)) for case in cases]).to(device)
        grid = scheduler()
        grid.set_timesteps(steps, device=device)
        for k, t in enumerate(grid.timesteps):
            out = self.transformer(
                hidden_states=torch.cat([z, z]),
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                timestep=t.expand(2 * n),
                return_dict=False,
            )[0]
            prompted, empty = out.chunk(2)
            z = z + (grid.sigmas[k + 1] - grid.sigmas[k]) * (empty + guidance * (prompted - empty))
        return self.frozen.decode(z)


def save_network(state: dict[str, Tensor], path: Path, facts: dict[str, Any]) -> None:
    """Half precision, with the facts of its training in the header."""
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path, metadata={"format": "pt", "training": json.dumps(facts)})


def load_network(path: Path) -> tuple[SD3Transformer2DModel, dict[str, Any]]:
    """The stored network in float32, in evaluation mode on the CPU, and the facts of its header."""
    with safe_open(str(path), "pt") as file:
        facts = json.loads(file.metadata()["training"])
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    network = networks.mmdit()
    network.load_state_dict(state)
    return network.eval().requires_grad_(False), facts
