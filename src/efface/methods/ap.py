"""Adversarial preservation (AP), and the controls it must be compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.request import EraseRequest, normalised
from ..equations.guidance import away_from
from ..errors import BadOption, UnknownName
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.select import selection
from ..patches import Patch
from ..preservation.adversary import LOOKS, Adversary, agreement, own_and
from ..preservation.candidates import candidates
from ..preservation.exhaustive import ExhaustiveSearch
from ..preservation.film import Film
from ..preservation.gumbel import GumbelSearch
from ..preservation.pgd import PgdSearch
from ..preservation.search import Climbing, Search
from ..preservation.uniform import UniformSearch
from ..training.latents import Group, Latents
from ..training.loop import Run, Stateful, Step, training
from ..training.processes import share
from .base import option
from .trained import Searching, predictions

SEARCHED = ("gumbel", "exhaustive", "random")
AMONG = "search=" + "|".join(SEARCHED)
SEARCHES = (*SEARCHED, "pgd", "fixed", "neutral", "none")


@dataclass(frozen=True, kw_only=True)
class AP(Searching):
    """Erase the target and, at every step, preserve the concept that the erasure hurts most.

        min_theta' max_c_a   | eps'(z_t, t, c_e) - goal |^2  +  lam | eps'(z'_t, t, c_a) - eps(z'_t, t, c_a) |^2
        goal = eps(z_t, t, c_anchor) - eta (eps(z_t, t, c_e) - eps(z_t, t, c_anchor))

    ``search`` says how c_a is found; the rest is the same for all, so that rows of a comparison differ in what they are called:

    - "gumbel": c_a = G(pi) . M_e, M_e the ``nearest`` candidates around c_e, G the Gumbel-Softmax over their rows. After the
      descent step of the weights, ``ascents`` steps of Adam on pi climb the preservation term with the weights fixed, each on
      fresh draws (``update="joint"``: the descent's own backward pass moves pi too). The paper's search.
    - "exhaustive": the worst of all candidates by the damage itself, looked up again every ``refresh`` updates.
    - "random": any candidate, uniformly. "fixed": the request's preserve set, uniformly; "fixed:NAME": that concept.
      "neutral": the anchor. "none": no preservation term at all, which is naive erasure.
    - "pgd": a free embedding that starts at c_e, climbed by ``ascents`` steps of length ``pgd_rate |c_a|`` on one draw. The
      authors report that it collapses; so does ours, and it is here to show that.

    ``shrink``: after every update the weights go back a share of their way (L2 regularisation in proximal form).
    ``attacks``: before every update a learned word w takes so many Adam steps down |eps'(z_t, t, w) - eps(z_t, t, c_e)|^2 with
    the weights fixed, each on a fresh draw of the same latents, and |eps'(z_t, t, w) - goal|^2 is half of the erasing term
    (``attack_weight``). w stands in the name's place and starts, every ``restart`` updates, at the name or at a vocabulary word
    that the text encoder puts near it (``attack_near``) and by which the original model draws the target too (``attack_share``).
    Beside the search this is robust adversarial preservation (RAP, ours): docs/rap.md has the reasons and the ablation.
    Reference: Bui et al., NeurIPS 2024, "Erasing Undesirable Concepts in Diffusion Models with Adversarial Preservation".
    Code: tuananhbui89/Erasing-Adversarial-Preservation, train_adversarial_gumbel.py, train_adversarial_pgd.py.
    Variants: preset "paper": noise space, eta 0 (map to the anchor), cosine neighbours. Preset "official": x0 space (the
    inverse-SNR weight (1 - ab)/ab), goal 2 eps_0 - eps_e, L2 neighbours, the shifted time alignment, erased names stay among
    the candidates. Presets "naive", "l2", "neutral", "random", "exhaustive", "pgd" change the search (or shrink) alone, "rap" and
    "rap-attack" add the attack with the search and without it.
    Deviations: the erased concepts are excluded from the candidates (``exclude_targets``; the official code forgets to); the
    ascent step samples nothing it does not use; trajectories of c_e and c_a run as one batch from the same start and share its
    first unconditional pass; ``request.preserve`` joins the candidates of every target; with a pooled sampler rows have noise
    levels of their own. "pgd" measures its term on the target's latents, as officially. A pooled sampler needs a c_a that is
    one of the candidates: ``hard=True``.
    Cost: per row and step, k uniform on 0 .. S-1, less one evaluation where k > 0: descent 4 k + 5 (eta = 0: 4 k + 4), each
    ascent 2 k + 2 (153 at S = 50 and one ascent; the official code spends 213.84); no ascent with ``update="joint"``; "none": 2 k
    + 3 (2); exhaustive: 2 k + 2 n per target and refresh; each attack 2 k + 2 and the descent 1 more, and once per target 8
    pictures and 8 evaluations for each of so many near words and two. With a filled pool: 2 k and 4 k become 0. "harvest": see
    its fill_cost.
    """

    name: ClassVar[str] = "ap"
    summary: ClassVar[str] = "erase the target, preserve the concept that the erasure hurts most"
    paper: ClassVar[str] = "Bui et al., NeurIPS 2024"
    presets: ClassVar = {
        "paper": {},
        "official": Searching.official_code,
        "mini": {**Searching.defaults, "nearest": 48, "pi_lr": 0.1},
        "fast": {"sampler": "pool", "pool": 4, "solver": "dpm", "sampling_steps": 15, "nearest": 50, "update": "joint"},
        "tiny": {"steps": 3, "sampling_steps": 5, "nearest": 4},
        "naive": {"search": "none"},
        "l2": {"search": "none", "shrink": 1e-2},
        "neutral": {"search": "neutral"},
        "fixed": {"search": "fixed"},
        "random": {"search": "random"},
        "exhaustive": {"search": "exhaustive"},
        "pgd": {"search": "pgd", "ascents": 10, "lam": 0.01},
        "rap": {"attacks": 2},
        "rap-attack": {"attacks": 2, "search": "none"},
    }

    eta: float = option(0.0, "how far beyond the anchor the goal lies", "paper 0; official code 1")
    lam: float = option(
        1.0, "weight of the preservation term", "official code 1 (implicit); pgd 0.01", low=0.0, needs="search!=none"
    )
    search: str = option("gumbel", f"how c_a is found: {', '.join(SEARCHES)} or fixed:NAME", "paper")
    space: str = option(
        "auto", "candidates: auto, world, english, vocabulary, or a file of names", "officially 3,000 English words", needs=AMONG
    )
    nearest: int = option(
        100, "candidates kept around each target", "official --gumbel_k_closest 1000, then 100 centres", low=1, needs=AMONG
    )
    centres: int = option(0, "thin the nearest to so many, 0: all", "official --gumbel_num_centers 100", low=0, needs=AMONG)
    metric: str = option(
        "cosine", "distance of candidates", "paper cosine; official code l2", choices=("cosine", "l2"), needs=AMONG
    )
    exclude_targets: bool = option(True, "remove the targets from the candidates", "paper; official code forgets", needs=AMONG)
    hard: bool = option(
        True, "one-hot c_a with straight-through gradient", "official scripts --gumbel_hard 1", needs="search=gumbel"
    )
    tau: float = option(2.0, "Gumbel-Softmax temperature", "official --gumbel_temp", low=1e-6, needs="search=gumbel")
    pi_lr: float = option(
        1e-2, "Adam learning rate of the logits", "official scripts --gumbel_lr", low=0.0, needs="search=gumbel"
    )
    update: str = option(
        "alternate",
        "search after the weights, or with them",
        "official alternate; joint ours",
        choices=("alternate", "joint"),
        needs="search=gumbel|pgd",
    )
    ascents: int = option(
        1,
        "search steps per weight update",
        "official pgd_num_steps 2 = one ascent; pgd 100",
        low=0,
        needs="search=gumbel|pgd and update=alternate",
    )
    refresh: int = option(10, "updates between two exhaustive searches", "ours", low=1, needs="search=exhaustive")
    pgd_rate: float = option(
        1e-3, "length of a pgd step in units of |c_a|", "ours; official --pgd_lr 1e-5", low=0.0, needs="search=pgd"
    )
    pgd_radius: float = option(0.0, "largest |c_a - c_e| / |c_e|, 0: none", "official: none", low=0.0, needs="search=pgd")
    shrink: float = option(0.0, "share of the change taken back per update", "ours", low=0.0)
    attacks: int = option(0, "steps per update that bring the target back by a learned word, 0: no attack", "ours", low=0)
    attack_lr: float = option(5e-3, "Adam learning rate of the learned word", "ours", low=0.0, needs="attacks")
    attack_weight: float = option(
        0.5, "the word's share of the erasing term, so that its weight against lam stays", "ours", low=0.0, needs="attacks"
    )
    attack_from: int = option(0, "updates before the attack begins", "ours", low=0, needs="attacks")
    attack_near: int = option(
        32, "vocabulary words around the target that may be where it starts", "ours", low=1, needs="attacks"
    )
    attack_share: float = option(
        0.5, "and how far off the target they may draw, the anchor being 1", "ours", low=0.0, needs="attacks"
    )
    restart: int = option(10, "updates after which the word starts anew, 0: never", "ours", low=0, needs="attacks")
    frames: int = option(0, "pictures of the searched concept kept on the card", "official --save_freq", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search not in SEARCHES and not self.search.startswith("fixed:"):
            raise UnknownName("search", self.search, SEARCHES)
        self.need_hard(self.hard or self.search != "gumbel")
        if self.update == "joint" and self.search not in ("gumbel", "pgd"):
            raise BadOption(f"update=joint moves a search by gradients; search={self.search} has none. Use update=alternate.")
        if self.frames and self.search == "none":
            raise BadOption("frames shows what the search looks at; search=none looks at nothing. Use frames=0.")
        if self.attacks and self.attack_from >= self.steps > 0:
            raise BadOption(
                f"the attack would begin at update {self.attack_from} of {self.steps}; lower attack_from, or attacks=0."
            )
        if self.attack_weight > 1:
            raise BadOption(f"attack_weight={self.attack_weight} is a share of the erasing term; it must not be above 1.")
        if self.shrink > 1:
            raise BadOption(f"shrink={self.shrink} is a share of the change; it must not be above 1.")

    @property
    def label(self) -> str:
        kind = self.search.partition(":")[0]
        if self.attacks:
            return {"gumbel": "rap", "none": "rap-attack"}.get(kind, f"rap-{kind}")
        if self.search == "none":
            return "l2" if self.shrink else "naive"
        return {"gumbel": "ap", "fixed": "fixed", "neutral": "neutral"}.get(kind, f"ap-{kind}")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        names = self.candidates(model, request)
        cost = 1 + 1 + (self.eta != 0) + self.draw_cost(self._groups)  # anchor and student; the target where eta asks for it
        if self.search != "none":
            cost += 2
        ranked = self.draw_cost(1) * len(request.targets) + 2 * sum(map(len, names))
        refreshes = -(-self.steps // self.refresh) if self.search == "exhaustive" else 0
        cost += (self.update == "alternate") * self._climbs * self._ascent_cost
        film = Film.evals(self.frames, self.steps, self.sampling_steps)
        pooled = self.fill_cost(request, names)
        total = self.batch * self.steps * cost + refreshes * ranked + film + pooled
        if self.attacks:
            fought = max(0, self.steps - self.attack_from)
            total += self.batch * fought * (1 + self.attacks * (self.draw_cost(1) + 2))
            shown = sum(len(words) + 2 for words in self._near(model, request))
            total += LOOKS * (shown + len(request.targets) * 2 * self.sampling_steps)
        return total

    @property
    def _climbs(self) -> bool:
        return self.search in ("gumbel", "pgd")

    @property
    def _groups(self) -> int:
        """Conditionings that need latents of their own in the descent."""
        return 1 if self.search in ("none", "pgd") else 2

    @property
    def _ascent_cost(self) -> float:
        rounds, repeats = self._rounds
        return rounds * (self.draw_cost(1) + 2 * repeats)

    @property
    def _rounds(self) -> tuple[int, int]:
        """Draws per update, and ascents on each: pgd climbs on one draw, gumbel draws anew for every ascent."""
        return (min(self.ascents, 1), self.ascents) if self.search == "pgd" else (self.ascents, 1)

    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        """What may be preserved, per target. Empty for "none"; for "pgd" the target itself, where it starts."""
        if self.search in SEARCHED:
            return candidates(
                model,
                self.space,
                request.targets,
                exclude_targets=self.exclude_targets,
                nearest=self.nearest,
                metric=self.metric,
                centres=self.centres,
                always=request.preserve,
            )
        if self.search == "none":
            kept: tuple[str, ...] = ()
        elif self.search == "pgd":
            return [(target,) for target in request.targets]
        elif self.search == "fixed":
            kept = request.preserve
            if not kept:
                raise BadOption(
                    "search=fixed preserves the request's preserve set, which is empty; name concepts with --preserve."
                )
        else:
            kept = (request.anchor if self.search == "neutral" else self.search.removeprefix("fixed:"),)
        taken = [t for t in request.targets if normalised(t) in map(normalised, kept)]
        if taken:
            raise BadOption(f"search={self.search} would preserve {taken[0]!r}, which is to be erased.")
        return [kept for _ in request.targets]

    def _search(self, request: EraseRequest, names: list[tuple[str, ...]], rows: list[Cond]) -> Search | None:
        if self.search == "none":
            return None
        if self.search == "pgd":
            return PgdSearch(request.targets, Cond.cat(rows), rate=self.pgd_rate, radius=self.pgd_radius)
        if self.search == "gumbel":
            return GumbelSearch(names, rows, tau=self.tau, hard=self.hard, lr=self.pi_lr)
        if self.search == "exhaustive":
            return ExhaustiveSearch(names, rows, self.refresh)
        return UniformSearch(names, rows)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent, select, log = run or Run(), model.evals.snapshot(), selection(self.train), dict[str, Any]()
        names = self.candidates(model, request)
        c_targets, c_anchor = model.encode(request.targets), model.encode([request.anchor])
        search = self._search(request, names, [model.encode(n) for n in names] if self.search != "none" else [])
        student = model.student(select)
        latents = self.latents(model, student, request, names)
        film = Film(self.frames, self.steps, self.sampling_steps, self.guidance)
        origin, weights = model.weights(select), student.weights(select)
        adversary = (
            Adversary(model, request.targets, self._starts(model, request, log), lr=self.attack_lr, restart=self.restart)
            if self.attacks
            else None
        )
        more: dict[str, Stateful | None] = {"search": search, "adversary": adversary}
        carry: dict[str, Stateful] = {"latents": latents, "film": film, **{k: v for k, v in more.items() if v is not None}}

        def damage(c_a: Cond, z_a: Tensor, t: Tensor) -> Tensor:
            """(B,) what the weights as they are now have done to c_a; no gradient through the frozen model, as officially."""
            with torch.no_grad():
                eps_a = model.predict(z_a, t, c_a.detached())
            return self.mse(model, student.predict(z_a, t, c_a), eps_a, t)

        for step in training(student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run, carry=carry):
            attacked = adversary if step.index >= self.attack_from else None
            if attacked is not None:
                self._attack(step, model, student, request, attacked, latents, c_targets)
            # Descent: the weights follow the erasure and hold on to the adversarial concept.
            e = step.draw(len(request.targets), self.batch)
            target = Group([request.targets[i] for i in e], c_targets[list(share(e))])
            c_e, c_0 = target.cond, c_anchor.repeat(len(target.cond))
            terms: dict[str, Tensor] = {}
            if search is None:
                (z_e,), t = latents.draw([target], step)
            else:
                if isinstance(search, ExhaustiveSearch) and search.due(step):
                    for i, group in enumerate(names):
                        z, t = latents.common(group, search.rows[i], c_anchor, step)
                        search.rank(i, damage, z, t)
                chosen = search.choose(e, step)
                film.take(step, model, student, chosen, target.names[0])
                c_a = chosen.cond if self.update == "joint" else chosen.fixed()
                groups = [target] if self.search == "pgd" else [target, Group(chosen.names, chosen.fixed())]
                z, t = latents.draw(groups, step)
                z_e, z_a = z[0], z[-1]
            frozen = [(z_e, c_0), *([(z_e, c_e)] if self.eta else []), *([(z_a, chosen.fixed())] if search else [])]
            with torch.no_grad():
                eps = predictions(model, frozen, t)
                words = [(z_e, attacked.cond(e))] if attacked is not None else []
            trained = [(z_e, c_e), *([(z_a, c_a)] if search else []), *words]
            new = predictions(student, trained, t)
            goal = away_from(eps[0], eps[1], self.eta) if self.eta else eps[0]
            if search is not None:
                terms["preserve"] = self.lam * self.mse(model, new[1], eps[-1], t).mean()
                step.log(target=target.names[0], concept=chosen.names[0], **search.facts(e[0]))
            erase = self.mse(model, new[0], goal, t).mean()
            if attacked is not None:
                terms["attacked"] = self.attack_weight * self.mse(model, new[-1], goal, t).mean()
                erase = (1 - self.attack_weight) * erase
            step.minimize(erase=erase, **terms)
            if self.shrink:
                step.shrink(weights, origin, self.shrink)
            if isinstance(search, Climbing):
                if self.update == "joint":
                    search.follow(e)
                else:
                    self._ascend(step, student, request, search, latents, c_targets, damage)
        keys = ("step", "target", "concept", "preserve", "entropy", "margin", "moved")
        searched = [{k: row[k] for k in keys if k in row} for row in run.log if "concept" in row]
        if search is not None:
            log["adversarial"] = searched
        if search is not None and self.search != "pgd":
            log["candidates"] = {t: list(n) for t, n in zip(request.targets, names, strict=True)}
        if adversary is not None:
            told = ("step", "attack_first", "attack_last")
            log["attacks"] = [{k: row[k] for k in told} for row in run.log if "attack_first" in row]
        if film.shots:
            log["film"] = film.shots
        return Patch.between(origin, weights, self.card(model, request, spent, **log))

    def _near(self, model: DiffusionModel, request: EraseRequest) -> list[list[str]]:
        """Per target, what the attack may start from: words of the vocabulary that are one token and that the text encoder puts
        near it."""
        found = candidates(model, "vocabulary", request.targets, exclude_targets=True, nearest=self.attack_near, metric="cosine")
        return [[w for w, ids in zip(n, model.token_ids(n), strict=True) if len(ids) == 3] for n in found]

    def _starts(self, model: DiffusionModel, request: EraseRequest, log: dict[str, Any]) -> list[Tensor]:
        """(n, e) embeddings per target where the attack starts; logs the words they are of."""
        log["attack_words"], rows = {}, []
        for i, (target, words) in enumerate(zip(request.targets, self._near(model, request), strict=True)):
            found = agreement(
                model,
                target,
                request.anchor,
                words,
                steps=self.sampling_steps,
                guidance=self.guidance,
                seed=self.seed * 1_000_003 + i,
            )
            log["attack_words"][target] = kept = {w: off for w, off in found.items() if off <= self.attack_share}
            rows.append(own_and(model, target, list(kept)))
        return rows

    def _attack(
        self,
        step: Step,
        model: DiffusionModel,
        student: DiffusionModel,
        request: EraseRequest,
        adversary: Adversary,
        latents: Latents,
        c_targets: Cond,
    ) -> None:
        """The learned word descends towards what the original model predicts for the target, by the weights as they are now and
        on fresh draws; no weight collects a gradient. Logs the first and the last loss."""
        adversary.begin(step, self.attack_from)
        losses = []
        with student.frozen():
            for _ in range(self.attacks):
                e = step.draw(len(request.targets), self.batch)
                target = Group([request.targets[i] for i in e], c_targets[list(share(e))])
                (z,), t = latents.draw([target], step)
                with torch.no_grad():
                    eps_e = model.predict(z, t, target.cond)
                off = self.mse(model, student.predict(z, t, adversary.cond(e)), eps_e, t).mean()
                off.backward()
                adversary.follow(e)
                losses.append(float(off.detach()))
        step.log(attack_first=losses[0], attack_last=losses[-1])

    def _ascend(
        self,
        step: Step,
        student: DiffusionModel,
        request: EraseRequest,
        search: Climbing,
        latents: Latents,
        c_targets: Cond,
        damage: Callable[[Cond, Tensor, Tensor], Tensor],
    ) -> None:
        """The search climbs the damage of the weights as they are now, on fresh draws; no weight collects a gradient."""
        rounds, repeats = self._rounds
        with student.frozen():
            for _ in range(rounds):
                e = step.draw(len(request.targets), self.batch)
                chosen = search.choose(e, step)
                if self.search == "pgd":
                    group = Group([request.targets[i] for i in e], c_targets[list(share(e))])
                else:
                    group = Group(chosen.names, chosen.fixed())
                (z_a,), t = latents.draw([group], step)
                for repeat in range(repeats):
                    c_a = chosen.cond if repeat == 0 else search.choose(e, step).cond
                    damage(c_a, z_a, t).mean().backward()
                    search.follow(e)
