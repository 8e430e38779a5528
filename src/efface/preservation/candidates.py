"""Candidates: the names of a concept space that a search may choose from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..concepts.spaces import ConceptSpace, distances, smallest
from ..equations.simplex import spread
from ..errors import BadOption
from ..models.base import DiffusionModel


def concept_space(name: str, model: DiffusionModel) -> ConceptSpace:
    """The concept space of a name, or of a file with one name on each line.

    "world" is the list of names that the model brings along, "english" 3,000 common English nouns,
    and "vocabulary" the whole words of the tokenizer. "auto" is "world" where the model has one,
    else "english".
    """
    if name == "auto":
        name = "world" if model.concept_names else "english"
    if name == "world":
        return ConceptSpace.of("world", model.concept_names).require(1)
    if name == "vocabulary":
        return ConceptSpace.of("vocabulary", model.vocabulary())
    if name == "english":
        return ConceptSpace.english()
    return ConceptSpace.from_file(name)


def prior_names(name: str, model: DiffusionModel, targets: Sequence[str]) -> tuple[str, ...]:
    """What a prior preserves: the names of a concept space without the targets. Raises BadOption where none is left."""
    names = concept_space(name, model).without(targets).candidates
    if not names:
        raise BadOption(f"prior={name} names nothing but targets: nothing is left to preserve. Use prior=none.")
    return names


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
    """The candidates of every target: the ``nearest`` names of the space (see
    :func:`concept_space`), then the names ``always``.

    ``apart`` leaves out names that are closer than this to a target, such as near-synonyms.
    ``centres`` > 0 thins the nearest to that number, spread over their range of distances, as the
    official code does with one-dimensional k-means.
    """
    space = concept_space(space_name, model)
    space = (space.without(targets) if exclude_targets else space).require(1)
    rows, parts = model.encode(targets).tokens, []
    for i in range(0, len(space.candidates), 512):  # in parts, because a whole vocabulary of embeddings takes 11 GB on SD 1.x
        tokens = model.encode(space.candidates[i : i + 512]).tokens
        parts.append(torch.stack([distances(row, tokens, metric) for row in rows]))
    found = []
    for distance in torch.cat(parts, dim=1).cpu():  # on the CPU, because the entries are read one by one below
        order = [i for i in smallest(distance, len(distance)).tolist() if distance[i] >= apart][:nearest]
        if centres:
            order = [order[i] for i in spread(distance[order], centres).tolist()]
        near = [space.candidates[i] for i in order]
        found.append(ConceptSpace.of(space.name, [*near, *always]).require(1).candidates)
    return found
