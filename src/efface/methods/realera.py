"""RealEra, reimplemented from its abstract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from ..concepts.request import EraseRequest
from ..edits import facts, folded
from ..equations.closed_form import F64, Moments, gram_of_maps, neighbour_moments, solved, worst_neighbour
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.low_rank import factors, low_rank_student, trained_factors
from ..patches import Patch
from ..preservation.candidates import concept_space
from ..training.loop import Run, training
from .base import Method, option

TEMPLATES = ("{}", "a photo of a {}")


@dataclass(frozen=True)
class Neighbourhood:
    """One row of a target's encoding, and what lies around it."""

    target: str
    e: Tensor
    """(d,) the row."""
    goal: Tensor
    """(d,) the anchor's row."""
    names: Tensor
    """(n, d) the same row of the names nearest to the target."""
    across: Tensor | None
    """(k, d) main directions of the neighbourhood; None stands for every direction."""
    worst: list[Tensor] = field(default_factory=list)
    """The adversarial neighbours found so far, (d,) each."""


@dataclass(frozen=True, kw_only=True)
class RealEra(Method):
    """Erase the target together with its neighbourhood of embeddings, and keep what lies beyond.
    Reimplemented from the abstract.

    Objective::

        neighbours    x = rho (s u0 + sqrt(1 - s^2) u),    s uniform on [low, high],    e = rho u0
        closed form   min  alpha E|W' x - W e*|^2 + |W' e - W e*|^2 + beta E|W' v - W v|^2
                           + gamma sum |W' p - W p|^2 + lam |W' - W|_F^2
        LoRA          min  | eps'(z_t, x) - eps(z_t, e*) |^2
                           + beta_n | eps'(z_t, v) - eps(z_t, v) |^2
                           + gamma_n | eps'(z_t, "") - eps(z_t, "") |^2

    e is a row of the target's encoding: the text encoder's vector at one position; e* is the same
    row of the anchor. x is a random neighbour of e, of the same length rho and with cosine s to it.
    v is a vector of that length orthogonal to e, which lies beyond the target. p are the preserve
    set and the names of ``space`` whose cosine with every target is below ``low``. W are the keys
    and values of cross-attention. The LoRA is trained where ``steps`` is above 0, on top of the
    closed form.

    Variants: ``mode`` says where the direction u of a neighbour lies.

    - "isotropic": anywhere. The neighbours then shrink every direction alike.
    - "subspace": in the span of the ``directions`` main differences between e and its nearest names
      in ``space``.
    - "vocab": neighbours are the names of ``space`` themselves whose cosine with e lies in [low,
      high].
    - "adversarial" (ours): there are no random neighbours. ``rounds`` times, the neighbour in the
      span of "subspace" is added by which the edit so far comes nearest to the target
      (closed_form.worst_neighbour), with weight alpha / ``rounds`` each. The LoRA draws from the
      neighbours that were found.

    The expectations of the first two are exact (closed_form.neighbour_moments), so the closed form
    draws no samples.

    Reference: Liu et al., arXiv:2410.09140 (abstract only; no code exists).

    Deviations: the abstract says that random perturbations within a distance and a range of cosines
    are erased too, that unrelated embeddings keep their place, and that both hold for a closed form
    of cross-attention and for a LoRA on the noise prediction. All else is ours: every number below;
    one vector e for each word row and each end-token row of two templates; the distance bound,
    which equals ``low`` here because the norm is kept (D1 = rho sqrt(2 - 2 low)); v orthogonal to
    e; weights that do not depend on a number of samples; padding that is mapped without neighbours;
    an empty prompt that cannot move; the shape of both losses; one LoRA for all targets. Do not
    compare the results with the paper's tables.

    Cost: no UNet evaluations without ``steps``. With them, 2 x ``sampling_steps`` x ``images`` for
    each target, then 6 for each step, three of them with a backward pass.
    """

    name: ClassVar[str] = "realera"
    summary: ClassVar[str] = "erase the target and its neighbourhood of embeddings (reimplemented from the abstract)"
    paper: ClassVar[str] = "Liu et al., arXiv:2410.09140 (abstract only)"
    presets: ClassVar = {
        "paper": {},
        "closed-form": {"steps": 0},
        "mini": {"steps": 0, "gamma": 1.0},
        "tiny": {"steps": 3, "images": 2, "sampling_steps": 2, "directions": 2},
    }

    mode: str = option(
        "subspace", "where neighbours of the target lie", "ours", choices=("isotropic", "subspace", "vocab", "adversarial")
    )
    rounds: int = option(8, "adversarial neighbours found for each row", "ours", low=1, needs="mode=adversarial")
    low: float = option(0.8, "smallest cosine of a neighbour with the target (S1)", "ours; unknown", low=0.0)
    high: float = option(0.98, "largest cosine of a neighbour with the target (S2)", "ours; unknown", low=0.0)
    alpha: float = option(1.0, "weight of the neighbourhood in the closed form", "ours; unknown", low=0.0)
    beta: float = option(1.0, "weight of what lies beyond the target, in the closed form", "ours; unknown", low=0.0)
    gamma: float = option(0.1, "weight of the preserve set and of distant names", "ours; unknown", low=1e-12)
    lam: float = option(0.5, "ridge towards the original weights", "ours; UCE", low=1e-12)
    space: str = option("auto", "concept space to find neighbours in: auto, vocabulary, or a file", "ours")
    nearest: int = option(
        64, "names around the target that define the subspace", "ours", low=1, needs="mode=subspace|adversarial"
    )
    directions: int = option(32, "number of main directions of the subspace", "ours", low=1, needs="mode=subspace|adversarial")
    steps: int = option(300, "weight updates of the LoRA, 0 for the closed form alone", "ours; unknown", low=0)
    rank: int = option(4, "rank of the LoRA", "ours; unknown", low=1, needs="steps")
    lr: float = option(1e-4, "Adam learning rate", "ours; unknown", low=0.0, needs="steps")
    beta_n: float = option(
        1.0, "weight of what lies beyond the target, in the LoRA's loss", "ours; unknown", low=0.0, needs="steps"
    )
    gamma_n: float = option(1.0, "weight of the empty prompt, in the LoRA's loss", "ours; unknown", low=0.0, needs="steps")
    images: int = option(8, "images for each target that z_t is made from", "ours; MACE", low=1, needs="steps")
    sampling_steps: int = option(30, "DDIM steps for an image", "ours; MACE", low=1, needs="steps")
    guidance: float = option(7.5, "guidance scale for an image", "ours; MACE", needs="steps")
    seed: int = option(0, "seed of images, neighbours and LoRA training", "ours")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        pictures = len(request.targets) * self.images * model.branches(self.guidance) * self.sampling_steps
        return float(pictures + 6 * self.steps) if self.steps else 0.0

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        spent, base = model.evals.snapshot(), model.weights(model.reads())
        null = model.encode([""]).rows("all")
        moments, hoods = self._moments(model, request)
        log: dict[str, Any] = {"neighbours": {t: len(_own(hoods, t).names) for t in request.targets}}
        if self.mode == "adversarial":
            moments, log["missed"] = self._hardened(base, moments, hoods, null)
        edit = solved(moments, self.lam, null)
        edited = folded(base, edit)
        if self.steps:
            edited = self._aligned(model, request, edited, hoods, run or Run())
        original = {n: w.detach().float().cpu() for n, w in base.items()}
        card = self.card(model, request, spent, edit=facts(edit, model, request.targets), **log)
        return Patch.between(original, edited, card)

    @torch.no_grad()
    def _moments(self, model: DiffusionModel, request: EraseRequest) -> tuple[Moments, list[Neighbourhood]]:
        """Moments of all rows without the adversarial neighbours, and the neighbourhood of every
        row.

        Each target's own word comes first among its neighbourhoods.
        """
        pairs = [(e, f) for e in request.targets for f in TEMPLATES]
        goal_of = {f: f.format(request.anchor).strip() for f in TEMPLATES}
        source, goals = model.encode([f.format(e) for e, f in pairs]), model.encode([goal_of[f] for _, f in pairs])
        x, y = source.aligned(goals, "last..end")
        kept = (*request.preserve, *self._outside(model, request))
        q = model.encode(kept).rows("last+eos") if kept else x[:0]
        total = Moments.of(x, y, torch.ones(len(x)), q, torch.full((len(q),), self.gamma))
        eye, hoods = torch.eye(x.shape[1], dtype=F64), []
        for i, (target, template) in enumerate(pairs):
            rows, goal_rows = source[i].aligned(goals[i], "last+eos")
            for position, (e, e_goal) in enumerate(zip(rows.double(), goal_rows.double(), strict=True)):
                names = self._near(model, request, template, position, e)
                hood = Neighbourhood(target, e, e_goal, names, self._main(names - e) if self._narrow else None)
                hoods.append(hood)
                beyond = self.beta * (e @ e * eye - torch.outer(e, e)) / (len(e) - 1)
                total = total + Moments(torch.zeros_like(eye), torch.zeros_like(eye), beyond) + self._around(hood)
        return total, hoods

    @property
    def _narrow(self) -> bool:
        """Whether neighbours lie in the span of the main differences."""
        return self.mode in ("subspace", "adversarial")

    def _around(self, hood: Neighbourhood) -> Moments:
        """Moments of the random neighbours of one row."""
        e, names = hood.e, hood.names
        nothing = torch.zeros(len(e), len(e), dtype=F64)
        if self.mode == "adversarial":
            return Moments(nothing, nothing, nothing)
        if self.mode == "vocab":
            weight = torch.full((len(names),), self.alpha / max(1, len(names)))
            return Moments.of(names, hood.goal.expand_as(names), weight, names[:0], weight[:0])
        gram, shift = neighbour_moments(e, hood.goal, self.low, self.high, hood.across)
        return Moments(self.alpha * gram, self.alpha * shift, nothing)

    def _hardened(
        self, base: Mapping[str, Tensor], total: Moments, hoods: Sequence[Neighbourhood], null: Tensor
    ) -> tuple[Moments, list[float]]:
        """The moments with the adversarial neighbours and, for each round, the mean share by which
        these miss the targets."""
        s = gram_of_maps(w.detach().cpu() for w in base.values())
        weight, missed = torch.full((len(hoods),), self.alpha / self.rounds), []
        for _ in range(self.rounds):
            p = solved(total, self.lam, null).transform
            found = [worst_neighbour(h.e, p, s, self.low, self.high, h.across) for h in hoods]
            missed.append(sum(share for _, share in found) / len(found))
            for h, (x, _) in zip(hoods, found, strict=True):
                h.worst.append(x)
            x = torch.stack([x for x, _ in found])
            total = total + Moments.of(x, torch.stack([h.goal for h in hoods]), weight, x[:0], weight[:0])
        return total, missed

    def _outside(self, model: DiffusionModel, request: EraseRequest) -> list[str]:
        """Names of the concept space that are a neighbour of no target."""
        names = concept_space(self.space, model).without((*request.targets, *request.preserve)).candidates
        words, targets = (model.encode(n).last_token().cpu().double() for n in (names, request.targets))
        closest = torch.nn.functional.normalize(words, dim=1) @ torch.nn.functional.normalize(targets, dim=1).T
        return [n for n, cosine in zip(names, closest.max(1).values.tolist(), strict=True) if cosine < self.low]

    def _near(self, model: DiffusionModel, request: EraseRequest, template: str, position: int, e: Tensor) -> Tensor:
        """(n, d) the same row of the names nearest to ``e``, or with "vocab" of the names that are
        its neighbours.

        ``position`` is 0 for the row of the word and 1 for that of the end token.
        """
        if self.mode == "isotropic":
            return e[None][:0]
        names = concept_space(self.space, model).without((*request.targets, *request.preserve)).candidates
        words = model.encode([template.format(name) for name in names]).rows("last+eos")[position::2].double()
        cosines = cosine_similarity(words, e[None])
        if self.mode == "vocab":
            return words[(cosines >= self.low) & (cosines <= self.high)]
        return words[torch.sort(cosines, descending=True, stable=True).indices[: self.nearest]]

    def _main(self, differences: Tensor) -> Tensor:
        """(k, d) principal directions of the differences; k is at most ``directions``."""
        return torch.linalg.svd(differences, full_matrices=False).Vh[: self.directions]

    def _aligned(
        self, model: DiffusionModel, request: EraseRequest, start: dict[str, Tensor], hoods: Sequence[Neighbourhood], run: Run
    ) -> dict[str, Tensor]:
        """The closed form's weights plus a LoRA trained on noise predictions."""
        rng, n = torch.Generator().manual_seed(self.seed), len(request.targets)
        c, goal, null = model.encode(request.targets), model.encode([request.anchor]), model.encode([""])
        pictures = model.denoise(c.repeat(self.images), model.noise(n * self.images, rng), self.sampling_steps, self.guidance)
        words = [_own(hoods, target) for target in request.targets]
        student = low_rank_student(model, model.reads(), self.rank, rng, start=start)
        for step in training(student, factors, steps=self.steps, lr=self.lr, seed=self.seed, run=run):
            i = step.randint(n)
            inside, outside = self._pair(words[i], step.rng)
            # Student and teacher see: the neighbour (teacher: the anchor), something beyond, the null prompt.
            shown = Cond.cat([replaced(c[i], inside), replaced(c[i], outside), null])
            taught = Cond.cat([goal, shown[1], shown[2]])
            t = model.schedule.numbered([step.randint(model.schedule.size)] * 3, model.device)
            k = i * self.images + step.randint(self.images)
            z_t = model.schedule.noised(pictures[k : k + 1], model.noise(1, step.rng), t[:1]).expand(3, -1, -1, -1)
            with torch.no_grad():
                right = model.predict(z_t, t, taught)
            made = student.predict(z_t, t, shown)
            step.minimize(
                erase=mse_loss(made[0], right[0]),
                beyond=self.beta_n * mse_loss(made[1], right[1]),
                null=self.gamma_n * mse_loss(made[2], right[2]),
            )
        return {name: start[name] + up @ down for name, (up, down) in trained_factors(student).items()}

    def _pair(self, hood: Neighbourhood, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One neighbour of the row and one vector of the same length orthogonal to it, (d,) each."""
        e = hood.e
        rho, u0 = e.norm(), e / e.norm()

        def across(directions: Tensor | None) -> Tensor:
            g = torch.randn(len(e) if directions is None else len(directions), generator=rng, dtype=F64)
            v = g if directions is None else g @ directions
            v = v - (v @ u0) * u0
            return v / v.norm()

        outside = rho * across(None)
        if self.mode in ("vocab", "adversarial"):
            known = hood.names if self.mode == "vocab" else hood.worst
            return known[int(torch.randint(len(known), (1,), generator=rng))] if len(known) else e, outside
        s = self.low + (self.high - self.low) * torch.rand((), generator=rng, dtype=F64)
        return rho * (s * u0 + (1 - s * s).sqrt() * across(hood.across)), outside


def _own(hoods: Sequence[Neighbourhood], target: str) -> Neighbourhood:
    """The neighbourhood of the target's own word, without a template."""
    return next(h for h in hoods if h.target == target)


def replaced(c: Cond, row: Tensor) -> Cond:
    """One encoding with another vector in the place of its last word."""
    tokens = c.tokens.clone()
    tokens[0, int(c.last[0])] = row.to(tokens)
    return replace(c, tokens=tokens)
