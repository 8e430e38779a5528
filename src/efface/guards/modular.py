"""Guards as guiders of diffusers' modular pipelines: with a third branch, or with texts that change while an image is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor

from ..equations.guidance import guided
from ..errors import BadOption

SAME = 1e-2
"""Largest difference, relative to the largest number, of two readings of one prompt: above the rounding of half precision, far
below another prompt's."""
Correction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(eps_0, eps_c, eps_s, t) -> what is subtracted from eps_c; one per image, because it may keep a momentum."""


class GuardGuider(BaseGuidance):
    """Classifier-free guidance whose conditional prediction is corrected by that of a third text.

        eps = eps_0 + s (eps_c - correction(eps_0, eps_c, eps_s, t) - eps_0)

    The third branch reads what the conditional one reads, with the entries of ``third`` in place of its texts: a table from the
    pipeline's input names (``prompt_embeds``, and ``text_embeds`` of SDXL) to tensors of one row. ``fresh`` makes the correction
    of a new image; a new image starts where the step is 0. Cost: 3 UNet evaluations per step and row.

    ``third`` and ``fresh`` are no part of the configuration that ``save_pretrained`` writes: make the guider from its guard.
    """

    _input_predictions = ["pred_uncond", "pred_cond", "pred_third"]  # noqa: RUF012  # diffusers asks for a list

    @register_to_config
    def __init__(self, guidance_scale: float = 7.5) -> None:
        super().__init__()
        self.guidance_scale = guidance_scale
        self.third: Mapping[str, Tensor] = {}
        self.fresh: Callable[[], Correction] | None = None
        self.correction: Correction | None = None

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """The three branches of diffusers' ``(conditional, unconditional)`` inputs."""
        if self._step == 0 or self.correction is None:
            assert self.fresh is not None, "make the guider with SLD(...).guider(pipe, targets)"
            self.correction = self.fresh()
        cond = self._prepare_batch(data, 0, "pred_cond")
        third = self._prepare_batch(data, 0, "pred_third")
        for name, value in self.third.items():
            plain = getattr(cond, name, None)
            if plain is not None:
                setattr(third, name, value.to(plain).expand(len(plain), *value.shape[1:]))
        return [self._prepare_batch(data, 1, "pred_uncond"), cond, third]

    def forward(self, pred_uncond: Tensor, pred_cond: Tensor, pred_third: Tensor) -> Any:
        """diffusers' combination of the three predictions."""
        assert self.correction is not None
        t = self._timestep.expand(len(pred_cond)).to(pred_cond.device)
        corrected = pred_cond - self.correction(pred_uncond, pred_cond, pred_third, t)
        pred = guided(pred_uncond, corrected, self.guidance_scale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared != 1

    @property
    def num_conditions(self) -> int:
        return 3


class TextGuider(BaseGuidance):
    """Classifier-free guidance by texts that depend on the timestep, of one prompt.

        eps = eps(z_t, t, empty) + s (eps(z_t, t, texts(t)) - eps(z_t, t, empty))

    ``texts`` gives, by the pipeline's input names (``prompt_embeds``, and ``text_embeds`` of SDXL), tensors of one row that stand
    in the place of those that the pipeline made of ``prompt``; ``empty``, where there is one, those of the negative prompt. Cost:
    2 UNet evaluations per step and row. Raises BadOption in a pipeline that was called with another prompt.

    These three are no part of the configuration that ``save_pretrained`` writes: make the guider from its guard.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012  # diffusers asks for a list

    @register_to_config
    def __init__(self, guidance_scale: float = 7.5) -> None:
        super().__init__()
        self.guidance_scale = guidance_scale
        self.prompt = ""
        self.texts: Callable[[float], Mapping[str, Tensor]] | None = None
        self.empty: Mapping[str, Tensor] = {}

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """The two branches of diffusers' ``(conditional, unconditional)`` inputs."""
        assert self.texts is not None, "make the guider with SAFREE(...).guider(pipe, prompt, targets)"
        branches = [self._prepare_batch(data, 0, "pred_cond"), self._prepare_batch(data, 1, "pred_uncond")]
        plain = self.texts(-1.0)["prompt_embeds"]
        given = branches[0].prompt_embeds
        if plain.shape[1:] != given.shape[1:] or float((given - plain.to(given)).abs().max()) > SAME * float(plain.abs().max()):
            raise BadOption(f"the guider was made for the prompt {self.prompt!r}, and the pipeline was called with another one.")
        for branch, texts in zip(branches, (self.texts(float(self._timestep)), self.empty), strict=True):
            for name, value in texts.items():
                rows = getattr(branch, name)
                setattr(branch, name, value.to(rows).expand(len(rows), *value.shape[1:]))
        return branches

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor) -> Any:
        """diffusers' combination of the two predictions."""
        pred = guided(pred_uncond, pred_cond, self.guidance_scale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        return 2
