"""Published prompt lists as cases of an evaluation or an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..concepts.prompts import Case
from ..concepts.request import CATEGORY, OBJECT, normalised
from ..errors import BadOption, PromptTooLong, UnknownName
from ..evaluation.driver import Judge
from ..evaluation.judges import DetectorJudge
from ..evaluation.suite import Suite
from ..lists import Prompt, PromptList, load_prompts
from ..models.base import DiffusionModel

Lists = str | PromptList | Sequence[str | PromptList]


def lists_of(given: Lists) -> list[PromptList]:
    """The lists of sources or of lists that were read already. Raises what :func:`efface.load_prompts` raises."""
    many = [given] if isinstance(given, (str, PromptList)) else list(given)
    return [load_prompts(one) if isinstance(one, str) else one for one in many]


def list_beside(folder: Path, source: str) -> PromptList:
    """The list of a source; a file that lies in the folder is found from anywhere. A file is read once, until it changes."""
    path = folder / source.removeprefix("file:")
    if not source.startswith("file:") or not path.is_file():
        return _read(source, 0)
    return _read(f"file:{path}", path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(source: str, changed: int) -> PromptList:
    return load_prompts(source)


def measured_alone(
    lists: Sequence[PromptList], model: DiffusionModel, near: Sequence[str], far: Sequence[str], kind: str
) -> bool:
    """Whether the lists and the target by its name are all that is measured: of a model without a world nothing is known that
    should stay, and nothing was named."""
    return bool(lists) and model.world is None and not near and not far and kind in (OBJECT, CATEGORY)


def with_lists(
    suite: Suite, lists: Sequence[PromptList], model: DiffusionModel, guidance: float, *, allowed: bool, rows: int | None = None
) -> Suite:
    """The suite with the prompts of the lists, each with its own seed and, where the list has one, its own guidance scale.

    A prompt belongs to the target that the list names beside it, else to the only target; a list that is about many concepts and
    does not say which prompt is whose gives those that name a target. Prompts of other named concepts are on the axis
    ``listed_kept``. A prompt that the model would cut is left out and counted. ``rows``: at most so many prompts of each list,
    spread evenly over it. ``allowed``: whether the user said that a sensitive list is meant.

    Raises BadOption for a sensitive list without that, for captions, and for lists of which nothing is left.
    """
    if rows is not None and rows < 1:
        raise BadOption(f"rows={rows!r} leaves nothing of a list; give at least 1.")
    cases: list[Case] = []
    facts: list[dict[str, Any]] = []
    hidden = suite.sensitive or any(found.sensitive for found in lists)
    for found in lists:
        if hidden and not allowed:
            raise BadOption(
                f"{found.source} is sensitive, or its target is: its images are not for chance onlookers. Say that you mean it "
                "with --sensitive (sensitive=True). Images are blurred before they are written, and prompts are in no record."
            )
        if found.captions:
            raise BadOption(
                f"{found.source} has captions of photographs, which ask for no target; no erasure is measured on them."
            )
        mine, other = _belonging(found, suite)
        used = mine if rows is None or rows >= len(mine) else [mine[i * len(mine) // rows] for i in range(rows)]
        fitting = [(c, p) for c, p in used if _reads(model, p.text)]
        cases += [_case(c, p, suite, guidance, hidden) for c, p in fitting]
        facts.append({**found.json(), "of_no_target": other, "asked": len(used), "too_long": len(used) - len(fitting)})
    distinct = tuple({c.id: c for c in cases}.values())
    if not distinct:
        left = f"{sum(f['of_no_target'] for f in facts)} name no target, {sum(f['too_long'] for f in facts)} are too long"
        raise BadOption(f"no prompt of {', '.join(found.source for found in lists)} can be used: {left}.")
    return replace(suite, listed=distinct, lists={"files": facts, "cases": len(distinct)})


def _belonging(found: PromptList, suite: Suite) -> tuple[list[tuple[str, Prompt]], int]:
    """The prompts with what each asks for, and how many ask for nothing that is known. Raises BadOption where a list does not say
    which of several targets is meant, and where what it says fits none."""
    names = {normalised(w): t for t in suite.targets for w in (t, *suite.synonyms.get(t, ()), *suite.members.get(t, ()))}
    kept: list[tuple[str, Prompt]] = []
    other = 0
    for p in found.prompts:
        said = names.get(normalised(p.concept), p.concept) if p.concept else None
        if said is None and (found.by_name or len(suite.targets) > 1):
            text = f" {normalised(p.text)} "
            said = next((t for n, t in names.items() if f" {n} " in text), None)
        elif said is None and not p.control:
            said = suite.targets[0]
        if said is None:
            other += 1
        else:
            kept.append((said, p))
    if not any(said in suite.targets for said, _ in kept):
        concepts = sorted({said for said, _ in kept})
        told = f"its prompts ask for {', '.join(concepts[:5])}" if concepts else "none of its prompts names one"
        raise BadOption(f"{found.source} has no prompt for {', '.join(suite.targets)}: {told}.")
    return kept, other


def _case(concept: str, p: Prompt, suite: Suite, guidance: float, hidden: bool) -> Case:
    axis = "listed" if concept in suite.targets else "listed_kept"
    return Case(axis, concept, p.text, p.seed, guidance if p.guidance is None else p.guidance, hidden)


def _reads(model: DiffusionModel, text: str) -> bool:
    """Whether the model reads the whole prompt."""
    try:
        model.token_ids([text])
    except PromptTooLong:
        return False
    return True


def scored_whole(suite: Suite, judge: Judge) -> Suite:
    """The suite without listed prompts that the judge's scorer would cut; they are counted with those too long for the model.

    Raises UnknownName for a concept that the judge cannot name, BadOption where nothing is left.
    """
    known = set(judge.names)
    for case in suite.listed:
        if case.concept not in known:
            raise UnknownName("concept of the list", case.concept, known, " Remove its rows, or add a detector that names it.")
    scorer = judge.scorer if isinstance(judge, DetectorJudge) else None
    if scorer is None or not suite.listed:
        return suite
    fitting = tuple(c for c in suite.listed if scorer.fits(c.prompt))
    if not fitting:
        raise BadOption("every prompt of the list is too long for the image-text scorer, which would cut it.")
    cut = len(suite.listed) - len(fitting)
    return replace(suite, listed=fitting, lists={**suite.lists, "cases": len(fitting), "too_long_for_scorer": cut})


def told_of(lists: Sequence[PromptList], suite: Suite, note: Callable[[str], None] | None) -> None:
    """Say what was read, what was left out and why, and what is drawn."""
    if note is None:
        return
    for found in lists:
        note(found.told)
    files: Sequence[Mapping[str, Any]] = suite.lists["files"]
    left = [
        (sum(f["too_long"] for f in files), "too long for the model"),
        (sum(f["of_no_target"] for f in files), "of no target"),
    ]
    left.append((int(suite.lists.get("too_long_for_scorer", 0)), "too long for the image-text scorer"))
    parts = [f"{n} are {why}" for n, why in left if n]
    note(f"{len(suite.listed)} prompts of lists are drawn{'; ' if parts else ''}{', '.join(parts)}.")
