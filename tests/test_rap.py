"""Adversarial preservation with an attack in its loop: contract, cost, and that the attack attacks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.errors import BadOption
from efface.methods import AP, RAP, RAPAttack
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.preservation.adversary import PICTURES, Adversary, agreement
from efface.registry import build_method
from efface.testing import check_method, check_resume
from efface.training.loop import Run, Step
from efface.training.samplers import Pool

REQUEST = EraseRequest(("cat", "rose"), "", ("dog",))


def small(**options: Any) -> RAP:
    return RAP.preset("tiny", sampler=Pool(trajectories=2), **options)


def attack_only(**options: Any) -> RAPAttack:
    return RAPAttack.preset("tiny", sampler=Pool(trajectories=2), **options)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(small(), id="rap"),
        pytest.param(attack_only(), id="attack only"),
        pytest.param(small(batch=2, attack_from=1, restart=0), id="later", marks=pytest.mark.slow),
        pytest.param(small(search="exhaustive", eta=0.5), id="exhaustive", marks=pytest.mark.slow),
        pytest.param(small(search="pgd"), id="pgd", marks=pytest.mark.slow),
    ],
)
def test_contract_and_exact_cost(method: RAP | RAPAttack) -> None:
    patch = check_method(method, REQUEST)
    assert patch.card.cost["forward"] == method.expected_evals(tiny(), REQUEST)
    assert [row["step"] for row in patch.card.log["attacks"]] == list(range(method.attack_from, method.steps))


def test_a_resumed_run_ends_with_the_same_bits(tiny_model: Any) -> None:
    """Stopped between two restarts: the word and its Adam go on."""
    check_resume(small(steps=5, restart=3), REQUEST, tiny_model)


def test_before_the_attack_begins_it_is_adversarial_preservation(tiny_model: Any) -> None:
    """Bit for bit: the attack changes the erasing term from its first update on, and nothing before."""
    plain = AP.preset("tiny", sampler=Pool(trajectories=2), steps=2).erase(tiny_model, REQUEST)
    terms: dict[int, list[dict[str, Any]]] = {}
    for first in (0, 2):
        run = Run()
        small(steps=3, attack_from=first).erase(tiny_model, REQUEST, run)
        terms[first] = run.log
    run = Run()
    AP.preset("tiny", sampler=Pool(trajectories=2), steps=2).erase(tiny_model, REQUEST, run)
    assert terms[2][:2] == run.log
    assert "attacked" in terms[2][2]
    assert terms[0][0] != run.log[0]
    assert plain.deltas


def test_shares_of_the_erasing_term_add_up() -> None:
    """(1 - b) for the name and b for the word, so that the term's weight against lam stays."""
    one = torch.tensor(3.0)
    for b in (0.0, 0.25, 1.0):
        erase, more = small(attack_weight=b).shared(one, [one])
        assert (float(erase), float(more["attacked"])) == (3 * (1 - b), 3 * b)
    assert small().shared(one, []) == (one, {})


def test_an_attack_that_never_begins_is_refused() -> None:
    with pytest.raises(BadOption, match="attack_from"):
        small(attack_from=3)


def step_of(index: int) -> Step:
    return Step(index, 0, torch.optim.Adam([torch.zeros(1)]), tiny())


def test_the_word_brings_a_prediction_back_and_leaves_the_weights_alone(tiny_model: Any) -> None:
    """On one latent, against a student whose keys and values were disturbed: what the attack minimises falls."""
    method = attack_only(attack_lr=1e-2, restart=0)
    scene = method.scene(tiny_model, EraseRequest(("cat",)))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in scene.weights.values():
            w += 0.1 * torch.randn(w.shape, generator=rng)
    z, t = tiny_model.noise(1, rng), torch.tensor([500])
    fixed = dataclasses.replace(scene, latents=SimpleNamespace(draw=lambda groups, step: ([z] * len(groups), t)))
    adversary = Adversary(fixed, [tiny_model.embed(["house"]).embeddings[:, 1]], lr=1e-2, restart=0)
    step = step_of(0)
    adversary.attack(step, 0, 30)
    assert step.logged["attack_last"] < step.logged["attack_first"]
    assert all(w.grad is None for w in scene.weights.values())


def test_the_word_goes_on_and_starts_again() -> None:
    starts = [torch.arange(8.0).reshape(2, 4)]
    scene = SimpleNamespace(student=tiny())
    adversary = Adversary(scene, starts, lr=0.1, restart=3)

    def word(index: int) -> torch.Tensor:
        adversary.renew(step_of(index), 1)
        before = adversary.words.values[0].detach().clone()
        adversary.words.values[0].grad = torch.ones_like(before)
        adversary.words.update([0])
        return before

    known = [tuple(row) for row in starts[0].tolist()]
    seen = [word(i) for i in (1, 2, 3, 4)]
    assert [tuple(w[0].tolist()) in known for w in seen] == [True, False, True, False]
    # Adam without a past takes a first step of its full length.
    torch.testing.assert_close(adversary.words.values[0].detach(), seen[3] - 0.1, atol=1e-6, rtol=0)


def test_agreement_is_0_for_the_target_and_1_for_the_anchor(tiny_model: Any) -> None:
    before = tiny_model.evals.forward
    found = agreement(tiny_model, "cat", "", ["cat", "", "dog"], steps=3, guidance=2.0, seed=0)
    assert tiny_model.evals.forward - before == PICTURES * (2 * 3 + 5)
    assert found["cat"] == 0
    assert found[""] == 1
    assert found["dog"] > 0


def test_the_attack_starts_at_words_that_mean_the_target() -> None:
    """The vocabulary alone tells: the miniature was taught both as synonyms of rabbit, and elephant and cow as other animals."""
    mini = load_model("mini")
    method = build_method("rap", preset="mini")
    assert isinstance(method, RAP)
    request = EraseRequest(("rabbit",))
    words = method.starting_words(mini, request)
    assert {"hare", "bunny"} <= set(words[0])
    assert not {"elephant", "cow", "rabbit"} & set(words[0])
    (rows,) = method.adversary(method.scene(mini, request), words).starts
    assert len(rows) == 1 + len(words[0])  # and the name itself


def test_the_pool_is_filled_once_for_erasure_attack_and_preservation(tiny_model: Any) -> None:
    """The attack's draws cost nothing but its two predictions."""
    run = Run()
    spent = [small(attacks=n).erase(tiny_model, REQUEST, run).card.cost["forward"] for n in (1, 3)]
    assert spent[1] - spent[0] == small().steps * small().batch * 2 * 2
