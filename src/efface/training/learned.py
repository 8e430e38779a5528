"""Tensors that a method trains beside the model's weights, such as prompts and word embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .processes import average_


def collected(values: Sequence[Tensor], used: Iterable[int]) -> dict[int, Tensor]:
    """Take the gradients that backward passes left on the drawn tensors, averaged over the
    processes, and clear all gradients.

    ``used`` are the indices that the whole batch drew, so that a process without such a row takes
    part with zeros.
    """
    found = {i: values[i].grad if values[i].grad is not None else torch.zeros_like(values[i]) for i in sorted(set(used))}
    average_(found.values())
    for v in values:
        v.grad = None
    return found


class Learned:
    """Trainable float32 tensors, each with an Adam of its own, so that one that was not drawn does
    not drift by momentum.

    Pass it to ``training(carry=...)`` to have it survive an interruption.
    """

    def __init__(self, values: Sequence[Tensor], lr: float, maximize: bool = False) -> None:
        self.values = [v.detach().float().clone().requires_grad_(True) for v in values]
        self.optimizers = [torch.optim.Adam([v], lr=lr, maximize=maximize) for v in self.values]

    def rows(self, indices: Sequence[int]) -> Tensor:
        """(B, ...) the tensors with the given indices, differentiable."""
        return torch.stack([self.values[i] for i in indices])

    def update(self, used: Iterable[int]) -> None:
        """One optimizer step of the drawn tensors on the gradients that backward passes left; see
        :func:`collected`."""
        for i, gradient in collected(self.values, used).items():
            self.values[i].grad = gradient
            self.optimizers[i].step()
            self.values[i].grad = None

    def begin(self, i: int, value: Tensor) -> None:
        """Set tensor i to ``value`` and let its Adam start anew."""
        self.values[i].data.copy_(value)
        self.optimizers[i].state.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"values": [v.detach() for v in self.values], "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for v, kept in zip(self.values, state["values"], strict=True):
            v.data.copy_(kept)
        for o, kept_state in zip(self.optimizers, state["optimizers"], strict=True):
            o.load_state_dict(kept_state)
