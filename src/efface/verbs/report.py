"""The report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..reporting import DEFAULTS, Limits, write_report


def report(
    folder: str | Path,
    out: str | Path,
    *,
    attacks: Sequence[str | Path] = (),
    detection_limit: float = DEFAULTS.detection,
    keep_limit: float = DEFAULTS.keep,
    invalid_limit: float = DEFAULTS.invalid,
) -> Path:
    """One self-contained HTML page from an evaluation folder.

    ``attacks``: folders of attacks on what was evaluated, which the verdict then rests on too. The limits are shares: of cases
    in which the target may come back, of preservation of near concepts, and of invalid images.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> summary = efface.evaluate("mini", patch, out="rabbit", profile="smoke", trivial=False)
    >>> efface.report("rabbit", "rabbit.html").name
    'rabbit.html'

    """
    limits = Limits(detection_limit, keep_limit, invalid_limit)
    folders = [attacks] if isinstance(attacks, str | Path) else attacks
    return write_report(Path(folder), Path(out), [Path(a) for a in folders], limits)
