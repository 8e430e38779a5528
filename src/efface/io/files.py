"""Writing files so that nothing is ever half written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import BadFile


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` to a temporary name beside ``path``, then rename. Failures leave ``path`` untouched and no litter."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # safetensors writes files that only their owner can read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise BadFile(f"cannot write {path}: {error}. Nothing was changed; free space or choose another place.") from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what could not be made
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """:func:`atomic_write` of UTF-8 text."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, "utf-8")

    atomic_write(path, write)
