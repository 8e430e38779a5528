"""Contract, cost and behaviour of every method on the tiny model of real diffusers classes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.concepts.spaces import distances
from efface.errors import BadOption, MethodError, NonFiniteLoss, UnknownName
from efface.methods import AGE, AP, ESD, L2, UCE, Fixed, Method, Naive, Neutral
from efface.methods.trained import Searching, Trained
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.select import selection
from efface.patches import Patch
from efface.preservation import exhaustive
from efface.preservation.candidates import candidates
from efface.preservation.exhaustive import Exhaustive, ExhaustiveSearch
from efface.preservation.film import Film
from efface.preservation.gumbel import Gumbel, GumbelSearch
from efface.preservation.pgd import PGD, PgdSearch
from efface.registry import METHODS, build_method
from efface.testing import check_method, same
from efface.training.loop import Run, Step, training
from efface.training.samplers import Harvest, Pool, Student


def ap(**settings: Any) -> AP:
    """The tiny preset with settings written as on the command line; ``search__tau`` stands for ``search.tau``."""
    return AP.preset("tiny", **{name.replace("__", "."): value for name, value in settings.items()})


VARIANTS: list[Method] = [
    *(build_method(row, preset="tiny", settings={"lr": 1e-3}) for row in ("naive", "l2", "neutral", "fixed")),
    ap(search="random", lr=1e-3),
    Naive.preset("tiny", batch=2, train="full"),
    Naive.preset("tiny", eta=1.0, sampler="pool"),
    Fixed.preset("tiny", concept="bus", eta=1.0),
    Neutral.preset("tiny", sampler="noised", per_candidate=2),
    ap(search=Exhaustive(refresh=2, nearest=4)),
    ap(search="exhaustive", sampler="pool", search__refresh=2),
    ap(search="exhaustive", sampler="pool", search__refresh=2, search__by="relative"),
    ap(search="exhaustive", search__refresh=2, search__by="images", search__nearest=4),
    ap(search=PGD(ascents=10), lam=0.01),
    ap(search=PGD(update="joint", radius=0.1), lam=0.01, sampler="frozen"),
    ap(),
    ap(search__hard=False, search__ascents=2),
    ap(search__hard=False, search__topk=2),
    AP.preset("official", **AP.presets["tiny"], **{"search.centres": 3}),
    ap(sampler="pool", batch=2, search__ascents=2),
    ap(sampler=Harvest(lifetime=2), batch=2),
    ap(sampler="noised", solver="dpm"),
    ap(sampler="pool", search__update="joint"),
    ap(search__update="joint", solver="dpm", frames=2),
    ap(search__ascents=0, lam=0.0, search__centres=2),
    ESD.preset("tiny"),
    ESD.preset("tiny", train="noxattn"),
    ESD.preset("tiny", sampler=Student(alignment="official")),
    ESD.preset("tiny", convention="new", eta=2.0, sampler="frozen"),
    ESD.preset("tiny", sampler="pool", loss_space="x0"),
    AGE.preset("tiny"),
    AGE.preset("tiny", **AGE.presets["official"]),
    AGE.preset("tiny", **{"search.hard": False, "search.topk": 2}, batch=2),
    AGE.preset("tiny", sampler="pool", eta=1.0, through_target=False),
    UCE(),
    UCE.preset("2023", expand=True),
]
NOT_ALONE = {1, 2, 3, 5, 9, 17, 18, 23, 31}
"""Whose options other variants have too, in other combinations; their contract is checked in the slow part."""
OUTPUT_BASED = [m for m in VARIANTS if isinstance(m, Trained)]
REQUEST = EraseRequest(("cat",), "", ("dog",))


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, id=f"{m.label}{i}", marks=pytest.mark.slow if i in NOT_ALONE else []) for i, m in enumerate(VARIANTS)],
)
@pytest.mark.parametrize("model", ["tiny", pytest.param("tiny-v", marks=pytest.mark.slow)])
def test_contract(method: Method, model: str) -> None:
    patch = check_method(method, EraseRequest(("cat", "rose"), "", ("dog",)), load_model(model))
    select = selection(getattr(method, "train", "xattn-kv"))
    assert all(select(name) for name in patch.deltas), "the patch touches more than the method declares"
    assert patch.card.config == method.plain()
    assert patch.card.method == method.label


def test_the_contract_refuses_a_wrong_cost_and_a_patch_made_of_nan() -> None:
    class Cheap(ESD):
        def expected_evals(self, model: Any, request: EraseRequest) -> float:
            return super().expected_evals(model, request) / 2

    class Deterministic(UCE):
        def expected_evals(self, model: Any, request: EraseRequest) -> float:
            return 1.0

    class Blind(UCE):
        def erase(self, model: Any, request: EraseRequest, run: Any = None) -> Any:
            whole = {n: torch.nan_to_num(w.detach()) for n, w in model.weights(lambda _: True).items()}
            with torch.no_grad():
                kept = {n: w.data for n, w in model.weights(lambda _: True).items()}
                for n, w in model.weights(lambda _: True).items():
                    w.data = whole[n]
                try:
                    return super().erase(model, request, run)
                finally:
                    for n, w in model.weights(lambda _: True).items():
                        w.data = kept[n]

    for method, told in (
        (Cheap.preset("tiny"), "expected_evals says"),
        (Deterministic(), "expected_evals says 1 evaluations, 0 were counted"),
        (Blind(), "ended in a patch and not in an error"),
    ):
        with pytest.raises(AssertionError, match=told):
            check_method(method)
    assert check_method(UCE(), at_least=True).deltas
    with pytest.raises(AssertionError, match="at least 1 evaluations, 0 were counted"):
        check_method(Deterministic(), at_least=True)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_cost_is_an_expectation_unless_concepts_are_drawn(name: str) -> None:
    assert not METHODS.find(name)().at_most
    assert Naive(sampler=Harvest()).at_most


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS.keys())
def test_every_preset_can_be_built_and_every_option_explains_itself(cls: type[Method]) -> None:
    assert {"paper", "mini", "tiny"} <= set(cls.presets)
    for preset in cls.presets:
        cls.preset(preset)
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], field.name
        assert field.metadata["source"], field.name
    assert all(word in (cls.__doc__ or "") for word in ("Reference:", "Cost:")), cls


@pytest.mark.parametrize("cls", [ESD, AP, AGE], ids=lambda c: c.name)
def test_zero_steps_change_nothing(cls: type[Method], tiny_model) -> None:  # type: ignore[no-untyped-def]
    method = cls.preset("tiny", steps=0)
    assert not method.erase(tiny_model, EraseRequest(("cat",))).deltas


def searched(method: Trained, *names: str) -> bool:
    """Whether the method has a search of one of these kinds."""
    return isinstance(method, Searching) and method.search.name in names


def kept_names(method: Trained, model: Any) -> list[str]:
    """What may be preserved beside the request's first target."""
    if isinstance(method, Searching):
        return [] if searched(method, "pgd") else list(method.search.candidates(model, REQUEST)[0])
    return list(method.names(REQUEST)[0]) if hasattr(method, "names") else []


