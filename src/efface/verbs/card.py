"""A folder that can be published: the patch with its measurements, exports, the page about it, and the records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..concepts.request import names_of
from ..errors import BadFile, BadOption, UnknownName
from ..models.load import load_model
from ..patches import Patch
from ..patches.export import FORMATS
from ..patches.export import export as export_patch
from ..reporting import Publication, write_model_card
from ..reporting.model_card import FILES, PATCH, published


def card(
    patch: Patch,
    evaluation: str | Path,
    *,
    out: str | Path,
    attacks: Sequence[str | Path] = (),
    model: Any = None,
    exports: Sequence[str] = (),
    base_model: str = "",
    licence: str = "",
    pictures: bool = True,
) -> dict[str, Any]:
    """Write the folder ``out`` with the patch, README.md in the Hub's form, evaluation results, records and ``exports``.

    evaluation, attacks: folders of :func:`efface.evaluate` and :func:`efface.attack` on this very patch. The patch in the folder
    carries their numbers on its card, and so does every export; its change is the same. ``exports``: formats of
    :func:`efface.export`, which need ``model``. ``base_model``, ``licence``: what the Hub calls them, where efface cannot know.
    The folder is there whole or not at all. Raises BadFile for records of another patch, BadOption, UnknownName, WrongBaseModel.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> summary = efface.evaluate("mini", patch, out="rabbit", profile="smoke", trivial=False)
    >>> facts = efface.card(patch, "rabbit", out="no-rabbit")
    >>> from pathlib import Path
    >>> Path("no-rabbit", "README.md").is_file()
    True

    """
    out, exports = Path(out), names_of(exports, "exports")
    facts = Publication(base_model, licence, tuple(exports), pictures)
    facts.of(patch)
    for to in exports:
        if to not in FORMATS:
            raise UnknownName("export format", to, FORMATS)
    if exports and model is None:
        raise BadOption("an export is written from the base model: give --model, or leave --export out.")
    if out.exists():
        raise BadFile(f"{out} is there already; choose a folder that is not.")
    network = load_model(model) if exports else None
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        tried = [Path(a) for a in ([attacks] if isinstance(attacks, str | Path) else attacks)]
        told = write_model_card(Path(evaluation), temporary, patch, facts, tried)
        base = {**told.card.base, "name": base_model or published(str(told.card.base.get("name")))}
        told = replace(told, card=replace(told.card, base=base))
        told.save(temporary / PATCH)
        written = {to: export_patch(told, network, temporary / FILES[to], to) for to in exports if network is not None}
        os.replace(temporary, out)
    except OSError as error:
        raise BadFile(f"cannot write {out}: {error}. Nothing was changed; free space or choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    residuals = {to: {**w, "path": str(out / FILES[to])} for to, w in written.items()}
    return {"out": str(out), "patch": str(out / PATCH), "exports": residuals, "measured": dict(told.card.measured)}
