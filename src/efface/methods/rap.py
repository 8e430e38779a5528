"""Robust adversarial preservation (RAP), ours: AP with an attack in its loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..concepts.request import EraseRequest
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..patches import Patch
from ..preservation.adversary import PICTURES, Adversary, agreement, near_words, own_and_near
from ..preservation.film import Film
from ..training.loop import Run
from ..training.scene import Scene, predictions
from .base import option
from .trained import Searching, Trained


@dataclass(frozen=True, kw_only=True)
class _Attacked(Trained):
    """Abstract. The attacker that an erasure is trained against."""

    gradient_rows: ClassVar[int] = 2
    learns_words: ClassVar[bool] = True
    paper: ClassVar[str] = "ours"

    eta: float = option(0.0, "how far beyond the anchor, away from the target, the goal lies", "AP's paper 0; official code 1")
    attacks: int = option(2, "steps per update in which a learned word brings the target back", "ours", low=1)
    attack_lr: float = option(5e-3, "Adam learning rate of the learned word", "ours", low=0.0)
    attack_weight: float = option(
        0.5, "share of the learned word in the erasing term, so that the term keeps its weight against lam", "ours", low=0.0
    )
    attack_from: int = option(0, "updates before the attack begins", "ours", low=0)
    attack_near: int = option(32, "vocabulary words around the target at which the learned word may start", "ours", low=1)
    attack_share: float = option(
        0.5, "how far off the target such a word may draw: 0 is the target itself, 1 the anchor", "ours", low=0.0
    )
    restart: int = option(10, "updates after which the learned word starts anew, 0 for never", "ours", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack_from >= self.steps > 0:
            raise BadOption(f"the attack would begin at update {self.attack_from} of {self.steps}; lower attack_from.")
        if self.attack_weight > 1:
            raise BadOption(f"attack_weight={self.attack_weight} is a share of the erasing term; it must not be above 1.")

    def attack_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        """UNet evaluations of the attack in a whole run, with the choice of its starting words."""
        fought = self.batch * max(0, self.steps - self.attack_from) * (1 + self.attacks * (self.draw_cost(model, 1) + 2))
        shown = sum(len(words) + 2 for words in near_words(model, request.targets, self.attack_near))
        drawn = len(request.targets) * model.branches(self.guidance) * self.sampling_steps
        return fought + PICTURES * (shown + drawn)

    def starting_words(self, model: DiffusionModel, request: EraseRequest) -> list[dict[str, float]]:
        """For each target, the near words by which the original model draws it too, and how far off
        each one is."""
        found = []
        for i, (target, words) in enumerate(
            zip(request.targets, near_words(model, request.targets, self.attack_near), strict=True)
        ):
            seed = self.seed * 1_000_003 + i
            off = agreement(model, target, request.anchor, words, steps=self.sampling_steps, guidance=self.guidance, seed=seed)
            found.append({word: far for word, far in off.items() if far <= self.attack_share})
        return found

    def adversary(self, scene: Scene, words: list[dict[str, float]]) -> Adversary:
        """The attacker at the start of its work."""
        starts = [own_and_near(scene.model, t, list(near)) for t, near in zip(scene.targets, words, strict=True)]
        return Adversary(scene, starts, lr=self.attack_lr, restart=self.restart)

    def shared(self, new_e: Tensor, attacked: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The erasing terms of the target's name and of the learned word, weighted by their shares.
        Both are means over the rows."""
        if not attacked:
            return new_e, {}
        return (1 - self.attack_weight) * new_e, {"attacked": self.attack_weight * attacked[0]}

    def fought(self, run: Run, request: EraseRequest, words: list[dict[str, float]]) -> dict[str, Any]:
        """What the card remembers of the attack."""
        told = ("step", "attack_first", "attack_last")
        return {
            "attack_words": dict(zip(request.targets, words, strict=True)),
            "attacks": [{k: row[k] for k in told} for row in run.log if "attack_first" in row],
        }