def documented_cost(method: Trained, log: list[dict[str, Any]], candidates: int) -> int:
    """The docstrings' formulas, step by step, from the grid levels that the run logged. One target, ``candidates`` names."""
    s, official = method.sampling_steps, method.sampler.official

    def walk(k: int, groups: int) -> int:
        steps = min(s - 1, s - k) if official else k
        return method.batch * (2 * groups * steps - (groups - 1) * (steps > 0))

    trajectories = getattr(method.sampler, "trajectories", 0) + getattr(method, "per_candidate", 1) * candidates
    total = {"pool": 2 * (s - 1), "noised": 2 * s}.get(method.sampler.name, 0) * trajectories
    searching = isinstance(method, AP) and searched(method, "gumbel", "pgd") and method.search.update == "alternate"
    preserving = hasattr(method, "lam")
    own = 2 if preserving and not searched(method, "pgd") else 1
    for row in log:
        levels = list(row.get("k", []))
        total += sum(walk(k, own) for k in levels[:1])
        total += sum(walk(k, 2 if isinstance(method, AGE) and method.through_target else 1) for k in levels[1:])
        if isinstance(method, ESD):
            total += 3 * method.batch
            continue
        total += method.batch * (2 + (method.eta != 0))
        if isinstance(method, AGE):
            total += method.batch * (2 + method.search.ascents * (4 if method.through_target else 2))
            continue
        total += method.batch * 2 * preserving
        total += method.batch * 2 * method.search.ascents if searching else 0
        if searched(method, "exhaustive") and row["step"] % method.search.refresh == 0:
            each = {"damage": 2, "relative": 3, "images": 4 * s}[method.search.by]
            common = [] if method.search.by == "images" else row.get("common_k", [])
            total += each * candidates + sum(2 * k for k in common)
    return total + 4 * s * min(getattr(method, "frames", 0), method.steps)


