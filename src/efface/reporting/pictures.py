"""Images of the grid as data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
SMALLEST, LARGEST = 96, 192
"""CSS pixels: the miniature's 48-pixel icons are doubled, full-size images are shrunk."""


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int


def picture(images: Path, entrant: str, case_id: str) -> Picture | None:
    """The image of one case; None when it is missing, is no PNG, or its name leads out of ``images``.

    run.json may come from somebody else: an id such as ``../../secret`` must not copy a private file into a page that is
    made to be shared.
    """
    try:
        root = images.resolve()
        path = (root / entrant / f"{case_id}.png").resolve()
        data = path.read_bytes() if path.is_relative_to(root) else b""
    except (OSError, ValueError):  # ValueError: a NUL byte or a lone surrogate in the name
        return None
    if not data.startswith(PNG):
        return None
    native = int.from_bytes(data[16:20], "big")
    return Picture("data:image/png;base64," + base64.b64encode(data).decode(), max(SMALLEST, min(LARGEST, native)))


def embedded_png(encoded: str) -> str | None:
    """A data address of a base64 PNG that a card carries; None for anything else, since cards come from strangers' files."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:
        return None
    return f"data:image/png;base64,{base64.b64encode(raw).decode()}" if raw.startswith(PNG) else None
