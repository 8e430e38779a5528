"""What a change does to every concept of a space: by paired images, and by paired noise predictions, which need no image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..concepts.sensitive import sensitive
from ..equations.steps import normalised_ascent
from ..errors import EvaluationError
from ..models.base import DiffusionModel
from ..patches import Patch
from ..training.latents import LatentPool
from .cache import BATCH, base_images, quantised
from .driver import Judge
from .profiles import Profile

BLOCK = 256
"""Concepts whose noise predictions are kept at a time."""


@dataclass(frozen=True)
class Scan:
    """One system's images of n names, s seeds each, as numbers.

    ``text``: (n, s) 100 max(cos, 0) of image and name, NaN where an image could not be scored; ``shown``: (n, s) whether the
    report detector names the concept, False throughout for names that it does not know; ``valid``: (n, s) whether it is an image
    of something, as far as can be said without the name; ``embedded``: (n, s, d) image embeddings of unit length.
    """

    names: tuple[str, ...]
    text: Tensor
    shown: Tensor
    valid: Tensor
    embedded: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What is kept on disk; ``Scan(names, **tensors)`` is the scan again."""
        return {"text": self.text, "shown": self.shown, "valid": self.valid, "embedded": self.embedded}


def scan_cases(names: Sequence[str], seeds: Sequence[int], guidance: float) -> list[Case]:
    """Bare names as prompts, seeds inside names."""
    return [Case("scan", name, name, seed, guidance, sensitive([name])) for name in names for seed in seeds]


def case_images(
    model: DiffusionModel, patch: Patch | None, cases: Sequence[Case], profile: Profile, on_image: Callable[[int], None]
) -> Tensor:
    """Images of the cases by the patched model; without a patch by the base model, from the cache where they are there."""
    if patch is None:
        return base_images(model, cases, profile, on_image)
    parts = []
    with patch.applied(model):
        for start in range(0, len(cases), BATCH):
            parts.append(quantised(model.sample(cases[start : start + BATCH], profile.steps, batch=BATCH)))
            on_image(min(start + BATCH, len(cases)))
    return torch.cat(parts)


def text_scores(images: Tensor, names: Sequence[str], seeds: int, judge: Judge) -> Tensor:
    """(n, s) image-text score of ``seeds`` images per name; NaN where an image could not be scored."""
    prompts = [name for name in names for _ in range(seeds)]
    found = [float("nan") if t is None else t for t in judge.clip_t(images, prompts)]
    return torch.tensor(found).reshape(len(names), seeds)


def scored(images: Tensor, names: Sequence[str], seeds: int, judge: Judge) -> Scan:
    """The numbers of ``seeds`` images per name."""
    prompts = [name for name in names for _ in range(seeds)]
    shown = torch.zeros(len(prompts), dtype=torch.bool)
    valid = torch.isfinite(images).flatten(1).all(1)
    known = [i for i, name in enumerate(prompts) if name in judge.names]
    if known:
        found = judge.detect(images[known], [prompts[i] for i in known])
        valid[known] = torch.tensor([reason is None for _, _, reason in found])
        shown[known] = torch.tensor(
            [reason is None and label == prompts[i] for i, (label, _, reason) in zip(known, found, strict=True)]
        )
    shape = (len(names), seeds)
    return Scan(
        tuple(names),
        text_scores(images, names, seeds, judge),
        shown.reshape(shape),
        valid.reshape(shape),
        judge.embed_images(images).reshape(*shape, -1),
    )


def drops(names: Sequence[str], base: Tensor, changed: Tensor) -> Tensor:
    """(n, s) fall of the image-text score on the same name and seed: the damage ``CLIP(x, c) - CLIP(x', c)``.

    A changed image that cannot be scored counts as the lowest score there is, 0: an image that a change makes invalid is damage,
    not a gap in the table. Raises EvaluationError where the base model's image could not be scored."""
    broken = [n for n, row in zip(names, base, strict=True) if not bool(torch.isfinite(row).all())]
    if broken:
        raise EvaluationError(f"the base model's own image of {broken[0]!r} cannot be scored; leave the name out.")
    return base - changed.nan_to_num(0.0)


