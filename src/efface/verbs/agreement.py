"""What people see in the images of an evaluation, beside what its detector said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..evaluation.people import SHEET, read_labels
from ..evaluation.people import agreement as between
from ..evaluation.records import read_rows
from ..io.files import check_writable, write_text


def agreement(folder: str | Path, labels: str | Path | None = None, *, out: str | Path | None = None) -> dict[str, Any]:
    """Compare the labels that people gave to the images of an evaluation with the detector's, and count both.

    ``folder``: of ``efface.evaluate(..., keep_images=True)``, which writes the table ``labels.csv`` with one line for each image,
    in random order. Somebody writes into its column ``label`` what the image shows, a name, or "broken". ``labels``: that table,
    where it lies elsewhere. ``out``: a JSON file. Nothing is drawn. Raises BadFile for a folder without an evaluation and for a
    table that does not belong to it.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> _ = efface.evaluate("mini", patch, out="seen", profile="smoke", trivial=False, keep_images=True)
    >>> table = Path("seen/labels.csv")
    >>> _ = table.write_text(table.read_text().replace(".png,", ".png,a rabbit"))  # of somebody who sees rabbits everywhere
    >>> efface.agreement("seen")["entrants"]["uce"]["direct"]["people"]["value"]
    1.0

    """
    folder = Path(folder)
    rows = read_rows(folder)
    if not rows:
        raise BadFile(f"{str(folder)!r} holds no evaluation; give the folder that efface evaluate --keep-images wrote.")
    if out is not None:
        check_writable(Path(out))
    found = between(rows, read_labels(Path(labels) if labels is not None else folder / SHEET, rows))
    if out is not None:
        write_text(Path(out), json.dumps(found, indent=1, allow_nan=False))
    return found
