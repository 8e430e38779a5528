"""STEREO: contract, cost, its goal, and that each stage does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.equations.guidance import away_from, composed
from efface.errors import BadOption
from efface.methods import STEREO
from efface.models.tiny import tiny
from efface.testing import check_method, check_resume, same
from efface.training.loop import Run, Step

REQUEST = EraseRequest(("cat", "rose"), "", ("dog", "house"))


def small(**options: Any) -> STEREO:
    return STEREO.preset("tiny", **{"latents": "pictures", **options})


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (small(), REQUEST),
        (small(rounds=2, batch=2, train="xattn"), EraseRequest(("cat",), "")),
        (small(rounds=2, inversion_steps=3), EraseRequest(("cat",), "dog")),
    ],
    ids=["two targets", "no anchor", "anchor"],
)
def test_contract_and_exact_cost(method: STEREO, request_: EraseRequest) -> None:
    patch = check_method(method, request_)
    assert patch.card.cost["forward"] == method.expected_evals(tiny(), request_)
    assert all((".attn2." in n) == (method.train == "xattn") for n in patch.deltas)


def test_the_mean_cost_of_trajectories(tiny_model: Any) -> None:
    """Levels are drawn, so the mean is checked: over 60 updates of 0 or 2 more evaluations each (S = 2, k is 0 or 1), three
    standard deviations are 3 sqrt(60) < 24."""
    method = small(latents="trajectories", sampling_steps=2, search_steps=30, steps=30)
    patch = method.erase(tiny_model, EraseRequest(("cat",), ""))
    assert abs(patch.card.cost["forward"] - method.expected_evals(tiny_model, EraseRequest(("cat",), ""))) < 24


def test_the_official_schedule_on_paper(tiny_model: Any) -> None:
    """K = 2: 51 evaluations per update of the search (the code: 57), 49 of them the walk; 54 of the last stage (the code: 63)."""
    expected = STEREO(images=1).expected_evals(tiny_model, EraseRequest(("cat",), ""))
    assert expected == 100 + 2 * (200 * (49 + 2) + 3000) + 200 * (49 + 2 + 3)


def test_a_resumed_run_ends_with_the_same_bits(tiny_model: Any) -> None:
    """Stopped inside the inversion: the word, its Adam and the network the round began with go on."""
    check_resume(small(rounds=2), EraseRequest(("cat",), ""), tiny_model)


def test_the_goal_is_affine_and_esd_for_one_prompt_without_anchor() -> None:
    a, b, c, d = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64)
    shift = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    goal = composed(a, b, torch.stack([c, d]), 1.0, 3.0)
    torch.testing.assert_close(composed(a + shift, b + shift, torch.stack([c, d]) + shift, 1.0, 3.0), goal + shift)
    torch.testing.assert_close(composed(a, a, c[None], 1.0, 3.0), away_from(a, c, 3.0))


def phases(method: STEREO, model: Any, request: EraseRequest) -> tuple[list[dict[str, float]], Any]:
    seen: list[dict[str, float]] = []

    def watch(step: Step, total: int) -> None:
        seen.append(dict(step.terms))

    return seen, method.erase(model, request, Run(on_step=watch))


def test_phases_come_in_their_order_and_the_last_starts_from_the_original(tiny_model: Any) -> None:
    request = EraseRequest(("cat", "rose"), "")
    seen, patch = phases(small(rounds=2, steps=1), tiny_model, request)
    one = ["search"] * 2 + ["inversion"] * 4
    assert [next(iter(terms)) for terms in seen] == [*one, *one, "erase"]
    # One Adam step is as long as lr everywhere: had the last stage gone on from the searched weights, it would be longer.
    assert max(float(d.abs().max()) for d in patch.deltas.values()) <= 1e-3 * (1 + 1e-4)


def test_the_words_are_learned_against_the_erased_network(tiny_model: Any) -> None:
    """With an erasure that does nothing (lr 0) the words, and so the patch, are others."""
    request = EraseRequest(("cat",), "")
    (_, a), (_, b) = (phases(small(search_lr=lr, inversion_steps=5), tiny_model, request) for lr in (0.0, 1e-2))
    assert any(not torch.equal(a.deltas[n], b.deltas[n]) for n in a.deltas)


def test_inversion_moves_no_weight(tiny_model: Any) -> None:
    method, seen = small(inversion_steps=3), {}

    def watch(step: Step, total: int) -> None:
        weights = step._model.weights(lambda n: n.startswith("unet."))
        seen[step.index] = {n: w.detach().clone() for n, w in weights.items()}

    method.erase(tiny_model, EraseRequest(("cat",), ""), Run(on_step=watch))
    assert same(seen[1], seen[4])  # after the search, after the inversion
    assert not same(seen[0], seen[1])


def test_words_start_where_they_are_told(tiny_model: Any) -> None:
    """Every word of one token will do; one that the tokenizer cuts is refused before an image is drawn."""
    first = STEREO.preset("tiny", start="dog")._first(tiny_model)
    assert torch.equal(first, tiny_model.embed(["dog"]).embeddings[0, 1:2])
    spent = tiny_model.evals.forward
    with pytest.raises(BadOption, match=r"'person'.*several tokens"):
        STEREO.preset("tiny", start="person").erase(tiny_model, EraseRequest(("cat",), ""))
    assert tiny_model.evals.forward == spent
