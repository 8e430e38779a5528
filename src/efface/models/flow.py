"""What the rectified-flow models have in common: noise levels, read from the diffusers scheduler, and an adapter of transformers
that read text and picture in one attention."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..equations.flow import (
    euler_step,
    flow_dpm_step,
    flow_loss_weight,
    flow_unipc_correct,
    noise_from_velocity,
    velocity_of,
    x0_from_velocity,
)
from ..errors import BadFile, BadOption
from .identity import Identity, told_apart
from .levels import Levels, Past
from .plain import check_in_memory, check_own
from .schedule import lay, scheduler_of
from .select import MMDIT_SELECTIONS, Select
from .transformer import TransformerModel

EULER, DPM, UNIPC = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
"""Schedulers of diffusers that lay the levels of a flow: its own, and two of diffusions that can be told to."""
SOLVERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    DPM: ("dpm", {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}),
    UNIPC: (
        "unipc",
        {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None},
    ),
}
"""What the last two step by, when these settings are as they usually are."""
FLOW_LACKS = {
    "official_alignment": "those codes shift integer timesteps, and those of a flow are none; use alignment=exact",
    "plms": "its steps are those of a noise prediction; use solver=ddim or dpm",
}
"""What no flow can do."""
JOINT = "text and picture share one softmax inside every block"


@dataclass(frozen=True)
class FlowSchedule(Levels):
    """``z_t = (1 - s) x0 + s noise`` with ``s = t / T``; the network predicts ``noise - x0``.

    Grid and training levels are the scheduler's own: its shift is applied twice in some versions of diffusers, and a grid that
    was computed from the formula would be another one than the deployed one. Training levels are uniform on the shifted axis, so
    they concentrate where the sampler spends its steps.
    """

    config: Mapping[str, Any]
    """The scheduler it was read from, its class included."""
    tokens: int
    """Image tokens of the network, on which a dynamic shift depends."""
    even: bool = False
    """Whether the pipeline lays the grid before the scheduler shifts it, evenly from s = 1 to 1 / S, as that of FLUX does."""
    prediction_type: str = field(default="flow_prediction", init=False)

    @cached_property
    def _trained(self) -> Tensor:
        """(T,) timesteps in ascending order."""
        return torch.tensor(self._levels(self.size)).flip(0).contiguous()

    def _levels(self, steps: int) -> list[float]:
        """Timesteps in descending order: 1,000 s."""
        scheduler = self._scheduler(steps)
        found: Tensor = scheduler.timesteps
        if self.whole:  # the share of noise goes on to have its fractions, and the timestep is the whole number below it
            below = torch.nextafter((found + 1).float(), torch.tensor(0.0))
            found = (scheduler.sigmas[:-1].double() * self.size).clamp(found.double(), below.double())
        levels: list[float] = found.tolist()
        return levels

    @property
    def whole(self) -> bool:
        """Whether the network is told whole numbers, as schedulers of diffusions have them."""
        return self.config.get("_class_name") != EULER

    def told(self, t: Tensor) -> Tensor:
        """The timesteps that the network is told at levels t (B,)."""
        return t.floor() if self.whole else t

    def _scheduler(self, steps: int) -> Any:
        scheduler = scheduler_of(self.config)
        told, laid = scheduler.config, dict[str, Any]()
        if told.get("use_dynamic_shifting") and not self.whole:  # as the stock pipelines compute it
            slope = (told.max_shift - told.base_shift) / (told.max_image_seq_len - told.base_image_seq_len)
            laid["mu"] = told.base_shift + slope * (self.tokens - told.base_image_seq_len)
        if self.even:
            laid["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        lay(scheduler, steps, **laid)
        return scheduler

    @property
    def size(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    @property
    def end(self) -> float:
        return 0.0

    def timesteps(self, steps: int) -> list[float]:
        if not 1 <= steps <= self.size:
            raise BadOption(f"{steps} sampling steps: the schedule has {self.size} levels; take 1 to that many.")
        return self._levels(steps)

    @property
    def usual_solver(self) -> str:
        """The solver whose steps are the scheduler's: Euler's ("ddim"), or DPM-Solver++(2M) ("dpm") or UniPC ("unipc") in their
        usual forms. Pictures are drawn by Euler's where the scheduler takes other steps."""
        solver, usual = SOLVERS.get(str(self.config.get("_class_name")), ("ddim", {}))
        return solver if all(self.config.get(key, value) == value for key, value in usual.items()) else "ddim"

    def numbered(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        return self._trained[list(numbers)].to(device)

    def share(self, t: float | Tensor) -> Tensor:
        """s: how much of z_t is noise; a scalar, or (B, 1, 1, 1) for t (B,)."""
        if isinstance(t, Tensor):
            return (t / self.size).reshape(-1, 1, 1, 1)
        return torch.tensor(t / self.size)  # rounded once: near s = 1, the next digit is a part of 1 - s that counts

    def coefficients(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        s = self.share(t)
        return 1 - s, s

    def eps(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return noise_from_velocity(output, z, self.share(t))

    def x0(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return x0_from_velocity(output, z, self.share(t))

    def output(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        return velocity_of(x0, noise)

    def prediction(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return output

    def truth(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        return velocity_of(x0, noise)

    def step(
        self, prediction: Tensor, z: Tensor, t: float, t_next: float, past: Past | None, solver: str
    ) -> tuple[Tensor, Past | None]:
        s, s_next = (self.share(x).to(z.dtype) for x in (t, t_next))
        if solver == "ddim":
            return euler_step(prediction, z, s, s_next), None
        x0 = x0_from_velocity(prediction, z, s)
        x0_last, t_last = (None, t) if past is None else (past.outputs[-1], past.t)
        s_last = self.share(t_last).to(z.dtype)
        if solver == "unipc" and past is not None:
            earlier = () if past.before is None else (self.share(past.before).to(z.dtype),)
            z = flow_unipc_correct(x0, past.outputs, past.z, (*earlier, s_last), s)
        known = (x0,) if x0_last is None or solver == "dpm" else (x0_last, x0)
        return flow_dpm_step(x0, x0_last, z, s_last, s, s_next), Past(t, z, known, None if past is None else past.t)

    def loss_weight(self, t: Tensor, space: str) -> Tensor:
        return flow_loss_weight(self.share(t), space)


def flow_schedule_of(
    config: Mapping[str, Any], tokens: int, name: str = "the model", even: bool = False, also: Sequence[str] = ()
) -> FlowSchedule:
    """The levels of a diffusers scheduler config: of ``FlowMatchEulerDiscreteScheduler``, or of one of ``also``. Raises BadFile
    for a scheduler whose levels are others."""
    family = str(config.get("_class_name", EULER))
    if family not in (EULER, *also):
        raise BadFile(f"{name} samples with {family}; efface reads {' and '.join((EULER, *also))}. Replace its scheduler.")
    others = ["stochastic_sampling", "invert_sigmas"]
    if family != EULER:
        others = ["use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas", "thresholding"]
        needed = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        needed |= {"final_sigmas_type": "zero"} if "final_sigmas_type" in config else {}
        for option, value in needed.items():
            if config.get(option) != value:
                found = config.get(option)
                raise BadFile(f"{name} has a {family} with {option}={found!r}, and a flow needs {value!r}. Set it so.")
    for option in others:
        if config.get(option):
            raise BadFile(f"{name} has a scheduler with {option}=true, whose steps efface does not take. Set it to false.")
    return FlowSchedule({**{k: v for k, v in config.items() if not k.startswith("_")}, "_class_name": family}, tokens, even)


class JointFlow(TransformerModel):
    """Abstract. A transformer in whose blocks text and picture share one attention, and which predicts a flow.

    The text's keys and values inside a block read what the block before has made of text and picture, so a closed form is exact
    only where the encoders' output enters. ``z = (vae - shift_factor) scaling_factor``. The scheduler must be
    ``FlowMatchEulerDiscreteScheduler``.
    """

    even: ClassVar[bool] = False
    """See :attr:`FlowSchedule.even`."""
    entry: ClassVar[str] = "context_embedder"
    """The layer at which the encoders' output enters."""
    schedule: FlowSchedule

    def _sized(self, scheduler: Mapping[str, Any]) -> None:
        channels, side, tokens = self._picture
        self.latent_shape = (channels, side, side)
        self.schedule = flow_schedule_of(scheduler, tokens, repr(self.name), self.even)

    @property
    @abc.abstractmethod
    def _picture(self) -> tuple[int, int, int]:
        """Channels and side of latents, and the tokens that the network makes of them."""

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        config: Any = self.vae.config
        return self._pixels(z_0 / config.scaling_factor + (config.shift_factor or 0.0))

    @contextmanager
    def constant_context(self) -> Iterator[None]:
        """Nothing can be kept: the text's keys and values change with t and with the picture."""
        yield

    # -- what such a transformer lacks ---------------------------------------------------------------------------

    @property
    def lacking(self) -> Mapping[str, str]:
        return {
            **super().lacking,
            "attention_maps": f"{JOINT}, so that what a pixel gives to the words does not sum to 1",
            "extra_context": f"{JOINT}, and each block makes the text's keys and values from what the block before left",
            "start_detached": f"{JOINT}, so that the start token is no column of its own; set detach_start=false",
            **FLOW_LACKS,
            "keys_and_values": f"both read the same matrix, {self.entry}",
        }

    def attention_maps(self) -> AbstractContextManager[list[Tensor]]:
        raise self._refusal("attention_maps")

    def extra_context(self, keys: Tensor, values: Tensor, place: str) -> AbstractContextManager[None]:
        raise self._refusal("extra_context")

    def start_detached(self) -> AbstractContextManager[None]:
        raise self._refusal("start_detached")


class FlowTransformer(JointFlow):
    """Adapter of Stable Diffusion 3 and FLUX, whose text T5 and CLIP read; see also :class:`JointFlow`.

    **T5** stands beside CLIP. It is read and never trained, and no patch holds it; a model's identity knows it, and the number of
    rows it is given. Closed forms are exact at ``context_embedder`` and at the first layer that reads the pooled vector.
    """

    selections: ClassVar[Mapping[str, Select]] = MMDIT_SELECTIONS

    def __init__(self, *, t5_rows: int, **parts: Any) -> None:
        """``t5_rows``: the stock pipeline's ``max_sequence_length``."""
        self.t5_rows = t5_rows
        super().__init__(**parts)

    def check_plain(self) -> None:
        super().check_plain()
        for module in self._t5() if self._described is not None else ():
            check_in_memory(self.name, self.t5_parts[1], module)
            check_own(self.name, self.t5_parts[1], module)

    # -- files ---------------------------------------------------------------------------------------------------

    def _identifying(self) -> list[tuple[str, Tensor]]:
        t5 = [(f"{self.t5_parts[1]}.{n}", p) for module in self._t5() for n, p in module.named_parameters()]
        return [*super()._identifying(), *t5]

    def identity(self, part: str = "") -> Identity:
        """As of other families, T5 included; that of the whole also tells models apart by the number of rows that T5 has, which
        no parameter shows."""
        found = super().identity(part)
        return found if part else told_apart(found, self.t5_rows)

    @property
    def _of_the_family(self) -> Mapping[str, object]:
        config: Any = self.transformer.config
        return {"joint_attention_dim": config.joint_attention_dim, "t5": bool(self._t5()), "t5_rows": self.t5_rows}
