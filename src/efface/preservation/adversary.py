"""The attacker that a method can be trained against: learned embeddings among the words of a prompt
that bring a target back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BadOption
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..training.drawn import surrogate_latents
from ..training.learned import Learned
from ..training.loop import Step
from ..training.processes import share
from ..training.scene import Scene
from .candidates import candidates

PICTURES = 8
"""Number of images of a target on which words are compared with it."""
PLACES = ("prefix", "suffix", "insert", "replace")
"""Where learned embeddings stand: before the prompt's words, after them, in their middle, or in their place."""


def word_rows(model: DiffusionModel) -> tuple[list[str], Tensor]:
    """The words of the vocabulary that are one token, and their (V, e) input embeddings.

    Whole words survive being written and read again, which fragments do not.
    """
    words = of_one_token(model, model.vocabulary())
    parts = [model.embed(words[i : i + 512]).embeddings[:, model.starts] for i in range(0, len(words), 512)]
    return words, torch.cat(parts).float()


def of_one_token(model: DiffusionModel, words: Sequence[str]) -> list[str]:
    """Those of the words that the model's tokenizer does not cut: one token between start and end."""
    return [w for w, ids in zip(words, model.token_ids(words), strict=True) if len(ids) == model.starts + 1 + model.ends]


def drawn_words(table: Tensor, drawn: Sequence[int], tokens: int) -> Tensor:
    """(B, k, e) input embeddings of the B k drawn vocabulary words; table: (V, e)."""
    return table[list(drawn)].reshape(-1, tokens, table.shape[1]).clone()


def worded(model: DiffusionModel, prompts: Sequence[str], rows: Tensor, place: str) -> Cond:
    """Encodings of B prompts with k learned embeddings each, ``rows`` (B, k, e), that stand in
    ``place``.

    They are differentiable in the embeddings and in the weights of the model's text encoder. Raises
    BadOption for an unknown place, and PromptTooLong where the embeddings do not fit.
    """
    if place not in PLACES:
        raise BadOption(f"place={place!r} is unknown; learned embeddings stand in one of {', '.join(PLACES)}.")
    found: dict[int, Cond] = {}
    for prompt in dict.fromkeys(prompts):
        mine = [i for i, p in enumerate(prompts) if p == prompt]
        soft = model.embed([prompt] * len(mine))
        first, end = soft.starts, soft.lengths[0] - soft.ends
        middle = (first + end) // 2
        places = {"prefix": (first, first), "suffix": (end, end), "insert": (middle, middle), "replace": (first, end)}
        start, stop = places[place]
        c = model.encode_soft(soft.splice(start, stop, rows[mine]))
        found |= {i: c[k] for k, i in enumerate(mine)}
    return Cond.cat([found[i] for i in range(len(prompts))])


@torch.no_grad()
def agreement(
    model: DiffusionModel, target: str, anchor: str, words: Sequence[str], *, steps: int, guidance: float, seed: int
) -> dict[str, float]:
    """How far each word's prediction is from the target's, as a share of the anchor's distance from
    it.

    0 draws the target, and 1 is as far off as the anchor. Squares are summed over PICTURES images
    of the target, noised to levels that are spread over the schedule.

    Cost: PICTURES times the UNet evaluations of an image and len(words) + 2.
    """
    n = model.schedule.size
    t = model.schedule.numbered([(2 * i + 1) * n // (2 * PICTURES) for i in range(PICTURES)], model.device)
    x = surrogate_latents(model, [target], PICTURES, steps=steps, guidance=guidance, seed=seed)
    z = model.schedule.noised(x, model.noise(PICTURES, torch.Generator().manual_seed(seed)), t)
    eps_e, eps_0, *eps = (model.predict(z, t, model.encode([p] * PICTURES)) for p in (target, anchor, *words))
    whole = float((eps_0 - eps_e).square().sum()) or torch.finfo(torch.float32).tiny
    return {w: float((e - eps_e).square().sum()) / whole for w, e in zip(words, eps, strict=True)}


def own_and_near(model: DiffusionModel, name: str, words: Sequence[str]) -> Tensor:
    """(n + 1, e) input embeddings: the mean of the name's own tokens, and n words of one token."""
    span = model.locate(name, name)
    own = model.embed([name]).embeddings[0, span.start : span.stop].mean(0, keepdim=True)
    return torch.cat([own, *(model.embed([w]).embeddings[:, model.starts] for w in words)]).float()


def near_words(model: DiffusionModel, targets: Sequence[str], nearest: int) -> list[list[str]]:
    """For each target, the vocabulary words of one token that the text encoder puts nearest to it."""
    found = candidates(model, "vocabulary", targets, exclude_targets=True, nearest=nearest, metric="cosine")
    return [of_one_token(model, names) for names in found]


class Adversary:
    """An attacker that lives as long as the training: one learned word for each target, in the
    place of its name.

    The word goes on from where the last update left it. Every ``restart`` updates (0: never) it
    starts again at one of the ``starts`` (n, e) of its target.

    Pass it to ``training(carry=...)`` to have it survive an interruption.
    """

    def __init__(self, scene: Scene, starts: Sequence[Tensor], *, lr: float, restart: int) -> None:
        self.scene, self.starts, self.restart = scene, starts, restart
        self.words = Learned([rows[:1] for rows in starts], lr)

    def attack(self, step: Step, first: int, times: int) -> None:
        """Move the words ``times`` Adam steps down ``|eps'(z_t, t, w) - eps(z_t, t, c_e)|^2``, each
        on a fresh draw.

        The weights are fixed, so that none of them collects a gradient. Logs the first and the last
        loss. Call it once in every update, before anything else; ``first`` is the update in which
        the attack begins.

        Cost: 2 UNet evaluations for each row and step, besides the latents.
        """
        self.renew(step, first)
        scene, losses = self.scene, []
        with scene.student.frozen():
            for _ in range(times):
                e, target = scene.draw(step)
                (z,), t = scene.latents.draw([target], step)
                with torch.no_grad():
                    eps_e = scene.model.predict(z, t, target.cond)
                off = scene.distance(scene.student.predict(z, t, self.cond(e)), eps_e, t).mean()
                off.backward()
                self.words.update(e)
                losses.append(float(off.detach()))
        step.log(attack_first=losses[0], attack_last=losses[-1])

    def renew(self, step: Step, first: int) -> None:
        """Start the words anew in the update in which the attack begins, and then every ``restart``
        updates."""
        if step.index == first or (self.restart and step.index % self.restart == 0):
            for i, rows in enumerate(self.starts):
                self.words.begin(i, rows[[step.randint(len(rows))]])

    def cond(self, e: Sequence[int]) -> Cond:
        """Encodings of this process's rows, for the target indices of the whole batch;
        differentiable in the words."""
        own = share(list(e))
        return worded(self.scene.model, [self.scene.targets[i] for i in own], self.words.rows(own), "replace")

    def state_dict(self) -> dict[str, Any]:
        return self.words.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.words.load_state_dict(state)
