"""Concept spaces: the candidates a search may choose from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadFile, BadRequest
from .request import names_of, normalised


@dataclass(frozen=True)
class ConceptSpace:
    """An ordered set of distinct candidate names."""

    name: str
    candidates: tuple[str, ...]

    @staticmethod
    def of(name: str, names: Iterable[str]) -> ConceptSpace:
        """Distinct non-empty names, first spelling kept."""
        distinct: dict[str, str] = {}
        for n in names_of(names, "a concept space"):
            if normalised(n):
                distinct.setdefault(normalised(n), n.strip())
        return ConceptSpace(name, tuple(distinct.values()))

    @staticmethod
    def from_file(path: str | Path) -> ConceptSpace:
        """One concept per line; empty lines and lines that start with # are left out."""
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadFile(
                f"cannot read the concept list {str(path)!r}: {error}. It is a text file with one concept per line."
            ) from error
        return ConceptSpace.of(str(path), (line for line in lines if not line.startswith("#")))

    @staticmethod
    def english() -> ConceptSpace:
        """3,000 English nouns for concrete things, most frequent first; see ``tools/english_words.py``."""
        return replace(ConceptSpace.from_file(Path(__file__).with_name("english.txt")), name="english")

    def without(self, names: Iterable[str]) -> ConceptSpace:
        """The space minus names that the tokenizer could not tell from ``names`` (case and spacing do not count)."""
        gone = {normalised(n) for n in names_of(names, "without")}
        return ConceptSpace(self.name, tuple(c for c in self.candidates if normalised(c) not in gone))

    def require(self, n: int) -> ConceptSpace:
        if len(self.candidates) < n:
            raise BadRequest(
                f"the concept space {self.name!r} has {len(self.candidates)} candidates after exclusions; at least {n} needed."
            )
        return self


def distances(target: Tensor, candidates: Tensor, metric: str) -> Tensor:
    """(n,) distances of candidates (n, L, d) to the target (L, d); both are flattened to L d numbers, as officially.

    ``metric``: "cosine" (paper) or "l2" (official code).
    """
    x, m = target.flatten().double(), candidates.flatten(1).double()
    return 1 - torch.nn.functional.cosine_similarity(m, x[None]) if metric == "cosine" else (m - x).norm(dim=1)


def smallest(distance: Tensor, k: int) -> Tensor:
    """Indices of the k smallest entries, smallest first; ties by index."""
    return torch.sort(distance, stable=True).indices[:k]
