"""SAFREE: take the target out of the prompt's embedding, where words of the prompt point at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.request import names_of
from ..equations.guidance import guided
from ..equations.subspace import projector, triggers
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.tokens import SoftPrompt
from ..options import option
from .base import Guard, guidance_needed, refuse_other_families

STEPS = 50
"""The number of sampler steps for which the paper chose the filter's length t'."""


@dataclass(frozen=True, kw_only=True)
class SAFREE(Guard):
    """Take the target's direction out of the words of the prompt that point at it, for the first part of sampling.

    Objective::

        P_C = C (C^T C)^+ C^T                           C: sentence embeddings of the targets
        P_I = projector on span{p_i}                    p_i: that of the prompt with token i masked
        d_i = |(I - P_C) p_i|
        token i is a trigger where  d_i >= (1 + alpha) mean_{j != i} d_j
        e_i <- (I - P_C) P_I e_i                        for triggers; the others stay
        b   = 1 - mean_i cos(e_i, (I - P_C) P_I e_i)    over the words
        t'  = round(10 sigmoid(2 k (10 b - m)))

    e_i is the prompt's embedding at token i, k is ``sharpness`` and m is ``middle``. The projected
    embedding is used for the first t' of 50 steps, then the plain one. A sentence embedding is the
    hidden state at the end of the text. A prompt without a trigger is left alone.

    Reference: Yoon et al., ICLR 2025, arXiv:2410.12761. The code has no licence, so this was
    written from the description.

    Deviations: the latent re-attention of the up-blocks is left out, which costs a third branch. A
    masked token becomes padding (officially token 0, which is padding on Stable Diffusion 2.x
    alone). t' counts timesteps, which is the same for 50 steps. The official code also gives the
    targets as a negative prompt (``negative``, off by default here). A prompt of one token has no
    other tokens to compare with, so that the rule finds no trigger; with ``alone`` its only token
    is one where the projection takes more of it than it leaves.

    Cost: no further UNet evaluations, so an image takes 2 at each sampler step; one text encoding
    for each token of the prompt.
    """

    name: ClassVar[str] = "safree"
    summary: ClassVar[str] = "take the target's direction out of the words of the prompt that point at it"
    paper: ClassVar[str] = "Yoon et al., ICLR 2025, arXiv:2410.12761"
    branches: ClassVar[int] = 2

    alpha: float = option(0.01, "how far above the other tokens' mean distance a trigger lies", "SAFREE code", low=0.0)
    sharpness: float = option(3.5, "sharpness k of the filter's length", "SAFREE code: 3.5 for artists, 2.5 for nudity", low=0.0)
    middle: float = option(5.5, "middle m of the filter's length", "SAFREE code: 5.5 for artists, 5.333 for nudity")
    negative: bool = option(False, "also give the targets as a negative prompt", "SAFREE code true; its paper does not say")
    alone: bool = option(True, "let the only token of a prompt be a trigger", "ours")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "one_tokenizer")

    @contextmanager
    def active(self, model: DiffusionModel, targets: tuple[str, ...]) -> Iterator[None]:
        model.require(self.name, self.needs)
        targets = names_of(targets, "targets")
        plain = model.encode_soft  # taken before the guard is on, so that a patched text encoder stays patched
        unwanted = projector(model.encode(targets).end_token().cpu())
        kept = torch.eye(len(unwanted), dtype=torch.float64) - unwanted

        def soft(prompts: SoftPrompt, c: Cond) -> Cond:
            return self._filtered(prompts, c, kept.to(c.tokens.device), plain)

        def change(prompts: Any, c: Cond) -> Cond:
            return soft(model.embed(prompts), c)

        def guide(c: Cond, scale: float) -> _Guide:
            null = model.encode_negative([", ".join(targets)] * len(c)) if self.negative else model.unconditional(len(c))
            return _Guide(null, c, guidance_needed(self.name, scale), model.schedule.size)

        with model.encoding(change, soft), model.guided_by(guide):
            yield

    def pipeline_arguments(self, pipe: Any, prompt: str, targets: tuple[str, ...]) -> dict[str, Any]:
        """What to call a loaded diffusers Stable Diffusion pipeline with, in place of the prompt.

        The arguments are the projected embedding, and a ``callback_on_step_end`` that puts the
        plain one back after t' steps.
        """
        from ..models.sd import StableDiffusion

        refuse_other_families(pipe)
        targets = names_of(targets, "targets")
        model = StableDiffusion.from_pipeline(pipe)
        with self.active(model, targets):
            c = model.encode([prompt])
        length = model.schedule.size

        def embedding(t: int) -> Tensor:
            return _at(c, torch.tensor([t], device=c.tokens.device), length).tokens

        def callback(pipe: Any, i: int, t: Any, inputs: dict[str, Any]) -> dict[str, Any]:
            following = pipe.scheduler.timesteps[i + 1 : i + 2].tolist()
            if following:
                text = inputs["prompt_embeds"]
                inputs["prompt_embeds"] = torch.cat([text[:-1], embedding(following[0]).to(text)])
            return inputs

        return {
            "prompt_embeds": embedding(length),
            "negative_prompt": ", ".join(targets) if self.negative else None,
            "callback_on_step_end": callback,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
        }

    def _filtered(self, prompts: SoftPrompt, c: Cond, kept: Tensor, encode_soft: Callable[[SoftPrompt], Cond]) -> Cond:
        """The plain encodings, with the projected ones and the filter's last step beside them."""
        early, until, s = [], [], prompts.starts
        for i, n in enumerate(prompts.lengths):
            e, end = c.tokens[i], n - prompts.ends
            if end <= s:  # the empty prompt
                early.append(e)
                until.append(-1)
                continue
            with torch.no_grad():
                p = encode_soft(masked(prompts, i, n)).end_token()
                d = (p.double() @ kept).norm(dim=1)
                hit = triggers(d, self.alpha)
                through = projector(p) @ kept
                words = e[s:end].double()
                if end == s + 1 and self.alone:
                    hit = (words @ kept).norm(dim=1) < (words - words @ kept).norm(dim=1)
                b = 1 - torch.cosine_similarity(words, words @ through, dim=1).mean()
            moved = e.clone()
            moved[s:end] = torch.where(hit[:, None], (e[s:end].double() @ through).to(e), e[s:end])
            early.append(moved)
            until.append(
                round(10 / (1 + math.exp(-2 * self.sharpness * (10 * float(b) - self.middle)))) if bool(hit.any()) else -1
            )
        extras = {"early": torch.stack(early), "until": torch.tensor(until, device=c.tokens.device)}
        return replace(c, extras={**c.extras, **extras})