@pytest.mark.parametrize("method", OUTPUT_BASED, ids=[f"{m.label}{i}" for i, m in enumerate(OUTPUT_BASED)])
def test_counted_cost_equals_documented_cost(method: Trained, tiny_model) -> None:  # type: ignore[no-untyped-def]
    run = Run()
    patch = method.erase(tiny_model, REQUEST, run)
    n = len(kept_names(method, tiny_model))
    cost = documented_cost(method, run.log, n)
    if method.sampler.name == "harvest":
        # Every concept that is drawn costs one trajectory, and another one when it is drawn again too old.
        kept, many = method.per_candidate, method.sampler.trajectories
        one = 2 * (method.sampling_steps - 1) * math.gcd(many, kept)
        most = 2 * (method.sampling_steps - 1) * (many + n * kept)
        extra = patch.card.cost["forward"] - cost
        assert extra % one == 0
        assert one <= extra <= most * method.steps
    else:
        assert patch.card.cost["forward"] == cost
    assert patch.card.cost["backward"] == method.steps


@pytest.mark.parametrize("method", OUTPUT_BASED, ids=[f"{m.label}{i}" for i, m in enumerate(OUTPUT_BASED)])
def test_expected_cost_is_the_mean_of_the_documented_cost(method: Trained, tiny_model) -> None:  # type: ignore[no-untyped-def]
    """Averaged over every level exactly, so there is no chance in it: draws are replaced by all their values."""
    if method.sampler.name == "harvest":
        pytest.skip("its cost depends on which concepts are drawn")
    s = method.sampling_steps
    n = len(kept_names(method, tiny_model))
    draws = 1
    if isinstance(method, AGE):
        draws += method.search.ascents
    elif searched(method, "gumbel", "pgd") and method.search.update == "alternate":
        draws += min(method.search.ascents, 1) if searched(method, "pgd") else method.search.ascents
    pooled = method.sampler.pooled
    log = [
        {"step": i, "k": [] if pooled else [k] * draws, "common_k": [] if pooled else [k]}
        for i in range(method.steps)
        for k in range(s)
    ]
    once = documented_cost(method, [], n)
    mean = once + (documented_cost(method, log, n) - once) / s
    assert method.expected_evals(tiny_model, REQUEST) == pytest.approx(mean)


