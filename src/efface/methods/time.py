"""Text-to-Image Model Editing (TIME)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..concepts.request import EraseRequest
from ..edits import facts, to_patch
from ..equations.closed_form import shared_edit
from ..models.base import DiffusionModel
from ..patches import Patch
from ..training.loop import Run
from .base import Method, option

AUGMENTATIONS = ("A photo of {}", "An image of {}", "A picture of {}")


@dataclass(frozen=True, kw_only=True)
class TIME(Method):
    """Make the target's prompt behave like the anchor's, token by token.

    Objective::

        min_W'  sum_i |W' c_i - W c*_i|^2 + lam |W' - W|_F^2

    W are the keys and values of cross-attention. c_i is the text encoder's vector at token i of the
    target's sentence; the sum is over all positions of every sentence, start and padding included.
    c*_i is the vector of the token in the anchor's sentence that token i is aligned with. The
    alignment goes through the tokens of the target's sentence and takes the next identical token of
    the anchor's ("an" counts as "a"); then come the remaining positions, with the last one
    repeated. The solution is W' = W T with one matrix T for all layers (closed_form.shared_edit).
    ``augment`` adds three more pairs of sentences.

    The method was made for edits such as "a banana" -> "a blue banana". In an erasure the target's
    tokens have no counterpart.

    Reference: Orgad et al., ICCV 2023, arXiv:2303.08084. Code: bahjat-kawar/time-diffusion.

    Deviations: a token that is missing in the anchor's sentence is aligned with what stands in its
    place (the official loop raises IndexError). Modules are found by name (the official filter
    finds none in today's diffusers, and none at widths other than 768). lam counts against the
    squares of the rows, about L |c|^2 for a sentence of L positions, so it means less with more
    sentences, as officially. The request's preserve set is not used, because TIME has no such term.

    Official preset: agrees with the official operations up to 1e-6 of the weights (against a
    solution in float64, tests/test_official.py).

    Cost: no UNet evaluations.
    """

    name: ClassVar[str] = "time"
    summary: ClassVar[str] = "closed form: make the target's prompt behave like the anchor's, token by token"
    paper: ClassVar[str] = "Orgad et al., ICCV 2023, arXiv:2303.08084"
    presets: ClassVar = {"paper": {}, "mini": {}, "tiny": {}}

    lam: float = option(0.1, "ridge towards the original weights", "time-diffusion --lamb", low=1e-12)
    augment: bool = option(True, "add the sentences 'A photo of', 'An image of' and 'A picture of'", "README command --with_augs")
    keys: bool = option(True, "edit keys as well as values", "README command --with_to_k")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("one_tokenizer",) if self.keys else ("one_tokenizer", "keys_and_values")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        return 0.0

    @torch.no_grad()
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        self.check(model)
        spent, kv = model.evals.snapshot(), model.reads()
        templates = ("{}", *AUGMENTATIONS) if self.augment else ("{}",)
        pairs = [(f.format(e).strip(), f.format(request.anchor).strip()) for e in request.targets for f in templates]
        xs, ys, one = [], [], articles(model)
        for old, new in pairs:
            both = model.encode([old, new])
            (source, destination), (n, end) = both.tokens.cpu(), both.counts()
            xs.append(source[:n])
            old_ids, new_ids = ([one.get(i, i) for i in ids] for ids in model.token_ids([old, new]))
            ys.append(destination[[min(i, end - 1) for i in alignment(old_ids, new_ids, n)]])
        x, y = torch.cat(xs), torch.cat(ys)
        edit = shared_edit(x, y, torch.ones(len(x)), x[:0], torch.ones(0), self.lam)
        base = model.weights(lambda name: kv(name) and (self.keys or ".to_v." in name))
        return to_patch(base, edit, self.card(model, request, spent, edit=facts(edit, model, request.targets)))


def articles(model: DiffusionModel) -> dict[int, int]:
    """``{id of "an": id of "a"}``, which the alignment treats as equal; empty where the tokenizer
    splits one of them."""
    an, a = (ids[model.starts : len(ids) - model.ends] for ids in model.token_ids(["an", "a"]))
    return {an[0]: a[0]} if len(an) == len(a) == 1 else {}


def alignment(old: Sequence[int], new: Sequence[int], length: int) -> list[int]:
    """For each of ``length`` positions of the old sentence, the position of the new one that it
    should act like.

    The alignment is greedy and in order. An old token without a counterpart is aligned with the
    next position that nothing else has claimed, and does not use it up: "a [cat]" -> "a [dog]", and
    "a [fire] [engine]" -> "a [dog]" maps both words to it.
    """
    positions, free = [], 0
    for token in old:
        found = next((j for j in range(free, len(new)) if new[j] == token), None)
        positions.append(min(free, length - 1) if found is None else found)
        free = free if found is None else found + 1
    positions += range(free, length)
    return (positions + [length - 1] * length)[:length]
