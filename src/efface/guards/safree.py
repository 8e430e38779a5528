"""SAFREE: take the target out of the prompt's embedding, where words of the prompt point at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.request import names_of
from ..equations.guidance import guided
from ..equations.subspace import projector, triggers
from ..models.base import DiffusionModel
from ..models.cond import POOLED, Cond
from ..models.load import load_model
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

    SDXL and Stable Diffusion 3 read two text encoders. Their embeddings stand side by side in every
    vector above, and the pooled text p, which has the whole prompt in it, goes the same way::

        p <- (I - Q_C) Q_I p        Q_C, Q_I: as P_C and P_I, of the pooled texts of targets and masked prompts

    Reference: Yoon et al., ICLR 2025, arXiv:2410.12761. The code has no licence, so this was
    written from the description.

    Deviations: the latent re-attention of the up-blocks is left out, which costs a third branch. A
    masked token becomes padding (officially token 0, which is padding on Stable Diffusion 2.x
    alone). t' counts timesteps, which is the same for 50 steps. The official code also gives the
    targets as a negative prompt (``negative``, off by default here). A prompt of one token has no
    other tokens to compare with, so that the rule finds no trigger; with ``alone`` its only token
    is one where the projection takes more of it than it leaves. The form for two text encoders and
    a pooled text is ours; the equations above are those for one.

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
        named = model.encode(targets)
        kept = {"": outside(named.end_token()), **({POOLED: outside(named.extras[POOLED])} if POOLED in named.extras else {})}

        def soft(prompts: SoftPrompt, c: Cond) -> Cond:
            return self._filtered(prompts, c, kept, plain)

        def change(prompts: Any, c: Cond) -> Cond:
            return soft(model.embed(prompts), c)

        def guide(c: Cond, scale: float) -> _Guide:
            null = model.encode_negative([", ".join(targets)] * len(c)) if self.negative else model.unconditional(len(c))
            return _Guide(null, c, guidance_needed(self.name, scale), model.schedule.size)

        with model.encoding(change, soft), model.guided_by(guide):
            yield

    def pipeline_arguments(self, pipe: Any, prompt: str, targets: tuple[str, ...]) -> dict[str, Any]:
        """What to call a loaded diffusers pipeline of Stable Diffusion or SDXL with, in place of the prompt.

        The arguments are the projected embedding, and a ``callback_on_step_end`` that puts the
        plain one back after t' steps. Raises BadOption for other families.
        """
        refuse_other_families(pipe)
        targets = names_of(targets, "targets")
        texts = self._texts(pipe, prompt, targets)
        first = texts(math.inf)
        called = {"prompt_embeds": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
        inside = {"prompt_embeds": "prompt_embeds", "text_embeds": "add_text_embeds"}

        def callback(pipe: Any, i: int, t: Any, inputs: dict[str, Any]) -> dict[str, Any]:
            following = pipe.scheduler.timesteps[i + 1 : i + 2].tolist()
            for name, text in texts(following[0]).items() if following else ():
                rows = inputs[inside[name]]
                empty = rows[: len(rows) // 2] if pipe.do_classifier_free_guidance else rows[:0]
                inputs[inside[name]] = torch.cat([empty, text.to(rows).expand(len(rows) - len(empty), *text.shape[1:])])
            return inputs

        return {
            **{called[name]: text for name, text in first.items()},
            "negative_prompt": ", ".join(targets) if self.negative else None,
            "callback_on_step_end": callback,
            "callback_on_step_end_tensor_inputs": ["latents", *(inside[name] for name in first)],
        }

    def guider(self, pipe: Any, prompt: str, targets: tuple[str, ...], guidance_scale: float = 7.5) -> Any:
        """A guider for diffusers' modular pipelines and this prompt:
        ``pipe.update_components(guider=guard.guider(pipe, "a cat", ("cat",)))``.

        ``pipe``: the modular pipeline or a stock one of Stable Diffusion or SDXL. Raises BadOption for other families; the
        guider raises it where the pipeline is called with another prompt.
        """
        from .modular import TextGuider

        refuse_other_families(pipe)
        targets = names_of(targets, "targets")
        made = TextGuider(guidance_scale=guidance_needed(self.name, guidance_scale))
        made.prompt, made.texts = prompt, self._texts(pipe, prompt, targets)
        if self.negative:
            made.empty = _by_input(load_model(pipe).encode([", ".join(targets)]))
        return made

    def _texts(self, pipe: Any, prompt: str, targets: tuple[str, ...]) -> Callable[[float], dict[str, Tensor]]:
        """Of timesteps, what the network reads for the prompt there, by the pipeline's input names; one row each."""
        model = load_model(pipe)
        with self.active(model, targets):
            c = model.encode([prompt])
        return lambda t: _by_input(_at(c, torch.tensor([t], device=c.tokens.device), model.schedule.size))

    def _filtered(
        self, prompts: SoftPrompt, c: Cond, kept: Mapping[str, Tensor], encode_soft: Callable[[SoftPrompt], Cond]
    ) -> Cond:
        """The plain encodings, with the projected ones and the filter's last step beside them. kept: I - P_C of the tokens, and
        I - Q_C of the pooled text where there is one."""
        early, pooled, until, s = [], list(c.extras.get(POOLED, ())), [], prompts.starts
        for i, n in enumerate(prompts.lengths):
            e, end = c.tokens[i], n - prompts.ends
            if end <= s:  # the empty prompt
                early.append(e)
                until.append(-1)
                continue
            with torch.no_grad():
                without = encode_soft(masked(prompts, i, n))
                p, outer = without.end_token(), kept[""].to(e.device)
                d = (p.double() @ outer).norm(dim=1)
                hit = triggers(d, self.alpha)
                through = projector(p) @ outer
                words = e[s:end].double()
                if end == s + 1 and self.alone:
                    hit = (words @ outer).norm(dim=1) < (words - words @ outer).norm(dim=1)
                b = 1 - torch.cosine_similarity(words, words @ through, dim=1).mean()
            moved = e.clone()
            moved[s:end] = torch.where(hit[:, None], (e[s:end].double() @ through).to(e), e[s:end])
            early.append(moved)
            if pooled and bool(hit.any()):
                whole = projector(without.extras[POOLED]) @ kept[POOLED].to(e.device)
                pooled[i] = (pooled[i].double() @ whole).to(pooled[i])
            until.append(
                round(10 / (1 + math.exp(-2 * self.sharpness * (10 * float(b) - self.middle)))) if bool(hit.any()) else -1
            )
        extras = {"early": torch.stack(early), "until": torch.tensor(until, device=c.tokens.device)}
        beside = {f"early {POOLED}": torch.stack(pooled)} if pooled else {}
        return replace(c, extras={**c.extras, **extras, **beside})


