"""Several processes as one run: every process draws the same batch and works on its own rows, and
gradients are averaged.

The processes are started by ``torchrun`` or ``accelerate launch``, which set RANK, WORLD_SIZE and
where to meet. Without them there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import BadOption

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside this context, the process belongs to the group that its launcher announced. Without a
    launcher nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: ``cuda`` becomes the GPU that the launcher gave to it."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def size() -> int:
    """How many processes work on this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def share(rows: Sequence[T]) -> Sequence[T]:
    """This process's rows of a batch that every process drew alike: adjacent rows, equally many in
    each process.

    Raises BadOption where the batch cannot be divided evenly, because unequal parts would not
    average to the batch's mean.
    """
    n, world = len(rows), size()
    if n % world:
        raise BadOption(f"a batch of {n} cannot be divided among {world} processes; choose --set batch={-(-n // world) * world}.")
    return rows[rank() * (n // world) : (rank() + 1) * (n // world)]


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over the processes, in one exchange. Without tensors nothing
    is exchanged."""
    parts = list(tensors)
    if size() == 1 or not parts:
        return
    flat = torch.cat([t.detach().reshape(-1) for t in parts])
    dist.all_reduce(flat)
    flat /= size()
    for t, mean in zip(parts, flat.split([t.numel() for t in parts]), strict=True):
        t.copy_(mean.reshape(t.shape))


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if size() == 1:
        return flag
    told = torch.tensor([float(flag)], device=device)
    dist.all_reduce(told)
    return bool(told > 0)
