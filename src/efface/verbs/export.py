"""Patches as files of other tools, and files of other tools as patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BadFile, BadOption, UnknownName
from ..io.files import check_writable
from ..models.load import load_model
from ..patches import Patch
from ..patches.export import FORMATS, WHOLE
from ..patches.export import export as export_patch
from ..patches.foreign import import_patch as read_foreign
from .erase import request_for


def check_export(to: str, path: str | Path, half: bool) -> None:
    """Raises UnknownName, BadOption or BadFile for what no model could change about a request."""
    if to not in FORMATS:
        raise UnknownName("export format", to, FORMATS)
    if to in WHOLE and half:
        raise BadOption(f"{to}: the whole model is written in the precision it was loaded in (--dtype); leave half out.")
    if to == "folder" and Path(path).exists():
        raise BadFile(f"{path} is there already; choose a folder that is not.")
    check_writable(Path(path))


def export(
    model: Any, patch: Patch, path: str | Path, *, to: str, rank: int = 0, tolerance: float | None = None, half: bool = False
) -> dict[str, Any]:
    """Write the patch in a format that other tools read; see :func:`efface.patches.export.export`. What the format does
    not take is said before the model is loaded.

    >>> import efface
    >>> patch = efface.erase("tiny", "uce", targets="cat")
    >>> efface.export("tiny", patch, "no-cat.safetensors", to="diffusers")["residual"] < 0.001
    True

    """
    check_export(to, path, half)
    model = load_model(model)
    model.require("an export", ("unrounded",))
    return export_patch(patch, model, path, to, rank=rank, tolerance=tolerance, half=half)


def import_patch(model: Any, source: str | Path, *, targets: Sequence[str], name: str = "imported") -> Patch:
    """Somebody else's erasure as a patch; see :func:`efface.patches.foreign.import_patch`. Raises BadFile, too, for a file that
    does not change what the model predicts for a target: it would pass for perfect preservation.

    >>> import efface
    >>> patch = efface.erase("tiny", "uce", targets="cat")
    >>> written = efface.export("tiny", patch, "no-cat.safetensors", to="diffusers")
    >>> efface.import_patch("tiny", "no-cat.safetensors", targets="cat", name="somebody's")
    <Patch: somebody's of 'cat' from 'tiny', ... tensors, norm ...>

    """
    model = load_model(model)
    model.check_plain()
    model.require("an import", ("unrounded",))
    patch = read_foreign(model, source, targets=request_for(model, targets).targets if len(targets) else (), name=name)
    unmoved = patch.without_effect(model)
    if unmoved:
        raise BadFile(
            f"{source} changes {len(patch.deltas)} tensors of {model.name!r} and nothing of what it predicts for "
            f"{', '.join(unmoved)}. It erases something else, or its change is below the precision ({model.info.get('dtype')})."
        )
    return patch
