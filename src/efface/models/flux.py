"""FLUX.1 dev and schnell: one evaluation per step, text read by T5 and by the pooled vector of CLIP."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadFile
from .cond import GUIDANCE, POOLED, Cond
from .flow import FlowTransformer
from .select import FLUX_SELECTIONS, Select
from .tokens import SoftPrompt

SIDE = 128
"""Side of latents that the stock pipeline draws when it is not told otherwise: pictures of 1,024 pixels."""
T5_ROWS = {True: 512, False: 256}
"""Rows of T5 for dev, the stock pipeline's default, and for schnell, with which its model card calls the pipeline."""
TRAINED_AT = 1.0
"""The scale of guidance that dev is told outside a sampled trajectory, where goals and losses are: at 1 it gives the plain
prediction for its text. The ESD authors' code for FLUX does the same."""


class Flux(FlowTransformer):
    """Adapter of one loaded FLUX.1 dev or schnell (``FluxPipeline``); see also :class:`FlowTransformer`.

    **Text.** Tokens are the last hidden states of T5, (B, ``t5_rows``, 4096), padding included, as in the stock pipeline;
    ``extras["pooled"]`` is CLIP's end token, (B, 768). Positions and words are those of T5, which has no begin token. A prompt of
    vectors (:meth:`embed`) has vectors in the places of T5's tokens, and CLIP goes on reading the prompt as it was written. A
    prompt that is too long for T5 raises PromptTooLong. CLIP reads the first 77 tokens of a longer one, as in the stock
    pipeline, and a warning says so.

    **Guidance.** Both are distilled: a picture takes one evaluation per step. Dev is told the scale of guidance as an input
    (``takes_guidance``); in losses it is told 1. Schnell has no scale, and a scale given to it does nothing, as in the stock
    pipeline; it draws in 4 steps. There is no second branch, so guards are refused.

    **Time.** The network is told s = t / 1000 in the precision it computes in, as in the stock pipeline: in bfloat16 it is up to
    2 of 1,000 off what the sampler means. ``z`` itself stays in float32, where the stock pipeline rounds it at every step.

    **Latents** are (B, 16, h, w) here; the network gets squares of 2 x 2 as one token of 64 channels. A pipeline's
    ``default_sample_size`` says how large pictures are; folders and Hub ids draw 1,024 pixels.

    **Attention.** On a GPU, loading FLUX switches cuDNN's attention off for the whole process (:func:`leave_out_cudnn`).

    **Weights.** The 19 double blocks have projections of the text of their own; the 38 single blocks behind them share every
    weight between text and picture, so no change of theirs acts on the text alone.
    """

    family: ClassVar[str] = "flux"
    called: ClassVar[str] = "a FLUX"
    kind: ClassVar[str] = "FluxTransformer2DModel"
    t5_parts: ClassVar[tuple[str, str]] = ("tokenizer_2", "text_encoder_2")
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    selections: ClassVar[Mapping[str, Select]] = FLUX_SELECTIONS
    starts: ClassVar[int] = 0
    even: ClassVar[bool] = True
    distilled = True
    tokenizer_2: Any
    text_encoder_2: Any

    def __init__(self, *, t5_rows: int | None = None, side: int = SIDE, **parts: Any) -> None:
        """``side``: of latents; a picture has 8 times as many pixels. ``t5_rows``: see :data:`T5_ROWS`."""
        told = bool(getattr(getattr(parts.get("transformer"), "config", None), "guidance_embeds", False))
        self.side, self.takes_guidance = side, told
        self.usual_guidance, self.usual_steps = (3.5, 28) if told else (1.0, 4)
        super().__init__(t5_rows=T5_ROWS[told] if t5_rows is None else t5_rows, **parts)
        if self.device.type == "cuda":
            leave_out_cudnn()

    @property
    def _channels(self) -> tuple[int, int]:
        config: Any = self.transformer.config
        return config.in_channels // 4, (config.out_channels or config.in_channels) // 4

    @property
    def _picture(self) -> tuple[int, int, int]:
        return self._channels[0], self.side, (self.side // 2) ** 2

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str = "pipeline", **facts: Any) -> Flux:
        found: Flux = super().from_pipeline(pipe, name, **{"side": pipe.default_sample_size, **facts})
        return found

    @classmethod
    def _stock(cls) -> Any:
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        return FluxPipeline

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

        return {
            "tokenizer": CLIPTokenizer,
            "text_encoder": CLIPTextModel,
            "tokenizer_2": AutoTokenizer,
            "text_encoder_2": T5EncoderModel,
            "transformer": FluxTransformer2DModel,
            "vae": AutoencoderKL,
        }

    @classmethod
    def from_single_file(cls, path: Path, *, dtype: str, device: str) -> Flux:
        """Refused: such files hold the transformer alone."""
        raise BadFile(
            f"{str(path)!r} is a single file of FLUX, which holds the transformer and not the text encoders. In Python: "
            "FluxPipeline.from_pretrained(FOLDER, transformer=FluxTransformer2DModel.from_single_file(FILE)), and give that "
            "pipeline to efface.load_model; or load a folder or Hub id."
        )

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def _text(self) -> tuple[Any, Any, int]:
        return self.tokenizer_2, self.text_encoder_2, self.t5_rows

    @property
    def _numbers_per_prompt(self) -> int:
        config: Any = self.transformer.config
        return int(self.t5_rows * config.joint_attention_dim)

    def _read_prompts(self, prompts: Sequence[str]) -> Cond:
        return self._pooled(super()._read_prompts(prompts), self._clip_ids(prompts))

    def _clip_ids(self, prompts: Sequence[str]) -> Tensor:
        """(B, 77). A longer prompt is cut, and a warning names it."""
        limit = self.tokenizer.model_max_length
        for prompt in prompts:
            n = len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if n > limit:
                warnings.warn(
                    f"CLIP, which gives {self.name} the pooled text, reads the first {limit} of {n} tokens of {prompt!r}, as in "
                    "the stock pipeline; T5 reads all of it.",
                    UserWarning,
                    stacklevel=4,
                )
        padded = self.tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        ids: Tensor = padded.input_ids
        return ids

    def _pooled(self, c: Cond, ids: Tensor) -> Cond:
        """The same with the pooled text of CLIP beside it."""
        with self._computing(self.text_encoder) as there:
            pooled = self.text_encoder(ids.to(there)).pooler_output
        return replace(c, extras={**c.extras, POOLED: pooled.to(self.device)})

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        found = super().embed(prompts)
        return replace(found, beside=(self._clip_ids(prompts), torch.tensor(found.lengths)))

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        assert prompts.beside is not None  # embed put it there
        return self._pooled(super().encode_soft(prompts), prompts.beside[0])

    # -- network -------------------------------------------------------------------------------------------------

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        height, width = z_t.shape[2] // 2, z_t.shape[3] // 2
        scale = c.extras.get(GUIDANCE, torch.full((len(c),), TRAINED_AT, device=z_t.device)) if self.takes_guidance else None
        z, tokens, pooled = self._given(z_t, c.tokens, c.extras[POOLED])
        with self._running():
            output: Tensor = self.transformer(
                hidden_states=packed(z),
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=t.to(self.autocast_dtype) / 1000,
                guidance=scale,
                txt_ids=tokens.new_zeros((tokens.shape[1], 3)),
                img_ids=places(height, width, z.device).to(z),
                return_dict=False,
            )[0]
        return unpacked(output.float(), height, width)

    @property
    def lacking(self) -> Mapping[str, str]:
        clip = "its tokens are those of T5, which is not trained, and CLIP gives the pooled text alone; set train=xattn"
        return {**super().lacking, "text_encoder": clip}

    @property
    def info(self) -> Mapping[str, object]:
        return {**super().info, "takes_guidance": self.takes_guidance}


def leave_out_cudnn() -> None:
    """Let this process compute attention by PyTorch's other kernels. With cuDNN's, PyTorch 2.11 ended the first backward pass of
    FLUX in an illegal memory access on an H200, after which nothing runs on the GPU any more; with the others it trained."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def packed(z: Tensor) -> Tensor:
    """(B, h w / 4, 4 C) tokens of latents (B, C, h, w): every square of 2 x 2, channel by channel, row by row."""
    b, c, h, w = z.shape
    return z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`packed`, from height x width tokens."""
    b, _, c = tokens.shape
    squares = tokens.reshape(b, height, width, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(b, c // 4, 2 * height, 2 * width)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """(height width, 3): of every token 0, its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
