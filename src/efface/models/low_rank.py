"""A student whose selected linear layers are ``W + up down``: what LoRA trains, on any model of the contract."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import BadOption
from .base import DiffusionModel
from .select import Select, in_checkpoint


class LowRank(nn.Module):
    """``W -> W + up down``; ``up`` (out, r) starts at zero, so the student starts as the model; ``down`` (r, d) is normal with
    standard deviation 1 / r."""

    def __init__(self, weight: Tensor, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        out, d = weight.shape
        # The initialisation of diffusers' LoRA layers, for which published learning rates are meant. The LoRA paper's own,
        # uniform within 1 / sqrt(d), is sqrt(3 d) / rank times smaller: 48 times at rank 1 on SD 1.x.
        down = torch.randn((rank, d), generator=rng) / rank
        self.down = nn.Parameter(down.to(weight.device), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(out, rank, device=weight.device), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def low_rank_student(
    model: DiffusionModel, select: Select, rank: int, rng: torch.Generator, start: Mapping[str, Tensor] | None = None
) -> DiffusionModel:
    """A twin whose selected weights carry trainable factors; pass :func:`factors` to the training loop as its selection.

    ``start``: values of the selected weights by name (an edit made before); default: the model's own. Raises BadOption for
    changes of the rows of the text alone (:mod:`efface.models.text_rows`).
    """
    if rows := [n for n in model.weights(select) if not in_checkpoint(n)]:
        raise BadOption(f"{rows[0]} is trained as a whole and has no low-rank factors; choose rank=0, or other weights to train.")
    student = model.student(select)
    for name, p in student.weights(select).items():
        if start is not None:
            p.data = start[name].to(p)
        module = student.network.get_submodule(name.removeprefix(f"{student.part}.").removesuffix(".weight"))
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
