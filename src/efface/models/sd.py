"""Stable Diffusion 1.x and 2.x (and the miniature, which is one): UNet2DConditionModel, CLIPTextModel, AutoencoderKL.

Longer than 400 lines because every method of the contract has its body here, which the other families inherit.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import BadFile, BadOption, BadRequest, NothingSelected, PromptTooLong
from .attention import cross_attentions, extended, probed, start_detached
from .base import DiffusionModel, Evals
from .cond import GUIDANCE, Cond
from .identity import Identity, entries_of, identity_of
from .lora import denoiser_changes, encoder_changes
from .parts import Whole, completed, loaded, named_dtype, rebuilt
from .placement import CPU, DEVICE, OFFLOAD, check_place, visiting
from .plain import (
    FLOATS,
    FP8,
    OFFLOADED,
    check_in_memory,
    check_network,
    check_own,
    check_present,
    check_storage,
    latent_side,
    shapes_of,
    unwrapped,
)
from .schedule import Schedule, schedule_of, scheduler_of
from .select import Select, in_checkpoint
from .tokens import SoftPrompt, TokenSpan, last_words, occurrences, substituted, token_table, whole_words

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    from .storage import Rounded

COMPILED_GRADIENTS = 0.1
"""Largest relative error of a compiled network's gradients: far above rounding, autocast included, below the fault found."""
ASSUMED_GUIDANCE = 7.5
"""What a guidance-distilled network is told outside a guided trajectory: the pipelines' default."""
DISTILLED = "it was distilled to draw pictures with one evaluation per step and has no second branch"
STORED = "its frozen weights are stored in fp8; load it without storage=fp8, such as on a device with more memory"
STORED_ALONE = "storage=fp8 goes with neither --compile nor --autocast; load the weights with --dtype bfloat16 instead."
CACHE_BYTES = 2**30  # of encodings in float32: 4,539 prompts of Stable Diffusion 1.x, 1,702 of SDXL


