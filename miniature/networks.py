"""The miniature's networks: the real Stable Diffusion 1.x and 3 classes at a small size."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

IMAGE_PX = 48
LATENT_PX = 12


@dataclass(frozen=True)
class Sizes:
    """What differs between the networks of two worlds; the classes and the VAE are the same."""

    width: int = 128
    """Of the text encoder, and so of what cross-attention reads."""
    tokens: int = 24
    text_layers: int = 4
    channels: tuple[int, int, int] = (48, 96, 160)
    """Of the UNet's three resolutions."""

    @property
    def text_heads(self) -> int:
        return self.width // 32


MINI = Sizes()
MAX_TOKENS = MINI.tokens
WIDTH = MINI.width


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


def unet(sizes: Sizes = MINI) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_PX,
        block_out_channels=sizes.channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=sizes.width,
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


def text_config(vocab_size: int, bos: int, eos: int, sizes: Sizes = MINI, layers: int | None = None) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=layers or sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.tokens,
        projection_dim=sizes.width,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def text_encoder(vocab_size: int, bos: int, eos: int, sizes: Sizes = MINI) -> CLIPTextModel:
    return CLIPTextModel(text_config(vocab_size, bos, eos, sizes))


def clip_config(vocab_size: int, bos: int, eos: int, text_layers: int, sizes: Sizes = MINI, patch: int = 8) -> CLIPConfig:
    vision = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=3 * sizes.width,
        num_hidden_layers=4,
        num_attention_heads=sizes.text_heads,
        image_size=IMAGE_PX,
        patch_size=patch,
        projection_dim=sizes.width,
    )
    text = text_config(vocab_size, bos, eos, sizes, text_layers)
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=sizes.width)
