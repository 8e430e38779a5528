"""Stable Diffusion 3 and 3.5: a transformer that reads text and picture side by side, trained as a rectified flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadFile, PromptTooLong
from .cond import POOLED, Cond
from .flow import FlowTransformer
from .sdxl import StableDiffusionXL
from .tokens import SoftPrompt, last_words

T5_ROWS = 256
"""Rows that the stock pipeline gives to T5 when it is not told otherwise (``max_sequence_length``)."""


class StableDiffusion3(FlowTransformer, StableDiffusionXL):
    """Adapter of one loaded SD 3 or 3.5 model (``StableDiffusion3Pipeline``); see also :class:`FlowTransformer`.

    **Text.** Two CLIP encoders side by side as in SDXL, (B, 77, 768 + 1280), padded with zeros to the width of T5; behind them
    ``t5_rows`` rows of T5, which has a tokenizer of its own. Without T5 these rows are zeros, as in the stock pipeline (its
    ``max_sequence_length``; 0 leaves them out). ``extras["pooled"]`` is the projected end token of both CLIPs, (B, 2048). The
    empty prompt, read by all encoders, is what guidance moves away from. Without one of the CLIPs the stock pipeline cannot
    read a prompt, so such a model is refused.

    The stock pipeline cuts prompts at 77 CLIP tokens; here a longer one raises PromptTooLong, as one that is too long for T5.

    A prompt of vectors (:meth:`embed`) has vectors in the places of CLIP tokens, where textual inversion puts them, too; T5 goes
    on reading the prompt as it was written.

    ``attn2``, which SD 3.5 medium has, attends to the picture alone. Latents are not packed. The network is told t = 1000 s in
    float32.
    """

    family: ClassVar[str] = "stable-diffusion-3"
    called: ClassVar[str] = "a Stable Diffusion 3"
    kind: ClassVar[str] = "SD3Transformer2DModel"
    t5_parts: ClassVar[tuple[str, str]] = ("tokenizer_3", "text_encoder_3")
    optional: ClassVar[tuple[str, ...]] = t5_parts
    usual_guidance, usual_steps, zero_null = 7.0, 28, False
    tokenizer_3: Any
    text_encoder_3: Any

    def __init__(self, *, t5_rows: int = T5_ROWS, **parts: Any) -> None:
        super().__init__(t5_rows=t5_rows, **parts)

    @property
    def _picture(self) -> tuple[int, int, int]:
        config: Any = self.transformer.config
        return config.in_channels, config.sample_size, (config.sample_size // config.patch_size) ** 2

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def _stock(cls) -> Any:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
        from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

        return {
            "tokenizer": CLIPTokenizer,
            "text_encoder": CLIPTextModelWithProjection,
            "tokenizer_2": CLIPTokenizer,
            "text_encoder_2": CLIPTextModelWithProjection,
            "tokenizer_3": AutoTokenizer,
            "text_encoder_3": T5EncoderModel,
            "transformer": SD3Transformer2DModel,
            "vae": AutoencoderKL,
        }

    @classmethod
    def from_single_file(cls, path: Path, *, dtype: str, device: str) -> StableDiffusion3:
        """Refused: such files leave the text encoders out, in ways that differ."""
        raise BadFile(f"{str(path)!r} is a single file of Stable Diffusion 3; load the folder or Hub id that it belongs to.")

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def _numbers_per_prompt(self) -> int:
        config: Any = self.transformer.config
        return int((self.tokenizer.model_max_length + self.t5_rows) * config.joint_attention_dim)

    def _read_prompts(self, prompts: Sequence[str]) -> Cond:
        return self._joined(super()._read_prompts(prompts), self._read_t5(prompts))

    def _pooled(self, outs: Sequence[Any]) -> Tensor:
        """The pooled text of both CLIPs, side by side."""
        return torch.cat([out.text_embeds for out in outs], dim=-1).to(self.device)

    @torch.no_grad()
    def _read_t5(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """Its rows (B, t5_rows, d) and the index of the last word among them; None without T5."""
        if self.text_encoder_3 is None:
            return None
        lengths = [len(self.tokenizer_3(p, truncation=False, verbose=False).input_ids) for p in prompts]
        for prompt, n in zip(prompts, lengths, strict=True):
            if n > self.t5_rows:
                raise PromptTooLong.of(prompt, n, self.t5_rows, "T5 here")
        ids = self.tokenizer_3(list(prompts), padding="max_length", max_length=self.t5_rows, return_tensors="pt").input_ids
        with self._computing(self.text_encoder_3, autocast=False) as there:
            rows = torch.cat([self.text_encoder_3(part.to(there))[0] for part in ids.split(64)])
        return rows.to(self.device), last_words(lengths)

    def _joined(self, clip: Cond, t5: tuple[Tensor, Tensor] | None) -> Cond:
        """CLIP's rows, as wide as T5's, and T5's behind them."""
        config: Any = self.transformer.config
        n, wide = clip.tokens.shape[1], config.joint_attention_dim
        tokens = nn.functional.pad(clip.tokens, (0, wide - clip.tokens.shape[-1]))
        behind = tokens.new_zeros(len(tokens), self.t5_rows, wide) if t5 is None else t5[0].to(tokens)
        joined = replace(clip, tokens=torch.cat([tokens, behind], dim=1))
        return joined if t5 is None else replace(joined, split=n, second=t5[1])

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        return replace(super().embed(prompts), beside=self._read_t5(prompts))

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        return self._joined(super().encode_soft(prompts), prompts.beside)

    # -- network -------------------------------------------------------------------------------------------------

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        z, tokens, pooled = self._given(z_t, c.tokens, c.extras[POOLED])
        with self._running():
            output: Tensor = self.transformer(
                hidden_states=z,
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=t,
                return_dict=False,
            )[0]
        return output.float()

    @property
    def lacking(self) -> Mapping[str, str]:
        cut = {"one_tokenizer": "T5 cuts the same prompt into other tokens; load the model without T5"}
        return {**super().lacking, **(cut if self._t5() else {})}
