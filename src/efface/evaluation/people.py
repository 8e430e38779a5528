"""What people see in the images of an evaluation, beside what its detector said. Pure but for reading a file."""

from __future__ import annotations

import csv
import io
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..concepts.request import normalised
from ..equations.statistics import wilson
from ..errors import BadFile
from .records import Row, image_of

COLUMNS = ("image", "label")
BROKEN = "broken"
"""The label of an image that cannot be judged: noise, one colour, a heap of colours."""
SHEET = "labels.csv"

Labels = dict[tuple[str, str], str]
"""(entrant, case) -> what somebody saw, in words."""


def sheet(folder: Path, rows: Sequence[Row]) -> str:
    """A table of all images of an evaluation that lie in its folder, in random order and without labels: who fills it in sees
    neither the prompt nor the entrant's kind, and what the detector said least of all."""
    names = [image_of(r.entrant, r.case_id) for r in rows]
    there = [name for name in names if (folder / name).is_file()]
    random.Random(0).shuffle(there)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *((name, "") for name in there)])
    return text.getvalue()


def read_labels(path: Path, rows: Sequence[Row]) -> Labels:
    """The labels of a table with the columns ``image`` (a path that ends in ENTRANT/CASE.png) and ``label``, without the empty
    ones. Raises BadFile for an image that the evaluation does not have, one that is named twice, and a table without a label."""
    try:
        lines = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"cannot read the labels {str(path)!r}: {error}.") from error
    if not lines or tuple(cell.strip().lower() for cell in lines[0]) != COLUMNS:
        raise BadFile(f"{path} must begin with the line {','.join(COLUMNS)}; efface evaluate --keep-images writes such a table.")
    known, found, seen = {(r.entrant, r.case_id) for r in rows}, Labels(), set[tuple[str, str]]()
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(COLUMNS):
            raise BadFile(f"{path}, line {number}: {len(line)} columns instead of {len(COLUMNS)}.")
        image = Path(line[0].strip().replace("\\", "/"))
        key = (image.parent.name, image.stem)
        if key not in known:
            raise BadFile(f"{path}, line {number}: the evaluation has no image {line[0]!r}.")
        if key in seen:
            raise BadFile(f"{path}, line {number}: the image {line[0]!r} stands there twice.")
        seen.add(key)
        if line[1].strip():
            found[key] = line[1].strip()
    if not found:
        raise BadFile(f"{path} holds no label yet: write what each image shows in the column {COLUMNS[1]!r}.")
    return found


def _bare(name: str) -> str:
    """A name without its article: people write "a rabbit"."""
    return re.sub(r"^(a|an|the) ", "", normalised(name))


def agreement(rows: Sequence[Row], labels: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """How often people and the detector agree on whether an image shows the concept of its case.

    ``sensitivity``: of the images in which people see the concept, those in which the detector does. ``specificity``: of those
    in which people do not, those in which the detector does not. ``kappa`` is Cohen's: agreement beyond chance, None where one of
    the two always says the same. ``entrants``: entrant -> axis -> how often people and how often the detector see the concept in
    the same images. An image that is broken to people, or invalid to the judge, does not show the concept.
    """
    pairs, told = list[tuple[bool, bool]](), list[dict[str, Any]]()
    by_axis: dict[str, dict[str, list[tuple[bool, bool]]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        label = labels.get((r.entrant, r.case_id))
        if label is None:
            continue
        pair = (_bare(label) == _bare(r.concept), r.hit)
        pairs.append(pair)
        by_axis[r.entrant][r.axis].append(pair)
        if pair[0] != pair[1]:
            named = r.detected if r.valid else f"{BROKEN} ({r.invalid_reason})"
            told.append({"image": image_of(r.entrant, r.case_id), "concept": r.concept, "people": label, "detector": named})
    n = len(pairs)
    yes, no = [d for p, d in pairs if p], [d for p, d in pairs if not p]
    agreed = sum(p == d for p, d in pairs)
    chance = sum(sum(p == v for p, _ in pairs) * sum(d == v for _, d in pairs) for v in (True, False)) / n**2
    return {
        "labelled": n,
        "unlabelled": len(rows) - n,
        "agreement": wilson(agreed, n).json(),
        "kappa": (agreed / n - chance) / (1 - chance) if chance < 1 else None,
        "sensitivity": wilson(sum(yes), len(yes)).json(),
        "specificity": wilson(sum(not d for d in no), len(no)).json(),
        "entrants": {
            entrant: {
                axis: {name: wilson(sum(p[i] for p in some), len(some)).json() for i, name in enumerate(("people", "detector"))}
                for axis, some in axes.items()
            }
            for entrant, axes in by_axis.items()
        },
        "disagreements": told,
    }
