"""Safe Latent Diffusion (SLD): a third branch that pulls guidance away from a safety text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.request import names_of
from ..equations.guidance import guided, safety
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..options import option
from .base import Guard, guidance_needed, refuse_other_families

STRENGTHS = {  # delta, s_S, lambda, s_m, beta_m: diffusers' SafetyConfig
    "weak": (15, 20.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}
STEPS = 50
"""The number of sampler steps for which the warm-up of the presets was chosen."""


@dataclass(frozen=True, kw_only=True)
class SLD(Guard):
    """Guide away from a safety text, with momentum, where it pulls the same way as the prompt.

    Objective::

        gamma = min(s_S |eps_c - eps_S|, 1) [eps_c - eps_S < lambda] (eps_S - eps_0) + s_m nu
        nu   <- beta_m nu + (1 - beta_m) gamma
        eps   = eps_0 + s (eps_c - eps_0 - gamma)

    eps_c, eps_S and eps_0 are the predictions for the prompt, the safety text and the empty prompt;
    s is the guidance scale, nu the momentum. gamma is 0 in the first delta of 50 steps, but nu
    grows there too. ``strength`` chooses delta, s_S, lambda, s_m and beta_m.

    Reference: Schramowski et al., CVPR 2023, arXiv:2211.05105. Code: diffusers,
    StableDiffusionPipelineSafe.

    Deviations: the safety text is the targets, not the official list of twenty concepts. The
    warm-up counts timesteps, not steps: this is the same for 50 steps and keeps the warm-up's share
    of sampling for other numbers. The paper's table has s_S = 200 for "weak".

    Cost: an image takes 3 UNet evaluations at each sampler step, in place of 2.
    """

    name: ClassVar[str] = "sld"
    summary: ClassVar[str] = "guide away from the target with a third branch and momentum"
    paper: ClassVar[str] = "Schramowski et al., CVPR 2023, arXiv:2211.05105"
    branches: ClassVar[int] = 3

    strength: str = option(
        "medium", "how strongly it guides: a preset of the five constants", "diffusers SafetyConfig", choices=tuple(STRENGTHS)
    )
    text: str = option("", "the safety text, empty for the targets' names", "ours")

    @contextmanager
    def active(self, model: DiffusionModel, targets: tuple[str, ...]) -> Iterator[None]:
        text = self._text(targets)

        def guide(c: Cond, scale: float) -> _Guide:
            null, safe = model.unconditional(len(c)), model.encode([text] * len(c))
            length = model.schedule.size
            return _Guide(Cond.cat([null, c, safe]), guidance_needed(self.name, scale), Safety(self.strength, length))

        with model.guided_by(guide):
            yield

    def _text(self, targets: tuple[str, ...]) -> str:
        return self.text or ", ".join(names_of(targets, "targets"))

    def guider(self, pipe: Any, targets: tuple[str, ...], guidance_scale: float = 7.5) -> Any:
        """A guider for diffusers' modular pipelines: ``pipe.update_components(guider=guard.guider(pipe, ("cat",)))``.

        ``pipe``: the modular pipeline or a stock one of Stable Diffusion or SDXL, whose text encoders read the safety text.
        Raises BadOption for other families.
        """
        from .modular import GuardGuider

        made = GuardGuider(guidance_scale=guidance_needed(self.name, guidance_scale))
        made.third = _third(pipe, self._text(targets))
        made.fresh = lambda: Safety(self.strength, pipe.scheduler.config.num_train_timesteps)
        return made

    @contextmanager
    def on_pipeline(self, pipe: Any, targets: tuple[str, ...]) -> Iterator[None]:
        """Inside this context, a loaded diffusers pipeline of Stable Diffusion or SDXL samples under
        the guard, with any scheduler.

        Forward hooks of its UNet add a third block to the batch [empty, prompt] and subtract gamma
        from the prompt's prediction, which the pipeline's own guidance then scales. A timestep
        above the last one starts a new image.
        """
        safe = _third(pipe, self._text(targets))
        state: dict[str, Any] = {"last": -1}

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            z, t = args[0], int(args[1])
            text = kwargs["encoder_hidden_states"]
            if t > state["last"]:
                state["safety"] = Safety(self.strength, pipe.scheduler.config.num_train_timesteps)
            state["last"] = t
            n = len(text) // 2
            kwargs = {**kwargs, "encoder_hidden_states": _longer(text, safe["prompt_embeds"], n)}
            if added := kwargs.get("added_cond_kwargs"):  # SDXL: the pooled text, and the sizes, which are the prompt's own
                pooled, sizes = added["text_embeds"], added["time_ids"]
                more = {"text_embeds": _longer(pooled, safe["text_embeds"], n), "time_ids": torch.cat([sizes, sizes[n:]])}
                kwargs["added_cond_kwargs"] = {**added, **more}
            return (torch.cat([z, z[:n]]), *args[1:]), kwargs

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            eps_0, eps_c, eps_s = output[0].chunk(3)
            t = torch.full((len(eps_0),), state["last"], device=eps_0.device)
            return (torch.cat([eps_0, eps_c - state["safety"](eps_0, eps_c, eps_s, t)]), *output[1:])

        hooks = [
            pipe.unet.register_forward_pre_hook(before, with_kwargs=True),
            pipe.unet.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _third(pipe: Any, text: str) -> dict[str, Tensor]:
    """The safety text as a pipeline's encoders read it, by the input names of the pipeline; one row each."""
    from ..models.load import load_model

    refuse_other_families(pipe)
    if hasattr(pipe, "encode_prompt"):  # a stock pipeline reads it itself, whatever its scheduler
        device = next(pipe.unet.parameters()).device
        with torch.no_grad():
            read = pipe.encode_prompt(prompt=text, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)
        return {"prompt_embeds": read[0], **({"text_embeds": read[2]} if len(read) > 2 else {})}
    c = load_model(pipe).encode([text])
    return {"prompt_embeds": c.tokens, **({"text_embeds": c.extras["pooled"]} if "pooled" in c.extras else {})}


def _longer(rows: Tensor, one: Tensor, n: int) -> Tensor:
    """The rows with n more, each the one."""
    return torch.cat([rows, one.to(rows).expand(n, *one.shape[1:])])


class Safety:
    """Computes gamma along one trajectory, and keeps the momentum nu."""

    def __init__(self, strength: str, length: int) -> None:
        self.delta, self.scale, self.threshold, self.momentum, self.beta = STRENGTHS[strength]
        self.length = length
        self.nu: Tensor | None = None

    def __call__(self, eps_0: Tensor, eps_c: Tensor, eps_s: Tensor, t: Tensor) -> Tensor:
        gamma = safety(eps_0, eps_c, eps_s, self.scale, self.threshold)
        nu = torch.zeros_like(gamma) if self.nu is None else self.nu
        gamma = gamma + self.momentum * nu
        self.nu = (self.beta * nu + (1 - self.beta) * gamma).detach()
        # Step i of 50 on the leading grid has timestep 981 - 20 i of 1,000, so this is the same as i >= delta there.
        warm = (t < self.length * (1 - self.delta / STEPS)).reshape(-1, 1, 1, 1)
        return torch.where(warm, gamma, 0.0)


class _Guide:
    def __init__(self, three: Cond, scale: float, safety: Safety) -> None:
        self.three, self.scale, self.safety = three, scale, safety

    def cond(self, t: Tensor) -> Cond:
        return self.three

    def combine(self, eps: Tensor, t: Tensor) -> Tensor:
        eps_0, eps_c, eps_s = eps.chunk(3)
        return guided(eps_0, eps_c - self.safety(eps_0, eps_c, eps_s, t), self.scale)
