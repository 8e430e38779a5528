"""The tiny models as stock diffusers pipelines."""

from __future__ import annotations

import warnings
from typing import Any

from efface.models.sdxl import StableDiffusionXL
from efface.models.tiny import tiny, tiny_xl


def scheduler() -> Any:
    """Stable Diffusion's, as DDIM."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def pipeline(kind: str) -> tuple[Any, Any]:
    """The tiny model as a stock pipeline."""
    import diffusers

    model = tiny()
    parts = {"vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": model.tokenizer, "unet": model.unet}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind)(
            **parts, scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return model, pipe


def pipeline_xl() -> tuple[StableDiffusionXL, Any]:
    """The tiny SDXL as a stock pipeline."""
    model = tiny_xl()
    return model, stock_xl(model)


def stock_xl(model: StableDiffusionXL) -> Any:
    """A stock pipeline of the model's modules."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionXLPipeline(
            vae=model.vae,
            text_encoder=model.text_encoder,
            text_encoder_2=model.text_encoder_2,
            tokenizer=model.tokenizer,
            tokenizer_2=model.tokenizer_2,
            unet=model.unet,
            scheduler=scheduler(),
            force_zeros_for_empty_prompt=model.zero_null,
            add_watermarker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