@dataclass(frozen=True)
class Probe:
    """Where noise predictions are compared: ``trajectories`` of the frozen model times ``levels`` of its ``steps`` grid levels.

    ``own``: every concept on latents of its own; otherwise all on the neutral prompt's, which a whole vocabulary can share.
    """

    trajectories: int = 2
    levels: int = 4
    steps: int = 12
    guidance: float = 3.0
    own: bool = True

    @property
    def places(self) -> list[tuple[int, int]]:
        """(trajectory, index of the level) of every pair; levels are spread evenly over the grid, both ends left out."""
        grid = [round((i + 1) * self.steps / (self.levels + 1)) for i in range(self.levels)]
        return [(j, k) for j in range(self.trajectories) for k in grid]

    def pool(self, model: DiffusionModel, seed: int) -> LatentPool:
        """Where the latents come from; still empty."""
        return LatentPool(
            model,
            steps=self.steps,
            trajectories=self.trajectories,
            guidance=self.guidance,
            solver="ddim",
            seed=seed,
            batch=1,
        )

    def walked(self, model: DiffusionModel) -> int:
        """Evaluations of the walks of one concept."""
        return self.trajectories * model.branches(self.guidance) * (self.steps - 1)

    def cost(self, model: DiffusionModel, names: int) -> int:
        """Evaluations for one change: the walks, and two predictions per name and pair."""
        return (names if self.own else 1) * self.walked(model) + 2 * names * self.pairs

    @property
    def pairs(self) -> int:
        return self.trajectories * self.levels


def prediction_changes(model: DiffusionModel, patch: Patch, names: Sequence[str], probe: Probe, seed: int) -> Tensor:
    """(n, pairs) mean squared difference ``|eps'(z_t, t, c) - eps(z_t, t, c)|^2`` of the patched and the base model.

    z_t comes from guided trajectories of the base model for the concept itself or for the neutral prompt; the same ``seed``
    gives the same latents for every patch. Cost: :meth:`Probe.cost`.
    """
    pool = probe.pool(model, seed)
    if not probe.own:
        pool.fill([""])
    found = []
    for start in range(0, len(names), BLOCK):
        part = names[start : start + BLOCK]
        pool.fill(part if probe.own else [])
        with torch.no_grad():
            before = _predictions(model, part, pool, probe, nullcontext())
            after = _predictions(model, part, pool, probe, patch.applied(model))
        found.append((after - before).square().flatten(2).mean(-1))
        for name in part if probe.own else ():
            del pool.latents[name]  # a vocabulary of latents does not fit
    return torch.cat(found)


def _predictions(
    model: DiffusionModel, names: Sequence[str], pool: LatentPool, probe: Probe, change: AbstractContextManager[Any]
) -> Tensor:
    """(n, pairs, C, h, w) noise predictions of every name at every pair, in the changed model."""
    found = []
    with change:
        c = model.encode(names)
        for j, k in probe.places:
            z = torch.stack([pool.latents[name if probe.own else ""][j, k] for name in names])
            rows = [slice(i, i + BATCH) for i in range(0, len(names), BATCH)]
            found.append(torch.cat([model.eps(z[r], pool.grid[k], c[r]) for r in rows]).cpu())
    return torch.stack(found, dim=1)


def climb_cost(model: DiffusionModel, probe: Probe, ascents: int) -> int:
    """Evaluations of :func:`climbed`: the walks, and two predictions per pair for every embedding on the way."""
    return probe.walked(model) + 2 * probe.pairs * (ascents + 1)


def climbed(
    model: DiffusionModel, patch: Patch, target: str, probe: Probe, seed: int, *, ascents: int, rate: float
) -> dict[str, Tensor]:
    """The continuous search on a fixed erased model: an embedding that starts at the target's and takes ``ascents`` steps of
    length ``rate |p|`` up the damage ``|eps'(z_t, t, p) - eps(z_t, t, p)|^2``, on the target's own latents.

    ``embedding``: (L, d) where it ends; ``damage``: (ascents + 1,) mean squared difference at the start and after each step.
    Cost: :func:`climb_cost`.
    """
    pool = probe.pool(model, seed)
    pool.fill([target])
    z = torch.stack([pool.latents[target][j, k] for j, k in probe.places])
    t = torch.tensor([pool.grid[k] for _, k in probe.places], device=z.device)
    start = model.encode([target])
    p, found = start.tokens.clone(), []
    for i in range(ascents + 1):
        p = p.detach().requires_grad_(i < ascents)
        c = replace(start, tokens=p).repeat(len(z))
        with torch.set_grad_enabled(i < ascents):
            before = model.eps(z, t, c)
            with patch.applied(model):
                after = model.eps(z, t, c)
                damage = (after - before).square().mean()
                if i < ascents:
                    (gradient,) = torch.autograd.grad(damage, p)
        found.append(float(damage.detach()))
        if i < ascents:
            p = normalised_ascent(p.detach(), gradient, rate)
    return {"embedding": p.detach()[0].cpu().contiguous(), "damage": torch.tensor(found)}
