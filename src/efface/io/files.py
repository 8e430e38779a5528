"""Writing files so that nothing is ever half written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

from ..errors import BadFile

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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


def check_writable(path: Path) -> None:
    """Raises BadFile where ``path``, a file or a folder that may not be there yet, could not be written: said before hours of
    work and not after. Leaves nothing behind."""
    path = Path(path)
    place = path if path.is_dir() else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        if path.is_file():
            with open(path, "ab"):
                pass
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error}. Choose another place.") from error


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Inside, no other process of efface writes to ``path``. Raises BadFile where one does already.

    The claim is a lock on a file beside ``path``, which the system gives back however the process ends. Without such locks
    (Windows) nothing is claimed.
    """
    if fcntl is None:
        yield
        return
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a")  # noqa: SIM115  # closed below, after the file is gone
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error}. Choose another place.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadFile(f"another run is writing to {path}; wait for it, or choose another place.") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_digest(path: Path) -> str:
    """sha256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """:func:`atomic_write` of UTF-8 text."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, "utf-8")

    atomic_write(path, write)
