"""AdvUnlearn: train the text encoder to erase the target under prompts that are attacked at every
update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.request import EraseRequest
from ..concepts.spaces import distances
from ..equations.guidance import away_from
from ..errors import BadOption, BadRequest
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.select import TRAINABLE, Select, text_layers
from ..patches import Patch, PatchCard
from ..preservation.adversary import PLACES, drawn_words, word_rows, worded
from ..preservation.candidates import concept_space
from ..training.latents import Group, LatentPool
from ..training.loop import Run, Step, training
from ..training.processes import share
from .base import Method, option

ENCODER = "text-encoder"


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Method):
    """Train the text encoder so that the target stays erased when the prompt is attacked.

    Before every update, an attack looks for words that bring the target back; the update then
    erases the attacked prompt.

    Objective::

        attack    d   <-  start at random words, then ``attack_steps`` steps of Adam down
                          | eps(z_t, t, T'(d, c_e)) - eps(z_t, t, T(c_e)) |^2
        update    T'  <-  Adam on  | eps(z_t, t, T'(d, c_e)) - goal |^2
                                   + gamma mean_r | eps(z_r, t, T'(r)) - eps(z_r, t, T(r)) |^2
        goal = eps_anchor - eta (eps_e - eps_anchor)

    Every step of the attack has a fresh (z_t, t). T is the original text encoder and T' the one
    that is trained. c_e is the target's prompt, d are ``tokens`` embeddings that are added to it,
    and r is a retained prompt: one that must act as before. eps_e and eps_anchor are the original
    model's predictions for target and anchor.

    The first ``warmup`` updates erase the plain prompt, without an attack. Each row of the batch
    has ``retain`` retained prompts, drawn without replacement from the preserve set and from a
    concept space without near-synonyms of the targets. ``keep_null`` adds the empty prompt, which
    guidance needs and the official sets lack. z_t and z_r come from guided trajectories of the
    original model, stored in a pool. While the text encoder is trained, nothing that the
    trajectories depend on changes, so the pool has the right distribution. With UNet weights
    (``train``) the official code samples with the changing UNet, and the pool is a deviation. The
    patch of a text encoder fits every model that has this encoder.

    Variants: ``attack="adam"`` gives Adam the gradient, "sign" gives it the gradient's sign, so
    that every entry moves by ``attack_lr`` at first. Preset "legacy" is the official code with two
    faults that it has (see below), "fast" is its fast_at as the README runs it, with 30 steps and
    without the faults, and "fast-paper" takes the one step that the paper describes.

    Reference: Zhang et al., NeurIPS 2024, arXiv:2405.15234. Code: OPTML-Group/AdvUnlearn.

    Deviations: the concept's place in the prompt is found by its tokens, where the code counts
    words (which cut "nudity" to "nu"). The update uses the result of the last attack step, where
    the code uses that of the step before (``legacy_stale``). The attack's gradients are set to zero
    between its steps, where the code lets them pile up (``legacy_accumulate``). Layers are matched
    by number (in the code "1" also means 10 and 11). t is the noise level that z_t has. The concept
    space of the retained prompts, its filter and ``keep_null`` are ours.

    Official preset: agrees with the official operations up to 3e-5 of the word's movement ("legacy"
    and "fast", five attack steps on the tiny model in float32, tests/test_official.py), the
    concept's place, the level t and the retained prompts left out.

    Cost: filling the pool takes 2 (S - 1) UNet evaluations for each trajectory, with S =
    ``sampling_steps``, and 2 for each stored latent of a target. Then each row and update takes 1 +
    2 (``retain`` + ``keep_null``) and, after the warm-up, ``attack_steps`` with as many backward
    passes. With the official schedule that is 73,584 for one target and 243 retained prompts, where
    the official code spends 1.6 million.
    """

    name: ClassVar[str] = "advunlearn"
    summary: ClassVar[str] = "train the text encoder to erase the target under prompts that are attacked at every update"
    paper: ClassVar[str] = "Zhang et al., NeurIPS 2024, arXiv:2405.15234"
    presets: ClassVar = {
        "paper": {},
        "fast": {"attack": "sign"},
        "fast-paper": {"attack": "sign", "attack_steps": 1},
        "legacy": {"legacy_stale": True, "legacy_accumulate": True, "keep_null": False, "apart": 0.0},
        "mini": {
            "steps": 100,
            "warmup": 20,
            "lr": 3e-4,
            "batch": 4,
            "attack_steps": 5,
            "attack_lr": 0.005,
            "gamma": 1.0,
            "eta": 0.25,
            "retain": 3,
            "pool": 8,
            "sampling_steps": 12,
        },
        "tiny": {"steps": 3, "warmup": 1, "attack_steps": 2, "sampling_steps": 4, "pool": 2, "retain": 2, "lr": 1e-3},
    }

    steps: int = option(1000, "number of weight updates", "official --iterations", low=0)
    warmup: int = option(200, "updates before the attack begins", "official --warmup_iter", low=0, needs="attack_steps")
    lr: float = option(1e-5, "Adam learning rate", "official --lr", low=0.0)
    batch: int = option(1, "training examples in each update, over all processes", "official", low=1)
    train: str = option(ENCODER, "which weights are trained", "paper and released encoders", choices=(ENCODER, *TRAINABLE))
    layers: str = option("all", "which layers of the text encoder: all, or numbers with commas", "official text_encoder_full")
    tokens: int = option(
        1, "number of word embeddings that the attack moves", "official --adv_prompt_num", low=1, needs="attack_steps"
    )
    place: str = option(
        "prefix",
        "where in the prompt the attacked words stand",
        "official prefix_k, suffix_k, mid_k, replace_k",
        choices=PLACES,
        needs="attack_steps",
    )
    attack: str = option(
        "adam",
        "what the attack's Adam is given: the gradient or its sign",
        "official pgd and fast_at",
        choices=("adam", "sign"),
        needs="attack_steps",
    )
    attack_steps: int = option(30, "steps of the attack in each update", "official --attack_step; 0 is no attack", low=0)
    attack_lr: float = option(1e-3, "Adam learning rate of the attack", "official --attack_lr", low=0.0, needs="attack_steps")
    legacy_stale: bool = option(
        False, "train on the words from before the last attack step", "official code", needs="attack_steps"
    )
    legacy_accumulate: bool = option(False, "let the attack's gradients pile up", "official code", needs="attack_steps")
    eta: float = option(1.0, "how far beyond the anchor, away from the target, the goal lies", "official ESD target")
    gamma: float = option(0.3, "weight of the term for retained prompts", "README, nudity", low=0.0)
    retain: int = option(5, "retained prompts for each row of the batch", "official --retain_batch", low=0)
    keep_null: bool = option(True, "retain the empty prompt too", "ours")
    space: str = option(
        "auto",
        "concept space of the retained prompts: auto, world, english, vocabulary, or a file",
        "ours; official 243 objects",
        needs="retain",
    )
    most: int = option(
        243, "largest number of retained names, spread evenly over the space", "official sets", low=1, needs="retain"
    )
    apart: float = option(
        0.02, "names closer to a target than this cosine distance are not retained", "ours", low=0.0, needs="retain"
    )
    pool: int = option(64, "stored trajectories for each target", "ours", low=1)
    pool_kept: int = option(1, "stored trajectories for each retained prompt", "ours", low=1)
    sampling_steps: int = option(50, "sampler steps of a trajectory", "official --ddim_steps", low=2)
    guidance: float = option(3.0, "guidance scale of the trajectories", "official --start_guidance")
    seed: int = option(0, "seed of the training", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legacy_stale and self.attack_steps < 1:
            raise BadOption("legacy_stale needs an attack, and attack_steps is 0; leave one of the two out.")
        if self.layers != "all" and self.train != ENCODER:
            raise BadOption(
                f"layers={self.layers} belongs to the text encoder, and train={self.train} trains other weights. Use layers=all."
            )
        text_layers(self.layers)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text_encoder",) if self.train == ENCODER else ()

    def select(self, model: DiffusionModel) -> Select:
        """The selection of the weights that are trained."""
        return text_layers(self.layers) if self.train == ENCODER else model.select(self.train)

    def retained(self, model: DiffusionModel, request: EraseRequest) -> tuple[list[str], list[str]]:
        """The prompts that must act as before, and the names that were dropped because they are too
        close to a target.

        Raises BadRequest when no prompt is left.
        """
        space = concept_space(self.space, model).without(request.targets).candidates
        names = [space[i * len(space) // self.most] for i in range(self.most)] if len(space) > self.most else list(space)
        rows, targets = model.encode(names).tokens, model.encode(request.targets).tokens
        near = torch.stack([distances(t, rows, "cosine") for t in targets]).amin(0) < self.apart
        dropped = [n for n, gone in zip(names, near.tolist(), strict=True) if gone]
        kept = [n for n in dict.fromkeys([*request.preserve, *names]) if n not in dropped or n in request.preserve]
        if self.retain and not kept:
            raise BadRequest(f"no name of {self.space} is left to retain; lower apart={self.apart}, or give retain=0.")
        return (kept if self.retain else []), dropped

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        kept, _ = self.retained(model, request)
        fill = self.pool * len(request.targets) + self.pool_kept * (len(kept) + self.keep_null)
        known = 2 * self.pool * len(request.targets) * self.sampling_steps
        rows = 1 + 2 * (self.retain + self.keep_null)
        attacks = max(0, self.steps - self.warmup) * self.attack_steps
        walked = fill * model.branches(self.guidance) * (self.sampling_steps - 1)
        return walked + known + self.batch * (self.steps * rows + attacks)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        self.check(model)
        run, spent, select = run or Run(), model.evals.snapshot(), self.select(model)
        kept, dropped = self.retained(model, request)
        student, null = model.student(select), [""] if self.keep_null else []
        origin, weights = model.weights(select), student.weights(select)
        pool, table = self._pool(model, request, [*kept, *null]), word_rows(model)[1]

        for step in training(student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run):
            prompts = [request.targets[i] for i in step.draw(len(request.targets), self.batch)]
            own = share(prompts)
            words: Tensor | None = None
            if step.index >= self.warmup and self.attack_steps:
                words = self._attack(step, student, pool, prompts, table)
            retained = [*self._turn(step.index, kept), *([""] * self.batch if null else [])]
            groups = [retained[i : i + self.batch] for i in range(0, len(retained), self.batch)]
            (known, *z_r), t = pool.draw([_group(model, names) for names in (prompts, *groups)], step)
            z_e, eps_e, eps_0 = known.chunk(3, dim=1)
            c_r = [name for names in groups for name in share(names)]
            z, many = torch.cat([z_e, *z_r]), t.repeat(1 + len(groups))
            new = student.predict(z, many, Cond.cat([_encoded(student, own, words, self.place), *_plain(student, c_r)]))
            goal = away_from(eps_0, eps_e, self.eta)
            terms = {"erase": (new[: len(own)] - goal).square().mean()}
            if groups:
                with torch.no_grad():
                    eps_r = model.predict(z[len(own) :], many[len(own) :], model.encode(c_r))
                terms["retain"] = self.gamma * (new[len(own) :] - eps_r).square().mean()
            step.minimize(**terms)
        keys = ("step", "attack_first", "attack_last")
        attacked = [{k: row[k] for k in keys} for row in run.log if "attack_first" in row]
        card = self.card(model, request, spent, retained=kept, dropped=dropped, attacks=attacked)
        return Patch.between(origin, weights, self._for_the_encoder(model, card))

    def _attack(self, step: Step, student: DiffusionModel, pool: LatentPool, prompts: Sequence[str], table: Tensor) -> Tensor:
        """(B, k, e) word embeddings under which the student, as it is now, comes nearest to drawing
        the target. Logs the first and the last loss."""
        drawn = share([step.draw(len(table), self.tokens) for _ in range(self.batch)])
        words = drawn_words(table, [i for row in drawn for i in row], self.tokens).requires_grad_(True)
        own, before, losses = share(prompts), words.detach().clone(), []
        adam = torch.optim.Adam([words], lr=self.attack_lr)
        with student.frozen():
            for _ in range(self.attack_steps):
                (known,), t = pool.draw([_group(student, prompts)], step)
                z, eps_e, _ = known.chunk(3, dim=1)
                off = (student.predict(z, t, worded(student, own, words, self.place)) - eps_e).square().flatten(1).mean(1)
                (gradient,) = torch.autograd.grad(off.sum(), words)
                if self.legacy_accumulate and words.grad is not None:
                    gradient = words.grad + gradient
                words.grad = gradient.sign() if self.attack == "sign" else gradient
                before = words.detach().clone()
                adam.step()
                losses.append(float(off.detach().mean()))
        step.log(attack_first=losses[0], attack_last=losses[-1])
        return before if self.legacy_stale else words.detach()

    def _pool(self, model: DiffusionModel, request: EraseRequest, kept: Sequence[str]) -> LatentPool:
        """Trajectories of the original model. Beside each latent of a target lie the original
        predictions eps_e and eps_anchor."""
        pool = LatentPool(
            model,
            steps=self.sampling_steps,
            trajectories=self.pool_kept,
            more=dict.fromkeys(request.targets, self.pool),
            guidance=self.guidance,
            solver="ddim",
            seed=self.seed,
            batch=self.batch,
        )
        pool.fill([*request.targets, *kept])
        for target in request.targets:
            pool.add_predictions(target, [(model, target), (model, request.anchor)])
        return pool

    def _turn(self, index: int, kept: Sequence[str]) -> list[str]:
        """The retained prompts of an update: ``retain`` for each row, without replacement until
        every prompt has had its turn.

        They depend on the index of the update alone, so that a resumed run goes on in the same
        order.
        """
        need = self.batch * self.retain
        places = range(index * need, (index + 1) * need)
        orders = {
            turn: torch.randperm(len(kept), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + turn)).tolist()
            for turn in {k // len(kept) for k in places}
        }
        return [kept[orders[k // len(kept)][k % len(kept)]] for k in places]

    def _for_the_encoder(self, model: DiffusionModel, card: PatchCard) -> PatchCard:
        """The card of a text encoder's patch names that encoder, because the patch fits every model
        that has it."""
        if self.train != ENCODER:
            return card
        text = {f"text_encoder_{key}": value for key, value in model.identity("text_encoder").items()}
        return replace(card, base={**card.base, **text})


def _group(model: DiffusionModel, names: Sequence[str]) -> Group:
    return Group(names, model.encode(share(names)))


def _plain(model: DiffusionModel, prompts: Sequence[str]) -> list[Cond]:
    """Encodings that pass gradients to the text encoder's weights, where those are trained."""
    return [model.encode_soft(model.embed(prompts))] if prompts else []


def _encoded(model: DiffusionModel, prompts: Sequence[str], words: Tensor | None, place: str) -> Cond:
    return worded(model, prompts, words, place) if words is not None else _plain(model, prompts)[0]
