"""Unified Concept Editing (UCE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.request import EraseRequest
from ..edits import facts, filtered, pooled_readers, to_patch
from ..equations.closed_form import (
    F64,
    Edit,
    Moments,
    affordable,
    gram_of_maps,
    reached,
    sealed,
    shared_edit,
    weighted_gram,
)
from ..equations.statistics import wilson
from ..errors import BadOption, MethodError
from ..models.base import DiffusionModel
from ..models.cond import POOLED, POSITIONS, Cond
from ..options import refuse_idle
from ..patches import Patch
from ..preservation.candidates import prior_names
from ..training.loop import Run
from .base import Method, option

TEMPLATES = {
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
}
"""The official codes' templates (``add_prompts``), by the kind of the target."""
SEALED = ("{}", "a {}", "the {}", "a photo of a {}", "a picture of a {}", "a {} on a blue background")
PINNED = {"rows": "last..end", "preserve_rows": "all", "preserve_scale": 0.1, "pin": True, "prior": "auto"}
ERASING, DEBIAS = "task=erase|moderate", "task=debias"
BATCH = 16
NEAR_REACH = 0.9
"""The share of ``reach`` from which an alpha counts as the largest that was allowed."""


@dataclass(frozen=True, kw_only=True)
class UCE(Method):
    """Rewrite keys and values so that the target's text vectors act like the anchor's: one exact
    solve, no training.

    Objective::

        min_W'  sum_erase a |W' c - W c_goal|^2 + sum_preserve b |W' c - W c|^2 + lam |W' - W|_F^2

    W are the keys and values of cross-attention. c is a row: the text encoder's vector at one token
    position of a prompt. c_goal is the row that it should act like. All layers share these inputs,
    so the solution is W' = W T with one d x d matrix T (closed_form.shared_edit), where the
    official codes build and invert the same matrix once for each layer.

    Variants: ``task`` says what c_goal is.

    - "erase": the anchor.
    - "moderate": the empty prompt. The equation is the same, and an anchor is refused.
    - "debias": c + alpha (a_1 - a_2) for the two ``attributes``. c is the name that was asked for,
      also where it is a category, whose members have the attributes. alpha is found by bisection,
      always solving from the original weights, until the share of images that show a_1 is
      ``desired``. A round draws 16, 32, 64, ... images with the edit as a text filter. It stops
      when the Wilson interval of the share lies within ``tolerance`` of ``desired`` (done),
      excludes ``desired`` (next alpha), or has ``images`` images (undecided: more images are
      needed, not another alpha). The patch has the alpha that came nearest; where every alpha up to
      ``reach`` misses ``desired`` on the same side, a MethodError says so. The unedited model judges
      which attribute an image shows: the one whose prompt predicts the noise better.

    Options in detail:

    - ``rows`` are the token positions that are edited: "last" (the last word; code of 2025),
      "last+eos", "last..end" (from the last word through end of text and padding, aligned at the
      last word; code of 2023) or "all". ``preserve_rows`` are the same for preserved prompts.
    - ``expand`` adds five templates to every target, those of its ``kind``.
    - ``preserve_empty`` preserves the empty prompt "always", "alone" (where nothing else is
      preserved) or "no". ``preserve_scale=0`` means max(0.1, 1 / n) for n preserved prompts.
    - ``pin`` keeps the empty prompt and the start vector from moving at all, so that guidance keeps
      its second branch.
    - ``prior`` preserves the names of a concept space without the targets, each row with weight
      ``prior_scale``. A weight that fits one model is too small or too large for another, because it
      counts against the number of names and the geometry of the text encoder. ``prior_cost`` says
      instead what the prior may cost: the weight is the largest with which the targets' keys and
      values still come (1 - prior_cost) times as far towards the anchor's as without a prior
      (closed_form.affordable).
    - ``seal`` follows T by a projection after which no embedding reaches what the target's rows in
      six templates span (closed_form.sealed). 0 is off. A large value seals better; a small one
      protects preserved rows, anchors and the empty prompt better. Below about 3, what stayed
      within reach was enough to draw the target on the miniature.
    - ``pooled`` solves the same objective for the pooled text vector, in networks that read one
      beside the tokens. Otherwise the target keeps this second way in (docs/closed_form.md).

    Reference: Gandikota et al., WACV 2024, arXiv:2308.14761. Code:
    rohitgandikota/unified-concept-editing.

    Deviations: the solve is a float64 Cholesky of the change, in place of a float32 inverse, whose
    error is 5e-7 to 1e-3 of the weights on the systems of docs/closed_form.md. With ``rows="last"``
    an empty anchor means the start-of-text vector, as officially. For styles the official code of
    2023 preserves 1,734 artists where no list is given; here you name what is preserved. pin,
    prior, prior_cost, seal, pooled, "last+eos", "all" and preserve_empty="alone" are ours. Debiasing takes two
    attributes and has a stopping rule; the official code measures 10 images by CLIP and stops
    within 0.05, which is less than a third of the standard error. The intervals of a round are not
    corrected for being several: each is a 95 % interval.

    Official preset: agrees with the official operations up to 1e-6 of the weights ("2023", with and
    without a preserve set, and "2025"; against a solution in float64, tests/test_official.py). Both
    leave the pooled text of SDXL alone, as officially.

    Cost: no UNet evaluations; "debias" takes at most targets x rounds x images x (2
    ``sampling_steps`` + 2 ``draws``).
    """

    name: ClassVar[str] = "uce"
    summary: ClassVar[str] = "closed form: give the target's text the keys and values of the anchor's"
    paper: ClassVar[str] = "Gandikota et al., WACV 2024, arXiv:2308.14761"
    presets: ClassVar = {
        "paper": {},
        "2023": {
            "rows": "last..end",
            "preserve_rows": "all",
            "preserve_scale": 0.0,
            "preserve_empty": "always",
            "pooled": False,
        },
        "2025": {"pooled": False},
        "local": {**PINNED, "prior_cost": 0.05},
        "pinned": {**PINNED, "prior_scale": 0.03},
        "sealed": {**PINNED, "prior_scale": 0.1, "seal": 3.0},
        "mini": {"rows": "last..end", "preserve_rows": "all", "preserve_scale": 0.1, "preserve_empty": "alone"},
        "mini-flow": {**PINNED, "prior_scale": 0.1},
        "tiny": {},
    }

    task: str = option(
        "erase",
        "what becomes of the target: erased, moderated, or debiased",
        "both codes",
        choices=("erase", "moderate", "debias"),
    )
    rows: str = option(
        "last", "token positions of the target that are edited", "uce_sd_erase.py; train_erase.py last..end", choices=POSITIONS
    )
    preserve_rows: str = option(
        "last", "token positions of preserved prompts", "uce_sd_erase.py; train_erase.py all", choices=POSITIONS
    )
    preserve_empty: str = option(
        "no", "when to preserve the empty prompt", "uce_sd_erase.py; train_erase.py always", choices=("no", "alone", "always")
    )
    erase_scale: float = option(1.0, "weight a of the erased rows", "both codes", low=1e-12)
    preserve_scale: float = option(
        1.0, "weight b of the preserved rows, 0 for max(0.1, 1 / n) with n prompts", "uce_sd_erase.py; train_erase.py 0", low=0.0
    )
    lam: float = option(0.5, "ridge towards the original weights", "both codes", low=1e-12)
    expand: bool = option(False, "add five templates for each target", "uce_sd_erase.py --expand_prompts")
    kind: str = option(
        "object",
        "kind of target, which chooses the templates",
        "both codes, concept_type",
        choices=tuple(TEMPLATES),
        needs="expand",
    )
    pin: bool = option(False, "let the empty prompt not move at all", "ours")
    prior: str = option(
        "none", "concept space that is preserved: none, auto, vocabulary, or a file of names", "ours; MACE's COCO prior"
    )
    prior_scale: float = option(
        1.0, "weight of each row of that concept space", "ours", low=1e-12, needs="prior!=none and prior_cost=0.0"
    )
    prior_cost: float = option(
        0.0,
        "choose that weight: the largest that lets the target come this share less near to the anchor; 0 takes prior_scale",
        "ours",
        low=0.0,
        needs="prior!=none and task=erase|moderate",
    )
    seal: float = option(
        0.0, "ridge of a projection that lets no embedding bring the target back, 0 for none", "ours", low=0.0, needs=ERASING
    )
    pooled: bool = option(
        True, "edit also the layers that read the pooled text vector, where a model has them", "ours; official no", needs=ERASING
    )
    attributes: str = option("", "two attributes to balance: 'first, second'", "uce_sd_debias.py --debias_concepts", needs=DEBIAS)
    desired: float = option(
        0.5, "share of images that should show the first attribute", "uce_sd_debias.py --desired_ratios", low=0.0, needs=DEBIAS
    )
    tolerance: float = option(
        0.1, "how near to the desired share is near enough", "ours; both codes 0.05 of 10 images", low=1e-3, needs=DEBIAS
    )
    images: int = option(200, "largest number of images in a round", "ours; both codes 10", low=BATCH, needs=DEBIAS)
    rounds: int = option(8, "largest number of alphas tried", "ours; uce_sd_debias.py 30", low=1, needs=DEBIAS)
    reach: float = option(2.0, "alpha is searched between -reach and reach", "ours", low=1e-6, needs=DEBIAS)
    sampling_steps: int = option(20, "DDIM steps for an image", "uce_sd_debias.py", low=1, needs=DEBIAS)
    guidance: float = option(7.5, "guidance scale for an image", "uce_sd_debias.py", needs=DEBIAS)
    draws: int = option(
        4,
        "noise levels at which the unmodified model tells which of the two attributes fits an image better",
        "ours",
        low=1,
        needs=DEBIAS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.task == "debias") != (len(self.pair) == 2):
            raise BadOption(
                f"attributes={self.attributes!r} with task={self.task}: debiasing takes exactly two attributes, such as "
                "--set task=debias --set 'attributes=male, female', and no other task takes any."
            )
        refuse_idle(self, (f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default))
        if not self.tolerance < self.desired < 1 - self.tolerance and self.task == "debias":
            raise BadOption(f"desired={self.desired} must lie inside tolerance .. 1 - tolerance (tolerance={self.tolerance}).")
        if self.prior_cost >= 1:
            raise BadOption(f"prior_cost={self.prior_cost} is a share below 1, such as 0.05.")

    @property
    def pair(self) -> tuple[str, ...]:
        """The attributes as a tuple."""
        return tuple(a.strip() for a in self.attributes.split(",") if a.strip())

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        per_image = model.branches(self.guidance) * self.sampling_steps + 2 * self.draws
        return float(len(request.asked) * self.rounds * self.images * per_image) if self.task == "debias" else 0.0

    @torch.no_grad()
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        spent = model.evals.snapshot()
        if self.task != "erase" and request.anchor:
            raise BadOption(f"task={self.task} takes no anchor, got {request.anchor!r}; leave --anchor out.")
        pooled = None
        if self.task == "debias":
            edit, log = self._debias(model, request)
        else:
            source, goal = self._pairs(model, request)
            edit, log = self._solve(model, request, *source.aligned(goal, self.rows))
            if self.pooled and (readers := pooled_readers(model)):
                pooled = readers, self._pooled_edit(model, request, source, goal, readers)
        card = self.card(model, request, spent, edit=facts(edit, model, request.targets), **log)
        return to_patch(model.weights(model.reads()), edit, card, pooled)

    def _pairs(self, model: DiffusionModel, request: EraseRequest) -> tuple[Cond, Cond]:
        """Encodings of the targets, and of what they should act like."""
        templates = ("{}", *TEMPLATES[self.kind]) if self.expand else ("{}",)
        pairs = [(f.format(e), f.format(request.anchor)) for e in request.targets for f in templates]
        source, goal = (model.encode([pair[i] for pair in pairs]) for i in (0, 1))
        return source, goal

    def _kept(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[Cond, float]]:
        """What is preserved by name, with the weight of each of its rows."""
        empty = self.preserve_empty == "always" or (self.preserve_empty == "alone" and not request.preserve)
        kept = (*([""] if empty else []), *request.preserve)
        return [(model.encode(kept), self.preserve_scale or max(0.1, 1 / len(kept)))] if kept else []

    def _prior(self, model: DiffusionModel, request: EraseRequest) -> list[Cond]:
        """The concept space that is preserved beside it, if any."""
        return [] if self.prior == "none" else [model.encode(prior_names(self.prior, model, request.targets))]

    def _solve(self, model: DiffusionModel, request: EraseRequest, x: Tensor, y: Tensor) -> tuple[Edit, dict[str, Any]]:
        null, maps = model.encode([""]).rows("all"), model.weights(model.reads()).values()
        kept = [(c.rows(self.preserve_rows), b) for c, b in self._kept(model, request)]
        prior = [c.rows(self.preserve_rows) for c in self._prior(model, request)]
        edit, log = self._solved(x, y, kept, prior, null, maps)
        if not self.seal:
            return edit, log
        shown = model.encode([f.format(e) for e in request.targets for f in SEALED]).rows("last..end")
        return sealed(edit, shown, torch.cat([y, *(rows for rows, _ in kept), *prior, null]), self.seal), log

    def _pooled_edit(
        self, model: DiffusionModel, request: EraseRequest, source: Cond, goal: Cond, readers: Mapping[str, Tensor]
    ) -> Edit:
        """The same objective for the one vector per prompt that some networks also read."""
        x, y, null = (c.extras[POOLED].cpu() for c in (source, goal, model.encode([""])))
        kept = [(c.extras[POOLED].cpu(), b) for c, b in self._kept(model, request)]
        prior = [c.extras[POOLED].cpu() for c in self._prior(model, request)]
        return self._solved(x, y, kept, prior, null, [w[:, : x.shape[1]] for w in readers.values()])[0]

    def _solved(
        self, x: Tensor, y: Tensor, kept: list[tuple[Tensor, float]], prior: list[Tensor], null: Tensor, maps: Iterable[Tensor]
    ) -> tuple[Edit, dict[str, Any]]:
        """The edit that maps the rows x to y and keeps other rows at their weights, and the weight that was found for the
        prior's. ``maps``: the weights that read the rows."""
        chosen = bool(prior) and self.prior_cost > 0
        weighted = [*kept, *((rows, self.prior_scale) for rows in prior if not chosen)]
        q = torch.cat([x[:0], *(rows for rows, _ in weighted)])
        b = torch.cat([torch.full((len(rows),), b) for rows, b in [(x[:0], 1.0), *weighted]])
        a, pinned = torch.full((len(x),), self.erase_scale), null if self.pin else None
        if not chosen:
            return shared_edit(x, y, a, q, b, self.lam, pinned), {}
        gram = sum((weighted_gram(rows, torch.ones(len(rows))) for rows in prior), torch.zeros((), dtype=F64))
        read = (x, y, gram_of_maps(w.detach().cpu() for w in maps))
        edit, weight = affordable(Moments.of(x, y, a, q, b), gram, self.lam, read, self.prior_cost, pinned)
        return edit, {"prior_scale": weight, "reached": reached(edit, *read)}

    # -- debiasing -----------------------------------------------------------------------------------------------

    def _debias(self, model: DiffusionModel, request: EraseRequest) -> tuple[Edit, dict[str, Any]]:
        """One alpha for each target, found one after the other. The last solve holds all of them."""
        rows = [self._attribute_rows(model, target) for target in request.asked]
        alphas, log = [0.0] * len(rows), dict[str, Any]()
        for i, target in enumerate(request.asked):
            low, high, rng = -self.reach, self.reach, torch.Generator().manual_seed(i)
            tried: list[dict[str, Any]] = []
            for _ in range(self.rounds):
                edit = self._solve_shifted(model, request, rows, alphas)
                k, n, verdict = self._share(model, edit, target, rng)
                tried.append({"alpha": alphas[i], "k": k, "n": n, "verdict": verdict})
                if verdict in ("done", "undecided"):
                    break
                low, high = (low, alphas[i]) if verdict == "above" else (alphas[i], high)
                alphas[i] = (low + high) / 2
            alphas[i] = self._best(target, tried)
            log[target] = tried
        return self._solve_shifted(model, request, rows, alphas), {"debias": log}

    def _best(self, target: str, tried: list[dict[str, Any]]) -> float:
        """The :func:`nearest` alpha. Raises MethodError where every alpha up to the largest misses the desired share on the same
        side: then the attributes do not steer the target."""
        verdicts, last = {row["verdict"] for row in tried}, tried[-1]
        if len(verdicts) == 1 and verdicts <= {"above", "below"} and abs(last["alpha"]) >= NEAR_REACH * self.reach:
            raise MethodError(
                f"no alpha from 0 to {last['alpha']:.2g} brings the share of {self.pair[0]!r} among the images of {target!r} to "
                f"{self.desired:g}; with the last it is {last['k']} of {last['n']}. Choose other attributes, another target, or "
                "raise reach."
            )
        return nearest(tried, self.desired)

    def _attribute_rows(self, model: DiffusionModel, target: str) -> tuple[Tensor, Tensor]:
        """``(x, a_1 - a_2)``: rows of the target, and the difference of the attributes' rows
        aligned with them."""
        c = model.encode([target])
        (x, first), (_, second) = (c.aligned(model.encode([a]), self.rows) for a in self.pair)
        n = min(len(first), len(second))
        return x[:n], first[:n] - second[:n]

    def _solve_shifted(
        self, model: DiffusionModel, request: EraseRequest, rows: list[tuple[Tensor, Tensor]], alphas: list[float]
    ) -> Edit:
        x = torch.cat([x for x, _ in rows])
        goal = x + torch.cat([alpha * d for alpha, (_, d) in zip(alphas, rows, strict=True)])
        return self._solve(model, request, x, goal)[0]

    def _share(self, model: DiffusionModel, edit: Edit, target: str, rng: torch.Generator) -> tuple[int, int, str]:
        """``(k, n, verdict)``: k of n images show the first attribute. The verdict is taken after
        16, 32, 64, ... images."""
        k = n = 0
        look = BATCH
        while True:
            while n < look:
                batch = min(BATCH, self.images - n)
                k += self._first_attribute(model, edit, target, batch, rng)
                n += batch
            verdict = stopping_rule(k, n, self.desired, self.tolerance)
            if verdict != "more":
                return k, n, verdict
            if n >= self.images:
                return k, n, "undecided"
            look = min(2 * look, self.images)

    def _first_attribute(self, model: DiffusionModel, edit: Edit, target: str, n: int, rng: torch.Generator) -> int:
        """How many of n new images of the edited model the unedited model takes for the first attribute.

        Cost: n (2 sampling_steps + 2 draws) evaluations.
        """
        with filtered(model, edit):
            z = model.denoise(model.encode([target] * n), model.noise(n, rng), self.sampling_steps, self.guidance)
        error = torch.zeros(2, n)
        both = model.encode([f"{a} {target}" for a in self.pair for _ in range(n)])
        for i in range(self.draws):
            level = model.schedule.size * (i + 1) // (self.draws + 1)
            t = model.schedule.numbered([level] * (2 * n), z.device)
            eps = model.noise(n, rng)
            z_t = model.schedule.noised(z, eps, t[:n])
            found = model.eps(torch.cat([z_t, z_t]), t, both)
            error += (found - torch.cat([eps, eps])).square().flatten(1).mean(1).reshape(2, n).cpu()
        return int((error[0] < error[1]).sum())


def nearest(tried: Sequence[Mapping[str, Any]], desired: float) -> float:
    """The alpha of the round whose share is nearest to the desired one, of those that may have it where there are any."""
    return float(min(tried, key=lambda r: (r["verdict"] in ("above", "below"), abs(r["k"] / r["n"] - desired)))["alpha"])


def stopping_rule(k: int, n: int, desired: float, tolerance: float) -> str:
    """Say whether k of n images are enough to stop.

    ``done``: the 95 % interval of k / n lies within ``tolerance`` of ``desired``. ``above`` and
    ``below``: the interval excludes ``desired``. Otherwise ``more``. A point estimate alone never
    stops anything.
    """
    rate = wilson(k, n)
    if desired - tolerance <= rate.low and rate.high <= desired + tolerance:
        return "done"
    return "above" if rate.low > desired else "below" if rate.high < desired else "more"
