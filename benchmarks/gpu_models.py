"""Models of true size with random weights, built on the device itself, and tiny ones of the same classes for a rehearsal.

Nothing is loaded and nothing travels: modules are made on the meta device, given memory on the GPU and filled there. Random
weights run the same kernels on the same memory as trained ones, so speed and memory are those of the model; losses and pictures
mean nothing. Vocabularies are the tiny model's; the text encoders and the VAE have their true sizes, because methods keep them on
the device and some train them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from efface.concepts.spaces import ConceptSpace
from efface.models.sd import StableDiffusion
from efface.models.tiny import TINY_T5_ROWS, tiny, tiny_flux, tiny_sd3, tiny_xl

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
FLUX: dict[str, Any] = {"guidance_embeds": True}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}


@dataclass(frozen=True)
class Size:
    """What makes a tiny model of a family one of true size: options of its parts."""

    small: Callable[[], Any]
    network: Mapping[str, Any]
    latent_channels: int
    encoders: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the adapter."""


PROJECTED = {**CLIP_L, "projection_dim": 768}
SIZES: dict[str, Size] = {
    "sd15": Size(tiny, UNETS["sd15"], 4, {"text_encoder": CLIP_L}),
    "sdxl": Size(tiny_xl, UNETS["sdxl"], 4, {"text_encoder": CLIP_L, "text_encoder_2": BIG_G}),
    "sd35-medium": Size(
        tiny_sd3, SD3, 16, {"text_encoder": PROJECTED, "text_encoder_2": BIG_G, "text_encoder_3": T5_XXL}, {"t5_rows": 256}
    ),
    "flux": Size(tiny_flux, FLUX, 16, {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL}, {"t5_rows": 512, "side": 64}),
}
"""FLUX at 512 pixels, the others at the size that they were trained at."""


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


def sized(name: str, dtype: torch.dtype, device: str, smoke: bool, candidates: int) -> StableDiffusion:
    """The model of :data:`SIZES` called ``name`` as efface's adapter. It knows the target and so many common English words."""
    size = SIZES[name]
    small = size.small()
    flow = small.part == "transformer"
    parts: dict[str, Any] = {part: getattr(small, part) for part in small._kinds()}

    def true(part: str, options: Mapping[str, Any]) -> nn.Module:
        """The part of true size. Both libraries keep what a module was made with, in their own ways."""
        cls, config = type(parts[part]), parts[part].config
        if hasattr(config, "to_dict"):
            return filled(lambda: cls(type(config)(**{**config.to_dict(), **options})), dtype, device)
        kept = {} if part == small.part else {k: v for k, v in dict(config).items() if not k.startswith("_")}
        return filled(lambda: cls(**{**kept, **options}), dtype, device)

    if not smoke:
        for part, options in size.encoders.items():
            clip = "hidden_size" in options
            parts[part] = true(part, {**options, **({"max_position_embeddings": TOKENS} if clip else {})})
            if clip:
                parts[part.replace("text_encoder", "tokenizer")].model_max_length = TOKENS
        parts["vae"] = true("vae", {**VAE, "latent_channels": size.latent_channels})
        parts[small.part] = true(small.part, size.network)
        if flow:
            # Activations of a deep random network grow; a smaller last layer keeps the output in range and costs the same.
            parts[small.part].proj_out.weight.mul_(0.1)
    facts: dict[str, Any] = dict(size.facts)
    if smoke:
        facts |= {k: v for k, v in {"t5_rows": TINY_T5_ROWS, "side": 8}.items() if k in facts}
    facts |= {"scheduler": small.schedule.config} if flow else {"schedule": small.schedule}
    words = ConceptSpace.english().without([TARGET]).candidates[:candidates]
    parts = {p: nn.Module.to(m, device, dtype) if isinstance(m, nn.Module) else m for p, m in parts.items()}
    model: StableDiffusion = type(small)(name=name, concept_names=(TARGET, *words), **parts, **facts)
    return model
