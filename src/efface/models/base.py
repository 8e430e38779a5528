"""What every model family promises to methods, patches and evaluation. Nothing else about a family is visible.

Longer than 400 lines because it is one contract, half of it docstrings, that an adapter's author reads from top to bottom.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..concepts.prompts import Case
from ..equations.guidance import guided
from ..errors import BadOption
from .capabilities import CAPABILITIES
from .cond import Cond
from .identity import Identity
from .levels import Levels
from .readers import text_readers
from .schedule import Schedule, official_walk, plms_grid
from .select import SELECTIONS, Select, selection
from .tokens import SoftPrompt, TokenSpan
from .world import World


@dataclass
class Evals:
    """Cost counter shared by a model and its students. One evaluation = one latent with one conditioning through the UNet."""

    forward: int = 0
    calls: int = 0
    backward: int = 0
    text: int = 0
    differentiated: int = 0
    """Rows that an attacker asked gradients of; see :meth:`DiffusionModel.deployed`."""

    def snapshot(self) -> dict[str, int]:
        return {"forward": self.forward, "calls": self.calls, "backward": self.backward, "text": self.text}


class Guide(Protocol):
    """The guidance of one trajectory under a guard: m blocks of conditionings are evaluated at every step and combined."""

    def cond(self, t: Tensor) -> Cond:
        """m B conditionings for B rows at timesteps t (B,)."""

    def combine(self, eps: Tensor, t: Tensor) -> Tensor:
        """The (B, C, h, w) prediction (:meth:`Levels.prediction`) the sampler steps with, from the m B that belong to
        :meth:`cond`."""


class DiffusionModel(abc.ABC):
    """Adapter of one model family. Adapters are the only code that knows layer names and call signatures."""

    name: str
    """What the user called it."""
    preset: str
    """Which column of a method's presets fits this model ("paper" for full-size models, "mini", "tiny")."""
    evals: Evals
    schedule: Levels
    latent_shape: tuple[int, int, int]
    device: torch.device
    concept_names: tuple[str, ...]
    """The model's own concept names, where it has a closed world (the miniature); else empty."""
    world: World | None = None
    """What is known about the model's concepts, where it draws a closed world of them (the miniature)."""
    takes_guidance: bool = False
    """Whether the network takes the scale of guidance as an input; see :meth:`told`."""
    distilled: bool = False
    """Whether the network was distilled to draw pictures without classifier-free guidance, whether it is told a scale or not."""
    usual_guidance: float = 7.5
    """Scale of guidance of the family's pipeline in diffusers."""
    usual_steps: int = 50
    """Sampler steps of the family's pipeline in diffusers."""
    usual_solver: str = "ddim"
    """What pictures are drawn by; see :meth:`walk`."""
    starts: ClassVar[int] = 1
    """Tokens in front of a prompt's words: the begin token of CLIP, none of T5, more where a chat is written around it."""
    ends: ClassVar[int] = 1
    """Tokens behind a prompt's words: the end token of CLIP and T5, none of Gemma, more where a chat is written around it."""
    guide: Callable[[Cond, float], Guide] | None = None
    """A guard's guidance of a trajectory for conditionings and scale; None is classifier-free guidance. See :meth:`guided_by`."""
    lora_reader: ClassVar[bool] = True
    """Whether the family's pipeline in diffusers loads LoRAs."""
    rounded: Any = None
    """What the network stores in eight bits, None where it does not; see :meth:`store`."""
    encoders_at: str = "device"
    """Where text encoders and VAE lie and compute; see :meth:`place`."""
    part: ClassVar[str] = "unet"
    """What the denoiser is called in diffusers' folders; its parameters are named after it in :meth:`weights`."""
    selections: ClassVar[Mapping[str, Select]] = SELECTIONS
    """Groups of parameters by the names that users give them."""

    @abc.abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditionings of prompts, cached. Raises PromptTooLong instead of cutting."""

    @abc.abstractmethod
    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts without padding, begin and end tokens included. Raises PromptTooLong instead of cutting."""

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """The denoiser itself; its parameters are named after :attr:`part` in :meth:`weights`."""

    @abc.abstractmethod
    def vocabulary(self) -> list[str]:
        """Whole words of the tokenizer, for searches over the tokenizer's vocabulary."""

    @abc.abstractmethod
    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        """Native network output for z_t (B, C, h, w), t (B,) as :attr:`schedule` gives them, B conditionings. Counts B
        evaluations."""

    @abc.abstractmethod
    def decode(self, z_0: Tensor) -> Tensor:
        """Latents -> images (B, 3, H, W) float in [0, 1]; non-finite latents stay non-finite."""

    @abc.abstractmethod
    def check_plain(self) -> None:
        """Raises BadFile where the live modules compute with other weights than the model's own: loaded or fused adapters, fused
        projections, offloaded weights. Asked whenever weights are read, because a pipeline may have been changed since."""

    @abc.abstractmethod
    def weights(self, select: Select) -> dict[str, Tensor]:
        """Live parameters whose name the predicate accepts; raises NothingSelected when there are none."""

    @abc.abstractmethod
    def student(self, select: Select) -> DiffusionModel:
        """A trainable twin that owns the selected tensors and shares every other one, and the cost counter."""

    @abc.abstractmethod
    def copied(self, parts: Sequence[str]) -> DiffusionModel:
        """A twin that owns copies of these modules (``part``, or one of ``encoders``), as they are now, and shares every other
        one. The copies may be cast or quantised: it is for drawing, and not for training."""

    @abc.abstractmethod
    def digest(self) -> str:
        """Hash of the base weights that patches are tied to."""

    @abc.abstractmethod
    def identity(self, part: str = "") -> Identity:
        """What the base weights, or those of one part (``unet`` or ``text_encoder``), are recognised by in every precision."""

    @abc.abstractmethod
    def weights_changed(self) -> None:
        """Forget everything computed from weights (cached encodings, hashes); called when a patch is applied or reverted."""

    @abc.abstractmethod
    def constant_context(self) -> AbstractContextManager[None]:
        """Inside, keys and values of one and the same conditioning are computed once and kept; results do not change."""

    @abc.abstractmethod
    def configure(self, *, compiled: bool = False, checkpointing: bool = False, autocast: str | None = None) -> None:
        """How the network is run, for this model and its later students: compiled by torch, with recomputed instead of stored
        activations, under autocast to a dtype. The weights keep their precision. Raises BadOption for an unknown dtype."""

    @abc.abstractmethod
    def place(self, encoders: str, device: str | None = None) -> None:
        """Move the network to ``device``, where one is given, and the text encoders and the VAE to one of
        :data:`efface.models.placement.PLACES`, for this model and its later students: "device", beside the network; "offload", in
        the computer's memory, from where each is copied to the device while it computes; or "cpu", where it computes in the
        computer's memory. What they give is on the device in every case, and with a network on the CPU nothing changes. Raises
        BadOption for another word."""

    @abc.abstractmethod
    def store(self, storage: str) -> None:
        """Store the network's weights in eight bits on the device ("fp8") and cast them layer by layer to the precision that they
        were loaded in; see :mod:`efface.models.storage`. The unrounded weights stay in the computer's memory, and the model keeps
        its identity. What a student trains or a patch changes is not rounded. Raises BadOption for another word."""

    @abc.abstractmethod
    def unround(self, select: Select) -> None:
        """Give the layers of the selected parameters their unrounded weights back, where :meth:`store` has rounded them."""

    @abc.abstractmethod
    def beside(self) -> Mapping[str, nn.Module]:
        """The text encoders and the VAE, by their names in diffusers' folders."""

    # -- inside text and attention -------------------------------------------------------------------------------

    @abc.abstractmethod
    def locate(self, prompt: str, phrase: str) -> TokenSpan:
        """Where the phrase stands in the prompt, by token ids. Raises BadRequest when it does not."""

    @abc.abstractmethod
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        """The prompts as input embeddings, to put vectors among the words. Raises PromptTooLong."""

    @abc.abstractmethod
    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        """As :meth:`encode`, from embeddings and differentiable in them; not cached."""

    @abc.abstractmethod
    def text_layers(self, prompts: Sequence[str]) -> list[Cond]:
        """Hidden states of the prompts at every layer of the text encoder, the input embeddings first; not cached."""

    @abc.abstractmethod
    def attention_maps(self) -> AbstractContextManager[list[Tensor]]:
        """A list that every ``predict`` inside fills anew with one (B, heads, pixels, L) map per cross-attention layer; rows sum
        to 1. Differentiable."""

    @abc.abstractmethod
    def extra_context(self, keys: Tensor, values: Tensor, place: str) -> AbstractContextManager[None]:
        """Inside, the cross-attention of ``place`` (mid, midout, inmidout) reads m more tokens: keys, values (B or 1, m, d)."""

    @abc.abstractmethod
    def start_detached(self) -> AbstractContextManager[None]:
        """Inside, no gradient flows through cross-attention to the start-of-text token, which all prompts share."""

    @abc.abstractmethod
    def save_folder(self, path: Path) -> list[str]:
        """Write the weights as they are now as a folder that stock pipelines load, with every other component and the scheduler
        of the model's source. Returns the components that the source names and does not have."""

    @abc.abstractmethod
    def read_lora(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{weight name: change}`` of the network and the text encoders as the stock pipeline's own reader understands a LoRA
        file's tensors, in whatever dialect. What the reader passes over is not there."""

    @property
    @abc.abstractmethod
    def info(self) -> Mapping[str, object]:
        """Facts for provenance: family, dtype, sizes, scheduler."""

    # -- what follows is the same for every family ---------------------------------------------------------------

    @property
    def lacking(self) -> Mapping[str, str]:
        """What this model cannot do: names of :data:`CAPABILITIES` and the reason."""
        return {}

    def require(self, who: str, needs: Sequence[str]) -> None:
        """Raises BadOption, with the reason, where the model lacks something that ``who`` needs."""
        for need in needs:
            if need in self.lacking:
                raise BadOption(f"{who} needs {CAPABILITIES[need]}, which {self.name!r} does not offer: {self.lacking[need]}.")

    def select(self, name: str) -> Select:
        """The group of parameters called ``name`` in this family. Raises UnknownName, with the names it has."""
        return selection(name, self.selections)

    def reads(self, kind: str = "tokens") -> Select:
        """The weights that multiply the text encoder's output, which closed forms edit: its "tokens" or its "pooled" vector.
        It selects none where the network does not read that kind."""
        names = {f"{self.part}.{reader.name}" for reader in text_readers(self.network).get(kind, [])}
        return names.__contains__

    def to_eps(self, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Noise prediction of a native output."""
        return self.schedule.eps(output, z_t, t)

    def perfect_output(self, z_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network that knew the truth would output, natively, for ``z_t`` made of clean latents and this noise."""
        return self.schedule.output(z_0, noise, t)

    def unconditional(self, n: int) -> Cond:
        """n conditionings of the branch that guidance starts from: the empty prompt, unless the family has something else."""
        return self.encode_negative([""] * n)

    def encode_negative(self, prompts: Sequence[str]) -> Cond:
        """Conditionings of negative prompts, which guidance moves away from: those of :meth:`encode`, unless the family's
        pipeline reads such prompts in another way."""
        return self.encode(prompts)

    @torch.no_grad()
    def walk(
        self, c: Cond, noise: Tensor, timesteps: Sequence[float], scale: float, final: float | None = None, solver: str = "ddim"
    ) -> Iterator[tuple[float, Tensor]]:
        """Deterministic sampling under guidance. Yields ``(t, z_t)``: z at the level of each grid timestep, before the step
        that leaves it, then ``(final, z)`` at the end; by default ``final`` is that of clean latents.

        noise: (B / m, C, h, w). m blocks of conditionings may start from the same noise; their first step then shares the
        unconditional branch. ``solver``: "ddim"; "dpm" for DPM-Solver++(2M), which needs fewer steps; "plms" for the linear
        multistep method of PNDM, whose timesteps name the second level twice (see :func:`plms_grid`); "unipc" for UniPC of second
        order, with its corrector, of flows alone.
        As in the stock pipelines, there is no guidance at a scale of 1 or less.
        Cost: :meth:`branches` evaluations per row and step, with guidance B - B / m less at the first step; under a guard as many
        as its guide has blocks. Nothing is evaluated for a level nobody asks for.
        """
        if solver == "plms":
            self.require("solver=plms", ("plms",))
        blocks = len(c) // len(noise)
        z = torch.cat([noise] * blocks)
        steer = self.steering(c, scale)
        final, past = self.schedule.end if final is None else final, None
        with self.constant_context():
            for i, t in enumerate(timesteps):
                yield t, z
                out = steer(z, t, len(noise) if i == 0 else len(z))
                t_next = timesteps[i + 1] if i + 1 < len(timesteps) else final
                z, past = self.schedule.step(out, z, t, t_next, past, solver)
        yield final, z

    def steering(self, c: Cond, scale: float) -> Callable[..., Tensor]:
        """What one trajectory under ``c`` is steered by: a function of z (B, C, h, w), the timestep t and, where only the first
        ``distinct`` rows of z differ, their number. It gives the guided :meth:`prediction`, or the guard's. Cost: 2 evaluations
        per row (1 with ``scale = 1``; ``distinct`` + B where rows repeat), or the guide's blocks."""
        c, scale = self.told(c, scale)
        guide = self.guide(c, scale) if self.guide is not None else None
        null = None if scale <= 1.0 or guide is not None else self.unconditional(len(c))
        both = c if null is None else Cond.cat([null, c])

        def steer(z: Tensor, t: float, distinct: int | None = None) -> Tensor:
            if guide is not None:
                return self._guarded(guide, z, torch.full((len(z),), t, device=z.device))
            if null is None:
                return self.prediction(z, t, c)
            m = len(z) if distinct is None else distinct
            out = self.prediction(torch.cat([z[:m], z]), t, both if m == len(z) else Cond.cat([null[:m], c]))
            return guided(torch.cat([out[:m]] * (len(z) // m)), out[m:], scale)

        return steer

    def eps(self, z: Tensor, t: float | Tensor, c: Cond) -> Tensor:
        """(B, C, h, w) noise prediction at one timestep for all rows, or at t (B,). Cost: B evaluations."""
        levels = t if isinstance(t, Tensor) else torch.full((len(z),), t, device=z.device)
        return self.to_eps(self.predict(z, levels, c), z, levels)

    def prediction(self, z: Tensor, t: float | Tensor, c: Cond) -> Tensor:
        """As :meth:`eps`, of what guidance combines and the sampler steps with; see :meth:`Levels.prediction`."""
        levels = t if isinstance(t, Tensor) else torch.full((len(z),), t, device=z.device)
        return self.schedule.prediction(self.predict(z, levels, c), z, levels)

    def told(self, c: Cond, scale: float) -> tuple[Cond, float]:
        """The conditionings and the scale of classifier-free guidance of a trajectory. A network that takes the scale as an input
        is told it in the conditionings; a distilled network is guided no further."""
        return c, 1.0 if self.distilled else scale

    def branches(self, scale: float) -> int:
        """Evaluations per row and sampler step at this scale: 2 with classifier-free guidance; 1 without it, which is at a scale
        of 1 or less, and in a distilled network."""
        return 1 if self.distilled or scale <= 1.0 else 2

    def _guarded(self, guide: Guide, z: Tensor, t: Tensor) -> Tensor:
        c = guide.cond(t)
        m = len(c) // len(z)
        return guide.combine(self.prediction(torch.cat([z] * m), t.repeat(m), c), t)

    def deployed(self, z: Tensor, t: Tensor, c: Cond, scale: float) -> Tensor:
        """What an attacker differentiates: the :meth:`prediction` under ``c`` alone, or with a guard its first step at ``scale``.

        Cost: 1 evaluation per row, or the guide's blocks.
        """
        before = self.evals.forward
        guide = self.guide(c, scale) if self.guide is not None else None
        out = self.prediction(z, t, c) if guide is None else self._guarded(guide, z, t)
        if out.requires_grad:
            self.evals.differentiated += self.evals.forward - before
        return out

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Start latents (n, C, h, w), drawn on the CPU so that they do not depend on the device."""
        return torch.randn((n, *self.latent_shape), generator=rng).to(self.device)

    def case_noise(self, seeds: Sequence[int]) -> Tensor:
        """One start latent per seed, each from its own generator: independent of batch size and order."""
        return torch.cat([self.noise(1, torch.Generator().manual_seed(seed)) for seed in seeds])

    def sample_until(
        self,
        c: Cond,
        k: int,
        steps: int,
        noise: Tensor,
        scale: float,
        official: bool = False,
        jitter: int = 0,
        solver: str = "ddim",
    ) -> tuple[Tensor, Tensor]:
        """``(z_t, t)`` after running the guided sampler from ``noise`` down to grid index k, 0 <= k < steps.

        Exact alignment (default): k steps are taken and t is the level z is at. ``official`` reproduces the legacy code of
        ESD, AP and AGE: the grid loses its noisiest level, the walk stops below the t it reports (39 to 58 timesteps for
        k >= 2 on the grid of 50, 20 to 39 for k = 1, 0 to 19 for k = 0), and k counts from the clean end; ``jitter`` (0 to
        stride - 1, drawn by the caller) is added to t. See
        :func:`official_walk`. Cost: k steps (official: min(S - 1, S - k)) per row, less what :meth:`walk` shares.
        """
        grid = self.schedule.timesteps(steps)
        grid = plms_grid(grid) if solver == "plms" else grid
        levels: Sequence[float] = grid[:k]
        final = t = grid[k]
        if official:
            self.require("alignment=official", ("official_alignment",))
            assert isinstance(self.schedule, Schedule)
            numbers = self.schedule.leading(steps)
            levels, final = official_walk(numbers, k)
            t = numbers[steps - 1 - k] - self.schedule.steps_offset + jitter
        ((_, z),) = deque(self.walk(c, noise, levels, scale, final, solver), maxlen=1)
        return z, torch.full((len(z),), t, device=z.device)

    @torch.no_grad()
    def sample(self, cases: Sequence[Case], steps: int, batch: int = 32) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] of the cases; each case brings prompt, seed and guidance."""
        images = []
        for guidance in sorted({case.guidance for case in cases}):
            rows = [i for i, case in enumerate(cases) if case.guidance == guidance]
            for start in range(0, len(rows), batch):
                part = [cases[i] for i in rows[start : start + batch]]
                c = self.encode([case.prompt for case in part])
                images.append((rows[start : start + batch], self.render(c, [case.seed for case in part], steps, guidance)))
        out = torch.empty((len(cases), *images[0][1].shape[1:]))
        for rows, pixels in images:
            out[rows] = pixels
        return out

    def render(self, c: Cond, seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] on the CPU of conditionings, one seed each: :meth:`sample` below prompts."""
        return self.decode(self.denoise(c, self.case_noise(seeds), steps, guidance)).float().cpu()

    def denoise(self, c: Cond, noise: Tensor, steps: int, scale: float, taken: int = 0) -> Tensor:
        """Clean latents (B, C, h, w): :meth:`walk` over the grid of ``steps`` levels to its end, from the latent ``noise``, on
        which the first ``taken`` steps are done. Cost: as there, ``steps - taken`` steps."""
        grid = self.schedule.timesteps(steps)[taken:]
        ((_, z_0),) = deque(self.walk(c, noise, grid, scale, solver=self.usual_solver), maxlen=1)
        return z_0

    def invert(self, c: Cond, z_0: Tensor, steps: int, scale: float = 1.0) -> Tensor:
        """The latents (B, C, h, w) of the noisiest level from which the deterministic sampler goes to about ``z_0``: its steps
        taken backwards, each with the prediction at the level that it comes from (DDIM inversion). The clean latents have no
        timestep, so the first step takes that of the cleanest level. Cost: ``steps`` steps of :meth:`steering`."""
        levels = [self.schedule.end, *reversed(self.schedule.timesteps(steps))]
        z, steer = z_0, self.steering(c, scale)
        with self.constant_context():
            for t, t_next in pairwise(levels):
                z, _ = self.schedule.step(steer(z, t if t != self.schedule.end else t_next), z, t, t_next, None, "ddim")
        return z

    @contextmanager
    def encoding(
        self, change: Callable[[Sequence[str], Cond], Cond], soft: Callable[[SoftPrompt, Cond], Cond] | None = None
    ) -> Iterator[None]:
        """Inside, :meth:`encode` gives what ``change`` makes of the prompts and their plain encodings, and
        :meth:`encode_soft` what ``soft`` makes of its own. Nests; reverted at the end, also by an exception."""
        encode, encode_soft, outer = self.encode, self.encode_soft, dict(vars(self))
        self.encode = lambda prompts: change(prompts, encode(prompts))  # type: ignore[method-assign]  # on this instance alone
        if soft is not None:
            self.encode_soft = lambda prompts: soft(prompts, encode_soft(prompts))  # type: ignore[method-assign]
        try:
            yield
        finally:
            for name in ("encode", "encode_soft"):
                if name in outer:
                    setattr(self, name, outer[name])  # an enclosing change
                else:
                    vars(self).pop(name, None)  # the class's own method shows again

    @contextmanager
    def guided_by(self, guide: Callable[[Cond, float], Guide]) -> Iterator[None]:
        """Inside, every trajectory is guided by what ``guide`` makes for it. Reverted at the end, also by an exception. Raises
        BadOption for a network without classifier-free guidance."""
        self.require("a guard", ("guidance",))
        outer, self.guide = self.guide, guide
        try:
            yield
        finally:
            self.guide = outer

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No parameter of the network collects gradients inside: gradients flow to inputs only."""
        flags = [(p, p.requires_grad) for p in self.weights(lambda _: True).values()]
        for p, _ in flags:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)
