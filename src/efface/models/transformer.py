"""Adapters of pipelines whose denoiser is a transformer: parts by their names in the pipeline, loaded and wrapped in one way."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadFile, BadOption, PromptTooLong
from .base import Evals
from .capabilities import CAPABILITIES
from .cond import Cond
from .identity import Identity
from .parts import Whole, completed, loaded, named_dtype, rebuilt
from .plain import check_present, shapes_of, unwrapped
from .sd import StableDiffusion


class TransformerModel(StableDiffusion):
    """Abstract. What such a family adds is its text, its noise levels and how its network is called. Weights are named
    ``transformer.``. Large text encoders overflow in float16, which is refused for a family that reads one."""

    part: ClassVar[str] = "transformer"
    kind: ClassVar[str]
    """Class of the transformer."""
    t5_parts: ClassVar[tuple[str, str]]
    """Names of T5's tokenizer and of T5 in the family's pipeline, or of what reads text in its place."""
    reads_with: ClassVar[str] = "T5"
    """What it is called. It overflows in float16."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Parts that a pipeline may lack."""
    transformer: Any

    def __init__(
        self,
        *,
        name: str,
        scheduler: Mapping[str, Any],
        preset: str = "paper",
        concept_names: Sequence[str] = (),
        whole: Whole | None = None,
        **parts: Any,
    ) -> None:
        """``parts``: the pipeline's components by name; ``scheduler``: the configuration of its scheduler, its class included.
        Raises BadFile for modules that are not the plain ones of this family."""
        self.name, self.preset, self.concept_names = name, preset, tuple(concept_names)
        kinds = self._kinds()
        if unknown := sorted(set(parts) - set(kinds)):
            raise TypeError(f"{type(self).__name__} has no part {unknown[0]!r}; it has {', '.join(kinds)}")
        check_present(name, {part: parts.get(part) for part in kinds if part not in self.optional})
        for part in kinds:
            setattr(self, part, unwrapped(parts.get(part)))
        self._check_modules()
        for module in (self.transformer, self.vae, *self._encoders(), *self._t5()):
            module.eval().requires_grad_(False)
        # diffusers keeps small layers of some families in float32; the largest has the precision that was asked for.
        first = max(self.transformer.parameters(), key=lambda p: p.numel())
        self.device, self.dtype = first.device, first.dtype
        if self.dtype == torch.float16 and self._t5():
            raise BadOption(f"{self.reads_with} overflows in float16; load {name!r} in bfloat16 (--dtype bfloat16).")
        self.autocast_dtype, self.compiled, self.evals = first.dtype, False, Evals()
        self._sized(scheduler)
        self._encoded: dict[str, Cond] = {}
        self._identities: dict[str, tuple[list[tuple[int, int, int]], Tensor, Identity]] = {}
        self._whole = whole

    @abc.abstractmethod
    def _sized(self, scheduler: Mapping[str, Any]) -> None:
        """Set the shape of latents and the noise levels, which may depend on it."""

    @property
    def _channels(self) -> tuple[int, int]:
        """Channels of latents that the network reads and gives."""
        config: Any = self.transformer.config
        return config.in_channels, config.out_channels

    @property
    def _vae_channels(self) -> int:
        """Channels of the latents that the VAE reads."""
        return int(getattr(self.vae.config, "latent_channels", 0))

    def _t5(self) -> list[nn.Module]:
        """T5, where there is one."""
        t5 = getattr(self, self.t5_parts[1])
        return [] if t5 is None else [t5]

    def _check_modules(self) -> None:
        parts = {"transformer": self.transformer, "vae": self.vae, **dict(zip(self.encoders, self._encoders(), strict=True))}
        self._check_parts({**parts, **dict(zip(self.t5_parts[1:], self._t5(), strict=False))})
        kind = type(self.transformer).__name__
        if kind != self.kind:
            raise BadFile(f"the transformer of {self.name!r} is a {kind} and not a {self.kind}; unload its adapters.")
        reads, gives = self._channels
        latents = self._vae_channels
        if not reads == gives == latents:
            raise BadFile(
                f"the transformer of {self.name!r} reads {reads} and gives {gives} channels where latents have {latents}: it is "
                "made for inpainting or editing. Erase from the text-to-image model."
            )
        self._described = shapes_of(self.transformer)

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str = "pipeline", **facts: Any) -> Any:
        """Wrap a loaded pipeline; its modules are shared. Raises BadFile where a part is missing without which the stock pipeline
        reads no prompt, and for a scheduler of another family's."""
        parts = {part: getattr(pipe, part) for part in cls._kinds()}
        cls._check_index(name, pipe.config)
        cls._check_whole(name, {part for part, module in parts.items() if module is not None})
        scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
        return cls(name=name, scheduler=scheduler, whole=lambda own: (rebuilt(pipe, own), []), **parts, **facts)

    @classmethod
    def from_folder(cls, source: str | Path, *, dtype: str, device: str, **facts: Any) -> Any:
        """A diffusers folder on disk or a Hub id. A part that may be absent is left out where the index leaves it out."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        named_dtype(dtype)
        try:
            index = cls._stock().load_config(source)
            present = {part: kind for part, kind in cls._kinds().items() if (index.get(part) or [None])[0] is not None}
            cls._check_index(str(source), index)
            cls._check_whole(str(source), set(present))
            parts = {part: loaded(kind, source, part, dtype, device) for part, kind in present.items()}
            scheduler = DDIMScheduler.load_config(source, subfolder="scheduler")  # of whatever class; it is named inside
        except (OSError, ValueError) as error:
            raise BadFile(f"cannot load {str(source)!r} as {cls.called} model: {str(error).splitlines()[0]}") from error
        return cls(
            **{"name": str(source), **facts},
            **parts,
            scheduler=dict(scheduler),
            whole=lambda own: completed(cls._stock(), source, own),
        )

    @classmethod
    def _check_index(cls, name: str, index: Mapping[str, Any]) -> None:
        """Raises BadFile for a pipeline whose index names something that this family does without."""

    @classmethod
    def _check_whole(cls, name: str, present: set[str]) -> None:
        needed = [part for part in cls._kinds() if part not in cls.optional]
        for part in sorted(needed, key=lambda part: "tokenizer" in part):  # encoders first: they are what is left out
            if part not in present:
                raise BadFile(f"{name!r} has no {part}, without which the stock pipeline reads no prompt. Load it whole.")

    def _bare_facts(self) -> dict[str, Any]:
        return {}

    # -- text ----------------------------------------------------------------------------------------------------

    def _padded(self, prompts: Sequence[str], rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """(B, L) ids with padding behind them, and how many of each prompt are none. Raises PromptTooLong."""
        tokenizer, _, limit = self._text
        for prompt, ids in zip(prompts, rows, strict=True):
            if len(ids) > limit:
                raise PromptTooLong.of(prompt, len(ids), limit, "the model")
        pad = tokenizer.pad_token_id
        return torch.tensor([[*ids, *[pad] * (limit - len(ids))] for ids in rows]), [len(ids) for ids in rows]

    # -- network -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        found: nn.Module = self.transformer
        return found

    def _lora_state(self, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return self._stock().lora_state_dict(dict(tensors)), {}

    def _refusal(self, capability: str) -> BadOption:
        return BadOption(f"{self.name!r} does not offer {CAPABILITIES[capability]}: {self.lacking[capability]}.")


@contextmanager
def passing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these layers pass on what they get, because they were applied before."""
    for layer in layers:
        layer.forward = lambda x: x
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own method shows again
