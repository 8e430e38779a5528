"""Wan 2.1 as a model of pictures: a transformer of videos with cross-attention, trained as a rectified flow, of which one frame
is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadFile
from .cond import Cond
from .cross import CrossTransformer
from .flow import DPM, FLOW_LACKS, UNIPC, FlowSchedule, flow_schedule_of
from .select import CROSS_SELECTIONS, Select
from .tokens import TokenSpan, last_words, read_rows

SIDES = (60, 104)
"""Height and width of latents that the stock pipeline draws when it is not told otherwise: pictures of 480 x 832 pixels."""
T5_ROWS = 512
"""Tokens that the stock pipeline gives to UMT5 when it is not told otherwise (``max_sequence_length``)."""


class Wan(CrossTransformer):
    """Adapter of one loaded Wan 2.1 (``WanPipeline``) that draws single frames; see also :class:`CrossTransformer`.

    **One frame.** A picture is what the stock pipeline draws with ``num_frames=1``. Latents are (B, 16, h, w) here; the network
    and the VAE get them as a video of one frame. A patch acts on videos too, but nothing here looks at one.

    **Text.** Tokens are UMT5's last hidden states, those of padding set to zero, behind the network's ``text_embedder``,
    (B, ``t5_rows``, 1536 or 5120). Nothing is masked: the network reads the rows of padding, which are all alike. UMT5 is the
    text encoder that methods may train. Prompts are cleaned by the stock pipeline's own function.

    **Pictures** are drawn with the steps of the scheduler that the model comes with: UniPC, that of the released models, or
    DPM-Solver++(2M) on flow sigmas, or Euler's. The network is told 1000 s; the first two leave fractions out of it.

    ``z = (vae - latents_mean) / latents_std``. Wan 2.2, which has a second transformer or a time for every token, is refused.
    """

    family: ClassVar[str] = "wan"
    called: ClassVar[str] = "a Wan"
    kind: ClassVar[str] = "WanTransformer3DModel"
    pipeline: ClassVar[str] = "WanPipeline"
    reads_with: ClassVar[str] = "UMT5"
    projections: ClassVar[tuple[str, ...]] = ("condition_embedder.text_embedder",)
    selections: ClassVar[Mapping[str, Select]] = CROSS_SELECTIONS
    starts: ClassVar[int] = 0
    usual_guidance, usual_steps = 5.0, 50
    schedule: FlowSchedule

    def __init__(self, *, t5_rows: int = T5_ROWS, sides: tuple[int, int] = SIDES, **parts: Any) -> None:
        """``sides``: height and width of latents; a picture has 8 times as many pixels. ``t5_rows``: see :data:`T5_ROWS`."""
        self.t5_rows, self.sides = t5_rows, sides
        super().__init__(**parts)

    def _sized(self, scheduler: Mapping[str, Any]) -> None:
        config: Any = self.transformer.config
        height, width = self.sides
        self.latent_shape = (config.in_channels, height, width)
        tokens = height * width // (config.patch_size[1] * config.patch_size[2])
        self.schedule = flow_schedule_of(scheduler, tokens, repr(self.name), also=(UNIPC, DPM))
        self.usual_solver = self.schedule.usual_solver

    @property
    def _vae_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def _check_modules(self) -> None:
        super()._check_modules()
        config: Any = self.transformer.config
        if config.image_dim is not None or config.added_kv_proj_dim is not None:
            raise BadFile(
                f"the transformer of {self.name!r} reads a picture beside the text (image to video); load Wan's text to video."
            )

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
        from transformers import AutoTokenizer, UMT5EncoderModel

        return {
            "tokenizer": AutoTokenizer,
            "text_encoder": UMT5EncoderModel,
            "transformer": WanTransformer3DModel,
            "vae": AutoencoderKLWan,
        }

    @classmethod
    def _check_index(cls, name: str, index: Mapping[str, Any]) -> None:
        second = (index.get("transformer_2") or [None])[0] is not None
        if second or index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            what = "a second transformer for the low noise levels (transformer_2)" if second else "a time for every token"
            raise BadFile(f"{name!r} has {what}: it is Wan 2.2, which efface does not erase from. Load Wan 2.1.")

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def _text(self) -> tuple[Any, Any, int]:
        return self.tokenizer, self.text_encoder, self.t5_rows

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        return super()._tokenize([_clean(prompt) for prompt in prompts])

    def locate(self, prompt: str, phrase: str) -> TokenSpan:
        return super().locate(prompt, _clean(phrase))

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        self.evals.text += len(ids)
        mask = read_rows(lengths, ids.shape[1])
        hidden = self._hidden(ids, mask, embeddings)
        with self._running():
            tokens = self._projected(*self._given(hidden * mask[..., None].to(self.device)))
        return Cond(tokens, last_words(lengths, self.ends))

    # -- network -------------------------------------------------------------------------------------------------

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        z, tokens = self._given(z_t, c.tokens)
        with self._running(), self._reading_projected():
            output: Tensor = self.transformer(
                hidden_states=z[:, :, None],
                timestep=self.schedule.told(t),
                encoder_hidden_states=tokens,
                return_dict=False,
            )[0]
        return output[:, :, 0].float()

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        config: Any = self.vae.config
        mean, std = (torch.tensor(x, device=z_0.device).reshape(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
        return self._pixels((z_0 * std + mean)[:, :, None])[:, :, 0]

    @property
    def lacking(self) -> Mapping[str, str]:
        return {**super().lacking, **FLOW_LACKS}


def _clean(prompt: str) -> str:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    cleaned: str = prompt_clean(prompt)
    return cleaned
