"""Which combinations of a parametrised test belong to the fast part: every other one. With several axes each value is in it; of a
single axis every other value is."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest


def chequered(*axes: Collection[Any], ids: Collection[str] | None = None, first: int = 0) -> list[Any]:
    """All combinations of the axes as parameters. Those whose indices add up to an odd number, with ``first`` added, are in the
    slow part. ``ids``: names of the values of a single axis."""
    found = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [list(axis)[i] for axis, i in zip(axes, places, strict=True)]
        marks = [pytest.mark.slow] if (sum(places) + first) % 2 else []
        found.append(pytest.param(*values, marks=marks, id=list(ids)[places[0]] if ids else None))
    return found
