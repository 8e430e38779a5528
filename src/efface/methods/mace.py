"""Mass Concept Erasure (MACE)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.request import EraseRequest
from ..edits import facts, folded, prompt_gram
from ..equations.closed_form import F64, Edit, Moments, apply_edit, factored, fused, solved
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.low_rank import factors, low_rank_student, trained_factors
from ..patches import Patch
from ..preservation.candidates import concept_space
from ..training.loop import Run, training
from .base import Method, option

WORDINGS = {
    "object": (
        "a photo of a {}",
        "a picture of a {}",
        "an image of a {}",
        "a drawing of a {}",
        "the {}",
        "this is a {}",
        "a photo of the {}",
        "a good photo of a {}",
        "a close photo of a {}",
        "a bright photo of the {}",
        "a dark photo of a {}",
        "a photo of one {}",
        "a photo of my {}",
        "a good photo of the {}",
        "a cropped photo of a {}",
        "a clean photo of a {}",
        "a nice photo of the {}",
        "a small photo of a {}",
        "a large photo of the {}",
        "a cool photo of a {}",
        "a strange photo of a {}",
        "a blurred photo of the {}",
        "a snapshot of a {}",
        "a sketch of the {}",
        "a painting of a {}",
        "a portrait of the {}",
        "a rendering of a {}",
        "a view of the {}",
        "here is a {}",
        "one {} in a photo",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "an image in the style of {}",
        "a drawing in the style of {}",
        "art by {}",
        "this is by {}",
        "a photo in the style of {}",
        "a good picture by {}",
        "artwork by {}",
        "a work by {}",
        "a painting by {}",
        "a picture by {}",
        "a drawing by {}",
        "a sketch by {}",
        "a print by {}",
        "a poster by {}",
        "the style of {}",
        "the art of {}",
        "the work of {}",
        "a bright painting by {}",
        "a dark painting by {}",
        "a small painting by {}",
        "a large painting by {}",
        "a nice picture by {}",
        "a cool picture by {}",
        "a house in the style of {}",
        "a landscape in the style of {}",
        "a portrait in the style of {}",
        "a sketch in the style of {}",
        "inspired by {}",
    ),
}
"""The templates that a target is put into, by its kind."""
PICTURE = {"object": "a photo of the {}", "style": "a photo in the style of {}"}
"""The prompt of the training images, by the kind of the target."""


@dataclass(frozen=True, kw_only=True)
class MACE(Method):
    """Erase many targets: clean the words around each target, train a small LoRA for each, and
    merge all in closed form.

    Objective::

        refine   W = W0 T: in every template, all rows but the target's words act like the same rows
                 of the template with the anchor; prior and preserved rows stay; ridge lam
        train    per target a LoRA W + up down of rank 1, on
                 loss = sum_l | attention of layer l to the target's tokens |_F, inside the mask
        fuse     W* = argmin  sum_i sum_{e in rows of i} |W* e - (W + up_i down_i) e|^2
                              + sum_p |W* p - W0 p|^2  +  lam |W* - W|^2

    W0 are the original keys and values of cross-attention. A row is the text encoder's vector e at
    one position; the rows but the target's words are those of start, other words, end and padding.
    i runs over the targets, p over prior and preserved rows. "The target's tokens" are its words,
    the end token and all padding, which Stable Diffusion 1.x cannot tell from the end token.

    In training, every update draws a template, an image and a timestep t. z_t comes from ``images``
    images of the target; t is drawn around 200 to 400, or uniformly with ``importance=False``. The
    factors start as in the official code: ``down`` normal with standard deviation 1 / rank, ``up``
    zero. The prior is a concept space put into the templates; preserved concepts are the official
    code's domain prior. All Gram matrices (sums of e e^T) are d x d and shared by the layers; in
    the official code they take 0.2 GB for each concept.

    Variants: ``mask="none"`` counts every pixel, "attention" those where the unedited model attends
    to the target more than on average. ``steps=0`` does the refinement alone. ``kind`` chooses the
    templates: a style is put into other sentences than an object. Presets "paper" and "object" are
    the official configuration for objects, which preserves nothing and refuses a preserve set; it
    is published for three classes, and lam is the bird's (100 for the automobile, 1,000 for the
    ship). "celebrity" is the one for one celebrity (domain_weight is 5e4, 8e4 and 2e5 for 5, 10 and
    100). "art" and "explicit" are the official ones.

    Reference: Lu et al., CVPR 2024, arXiv:2403.06135. Code: Shilin-LU/MACE.

    Deviations: there is no segmentation model; the mask "attention" is ours. The prior is
    officially every COCO caption. The templates are ours, as many as officially (30). Images take
    DDIM steps. Adam has no weight decay and no clipping. The official refinement multiplies by the
    prior's scale twice, which ``scale_power=2`` reproduces and the presets do not.

    Official preset: agrees with the official operations up to 3e-6 of the change of a layer, the
    deviations above left out (refinement, two updates and fusion against a re-derivation in
    float64, tests/test_official.py).

    Cost: for each target, 2 x ``sampling_steps`` x ``images`` UNet evaluations, another ``images``
    with ``mask="attention"``, and ``steps`` with a backward pass. ``steps=0`` costs none.
    """

    name: ClassVar[str] = "mace"
    summary: ClassVar[str] = "clean the words around each target, train one LoRA per target, and merge all in closed form"
    paper: ClassVar[str] = "Lu et al., CVPR 2024, arXiv:2403.06135"
    presets: ClassVar = {
        "paper": {},
        "object": {},
        "celebrity": {"lam": 0.0, "prior_scale": 1e-4, "domain_weight": 8e3, "lr": 1e-4},
        "art": {"kind": "style", "lam": 0.0, "prior_scale": 1e-4, "domain_weight": 8e4, "lr": 1e-4},
        "explicit": {"lam": 0.0, "prior_scale": 7e-7, "domain_weight": 0.0, "steps": 120, "importance": False},
        "mini": {
            "lam": 0.1,
            "prior_scale": 0.1,
            "wordings": 8,
            "lr": 1e-3,
            "steps": 50,
            "sampling_steps": 12,
            "guidance": 4.0,
        },
        "tiny": {"lam": 0.1, "prior_scale": 1e-4, "wordings": 8, "steps": 3, "images": 2, "sampling_steps": 2},
    }

    kind: str = option("object", "kind of target, which chooses the templates", "official concept types", choices=tuple(WORDINGS))
    wordings: int = option(30, "templates for each target", "official data script", low=1)
    lam: float = option(
        10.0,
        "ridge of refinement and fusion towards unchanged weights",
        "object configs 10 to 1000 (bird 10); celebrity 0",
        low=0.0,
    )
    prior: str = option(
        "auto",
        "concept space that is preserved: auto, vocabulary, or a file of names",
        "ours; officially COCO captions",
        needs="prior_scale",
    )
    prior_scale: float = option(0.0, "weight of the preserved concept space", "object configs 0; celebrity configs 1e-4", low=0.0)
    domain_weight: float = option(
        8e3, "weight of the preserve set, times prior_scale", "celebrity configs 8e3 to 2e5", low=0.0, needs="prior_scale"
    )
    scale_power: int = option(
        1,
        "power of prior_scale in the refinement: 1, or 2 as in the official code",
        "ours; official code 2",
        low=1,
        needs="prior_scale",
    )
    steps: int = option(50, "weight updates for each target", "configs; explicit 120", low=0)
    lr: float = option(1e-5, "Adam learning rate", "object configs 1e-5; celebrity 1e-4", low=0.0, needs="steps")
    importance: bool = option(
        True, "draw t mostly from 200 to 400, not uniformly", "official importance_sampling; explicit: uniform", needs="steps"
    )
    images: int = option(8, "training images for each target", "official data script", low=1, needs="steps")
    sampling_steps: int = option(30, "DDIM steps for an image", "official data script (DPM-Solver)", low=1, needs="steps")
    guidance: float = option(7.5, "guidance scale for an image", "official data script", needs="steps")
    mask: str = option(
        "none",
        "pixels that the attention loss counts: all (none), or where the target is attended to",
        "ours; officially Grounded-SAM",
        choices=("none", "attention"),
        needs="steps",
    )
    seed: int = option(0, "seed of images, initial factors and training", "ours; officially 2024")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wordings > (known := len(WORDINGS[self.kind])):
            raise BadOption(f"wordings={self.wordings}, but there are {known} templates for kind={self.kind}.")

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that a target is put into."""
        return WORDINGS[self.kind][: self.wordings]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("one_tokenizer", "attention_maps") if self.steps else ("one_tokenizer",)

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        pictures = self.images * (model.branches(self.guidance) * self.sampling_steps + (self.mask == "attention"))
        return float(len(request.targets) * (pictures + self.steps)) if self.steps else 0.0

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        if request.preserve and not self.prior_scale * self.domain_weight:
            raise BadOption(
                f"the preserve set would do nothing with prior_scale={self.prior_scale} and domain_weight={self.domain_weight}. "
                "Leave --preserve out, or give both a weight (the celebrity preset has 1e-4 and 8e3)."
            )
        self.check(model)
        spent, base = model.evals.snapshot(), model.weights(model.reads())
        original = {n: w.detach().float().cpu() for n, w in base.items()}
        prior = self._prior(model, request)
        # Refine.
        x, y = (torch.cat(rows) for rows in zip(*(self._around(model, e, request.anchor) for e in request.targets), strict=True))
        rows = Moments.of(x, y, torch.ones(len(x)), x[:0], torch.ones(0))
        keep = self.prior_scale ** (self.scale_power - 1) * prior
        refinement = solved(Moments(rows.gram, rows.shift, keep), self.lam)
        refined = folded(base, refinement)
        card = {"refinement": facts(refinement, model, request.targets)}
        if not self.steps:
            return Patch.between(original, refined, self.card(model, request, spent, **card))
        # Train.
        run = run or Run()
        trained = [self._adapter(model, i, e, refined, run) for i, e in enumerate(request.targets)]
        # Fuse.
        filled = [model.encode([f.format(e) for f in self.templates]).rows("all").double() for e in request.targets]
        grams = torch.stack([r.T @ r for r in filled])
        lower, condition = factored(grams.sum(0) + prior + self.lam * torch.eye(len(prior), dtype=F64))
        back = Edit(-torch.cholesky_solve(prior @ refinement.matrix.T, lower).T, None, condition)  # (W0 - W) P G^-1 = W0 back
        edited = {}
        for name, w in refined.items():
            ups, downs = (torch.stack([t[name][k].double() for t in trained]) for k in (0, 1))
            edited[name] = w + fused(ups, downs, grams, lower).float() + apply_edit(original[name], back)
        for i in range(len(request.targets)):
            if (part := _part(run, i).checkpoint) is not None:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        return Patch.between(original, edited, self.card(model, request, spent, **card))

    @torch.no_grad()
    def _around(self, model: DiffusionModel, target: str, anchor: str) -> tuple[Tensor, Tensor]:
        """Rows of every template but the target's own words, and the same rows with the anchor; (r,
        d) each."""
        xs, ys = list[Tensor](), list[Tensor]()
        for template in self.templates:
            old, new = template.format(target), template.format(anchor).strip()
            both, (ids, goal_ids) = model.encode([old, new]), model.token_ids([old, new])
            head, tail = common_ends(ids, goal_ids)
            starts = len(ids) - tail, len(goal_ids) - tail
            n = min(m - start for m, start in zip(both.counts(), starts, strict=True))
            for rows, tokens, start in zip((xs, ys), both.tokens.cpu(), starts, strict=True):
                rows += [tokens[:head], tokens[start : start + n]]
        return torch.cat(xs), torch.cat(ys)

    @torch.no_grad()
    def _prior(self, model: DiffusionModel, request: EraseRequest) -> Tensor:
        """(d, d) weighted Gram matrix of what must stay: the names of the concept space, and the
        preserve set."""
        names = concept_space(self.prior, model).without((*request.targets, *request.preserve)).candidates
        large, domain = (
            prompt_gram(model, [f.format(w) for f in self.templates for w in words]) for words in (names, request.preserve)
        )
        return self.prior_scale * (large + self.domain_weight * domain)

    def _adapter(
        self, model: DiffusionModel, i: int, target: str, refined: Mapping[str, Tensor], run: Run
    ) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The trained LoRA of one target, ``{weight: (up, down)}``, which turns the attention away
        from the target's tokens."""
        rng, picture = torch.Generator().manual_seed(self.seed * 1_000_003 + i), PICTURE[self.kind]
        c = model.encode([picture.format(target)])
        noise = model.noise(self.images, rng)
        pictures = model.denoise(c.repeat(self.images), noise, self.sampling_steps, self.guidance)
        masks = self._masks(model, pictures, c.repeat(self.images), positions_of(model, picture, target), rng)
        student = low_rank_student(model, model.reads(), 1, rng, start=refined)
        part, odds = _part(run, i), important_timesteps(model.schedule.size)
        odds = odds if self.importance else torch.ones_like(odds)
        for step in training(student, factors, steps=self.steps, lr=self.lr, seed=self.seed * 1_000_003 + i, run=part):
            k, template = step.randint(self.images), self.templates[step.randint(self.wordings)]
            positions = positions_of(model, template, target)
            t = torch.multinomial(odds, 1, generator=step.rng).to(model.device)
            z_t = model.schedule.noised(pictures[k : k + 1], model.noise(1, step.rng), t)
            with student.attention_maps() as maps:
                student.predict(z_t, t, model.encode([template.format(target)]))
                looked = [(m[..., positions] * at_size(masks[k], m.shape[2])[:, None]).norm() for m in maps]
            step.minimize(attention=torch.stack(looked).sum())
        run.log += [{"target": target, **row} for row in part.log]
        return trained_factors(student)

    @torch.no_grad()
    def _masks(self, model: DiffusionModel, pictures: Tensor, c: Cond, positions: list[int], rng: torch.Generator) -> Tensor:
        """(images, h, w) masks of zeros and ones.

        The mask "attention" costs one evaluation per image, at the level where t / T = 0.4.
        """
        if self.mask == "none":
            return torch.ones(len(pictures), *pictures.shape[2:], device=pictures.device)
        t = model.schedule.numbered([model.schedule.size * 2 // 5] * len(pictures), model.device)
        with model.attention_maps() as maps:
            model.predict(model.schedule.noised(pictures, model.noise(len(pictures), rng), t), t, c)
            seen = torch.zeros(len(pictures), 1, *pictures.shape[2:], device=pictures.device)
            for m in maps:
                of_words = m[..., positions[0]].mean(1)  # (B, pixels): the heads' mean for the first word
                seen += torch.nn.functional.interpolate(_square(of_words, pictures), pictures.shape[2:], mode="bilinear")
        return (seen > seen.mean((2, 3), keepdim=True)).float()[:, 0]


def positions_of(model: DiffusionModel, template: str, target: str) -> list[int]:
    """Positions in a template of the target's words, of the end token and of all padding behind it."""
    prompt = template.format(target)
    ids, rest = model.token_ids([prompt, template.format("").strip()])
    head, tail = common_ends(ids, rest)
    return [*range(head, len(ids) - tail), *range(len(ids) - model.ends, model.encode([prompt]).counts()[0])]


def common_ends(old: list[int], new: list[int]) -> tuple[int, int]:
    """Lengths of the longest common beginning of two token lists and, of what is left, of their
    longest common end."""
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    return head, tail


def important_timesteps(n: int) -> Tensor:
    """(n,) unnormalised probabilities of the timesteps, ``sigmoid(0.05 (t - 200)) - sigmoid(0.05 (t
    - 400))``.

    Most of the probability lies between 200 and 400.
    """
    t = torch.arange(n, dtype=torch.float64) * (1000 / n)
    return torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))


def at_size(mask: Tensor, pixels: int) -> Tensor:
    """An (h, w) mask at the resolution of a layer with ``pixels`` pixels, flattened, by nearest
    neighbour."""
    share = (pixels / mask.numel()) ** 0.5
    size = (round(mask.shape[0] * share), round(mask.shape[1] * share))
    return torch.nn.functional.interpolate(mask[None, None], size, mode="nearest").flatten()


def _square(pixels: Tensor, pictures: Tensor) -> Tensor:
    """(B, n) pixels of a layer as (B, 1, h, w), in the proportions of the images."""
    share = (pixels.shape[1] / pictures.shape[2:].numel()) ** 0.5
    return pixels.reshape(len(pixels), 1, round(pictures.shape[2] * share), round(pictures.shape[3] * share))


def _part(run: Run, i: int) -> Run:
    """The i-th of several trainings in one run, with a checkpoint of its own beside the run's."""
    path = None if run.checkpoint is None else run.checkpoint.with_name(f"{i}.{run.checkpoint.name}")
    return replace(run, checkpoint=path, fingerprint=f"{run.fingerprint}/{i}", log=[])