def outside(vectors: Tensor) -> Tensor:
    """(d, d) ``I - P`` with P the projector on the span of the rows of ``vectors``, on the CPU."""
    return torch.eye(vectors.shape[-1], dtype=torch.float64) - projector(vectors.cpu())


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
    early = (t > length * (1 - (c.extras["until"].to(t.device) + 1) / STEPS)).reshape(-1, 1)
    beside = dict(c.extras)
    if f"early {POOLED}" in beside:
        beside[POOLED] = torch.where(early, beside[f"early {POOLED}"], beside[POOLED])
    return replace(c, tokens=torch.where(early[..., None], c.extras["early"], c.tokens), extras=beside)


def _by_input(c: Cond) -> dict[str, Tensor]:
    """What diffusers' pipelines call the tokens and the pooled text of SDXL."""
    return {"prompt_embeds": c.tokens, **({"text_embeds": c.extras[POOLED]} if POOLED in c.extras else {})}


class _Guide:
    def __init__(self, null: Cond, c: Cond, scale: float, length: int) -> None:
        self.null, self.c, self.scale, self.length = null, c, scale, length

    def cond(self, t: Tensor) -> Cond:
        return Cond.cat([self.null, _at(self.c, t, self.length)])

    def combine(self, eps: Tensor, t: Tensor) -> Tensor:
        eps_0, eps_c = eps.chunk(2)
        return guided(eps_0, eps_c, self.scale)
