"""Reading the parts of a diffusers pipeline from a folder or the Hub, and putting a pipeline together again from parts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import BadFile, BadOption

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Whole = Callable[[Mapping[str, Any]], tuple[Any, list[str]]]
"""Own parts -> the whole pipeline with them, and the components that the model's own folder names and lacks."""


def named_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise BadOption(f"unknown dtype {name!r}; use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def loaded(kind: Any, source: str | Path, part: str, dtype: str, device: str) -> Any:
    """One part of a diffusers folder or Hub id. Raises OSError or ValueError where it cannot be read, BadFile where weights of it
    are missing: the libraries fill them with random numbers and only log it."""
    if not hasattr(kind, "named_parameters"):
        return kind.from_pretrained(source, subfolder=part)
    precision = {"dtype" if kind.__module__.startswith("transformers.") else "torch_dtype": named_dtype(dtype)}
    local = Path(source) / part
    variants = [only_variant(local)] if local.is_dir() else [None, "fp16"]
    for variant in variants:
        try:
            found = kind.from_pretrained(source, subfolder=part, variant=variant, output_loading_info=True, **precision)
            break
        except OSError:
            if variant == variants[-1]:
                raise
    module, facts = found
    missing = sorted(n for n in facts["missing_keys"] if "position_ids" not in n)
    if missing:
        raise BadFile(
            f"the {part} of {str(source)!r} lacks {missing[0]} ({len(missing)} such weights), which would be random numbers. It "
            "was saved with an adapter loaded, or not wholly: save it again after pipe.unload_lora_weights()."
        )
    return module.to(device)


def only_variant(folder: Path) -> str | None:
    """``fp16``, say, where the folder holds weights of that variant and none without one."""
    name = r"[^.]+?(?:\.([^.]+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    found = {m[1] for f in folder.iterdir() if (m := re.fullmatch(name, f.name))}
    return None if not found or None in found else "fp16" if "fp16" in found else sorted(found)[0]


def rebuilt(pipe: Any, parts: Mapping[str, Any]) -> Any:
    """A pipeline of the same class with these parts, and whatever else ``pipe`` has."""
    wanted = inspect.signature(type(pipe).__init__).parameters
    facts = {name: pipe.config[name] for name in wanted if name in pipe.config and name not in pipe.components}
    quiet = {"add_watermarker": False} if "add_watermarker" in wanted else {}
    return type(pipe)(**{**facts, **pipe.components, **parts, **quiet})


def completed(stock: Any, source: str | Path, parts: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The pipeline of a folder or Hub id with these parts instead of its own; and the components that it names and lacks."""
    import diffusers

    try:
        index = stock.load_config(source)
        stock = getattr(diffusers, str(index.get("_class_name")), stock)  # several pipelines can be of one family
        named = [n for n, value in index.items() if isinstance(value, (list, tuple)) and value[0] is not None]
        missing = [n for n in named if Path(source).is_dir() and not (Path(source) / n).is_dir()]
        more = {"add_watermarker": False} if "add_watermarker" in inspect.signature(stock.__init__).parameters else {}
        return stock.from_pretrained(source, **parts, **dict.fromkeys(missing), **more), missing
    except (OSError, ValueError) as error:
        raise BadFile(
            f"the other components of {str(source)!r} cannot be read ({str(error).splitlines()[0]}); without them the folder "
            "would not be whole. Get the whole model, or export a LoRA."
        ) from error
