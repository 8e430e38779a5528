"""The noise schedule of diffusions that predict eps or v, read from a scheduler of diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..equations.diffusion import (
    ddim_step,
    dpm_step,
    eps_from_v,
    eps_loss_weight,
    multistep,
    noised,
    v_of,
    x0_from_eps,
    x0_loss_weight,
)
from ..errors import BadFile, BadOption
from .levels import Levels, Past

CONSISTENCY = ("LCMScheduler", "TCDScheduler")
"""Schedulers of consistency models, by their class in diffusers."""


@dataclass(frozen=True)
class Schedule(Levels):
    """Noise schedule of a variance-preserving diffusion, which predicts eps or v, and the sampling grid made from it:
    ``alpha = sqrt(ab)``, ``sigma = sqrt(1 - ab)``, integer timesteps."""

    alphas_cumprod: Tensor
    """(T,) cumulative alphas."""
    final_alpha: float
    """Cumulative alpha of the step after the last."""
    steps_offset: int
    prediction_type: str = field(default="epsilon")
    config: Mapping[str, Any] = field(default_factory=dict)
    """The diffusers scheduler it was read from, its class included."""
    spacing: str = "leading"
    """How the grid is laid: leading, trailing or linspace, as diffusers call them."""

    def timesteps(self, steps: int) -> list[int]:
        """The descending grid of ``spacing``. Raises BadOption for more steps than there are levels.

        50 steps of 1,000 levels give: "leading", of Stable Diffusion 1.x, 981, 961, ..., 1; "trailing" 999, 979, ..., 19;
        "linspace" 999 to 0, both included. Consistency models have the grid of their own scheduler.
        """
        n = len(self.alphas_cumprod)
        if not 1 <= steps <= n:
            raise BadOption(f"{steps} sampling steps: the schedule has {n} levels; take 1 to that many.")
        if self.config.get("_class_name") in CONSISTENCY:
            return self._trained(steps)
        if self.spacing == "trailing":
            return [round(n - i * n / steps) - 1 for i in range(steps)]
        if self.spacing == "linspace":
            return [round((n - 1) * i / max(steps - 1, 1)) for i in reversed(range(steps))]
        return self.leading(steps)

    def _trained(self, steps: int) -> list[int]:
        """The grid of a consistency model, which was trained at few levels: the scheduler's own, from the noisiest one down."""
        import diffusers

        scheduler = getattr(diffusers, str(self.config["_class_name"])).from_config(dict(self.config))
        most = int(scheduler.config.original_inference_steps)
        if steps > most:
            raise BadOption(f"{steps} sampling steps: a consistency model is trained at {most} levels; take 1 to that many.")
        scheduler.set_timesteps(steps)
        found: list[int] = scheduler.timesteps.tolist()
        return found

    def leading(self, steps: int) -> list[int]:
        """The "leading" grid, which the official codes of ESD, AP and AGE know alone."""
        stride = len(self.alphas_cumprod) // steps
        return [i * stride + self.steps_offset for i in reversed(range(steps))]

    def ab(self, t: float | Tensor) -> Tensor:
        """Cumulative alpha of timestep t; the final alpha below zero. Tensors give (B, 1, 1, 1)."""
        if not isinstance(t, Tensor):
            return self.alphas_cumprod[int(t)] if t >= 0 else torch.tensor(self.final_alpha)
        return self.alphas_cumprod.to(t.device)[t].reshape(-1, 1, 1, 1)

    @property
    def size(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def end(self) -> int:
        return -1

    def numbered(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        return torch.tensor(list(numbers), device=device)

    def coefficients(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        ab = self.ab(t)
        return ab.sqrt(), (1 - ab).sqrt()

    def eps(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return eps_from_v(output, z, self.ab(t)) if self.prediction_type == "v_prediction" else output

    def x0(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return x0_from_eps(self.eps(output, z, t), z, self.ab(t))

    def output(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        return v_of(x0, noise, self.ab(t).to(x0)) if self.prediction_type == "v_prediction" else noise

    @property
    def pure_noise(self) -> bool:
        """Whether the noisiest level has no signal (zero terminal SNR). Only a network that predicts v says something there."""
        return not self.alphas_cumprod[-1] > 0

    def prediction(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        eps = self.eps(output, z, t)
        return torch.where(self.ab(t).to(z.device) > 0, eps, output) if self.pure_noise else eps

    def truth(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        return torch.where(self.ab(t).to(x0.device) > 0, noise, -x0) if self.pure_noise else noise

    def step(
        self, prediction: Tensor, z: Tensor, t: float, t_next: float, past: Past | None, solver: str
    ) -> tuple[Tensor, Past | None]:
        if solver == "unipc":
            raise BadOption("solver=unipc is of flows alone; use ddim, dpm or plms.")
        # The levels stay on the CPU as scalars: a copy to a GPU at every step would wait for all steps before it.
        ab, ab_next = (self.ab(x).to(z.dtype) for x in (t, t_next))
        if not ab > 0:
            x0 = -prediction  # v of pure noise is minus the clean latent
            return noised(x0, z, ab_next), Past(t, z, (x0,)) if solver == "dpm" else None
        if solver == "ddim":
            return ddim_step(prediction, z, ab, ab_next), None
        if solver == "plms":
            return self._plms(prediction, z, t, t_next, past)
        x0 = x0_from_eps(prediction, z, ab)
        x0_last, t_last = (None, t) if past is None else (past.outputs[-1], past.t)
        return dpm_step(x0, x0_last, z, self.ab(t_last).to(z.dtype), ab, ab_next), Past(t, z, (x0,))

    def _plms(self, eps: Tensor, z: Tensor, t: float, t_next: float, past: Past | None) -> tuple[Tensor, Past | None]:
        ab, ab_next = (self.ab(x).to(z.dtype) for x in (t, t_next))
        if t_next == t and past is None:
            return z, None  # pure noise has no eps to average with, so the step from it stands as it is
        if t_next == t and past is not None:
            # The first step again, with the mean of the predictions at both of its ends.
            return ddim_step((past.outputs[0] + eps) / 2, past.z, self.ab(past.t).to(z.dtype), ab_next), past
        outputs = (*(() if past is None else past.outputs[-3:]), eps)
        return ddim_step(multistep(outputs), z, ab, ab_next), Past(t, z, outputs)

    def loss_weight(self, t: Tensor, space: str) -> Tensor:
        weight = x0_loss_weight if space == "x0" else eps_loss_weight
        return weight(self.ab(t), self.prediction_type)


def lay(scheduler: Any, steps: int, **how: Any) -> None:
    """Lay the levels of a scheduler of diffusers, some of which hand tensors to numpy in a way that numpy 2 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(steps, **how)


def scheduler_of(config: Mapping[str, Any]) -> Any:
    """The scheduler that a configuration names; DDIM where it names none. Raises BadFile for one that diffusers does not have."""
    import diffusers

    kind = str(config.get("_class_name", "DDIMScheduler"))
    try:
        return getattr(diffusers, kind).from_config(dict(config))
    except (AttributeError, ImportError, ValueError, TypeError) as error:
        raise BadFile(
            f"the scheduler {kind} cannot be made: {str(error).splitlines()[0]}. Load the model as a pipeline with another one, "
            "such as DDIMScheduler.from_config(pipe.scheduler.config)."
        ) from error


def schedule_of(scheduler: Any) -> Schedule:
    """The noise levels of a diffusers scheduler, or of one that a configuration describes, as its own class computes them.

    Pictures are drawn by DDIM on them, on the scheduler's own grid. Raises BadFile for a law that is not the variance-preserving
    one of eps and v (EDM's and flow matching's sigmas), for networks that predict clean latents, and for noise prediction at
    a level of pure noise, where it says nothing.
    """
    if isinstance(scheduler, Mapping):
        scheduler = scheduler_of({"set_alpha_to_one": False, "clip_sample": False, "_class_name": "DDIMScheduler", **scheduler})
    kind, config = type(scheduler).__name__, dict(scheduler.config)
    remedy = "efface erases from models with Stable Diffusion's noise schedule (eps or v prediction)."
    levels = getattr(scheduler, "alphas_cumprod", None)
    sigmas = [key for key in ("use_flow_sigmas", "sigma_data") if config.get(key)]
    if config.get("timestep_type", "discrete") != "discrete":
        sigmas.append("timestep_type")
    if not isinstance(levels, Tensor) or levels.ndim != 1 or sigmas:
        law = f" with {sigmas[0]}={config[sigmas[0]]}" if sigmas else ""
        raise BadFile(f"the scheduler {kind}{law} follows another noise law (EDM or flow matching). {remedy}")
    levels = levels.detach().float().cpu()
    if not bool(((levels >= 0) & (levels <= 1)).all()) or not bool((levels.diff() <= 0).all()):
        raise BadFile(f"the noise levels of the scheduler {kind} do not fall from 1 to 0. {remedy}")
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in ("epsilon", "v_prediction"):
        raise BadFile(f"the network predicts {prediction!r}. {remedy}")
    if prediction == "epsilon" and not levels[-1] > 0:
        raise BadFile(
            f"the scheduler {kind} ends in pure noise, where eps prediction says nothing (zero terminal SNR). A model that "
            "predicts eps was trained without it; set rescale_betas_zero_snr=False."
        )
    last = getattr(scheduler, "final_alpha_cumprod", 1.0)  # solvers without one end at the clean latents
    return Schedule(
        alphas_cumprod=levels,
        final_alpha=float(last),
        steps_offset=int(config.get("steps_offset", 0)),
        prediction_type=prediction,
        config={**config, "_class_name": kind},
        spacing=str(config.get("timestep_spacing", "leading")),
    )


def official_walk(grid: Sequence[int], k: int) -> tuple[list[int], int]:
    """The noise levels that the sampler of the older codes of ESD and AP visits on its way to z_t, and the level that it ends at.

    ``grid`` are the S timesteps of a whole trajectory, the noisiest first; ``k`` is the number that those codes draw and call
    t_enc. Their loop leaves out the noisiest level, counts its index i down towards the clean end, and stops after the step with
    i + 1 = k; k = 0 never stops it before the end. So it takes min(S - 1, S - k) steps and ends at the k - 2nd level from the
    clean end, or at level 0 for k < 2.
    """
    ascending = list(reversed(grid))
    last = max(k - 1, 0)  # index of the last step taken
    levels = [ascending[i] for i in range(len(grid) - 2, last - 1, -1)]
    return levels, ascending[last - 1] if last > 0 else 0


def plms_grid(grid: Sequence[float]) -> list[float]:
    """The timesteps of diffusers' PNDMScheduler on a descending grid: S + 1 entries, the second level twice, because the first
    step is taken a second time with a better prediction."""
    return [*grid[:2], *grid[1:]]


def mean_walk(steps: int, official: bool) -> float:
    """Mean number of guided sampler steps of ``sample_until`` for k uniform on 0 .. steps - 1: the cost of drawing z_t."""
    return sum(min(steps - 1, steps - k) for k in range(steps)) / steps if official else (steps - 1) / 2
