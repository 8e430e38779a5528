"""A Stable Diffusion of the real classes with a few thousand random weights, for contract tests. Draws noise, fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from .base import DiffusionModel
from .flux import Flux
from .parts import named_dtype
from .pixart import PixArt, PixArtAlpha
from .sana import Sana
from .schedule import Schedule, schedule_of
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL
from .tiny_text import TINY_WORDS, clip_encoder, clip_words, gemma_words, qwen_words, t5_encoder, t5_words
from .wan import Wan
from .z_image import ZImage


def tiny(prediction_type: str = "epsilon", seed: int = 0, *, dtype: str = "float32", device: str = "cpu") -> StableDiffusion:
    """Channels (8, 16), 24 tokens, 8 x 8 latents. The global random state is left as it was; the weights are drawn in float32 on
    the CPU, so that they are the same everywhere."""
    from transformers import CLIPTextModel

    tokenizer = clip_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text, unet, vae = clip_encoder(CLIPTextModel, tokenizer), _unet(cross_attention_dim=16), _vae()
    text, unet, vae = (_placed(module, dtype, device) for module in (text, unet, vae))
    return StableDiffusion(
        name="tiny" if prediction_type == "epsilon" else "tiny-v",
        tokenizer=tokenizer,
        text_encoder=text,
        unet=unet,
        vae=vae,
        schedule=tiny_schedule(prediction_type),
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def tiny_xl(zero_null: bool = True, seed: int = 0, *, dtype: str = "float32", device: str = "cpu") -> StableDiffusionXL:
    """As :func:`tiny`, with encoders of widths 16 and 24, the second with its projection, and SDXL's added conditions."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first, second = clip_words(), clip_words(pad="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = [clip_encoder(CLIPTextModel, first), clip_encoder(CLIPTextModelWithProjection, second, hidden_size=24)]
        sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 24 + 6 * 4}
        unet = _unet(cross_attention_dim=16 + 24, addition_embed_type="text_time", **sizes)
        vae = _vae(force_upcast=True)
    (*encoders, unet, vae) = (_placed(module, dtype, device) for module in (*encoders, unet, vae))
    return StableDiffusionXL(
        name="tiny-xl",
        tokenizer=first,
        text_encoder=encoders[0],
        tokenizer_2=second,
        text_encoder_2=encoders[1],
        unet=unet,
        vae=vae,
        schedule=tiny_schedule("epsilon"),
        zero_null=zero_null,
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


TINY_T5_ROWS = 16
"""Tokens that the T5 of the tiny models reads."""


def tiny_sd3(t5: bool = True, seed: int = 0, *, dtype: str = "float32", device: str = "cpu", **facts: Any) -> StableDiffusion3:
    """As :func:`tiny_xl`, with a T5 of width 48, whose words are the tiny ones, and the transformer of SD 3.5 medium, two blocks
    deep. Without ``t5`` its rows are zeros. facts: more options of the transformer."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    first, second, third = clip_words(), clip_words(pad="!"), t5_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = [
            clip_encoder(CLIPTextModelWithProjection, first),
            clip_encoder(CLIPTextModelWithProjection, second, hidden_size=24),
        ]
        read = t5_encoder(third)
        sizes = {"joint_attention_dim": 48, "caption_projection_dim": 16, "pooled_projection_dim": 16 + 24}
        heads = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        more = {"pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm", **facts}
        transformer = SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=4, out_channels=4, **heads, **sizes, **more)
        vae = _vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)
    (*encoders, read, transformer, vae) = (_placed(m, dtype, device) for m in (*encoders, read, transformer, vae))
    return StableDiffusion3(
        name="tiny-sd3",
        tokenizer=first,
        text_encoder=encoders[0],
        tokenizer_2=second,
        text_encoder_2=encoders[1],
        tokenizer_3=third if t5 else None,
        text_encoder_3=read if t5 else None,
        transformer=transformer,
        vae=vae,
        scheduler={"num_train_timesteps": 1000, "shift": 3.0},
        t5_rows=TINY_T5_ROWS,
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def tiny_flux(guidance: bool = True, seed: int = 0, *, dtype: str = "float32", device: str = "cpu", **facts: Any) -> Flux:
    """The transformer of FLUX.1 with one double and one single block, a T5 of width 48 and a CLIP of width 16: dev with the scale
    of ``guidance`` as an input, else schnell. facts: more options of the transformer."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from transformers import CLIPTextModel

    first, second = clip_words(), t5_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip, read = clip_encoder(CLIPTextModel, first), t5_encoder(second)
        sizes = {"joint_attention_dim": 48, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4)}
        heads = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
        transformer = FluxTransformer2DModel(
            patch_size=1, guidance_embeds=guidance, **{"in_channels": 16, **heads, **sizes, **facts}
        )
        vae = _vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)
    clip, read, transformer, vae = (_placed(m, dtype, device) for m in (clip, read, transformer, vae))
    return Flux(
        name="tiny-flux",
        tokenizer=first,
        text_encoder=clip,
        tokenizer_2=second,
        text_encoder_2=read,
        transformer=transformer,
        vae=vae,
        scheduler={"num_train_timesteps": 1000, "shift": 3.0 if guidance else 1.0, "use_dynamic_shifting": guidance},
        t5_rows=TINY_T5_ROWS,
        side=8,
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def tiny_pixart(alpha: bool = False, seed: int = 0, *, dtype: str = "float32", device: str = "cpu", **facts: Any) -> PixArt:
    """The transformer of PixArt-Sigma, two blocks deep, with the T5 of :func:`tiny_sd3`; or of Alpha. facts: more options of the
    transformer."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    tokenizer = t5_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        read = t5_encoder(tokenizer)
        sizes = {"in_channels": 4, "out_channels": 8, "sample_size": 8, "patch_size": 2, "use_additional_conditions": False}
        heads = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        text = {"cross_attention_dim": 16, "caption_channels": 48, "attention_bias": True}
        transformer = PixArtTransformer2DModel(**{**heads, **sizes, **text, **facts})
        vae = _vae()
    read, transformer, vae = (_placed(m, dtype, device) for m in (read, transformer, vae))
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    return (PixArtAlpha if alpha else PixArt)(
        name="tiny-pixart",
        tokenizer=tokenizer,
        text_encoder=read,
        transformer=transformer,
        vae=vae,
        scheduler={**betas, "_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        t5_rows=TINY_T5_ROWS,
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def tiny_sana(dpm: bool = True, seed: int = 0, *, dtype: str = "float32", device: str = "cpu", **facts: Any) -> Sana:
    """The transformer of Sana, two blocks deep, with a Gemma 2 of width 32; its scheduler is DPM-Solver's on flow sigmas, as
    that of the released models, or Euler's. facts: more options of the transformer."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        read = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, **heads, **ids))
        read.get_input_embeddings().weight.data.normal_(std=0.2)  # Gemma multiplies them by the root of its width
        sizes = {"in_channels": 4, "out_channels": 4, "sample_size": 8, "patch_size": 1, "mlp_ratio": 2.0}
        blocks = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        text = {"caption_channels": 32, "cross_attention_dim": 16, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
        transformer = SanaTransformer2DModel(**{**blocks, **sizes, **text, **facts})
        both = {"block_out_channels": (8, 8), "layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
        coder = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in both.items()}
        types = {f"{side}_block_types": ("ResBlock", "EfficientViTBlock") for side in ("encoder", "decoder")}
        vae = AutoencoderDC(latent_channels=4, attention_head_dim=2, scaling_factor=0.7, **coder, **types)
    read, transformer, vae = (_placed(m, dtype, device) for m in (read.eval(), transformer, vae))
    return Sana(
        name="tiny-sana",
        tokenizer=tokenizer,
        text_encoder=read,
        transformer=transformer,
        vae=vae,
        scheduler=_flow("DPMSolverMultistepScheduler" if dpm else ""),
        text_rows=TINY_T5_ROWS,
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def tiny_z_image(seed: int = 0, *, dtype: str = "float32", device: str = "cpu", **facts: Any) -> ZImage:
    """The transformer of Z-Image with one refiner of each kind and two blocks, and a Qwen3 of width 32. facts: more options of
    the transformer."""
    from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        read = Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, **heads))
        read.get_input_embeddings().weight.data.normal_()
        sizes = {"in_channels": 4, "dim": 16, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        places = {"cap_feat_dim": 32, "axes_dims": (2, 2, 4), "axes_lens": (600, 64, 64)}
        transformer = ZImageTransformer2DModel(**{**sizes, **places, **facts})
        vae = _vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)
    read, transformer, vae = (_placed(m, dtype, device) for m in (read.eval(), transformer, vae))
    return ZImage(
        name="tiny-z-image",
        tokenizer=tokenizer,
        text_encoder=read,
        transformer=transformer,
        vae=vae,
        scheduler={"num_train_timesteps": 1000, "shift": 3.0},
        text_rows=TINY_T5_ROWS + 8,  # the chat takes 8
        side=8,
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def tiny_wan(unipc: bool = True, seed: int = 0, *, dtype: str = "float32", device: str = "cpu", **facts: Any) -> Wan:
    """The transformer of Wan 2.1, two blocks deep, with a UMT5 of width 48; its scheduler is UniPC on flow sigmas, as that of the
    released models, or Euler's. facts: more options of the transformer."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = t5_words()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        read = t5_encoder(tokenizer, UMT5EncoderModel, UMT5Config)
        sizes = {"in_channels": 4, "out_channels": 4, "ffn_dim": 32, "num_layers": 2, "freq_dim": 16, "text_dim": 48}
        heads = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_max_seq_len": 32}
        transformer = WanTransformer3DModel(**{**sizes, **heads, **facts})
        law = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 1.2, 0.9, 1.1]}
        blocks = {"dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
        vae = AutoencoderKLWan(base_dim=4, z_dim=4, scale_factor_spatial=2, **blocks, **law)
    read, transformer, vae = (_placed(m, dtype, device) for m in (read, transformer, vae))
    return Wan(
        name="tiny-wan",
        tokenizer=tokenizer,
        text_encoder=read,
        transformer=transformer,
        vae=vae,
        scheduler=_flow("UniPCMultistepScheduler" if unipc else ""),
        t5_rows=TINY_T5_ROWS,
        sides=(8, 8),
        preset="tiny",
        concept_names=TINY_WORDS[:12],
    )


def _flow(kind: str) -> dict[str, Any]:
    """Settings of a diffusion's scheduler that lays a flow's levels; without ``kind`` of Euler's."""
    if not kind:
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "final_sigmas_type": "zero"}
    return {"_class_name": kind, "num_train_timesteps": 1000, **flow}


def _placed(module: Any, dtype: str, device: str) -> Any:
    # torch's own method: that of diffusers warns about modules it keeps in float32, of which these networks have none.
    return nn.Module.to(module, device, named_dtype(dtype))


def _unet(**facts: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    plain = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**plain, **facts})


def _vae(**facts: Any) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
        **facts,
    )


def tiny_schedule(prediction_type: str) -> Schedule:
    return schedule_of(
        {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "prediction_type": prediction_type,
        }
    )


TINY: Mapping[str, Callable[..., DiffusionModel]] = {
    "tiny": tiny,
    "tiny-v": partial(tiny, "v_prediction"),
    "tiny-xl": tiny_xl,
    "tiny-sd3": tiny_sd3,
    "tiny-flux": tiny_flux,
    "tiny-pixart": tiny_pixart,
    "tiny-sana": tiny_sana,
    "tiny-z-image": tiny_z_image,
    "tiny-wan": tiny_wan,
}
"""The models of this module by the names that :func:`efface.models.load.load_model` takes."""
