"""The seal of a file: a sha256 in its own header that covers every byte of it, so that a changed byte is found.

A file cannot contain its own digest. The seal is the sha256 of the file in which its 64 hexadecimal digits are zeros. It is kept
as ``efface_sha256`` in the header of a safetensors file, or in the JSON of a folder's card, which lists the digests of the
folder's files. A seal shows that the file is as efface wrote it. It does not show who wrote it, because anybody can compute it
again: that is what a signature is for (:mod:`efface.patches.signature`).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ..errors import BadFile

KEY = "efface_sha256"
BLANK = "0" * 64
"""What stands in the place of the digest while it is computed."""
PLACE = re.compile(rb'"efface_sha256":\s*"([0-9a-f]{64})"')
LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads at most."""
CHUNK = 1 << 20


def seal(path: Path) -> str:
    """Write the digest into a file that has BLANK in its place, and return it. Raises BadFile for a file without one place."""
    place = _place(path)
    if place is None:
        raise BadFile(f"{path} has no place for a seal.")
    digest = _digest(path, place)
    with open(path, "r+b") as f:
        f.seek(place)
        f.write(digest.encode())
    return digest


def check_seal(path: Path) -> str:
    """The seal of a file that is as it was written; "" for a file that has none.

    Raises BadFile where a byte was changed, and for a header that is longer than the file. Cost: one reading of the file.
    """
    place = _place(path)
    if place is None:
        return ""
    with open(path, "rb") as f:
        f.seek(place)
        kept = f.read(64).decode()
    if _digest(path, place) != kept:
        raise BadFile(
            f"{str(path)!r} is not as it was written: its content does not have the sha256 in its header ({kept[:12]}...). "
            "It is damaged, or somebody changed it. Get it again."
        )
    return kept


def header_bytes(path: Path) -> bytes:
    """The header of a safetensors file as it stands in the file. Raises BadFile for a length that cannot be one."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise BadFile(
                f"{str(path)!r} could not be read: it is truncated or no safetensors file (a header of {length} bytes)."
            )
        return f.read(length)


def _place(path: Path) -> int | None:
    """Where in the file the digits of the seal begin; None without a seal. Inside a text of the header the pattern cannot stand,
    because quotes are escaped there. Raises BadFile for more than one seal."""
    text, start = (path.read_bytes(), 0) if path.suffix == ".json" else (header_bytes(path), 8)
    found = [match.start(1) for match in PLACE.finditer(text)]
    if len(found) > 1:
        raise BadFile(f"{str(path)!r} has {len(found)} seals in its header; efface writes one.")
    return start + found[0] if found else None


def _digest(path: Path, place: int) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        h.update(f.read(place))
        f.seek(place + 64)
        h.update(BLANK.encode())
        while part := f.read(CHUNK):
            h.update(part)
    return h.hexdigest()
