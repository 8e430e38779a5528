"""Networks of true size with random weights, built on the device itself, and tiny ones of the same classes for a rehearsal.

Nothing is loaded and nothing travels: modules are made on the meta device, given memory on the GPU and filled there. Random
weights run the same kernels on the same memory as trained ones, so speed and memory are those of the model; losses and pictures
mean nothing. The vocabulary and the VAE are the tiny model's; the text encoders have their true sizes, because methods keep them
on the device and some train them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efface.concepts.spaces import ConceptSpace
from efface.models.sd import StableDiffusion
from efface.models.sdxl import StableDiffusionXL
from efface.models.tiny import tiny, tiny_xl

TARGET, TOKENS = "cat", 77
BF16 = torch.bfloat16
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
SD3: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
    "in_channels": 16,
    "out_channels": 16,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
SD3_TINY: dict[str, Any] = {
    "sample_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
    "in_channels": 4,
    "out_channels": 4,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 40,
}
FLUX: dict[str, Any] = {"guidance_embeds": True}
FLUX_TINY: dict[str, Any] = {
    "guidance_embeds": True,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (2, 2, 4),
}


def filled(make: Callable[[], nn.Module], dtype: torch.dtype, device: str) -> nn.Module:
    """The module with random weights of deviation 0.02, norm weights 1, biases 0, in memory of the device.

    Memory that was only allocated holds garbage, buffers included: raises RuntimeError for a buffer whose content is not known.
    """
    with torch.device("meta"):
        module = make()
    module = nn.Module.to(module, dtype).to_empty(device=device).eval().requires_grad_(False)
    rng = torch.Generator(device).manual_seed(0)
    for name, p in module.named_parameters():
        if p.ndim > 1:
            p.normal_(0, 0.02, generator=rng)
        else:
            p.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, b in module.named_buffers():
        if name.endswith("position_ids"):
            b.copy_(torch.arange(b.shape[-1], device=device).expand_as(b))
        elif name == "pos_embed.pos_embed":  # SD3's table of sines, which is as large as a layer
            b.uniform_(-1, 1, generator=rng)
        else:
            raise RuntimeError(f"{type(module).__name__} has a buffer {name} that nobody fills.")
    return module


def stable_diffusion(name: str, dtype: torch.dtype, device: str, smoke: bool, candidates: int) -> StableDiffusion:
    """``sd15`` or ``sdxl`` as efface's adapter. Its names are the target and so many common English words."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    small = tiny_xl() if name == "sdxl" else tiny()
    sizes = dict(small.unet.config) if smoke else UNETS[name]
    unet = filled(lambda: UNet2DConditionModel(**{k: v for k, v in sizes.items() if not k.startswith("_")}), dtype, device)
    parts: dict[str, Any] = {}
    for end, cls, true in (("", CLIPTextModel, CLIP_L), ("_2", CLIPTextModelWithProjection, BIG_G)):
        if hasattr(small, f"text_encoder{end}"):
            tokenizer, own = getattr(small, f"tokenizer{end}"), getattr(small, f"text_encoder{end}").config
            if not smoke:
                tokenizer.model_max_length = TOKENS
                own = type(own)(**{**own.to_dict(), **true, "max_position_embeddings": TOKENS})
            parts[f"tokenizer{end}"] = tokenizer
            parts[f"text_encoder{end}"] = filled(lambda cls=cls, own=own: cls(own), dtype, device)
    words = ConceptSpace.english().without([TARGET]).candidates[:candidates]
    cls = StableDiffusionXL if name == "sdxl" else StableDiffusion
    model: StableDiffusion = cls(
        name=name,
        unet=unet,
        vae=small.vae.to(device, dtype),
        schedule=small.schedule,
        concept_names=(TARGET, *words),
        **parts,
    )
    return model


Conds = tuple[Tensor, Tensor]
"""Token states (B, L, d) and one pooled vector per row (B, p)."""