def test_costs_of_the_papers_schedules(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat",))
    assert build_method("naive", preset="paper", settings={"steps": 1}).expected_evals(tiny_model, request) == pytest.approx(51)
    assert ESD(steps=1).expected_evals(tiny_model, request) == pytest.approx(52)
    assert ESD(steps=1, sampler=Student(alignment="official")).expected_evals(tiny_model, request) == pytest.approx(53.96)
    assert AP(steps=1, eta=1.0).expected_evals(tiny_model, request) == pytest.approx(153.02)
    official = AP.preset("official", steps=1)
    assert official.expected_evals(tiny_model, request) == pytest.approx(158.88)
    with_pool = AP(steps=1, sampler=Pool(trajectories=1), search=Gumbel(nearest=3), eta=1.0)
    filled = dataclasses.replace(with_pool, steps=0).expected_evals(tiny_model, request)
    assert with_pool.expected_evals(tiny_model, request) - filled == 7
    joint = dataclasses.replace(with_pool, search=Gumbel(nearest=3, update="joint"))
    assert joint.expected_evals(tiny_model, request) - filled == 5


def test_baselines_share_every_option_with_ap_and_its_value() -> None:
    ours = build_method("ap", preset="mini").plain()
    for row in ("naive", "l2", "neutral", "fixed", "rap", "rap-attack"):
        method = build_method(row, preset="mini")
        other, own = method.plain(), {"shrink", "concept", *(k for k in method.plain() if "attack" in k or k == "restart")}
        assert {k: v for k, v in other.items() if k not in own} == {k: ours[k] for k in other if k not in own}
        assert method.label == row


def test_a_fixed_row_needs_something_to_preserve_and_nothing_that_is_erased(tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadOption, match="--preserve"):
        Fixed().erase(tiny_model, EraseRequest(("cat",)))
    with pytest.raises(BadOption, match="'Cat', which is to be erased"):
        Fixed(concept="cat").erase(tiny_model, EraseRequest(("Cat",)))
    with pytest.raises(UnknownName, match="Did you mean 'gumbel'"):
        AP(search="gumble")


def test_ap_excludes_targets_whatever_their_spelling_and_the_official_preset_does_not(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("CAT",))
    assert "cat" not in Gumbel(nearest=99).candidates(tiny_model, request)[0]
    official = AP.preset("official", **{"search.nearest": 99}).search
    assert official.candidates(tiny_model, request)[0][0] == "cat", "the target itself is at distance 0 and comes first"


def test_no_name_of_a_large_space_is_left_out(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Embeddings are compared in parts; the order is that of all of them together."""
    names = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"]  # 676
    (tmp_path / "names.txt").write_text("\n".join(names), "utf-8")
    found = candidates(tiny_model, str(tmp_path / "names.txt"), ("cat",), exclude_targets=True, nearest=len(names), metric="l2")[
        0
    ]
    far = distances(tiny_model.encode(["cat"]).tokens[0], tiny_model.encode(names).tokens, "l2")
    assert list(found) == [names[i] for i in far.argsort(stable=True).tolist()]


@pytest.mark.parametrize("search", ["gumbel", "pgd"])
def test_descent_keeps_the_search_and_ascent_keeps_the_weights(search: str, tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The theta step leaves pi and the unselected parameters alone, the pi step all weights, and only the drawn targets' logits
    move."""
    cls = {"gumbel": GumbelSearch, "pgd": PgdSearch}[search]
    points = lambda s: s.pi.values if search == "gumbel" else s.points  # noqa: E731
    student_of, students, seen = tiny_model.student, [], []
    monkeypatch.setattr(tiny_model, "student", lambda select: students.append(student_of(select)) or students[-1])
    follow = cls.follow
    held: list[torch.Tensor] = []

    def watched(self, e):  # type: ignore[no-untyped-def]
        weights = {n: p.detach().clone() for n, p in students[-1].weights(lambda _: True).items()}
        before = [v.detach().clone() for v in points(self)]
        if held and search == "gumbel":
            assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True)), "the descent moved pi"
        follow(self, e)
        changed = [i for i, (a, b) in enumerate(zip(before, points(self), strict=True)) if not torch.equal(a, b)]
        assert same(weights, {n: p.detach() for n, p in students[-1].weights(lambda _: True).items()})
        assert set(changed) <= set(e), "a target that was not drawn moved"
        held[:] = [v.detach().clone() for v in points(self)]
        seen.append(len(changed))

    monkeypatch.setattr(cls, "follow", watched)
    ap(steps=4, sampling_steps=4, lr=1e-3, search=search).erase(tiny_model, EraseRequest(("cat", "rose")))
    assert len(seen) == 4
    assert any(seen), "the search never moved"


