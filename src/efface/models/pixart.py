"""PixArt-Alpha and PixArt-Sigma: a transformer with cross-attention whose text is read by T5 alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadFile
from .cond import MASK, Cond
from .cross import CrossTransformer
from .schedule import schedule_of
from .select import CROSS_SELECTIONS, Select
from .tokens import last_words, read_rows

T5_ROWS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Tokens that the stock pipelines give to T5 when they are not told otherwise."""


class PixArt(CrossTransformer):
    """Adapter of one loaded PixArt-Sigma (``PixArtSigmaPipeline``); see also :class:`CrossTransformer`.

    **Text.** Tokens are the last hidden states of T5 behind the network's ``caption_projection``, (B, ``t5_rows``, 1152). Padding
    is masked; its rows are zeros here, and ``extras["mask"]`` says which rows are read.

    The stock pipeline writes prompts in lower case, and so does this adapter. Where the packages ``bs4`` and ``ftfy`` are there,
    the pipeline also cleans captions of links and marks (``clean_caption``), which it does not need for a plain prompt. T5 has no
    begin token. T5 is the text encoder that methods may train.

    The network predicts eps and, in the other half of its channels, a variance, which the stock pipeline drops too. Alpha at
    1,024 pixels is also told the picture's size. Schedulers are those of Stable Diffusion; see :func:`schedule_of`.
    """

    family: ClassVar[str] = "pixart"
    called: ClassVar[str] = "a PixArt"
    kind: ClassVar[str] = "PixArtTransformer2DModel"
    pipeline: ClassVar[str] = "PixArtSigmaPipeline"
    selections: ClassVar[Mapping[str, Select]] = CROSS_SELECTIONS
    starts: ClassVar[int] = 0
    lora_reader: ClassVar[bool] = False
    usual_guidance, usual_steps = 4.5, 20

    def __init__(self, *, t5_rows: int | None = None, **parts: Any) -> None:
        """``t5_rows``: the most tokens of a prompt, the stock pipeline's ``max_sequence_length``."""
        self.t5_rows = T5_ROWS[self.pipeline] if t5_rows is None else t5_rows
        super().__init__(**parts)

    def _sized(self, scheduler: Mapping[str, Any]) -> None:
        config: Any = self.transformer.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.schedule = schedule_of(scheduler)

    @property
    def _channels(self) -> tuple[int, int]:
        config: Any = self.transformer.config
        gives = config.out_channels
        return config.in_channels, gives // 2 if gives == 2 * config.in_channels else gives

    def _check_modules(self) -> None:
        super()._check_modules()
        if getattr(self.vae.config, "latents_mean", None) is not None:
            raise BadFile(f"{self.name!r} shifts its latents by a mean of their own, which efface does not do here.")

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
        from transformers import AutoTokenizer, T5EncoderModel

        return {
            "tokenizer": AutoTokenizer,
            "text_encoder": T5EncoderModel,
            "transformer": PixArtTransformer2DModel,
            "vae": AutoencoderKL,
        }

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def _text(self) -> tuple[Any, Any, int]:
        return self.tokenizer, self.text_encoder, self.t5_rows

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        return super()._tokenize([prompt.lower().strip() for prompt in prompts])

    def locate(self, prompt: str, phrase: str) -> Any:
        return super().locate(prompt.lower(), phrase.lower())

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        self.evals.text += len(ids)
        read = read_rows(lengths, ids.shape[1])
        hidden, mask = self._hidden(ids, read, embeddings), read.to(self.device)
        with self._running():
            tokens = self._projected(*self._given(hidden))
        return Cond(tokens * mask[..., None], last_words(lengths, self.ends), {MASK: mask.to(tokens.dtype)})

    # -- network -------------------------------------------------------------------------------------------------

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        z, tokens = self._given(z_t, c.tokens)
        with self._running(), self._reading_projected():
            output: Tensor = self.transformer(
                z,
                encoder_hidden_states=tokens,
                # In a mixture of prompts, what any of them reads is read.
                encoder_attention_mask=(c.extras[MASK] > 0).to(tokens),
                timestep=t,
                added_cond_kwargs=self._size(len(z), z),
                return_dict=False,
            )[0]
        return output[:, : z_t.shape[1]].float()

    def _size(self, n: int, z: Tensor) -> dict[str, Tensor | None]:
        """What Alpha at 1,024 pixels is told of the picture: height and width in pixels, and their ratio."""
        if not self.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = scale * z.shape[2], scale * z.shape[3]
        size = torch.tensor([[height, width]], dtype=z.dtype, device=z.device).repeat(n, 1)
        return {"resolution": size, "aspect_ratio": torch.full((n, 1), height / width, dtype=z.dtype, device=z.device)}

    # -- files ---------------------------------------------------------------------------------------------------

    def read_lora(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nothing: diffusers has no reader of LoRAs for this family."""
        return {}


class PixArtAlpha(PixArt):
    """Adapter of one loaded PixArt-Alpha (``PixArtAlphaPipeline``)."""

    pipeline: ClassVar[str] = "PixArtAlphaPipeline"
