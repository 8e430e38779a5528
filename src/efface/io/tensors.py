"""Files of tensors that other people made: nothing in them is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import BadFile

PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def read_tensors(path: Path) -> Any:
    """What a ``.safetensors`` file or a pickle holds, on the CPU; a pickle is read with ``weights_only``. Raises BadFile."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True) if path.suffix in PICKLES else load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        raise BadFile(f"{str(path)!r} could not be read: {first_line(error)}") from error
    except Exception as error:  # pickle's own errors, and whatever a hostile file provokes
        raise BadFile(f"{str(path)!r} holds more than tensors ({type(error).__name__}); it was not executed.") from error


def first_line(error: BaseException) -> str:
    """Of what an error says; its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
