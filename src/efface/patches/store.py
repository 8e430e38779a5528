"""Patch files: one safetensors file, tensors named ``delta.<checkpoint name>``, the card as JSON in the header.

Writing goes to a temporary file in the same folder, is flushed to disk and renamed, so a full disk or a killed process
leaves what was there before. Reading trusts nothing: sizes are checked before tensors are made, pickles are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..concepts.request import EraseRequest
from ..errors import BadFile
from ..io.files import atomic_write
from .card import PatchCard

FORMAT = "efface-patch"
FORMAT_VERSION = 1
PREFIX = "delta."


def write(path: Path, deltas: Mapping[str, Tensor], card: PatchCard) -> None:
    """Write a patch. Raises BadFile when the place cannot be written."""
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "card": json.dumps(asdict(card), sort_keys=True)}
    tensors = {PREFIX + n: d.contiguous() for n, d in deltas.items()}
    atomic_write(path, lambda p: save_file(tensors, p, metadata=header))


def read(path: Path) -> tuple[dict[str, Tensor], PatchCard]:
    """Read a patch, bit for bit. Raises BadFile for anything that is not a whole, well-formed efface patch."""
    if not path.is_file():
        raise BadFile(f"there is no file {str(path)!r}.")
    with open(path, "rb") as f:
        head = f.read(2)
    if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise BadFile(f"{str(path)!r} is a pickle; pickles can run code and are not read. Ask its author for a safetensors file.")
    try:
        with safe_open(path, framework="pt") as f:
            header: dict[str, Any] = f.metadata() or {}
            if header.get("format") != FORMAT:
                raise BadFile(
                    f"{str(path)!r} is a safetensors file but not an efface patch (its header has no format {FORMAT!r})."
                )
            if int(header.get("format_version", "0")) > FORMAT_VERSION:
                raise BadFile(f"{str(path)!r} was written by a newer efface (format {header['format_version']}); upgrade efface.")
            raw = json.loads(header["card"])
            card = PatchCard(**{**raw, "request": EraseRequest.from_json(raw["request"])})
            names = list(f.keys())
            foreign = [n for n in names if not n.startswith(PREFIX)]
            if foreign:
                raise BadFile(f"{str(path)!r} holds a tensor {foreign[0]!r} that no patch has.")
            deltas = {n.removeprefix(PREFIX): f.get_tensor(n) for n in names}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{str(path)!r} is truncated or not a safetensors patch ({error}). Get it again.") from error
    bad = [n for n, d in deltas.items() if d.dtype != torch.float32 or not bool(torch.isfinite(d).all())]
    if bad:
        raise BadFile(f"{str(path)!r}: {bad[0]} holds non-finite or non-float32 values; the file is damaged or hostile.")
    return deltas, card
