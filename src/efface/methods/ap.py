"""Adversarial preservation (AP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..concepts.request import EraseRequest
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..patches import Patch
from ..preservation.film import Film
from ..training.loop import Run
from ..training.scene import predictions
from .base import option
from .trained import Searching


@dataclass(frozen=True, kw_only=True)
class AP(Searching):
    """Erase the target and, at every step, preserve the concept that the erasure hurts most.

    Objective::

        min_theta' max_c_a   | eps'(z_t, t, c_e) - goal |^2
                             + lam | eps'(z'_t, t, c_a) - eps(z'_t, t, c_a) |^2
        goal = eps(z_t, t, c_anchor) - eta (eps(z_t, t, c_e) - eps(z_t, t, c_anchor))

    eps' is the network that is trained (weights theta'), eps the frozen model. c_e is the encoded
    target, c_a the adversarial concept: the one to preserve. z_t is a latent of the target, z'_t
    one of the adversarial concept, both at timestep t.

    Variants: ``search`` says how c_a is found. All else is the same for every search, so that a
    comparison shows the search.

    - "gumbel" is the paper's search: c_a = G(pi) . M_e, where M_e holds the candidates nearest to
      c_e and G is the Gumbel-Softmax of one logit pi per candidate. After every update of the
      weights, the logits take steps of Adam up the preservation term, each on fresh draws with the
      weights fixed (``search.update=joint``: by the update's own backward pass).
    - "exhaustive" takes the candidate with the largest damage of all, measured again every
      ``search.refresh`` updates; with ``search.by=relative``, that with the largest damage in
      proportion to what the candidate itself does to a prediction; with ``search.by=images``, that
      whose image changed most.
    - "random" takes any candidate: the control that isolates the value of searching.
    - "pgd" climbs a free embedding that starts at c_e. The authors report that it collapses; so
      does ours, and it is here to show that.

    ``shrink``: after every update, the weights go back this share of their way (L2 regularisation
    in proximal form). Preset "paper" works in noise space with eta 0 and cosine neighbours. Preset
    "official" has x0 space (the inverse-SNR weight (1 - ab)/ab at the grid level, where t is drawn
    within a grid step), the goal 2 eps_0 - eps_e, the 1,000 nearest candidates by L2 thinned to 100
    ("official-nudity": 2,000 to 50) and the shifted time alignment, and leaves erased names among
    the candidates. Presets "random", "exhaustive" and "pgd" change the search alone.

    Reference: Bui et al., NeurIPS 2024, "Erasing Undesirable Concepts in Diffusion Models with
    Adversarial Preservation". Code: tuananhbui89/Erasing-Adversarial-Preservation,
    train_adversarial_gumbel.py, train_adversarial_pgd.py.

    Deviations: the erased concepts are excluded from the candidates (``search.exclude_targets``;
    the official code forgets to). The ascent step samples nothing that it does not use.
    Trajectories of c_e and c_a run as one batch from the same start and share its first
    unconditional pass. ``request.preserve`` joins the candidates of every target. With a pooled
    sampler, rows have noise levels of their own, and c_a must be one of the candidates
    (``search.hard=true``). "pgd" measures its term on the target's latents, as officially.
    ``search.centres`` is Lloyd's algorithm from evenly spaced quantiles (there k-means++).

    Official preset: agrees with the official operations up to 3e-4 of the change ("official", five
    updates and their search steps on the tiny model in float32, tests/test_official.py).

    Cost: UNet evaluations per row and step, with k sampler steps to z_t, uniform on 0 .. S-1, less
    one evaluation where k > 0: the update 4 k + 5 (eta = 0: 4 k + 4), each ascent 2 k + 2 (153 at S
    = 50 and one ascent; the official code spends 213.84). No ascent with ``search.update=joint``.
    "exhaustive": 2 k + 2 n for each target whenever its n candidates are measured, 2 k + 3 n with
    ``search.by=relative``, 4 S n with ``search.by=images``. With a filled pool, 2 k and 4 k become 0.
    """

    name: ClassVar[str] = "ap"
    summary: ClassVar[str] = "erase the target, preserve the concept that the erasure hurts most"
    paper: ClassVar[str] = "Bui et al., NeurIPS 2024"
    presets: ClassVar = {
        **Searching.of_full_size,
        "official-nudity": {**Searching.official_code, "search.nearest": 2000, "search.centres": 50, "train": "noxattn"},
        **Searching.on_miniatures,
        "tiny": {"steps": 3, "sampling_steps": 5, "search.nearest": 4},
        "random": {"search": "random"},
        "exhaustive": {"search": "exhaustive"},
        "pgd": {"search": "pgd", "search.ascents": 10, "lam": 0.01},
    }

    eta: float = option(0.0, "how far beyond the anchor, away from the target, the goal lies", "paper 0; official code 1")
    lam: float = option(1.0, "weight of the preservation term", "official code 1 (implicit); pgd 0.01", low=0.0)
    shrink: float = option(0.0, "share of the change that is taken back after every update", "ours", low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrink > 1:
            raise BadOption(f"shrink={self.shrink} is a share of the change; it must not be above 1.")

    @property
    def label(self) -> str:
        return "ap" if self.search.name == "gumbel" else f"ap-{self.search.name}"

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        names = self.search.candidates(model, request)
        update = 4 + (self.eta != 0) + self.draw_cost(model, self.search.groups)  # anchor, student, and c_a by both
        searched = self.search_cost(model, names)
        film = Film.evals(self.frames, self.steps, self.sampling_steps, model.branches(self.guidance))
        return self.batch * self.steps * update + searched + film + self.fill_cost(model, request, names, self.per_candidate)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent = run or Run(), model.evals.snapshot()
        names = self.search.candidates(model, request)
        scene = self.scene(model, request, names, self.per_candidate)
        search = self.search.begin(scene, names)
        film = Film(self.frames, self.steps, self.sampling_steps, self.guidance)
        for step in self.updates(scene, run, {"search": search, "film": film}):
            # Descent: the weights follow the erasure and hold on to the adversarial concept.
            e, target = scene.draw(step)
            chosen = search.choose(e, step)
            film.take(step, model, scene.student, chosen, target.names[0])
            z, t = scene.latents.draw(search.groups(target, chosen), step)
            z_e, z_a = z[0], z[-1]
            goal, eps_a = scene.goal(target, z_e, t, self.eta, (z_a, chosen.fixed()))
            new_e, new_a = predictions(scene.student, [(z_e, target.cond), (z_a, chosen.cond)], t)
            step.log(target=target.names[0], concept=chosen.names[0], **search.facts(e[0]))
            step.minimize(
                erase=scene.distance(new_e, goal, t).mean(),
                preserve=self.lam * scene.distance(new_a, eps_a, t).mean(),
            )
            if self.shrink:
                step.shrink(scene.weights, scene.origin, self.shrink)
            # Ascent: the search follows the damage that these weights do.
            search.climb(step, e)
        log = {**self.searched(run, request, names), **film.log()}
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent, **log))
