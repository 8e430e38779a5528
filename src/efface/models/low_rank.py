"""A student whose selected linear layers are ``W + up down``: what LoRA trains, on any model of the contract."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .base import DiffusionModel
from .select import Select


class LowRank(nn.Module):
    """``W -> W + up down``; ``up`` (out, r) starts at zero, so the student starts as the model."""

    def __init__(self, weight: Tensor, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        out, d = weight.shape
        # Kaiming-uniform with a = sqrt(5), the initialisation of the LoRA paper's code: bound 1 / sqrt(d).
        down = (torch.rand((rank, d), generator=rng) * 2 - 1) / d**0.5
        self.down = nn.Parameter(down.to(weight.device), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(out, rank, device=weight.device), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def low_rank_student(
    model: DiffusionModel, select: Select, rank: int, rng: torch.Generator, start: Mapping[str, Tensor] | None = None
) -> DiffusionModel:
    """A twin whose selected weights carry trainable factors; pass :func:`factors` to the training loop as its selection.

    ``start``: values of the selected weights by name (an edit made before); default: the model's own.
    """
    student = model.student(select)
    for name, p in student.weights(select).items():
        if start is not None:
            p.data = start[name].to(p)
        module = student.network.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
        parametrize.register_parametrization(module, "weight", LowRank(p.detach(), rank, rng))
    return student


def factors(name: str) -> bool:
    """Selects the factors of a low-rank student, and nothing else."""
    return name.endswith((".parametrizations.weight.0.up", ".parametrizations.weight.0.down"))


def trained_factors(student: DiffusionModel) -> dict[str, tuple[Tensor, Tensor]]:
    """``{weight name: (up (out, r), down (r, d))}``, detached, on the CPU."""
    found = {n: p.detach().cpu() for n, p in student.weights(factors).items()}
    names = {n.partition(".parametrizations.")[0] for n in found}
    part = ".parametrizations.weight.0."
    return {f"{n}.weight": (found[f"{n}{part}up"], found[f"{n}{part}down"]) for n in sorted(names)}