@dataclass
class FlowNetwork:
    """A flow transformer alone, for models that efface has no adapter for: forward calls and a student, nothing else."""

    name: str
    net: nn.Module
    channels: int
    text: tuple[int, int, int]
    """Tokens, their width, the pooled vector's width."""
    packed: bool
    dtype: torch.dtype
    device: str

    def latents(self, rows: int, pixels: int, seed: int = 0) -> Tensor:
        """Latents of 8 pixels each; FLUX reads them packed in squares of four."""
        rng, side = torch.Generator(self.device).manual_seed(seed), pixels // 8
        shape = (rows, side * side // 4, self.channels) if self.packed else (rows, self.channels, side, side)
        return torch.randn(shape, generator=rng, device=self.device)

    def conds(self, rows: int, seed: int = 0) -> Conds:
        rng, (length, width, pooled) = torch.Generator(self.device).manual_seed(seed), self.text
        draw = lambda *shape: torch.randn(shape, generator=rng, device=self.device, dtype=self.dtype)  # noqa: E731
        return draw(rows, length, width), draw(rows, pooled)

    def __call__(self, net: nn.Module, z: Tensor, c: Conds, level: float = 0.5) -> Tensor:
        """The network's output, float32, under autocast as efface's adapters run half-precision weights."""
        t = torch.full((len(z),), level, device=z.device)
        given: dict[str, Any] = {"encoder_hidden_states": c[0], "pooled_projections": c[1], "return_dict": False}
        if self.packed:
            side = int(z.shape[1] ** 0.5)
            grid = torch.zeros(side, side, 3, device=z.device)
            grid[..., 1], grid[..., 2] = torch.arange(side, device=z.device)[:, None], torch.arange(side, device=z.device)
            given |= {"img_ids": grid.reshape(-1, 3), "txt_ids": torch.zeros(c[0].shape[1], 3, device=z.device)}
            given |= {"guidance": torch.full((len(z),), 3.5, device=z.device)}
        with torch.autocast(z.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return net(hidden_states=z, timestep=t if self.packed else 1000 * t, **given)[0].float()

    def text_kv(self) -> list[str]:
        """Keys and values of the text: what a method trains here."""
        return [n for n, _ in self.net.named_parameters() if n.endswith((".attn.add_k_proj.weight", ".attn.add_v_proj.weight"))]

    def student(self, names: list[str]) -> tuple[nn.Module, list[nn.Parameter]]:
        """A twin that owns the named weights in float32 and shares every other tensor, and those weights."""
        chosen = {id(p) for n, p in self.net.named_parameters() if n in set(names)}
        shared = {id(v): v for v in (*self.net.parameters(), *self.net.buffers()) if id(v) not in chosen}
        twin: nn.Module = copy.deepcopy(self.net, memo=shared)
        live = dict(twin.named_parameters())
        for n in names:
            live[n].data = live[n].data.float()
            live[n].requires_grad_(True)
        return twin, [live[n] for n in names]


def flow_network(name: str, dtype: torch.dtype, device: str, smoke: bool) -> FlowNetwork:
    """``sd35-medium`` or ``flux``."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    cls, true, small = {
        "sd35-medium": (SD3Transformer2DModel, SD3, SD3_TINY),
        "flux": (FluxTransformer2DModel, FLUX, FLUX_TINY),
    }[name]
    net = filled(lambda: cls(**(small if smoke else true)), dtype, device)
    # Activations of a deep random network grow; a smaller last layer keeps the output in range and costs the same.
    net.proj_out.weight.mul_(0.1)
    config: Mapping[str, Any] = net.config
    length = (16 if smoke else 333) if name == "sd35-medium" else (16 if smoke else 512)
    text = (length, config["joint_attention_dim"], config["pooled_projection_dim"])
    return FlowNetwork(name, net, config["in_channels"], text, name == "flux", dtype, device)
