"""Patches as files of other tools, and files of other tools as patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.load import load_model
from ..patches import Patch
from ..patches.export import export as export_patch
from ..patches.foreign import import_patch as read_foreign
from .erase import request_for


def export(
    model: Any, patch: Patch, path: str | Path, *, to: str, rank: int = 0, tolerance: float | None = None, half: bool = False
) -> dict[str, Any]:
    """Write the patch in a format that other tools read; see :func:`efface.patches.export.export`."""
    return export_patch(patch, load_model(model), path, to, rank=rank, tolerance=tolerance, half=half)


def import_patch(model: Any, source: str | Path, *, targets: Sequence[str], name: str = "imported") -> Patch:
    """Somebody else's erasure as a patch; see :func:`efface.patches.foreign.import_patch`."""
    model = load_model(model)
    return read_foreign(model, source, targets=request_for(model, targets).targets if len(targets) else (), name=name)