@dataclass(frozen=True, kw_only=True)
class RAP(_Attacked, Searching):
    """Erase the target, preserve the concept that the erasure hurts most, and withstand a word that
    brings the target back.

    Objective::

        min_theta'  (1 - b) | eps'(z_t, t, c_e) - goal |^2  +  b max_w | eps'(z_t, t, w) - goal |^2
                    + lam max_c_a | eps'(z'_t, t, c_a) - eps(z'_t, t, c_a) |^2
        w  <-  Adam down | eps'(z_t, t, w) - eps(z_t, t, c_e) |^2,  the weights fixed
        goal = eps_anchor - eta (eps_e - eps_anchor)

    b is ``attack_weight``, w a learned word in the place of the target's name; the other symbols
    are those of AP. Before every update, w takes ``attacks`` steps, each on a fresh draw of the
    target's latents. Every ``restart`` updates, w starts anew: at the name, or at a vocabulary word
    that the text encoder puts near the name (``attack_near``) and by which the original model draws
    the target too (``attack_share``).

    Variants: ``search`` as in AP. Without the attack this is AP bit for bit, without the search it
    is ``rap-attack``.

    Reference: ours; docs/rap.md has the reasons and the ablation. Adversarial preservation is by
    Bui et al., NeurIPS 2024.

    Official preset: there is no official code of this method. "official" preserves and erases as
    AP's preset of that name, whose agreement is measured, and the attack is ours.

    Cost: that of AP, and per row and attacked update 1 evaluation more in the update and 2 k + 2
    for each step of the word; once per target 8 pictures, and 8 evaluations for each near word and
    two more. With a filled pool, 2 k becomes 0.
    """

    gradient_rows: ClassVar[int] = 3
    name: ClassVar[str] = "rap"
    summary: ClassVar[str] = "adversarial preservation with an attack in its loop (ours)"
    presets: ClassVar = {
        **Searching.of_full_size,
        **Searching.on_miniatures,
        "tiny": {"steps": 3, "sampling_steps": 5, "search.nearest": 4},
    }

    lam: float = option(1.0, "weight of the preservation term", "official code 1 (implicit)", low=0.0)

    @property
    def label(self) -> str:
        return "rap" if self.search.name == "gumbel" else f"rap-{self.search.name}"

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        names = self.search.candidates(model, request)
        update = 4 + (self.eta != 0) + self.draw_cost(model, self.search.groups)
        searched = self.search_cost(model, names)
        film = Film.evals(self.frames, self.steps, self.sampling_steps, model.branches(self.guidance))
        filled = self.fill_cost(model, request, names, self.per_candidate)
        return self.batch * self.steps * update + searched + film + filled + self.attack_evals(model, request)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent = run or Run(), model.evals.snapshot()
        names, words = self.search.candidates(model, request), self.starting_words(model, request)
        scene = self.scene(model, request, names, self.per_candidate)
        search, adversary = self.search.begin(scene, names), self.adversary(scene, words)
        film = Film(self.frames, self.steps, self.sampling_steps, self.guidance)
        for step in self.updates(scene, run, {"search": search, "adversary": adversary, "film": film}):
            # Attack: a word descends towards the target by the weights as they are now.
            attacked = step.index >= self.attack_from
            if attacked:
                adversary.attack(step, self.attack_from, self.attacks)
            # Descent: the weights follow the erasure of the name and of the word, and hold on to the adversarial concept.
            e, target = scene.draw(step)
            chosen = search.choose(e, step)
            film.take(step, model, scene.student, chosen, target.names[0])
            z, t = scene.latents.draw(search.groups(target, chosen), step)
            z_e, z_a = z[0], z[-1]
            goal, eps_a = scene.goal(target, z_e, t, self.eta, (z_a, chosen.fixed()))
            word = [(z_e, adversary.cond(e).detached())] if attacked else []
            new_e, new_a, *new_w = predictions(scene.student, [(z_e, target.cond), (z_a, chosen.cond), *word], t)
            step.log(target=target.names[0], concept=chosen.names[0], **search.facts(e[0]))
            erase, fought = self.shared(
                scene.distance(new_e, goal, t).mean(), [scene.distance(new, goal, t).mean() for new in new_w]
            )
            step.minimize(erase=erase, preserve=self.lam * scene.distance(new_a, eps_a, t).mean(), **fought)
            # Ascent: the search follows the damage that these weights do.
            search.climb(step, e)
        log = {**self.searched(run, request, names), **self.fought(run, request, words), **film.log()}
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent, **log))


@dataclass(frozen=True, kw_only=True)
class RAPAttack(_Attacked):
    """RAP without preservation: erase the target and withstand a word that brings it back. The
    ablation of RAP.

    Objective::

        min_theta'  (1 - b) | eps'(z_t, t, c_e) - goal |^2  +  b max_w | eps'(z_t, t, w) - goal |^2

    The symbols and the attack are those of RAP.

    Reference: ours; docs/rap.md.

    Official preset: there is no official code of this method. "official" erases as the preset of
    the baseline ``naive`` does, whose agreement is measured, and the attack is ours.

    Cost: that of the baseline ``naive``, and for the attack as in RAP.
    """

    name: ClassVar[str] = "rap-attack"
    summary: ClassVar[str] = "the attack of rap without its preservation: an ablation"
    presets: ClassVar = {
        "paper": {},
        "official": {"eta": 1.0, "loss_space": "x0", "sampler.alignment": "official"},
        "mini": Trained.defaults,
        "mini-flow": Trained.on_flow,
        "fast": {"sampler": "pool", "sampler.trajectories": 4, "solver": "dpm", "sampling_steps": 15},
        "tiny": {"steps": 3, "sampling_steps": 5},
    }

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        update = 2 + (self.eta != 0) + self.draw_cost(model, 1)
        return self.batch * self.steps * update + self.fill_cost(model, request) + self.attack_evals(model, request)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent, words = run or Run(), model.evals.snapshot(), self.starting_words(model, request)
        scene = self.scene(model, request)
        adversary = self.adversary(scene, words)
        for step in self.updates(scene, run, {"adversary": adversary}):
            attacked = step.index >= self.attack_from
            if attacked:
                adversary.attack(step, self.attack_from, self.attacks)
            e, target = scene.draw(step)
            (z_e,), t = scene.latents.draw([target], step)
            (goal,) = scene.goal(target, z_e, t, self.eta)
            word = [(z_e, adversary.cond(e).detached())] if attacked else []
            new_e, *new_w = predictions(scene.student, [(z_e, target.cond), *word], t)
            erase, fought = self.shared(
                scene.distance(new_e, goal, t).mean(), [scene.distance(new, goal, t).mean() for new in new_w]
            )
            step.minimize(erase=erase, **fought)
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent, **self.fought(run, request, words)))