class StableDiffusion(DiffusionModel):
    """Adapter of one loaded Stable Diffusion 1.x/2.x. Modules are shared with whoever built it (a pipeline, say), so a
    patch applied here shows there."""

    family: ClassVar[str] = "stable-diffusion"
    called: ClassVar[str] = "a Stable Diffusion"
    clipping: ClassVar[tuple[str, ...]] = ("thresholding",)
    """Settings of a scheduler that change what the stock pipeline draws and not what efface does. Stock pipelines of this family
    set clip_sample to False by themselves."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Attributes that hold text encoders; their parameters are named after them."""

    rounded: Rounded | None = None
    """What the network stores in eight bits; see :meth:`store`."""
    _precisions: frozenset[torch.dtype] | None = None
    """Of the network's weights, those stored in eight bits left out; None where not asked for since they changed."""

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        text_encoder: nn.Module,
        unet: nn.Module,
        vae: nn.Module,
        schedule: Schedule,
        preset: str = "paper",
        concept_names: Sequence[str] = (),
        whole: Whole | None = None,
    ) -> None:
        """``whole``: makes a stock pipeline of the model's modules and of whatever else its source holds, and names what of that
        is missing. Raises BadFile for modules that are not the plain ones of this family; see :mod:`efface.models.plain`."""
        self.name, self.preset, self.concept_names = name, preset, tuple(concept_names)
        check_present(name, {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae})
        self.tokenizer, self.text_encoder, self.unet, self.vae = (
            tokenizer,
            unwrapped(text_encoder),
            unwrapped(unet),
            unwrapped(vae),
        )
        self._check_modules()
        for module in (self.unet, self.vae, *self._encoders()):
            module.eval().requires_grad_(False)
        self.schedule, self.evals = schedule, Evals()
        clipping = [key for key in self.clipping if schedule.config.get(key)]
        if clipping:
            warnings.warn(
                f"the scheduler of {name!r} clips clean latents at every step ({clipping[0]}=True), which is meant for "
                "pixels. efface draws without, and so does the pipeline after "
                f"pipe.scheduler.register_to_config({clipping[0]}=False).",
                UserWarning,
                stacklevel=3,
            )
        first = next(self.unet.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.autocast_dtype, self.compiled = first.dtype, False
        self.takes_guidance = self.distilled = self.unet.config.time_cond_proj_dim is not None
        if self.distilled:
            self.usual_guidance, self.usual_steps = 8.5, 4  # of LatentConsistencyModelPipeline
        self.latent_shape = (self.unet.config.in_channels, *latent_side(name, self.unet))
        self._encoded: dict[str, Cond] = {}
        self._identities: dict[str, tuple[list[tuple[int, int, int]], Tensor, Identity]] = {}
        self._whole = whole

    def _check_parts(self, parts: Mapping[str, Any]) -> None:
        for part, module in parts.items():
            if not isinstance(module, nn.Module) or not hasattr(module, "config"):
                raise BadFile(f"the {part} of {self.name!r} is a {type(module).__name__}; load the model with diffusers.")
            check_in_memory(self.name, part, module)
        devices = {part: str(next(module.parameters()).device) for part, module in parts.items()}
        beside = {device for part, device in devices.items() if part != self.part}
        self.encoders_at = DEVICE if beside <= {devices[self.part]} else CPU
        if self.encoders_at == CPU and beside != {"cpu"}:
            raise BadFile(
                f"the parts of {self.name!r} are on several devices ({devices}). Call pipe.to(device) first, or leave the text "
                "encoders and the VAE on the CPU and move the network alone."
            )

    def _check_modules(self) -> None:
        self._check_parts({"unet": self.unet, "vae": self.vae, **dict(zip(self.encoders, self._encoders(), strict=True))})
        config = self.vae.config
        if getattr(config, "latents_mean", None) is not None or getattr(config, "shift_factor", None):
            raise BadFile(
                f"{self.name!r} shifts its latents by a mean of their own, which efface does not do. Use SD or SDXL base."
            )
        width = sum(getattr(encoder.config, "hidden_size", 0) for encoder in self._encoders())
        check_network(self.name, self.unet, getattr(config, "latent_channels", 0), width, pooled=len(self.encoders) > 1)
        self._described: dict[str, Any] | None = shapes_of(self.unet)

    def check_plain(self) -> None:
        if self._described is None:
            return  # a student: made of a model that was checked, and changed by efface alone
        for part in (self.part, *self.encoders):
            check_in_memory(self.name, part, getattr(self, part))
            check_own(self.name, part, getattr(self, part), self._described if part == self.part else None)

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipeline(cls, pipe: StableDiffusionPipeline, name: str = "pipeline") -> StableDiffusion:
        """Wrap a loaded diffusers pipeline; its modules are shared, not copied."""
        return cls(
            name=name,
            tokenizer=pipe.tokenizer,
            text_encoder=pipe.text_encoder,
            unet=pipe.unet,
            vae=pipe.vae,
            schedule=schedule_of(pipe.scheduler),
            whole=lambda parts: (rebuilt(pipe, parts), []),
        )

    @classmethod
    def from_folder(cls, source: str | Path, *, dtype: str, device: str, **facts: Any) -> StableDiffusion:
        """A diffusers folder on disk or a Hub id. Where it holds weights of a variant alone (``fp16``), these are read."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        named_dtype(dtype)
        try:
            parts = {part: loaded(kind, source, part, dtype, device) for part, kind in cls._kinds().items()}
            scheduler = DDIMScheduler.load_config(source, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise BadFile(
                f"cannot load {str(source)!r} as a diffusers Stable Diffusion model: {str(error).splitlines()[0]} "
                "Give a folder with unet/, text_encoder/, vae/, tokenizer/ and scheduler/, a Hub id, or a checkpoint file. "
                "From the Hub, weights without a variant or of the variant fp16 are read; of another, give a folder."
            ) from error
        return cls(
            name=facts.pop("name", str(source)),
            **parts,
            schedule=schedule_of(dict(scheduler)),
            whole=lambda parts: completed(cls._stock(), source, parts),
            **facts,
        )

    @classmethod
    def from_single_file(cls, path: Path, *, dtype: str, device: str) -> StableDiffusion:
        """One ``.safetensors`` or ``.ckpt`` checkpoint. diffusers reads pickles with ``weights_only=True``, and takes the
        configuration and the tokenizer from the Hub or its cache; no safety checker is fetched."""
        more = {} if len(cls.encoders) > 1 else {"safety_checker": None}
        try:
            pipe = cls._stock().from_single_file(str(path), torch_dtype=named_dtype(dtype), **more)
        except Exception as error:  # diffusers raises anything from KeyError to UnpicklingError here
            raise BadFile(
                f"cannot load {str(path)!r} as {cls.called} checkpoint: {type(error).__name__}: {error} "
                "Its configuration comes from the Hub: without a network, load any model of its kind once before, or convert the "
                "file to a folder."
            ) from error
        return cls.from_pipeline(pipe.to(device), name=str(path))

    @classmethod
    def _stock(cls) -> Any:
        """The pipeline class of the family."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        """Classes of the parts that this adapter calls, by folder."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        return {"tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}

    # -- DiffusionModel ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        missing = [p for p in dict.fromkeys(prompts) if p not in self._encoded]
        if len(self._encoded) + len(missing) > CACHE_BYTES // (4 * self._numbers_per_prompt):
            self._encoded = {p: self._encoded[p] for p in dict.fromkeys(prompts) if p in self._encoded}
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            c = self._read_prompts(part)
            self._encoded |= {prompt: c[i] for i, prompt in enumerate(part)}
        return Cond.cat([self._encoded[p] for p in prompts])

    def _read_prompts(self, prompts: Sequence[str]) -> Cond:
        return self._read(*self._tokenize(prompts))

    @property
    def _text(self) -> tuple[Any, Any, int]:
        """Of the tokens: the tokenizer that cuts them, the encoder that reads them, and how many it reads."""
        return self.tokenizer, self.text_encoder, self.tokenizer.model_max_length

    @property
    def _numbers_per_prompt(self) -> int:
        return int(self.tokenizer.model_max_length * self.unet.config.cross_attention_dim)

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        """What the network gets to see of tokens (B, L), or of vectors (B, L, e) in their places. Counts B encodings."""
        self.evals.text += len(ids)
        encoder = self._text[1]
        with self._computing(encoder) as there, substituted(token_table(encoder), embeddings):
            hidden = encoder(ids.to(there)).last_hidden_state
        return Cond(hidden.to(self.device), last_words(lengths, self.ends))

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        tokenizer, _, limit = self._text
        lengths = [len(tokenizer(p, truncation=False, verbose=False).input_ids) for p in prompts]
        for prompt, n in zip(prompts, lengths, strict=True):
            if n > limit:
                raise PromptTooLong.of(prompt, n, limit, "the model")
        return tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt").input_ids, lengths

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        ids, lengths = self._tokenize(prompts)
        return [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]

    @property
    def network(self) -> nn.Module:
        return self.unet

    def vocabulary(self) -> list[str]:
        return whole_words(self._text[0])

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        z, tokens = self._given(z_t, c.tokens)
        with self._running():
            return self.unet(z, t, tokens, return_dict=False, **self._beside(c))[0].float()

    @property
    def _alike(self) -> bool:
        """Whether every weight of the network is kept in the precision that it computes in, but for layers that its class keeps
        in float32 and casts to by itself. Then it is called as the stock pipeline calls it: autocast would only keep the norms in
        float32, and costs the host up to a third of the time of a step. Where a student trains float32 copies, autocast is
        needed."""
        if self._precisions is None:  # kept, because asking thousands of weights at every step costs milliseconds
            self._precisions = precisions(self.network)
        return self._precisions == {self.autocast_dtype}

    def _given(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the network is given for these inputs: in its own precision, and under autocast as they are."""
        return tuple(x.to(self.autocast_dtype) for x in inputs) if self._alike else inputs

    def _beside(self, c: Cond) -> dict[str, Any]:
        """What else the network is called with."""
        if not self.takes_guidance:
            return {}
        scales = c.extras.get(GUIDANCE, torch.full((len(c),), ASSUMED_GUIDANCE))
        # The pipelines' own embedding of the scale; like them, it counts from no guidance, which is 1.
        told = self._stock().get_guidance_scale_embedding(
            self, scales.cpu() - 1, embedding_dim=self.unet.config.time_cond_proj_dim
        )
        return {"timestep_cond": told.to(self.device, self.unet.time_embedding.cond_proj.weight.dtype)}

    def told(self, c: Cond, scale: float) -> tuple[Cond, float]:
        if not self.takes_guidance:
            return super().told(c, scale)
        scales = torch.full((len(c),), float(scale), device=c.tokens.device)
        return dataclasses.replace(c, extras={**c.extras, GUIDANCE: scales}), 1.0

    @property
    def lacking(self) -> Mapping[str, str]:
        stored = {} if self.rounded is None else {"unrounded": STORED}
        return {**stored, **({"guidance": DISTILLED} if self.distilled else {})}

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        return self._pixels(z_0.to(next(self.vae.parameters()).dtype) / self.vae.config.scaling_factor)

    def _pixels(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents as the VAE's decoder reads them."""
        with self._computing(self.vae) as there:
            pixels = self.vae.decode(latents.to(there, next(self.vae.parameters()).dtype)).sample
        return (pixels.to(self.device).float() / 2 + 0.5).clamp(0, 1)

    def locate(self, prompt: str, phrase: str) -> TokenSpan:
        ids, (n,) = self._tokenize([prompt])
        wanted = self._text[0](phrase, add_special_tokens=False).input_ids
        starts = occurrences(ids[0, :n].tolist(), wanted)
        if not starts:
            raise BadRequest(f"{phrase!r} does not stand in the prompt {prompt!r} as the tokenizer reads it.")
        return TokenSpan(starts, len(wanted), eos=n - self.ends)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        ids, lengths = self._tokenize(prompts)
        tokenizer, encoder, _ = self._text
        pad_id, table = tokenizer.pad_token_id, token_table(encoder)
        rows, pad = (self._looked_up(table, i) for i in (ids, torch.tensor(pad_id)))
        return SoftPrompt(rows, ids.to(self.device), tuple(lengths), pad, pad_id, starts=self.starts, ends=self.ends)

    def _looked_up(self, table: nn.Module, ids: Tensor) -> Tensor:
        """Rows of a token table, read where the table lies."""
        rows: Tensor = table(ids.to(next(table.parameters()).device))
        return rows.to(self.device)

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        return self._read(prompts.ids, prompts.lengths, prompts.embeddings)

    @torch.no_grad()
    def text_layers(self, prompts: Sequence[str]) -> list[Cond]:
        ids, lengths = self._tokenize(prompts)
        last = last_words(lengths, self.ends)
        found: list[list[Tensor]] = []
        for part in ids.split(64):
            with self._computing(self._text[1]) as there:
                states = self._text[1](part.to(there), output_hidden_states=True)
            found.append([h.to(self.device) for h in (*states.hidden_states[:-1], states.last_hidden_state)])
        self.evals.text += len(prompts)
        return [Cond(torch.cat(layer), last) for layer in zip(*found, strict=True)]

    def attention_maps(self) -> AbstractContextManager[list[Tensor]]:
        return probed(self.network)

    def extra_context(self, keys: Tensor, values: Tensor, place: str) -> AbstractContextManager[None]:
        return extended(self.network, keys, values, place)

    def start_detached(self) -> AbstractContextManager[None]:
        return start_detached(self.network)

    def weights(self, select: Select) -> dict[str, Tensor]:
        self.check_plain()
        found = {n: p for n, p in self._named_parameters() if select(n)}
        if not found:
            raise NothingSelected(f"no parameter of {self.name!r} matches the selection; nothing would be trained or edited.")
        return found

    def student(self, select: Select) -> StableDiffusion:
        selected = {id(p) for p in self.weights(select).values()}
        if self.encoders_at != DEVICE and any(id(p) in selected for encoder in self._encoders() for p in encoder.parameters()):
            raise BadOption(
                f"text encoders that are trained must be on the device, and those of {self.name!r} are not "
                f"(encoders={self.encoders_at}); load the model with encoders=device."
            )
        self.unround(select)
        twin = self._owning(selected)
        if twin.rounded is not None:
            twin.rounded = dataclasses.replace(twin.rounded, network=twin.network)
        if any(a is not b for a, b in zip(twin._encoders(), self._encoders(), strict=True)):
            twin._encoded = {}
        for n, p in twin.weights(select).items():
            if p.dtype not in FLOATS:
                raise BadOption(f"{n} of {self.name!r} is trained and stored in {p.dtype}; only what is frozen may be.")
            p.data = p.data.float()  # master weights: half precision would swallow small updates
        if self.compiled and twin.network is not self.network:
            twin._compile_checked(select)
        return twin

    def _owning(self, selected: set[int]) -> Self:
        """A twin with copies of the parameters of these ids, in modules of its own."""
        twin = copy.copy(self)
        twin._described, twin._identities, twin._precisions = None, {}, None
        for part in (self.part, *self.encoders):
            module = getattr(self, part)
            shared = [v for v in (*module.parameters(), *module.buffers()) if id(v) not in selected]
            if len(shared) < len([*module.parameters(), *module.buffers()]):
                setattr(twin, part, copy.deepcopy(module, memo={id(v): v for v in shared}))
        return twin

    def copied(self, parts: Sequence[str]) -> StableDiffusion:
        twin = copy.copy(self)
        twin._described, twin._identities, twin._encoded = None, {}, {}
        for part in parts:
            setattr(twin, part, copy.deepcopy(getattr(self, part)))
        return twin

    def _compile_checked(self, select: Select) -> None:
        """Compile the student's network and compare its gradients with the plain ones, once: the compiler of torch 2.13 gives a
        small network on the CPU no gradient at all in its mid block, silently. Raises BadOption."""
        plain = self._gradients(select)
        self.network.compile()
        for (name, g), h in zip(plain.items(), self._gradients(select).values(), strict=True):
            error = float((h - g).norm() / g.norm().clamp_min(1e-12))
            if not error < COMPILED_GRADIENTS:
                raise BadOption(
                    f"torch.compile gives wrong gradients for this network ({name} is off by {100 * error:.0f} %). "
                    "Run without --compile."
                )

    def _gradients(self, select: Select) -> dict[str, Tensor]:
        """Of the mean square output at two fixed latents; no part of any run's cost."""
        weights, before = self.weights(select), dataclasses.replace(self.evals)
        flags = {n: p.requires_grad for n, p in weights.items()}
        for p in weights.values():
            p.requires_grad_(True)
        z, t = self.noise(2, torch.Generator().manual_seed(0)), self.schedule.numbered([100, 700], self.device)
        loss = self.predict(z, t, self.encode(["", ""])).square().mean()
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for n, p in weights.items():
            p.requires_grad_(flags[n])
        self.evals.forward, self.evals.calls, self.evals.text = before.forward, before.calls, before.text
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(weights.items(), found, strict=True)}

    def digest(self) -> str:
        """sha256 over names and half-precision values, so that one checkpoint loaded in float32 or float16 has one digest."""
        return self.identity()["digest"]

    def identity(self, part: str = "") -> Identity:
        """See :mod:`efface.models.identity`. Weights are hashed once and again after they changed: when a patch was applied or
        reverted, a tensor was replaced or written to, or the entry of any tensor that is looked at has another value."""
        self.check_plain()
        if self.device.type == "meta":
            raise BadFile(f"the weights of {self.name!r} are not in memory (device meta). {OFFLOADED}")
        named = [(n, p) for n, p in self._identifying() if n.startswith(part)]
        state = [(id(p), p.data_ptr(), p._version) for _, p in named]
        entries = entries_of(p for _, p in named)
        kept = self._identities.get(part)
        if kept is None or kept[0] != state or not torch.equal(kept[1], entries):
            self._identities[part] = kept = (state, entries, identity_of(named))
        return kept[2]

    def _identifying(self) -> list[tuple[str, Tensor]]:
        """The parameters that tell this model from others, by name, before they were rounded for storage."""
        named, rounded = [(n, p) for n, p in self._named_parameters() if in_checkpoint(n)], self.rounded
        return named if rounded is None else [(n, rounded.original(n.removeprefix(f"{self.part}."), p)) for n, p in named]

    def weights_changed(self) -> None:
        self._encoded.clear()
        self._identities.clear()
        self._precisions = None

    @contextmanager
    def constant_context(self) -> Iterator[None]:
        # A compiled network would bake the kept tensors into its graph.
        layers = [] if self.compiled else cross_attentions(self.network)
        kept = [projection for layer in layers for projection in (layer.to_k, layer.to_v)]
        fresh = [m for m in kept if not isinstance(m.forward, _Kept)]
        # Hooks of diffusers, such as those of layerwise casting, stand in the same place and must be there again.
        own = [vars(m).get("forward") for m in fresh]
        for module in fresh:
            module.forward = _Kept(module.forward)
        try:
            yield
        finally:
            for module, before in zip(fresh, own, strict=True):
                del module.forward  # the class's own method shows again
                if before is not None:
                    module.forward = before

    def configure(self, *, compiled: bool = False, checkpointing: bool = False, autocast: str | None = None) -> None:
        if self.rounded is not None and (compiled or (autocast is not None and named_dtype(autocast) != self.dtype)):
            raise BadOption(STORED_ALONE)
        self.autocast_dtype = self.dtype if autocast is None else named_dtype(autocast)
        self._precisions = None
        if checkpointing:
            self.network.enable_gradient_checkpointing()
        if compiled and not self.compiled:
            self.network.compile()
        self.compiled = compiled

    def store(self, storage: str) -> None:
        from .storage import Rounded

        check_storage(storage)
        if self.compiled or self.autocast_dtype != self.dtype:
            raise BadOption(STORED_ALONE)
        if self.rounded is None:
            self.rounded = Rounded.of(self.network, self.dtype)

    def unround(self, select: Select) -> None:
        if self.rounded is not None:
            self.rounded.restore(lambda n: select(f"{self.part}.{n}"))

    def place(self, encoders: str, device: str | None = None) -> None:
        check_place(encoders)
        self.encoders_at = encoders
        self.device = self.device if device is None else torch.device(device)
        self.network.to(self.device)
        for module in self.beside().values():
            module.to(self.device if encoders == DEVICE else "cpu")
        self.weights_changed()  # encodings and hashes that are kept lie where the model was

    def beside(self) -> Mapping[str, nn.Module]:
        return {part: m for part in self._kinds() if part != self.part and isinstance(m := getattr(self, part), nn.Module)}

    def save_folder(self, path: Path) -> list[str]:
        """Write a pipeline folder of this model's weights, with every other component and the scheduler of the source. Returns
        the components that the source names and does not have. Raises BadFile where the rest of the source is out of reach."""
        self.require("writing a folder", ("unrounded",))
        pipe, missing = self._pipeline()
        pipe.save_pretrained(path)
        return missing

    def _pipeline(self) -> tuple[Any, list[str]]:
        """A stock pipeline of this model's modules and of whatever else its source holds, and the components that it lacks."""
        return (self._whole or self._bare)({part: getattr(self, part) for part in self._kinds()})

    def read_lora(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state, alphas = self._lora_state(tensors)
        found: dict[str, Tensor] = {}
        for part in (self.part, *self.encoders):
            start = f"{part}."
            lora = {k.removeprefix(start): t.float() for k, t in state.items() if k.startswith(start)}
            own = {k.removeprefix(start): float(alpha) for k, alpha in alphas.items() if k.startswith(start)}
            live = {n.removeprefix(start): p for n, p in self._named_parameters() if n.startswith(start)}
            if lora:
                read = denoiser_changes if part == self.part else encoder_changes
                found |= {start + n: d for n, d in read(lora, own, live).items()}
        return found

    def _lora_state(self, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """A LoRA file's tensors under the stock pipeline's names, and the alphas it keeps apart."""
        state, alphas = self._stock().lora_state_dict(dict(tensors), unet_config=self.unet.config)
        return state, alphas or {}

    def _bare(self, parts: Mapping[str, Any]) -> tuple[Any, list[str]]:
        """A stock pipeline of these parts alone."""
        return self._stock()(**parts, scheduler=scheduler_of(self.schedule.config), **self._bare_facts()), []

    def _bare_facts(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    @property
    def info(self) -> Mapping[str, object]:
        return {
            "name": self.name,
            "family": self.family,
            "prediction_type": self.schedule.prediction_type,
            "latent_shape": list(self.latent_shape),
            **self._of_the_family,
            f"{self.part}_parameters": sum(p.numel() for p in self.network.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            **({} if self.rounded is None else {"storage": "fp8"}),
            "device": str(self.device),
        }

    @property
    def _of_the_family(self) -> Mapping[str, object]:
        """What ``info`` says beside what all families have."""
        return {"cross_attention_dim": self.unet.config.cross_attention_dim}

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Checkpoint names. transformers 5 dropped the ``text_model.`` level of CLIPTextModel: one name for both."""
        text = [
            (f"{part}.{n.removeprefix('text_model.')}", p)
            for part, encoder in zip(self.encoders, self._encoders(), strict=True)
            for n, p in encoder.named_parameters()
        ]
        return [*((f"{self.part}.{n}", p) for n, p in self.network.named_parameters()), *text]

    def _encoders(self) -> list[nn.Module]:
        return [getattr(self, part) for part in self.encoders]

    def _autocast(self, device: torch.device | None = None) -> AbstractContextManager[Any]:
        if self.autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast((device or self.device).type, self.autocast_dtype)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Inside, the network computes what it was :meth:`_given`, under autocast where it needs that."""
        from .storage import kept_in_eight_bits

        storing = self.rounded is not None and torch.is_grad_enabled()
        with kept_in_eight_bits() if storing else nullcontext(), nullcontext() if self._alike else self._autocast():
            yield

    @contextmanager
    def _computing(self, module: nn.Module, autocast: bool = True) -> Iterator[torch.device]:
        """Inside, a text encoder or the VAE is where it computes, under autocast where that is allowed and it needs it, as the
        network does; see :attr:`_alike`. Gives the device, to which its inputs are moved."""
        device = torch.device("cpu") if self.encoders_at == CPU else self.device
        there = visiting(module, device) if self.encoders_at == OFFLOAD else nullcontext()
        # Its precisions are asked for only where they matter, because the answer takes a look at every weight.
        needed = autocast and self.autocast_dtype != torch.float32 and precisions(module) != {self.autocast_dtype}
        with there, self._autocast(device) if needed else nullcontext():
            yield device


def precisions(module: nn.Module) -> frozenset[torch.dtype]:
    """Of a module's weights, but for those stored in eight bits and those that its class keeps in float32."""
    wide = frozenset(getattr(module, "_keep_in_fp32_modules", None) or ())
    return frozenset(p.dtype for n, p in module.named_parameters() if wide.isdisjoint(n.split("."))) - {FP8}


class _Kept:
    """A projection that remembers its last input and output. Identity, not equality: the same tensor, unchanged since."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward = forward
        self.last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.forward(x)
        if self.last is None or self.last[0] is not x or self.last[1] != x._version:
            self.last = x, x._version, self.forward(x)
        return self.last[2]
