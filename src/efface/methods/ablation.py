"""Concept Ablation: teach the model to draw the anchor where the prompt names the target."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..concepts.request import EraseRequest
from ..errors import BadRequest
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.select import TRAINABLE
from ..patches import Patch
from ..training.drawn import renoised, surrogate_evals, surrogate_latents
from ..training.loop import Run, training
from .base import Method, option

OBJECT_CAPTIONS = ("{}", "photo of {}", "picture of {}", "image of {}", "icon of {}", "{} on a white background")
SUBJECTS = (
    "a house", "a river", "a village", "a garden", "a ship", "a bridge", "a mountain", "a forest", "a street", "a field",
    "a horse", "a woman", "a man", "a child", "a bowl of fruit", "flowers in a vase", "a lake", "a castle", "a market",
    "a church",
)  # fmt: skip
SCENES = (
    "in the morning", "at night", "in winter", "in summer", "in the rain", "under a cloudy sky", "at sunset", "by the sea",
    "in bright light", "in the fog",
)  # fmt: skip
PAINTINGS = tuple(f"a painting of {subject} {scene}" for scene in SCENES for subject in SUBJECTS)
"""200 captions of paintings. They are ours, because the published list comes from a corpus that may not be passed on."""
STYLE_FORMS = ("{caption}, in the style of {target}", "in {target}'s style, {caption}")


@dataclass(frozen=True, kw_only=True)
class ConceptAblation(Method):
    """Teach the model to predict for the target's caption what it predicts for the anchor's
    caption.

    Objective::

        z_t = noised(x, noise, t),    t uniform over all timesteps
        variant "model"   loss = | eps'(z_t, t, c*) - sg eps'(z_t, t, c) |^2
        variant "noise"   loss = | eps'(z_t, t, c*) - noise |^2
        with prior > 0    loss + prior | eps'(z_t, t, c) - noise |^2

    x is an image that the original model drew from an anchor caption c, and c* is the same caption
    rewritten with the target. eps' is the network that is trained. sg says that no gradient passes.
    ``detach_start`` also keeps gradients out of the keys and values of the start-of-text token,
    which every prompt shares.

    Variants: ``kind`` says how captions are rewritten.

    - "object" takes six short captions with the request's anchor, and the same captions with the
      target. An empty anchor means the empty prompt.
    - "style" takes 200 captions of paintings, rewritten as "<caption>, in the style of <target>" or
      "in <target>'s style, <caption>". It takes no anchor.

    Set ``prior`` when anchor and target share words ("cat" and "grumpy cat"). ``teacher="self"`` is
    the published teacher, the network that is trained; "frozen" (ours) takes the original model
    instead.

    Reference: Kumari et al., ICCV 2023, arXiv:2303.13516. Code: nupurkmr9/concept-ablation (its
    folder compvis/ is the paper's code, diffusers/ is a port).

    Deviations: images are latents of deterministic DDIM that are not decoded and encoded again
    (officially DPM-Solver++, or DDIM with eta 1). There are 200 of them, as in the README, in place
    of 1,000, because 100 updates of 8 use no more than 800. Images are not flipped or rescaled.
    Adam has no weight decay and no clipping (the decay would move a weight by less than 2e-5 of
    itself here). Both forms of a style are equally likely (the code draws one of them twice as
    often). The captions are ours. The first term is a mean; the port sums it over 4 channels, so
    that its prior weight of 1 is our 0.25. The official protocols for nudity and memorised images
    (negative prompts, mined anchors) and the training of word embeddings are left out. The
    request's preserve set is not used.

    Cost: 2 x ``sampling_steps`` UNet evaluations for each image, and all targets share the images.
    Then for each row of the batch and each update, 2 evaluations with ``variant="model"`` (3 with a
    prior and a frozen teacher) or 1 with "noise" (2 with a prior). One of them is differentiated,
    and the prior's too.
    """

    name: ClassVar[str] = "ablation"
    summary: ClassVar[str] = "train the target's caption to predict, on images of the anchor, what the anchor's caption predicts"
    paper: ClassVar[str] = "Kumari et al., ICCV 2023, arXiv:2303.13516"
    presets: ClassVar = {
        "paper": {},
        "style": {"kind": "style"},
        "noise-based": {"variant": "noise"},
        "prior": {"prior": 0.2},
        "mini": {"steps": 150, "lr": 1e-4, "batch": 4, "images": 96, "sampling_steps": 12, "guidance": 4.0},
        "tiny": {"steps": 3, "batch": 2, "images": 3, "sampling_steps": 3},
    }

    variant: str = option(
        "model",
        "what the target's caption is trained to predict: the anchor's prediction (model) or the noise",
        "paper, default",
        choices=("model", "noise"),
    )
    teacher: str = option(
        "self",
        "network that predicts for the anchor: the trained one (self) or the original (frozen)",
        "diffusers/train.py",
        choices=("self", "frozen"),
        needs="variant=model",
    )
    kind: str = option(
        "object", "kind of target, which says how captions are rewritten", "concept_type of the code", choices=("object", "style")
    )
    prior: float = option(
        0.0, "weight of the usual diffusion loss on the anchor's images", "off by default; compvis 0.2", low=0.0
    )
    detach_start: bool = option(True, "keep gradients out of the start-of-text token", "both codes")
    images: int = option(200, "images drawn with the original model before training", "README of compvis; both codes 1000", low=1)
    sampling_steps: int = option(25, "DDIM steps for an image", "diffusers/ (DPM-Solver++ 25)", low=1)
    guidance: float = option(6.0, "guidance scale for an image", "diffusers/")
    steps: int = option(100, "number of weight updates", "both codes, style and object", low=0)
    lr: float = option(1.6e-5, "Adam learning rate", "2e-6 times 2 GPUs times 4 rows", low=0.0)
    batch: int = option(
        8, "training examples in each update: an image, a caption and a timestep each", "2 GPUs times 4 rows", low=1
    )
    train: str = option("xattn-kv", "which weights are trained", "paper; nudity: attn, memorisation: full", choices=TRAINABLE)
    seed: int = option(0, "seed of images and training", "ours")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("start_detached",) if self.detach_start else ()

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        needs_goal = self.variant == "model" and not (self.prior > 0 and self.teacher == "self")
        per_row = 1 + needs_goal + (self.prior > 0)
        return surrogate_evals(model, self.images, self.sampling_steps, self.guidance) + self.steps * self.batch * per_row

    def captions(self, request: EraseRequest) -> tuple[tuple[str, ...], list[list[tuple[str, ...]]]]:
        """The anchor captions and, for every target, the ways in which each caption is rewritten.
        Raises BadRequest for a style with an anchor."""
        if self.kind == "style":
            if request.anchor:
                raise BadRequest(
                    f"kind=style maps to paintings of no style, so the anchor {request.anchor!r} would do nothing; leave it out."
                )
            return PAINTINGS, [
                [tuple(form.format(caption=c, target=target) for form in STYLE_FORMS) for c in PAINTINGS]
                for target in request.targets
            ]
        anchors = tuple(c.format(request.anchor) if request.anchor else "" for c in OBJECT_CAPTIONS)
        return anchors, [[(c.format(target),) for c in OBJECT_CAPTIONS] for target in request.targets]

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        self.check(model)
        spent, select = model.evals.snapshot(), model.select(self.train)
        anchors, rewritten = self.captions(request)
        c_anchors = model.encode(anchors)
        c_rewritten = [[model.encode(ways) for ways in target] for target in rewritten]
        drawn = surrogate_latents(model, anchors, self.images, steps=self.sampling_steps, guidance=self.guidance, seed=self.seed)
        student = model.student(select)
        for step in training(student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run or Run()):
            j = [step.randint(self.images) for _ in range(self.batch)]
            read = [i % len(anchors) for i in j]  # image i was drawn from caption i modulo their number
            ways = [c_rewritten[step.randint(len(rewritten))][i] for i in read]
            c_star, c = Cond.cat([w[step.randint(len(w))] for w in ways]), c_anchors[read]
            z_0 = drawn[j]
            z_t, t, noise = renoised(model, z_0, step)
            truth = model.perfect_output(z_0, noise, t)
            with student.start_detached() if self.detach_start else nullcontext():
                predicted = student.predict(z_t, t, c_star)
                of_anchor = student.predict(z_t, t, c) if self.prior > 0 else None
                goal = truth if self.variant == "noise" else self._goal(model, student, z_t, t, c, of_anchor)
            terms = {"ablate": mse_loss(predicted, goal)}
            if of_anchor is not None:
                terms["prior"] = self.prior * mse_loss(of_anchor, truth)
            step.minimize(**terms)
        return Patch.between(model.weights(select), student.weights(select), self.card(model, request, spent))

    @torch.no_grad()
    def _goal(
        self, model: DiffusionModel, student: DiffusionModel, z_t: Tensor, t: Tensor, c: Cond, of_anchor: Tensor | None
    ) -> Tensor:
        """The teacher's prediction for the anchor, without gradient. The student's prediction is
        used again where the prior needed it anyway."""
        if self.teacher == "frozen":
            return model.predict(z_t, t, c)
        return student.predict(z_t, t, c) if of_anchor is None else of_anchor.detach()
