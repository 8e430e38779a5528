"""Stable Diffusion XL: two text encoders side by side, one pooled vector and the picture's size beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import BadFile
from .cond import POOLED, Cond
from .parts import Whole, rebuilt
from .plain import check_present, unwrapped
from .schedule import Schedule, schedule_of
from .sd import StableDiffusion
from .tokens import SoftPrompt, substituted

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline


class StableDiffusionXL(StableDiffusion):
    """Adapter of one loaded SDXL base model (``StableDiffusionXLPipeline``).

    Tokens are the last but one hidden states of both encoders side by side, (B, 77, 768 + 1280); ``extras["pooled"]`` is the
    projected end token of the second (B, 1280); the picture's size, crop and target are told as (S, S, 0, 0, S, S). A vector that
    stands for a word has both encoders' coordinates. Both tokenizers cut text alike and pad differently, as officially.

    Guidance starts from zeros where the pipeline says so (``force_zeros_for_empty_prompt``), as it does in stock pipelines that
    get no negative prompt; "" as anchor is the empty text, read as any other. A closed-form edit of keys and values does not
    see the pooled vector, which goes into the time embedding: some of the concept is left (docs/closed_form.md).
    """

    family: ClassVar[str] = "stable-diffusion-xl"
    called: ClassVar[str] = "an SDXL"
    clipping: ClassVar[tuple[str, ...]] = ("thresholding", "clip_sample")
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    usual_guidance = 5.0

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        text_encoder: nn.Module,
        tokenizer_2: Any,
        text_encoder_2: nn.Module,
        unet: nn.Module,
        vae: nn.Module,
        schedule: Schedule,
        zero_null: bool = True,
        preset: str = "paper",
        concept_names: Sequence[str] = (),
        whole: Whole | None = None,
    ) -> None:
        check_present(name, {"tokenizer_2": tokenizer_2, "text_encoder_2": text_encoder_2})
        self.tokenizer_2, self.text_encoder_2, self.zero_null = tokenizer_2, unwrapped(text_encoder_2), zero_null
        super().__init__(
            name=name,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            vae=vae,
            schedule=schedule,
            preset=preset,
            concept_names=concept_names,
            whole=whole,
        )
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.pixels = self.latent_shape[1] * scale, self.latent_shape[2] * scale

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipeline(cls, pipe: StableDiffusionXLPipeline, name: str = "pipeline", **facts: Any) -> StableDiffusionXL:
        """Wrap a loaded pipeline; its modules are shared. Raises BadFile for a refiner."""
        if pipe.text_encoder is None or pipe.config.get("requires_aesthetics_score"):
            raise BadFile(f"{name!r} is an SDXL refiner, which starts from a picture; erase from the base model.")
        return cls(
            name=name,
            tokenizer=pipe.tokenizer,
            text_encoder=pipe.text_encoder,
            tokenizer_2=pipe.tokenizer_2,
            text_encoder_2=pipe.text_encoder_2,
            unet=pipe.unet,
            vae=pipe.vae,
            schedule=schedule_of(pipe.scheduler),
            zero_null=bool(pipe.config.get("force_zeros_for_empty_prompt", True)),
            whole=lambda parts: (rebuilt(pipe, parts), []),
            **facts,
        )

    @classmethod
    def from_folder(cls, source: str | Path, *, dtype: str, device: str, **facts: Any) -> StableDiffusionXL:
        """A diffusers folder on disk or a Hub id. Raises BadFile for a refiner."""
        try:
            index = cls._stock().load_config(source)
        except OSError as error:
            raise BadFile(f"cannot load {str(source)!r} as SDXL: {str(error).splitlines()[0]}") from error
        if index.get("requires_aesthetics_score"):
            raise BadFile(f"{str(source)!r} is an SDXL refiner, which starts from a picture; erase from the base model.")
        zero_null = bool(index.get("force_zeros_for_empty_prompt", True))
        model = super().from_folder(source, dtype=dtype, device=device, **{"zero_null": zero_null, **facts})
        return cast(StableDiffusionXL, model)

    @classmethod
    def _stock(cls) -> Any:
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        return {**super()._kinds(), "tokenizer_2": CLIPTokenizer, "text_encoder_2": CLIPTextModelWithProjection}

    def _check_modules(self) -> None:
        super()._check_modules()
        if not hasattr(self.text_encoder_2, "text_projection"):
            kind = type(self.text_encoder_2).__name__
            raise BadFile(f"the second text encoder of {self.name!r} is a {kind} without a projection; load the model anew.")

    def _bare_facts(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.zero_null, "add_watermarker": False}

    # -- text ----------------------------------------------------------------------------------------------------

    def unconditional(self, n: int) -> Cond:
        null = super().unconditional(n)
        if not self.zero_null:
            return null
        return Cond(torch.zeros_like(null.tokens), null.last, {k: torch.zeros_like(v) for k, v in null.extras.items()})

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        self.evals.text += len(ids)
        outs = []
        for encoder, own_ids, own_rows in zip(
            self._encoders(), self._both_ids(ids, lengths), self._both_rows(embeddings), strict=True
        ):
            table = encoder.get_input_embeddings()
            with self._computing(encoder) as there, substituted(table, own_rows):
                outs.append(encoder(own_ids.to(there), output_hidden_states=True))
        tokens = torch.cat([out.hidden_states[-2].to(self.device) for out in outs], dim=-1)
        return Cond(tokens, torch.tensor([n - 2 for n in lengths]), {POOLED: self._pooled(outs)})

    def _pooled(self, outs: Sequence[Any]) -> Tensor:
        """The pooled text, from what the encoders gave; here it is the second one's."""
        pooled: Tensor = outs[-1].text_embeds
        return pooled.to(self.device)

    def _both_ids(self, ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the second tokenizer, too, which pads with a token of its own."""
        behind = torch.arange(ids.shape[1], device=ids.device) >= torch.tensor(lengths, device=ids.device)[:, None]
        return ids, ids.masked_fill(behind, self.tokenizer_2.pad_token_id)

    def _both_rows(self, embeddings: Tensor | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if embeddings is None:
            return None, None
        first = self.text_encoder.get_input_embeddings().weight.shape[1]
        return embeddings[..., :first], embeddings[..., first:]

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        ids, lengths = self._tokenize(prompts)
        tables = [encoder.get_input_embeddings() for encoder in self._encoders()]
        both = self._both_ids(ids, lengths)
        pads = [torch.tensor(tokenizer.pad_token_id) for tokenizer in (self.tokenizer, self.tokenizer_2)]
        return SoftPrompt(
            torch.cat([self._looked_up(table, i) for table, i in zip(tables, both, strict=True)], dim=-1),
            both[0].to(self.device),
            tuple(lengths),
            torch.cat([self._looked_up(table, i) for table, i in zip(tables, pads, strict=True)]),
            self.tokenizer.pad_token_id,
        )

    @torch.no_grad()
    def text_layers(self, prompts: Sequence[str]) -> list[Cond]:
        """Of the first encoder, then of the second."""
        ids, lengths = self._tokenize(prompts)
        last, found = torch.tensor([n - 2 for n in lengths]), list[Cond]()
        for encoder, own_ids in zip(self._encoders(), self._both_ids(ids, lengths), strict=True):
            with self._computing(encoder) as there:
                states = encoder(own_ids.to(there), output_hidden_states=True)
            found += [Cond(layer.to(self.device), last) for layer in (*states.hidden_states[:-1], states.last_hidden_state)]
        self.evals.text += len(prompts)
        return found

    # -- network -------------------------------------------------------------------------------------------------

    def _beside(self, c: Cond) -> dict[str, Any]:
        height, width = self.pixels
        sizes = c.tokens.new_full((len(c), 6), height)  # made on the device: a copy from the CPU would wait for it
        sizes[:, 1::4] = width
        sizes[:, 2:4] = 0
        return {**super()._beside(c), "added_cond_kwargs": {"text_embeds": c.extras[POOLED], "time_ids": sizes}}

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        """SDXL's own VAE overflows in half precision; where its configuration says so, it decodes in float32."""
        kept = next(self.vae.parameters()).dtype
        if not (self.vae.config.force_upcast and torch.float16 in (kept, self.autocast_dtype)):
            return super().decode(z_0)
        with self._computing(self.vae, autocast=False) as there:
            self.vae.float()
            try:
                pixels = self.vae.decode(z_0.to(there).float() / self.vae.config.scaling_factor).sample
            finally:
                self.vae.to(kept)
        return (pixels.to(self.device) / 2 + 0.5).clamp(0, 1)
