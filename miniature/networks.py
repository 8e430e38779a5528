"""The miniature's networks: the real Stable Diffusion 1.x and 3 classes at a small size."""

from __future__ import annotations

from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

IMAGE_PX = 48
LATENT_PX = 12
MAX_TOKENS = 24
WIDTH = 128


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=IMAGE_PX,
        mid_block_add_attention=False,  # fully convolutional, so random crops train it
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_PX,
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads, as in SD 1.x
        norm_num_groups=16,
    )


def mmdit() -> SD3Transformer2DModel:
    """7.3 M parameters; 36 image tokens (patches of 2 x 2 latent pixels) and 24 text tokens. The text encoder fills both of SD3's
    CLIP slots, hence twice its width in tokens and pooled vector."""
    return SD3Transformer2DModel(
        sample_size=LATENT_PX,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=160,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )


def text_config(vocab_size: int, bos: int, eos: int, layers: int = 4) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def text_encoder(vocab_size: int, bos: int, eos: int) -> CLIPTextModel:
    return CLIPTextModel(text_config(vocab_size, bos, eos))


def clip_config(vocab_size: int, bos: int, eos: int, text_layers: int) -> CLIPConfig:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=8,
        projection_dim=WIDTH,
    )
    text = text_config(vocab_size, bos, eos, text_layers)
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
