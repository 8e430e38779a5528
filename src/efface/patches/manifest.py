"""``efface_card.json``, the card of an exported folder: the whole card, and the digest of every file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..io.files import file_digest
from .card import PatchCard
from .patch import Patch
from .seal import BLANK, KEY, check_seal, seal

NAME = "efface_card.json"
LOADABLE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".py", ".json")
"""Endings of files that a reader of the folder might load in place of those that were written."""


def write_manifest(folder: Path, patch: Patch) -> None:
    """Write the card of a folder whose other files are complete."""
    files = {str(p.relative_to(folder).as_posix()): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    facts = {**patch.card.json(pictures=False), "efface_change": patch.digest(), "efface_files": files, KEY: BLANK}
    path = folder / NAME
    path.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")
    seal(path)


def read_manifest(folder: Path) -> tuple[PatchCard, dict[str, Any]]:
    """The card of a folder, and what else its file says. Raises BadFile where a byte of it was changed or it is no such card."""
    path = folder / NAME
    if not path.is_file():
        raise BadFile(f"the folder {folder} has no {NAME}: efface did not write it.")
    check_seal(path)
    try:
        raw = json.loads(path.read_text("utf-8"))
        more = {key: raw.pop(key) for key in list(raw) if key.startswith("efface_")}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise BadFile(f"{path} is damaged ({error}).") from error
    return PatchCard.from_json(raw), more


def changed_files(folder: Path, files: dict[str, str]) -> list[str]:
    """What is wrong with the files of a folder, one sentence each: missing or changed, or loadable and not from efface."""
    if not isinstance(files, dict) or not files:
        return ["the card lists no files"]
    found = []
    for name, digest in sorted(files.items()):
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.append(f"{name} lies outside the folder")
        elif path.is_symlink() and not path.exists():
            found.append(f"{name} leads nowhere")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif file_digest(path) != digest:
            found.append(f"{name} was changed")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files and name != NAME and path.suffix in LOADABLE:
            found.append(f"{name} was added, and a reader may load it")
    return found
