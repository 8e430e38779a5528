"""Adversarial preservation (AP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..concepts.request import EraseRequest
from ..concepts.spaces import ConceptSpace, distances, smallest
from ..equations.diffusion import x0_loss_weight
from ..equations.guidance import away_from
from ..equations.simplex import entropy
from ..errors import BadOption
from ..models.base import DiffusionModel, mean_walk
from ..models.cond import Cond
from ..models.select import SELECTIONS, selection
from ..patches import Patch
from ..search import Logits, Pool, adversarial, concept_space
from ..training import Run, Step, training
from .base import Method, option


@dataclass(frozen=True, kw_only=True)
class AP(Method):
    """Erase the target and, at every step, preserve the concept that the erasure hurts most.

        min_theta' max_pi   | eps'(z_t, t, c_e) - goal |^2  +  lam | eps'(z'_t, t, c_a) - eps(z'_t, t, c_a) |^2
        goal = eps(z_t, t, c_anchor) - eta (eps(z_t, t, c_e) - eps(z_t, t, c_anchor))
        c_a  = G(pi) . M_e,    M_e the ``nearest`` candidates around c_e,  G the Gumbel-Softmax over their rows

    The descent step trains the student with c_a fixed; then ``ascents`` steps of Adam on pi climb the preservation term
    with the weights fixed, each on fresh draws. Logits live per target, start uniform and are kept for the whole run.

    Reference: Bui et al., NeurIPS 2024, "Erasing Undesirable Concepts in Diffusion Models with Adversarial Preservation".
    Code: tuananhbui89/Erasing-Adversarial-Preservation, train_adversarial_gumbel.py.
    Variants: preset "paper": noise space, eta 0 (map to the anchor), cosine neighbours. Preset "official": x0 space (the
    inverse-SNR weight (1 - ab)/ab), goal 2 eps_0 - eps_e, L2 neighbours, the shifted time alignment, erased names stay
    among the candidates.
    Deviations: the erased concepts are excluded from the candidates (``exclude_targets``; the official code forgets to);
    the ascent step samples nothing it does not use; trajectories of c_e and c_a run as one batch from the same start; no
    1-D k-means over distances. ``request.preserve`` joins the candidates of every target.
    ``sampler="pool"``: latents come from the frozen model and are drawn from a pool that is filled once, which changes the
    distribution of z_t from theta' to theta (as the newer ESD code does) and nothing else; needs ``hard=True``, where c_a
    always is one candidate.
    Cost: per step, k uniform on 0 .. S-1: descent 4 k + 5, ascent 2 k + 2 each (154 at S = 50 and one ascent; the official
    code spends 213.84). Pool: 5 + 2 per ascent, after 2 (S - 1) per concept and trajectory to fill it.
    """

    name: ClassVar[str] = "ap"
    summary: ClassVar[str] = "erase the target, preserve the concept that the erasure hurts most"
    paper: ClassVar[str] = "Bui et al., NeurIPS 2024"
    presets: ClassVar = {
        "paper": {},
        "official": {
            "eta": 1.0,
            "loss_space": "x0",
            "metric": "l2",
            "alignment": "official",
            "exclude_targets": False,
        },
        "mini": {
            "steps": 150,
            "lr": 5e-4,
            "sampling_steps": 12,
            "batch": 4,
            "eta": 1.0,
            "lam": 3.0,
            "nearest": 48,
            "pi_lr": 0.1,
            "sampler": "pool",
        },
        "tiny": {"steps": 3, "sampling_steps": 5, "nearest": 4},
    }

    eta: float = option(0.0, "how far beyond the anchor the goal lies", "paper 0; official code 1")
    lam: float = option(1.0, "weight of the preservation term", "official code (implicit)", low=0.0)
    loss_space: str = option("eps", "space of both losses", "paper eps; official code x0", choices=("eps", "x0"))
    space: str = option("auto", "candidates: auto, vocabulary, or a file of names", "ours; officially 3,000 English words")
    nearest: int = option(100, "candidates kept around each target", "official centres 100", low=1)
    metric: str = option("cosine", "distance of candidates", "paper cosine; official code l2", choices=("cosine", "l2"))
    exclude_targets: bool = option(True, "remove the targets from the candidates", "paper; official code forgets")
    hard: bool = option(True, "one-hot c_a with straight-through gradient", "official scripts --gumbel_hard 1")
    tau: float = option(2.0, "Gumbel-Softmax temperature", "official --gumbel_temp", low=1e-6)
    pi_lr: float = option(1e-2, "Adam learning rate of the logits", "official scripts --gumbel_lr", low=0.0)
    ascents: int = option(1, "search steps per weight update", "official pgd_num_steps 2 = one ascent", low=0)
    sampler: str = option("exact", "where z_t comes from", "official: student trajectories", choices=("exact", "pool"))
    pool: int = option(2, "trajectories per concept in the pool", "ours", low=1)
    steps: int = option(1000, "weight updates", "official --iterations", low=0)
    lr: float = option(1e-5, "Adam learning rate", "official", low=0.0)
    batch: int = option(1, "(c_e, c_a, z, t) draws per update", "official", low=1)
    sampling_steps: int = option(50, "grid of the partial sampling", "official --ddim_steps", low=2)
    guidance: float = option(3.0, "guidance of the partial sampling", "official --start_guidance")
    alignment: str = option("exact", "noise level of z_t against t", "ours; official code shifted", choices=("exact", "official"))
    train: str = option("xattn", "trained parameters", "official scripts (nudity: noxattn)", choices=tuple(SELECTIONS))
    seed: int = option(0, "training seed", "ours")

    def __post_init__(self) -> None:
        if self.sampler == "pool" and not self.hard:
            raise BadOption("sampler=pool needs hard=true: a mixture of candidates has no cached latents. Use sampler=exact.")
        if self.sampler == "pool" and self.alignment == "official":
            raise BadOption("sampler=pool keeps every level of a trajectory, so alignment=official does not exist for it.")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        s = self.sampling_steps
        walked = mean_walk(s, self.official)
        if self.sampler == "pool":
            concepts = len(request.targets) + sum(len(names) for names in self.candidates(model, request))
            return 2 * (s - 1) * self.pool * concepts + self.steps * self.batch * (5 + 2 * self.ascents)
        return self.steps * self.batch * (4 * walked + 5 + self.ascents * (2 * walked + 2))

    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        """The searched names of every target: its nearest in the concept space, then the request's preserve set."""
        space = concept_space(self.space, model)
        if self.exclude_targets:
            space = space.without(request.targets)
        space = space.require(1)
        targets, parts = model.encode(request.targets).tokens, []
        for i in range(0, len(space.candidates), 512):  # in parts: a whole vocabulary of embeddings is 11 GB on SD 1.x
            tokens = model.encode(space.candidates[i : i + 512]).tokens
            parts.append(torch.stack([distances(target, tokens, self.metric) for target in targets]))
        found = []
        for distance in torch.cat(parts, dim=1):
            near = [space.candidates[i] for i in smallest(distance, self.nearest)]
            found.append(ConceptSpace.of(space.name, [*near, *request.preserve]).candidates)
        return found

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent, select = run or Run(), model.evals.snapshot(), selection(self.train)
        names = self.candidates(model, request)
        c_targets, c_anchor = model.encode(request.targets), model.encode([request.anchor] * self.batch)
        rows = [model.encode(n) for n in names]  # M_e of every target
        logits = Logits([len(n) for n in names], self.pi_lr)
        student = model.student(select)
        pool = self._pool(model) if self.sampler == "pool" else None
        if pool is not None:
            pool.fill([*request.targets, *(n for group in names for n in group)])
        for step in training(student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run, carry={"pi": logits}):
            # Descent: the weights follow the erasure and hold on to the adversarial concept.
            e = [step.randint(len(request.targets)) for _ in range(self.batch)]
            choice = [logits.draw(i, step, self.tau, self.hard) for i in e]
            c_e, c_a = c_targets[e], adversarial(choice, rows, e)
            picked = [int(y.argmax()) for y in choice]
            if pool is None:
                k, jitter = self._level(step, model)
                noise = model.noise(self.batch, step.rng)
                z, t = student.sample_until(
                    Cond.cat([c_e, c_a]), k, self.sampling_steps, torch.cat([noise, noise]), self.guidance, self.official, jitter
                )
                z_e, z_a = z.chunk(2)
                t = t[: self.batch]
            else:
                k, levels = -1, [step.randint(self.sampling_steps) for _ in e]
                z_e = pool.latents_of([request.targets[i] for i in e], levels, step)
                z_a = pool.latents_of([names[i][j] for i, j in zip(e, picked, strict=True)], levels, step)
                t = pool.timesteps(levels)
            with torch.no_grad():
                eps_e, eps_anchor, eps_a = model.predict(
                    torch.cat([z_e, z_e, z_a]), torch.cat([t, t, t]), Cond.cat([c_e, c_anchor, c_a])
                ).chunk(3)
            new_e, new_a = student.predict(torch.cat([z_e, z_a]), torch.cat([t, t]), Cond.cat([c_e, c_a])).chunk(2)
            preserve = self._mse(model, new_a, eps_a, t)
            step.log(
                k=k,
                target=request.targets[e[0]],
                concept=names[e[0]][picked[0]],
                entropy=float(entropy(logits.values[e[0]].detach() / self.tau)),
            )
            step.minimize(erase=self._mse(model, new_e, away_from(eps_anchor, eps_e, self.eta), t), preserve=self.lam * preserve)
            # Ascent: the search climbs the damage of the weights as they are now.
            for _ in range(self.ascents):
                self._ascend(step, model, student, request, names, rows, logits, pool)
        adversarial_log = [
            {key: row[key] for key in ("step", "target", "concept", "preserve", "entropy")} for row in run.log if "concept" in row
        ]
        card = self.card(
            model,
            request,
            spent,
            adversarial=adversarial_log,
            candidates={t: list(n) for t, n in zip(request.targets, names, strict=True)},
        )
        return Patch.between(model.weights(select), student.weights(select), card)

    def _ascend(
        self,
        step: Step,
        model: DiffusionModel,
        student: DiffusionModel,
        request: EraseRequest,
        names: list[tuple[str, ...]],
        rows: list[Cond],
        logits: Logits,
        pool: Pool | None,
    ) -> None:
        """One Adam ascent of pi on the preservation term, on fresh draws; no weight collects a gradient."""
        e = [step.randint(len(request.targets)) for _ in range(self.batch)]
        choice = [logits.draw(i, step, self.tau, self.hard) for i in e]
        c_a = adversarial(choice, rows, e)
        fixed = Cond(c_a.tokens.detach(), c_a.last)
        if pool is None:
            k, jitter = self._level(step, model)
            step.log(ascent_k=[*step.logged.get("ascent_k", []), k])
            noise = model.noise(self.batch, step.rng)
            z_a, t = student.sample_until(fixed, k, self.sampling_steps, noise, self.guidance, self.official, jitter)
        else:
            levels = [step.randint(self.sampling_steps) for _ in e]
            z_a, t = (
                pool.latents_of([names[i][int(y.argmax())] for i, y in zip(e, choice, strict=True)], levels, step),
                pool.timesteps(levels),
            )
        with student.frozen():
            with torch.no_grad():
                eps_a = model.predict(z_a, t, fixed)  # no gradient through the frozen model, as officially
            damage = self._mse(model, student.predict(z_a, t, c_a), eps_a, t)
            logits.ascend(damage, used=set(e))

    @property
    def official(self) -> bool:
        return self.alignment == "official"

    def _level(self, step: Step, model: DiffusionModel) -> tuple[int, int]:
        stride = len(model.schedule.alphas_cumprod) // self.sampling_steps
        return step.randint(self.sampling_steps), step.randint(stride) if self.official else 0

    def _pool(self, model: DiffusionModel) -> Pool:
        return Pool(model, steps=self.sampling_steps, trajectories=self.pool, guidance=self.guidance, seed=self.seed)

    def _mse(self, model: DiffusionModel, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        if self.loss_space == "eps":
            return mse_loss(a, b)
        return ((a - b).square() * x0_loss_weight(model.schedule.ab(t).to(a))).mean()
