"""TRCE: map the summary token of every wording away, then steer early denoising towards the safe
prompt.

Longer than 400 lines because the method has two stages, each with its options, and a method is one file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.pairs import read_pairs
from ..concepts.request import EraseRequest
from ..edits import facts, folded, prompt_gram
from ..equations.closed_form import Edit, Moments, solved
from ..equations.guidance import guided, hinge
from ..errors import BadOption, BadRequest
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.select import Select
from ..patches import Patch
from ..preservation.candidates import concept_space
from ..training.latents import Group, LatentPool
from ..training.loop import Run, Step, training
from ..training.processes import share
from .base import Method, option

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a painting of a {}",
    "a sketch of a {}",
    "a close view of a {}",
    "a bright picture of the {}",
    "an old photo of the {}",
    "a {} at night",
    "a {} in the morning",
    "a {} in a room",
    "the {} by the sea",
    "this is a {}",
    "a good photo of the {}",
)
PROMPT = "a photo of a {}"
FIRST, SECOND = "stages=both|textual", "stages=both|visual"


@dataclass(frozen=True, kw_only=True)
class TRCE(Method):
    """Map the end-of-text token of every wording of the target to a safe one, then steer early
    denoising to the safe prompt.

    ``stages`` runs both stages or one of them. The first is solved in closed form, the second is
    trained.

    Objective::

        textual   W' = W P for all keys and values,
                  P = I + (E_s - E_p) D E_p^T (E_p D E_p^T + mu G)^-1,    D = diag(w) / n
        visual    loss = 1/2 [h(eps'(z_t, t, p)) + h(eps'(z_t, t, ""))]
                         + lam_keep mean |eps'(z_u, t, "") - eps_1(z_u, t, "")|^2
                  h(x) = max(0, |x - f_s|^2 - |x - f_p|^2 + margin)
                  f_x = eps_0 + scale (eps_x - eps_0)

    p is a wording of the target in a template (n of them), s the same template with the safe
    wording. E_p and E_s hold the text encoder's vectors of p and s at the start token, the
    end-of-text token [EoT], the padding and the word, with weights w (by default only the first
    [EoT] counts). G is the mean, over the prompts of a concept space, of the sum of e e^T over all
    positions; it stands for what must stay.

    z_t is an early latent of the original model for p, and z_u a latent of an unconditional
    trajectory. eps' is the network that is trained, eps_1 the network after the first stage; eps_0,
    eps_p and eps_s in f_x are the original model's predictions for the empty prompt, p and s.
    Squares in h are means over the elements.

    The first stage moves what the text says, so the end token of a metaphor for the target moves
    with it. The second trains self-attention and the queries of cross-attention, which the first
    does not touch. The hinge h only pushes: once it is 0, nothing pulls towards f_s. Where s says
    nothing, f_s is about eps_0, and for a scale of 2 and more h is 0 from the start, because eps_p
    itself is nearer to f_s than to f_p: name an anchor then.

    Wordings are the targets themselves, mapped to the anchor, and the pairs of a file (``pairs``),
    like the official lists of 20 synonyms. :meth:`textual` is the first stage as an edit, which
    :func:`efface.edits.filtered` applies to the text without changing a weight.

    Reference: Chen et al., ICCV 2025, arXiv:2503.07389. Code: ddgoodgood/TRCE.

    Deviations: [EoT] is found by its token, where the code counts words (``legacy_word_index``: 58
    % of its own prompts read another token). Gradients are set to zero between updates
    (``legacy_accumulate``: they pile up). A latent is trained at its own noise level
    (``legacy_levels``: latents are stored after the sampler step and labelled with the level before
    it, those of the empty prompt with a random timestep of the grid step above that). References
    are those of the original model, stored in a pool. Unconditional trajectories need one branch.
    Ours are the templates, G of a concept space where the code has COCO captions, the preserve set,
    whose mean Gram matrix is added to G, ``lam`` and ``pin``. Adam has no weight decay. A
    RuntimeWarning says when no hinge was ever active.

    Official preset: agrees with the official operations up to 1e-4 of the second stage's loss and
    6e-4 of its change ("legacy", two updates on the tiny model in float32, tests/test_official.py),
    the other deviations left out. The official code loses every fiftieth of its unconditional draws
    to an exception; this does not.

    Cost: textual takes no UNet evaluations. Visual takes, for each wording and trajectory, 2 (E -
    1) + 3 E with E early levels; 2 S - 1 for each unconditional trajectory of S levels; then 2 +
    ``kept``, with a backward pass, for each row and update. ``legacy_levels`` takes one more step
    for each trajectory, and ``kept`` more for each row and update in place of S for each
    unconditional trajectory.
    """

    name: ClassVar[str] = "trce"
    summary: ClassVar[str] = "map the prompt's end-of-text token to a safe one in closed form, then steer early denoising"
    paper: ClassVar[str] = "Chen et al., ICCV 2025, arXiv:2503.07389"
    presets: ClassVar = {
        "paper": {},
        "textual": {"stages": "textual"},
        "visual": {"stages": "visual"},
        "unsafe": {"mu": 4e-4, "steps": 900},
        "legacy": {"legacy_word_index": True, "legacy_accumulate": True, "legacy_levels": True, "lr": 1e-6},
        "mini": {
            "stages": "textual",
            "lam": 1e-6,
            "steps": 100,
            "lr": 1e-4,
            "batch": 4,
            "sampling_steps": 12,
            "guidance": 4.0,
            "scale": 4.0,
            "pool": 8,
            "pool_kept": 16,
        },
        "tiny": {"lam": 1e-3, "steps": 3, "sampling_steps": 4, "pool": 2, "pool_kept": 2, "kept": 2, "lr": 1e-3, "margin": 10.0},
    }

    stages: str = option(
        "both",
        "which stages run: both, the closed form (textual), or the training (visual)",
        "paper's rows T, V, T + V",
        choices=("both", "textual", "visual"),
    )
    pairs: str = option("", "JSON file [[unsafe, safe], ...] of more wordings of the targets", "official lists")
    start: float = option(
        0.0, "weight of the start token in the closed form", "official token_weight_scale", low=0.0, needs=FIRST
    )
    end: float = option(1.0, "weight of the first end-of-text token [EoT]", "official token_weight_scale", low=0.0, needs=FIRST)
    padding: float = option(
        0.0, "weight of the last padding token, times the number of paddings", "official token_weight_scale", low=0.0, needs=FIRST
    )
    word: float = option(
        0.0,
        "weight of the wording's first token, which is mapped to padding",
        "official token_weight_scale",
        low=0.0,
        needs=FIRST,
    )
    prior: str = option(
        "auto",
        "concept space that is preserved: auto, vocabulary, or a file of names",
        "ours; officially COCO captions",
        needs=FIRST,
    )
    mu: float = option(
        1e-4,
        "weight of the preserved concept space (G)",
        "sexual 0.01^2, unsafe 0.02^2 (the code squares its scale)",
        low=0.0,
        needs=FIRST,
    )
    lam: float = option(0.0, "ridge towards the original weights", "official lamb", low=0.0, needs=FIRST)
    pin: bool = option(False, "let the empty prompt not move at all in the first stage", "ours", needs=FIRST)
    steps: int = option(
        300, "weight updates of the second stage", "official: 3 epochs of 100 files; unsafe 900", low=0, needs=SECOND
    )
    lr: float = option(3e-6, "Adam learning rate", "ours; official 1e-6 with gradients that pile up", low=0.0, needs=SECOND)
    batch: int = option(1, "training examples in each update, over all processes", "official", low=1, needs=SECOND)
    kept: int = option(4, "unconditional latents for each row", "official", low=1, needs=SECOND)
    scale: float = option(16.0, "guidance scale of the references f_s and f_p", "official g + 1", low=1.0, needs=SECOND)
    margin: float = option(0.01, "how much nearer to the safe reference is near enough", "official", needs=SECOND)
    lam_keep: float = option(100.0, "weight of the term for unconditional latents", "official", low=0.0, needs=SECOND)
    early: float = option(
        0.52,
        "share of the trajectory that is steered, from its noisy end",
        "official: the first 26 of 50 levels",
        low=0.0,
        needs=SECOND,
    )
    pool: int = option(5, "stored trajectories for each wording", "official seeds", low=1, needs=SECOND)
    pool_kept: int = option(32, "stored unconditional trajectories", "ours; official 400 of 2000 used", low=1, needs=SECOND)
    sampling_steps: int = option(50, "sampler steps of the trajectories", "official", low=2, needs=SECOND)
    guidance: float = option(3.0, "guidance scale of the trajectories", "official", needs=SECOND)
    legacy_word_index: bool = option(False, "look for [EoT] where counting words would put it", "official code", needs=FIRST)
    legacy_accumulate: bool = option(False, "let gradients pile up over the updates", "official code", needs=SECOND)
    legacy_levels: bool = option(
        False, "label latents noisier than they are, by up to two grid steps", "official code", needs=SECOND
    )
    seed: int = option(0, "seed of the training", "ours; official 42")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any((self.start, self.end, self.padding, self.word)):
            raise BadOption(
                "start, end, padding and word, the weights of kinds of token, are all 0: nothing of the target would be mapped "
                "to the anchor. Give one of them a weight above 0."
            )
        if not 0 < self.early <= 1:
            raise BadOption(f"early={self.early} is no share of a trajectory; take 0 < early <= 1.")

    # -- wordings ------------------------------------------------------------------------------------------------

    def wordings(self, request: EraseRequest) -> list[tuple[str, str]]:
        """``(unsafe, safe)`` pairs: the targets with the anchor, and the pairs of the file. Raises
        BadFile."""
        own = [(target, request.anchor) for target in request.targets]
        return list(dict.fromkeys([*own, *(read_pairs(self.pairs) if self.pairs else [])]))

    @property
    def levels(self) -> int:
        """How many levels of the grid are steered, counted from the noisiest."""
        return max(1, round(self.early * self.sampling_steps))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("one_tokenizer",)

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        if self.stages == "textual":
            return 0.0
        stored = self.legacy_levels
        steered_rows = (
            len(self.wordings(request))
            * self.pool
            * (model.branches(self.guidance) * (self.levels - 1 + stored) + 3 * self.levels)
        )
        kept_rows = self.pool_kept * (self.sampling_steps if stored else 2 * self.sampling_steps - 1)
        per_update = 2 + self.kept * (1 + stored)
        return float(steered_rows + kept_rows + self.steps * self.batch * per_update)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        self.check(model)
        run, spent, log = run or Run(), model.evals.snapshot(), dict[str, Any]()
        pairs = self.wordings(request)
        select = {"textual": model.reads(), "visual": _visual(model), "both": _either(model)}[self.stages]
        student = model.student(select)
        origin = {n: w.detach().clone() for n, w in student.weights(select).items()}
        if self.stages != "visual":
            edit = self._edit(model, request, pairs)
            log["edit"] = facts(edit, model, request.targets)
            keys = student.weights(model.reads())
            with torch.no_grad():
                for name, w in folded(keys, edit).items():
                    keys[name].copy_(w)
        if self.stages != "textual":
            self._steer(model, student, pairs, run)
            log["active"] = [{"step": row["step"], "active": row["active"]} for row in run.log if "active" in row]
            if log["active"] and not any(row["active"] for row in log["active"]):
                warnings.warn(
                    "no hinge was ever active, so the second stage steered nothing: predictions are nearer to the safe reference "
                    f"already. Name an --anchor that can be drawn, lower scale={self.scale}, or raise margin={self.margin}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        card = self.card(model, request, spent, wordings=[list(p) for p in pairs], **log)
        return Patch.between(origin, student.weights(select), card)

    # -- first stage ---------------------------------------------------------------------------------------------

    def textual(self, model: DiffusionModel, request: EraseRequest) -> Edit:
        """The edit P of the first stage.

        Raises BadRequest where nothing is left to preserve, IllPosed, and BadFile. Cost: no UNet
        evaluations.
        """
        return self._edit(model, request, self.wordings(request))

    def _edit(self, model: DiffusionModel, request: EraseRequest, pairs: Sequence[tuple[str, str]]) -> Edit:
        x, y, a = self._rows(model, pairs)
        named = {*request.targets, *(unsafe for unsafe, _ in pairs), *request.preserve}
        space = concept_space(self.prior, model).without(tuple(named)).candidates
        if not space:
            raise BadRequest(f"prior={self.prior} names nothing but what is erased or preserved; choose another.")
        keep = _mean_gram(model, space)
        if request.preserve:
            keep = keep + _mean_gram(model, request.preserve)
        rows = Moments.of(x, y, a, x[:0], a[:0])
        null = model.encode([""]).rows("all")
        return solved(Moments(rows.gram, rows.shift, self.mu * keep), self.lam, null if self.pin else None)

    def _rows(self, model: DiffusionModel, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the unsafe prompts, the rows they should act like, and their weights: (r, d), (r, d), (r,)."""
        found: list[tuple[Tensor, Tensor, float]] = []
        filled = [(f.format(u), f.format(s).strip(), u) for u, s in pairs for f in TEMPLATES]
        sources, goals = (model.encode([row[i] for row in filled]) for i in (0, 1))
        texts = (c.tokens.cpu() for c in (sources, goals))
        read = zip(*texts, sources.counts(), goals.counts(), strict=True)
        for (prompt, goal, phrase), (c, g, m, m_goal) in zip(filled, read, strict=True):
            n, n_goal = (self._end(model, p) for p in (prompt, goal))
            word = model.locate(prompt, phrase).start if self.word else 0
            weights = (self.start * bool(model.starts), self.end, self.padding * (m - 1 - n), self.word)
            places = ((0, 0), (n, n_goal), (m - 1, m_goal - 1), (word, m_goal - 1))
            found += [(c[i], g[j], w / len(filled)) for (i, j), w in zip(places, weights, strict=True) if w]
        return (
            torch.stack([x for x, _, _ in found]),
            torch.stack([y for _, y, _ in found]),
            torch.tensor([w for _, _, w in found]),
        )

    def _end(self, model: DiffusionModel, prompt: str) -> int:
        """Position of the last token, which has read all others: the end of text, where there is one."""
        return 1 + len(prompt.split()) if self.legacy_word_index else len(model.token_ids([prompt])[0]) - 1

    # -- second stage --------------------------------------------------------------------------------------------

    def _steer(self, model: DiffusionModel, student: DiffusionModel, pairs: Sequence[tuple[str, str]], run: Run) -> None:
        unsafe, kept = self._pools(model, student, pairs)
        null, piled, before = model.encode([""]), self.legacy_accumulate, self._twin(model, student)
        for step in training(student, _visual(model), steps=self.steps, lr=self.lr, seed=self.seed, run=run, accumulate=piled):
            prompts = [PROMPT.format(pairs[i][0]) for i in step.draw(len(pairs), self.batch)]
            c = model.encode(share(prompts))
            (known,), t = unsafe.draw([Group(prompts, c)], step)
            z, out_p, out_s, out_0 = known.chunk(4, dim=1)
            (z_u,), t_u = kept.draw([_nothing(null, self.batch * self.kept)], step)
            null_u = null.repeat(len(z_u))
            if before is None:
                z_u, out_u = z_u.chunk(2, dim=1)
            else:
                t_u = self._relabelled(model, t_u, step)
                with torch.no_grad():
                    out_u = before.predict(z_u, t_u, null_u)
            rows = Cond.cat([c, null.repeat(len(c)), null_u])
            new = student.predict(torch.cat([z, z, z_u]), torch.cat([t, t, t_u]), rows)
            safe, away = (guided(out_0, out, self.scale) for out in (out_s, out_p))
            erase = hinge(new[: 2 * len(z)], torch.cat([safe, safe]), torch.cat([away, away]), self.margin)
            step.log(active=float((erase > 0).float().mean()))
            step.minimize(erase=erase.mean(), keep=self.lam_keep * (new[2 * len(z) :] - out_u).square().mean())

    def _twin(self, model: DiffusionModel, student: DiffusionModel) -> DiffusionModel | None:
        """The network after the first stage, where its predictions cannot be stored because
        ``legacy_levels`` draws t."""
        if not self.legacy_levels:
            return None
        both = _either(model)
        twin, now = model.student(both), student.weights(both)
        for name, w in twin.weights(both).items():
            w.data.copy_(now[name])
        return twin

    def _relabelled(self, model: DiffusionModel, t: Tensor, step: Step) -> Tensor:
        """Timesteps drawn from ``t .. t + stride - 1``, at most the last one of the schedule."""
        last = model.schedule.size
        drawn = share(step.draw(last // self.sampling_steps, self.batch * self.kept))
        return (t + torch.tensor(drawn, device=t.device)).clamp_max(last - 1)

    def _pools(
        self, model: DiffusionModel, student: DiffusionModel, pairs: Sequence[tuple[str, str]]
    ) -> tuple[LatentPool, LatentPool]:
        """The two pools: early latents of every unsafe wording, and latents of the empty prompt.

        Beside the former lie the original model's predictions for the wording, for its safe one and
        for the empty prompt; beside the latter the prediction of the network after the first stage.
        """
        unsafe = LatentPool(
            model,
            steps=self.sampling_steps,
            trajectories=self.pool,
            guidance=self.guidance,
            solver="ddim",
            seed=self.seed,
            batch=self.batch,
            levels=self.levels,
            after=self.legacy_levels,
        )
        unsafe.fill([PROMPT.format(u) for u, _ in pairs])
        for u, s in pairs:
            p, safe = PROMPT.format(u), PROMPT.format(s).strip()
            unsafe.add_predictions(p, [(model, p), (model, safe), (model, "")])
        kept = LatentPool(
            model,
            steps=self.sampling_steps,
            trajectories=self.pool_kept,
            guidance=1.0,
            solver="ddim",
            seed=self.seed,
            batch=self.batch * self.kept,
            after=self.legacy_levels,
        )
        kept.fill([""])
        if not self.legacy_levels:
            kept.add_predictions("", [(student, "")])
        return unsafe, kept


def _visual(model: DiffusionModel) -> Select:
    """What the second stage steers with: the weights that multiply the picture."""
    return model.select("visual")


def _either(model: DiffusionModel) -> Select:
    shifted, visual = model.reads(), _visual(model)
    return lambda name: shifted(name) or visual(name)


def _nothing(null: Cond, n: int) -> Group:
    names = [""] * n
    return Group(names, null.repeat(len(share(names))))


def _mean_gram(model: DiffusionModel, names: Sequence[str]) -> Tensor:
    prompts = [f.format(name) for name in names for f in TEMPLATES]
    return prompt_gram(model, prompts) / len(prompts)
