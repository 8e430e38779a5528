"""Stable Diffusion 1.x and 2.x (and the miniature, which is one): UNet2DConditionModel, CLIPTextModel, AutoencoderKL."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadFile, BadOption, BadRequest, NothingSelected, PromptTooLong
from .attention import cross_attentions, extended, probed, start_detached
from .base import DiffusionModel, Evals, Schedule
from .cond import Cond
from .select import Select
from .tokens import SoftPrompt, TokenSpan, occurrences, substituted

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILED_GRADIENTS = 0.1
"""Largest relative error of a compiled network's gradients: far above rounding, autocast included, below the fault found."""
CACHE_BYTES = 2**30  # of encodings in float32: 4,539 prompts of Stable Diffusion 1.x, 1,702 of SDXL


class StableDiffusion(DiffusionModel):
    """Adapter of one loaded Stable Diffusion 1.x/2.x. Modules are shared with whoever built it (a pipeline, say), so a
    patch applied here shows there."""

    family: ClassVar[str] = "stable-diffusion"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Attributes that hold text encoders; their parameters are named after them."""

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
    ) -> None:
        self.name, self.preset, self.concept_names = name, preset, tuple(concept_names)
        self.tokenizer, self.text_encoder, self.unet, self.vae = tokenizer, text_encoder, unet, vae
        for module in (unet, vae, *self._encoders()):
            module.eval().requires_grad_(False)
        self.schedule, self.evals = schedule, Evals()
        first = next(unet.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.autocast_dtype, self.compiled = first.dtype, False
        side = unet.config.sample_size
        self.latent_shape = (unet.config.in_channels, side, side)
        self._encoded: dict[str, Cond] = {}

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
            schedule=schedule_of(dict(pipe.scheduler.config)),
        )

    @classmethod
    def from_folder(cls, source: str | Path, *, dtype: str, device: str, **facts: Any) -> StableDiffusion:
        """A diffusers folder on disk or a Hub id."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        torch_dtype = named_dtype(dtype)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
            text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=torch_dtype)
            unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=torch_dtype)
            vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=torch_dtype)
            scheduler = DDIMScheduler.load_config(source, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise BadFile(
                f"cannot load {str(source)!r} as a diffusers Stable Diffusion model: {str(error).splitlines()[0]} "
                "Give a folder with unet/, text_encoder/, vae/, tokenizer/ and scheduler/, a Hub id, or a single checkpoint file."
            ) from error
        modules = (text_encoder.to(device), unet.to(device), vae.to(device))
        return cls(
            name=facts.pop("name", str(source)),
            tokenizer=tokenizer,
            text_encoder=modules[0],
            unet=modules[1],
            vae=modules[2],
            schedule=schedule_of(dict(scheduler)),
            **facts,
        )

    @classmethod
    def from_single_file(cls, path: Path, *, dtype: str, device: str) -> StableDiffusion:
        """One ``.safetensors`` or ``.ckpt`` checkpoint. diffusers reads pickles with ``weights_only=True``."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        try:
            pipe = StableDiffusionPipeline.from_single_file(
                str(path), torch_dtype=named_dtype(dtype), safety_checker=None, load_safety_checker=False
            )
        except Exception as error:  # diffusers raises anything from KeyError to UnpicklingError here
            raise BadFile(
                f"cannot load {str(path)!r} as a Stable Diffusion checkpoint: {type(error).__name__}: {error}"
            ) from error
        return cls.from_pipeline(pipe.to(device), name=str(path))

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
    def _numbers_per_prompt(self) -> int:
        return int(self.tokenizer.model_max_length * self.unet.config.cross_attention_dim)

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        """What the network gets to see of tokens (B, L), or of vectors (B, L, e) in their places. Counts B encodings."""
        self.evals.text += len(ids)
        table = self.text_encoder.get_input_embeddings()
        with self._autocast(), nullcontext() if embeddings is None else substituted(table, embeddings):
            hidden = self.text_encoder(ids.to(self.device)).last_hidden_state
        return Cond(hidden, torch.tensor([n - 2 for n in lengths]))

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        limit = self.tokenizer.model_max_length
        lengths = [len(self.tokenizer(p, truncation=False, verbose=False).input_ids) for p in prompts]
        for prompt, n in zip(prompts, lengths, strict=True):
            if n > limit:
                raise PromptTooLong(
                    f"the prompt {prompt!r} has {n} tokens, the model reads {limit}; the rest would be cut silently. Shorten it."
                )
        return self.tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt").input_ids, lengths

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        ids, lengths = self._tokenize(prompts)
        return [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]

    @property
    def network(self) -> nn.Module:
        return self.unet

    def vocabulary(self) -> list[str]:
        words = [t.removesuffix("</w>") for t in self.tokenizer.get_vocab() if t.endswith("</w>")]
        return sorted({w for w in words if len(w) > 1 and w.isascii() and w.isalpha()})

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        with self._autocast():
            return self.unet(z_t, t, c.tokens, return_dict=False, **self._beside(c))[0].float()

    def _beside(self, c: Cond) -> dict[str, Any]:
        """What else the network is called with."""
        return {}

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        with self._autocast():
            pixels = self.vae.decode(z_0.to(next(self.vae.parameters()).dtype) / self.vae.config.scaling_factor).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def locate(self, prompt: str, phrase: str) -> TokenSpan:
        ids, (n,) = self._tokenize([prompt])
        wanted = self.tokenizer(phrase, add_special_tokens=False).input_ids
        starts = occurrences(ids[0, :n].tolist(), wanted)
        if not starts:
            raise BadRequest(f"{phrase!r} does not stand in the prompt {prompt!r} as the tokenizer reads it.")
        return TokenSpan(starts, len(wanted), eos=n - 1)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        ids, lengths = self._tokenize(prompts)
        ids, table = ids.to(self.device), self.text_encoder.get_input_embeddings()
        pad_id = self.tokenizer.pad_token_id
        return SoftPrompt(table(ids), ids, tuple(lengths), table(ids.new_tensor(pad_id)), pad_id)

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        return self._read(prompts.ids, prompts.lengths, prompts.embeddings)

    @torch.no_grad()
    def text_layers(self, prompts: Sequence[str]) -> list[Cond]:
        ids, lengths = self._tokenize(prompts)
        last = torch.tensor([n - 2 for n in lengths])
        found: list[list[Tensor]] = []
        for part in ids.split(64):
            with self._autocast():
                states = self.text_encoder(part.to(self.device), output_hidden_states=True)
            found.append([*states.hidden_states[:-1], states.last_hidden_state])
        self.evals.text += len(prompts)
        return [Cond(torch.cat(layer), last) for layer in zip(*found, strict=True)]

    def attention_maps(self) -> AbstractContextManager[list[Tensor]]:
        return probed(self.unet)

    def extra_context(self, keys: Tensor, values: Tensor, place: str) -> AbstractContextManager[None]:
        return extended(self.unet, keys, values, place)

    def start_detached(self) -> AbstractContextManager[None]:
        return start_detached(self.unet)

    def weights(self, select: Select) -> dict[str, Tensor]:
        found = {n: p for n, p in self._named_parameters() if select(n)}
        if not found:
            raise NothingSelected(f"no parameter of {self.name!r} matches the selection; nothing would be trained or edited.")
        return found

    def student(self, select: Select) -> StableDiffusion:
        selected = {id(p) for p in self.weights(select).values()}
        twin = copy.copy(self)
        for part in (self.part, *self.encoders):
            module = getattr(self, part)
            shared = [v for v in (*module.parameters(), *module.buffers()) if id(v) not in selected]
            if len(shared) < len([*module.parameters(), *module.buffers()]):
                setattr(twin, part, copy.deepcopy(module, memo={id(v): v for v in shared}))
        if any(a is not b for a, b in zip(twin._encoders(), self._encoders(), strict=True)):
            twin._encoded = {}
        for p in twin.weights(select).values():
            p.data = p.data.float()  # master weights: half precision would swallow small updates
        if self.compiled and twin.network is not self.network:
            twin._compile_checked(select)
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
        return self.part_digest("")

    def part_digest(self, part: str) -> str:
        h = hashlib.sha256()
        for name, p in sorted((n, p) for n, p in self._named_parameters() if n.startswith(part)):
            h.update(f"{name}{tuple(p.shape)}".encode())
            h.update(p.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return h.hexdigest()

    def weights_changed(self) -> None:
        self._encoded.clear()

    @contextmanager
    def constant_context(self) -> Iterator[None]:
        # A compiled network would bake the kept tensors into its graph.
        layers = [] if self.compiled else cross_attentions(self.unet)
        kept = [projection for layer in layers for projection in (layer.to_k, layer.to_v)]
        fresh = [m for m in kept if not isinstance(m.forward, _Kept)]
        for module in fresh:
            module.forward = _Kept(module.forward)
        try:
            yield
        finally:
            for module in fresh:
                del module.forward  # the class's own method shows again

    def configure(self, *, compiled: bool = False, checkpointing: bool = False, autocast: str | None = None) -> None:
        self.autocast_dtype = self.dtype if autocast is None else named_dtype(autocast)
        if checkpointing:
            self.network.enable_gradient_checkpointing()
        if compiled and not self.compiled:
            self.network.compile()
        self.compiled = compiled

    def save_folder(self, path: Path) -> None:
        self._pipeline().save_pretrained(path)

    def _pipeline(self) -> Any:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self._scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _scheduler(self) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler.from_config(dict(self.schedule.config))

    @property
    def info(self) -> Mapping[str, object]:
        return {
            "name": self.name,
            "family": self.family,
            "prediction_type": self.schedule.prediction_type,
            "latent_shape": list(self.latent_shape),
            "cross_attention_dim": self.unet.config.cross_attention_dim,
            "unet_parameters": sum(p.numel() for p in self.unet.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }

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

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)


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


def named_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise BadOption(f"unknown dtype {name!r}; use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule of any diffusers scheduler config; solvers differ, the schedule is what the model was trained on."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "steps_offset")
    known = {k: config[k] for k in keys if config.get(k) is not None}
    ddim = DDIMScheduler(**known, clip_sample=False, set_alpha_to_one=bool(config.get("set_alpha_to_one", False)))
    return Schedule(
        alphas_cumprod=ddim.alphas_cumprod,
        final_alpha=float(ddim.final_alpha_cumprod),
        steps_offset=int(known.get("steps_offset", 0)),
        prediction_type=str(known.get("prediction_type", "epsilon")),
        config=dict(ddim.config),
    )
