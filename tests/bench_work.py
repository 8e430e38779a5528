"""What cells compute in the tests of the engine: arithmetic, and faults on demand. Workers import it by name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from efface.plans.cells import Cell
from efface.plans.records import Store


def cells(n: int, **how: Any) -> list[Cell]:
    """n erasures and, for each, an evaluation that needs it."""
    made = []
    for i in range(n):
        first = Cell("erase", {"number": i}, {"told": f"number {i}", **how})
        made += [first, Cell("evaluate", {"number": i, "of": first.key}, {"told": f"number {i}", **how}, (first.key,))]
    return made


def perform(cell: Cell, store: Store) -> dict[str, Any]:
    fault, marks = cell.how.get("fault", ""), store.folder / "marks"
    if fault and cell.inputs["number"] == 1 and cell.kind == "erase":
        marks.mkdir(exist_ok=True)
        tried = len(list(marks.iterdir()))
        (marks / str(tried)).touch()
        if fault == "dies" or (fault == "dies once" and not tried):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raises" or (fault == "raises once" and not tried):
            raise ZeroDivisionError("of the test")
        if fault == "nan":
            return {"value": float("nan")}
    time.sleep(cell.how.get("sleep", 0.0))
    return {"value": cell.inputs["number"] ** 2, "kind": cell.kind}
