"""The closed-form methods: their contract, and each against a naive solution of its own paper's equation, layer by layer."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from chequered import chequered

from efface.concepts.request import EraseRequest
from efface.edits import pooled_readers
from efface.equations.closed_form import gram_of_maps, solved, worst_neighbour
from efface.errors import BadOption, Cancelled, MethodError, PromptTooLong
from efface.methods import MACE, RECE, TIME, UCE, Method, RealEra
from efface.methods.mace import at_size, common_ends, important_timesteps
from efface.methods.time import alignment
from efface.methods.uce import stopping_rule
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.select import selection
from efface.patches import Patch
from efface.registry import build_method
from efface.testing import check_method, same
from efface.training.loop import Run

F64 = torch.float64
REQUEST = EraseRequest(("cat", "rose"), "", ("dog",))
VARIANTS: list[Method] = [
    UCE(rows="last+eos"),
    UCE(rows="all", task="moderate"),
    UCE.preset("pinned"),
    UCE.preset("sealed"),
    TIME(),
    TIME(keys=False, augment=False),
    RECE.preset("tiny"),
    RECE(start="none", epochs=1, regulariser="anchor"),
    RECE.preset("pinned", regulariser="surrogate-both"),
    MACE.preset("tiny"),
    MACE.preset("tiny", mask="attention", scale_power=2),
    MACE(steps=0, lam=0.1, prior_scale=1e-4, wordings=8),
    *[RealEra.preset("tiny", mode=mode) for mode in ("isotropic", "subspace", "vocab", "adversarial")],
    RealEra(steps=0, low=0.1, directions=2),
]


@pytest.mark.parametrize("method", chequered(VARIANTS, ids=[f"{m.name}{i}" for i, m in enumerate(VARIANTS)]))
@pytest.mark.parametrize("model", ["tiny", pytest.param("tiny-v", marks=pytest.mark.slow)])
def test_contract_and_cost(method: Method, model: str) -> None:
    loaded = load_model(model)
    patch = check_method(method, REQUEST, loaded)
    assert all(selection("xattn-kv")(name) for name in patch.deltas), "the patch touches more than the method declares"
    assert patch.card.config == dataclasses.asdict(method)
    assert patch.card.cost["forward"] == method.expected_evals(loaded, REQUEST)
    said = patch.card.log.get("edit") or patch.card.log["refinement"]
    assert {"condition", "norm", "null_gain", "system_condition", "bring_back"} <= set(said)


@pytest.fixture(scope="module")
def mini() -> DiffusionModel:
    return load_model("mini")


# -- against naive solutions -------------------------------------------------------------------------------------


def naive(w, xs, ys, keep, lam, w_keep=None):  # type: ignore[no-untyped-def]
    """One layer as the official codes do it, in float64: loops over rows, a right-hand side and an inverse."""
    w_keep = w if w_keep is None else w_keep
    left, right = lam * w, lam * torch.eye(w.shape[1], dtype=F64)
    for x, y in zip(xs, ys, strict=True):
        left, right = left + torch.outer(w @ y, x), right + torch.outer(x, x)
    for q, b in keep:
        left, right = left + b * torch.outer(w_keep @ q, q), right + b * torch.outer(q, q)
    return left @ torch.linalg.inv(right)


def layers(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {n: w.detach().double() for n, w in model.weights(selection("xattn-kv")).items()}


def rows(model: DiffusionModel, prompt: str) -> torch.Tensor:
    return model.encode([prompt]).tokens[0].double()


def assert_edited(model: DiffusionModel, patch: Patch, expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """Relative error of every W' below ``tolerance``, against edits that are a thousand times larger."""
    for name, w in layers(model).items():
        edited = w + patch.deltas[name].double()
        assert (edited - expected[name]).norm() < tolerance * expected[name].norm(), name
        assert (w - expected[name]).norm() > 1e3 * tolerance * w.norm(), f"{name}: nothing was edited, nothing was compared"


