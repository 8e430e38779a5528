"""The tiny model as a stock diffusers pipeline."""

from __future__ import annotations

import warnings
from typing import Any

from efface.models.tiny import tiny


def pipeline(kind: str) -> tuple[Any, Any]:
    """The tiny model as a stock pipeline."""
    import diffusers

    model = tiny()
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    parts = {"vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": model.tokenizer, "unet": model.unet}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind)(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return model, pipe
