"""Candidates: the names of a concept space that a search may choose from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..concepts.spaces import ConceptSpace, distances, smallest
from ..equations.simplex import spread
from ..models.base import DiffusionModel


def concept_space(name: str, model: DiffusionModel) -> ConceptSpace:
    """``auto``: the model's own closed world where it has one, else 3,000 common English words; ``english``, ``world`` and
    ``vocabulary`` (whole words of the tokenizer) by name; else a file."""
    if name == "auto":
        name = "world" if model.concept_names else "english"
    if name == "world":
        return ConceptSpace.of("world", model.concept_names).require(1)
    if name == "vocabulary":
        return ConceptSpace.of("vocabulary", model.vocabulary())
    if name == "english":
        return ConceptSpace.english()
    return ConceptSpace.from_file(name)


def check_space(name: str) -> None:
    """Raises BadFile for a name that is no space and no file, before a model is loaded for it."""
    if name not in ("auto", "world", "vocabulary", "english"):
        ConceptSpace.from_file(name)


def candidates(
    model: DiffusionModel,
    space_name: str,
    targets: Sequence[str],
    *,
    exclude_targets: bool,
    nearest: int,
    metric: str,
    centres: int = 0,
    apart: float = 0.0,
    always: Sequence[str] = (),
) -> list[tuple[str, ...]]:
    """The searched names of every target: the ``nearest`` of the space (see :func:`concept_space`), then ``always``.

    ``apart``: names closer than this to a target are left out (near-synonyms). ``centres`` > 0 thins the nearest to so many that
    spread over their range of distances, as the official code does with one-dimensional k-means.
    """
    space = concept_space(space_name, model)
    space = (space.without(targets) if exclude_targets else space).require(1)
    rows, parts = model.encode(targets).tokens, []
    for i in range(0, len(space.candidates), 512):  # in parts: a whole vocabulary of embeddings is 11 GB on SD 1.x
        tokens = model.encode(space.candidates[i : i + 512]).tokens
        parts.append(torch.stack([distances(row, tokens, metric) for row in rows]))
    found = []
    for distance in torch.cat(parts, dim=1).cpu():  # looked at one by one below
        order = [i for i in smallest(distance, len(distance)).tolist() if distance[i] >= apart][:nearest]
        if centres:
            order = [order[i] for i in spread(distance[order], centres).tolist()]
        near = [space.candidates[i] for i in order]
        found.append(ConceptSpace.of(space.name, [*near, *always]).require(1).candidates)
    return found