def masked(prompts: SoftPrompt, i: int, n: int) -> SoftPrompt:
    """A copy of prompt i, which has n tokens, for each of its words; in each copy another word is
    replaced by the embedding of padding."""
    words = n - prompts.ends - prompts.starts
    rows = prompts.embeddings[i].detach().repeat(words, 1, 1)
    for j in range(words):
        rows[j, j + prompts.starts] = prompts.pad
    return replace(prompts, embeddings=rows, ids=prompts.ids[i].repeat(words, 1), lengths=(n,) * words, beside=None)


def _at(c: Cond, t: Tensor, length: int) -> Cond:
    """The encodings at timesteps t (B,): projected for the first t' steps and plain afterwards, or
    unchanged if they never passed the filter."""
    if "early" not in c.extras:
        return c
    # Step i of 50 on the leading grid has timestep 981 - 20 i of 1,000, so this is the same as i <= t' there.
    early = (t > length * (1 - (c.extras["until"].to(t.device) + 1) / STEPS)).reshape(-1, 1, 1)
    return replace(c, tokens=torch.where(early, c.extras["early"], c.tokens))


class _Guide:
    def __init__(self, null: Cond, c: Cond, scale: float, length: int) -> None:
        self.null, self.c, self.scale, self.length = null, c, scale, length

    def cond(self, t: Tensor) -> Cond:
        return Cond.cat([self.null, _at(self.c, t, self.length)])

    def combine(self, eps: Tensor, t: Tensor) -> Tensor:
        eps_0, eps_c = eps.chunk(2)
        return guided(eps_0, eps_c, self.scale)
