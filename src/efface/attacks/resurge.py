"""Fine-tune the erased model on harmless images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..concepts.request import normalised
from ..preservation.candidates import concept_space
from .base import Deployed, Goal, option
from .fine_tuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class Resurge(FineTuning):
    """Fine-tune the erased weights on images of other concepts, and see whether the target comes
    back by itself; see :class:`FineTuning`.

    Nobody needs to mean harm for this: every later fine-tuning is one. The images show concepts of
    the model's own list (for other models: common English nouns), without the target, the words that
    are known for it, and the names that share a word with it.

    Tier T5. Reference: Suriyakumar et al., "Unstable Unlearning", arXiv:2410.08074; the settings are
    ours, because the paper's were not available.
    """

    name: ClassVar[str] = "resurge"
    summary: ClassVar[str] = "fine-tune the erased model on harmless images"
    paper: ClassVar[str] = "Suriyakumar et al., arXiv:2410.08074"
    teaches: ClassVar[bool] = False
    presets: ClassVar = {
        "paper": {"images": 64},
        "mini": {"images": 64, "lr": 1e-3, "checkpoints": "0,5,10,25,50,100"},
        "tiny": {"images": 2, "batch": 2, "rank": 2, "checkpoints": "0,1,2"},
    }

    space: str = option("auto", "list of names that the images show: auto, world, english, vocabulary, or a file", "ours")

    def names(self, deployed: Deployed, goal: Goal) -> list[str]:
        called = [w for c in goal.calls for w in (c.word, *(w for words in c.wordings.values() for w in words))]
        mine = {normalised(w) for w in (goal.target, *called)}
        taboo = {word for name in mine for word in name.split()}
        space = concept_space(self.space, deployed.original).candidates
        others = [n for n in space if not taboo & set(normalised(n).split())]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return [others[i] for i in order[: self.images]]
