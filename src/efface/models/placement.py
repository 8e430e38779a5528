"""Where the text encoders and the VAE of a model lie, and where they compute, while the network has the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import BadOption

DEVICE, OFFLOAD, CPU = "device", "offload", "cpu"
PLACES = {
    DEVICE: "on the device, beside the network",
    OFFLOAD: "in the computer's memory, and on the device only while one of them computes",
    CPU: "in the computer's memory, where they also compute",
}


def check_place(place: str) -> None:
    if place not in PLACES:
        raise BadOption(f"encoders={place!r} is no place for text encoders and VAE; use one of {', '.join(PLACES)}.")


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the weights of a frozen module are on ``device``; afterwards they are the very tensors that they were before.

    Nothing is copied back, because nothing was changed. A graph that is recorded inside keeps the copies that it was computed
    with, so that gradients flow through the module after its weights have left, and the copies are freed with the graph.
    """
    tensors = [*module.parameters(), *module.buffers()]
    homes = [t.data for t in tensors]
    mine = {id(t) for t in tensors}
    try:
        for t in tensors:
            t.data = copied_to(t.data, device)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach() if id(t) in mine else t, lambda t: t):
            yield
    finally:
        for t, home in zip(tensors, homes, strict=True):
            t.data = home


def copied_to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)
