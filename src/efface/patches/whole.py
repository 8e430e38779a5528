"""A patch with the whole model around it: a diffusers pipeline folder, or one checkpoint file under the original names.

Both are written whole or not at all, and read again from the files before they count: every weight of the model must be there,
and the change of the weights must be the patch's.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import BadFile, BadOption
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from ..models.select import in_checkpoint
from .header import header, tensor_norms
from .manifest import write_manifest
from .original import from_original, to_original
from .patch import Patch, residual
from .seal import seal

MOST = 0.1
"""Share of a patch's norm that the rounding of half precision may take before a warning says so."""
SINGLE = "single-file"


def write_folder(patch: Patch, model: DiffusionModel, path: Path) -> tuple[float, list[str]]:
    """A whole folder or none: written beside its place, read again and renamed. Returns the residual of the change that the files
    hold, and the components that the model's source names and lacks."""
    if path.exists():
        raise BadFile(f"{path} is there already; choose a folder that is not.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        with patch.applied(model):
            missing = model.save_folder(temporary)
        off = _folder_residual(patch, model, temporary)
        write_manifest(temporary, patch)
        os.replace(temporary, path)
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error}. Nothing was changed; free space or choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if missing:
        told = f"the model's source names {', '.join(missing)} and does not have it; the folder is without."
        warnings.warn(told, UserWarning, stacklevel=3)
    return off, missing


def write_single_file(patch: Patch, model: DiffusionModel, path: Path) -> tuple[float, int]:
    """One checkpoint file, card in its header. Returns the residual of the change that it holds, and the number of its tensors.
    Raises BadOption for a model that has no such file (:func:`to_original`), or where what was written is read otherwise."""
    with patch.applied(model):
        tensors = to_original(model)
    told = header(patch, SINGLE, tensor_norms(tensors))
    off = float("nan")

    def write(temporary: Path) -> None:
        nonlocal off
        save_file(tensors, temporary, metadata=told)
        seal(temporary)
        off = _single_residual(patch, model, load_file(temporary))

    atomic_write(path, write)
    return off, len(tensors)


def _single_residual(patch: Patch, model: DiffusionModel, tensors: Mapping[str, Tensor]) -> float:
    """From what diffusers' own converters make of the file. What the patch does not change, the VAE included, must be there bit
    for bit."""
    read = from_original(tensors, model)
    live = {n: w for n, w in model.weights(in_checkpoint).items() if n not in patch.deltas}
    unchanged = {**live, **{f"vae.{n}": w for n, w in vars(model)["vae"].state_dict().items()}}
    for name, w in unchanged.items():
        if name not in read or not torch.equal(read[name].reshape(w.shape), w.detach().cpu()):
            raise BadOption(f"the file that was written has another {name}; it was removed. Load the model anew and report this.")
    return _read_residual(patch, model, read, "file")


def _folder_residual(patch: Patch, model: DiffusionModel, folder: Path) -> float:
    live = model.weights(in_checkpoint)
    read: dict[str, Tensor] = {}
    for part in sorted({n.partition(".")[0] for n in live}):
        for file in sorted((folder / part).glob("*.safetensors")):
            with safe_open(file, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118  # safe_open is no mapping
                    name = f"{part}.{key.removeprefix('text_model.')}"
                    read[name] = f.get_tensor(key) if name in patch.deltas else torch.empty(0)
    return _read_residual(patch, model, read, "folder")


def _read_residual(patch: Patch, model: DiffusionModel, read: Mapping[str, Tensor], what: str) -> float:
    """``|(W_read - W) - patch| / |patch|`` over the tensors of the patch. Raises BadOption where a weight of the model was not
    read, or another change was; in half precision, where rounding takes part of it, a warning says how much."""
    live = model.weights(in_checkpoint)
    found = {n: read[n].float().reshape(live[n].shape) - live[n].detach().cpu().float() for n in patch.deltas if n in read}
    lacking = sorted(live.keys() - read.keys())
    off = residual(patch, found)
    half = model.info.get("dtype") != "float32"
    if lacking or (off > MOST and not half):
        wrong = f"lacks {lacking[0]}" if lacking else f"differs from the patch by {off:.2g} of its norm"
        raise BadOption(f"the {what} that was written {wrong}; it was removed. Load the model anew and report this.")
    if off > MOST:
        warnings.warn(
            f"the {what} is in {model.info.get('dtype')}, whose rounding changes the patch by {100 * off:.2g} % of its norm. "
            "Load the model with --dtype float32 to export it whole.",
            UserWarning,
            stacklevel=5,
        )
    return off