def uce_2023_rows(model: DiffusionModel, target: str, anchor: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = rows(model, target), rows(model, anchor)
    f, g = (int(model.encode([p]).last[0]) for p in (target, anchor))
    n = len(x) - max(f, g)
    return x[f : f + n], y[g : g + n]


@pytest.mark.parametrize("name", ["uce", "time", "rece"])
def test_on_trained_weights_too(mini: DiffusionModel, name: str) -> None:
    """Random weights have no structure to lose; the miniature's text vectors are strongly correlated."""
    base, lam = layers(mini), 0.5
    keep = [(q, 0.1) for q in rows(mini, "")]  # of a RECE epoch
    if name == "uce":
        patch = UCE.preset("2023").erase(mini, EraseRequest(("fire engine",), "house"))
        keep = [(q, 1.0) for q, _ in keep]
        xs, ys = uce_2023_rows(mini, "fire engine", "house")
    elif name == "time":
        lam, keep = 0.1, []
        patch = TIME(augment=False).erase(mini, EraseRequest(("a fire engine",), "a house"))
        xs, ys = rows(mini, "a fire engine"), rows(mini, "a house")
        ys = ys[alignment(*mini.token_ids(["a fire engine", "a house"]), len(xs))]
    else:
        patch = RECE(start="none", epochs=1, ridge=0.1).erase(mini, EraseRequest(("fire engine",), "house"))
        s = sum(w.T @ w for w in base.values())
        xs = torch.linalg.solve(s + 0.1 * torch.eye(len(s), dtype=F64), s @ rows(mini, "fire engine").T).T
        ys, lam = rows(mini, "house"), 0.1
    assert_edited(mini, patch, {n: naive(w, xs, ys, keep, lam) for n, w in base.items()})


def test_uce_2023_and_2025(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat", "a rose"), "bus", ("dog",))
    patch = UCE.preset("2023").erase(tiny_model, request)
    pairs = [uce_2023_rows(tiny_model, t, "bus") for t in request.targets]
    xs, ys = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    keep = [(q, 0.5) for p in ("", "dog") for q in rows(tiny_model, p)]
    assert_edited(tiny_model, patch, {n: naive(w, xs, ys, keep, 0.5) for n, w in layers(tiny_model).items()})
    patch = UCE.preset("2025").erase(tiny_model, request)
    last = lambda p: rows(tiny_model, p)[int(tiny_model.encode([p]).last[0])]  # noqa: E731
    xs, ys = [last("cat"), last("a rose")], [last("bus"), last("bus")]
    assert_edited(tiny_model, patch, {n: naive(w, xs, ys, [(last("dog"), 1.0)], 0.5) for n, w in layers(tiny_model).items()})


def test_time(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("a cat",), "a photo of a cat")
    patch = TIME(augment=False).erase(tiny_model, request)
    x, y = rows(tiny_model, "a cat"), rows(tiny_model, "a photo of a cat")
    assert [len(ids) for ids in tiny_model.token_ids(["a cat", "a photo of a cat"])] == [4, 10]  # "photo of" is five tokens here
    # [BOS a cat EOS] finds BOS 0, the first "a" 1, "cat" 8, EOS 9; then the rest of the destination and its last row again.
    order = [0, 1, 8, 9, *range(10, 24), *[23] * 6]
    assert_edited(tiny_model, patch, {n: naive(w, x, y[order], [], 0.1) for n, w in layers(tiny_model).items()})


def test_rece_equals_a_recursion_over_weights(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """Two epochs as the official code runs them: derive from all layers per concept, edit every layer's current weights."""
    request = EraseRequest(("cat", "rose"), "bus", ("dog",))
    method = RECE(epochs=2, ridge=0.05)
    patch = method.erase(tiny_model, request)
    base = layers(tiny_model)
    pairs = [uce_2023_rows(tiny_model, t, "bus") for t in request.targets]
    keep = [(q, 1.0) for p in ("", "dog") for q in rows(tiny_model, p)]
    xs, ys = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    now = {n: naive(w, xs, ys, keep, 0.5) for n, w in base.items()}
    for _ in range(2):
        snn = sum(w.T @ w for w in now.values()) + 0.05 * torch.eye(16, dtype=F64)
        sno = sum(now[n].T @ w for n, w in base.items())
        derived = [torch.linalg.solve(snn, sno @ c) for t in request.targets for c in rows(tiny_model, t)]
        goals = [y for _ in request.targets for y in rows(tiny_model, "bus")]
        now = {n: naive(w, derived, goals, [(q, 0.1 * b) for q, b in keep], 0.1) for n, w in now.items()}
    assert_edited(tiny_model, patch, now, tolerance=1e-5)  # the recursion's normal equations square the condition of P
    assert len(patch.card.log["epochs"]) == 2


def test_rece_goes_on_until_the_target_is_out_of_reach(tiny_model) -> None:  # type: ignore[no-untyped-def]
    run = lambda stop, epochs: RECE(stop=stop, epochs=epochs, ridge=0.05).erase(tiny_model, EraseRequest(("cat",))).card.log  # noqa: E731
    missed = [epoch["missed"][0] for epoch in run(1.0, 3)["epochs"]]
    assert len(missed) == 3
    assert 0 < missed[0] < missed[-1] <= 1, "more epochs leave less to bring back, and never less than the zero vector leaves"
    early = run(missed[1], 3)["epochs"]
    assert len(early) == 2, "stops at the first epoch that misses by that share"
    unedited = RECE(epochs=0).erase(tiny_model, EraseRequest(("cat",)))
    assert unedited.card.log["epochs"] == []


def test_mace_refinement_and_fusion(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat",), "bus", ("dog",))
    method = MACE(steps=0, lam=0.3, wordings=8, prior_scale=0.01, domain_weight=5.0)
    patch = method.erase(tiny_model, request)
    xs, ys = [], []
    for template in method.templates:
        old, new = (rows(tiny_model, template.format(w)) for w in ("cat", "bus"))
        word = int(tiny_model.encode([template.format("cat")]).last[0])  # one token, at the same place in both
        kept = [i for i in range(24) if i != word]
        xs += list(old[kept])
        ys += list(new[kept])
    others = [n for n in tiny_model.concept_names if n not in ("cat", "dog")]
    keep = [(q, 0.01) for n in others for t in method.templates for q in rows(tiny_model, t.format(n))]
    keep += [(q, 0.05) for t in method.templates for q in rows(tiny_model, t.format("dog"))]
    refined = {n: naive(w, xs, ys, keep, 0.3) for n, w in layers(tiny_model).items()}
    assert_edited(tiny_model, patch, refined)
    # lr 0 leaves the adapters at zero: the fusion then only pulls the refined weights back towards the preserved answers.
    idle = dataclasses.replace(method, steps=1, lr=0.0, images=1, sampling_steps=2).erase(tiny_model, request)
    own = [q for t in method.templates for q in rows(tiny_model, t.format("cat"))]
    fused = {n: naive(refined[n], own, own, keep, 0.3, w_keep=w) for n, w in layers(tiny_model).items()}
    assert_edited(tiny_model, idle, fused)
    trained = dataclasses.replace(method, steps=3, lr=0.05, images=1, sampling_steps=2).erase(tiny_model, request)
    assert not same(trained.deltas, idle.deltas)


# -- a prior whose weight is found --


@pytest.mark.parametrize(("cls", "settings"), [(UCE, {"rows": "last..end", "preserve_rows": "all"}), (RECE, {"epochs": 0})])
def test_the_weight_that_is_found_is_an_option_like_any_other(
    tiny_model: DiffusionModel, cls: type[Method], settings: dict[str, Any]
) -> None:
    """With prior_scale at what prior_cost has found, the edit is the same, and a higher cost preserves more."""
    request, found = EraseRequest(("cat",), "bus"), {}
    for cost in (0.05, 0.2):
        chosen = cls(prior="auto", prior_cost=cost, **settings).erase(tiny_model, request)
        weight = chosen.card.log["prior_scale"]
        given = cls(prior="auto", prior_scale=weight, **settings).erase(tiny_model, request)
        for name, delta in given.deltas.items():
            assert torch.allclose(chosen.deltas[name], delta, atol=1e-6 * float(delta.abs().max() + 1)), name
        found[cost] = weight, chosen.card.log["edit"]["side_effect"]["median"]
    assert found[0.05][0] < found[0.2][0]
    assert found[0.05][1] > found[0.2][1]


def test_uce_says_how_far_the_target_came(tiny_model: DiffusionModel) -> None:
    free, bound = (
        UCE(rows="last..end", preserve_rows="all", prior="auto", prior_cost=cost)
        .erase(tiny_model, EraseRequest(("cat",), "bus"))
        .card.log["reached"]
        for cost in (1e-9, 0.3)
    )
    assert bound == pytest.approx(0.7 * free, rel=0.02)


def test_the_pooled_text_has_a_weight_of_its_own() -> None:
    """SDXL reads one vector per prompt beside the tokens: fewer rows, and other lengths."""
    model = load_model("tiny-xl")
    patch = UCE(prior="vocabulary", prior_cost=0.1).erase(model, EraseRequest(("cat",), "bus"))
    readers = set(pooled_readers(model))
    assert readers
    assert readers <= set(patch.deltas)


@pytest.mark.parametrize("cls", [UCE, RECE])
def test_a_prior_of_targets_alone_is_refused(tiny_model: DiffusionModel, cls: type[Method], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\nCat\n")
    with pytest.raises(BadOption, match="names nothing but targets"):
        cls(prior=str(tmp_path / "names.txt")).erase(tiny_model, EraseRequest(("cat",), "bus"))


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (UCE, {"prior_cost": 0.1}),
        (UCE, {"prior": "auto", "prior_cost": 0.1, "prior_scale": 0.5}),
        (UCE, {"prior": "auto", "prior_cost": 1.0}),
        (RECE, {"prior": "auto", "prior_cost": 0.1, "start": "none", "start_lam": 0.5}),
    ],
)
def test_a_cost_that_does_nothing_is_refused(cls: type[Method], settings: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match="prior"):
        build_method(cls.name, settings=settings)


# -- rows and alignment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cat", "a cat", "a photo of the cat"])
@pytest.mark.parametrize("anchor", ["", "dog", "a photo of a dog"])
def test_rows_are_aligned_at_the_last_word(tiny_model, target: str, anchor: str) -> None:  # type: ignore[no-untyped-def]
    c, g = tiny_model.encode([target]), tiny_model.encode([anchor])
    f, f_goal = int(c.last[0]), int(g.last[0])
    x, y = c.aligned(g, "last..end")
    assert len(x) == len(y) == 24 - max(f, f_goal)
    for kind, n in (("last", 1), ("last+eos", 2)):
        short = c.aligned(g, kind)
        assert torch.equal(short[0], x[:n])
        assert torch.equal(short[1], y[:n])
    assert torch.equal(c.aligned(g, "all")[1], g.tokens[0])
    assert torch.equal(c.rows("last..end"), c.tokens[0, f:])


def test_a_space_is_the_null_prompt(tiny_model) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(tiny_model.encode([" "]).tokens, tiny_model.encode([""]).tokens)
    same_patch = [UCE.preset("2023").erase(tiny_model, EraseRequest(("cat",), a)).deltas for a in ("", " ")]
    assert same(*same_patch)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([0, 7, 9], [0, 7, 9], [0, 1, 2, 3, 4, 5]),  # the same sentence: nothing moves
        ([0, 7, 9], [0, 5, 7, 9], [0, 2, 3, 4, 5, 5]),  # a word put in before
        ([0, 7, 9], [0, 7, 5, 6, 9], [0, 1, 4, 5, 5, 5]),  # two words put in behind
        ([0, 7, 9], [0, 8, 9], [0, 1, 2, 3, 4, 5]),  # a word replaced: mapped to what stands there
        ([0, 6, 7, 9], [0, 8, 9], [0, 1, 1, 2, 3, 4]),  # two words replaced by one: both mapped to it
        ([0, 7, 9], [0, 9], [0, 1, 1, 2, 3, 4]),  # a word taken out: mapped to the end token
        ([0, 7, 7, 9], [0, 7, 5, 7, 9], [0, 1, 3, 4, 5, 5]),  # repeated tokens are used up one by one
        ([0, 7, 8, 9], [0, 8, 9], [0, 1, 1, 2, 3, 4]),
        ([0, 3, 4, 5, 9], [0, 9], [0, 1, 1, 1, 1, 2]),
        ([0, 7, 3, 9], [0, 5, 7, 3, 9], [0, 2, 3, 4, 5, 5]),
    ],
)
def test_time_alignment(old: list[int], new: list[int], expected: list[int]) -> None:
    assert alignment(old, new, 6) == expected


def test_time_alignment_is_increasing_and_inside_whatever_comes() -> None:
    rng = random.Random(0)
    for _ in range(500):
        old, new = ([0, *(rng.randrange(1, 6) for _ in range(rng.randrange(6))), 9] for _ in (0, 1))
        found = alignment(old, new, 10)
        assert len(found) == 10
        assert found == sorted(found)
        assert all(0 <= i < 10 for i in found)


def test_common_ends() -> None:
    assert common_ends([0, 1, 2, 5, 9], [0, 1, 2, 6, 7, 9]) == (3, 1)
    assert common_ends([0, 1, 9], [0, 9]) == (1, 1)
    assert common_ends([0, 1, 1, 9], [0, 1, 9]) == (2, 1)  # the end may not use what the beginning has used
    assert common_ends([0, 9], [0, 9]) == (2, 0)


def test_realera_takes_no_directions_that_the_differences_do_not_span() -> None:
    differences = torch.tensor([[3.0, 0, 0, 0], [0, 0, 2.0, 0]])
    for most, wanted in ((5, [[1.0, 0, 0, 0], [0, 0, 1.0, 0]]), (1, [[1.0, 0, 0, 0]])):
        assert RealEra(directions=most)._main(differences).abs().tolist() == wanted


def test_a_mask_is_taken_to_the_size_of_a_layer() -> None:
    mask = torch.arange(32.0).reshape(4, 8)
    assert torch.equal(at_size(mask, 8), mask[::2, ::2].flatten())
    assert torch.equal(at_size(mask, 32), mask.flatten())


# -- debiasing ---------------------------------------------------------------------------------------------------


def test_the_stopping_rule_never_trusts_a_point_estimate() -> None:
    assert stopping_rule(8, 16, 0.5, 0.1) == "more"  # exactly one half of 16 proves nothing
    assert stopping_rule(5, 10, 0.5, 0.05) == "more"  # the official criterion would stop here
    assert stopping_rule(50, 100, 0.5, 0.1) == "done"
    assert stopping_rule(15, 16, 0.5, 0.1) == "above"
    assert stopping_rule(1, 16, 0.5, 0.1) == "below"


def test_debiasing_finds_the_alpha_of_a_simulated_model(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The share of the first attribute rises with alpha as planted: 0.5 is reached at alpha = 0.75. Binomial draws of a fixed
    seed; the rule itself is right about 19 times of 20 per interval."""
    rng, asked = random.Random(1), []

    def simulated(self, model, edit, target, n, generator):  # type: ignore[no-untyped-def]
        share = min(0.98, max(0.02, 0.2 + 0.4 * asked[-1]))
        return sum(rng.random() < share for _ in range(n))

    solve = UCE._solve_shifted

    def watched(self, model, request, rows, alphas):  # type: ignore[no-untyped-def]
        asked.append(alphas[0])
        return solve(self, model, request, rows, alphas)

    monkeypatch.setattr(UCE, "_first_attribute", simulated)
    monkeypatch.setattr(UCE, "_solve_shifted", watched)
    patch = UCE(task="debias", attributes="dog, bus", images=400, rounds=8).erase(tiny_model, EraseRequest(("cat",)))
    tried = patch.card.log["debias"]["cat"]
    assert tried[0] == {"alpha": 0.0, "k": tried[0]["k"], "n": tried[0]["n"], "verdict": "below"}
    assert tried[-1]["verdict"] == "done"
    assert abs(tried[-1]["alpha"] - 0.75) < 0.1 / 0.4 + 0.05  # the tolerance in units of alpha, and its interval
    assert tried[-1]["n"] >= 64, "fewer images cannot show a share within 0.1"
    assert asked[-1] == tried[-1]["alpha"], "what is shipped was measured"


def test_debiasing_keeps_the_contract_and_counts_what_it_draws(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("efface.methods.uce.stopping_rule", lambda *_: "below")
    method = UCE(
        task="debias",
        attributes="dog, bus",
        images=16,
        rounds=2,
        sampling_steps=2,
        draws=1,
        reach=1.0,
        desired=0.05,
        tolerance=0.02,
    )
    patch = check_method(method, REQUEST, tiny_model)
    assert patch.card.cost["forward"] == method.expected_evals(tiny_model, REQUEST) == 2 * 2 * 16 * (2 * 2 + 2)
    assert [row["alpha"] for row in patch.card.log["debias"]["cat"]] == [0.0, 0.5]


def test_the_attribute_of_an_image_is_the_one_that_predicts_its_noise_better(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """At levels that divide the schedule evenly; predictions are planted, with errors of 0.5, 2 and 0.5 against 1."""
    method, request = UCE(task="debias", attributes="dog, bus", draws=3, sampling_steps=2), EraseRequest(("cat",))
    edit = method._solve_shifted(tiny_model, request, [method._attribute_rows(tiny_model, "cat")], [0.0])
    drawn, levels, noise = [], [], tiny_model.noise

    def noted(n: int, rng: torch.Generator) -> torch.Tensor:
        drawn.append(noise(n, rng))
        return drawn[-1]

    def eps(z: torch.Tensor, t: torch.Tensor, c: object) -> torch.Tensor:
        levels.append(t.tolist())
        off = torch.tensor([0.5, 2.0, 0.5, 1.0, 1.0, 1.0])[:, None, None, None]
        return torch.cat([drawn[-1], drawn[-1]]) + off

    monkeypatch.setattr(tiny_model, "denoise", lambda c, z, steps, scale: z)
    monkeypatch.setattr(tiny_model, "noise", noted)
    monkeypatch.setattr(tiny_model, "eps", eps)
    assert method._first_attribute(tiny_model, edit, "cat", 3, torch.Generator().manual_seed(0)) == 2
    assert levels == [[250] * 6, [500] * 6, [750] * 6]


def test_debiasing_takes_the_nearest_alpha_and_never_one_that_changes_nothing_but_the_picture(
    tiny_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alpha that is measured last is not better for that, and a target that the attributes do not steer is left alone."""
    shares = {0.0: 16, 1.0: 2, 0.5: 4, 0.25: 3}
    monkeypatch.setattr(UCE, "_solve_shifted", lambda self, model, request, rows, alphas: list(alphas))
    method = UCE(task="debias", attributes="dog, bus", images=16, rounds=4, reach=2.0)

    def count(self: UCE, model: Any, edit: Any, target: str, n: int, rng: Any) -> int:
        return shares[abs(edit[0])]

    monkeypatch.setattr(UCE, "_first_attribute", count)
    alphas, log = method._debias(tiny_model, EraseRequest(("cat",)))
    assert [(row["alpha"], row["verdict"]) for row in log["debias"]["cat"]] == [
        (0.0, "above"),
        (-1.0, "below"),
        (-0.5, "below"),
        (-0.25, "below"),
    ]
    assert alphas == [-0.5], "4 of 16 is nearest to a half"
    monkeypatch.setattr(UCE, "_first_attribute", lambda self, model, edit, target, n, rng: n)
    with pytest.raises(
        MethodError, match=r"no alpha from 0 to -1.9 brings the share of 'dog' .* to 0.5; with the last it is 16 of 16"
    ):
        UCE(task="debias", attributes="dog, bus", images=16, rounds=6)._debias(tiny_model, EraseRequest(("cat",)))
    early = UCE(task="debias", attributes="dog, bus", images=16, rounds=2)._debias(tiny_model, EraseRequest(("cat",)))
    assert early[0] == [0.0], "too few rounds to know: nothing is changed"


def test_debiasing_says_when_it_cannot_decide(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(UCE, "_first_attribute", lambda self, model, edit, target, n, rng: n // 2)
    patch = UCE(task="debias", attributes="dog, bus", images=32).erase(tiny_model, EraseRequest(("cat",)))
    (only,) = patch.card.log["debias"]["cat"]
    assert only["verdict"] == "undecided"
    assert only["n"] == 32


# -- options that contradict each other --------------------------------------------------------------------------


def test_contradictions_are_refused_before_anything_runs(tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadOption, match="exactly two attributes"):
        UCE(task="debias", attributes="one")
    with pytest.raises(BadOption, match="exactly two attributes"):
        UCE(attributes="one, two")
    with pytest.raises(BadOption, match=r"desired=1\.0"):
        UCE(task="debias", attributes="one, two", desired=1.0)
    with pytest.raises(BadOption, match="seal"):
        UCE(task="debias", attributes="one, two", seal=1.0)
    with pytest.raises(BadOption, match=r"rounds=3 does nothing with task=erase"):
        UCE(rounds=3)
    for method in (UCE(task="moderate"), UCE(task="debias", attributes="dog, bus")):
        with pytest.raises(BadOption, match="takes no anchor"):
            method.erase(tiny_model, EraseRequest(("cat",), "dog"))
    with pytest.raises(PromptTooLong):
        UCE(expand=True).erase(tiny_model, EraseRequest(("qqqqqqqqqqqqqqqqqqq",)))


def test_a_prior_of_nothing_but_targets_is_an_error(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(BadOption, match="nothing but targets"):
        UCE(prior=str(tmp_path / "names.txt")).erase(tiny_model, EraseRequest(("cat",)))


def test_a_system_without_ridge_and_prior_is_not_answered_silently(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """MACE's published celebrity setting is lam = 0; without a prior the Gram of a few templates is singular to float64."""
    with pytest.warns(RuntimeWarning, match="singular to float64"):
        MACE(steps=0, lam=0.0, wordings=8).erase(tiny_model, EraseRequest(("cat",)))


# -- MACE's and RealEra's training -------------------------------------------------------------------------------


def test_mace_turns_attention_away_from_the_target(tiny_model) -> None:  # type: ignore[no-untyped-def]
    run = Run()
    method = MACE(lam=0.1, wordings=8, steps=40, lr=0.002, images=2, sampling_steps=2)
    patch = method.erase(tiny_model, EraseRequest(("cat",), "dog"), run)
    loss = [row["attention"] for row in run.log]
    assert len(loss) == 40
    assert sum(loss[-10:]) < 0.9 * sum(loss[:10])
    assert {row["target"] for row in run.log} == {"cat"}
    assert patch.card.cost["backward"] == 40


def test_mace_continues_a_stopped_training_bit_for_bit(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    method, request = MACE.preset("tiny", steps=4), EraseRequest(("cat", "rose"))
    whole = method.erase(tiny_model, request, Run())
    stopped = Run(checkpoint=tmp_path / "c.safetensors", every=1)
    seen = []

    def interrupt(step, total):  # type: ignore[no-untyped-def]
        seen.append(step.index)
        if len(seen) == 6:  # inside the second target
            raise Cancelled("test")

    stopped.on_step = interrupt
    with pytest.raises(Cancelled):
        method.erase(tiny_model, request, stopped)
    assert {p.name for p in tmp_path.iterdir()} == {"0.c.safetensors", "1.c.safetensors"}
    resumed = Run(checkpoint=tmp_path / "c.safetensors", resume=True, every=1)
    again = method.erase(tiny_model, request, resumed)
    assert same(again.deltas, whole.deltas)
    assert not list(tmp_path.iterdir()), "checkpoints are gone when the patch is made"


def test_importance_of_timesteps_lies_between_200_and_400() -> None:
    odds = important_timesteps(1000)
    odds = odds / odds.sum()
    assert 0.85 < float(odds[200:400].sum()) < 1
    assert float(odds[600:].sum()) < 0.01
    assert (odds > 0).all()


def test_realera_modes_differ_in_what_they_move(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """low = 0.1 makes a cone wide enough for names of the tiny model; with 0.8 "vocab" finds nothing and says so."""
    request = EraseRequest(("cat",), "dog")
    modes = {"isotropic": {}, "subspace": {"directions": 2}, "vocab": {"low": 0.1}, "adversarial": {"directions": 2}}
    patches = {mode: RealEra(mode=mode, steps=0, **own).erase(tiny_model, request) for mode, own in modes.items()}
    assert patches["isotropic"].card.log["neighbours"] == {"cat": 0}
    assert patches["subspace"].card.log["neighbours"]["cat"] == 11
    assert 0 < patches["vocab"].card.log["neighbours"]["cat"] <= 11
    assert RealEra(mode="vocab", steps=0).erase(tiny_model, request).card.log["neighbours"] == {"cat": 0}
    digests = {p.digest() for p in patches.values()}
    assert len(digests) == 4
    trained = RealEra.preset("tiny").erase(tiny_model, request)
    closed = RealEra.preset("tiny", steps=0).erase(tiny_model, request)
    assert not same(trained.deltas, closed.deltas)


def test_adversarial_neighbours_leave_less_to_find_than_random_ones(mini: DiffusionModel) -> None:
    """With the same weight on the neighbourhood, the worst neighbours miss the target's rows by more, and more from round to
    round."""
    request, missed = EraseRequest(("rose",), ""), {}
    for mode in ("subspace", "adversarial"):
        method = RealEra(mode=mode, steps=0)
        base = mini.weights(selection("xattn-kv"))
        null = mini.encode([""]).tokens[0]
        moments, hoods = method._moments(mini, request)
        if mode == "adversarial":
            moments, rounds = method._hardened(base, moments, hoods, null)
            assert len(rounds) == method.rounds
            assert rounds == sorted(rounds)
        p, s = solved(moments, method.lam, null).transform, gram_of_maps(base.values())
        missed[mode] = sum(worst_neighbour(h.e, p, s, method.low, method.high, h.across)[1] for h in hoods)
    assert missed["adversarial"] > missed["subspace"]


def test_moderation_is_erasure_towards_the_null_prompt(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat",))
    assert same(UCE(task="moderate").erase(tiny_model, request).deltas, UCE().erase(tiny_model, request).deltas)


SENTENCES = """a banana -> a blue banana | a pedestal -> a wooden pedestal | a pack of roses -> a pack of red roses
a chair -> a wooden chair | a bird in a tree -> a green bird in a tree | ice cream -> strawberry ice cream
the forest -> the autumn forest | a cat -> a cat with blue eyes | a lion -> a fluffy white lion | a cake -> a chocolate cake
a photo of a dog -> a photo of a dog in a hat | a ladder -> a golden ladder | steel -> rusty steel | a cup -> a cup of tea
a man in a car -> an old man in a red car | an owl -> an owl at night | a train -> a steam train | tofu -> fried tofu
a wall of bricks -> a wall of blue bricks | a lamp on a table -> a small lamp on a round table"""


def test_time_aligns_every_word_of_a_sentence_with_itself() -> None:
    """Twenty pairs of the kind TIME was made for: the destination holds all words of the source, in order."""
    pairs = [pair.split(" -> ") for line in SENTENCES.splitlines() for pair in line.split("|")]
    assert len(pairs) == 20
    words = sorted({w for pair in pairs for text in pair for w in text.replace("an ", "a ").split()})
    ids = {w: i + 1 for i, w in enumerate(words)}
    for pair in pairs:
        old, new = ([0, *(ids[w] for w in text.strip().replace("an ", "a ").split()), 999] for text in pair)
        positions = alignment(old, new, 14)
        assert [new[j] for j in positions[: len(old)]] == old, pair
        assert positions == sorted(positions)
        assert positions[len(old)] == len(new), "padding continues behind the destination's end"
