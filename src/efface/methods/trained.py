"""What the methods share that train on noise predictions: their options and their sources of
latents. No algorithm is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ..concepts.request import EraseRequest
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..models.schedule import Schedule
from ..models.select import TRAINABLE
from ..options import part
from ..preservation.exhaustive import Exhaustive
from ..preservation.gumbel import Gumbel
from ..preservation.pgd import PGD
from ..preservation.search import Search
from ..preservation.uniform import Random
from ..training.loop import Run, Stateful, Step, training
from ..training.optimizers import ADAM, OPTIMIZERS, check_optimizer
from ..training.samplers import SAMPLERS, Sampler, Student, Walk
from ..training.scene import Scene
from .base import Method, option

SEARCHES = (Gumbel, Exhaustive, Random, PGD)


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """Abstract. A method that trains the UNet on noise predictions. ``sampler`` says where the
    latents z_t come from:

    - "student": the network that is trained walks to z_t, as in the legacy codes;
    - "frozen": the frozen model walks to z_t, as in the newer ESD code;
    - "pool": latents of the frozen model, walked once for each concept and drawn from then on. They
      have the distribution of "frozen" up to the finite number of trajectories;
    - "harvest": latents of the student, walked again after ``sampler.lifetime`` updates;
    - "noised": clean latents of the frozen model, walked once and noised to any timestep.
    """

    defaults: ClassVar = {"steps": 100, "lr": 1e-3, "sampling_steps": 12, "batch": 4, "sampler": "pool"}
    """The budget that every such method has on the miniature."""
    on_flow: ClassVar = {**defaults, "lr": 3e-4}
    """On the flow miniature, where the UNet's learning rate made half of the pictures of a development target invalid."""
    gradient_rows: ClassVar[int] = 1
    """Rows that one update differentiates for each training example; what they keep for the backward pass decides the memory."""
    reads_weights: ClassVar[bool] = False
    learns_words: ClassVar[bool] = False
    """Whether updates learn words, which text encoders read anew in every update."""
    fast: ClassVar = {"sampler": "pool", "sampler.trajectories": 4, "solver": "dpm", "sampling_steps": 15}
    """For models of full size: latents from a pool, and short trajectories."""
    official_code: ClassVar = {
        "eta": 1.0,
        "loss_space": "x0",
        "sampler.alignment": "official",
        "search.metric": "l2",
        "search.exclude_targets": False,
    }
    """Where the official codes of AP and AGE differ from their papers."""
    renamed: ClassVar[Mapping[str, str]] = {
        "pool": "sampler.trajectories",
        "lifetime": "sampler.lifetime",
        "alignment": "sampler.alignment",
    }

    steps: int = option(1000, "number of weight updates", "legacy codes --iterations; esd_sd.py 200", low=0)
    lr: float = option(1e-5, "Adam learning rate", "legacy codes --lr; esd_sd.py 5e-5", low=0.0)
    optimizer: str = option(
        ADAM,
        "what takes the updates: Adam, or Adam with its moments in eight bits (needs bitsandbytes)",
        "legacy codes; adam8bit ours",
        choices=OPTIMIZERS,
    )
    batch: int = option(1, "training examples in each update, over all processes", "legacy codes", low=1)
    train: str = option("xattn", "which weights are trained", "legacy codes (nudity: noxattn)", choices=TRAINABLE)
    sampler: Sampler = part(
        Student(), "where the latents z_t come from", "legacy codes student; esd_sd.py frozen", kinds=SAMPLERS
    )
    sampling_steps: int = option(
        50, "sampler steps of a trajectory, at whose levels z_t lies", "legacy codes --ddim_steps", low=2
    )
    solver: str = option(
        "ddim",
        "solver of the sampler that walks to z_t",
        "legacy codes; esd_sd.py plms; dpm ours",
        choices=("ddim", "dpm", "plms"),
    )
    guidance: float = option(3.0, "guidance scale on the way to z_t", "legacy codes --start_guidance")
    loss_space: str = option(
        "output",
        "what losses compare: the network's output (eps or v), noise, or clean latents",
        "papers' noise models output; official AP and AGE x0",
        choices=("output", "eps", "x0"),
    )
    seed: int = option(0, "seed of the training", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver == "plms" and (self.sampler.pooled or self.sampler.official):
            raise BadOption(
                "solver=plms visits its second level twice, for which there are no pooled latents and no official alignment; use "
                "sampler=student or frozen with sampler.alignment=exact, or solver=ddim."
            )

    @property
    def through_encodings(self) -> bool:
        """Whether the backward pass of an update reaches encoded text, for which the network keeps more."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        return (("official_alignment",) if self.sampler.official else ()) + (("plms",) if self.solver == "plms" else ())

    def check(self, model: DiffusionModel) -> None:
        super().check(model)
        check_optimizer(self.optimizer, model.device)

    def walk(
        self, model: DiffusionModel, request: EraseRequest, candidates: Sequence[Sequence[str]] = (), per_candidate: int = 1
    ) -> Walk:
        """What the sampler of latents needs to know of this erasure."""
        return Walk(
            steps=self.sampling_steps,
            guidance=self.guidance,
            solver=self.solver,
            seed=self.seed,
            batch=self.batch,
            branches=model.branches(self.guidance),
            targets=request.targets,
            others=[name for group in candidates for name in group],
            per_other=per_candidate,
            updates=self.steps,
        )

    def scene(
        self,
        model: DiffusionModel,
        request: EraseRequest,
        candidates: Sequence[Sequence[str]] = (),
        per_candidate: int = 1,
        walked: EraseRequest | None = None,
    ) -> Scene:
        """The student and its source of latents. A pool of the frozen model is filled with the
        targets and their candidates.

        ``walked`` is the request whose targets the latents are drawn for, where that is not
        ``request`` itself.
        """
        self.check(model)
        select = model.select(self.train)
        student = model.student(select)
        return Scene(
            model=model,
            student=student,
            latents=self.sampler.latents(model, student, self.walk(model, walked or request, candidates, per_candidate)),
            targets=request.targets,
            c_targets=model.encode(request.targets),
            c_anchor=model.encode([request.anchor]),
            batch=self.batch,
            distance=lambda a, b, t: self.mse(model, a, b, t),
            origin=model.weights(select),
            weights=student.weights(select),
            drawn=lambda network, c, noise: network.denoise(c, noise, self.sampling_steps, self.guidance),
        )

    def updates(self, scene: Scene, run: Run, carry: Mapping[str, Stateful] | None = None) -> Iterator[Step]:
        """The training loop over the scene's student; see :func:`efface.training.training`."""
        kept = {"latents": scene.latents, **(carry or {})}
        select = scene.student.select(self.train)
        settings: dict[str, Any] = {"steps": self.steps, "lr": self.lr, "seed": self.seed, "optimizer": self.optimizer}
        return training(scene.student, select, run=run, carry=kept, **settings)

    def draw_cost(self, model: DiffusionModel, groups: int) -> float:
        """Mean UNet evaluations per row to draw latents for ``groups`` concepts; 0 for a pool."""
        return self.sampler.draw_cost(groups, self.sampling_steps, model.branches(self.guidance))

    def fill_cost(
        self, model: DiffusionModel, request: EraseRequest, candidates: Sequence[Sequence[str]] = (), per_candidate: int = 1
    ) -> int:
        """UNet evaluations that stored latents take; 0 without a pool."""
        return self.sampler.fill_cost(self.walk(model, request, candidates, per_candidate))

    @property
    def at_most(self) -> bool:
        return self.sampler.bounded

    def mse(self, model: DiffusionModel, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """(B,) mean squared difference per row in the space of ``loss_space``; a, b: (B, C, h, w) predictions at t."""
        square = (a - b).square()
        if self.loss_space != "output":
            if self.sampler.official:  # z_t's label is drawn within a grid step, the weight is that of the step's own level
                assert isinstance(model.schedule, Schedule)
                stride = model.schedule.size // self.sampling_steps
                t = t // stride * stride + model.schedule.steps_offset
            square = square * model.schedule.loss_weight(t, self.loss_space).to(a)
        return square.flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class Searching(Trained):
    """Abstract. A method that searches for the concept to preserve."""

    renamed: ClassVar[Mapping[str, str]] = {
        **Trained.renamed,
        "pool_kept": "per_candidate",
        **{
            name: f"search.{name}"
            for name in ("space", "nearest", "centres", "metric", "apart", "exclude_targets", "hard", "topk", "tau")
        },
        **{name: f"search.{name}" for name in ("update", "ascents", "refresh")},
        "pi_lr": "search.lr",
        "pgd_rate": "search.rate",
        "pgd_radius": "search.radius",
    }

    gradient_rows: ClassVar[int] = 2
    on_miniatures: ClassVar = {
        name: {**budget, "search.nearest": 48, "search.lr": 0.1}
        for name, budget in {"mini": Trained.defaults, "mini-flow": Trained.on_flow}.items()
    }
    """The presets "mini" and "mini-flow" of every method that searches."""
    of_full_size: ClassVar = {
        "paper": {},
        "official": {**Trained.official_code, "search.nearest": 1000, "search.centres": 100},
        "fast": {**Trained.fast, "search.nearest": 50, "search.update": "joint"},
    }
    """The presets of AP, and of the methods that add to it, for models of full size."""

    search: Search = part(Gumbel(), "how the concept to preserve is found", "paper", kinds=SEARCHES)
    per_candidate: int = option(1, "stored trajectories for each candidate", "ours", low=1, needs="sampler=pool|harvest|noised")
    frames: int = option(0, "number of images of the preserved concept to keep on the card", "official --save_freq", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.pooled and self.search.mixes:
            raise BadOption(
                f"sampler={self.sampler.name} needs search.hard=true: a mixture of candidates has no cached latents. "
                "Use sampler=student."
            )

    @property
    def through_encodings(self) -> bool:
        return self.search.joint

    def search_cost(self, model: DiffusionModel, names: Sequence[Sequence[str]]) -> float:
        """UNet evaluations of the search in a whole run, among the candidates ``names`` of each target."""
        image = self.sampling_steps * model.branches(self.guidance)
        return self.search.evals(self.steps, self.batch, names, partial(self.draw_cost, model), image)

    def searched(self, run: Run, request: EraseRequest, names: Sequence[Sequence[str]]) -> dict[str, object]:
        """What the card remembers of the search: the concept of every update, and the candidates
        where there was a list."""
        keys = ("step", "target", "concept", "preserve", "entropy", "margin", "moved")
        log: dict[str, object] = {"adversarial": [{k: row[k] for k in keys if k in row} for row in run.log]}
        if self.search.keeps_names:
            log["candidates"] = {t: list(n) for t, n in zip(request.targets, names, strict=True)}
        return log
