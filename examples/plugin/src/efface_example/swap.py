"""Swap: sample another prompt where the prompt names the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from efface.guards import Guard
from efface.models.base import DiffusionModel
from efface.models.cond import Cond
from efface.options import option


@dataclass(frozen=True, kw_only=True)
class Swap(Guard):
    """Encodes "a dog" in place of every prompt that names a target.

    Reference: none, an example. Cost: none; an image takes 2 UNet evaluations at each sampler step.
    """

    name: ClassVar[str] = "swap"
    summary: ClassVar[str] = "another prompt in place of one that names the target"
    paper: ClassVar[str] = "none"
    branches: ClassVar[int] = 2

    prompt: str = option("a dog", "what is sampled instead", "ours")

    @contextmanager
    def active(self, model: DiffusionModel, targets: tuple[str, ...]) -> Iterator[None]:
        plain = model.encode

        def change(prompts: Sequence[str], c: Cond) -> Cond:
            return plain([self.prompt if any(t in p for t in targets) else p for p in prompts])

        with model.encoding(change):
            yield
