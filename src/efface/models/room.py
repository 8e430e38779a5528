"""Is there room for a model's weights, and for training them? Asked of the headers of its files, before a byte of the weights is
read."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import BadOption
from .select import Select

GIB = 2**30


def available_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="utf-8") as f:
            lines = dict(line.split(":", 1) for line in f)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def stored_numbers(path: Path, part: str = "") -> int:
    """How many numbers the safetensors files of a model hold: one file, or a folder with one folder per component, of which
    ``part`` names one.

    Of several variants of a component (such as fp16) the smallest counts; files of another format count as nothing.
    """
    if path.is_file():
        return _numbers(path)
    total = 0
    for folder in (p for p in path.iterdir() if p.is_dir() and part in ("", p.name)):
        variants: dict[str, int] = {}
        for file in folder.glob("*.safetensors"):
            variant = ".".join(file.name.split(".")[1:-1]).split("-")[0]  # of a file in parts: fp16-00001-of-00002
            variants[variant] = variants.get(variant, 0) + _numbers(file)
        total += min(variants.values(), default=0)
    return total


def trained_numbers(folder: Path, part: str, select: Select) -> int:
    """How many numbers of a folder's network, its component ``part``, a training selects."""
    numbers: dict[str, int] = {}
    for file in (folder / part).glob("*.safetensors"):
        numbers |= _tensors(file)  # variants hold the same names
    return sum(n for name, n in numbers.items() if select(f"{part}.{name}"))


def _numbers(path: Path) -> int:
    return sum(_tensors(path).values())


def _tensors(path: Path) -> dict[str, int]:
    """Tensors of a safetensors file by name, and how many numbers each holds."""
    try:
        with safe_open(str(path), "pt") as file:
            return {n: torch.Size(file.get_slice(n).get_shape()).numel() for n in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}  # loading says what is wrong with it


def refuse_too_large(path: Path, dtype: torch.dtype, device: str, part: str = "") -> None:
    """Raises BadOption for weights, of the component ``part`` alone where one is named, that are larger than the free memory of
    the device."""
    size = stored_numbers(path, part) * dtype.itemsize
    free = available_bytes(torch.device(device))
    if free is not None and size > free:
        ways = ["Load them in half precision (--dtype bfloat16)"] if dtype == torch.float32 else []
        if not part and torch.device(device).type != "cpu":
            ways.append("leave the text encoders and the VAE in the computer's memory (--encoders offload)")
        told = ", or ".join([*ways, "use a device with more memory"])
        raise BadOption(
            f"the weights of {f'the {part} of ' if part else ''}{str(path)!r} take {size / GIB:.1f} GiB in "
            f"{str(dtype).removeprefix('torch.')}, and {free / GIB:.1f} GiB are free on {device}. {told[0].upper()}{told[1:]}."
        )
