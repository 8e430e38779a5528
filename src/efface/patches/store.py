"""Patch files: one safetensors file, tensors named ``delta.<checkpoint name>``, the card as JSON in the header.

Writing goes to a temporary file in the same folder, is flushed to disk and renamed, so a full disk or a killed process
leaves what was there before. Reading trusts nothing: every byte is checked against the file's seal, sizes are checked before
tensors are made, pickles are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import BadFile
from ..io.files import atomic_write
from .card import PatchCard
from .seal import BLANK, KEY, check_seal, seal

FORMAT = "efface-patch"
FORMAT_VERSION = 2
"""2: cards may have ``measured``, files have a seal. 1 is read as well."""
SEALED_SINCE = 2
PREFIX = "delta."


def write(path: Path, deltas: Mapping[str, Tensor], card: PatchCard) -> None:
    """Write a patch. Raises BadFile when the place cannot be written."""
    facts = {"format": FORMAT, "format_version": str(FORMAT_VERSION), KEY: BLANK}
    header = {**facts, "card": json.dumps(card.json(), sort_keys=True)}
    tensors = {PREFIX + n: d.contiguous() for n, d in deltas.items()}

    def filled(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=header)
        seal(temporary)

    atomic_write(path, filled)


def read(path: Path) -> tuple[dict[str, Tensor], PatchCard]:
    """Read a patch, bit for bit. Raises BadFile for anything that is not a whole, well-formed efface patch, and for one whose
    bytes are not those that were written. Files of older versions have no seal, so that of them only the form is checked."""
    if not path.is_file():
        raise BadFile(f"there is no file {str(path)!r}.")
    if is_pickle(path):
        raise BadFile(f"{str(path)!r} is a pickle; pickles can run code and are not read. Ask its author for a safetensors file.")
    sealed = check_seal(path)
    try:
        with safe_open(path, framework="pt") as f:
            header: dict[str, Any] = f.metadata() or {}
            if header.get("format") != FORMAT:
                raise BadFile(
                    f"{str(path)!r} is a safetensors file but not an efface patch (its header has no format {FORMAT!r})."
                )
            version = int(header.get("format_version", "0"))
            if version > FORMAT_VERSION:
                raise BadFile(f"{str(path)!r} was written by a newer efface (format {version}); upgrade efface.")
            if version >= SEALED_SINCE and not sealed:
                raise BadFile(f"{str(path)!r} has lost its seal ({KEY}); it is damaged, or another program has written it again.")
            card = card_of(header["card"], path)
            names = list(f.keys())
            foreign = [n for n in names if not n.startswith(PREFIX)]
            if foreign:
                raise BadFile(f"{str(path)!r} holds a tensor {foreign[0]!r} that no patch has.")
            deltas = {n.removeprefix(PREFIX): f.get_tensor(n) for n in names}
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadFile(f"{str(path)!r} is truncated or not a safetensors patch ({error}). Get it again.") from error
    bad = [n for n, d in deltas.items() if d.dtype != torch.float32 or not bool(torch.isfinite(d).all())]
    if bad:
        raise BadFile(f"{str(path)!r}: {bad[0]} holds non-finite or non-float32 values; the file is damaged or hostile.")
    return deltas, card


def card_of(text: str, path: Path) -> PatchCard:
    """A card from its JSON. Raises BadFile for anything else."""
    try:
        return PatchCard.from_json(json.loads(text))
    except (BadFile, ValueError, RecursionError) as error:
        raise BadFile(f"{str(path)!r} has no readable card: {error}") from error


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle or a zip of pickles does."""
    with open(path, "rb") as f:
        return f.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