def test_joint_update_moves_the_search_without_an_ascent(tiny_model) -> None:  # type: ignore[no-untyped-def]
    patch = ap(steps=5, sampling_steps=4, lr=1e-3, sampler="pool", search__update="joint").erase(tiny_model, REQUEST)
    entropies = {row["entropy"] for row in patch.card.log["adversarial"]}
    # At the first step nothing is damaged yet, so there is nothing to climb; then pi moves every time.
    assert len(entropies) == 4, "pi stood still"
    with pytest.raises(BadOption, match=r"search\.update has no effect with search=random; it belongs to gumbel or pgd"):
        ap(search="random", search__update="joint")


def test_exhaustive_search_returns_the_brute_force_argmax(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """On a planted damage: the student's prediction at one candidate is off by construction."""
    names = Gumbel(nearest=6).candidates(tiny_model, REQUEST)
    rows = [tiny_model.encode(n) for n in names]
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(len(names[0]), generator=g)

    def damage(c, z, t):  # type: ignore[no-untyped-def]
        # A row is recognised by all its bits. Any single number made of it, such as its sum, may be the same for two names.
        own = [(rows[0].tokens == row).flatten(1).all(1).nonzero().flatten().tolist() for row in c.tokens]
        assert all(len(i) == 1 for i in own), "two candidates have the same encoding"
        return scores[[i[0] for i in own]]

    at = tiny_model.noise(len(scores), g), torch.zeros(len(scores), dtype=torch.int64)
    latents = SimpleNamespace(common=lambda names, rows, neutral, step: at)
    search = ExhaustiveSearch(SimpleNamespace(latents=latents, damage=damage, c_anchor=None), names, rows, 1)
    search.rank(0, SimpleNamespace())
    assert search.worst[0] == int(scores.argmax())
    assert search.facts(0)["margin"] == pytest.approx(float(scores.max() / scores.mean()))


def test_relative_damage_is_divided_by_what_the_concept_does_itself(tiny_model: DiffusionModel) -> None:
    """By the definition, and with an argmax of its own: a concept that is near the empty prompt wins by a small change."""
    scene = ap().scene(tiny_model, REQUEST)
    for p in scene.weights.values():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    names = ["dog", "bus", "rose", "castle"]
    c, t = tiny_model.encode(names), torch.full((4,), 500)
    z = tiny_model.noise(1, torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    with torch.no_grad():
        eps, null, new = (
            m.predict(z, t, x) for m, x in ((tiny_model, c), (tiny_model, tiny_model.encode([""] * 4)), (scene.student, c))
        )
    expected = (new - eps).square().flatten(1).mean(1) / (eps - null).square().flatten(1).mean(1)
    spent = tiny_model.evals.forward
    torch.testing.assert_close(scene.relative_damage(c, z, t), expected)
    assert tiny_model.evals.forward - spent == 12
    torch.testing.assert_close(scene.damage(c, z, t).detach(), (new - eps).square().flatten(1).mean(1))
    at_null = scene.relative_damage(tiny_model.encode([""]), z[:1], t[:1])
    assert torch.isfinite(at_null).all()
    assert at_null > expected.max(), "a concept that does nothing counts as lost whole"


def test_damage_in_images_is_the_change_of_a_whole_drawing(tiny_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition, from one noise for all, also where not all are drawn together, and the search takes the largest."""
    monkeypatch.setattr(exhaustive, "DRAWN_TOGETHER", 3)
    method = ap(search="exhaustive", search__by="images")
    names = method.search.candidates(tiny_model, REQUEST)
    assert len(names[0]) > 3
    scene = method.scene(tiny_model, REQUEST, names)
    for p in scene.weights.values():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    c, noise = tiny_model.encode(names[0]), tiny_model.noise(1, torch.Generator().manual_seed(7))
    new, old = (
        torch.cat([m.denoise(c[[i]], noise, method.sampling_steps, method.guidance) for i in range(len(c))])
        for m in (scene.student, tiny_model)
    )
    expected = (new - old).square().flatten(1).mean(1)
    assert expected.min() > 0
    search = method.search.begin(scene, names)
    spent = tiny_model.evals.forward
    assert isinstance(search, ExhaustiveSearch)
    search.rank(0, SimpleNamespace(rng=torch.Generator().manual_seed(7)))
    assert tiny_model.evals.forward - spent == 4 * method.sampling_steps * len(names[0])
    assert search.worst[0] == int(expected.argmax())
    assert search.margin[0] == pytest.approx(float(expected.max() / expected.mean()), rel=1e-3)  # batches round differently


def test_age_s_first_term_moves_the_search_only_through_the_target(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With lam 0 the official search has no gradient at all, the paper's has one."""
    moved = {}
    for through in (True, False):
        gradients: list[float] = []
        from efface.training.learned import Learned

        update = Learned.update

        def watched(self, used, update=update, gradients=gradients):  # type: ignore[no-untyped-def]
            gradients.append(sum(float(v.grad.abs().sum()) for v in self.values if v.grad is not None))
            update(self, used)

        monkeypatch.setattr(Learned, "update", watched)
        AGE.preset("tiny", lam=0.0, through_target=through, lr=1e-3, **{"search.tau": 1.0}).erase(tiny_model, REQUEST)
        monkeypatch.setattr(Learned, "update", update)
        moved[through] = max(gradients)
    assert moved[True] > 0
    assert moved[False] == 0


@pytest.mark.parametrize("update", ["alternate", "joint"])
def test_the_chosen_concept_has_a_gradient_in_joint_updates_alone(update: str, tiny_model) -> None:  # type: ignore[no-untyped-def]
    scene = ap(search__update=update).scene(tiny_model, REQUEST)
    search = Gumbel(update=update).begin(scene, [("dog", "bus", "rose")])
    chosen = search.choose([0], Step(0, 0, torch.optim.Adam([torch.zeros(1)]), tiny_model))
    assert chosen.cond.tokens.requires_grad == (update == "joint")
    # softmax(pi / tau) = (1/2, 1/4, 1/4), whose entropy is 1.5 bits
    search.pi.values[0].data = search.options.tau * torch.tensor([0.5, 0.25, 0.25]).log()
    assert search.facts(0)["entropy"] == pytest.approx(1.5 * math.log(2), rel=1e-5)


def test_film_frames_land_on_the_card(tiny_model) -> None:  # type: ignore[no-untyped-def]
    import base64

    patch = ap(frames=2).erase(tiny_model, REQUEST)
    shots = patch.card.log["film"]
    assert [s["step"] for s in shots] == [0, 2]
    assert all(base64.b64decode(s[who]).startswith(b"\x89PNG") for s in shots for who in ("frozen", "student"))
    assert Film(0, 3, 5, 3.0).log() == {}, "a card without films does not mention them"
    assert [sorted(Film(n, 11, 5, 3.0).at) for n in (0, 1, 2, 3)] == [[], [0], [0, 10], [0, 5, 10]]
    assert Film(2, 0, 5, 3.0).at == set()
    with pytest.raises(UnknownName, match="frames"):
        Naive(frames=1)


def test_l2_goes_less_far_than_naive(tiny_model) -> None:  # type: ignore[no-untyped-def]
    settings = {"steps": 8, "sampling_steps": 4, "lr": 1e-3}
    assert L2(**settings, shrink=0.1).erase(tiny_model, REQUEST).norm() < Naive(**settings).erase(tiny_model, REQUEST).norm()
    for method in (L2(**settings, shrink=1.0), ap(**settings, shrink=1.0)):
        assert not method.erase(tiny_model, REQUEST).deltas, "everything is taken back"
    # The recursion d <- (1 - rho)(d + step), the steps those of a run without shrinking where one step was made.
    one = {"steps": 1, "sampling_steps": 4, "lr": 1e-3}
    whole, half = Naive(**one).erase(tiny_model, REQUEST), L2(**one, shrink=0.5).erase(tiny_model, REQUEST)
    for name, delta in whole.deltas.items():
        torch.testing.assert_close(half.deltas[name], delta / 2, rtol=1e-3, atol=1e-7)  # float32 weights around 0.3


def test_ap_search_finds_the_planted_victim(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """One candidate is damaged by construction; the logits must come to prefer it over uniform 1/n."""
    victim = Gumbel(nearest=6).candidates(tiny_model, EraseRequest(("cat",)))[0][3]
    predict = type(tiny_model).predict
    student_of = tiny_model.student

    def damaged_student(select):  # type: ignore[no-untyped-def]
        student = student_of(select)
        tokens = tiny_model.encode([victim]).tokens[0]

        def damaged(z, t, c):  # type: ignore[no-untyped-def]
            closeness = torch.exp(-(c.tokens - tokens).square().mean((1, 2)) * 20)[:, None, None, None]
            return predict(student, z, t, c) + closeness

        student.predict = damaged
        return student

    monkeypatch.setattr(tiny_model, "student", damaged_student)
    run = Run()
    search = Gumbel(nearest=6, lr=1.0, tau=1.0)
    AP(steps=60, sampling_steps=4, sampler="pool", search=search, lr=1e-7).erase(tiny_model, EraseRequest(("cat",)), run)
    late = [row["concept"] for row in run.log[30:]]
    assert late.count(victim) > 15, f"chosen {late.count(victim)} of 30 times; uniform would be 5"


def test_options_that_contradict_each_other_are_refused() -> None:
    for cls in (AP, AGE):
        with pytest.raises(BadOption, match="hard=true"):
            cls(sampler="pool", search=Gumbel(hard=False))
        with pytest.raises(BadOption, match=r"sampler\.alignment has no effect with sampler=noised"):
            cls(**{"sampler": "noised", "sampler.alignment": "official"})
        with pytest.raises(UnknownName, match="Did you mean 'pool'"):
            cls(sampler="pol")


def test_nan_stops_the_run_and_names_the_term(tiny_model) -> None:  # type: ignore[no-untyped-def]
    next(iter(tiny_model.weights(lambda n: n.endswith("attn2.to_v.weight")).values())).data.fill_(torch.nan)
    with pytest.raises(NonFiniteLoss, match="step 0: loss term erase is nan"):
        Naive(steps=2, sampling_steps=4).erase(tiny_model, EraseRequest(("cat",)))


def test_nan_weights_behind_a_finite_loss_make_no_patch() -> None:
    base = {"w": torch.zeros(3)}
    card = UCE().card(load_model("tiny"), EraseRequest(("cat",)), {"forward": 0, "calls": 0, "backward": 0})
    for broken in ([0.0, torch.nan, 0.0], [torch.inf, 0.0, -torch.inf]):
        with pytest.raises(NonFiniteLoss, match="not finite"):
            Patch.between(base, {"w": torch.tensor(broken)}, card)
    largest = torch.tensor([3e38, 3e38, 0.0])  # finite, and their sum is not
    assert torch.equal(Patch.between(base, {"w": largest}, card).deltas["w"], largest)


def test_a_body_that_forgets_to_minimize_is_caught(tiny_model) -> None:  # type: ignore[no-untyped-def]
    select = selection("xattn")
    with pytest.raises(MethodError, match="never called"):
        for _ in training(tiny_model.student(select), select, steps=1, lr=1e-3, seed=0, run=Run()):
            pass


def test_unknown_selection() -> None:
    with pytest.raises(UnknownName, match="xattn"):
        selection("xatn")
