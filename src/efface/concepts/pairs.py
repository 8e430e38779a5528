"""Pairs of wordings: what a target is called, and what should be drawn in its place."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import BadFile


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """``[[unsafe, safe], ...]`` from a JSON file, in order, doubles left out. Raises BadFile for anything else."""
    path = Path(path)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} could not be read as JSON: {error}.") from error
    if not isinstance(found, list) or not found:
        raise BadFile(f'{path} must hold a list of pairs, such as [["a naked man", "a man wearing clothes"]].')
    for i, pair in enumerate(found):
        strings = isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) for s in pair)
        if not strings or not pair[0].strip():
            raise BadFile(f"{path}: entry {i} is {pair!r}, not a pair of strings of which the first says something.")
    return list(dict.fromkeys((unsafe, safe) for unsafe, safe in found))
