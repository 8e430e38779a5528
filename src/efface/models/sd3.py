"""Stable Diffusion 3 and 3.5: a transformer that reads text and picture side by side, trained as a rectified flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadFile, BadOption, PromptTooLong
from .base import Evals
from .capabilities import CAPABILITIES
from .cond import POOLED, Cond
from .flow import FlowSchedule, flow_schedule_of
from .identity import Identity, told_apart
from .plain import check_in_memory, check_own, check_present, shapes_of, unwrapped
from .sd import Whole, _completed, _rebuilt, loaded, named_dtype
from .sdxl import StableDiffusionXL
from .select import MMDIT_SELECTIONS, Select
from .tokens import SoftPrompt

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

T5_ROWS = 256
"""Rows that the stock pipeline gives to T5 when it is not told otherwise (``max_sequence_length``)."""
JOINT = "text and picture share one softmax inside every block"


class StableDiffusion3(StableDiffusionXL):
    """Adapter of one loaded SD 3 or 3.5 model (``StableDiffusion3Pipeline``).

    **Text.** Two CLIP encoders side by side as in SDXL, (B, 77, 768 + 1280), padded with zeros to the width of T5; behind them
    ``t5_rows`` rows of T5, which has a tokenizer of its own. Without T5 these rows are zeros, as in the stock pipeline (its
    ``max_sequence_length``; 0 leaves them out). ``extras["pooled"]`` is the projected end token of both CLIPs, (B, 2048). The
    empty prompt, read by all encoders, is what guidance moves away from. Without one of the CLIPs the stock pipeline cannot
    read a prompt, so such a model is refused.

    The stock pipeline cuts prompts at 77 CLIP tokens; here a longer one raises PromptTooLong, as one that is too long for T5.

    **T5** is read and never trained, and no patch holds it. A prompt of vectors (:meth:`embed`) has vectors in the places of CLIP
    tokens, where textual inversion puts them, too; T5 goes on reading the prompt as it was written.

    **Weights** are named ``transformer.``. The text's keys and values inside a block read what the block before has made of text
    and picture, so a closed form is exact only where the encoders' output enters: at ``context_embedder`` and at the first
    layer that reads the pooled vector. ``attn2``, which SD 3.5 medium has, attends to the picture alone.

    Latents are not packed; ``z = (vae - shift_factor) scaling_factor``. The network is told t = 1000 s in float32.
    """

    family: ClassVar[str] = "stable-diffusion-3"
    part: ClassVar[str] = "transformer"
    selections: ClassVar[Mapping[str, Select]] = MMDIT_SELECTIONS
    schedule: FlowSchedule

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        text_encoder: nn.Module,
        tokenizer_2: Any,
        text_encoder_2: nn.Module,
        tokenizer_3: Any = None,
        text_encoder_3: nn.Module | None = None,
        transformer: nn.Module,
        vae: nn.Module,
        scheduler: Mapping[str, Any],
        t5_rows: int = T5_ROWS,
        preset: str = "paper",
        concept_names: Sequence[str] = (),
        whole: Whole | None = None,
    ) -> None:
        self.name, self.preset, self.concept_names = name, preset, tuple(concept_names)
        needed = {"tokenizer": tokenizer, "text_encoder": text_encoder, "tokenizer_2": tokenizer_2}
        check_present(name, {**needed, "text_encoder_2": text_encoder_2, "transformer": transformer, "vae": vae})
        self.tokenizer, self.text_encoder = tokenizer, unwrapped(text_encoder)
        self.tokenizer_2, self.text_encoder_2, self.zero_null = tokenizer_2, unwrapped(text_encoder_2), False
        self.tokenizer_3, self.text_encoder_3, self.t5_rows = tokenizer_3, unwrapped(text_encoder_3), t5_rows
        self.transformer, self.vae = unwrapped(transformer), unwrapped(vae)
        self._check_modules()
        for module in (self.transformer, self.vae, *self._encoders(), *self._third()):
            module.eval().requires_grad_(False)
        first = next(self.transformer.parameters())
        self.device, self.dtype = first.device, first.dtype
        if self.dtype == torch.float16 and self.text_encoder_3 is not None:
            raise BadOption(f"T5 overflows in float16; load {name!r} in bfloat16 (--dtype bfloat16).")
        self.autocast_dtype, self.compiled, self.evals = first.dtype, False, Evals()
        config: Any = self.transformer.config
        side = config.sample_size
        self.latent_shape = (config.in_channels, side, side)
        self.schedule = flow_schedule_of(scheduler, (side // config.patch_size) ** 2, repr(name))
        self._encoded: dict[str, Cond] = {}
        self._identities: dict[str, tuple[list[tuple[int, int, int]], Tensor, Identity]] = {}
        self._whole = whole

    def _third(self) -> list[nn.Module]:
        """T5, where there is one."""
        return [] if self.text_encoder_3 is None else [self.text_encoder_3]

    def _check_modules(self) -> None:
        parts = {"transformer": self.transformer, "vae": self.vae, **dict(zip(self.encoders, self._encoders(), strict=True))}
        self._check_parts(parts if self.text_encoder_3 is None else {**parts, "text_encoder_3": self.text_encoder_3})
        kind, config = type(self.transformer).__name__, self.transformer.config
        if kind != "SD3Transformer2DModel":
            raise BadFile(f"the transformer of {self.name!r} is a {kind}; unload its adapters, or use SD 3 or 3.5 itself.")
        channels = getattr(self.vae.config, "latent_channels", 0)
        if not config.in_channels == config.out_channels == channels:
            raise BadFile(
                f"the transformer of {self.name!r} reads {config.in_channels} and gives {config.out_channels} channels where "
                f"latents have {channels}: it is made for inpainting or editing. Erase from the text-to-image model."
            )
        self._described = shapes_of(self.transformer)

    def check_plain(self) -> None:
        super().check_plain()
        for module in self._third() if self._described is not None else ():
            check_in_memory(self.name, "text_encoder_3", module)
            check_own(self.name, "text_encoder_3", module)

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipeline(cls, pipe: StableDiffusion3Pipeline, name: str = "pipeline", **facts: Any) -> StableDiffusion3:
        """Wrap a loaded pipeline; its modules are shared. Raises BadFile where a CLIP encoder is missing, and for a scheduler
        that is not FlowMatchEulerDiscreteScheduler."""
        for part in ("text_encoder", "text_encoder_2"):
            if getattr(pipe, part) is None:
                raise BadFile(
                    f"{name!r} has no {part}, without which the stock pipeline reads no prompt. Load it with both CLIPs."
                )
        scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
        return cls(
            name=name,
            tokenizer=pipe.tokenizer,
            text_encoder=pipe.text_encoder,
            tokenizer_2=pipe.tokenizer_2,
            text_encoder_2=pipe.text_encoder_2,
            tokenizer_3=pipe.tokenizer_3,
            text_encoder_3=pipe.text_encoder_3,
            transformer=pipe.transformer,
            vae=pipe.vae,
            scheduler=scheduler,
            whole=lambda parts: (_rebuilt(pipe, parts), []),
            **facts,
        )

    @classmethod
    def from_folder(cls, source: str | Path, *, dtype: str, device: str, **facts: Any) -> StableDiffusion3:
        """A diffusers folder on disk or a Hub id. T5 is left out where its index leaves it out."""
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        named_dtype(dtype)
        try:
            index = cls._stock().load_config(source)
            present = {part: kind for part, kind in cls._kinds().items() if (index.get(part) or [None])[0] is not None}
            for part in cls.encoders:
                if part not in present:
                    raise BadFile(f"{str(source)!r} has no {part}, without which the stock pipeline reads no prompt.")
            parts = {part: loaded(kind, source, part, dtype, device) for part, kind in present.items()}
            scheduler = FlowMatchEulerDiscreteScheduler.load_config(source, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise BadFile(f"cannot load {str(source)!r} as Stable Diffusion 3: {str(error).splitlines()[0]}") from error
        return cls(
            **{"name": str(source), **facts},
            **parts,
            scheduler=dict(scheduler),
            whole=lambda parts: _completed(cls._stock(), source, parts),
        )

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

    def _bare_facts(self) -> dict[str, Any]:
        return {}

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
        return self._joined(super()._read_prompts(prompts), self._t5(prompts))

    def _pooled(self, outs: Sequence[Any]) -> Tensor:
        """The pooled text of both CLIPs, side by side."""
        return torch.cat([out.text_embeds for out in outs], dim=-1)

    @torch.no_grad()
    def _t5(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """Its rows (B, t5_rows, d) and the index of the last word among them; None without T5."""
        if self.text_encoder_3 is None:
            return None
        lengths = [len(self.tokenizer_3(p, truncation=False, verbose=False).input_ids) for p in prompts]
        for prompt, n in zip(prompts, lengths, strict=True):
            if n > self.t5_rows:
                raise PromptTooLong.of(prompt, n, self.t5_rows, "T5 here")
        ids = self.tokenizer_3(list(prompts), padding="max_length", max_length=self.t5_rows, return_tensors="pt").input_ids
        rows = torch.cat([self.text_encoder_3(part.to(self.device))[0] for part in ids.split(64)])
        return rows, torch.tensor([max(n - 2, 0) for n in lengths])

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
        return replace(super().embed(prompts), beside=self._t5(prompts))

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        return self._joined(super().encode_soft(prompts), prompts.beside)

    # -- network -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        return self.transformer

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        with self._autocast():
            output: Tensor = self.transformer(
                hidden_states=z_t,
                encoder_hidden_states=c.tokens,
                pooled_projections=c.extras[POOLED],
                timestep=t,
                return_dict=False,
            )[0]
        return output.float()

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        config: Any = self.vae.config
        latents = z_0 / config.scaling_factor + (config.shift_factor or 0.0)
        with self._autocast():
            pixels = self.vae.decode(latents.to(next(self.vae.parameters()).dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def constant_context(self) -> Iterator[None]:
        """Nothing can be kept: the text's keys and values change with t and with the picture."""
        yield

    # -- what this family lacks ----------------------------------------------------------------------------------

    @property
    def lacking(self) -> Mapping[str, str]:
        found = {
            "attention_maps": f"{JOINT}, so that what a pixel gives to the words does not sum to 1",
            "extra_context": f"{JOINT}, and each block makes the text's keys and values from what the block before left",
            "start_detached": f"{JOINT}, so that the start token is no column of its own; set detach_start=false",
            "official_alignment": "those codes shift integer timesteps, and those of a flow are none; use alignment=exact",
            "plms": "its steps are those of a noise prediction; use solver=ddim or dpm",
            "keys_and_values": "both read the same matrix, context_embedder",
        }
        if self.text_encoder_3 is not None:
            found["one_tokenizer"] = "T5 cuts the same prompt into other tokens; load the model without T5"
        return found

    def attention_maps(self) -> AbstractContextManager[list[Tensor]]:
        raise self._refusal("attention_maps")

    def extra_context(self, keys: Tensor, values: Tensor, place: str) -> AbstractContextManager[None]:
        raise self._refusal("extra_context")

    def start_detached(self) -> AbstractContextManager[None]:
        raise self._refusal("start_detached")

    def _refusal(self, capability: str) -> BadOption:
        return BadOption(f"{self.name!r} does not offer {CAPABILITIES[capability]}: {self.lacking[capability]}.")

    # -- files ---------------------------------------------------------------------------------------------------

    def _identifying(self) -> list[tuple[str, nn.Parameter]]:
        third = [(f"text_encoder_3.{n}", p) for module in self._third() for n, p in module.named_parameters()]
        return [*super()._identifying(), *third]

    def identity(self, part: str = "") -> Identity:
        """As of other families, T5 included; that of the whole also tells models apart by the number of rows that T5 has, which
        no parameter shows."""
        found = super().identity(part)
        return found if part else told_apart(found, self.t5_rows)

    def _lora_state(self, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return self._stock().lora_state_dict(dict(tensors)), {}

    @property
    def info(self) -> Mapping[str, object]:
        config: Any = self.transformer.config
        return {
            "name": self.name,
            "family": self.family,
            "prediction_type": self.schedule.prediction_type,
            "latent_shape": list(self.latent_shape),
            "joint_attention_dim": config.joint_attention_dim,
            "t5": self.text_encoder_3 is not None,
            "t5_rows": self.t5_rows,
            "transformer_parameters": sum(p.numel() for p in self.transformer.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }
