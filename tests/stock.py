"""Tiny pipelines of stock diffusers classes with any scheduler and any UNet, and what a reader makes of a LoRA file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.models import tiny as tinies
from efface.models.tiny import tiny, tiny_xl

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
XL_UNET = {
    "cross_attention_dim": 40,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 24 + 6 * 4,
}


def pipe(family: str = "sd", scheduler: Any = None, dtype: str = "float32", cls: Any = None, **unet: Any) -> Any:
    """A pipeline of ``family`` (sd or xl); ``unet``: facts of its network that differ from the tiny one's."""
    import diffusers

    model: Any = (tiny_xl if family == "xl" else tiny)(dtype=dtype)
    parts = {"vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": model.tokenizer, "unet": model.unet}
    if unet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts["unet"] = tinies._unet(**{**(XL_UNET if family == "xl" else {"cross_attention_dim": 16}), **unet})
    if family == "xl":
        parts |= {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
        more: dict[str, Any] = {"add_watermarker": False}
        cls = cls or diffusers.StableDiffusionXLPipeline
    else:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        cls = cls or diffusers.StableDiffusionPipeline
    if scheduler is None:
        scheduler = diffusers.DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = cls(**parts, scheduler=scheduler, **more)
    made.set_progress_bar_config(disable=True)
    return made


def weights(pipe: Any) -> dict[str, Tensor]:
    """Copies of every weight under our names."""
    parts = [n for n in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, n, None) is not None]
    return {
        f"{part}.{n.removeprefix('text_model.')}": w.detach().clone()
        for part in parts
        for n, w in getattr(pipe, part).named_parameters()
    }


def fused(pipe: Any, file: Path) -> dict[str, Tensor]:
    """``W' - W`` after the pipeline's own loading and fusing. Asserts that loading and unloading alone restores every bit."""
    before = weights(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(file))
        pipe.unload_lora_weights()
        after = weights(pipe)
        assert after.keys() == before.keys()
        assert all(torch.equal(w, before[n]) for n, w in after.items())
        pipe.load_lora_weights(str(file))
        pipe.fuse_lora(components=[n for n in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, n, None) is not None])
        pipe.unload_lora_weights()
    return {n: w - before[n] for n, w in weights(pipe).items() if not torch.equal(w, before[n])}


def off(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> float:
    """Largest relative difference of one tensor; infinite where the names differ."""
    if wanted.keys() != got.keys():
        return float("inf")
    return max(float((got[n].float() - d).norm() / d.norm()) for n, d in wanted.items())


def fits(patch: Any) -> bool:
    """Whether a LoRA holds the patch: all but a tenth of its norm lies in layers that have a matrix. A bias beside a matrix that
    the format has no place for is left out with a warning, however large it is."""
    matrices = {n for n, d in patch.deltas.items() if d.ndim >= 2}
    apart = [d for n, d in patch.deltas.items() if n not in matrices and n.removesuffix("bias") + "weight" not in matrices]
    size = sum(float(d.square().sum()) for d in apart) ** 0.5
    return bool(matrices) and size <= 0.1 * patch.norm()
