"""Adversarial preservation with an attack in its loop: contract, cost, and that the attack attacks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.errors import BadOption
from efface.methods import AP
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.preservation.adversary import LOOKS, Adversary, agreement
from efface.registry import build_method
from efface.testing import check_method, check_resume, same
from efface.training.loop import Run, Step

REQUEST = EraseRequest(("cat", "rose"), "", ("dog",))


def small(**options: Any) -> AP:
    return AP(**{**AP.presets["tiny"], "sampler": "pool", "pool": 2, "attacks": 2, **options})


@pytest.mark.parametrize(
    "method",
    [small(), small(search="none"), small(batch=2, attack_from=1, restart=0), small(search="exhaustive", eta=0.5)],
    ids=["rap", "attack only", "later", "exhaustive"],
)
def test_contract_and_exact_cost(method: AP) -> None:
    patch = check_method(method, REQUEST)
    assert patch.card.cost["forward"] == method.expected_evals(tiny(), REQUEST)
    assert [row["step"] for row in patch.card.log["attacks"]] == list(range(method.attack_from, method.steps))


def test_a_resumed_run_ends_with_the_same_bits(tiny_model: Any) -> None:
    """Stopped between two restarts: the word and its Adam go on."""
    check_resume(small(steps=5, restart=3), REQUEST, tiny_model)


def test_without_the_attack_it_is_adversarial_preservation(tiny_model: Any) -> None:
    """The combination, and the ablation's other rows, differ in one option each."""
    rows = {n: dataclasses.asdict(build_method(n, preset="mini")) for n in ("naive", "ap", "rap-attack", "rap")}
    differ = {n: {k for k in rows[n] if rows[n][k] != rows["rap"][k]} for n in rows}
    assert differ == {"naive": {"attacks", "search"}, "ap": {"attacks"}, "rap-attack": {"search"}, "rap": set()}
    assert [build_method(n, preset="mini").label for n in rows] == list(rows)
    off = small(attacks=0)
    assert same(off.erase(tiny_model, REQUEST).deltas, dataclasses.replace(off, attack_lr=1.0).erase(tiny_model, REQUEST).deltas)
    assert not same(off.erase(tiny_model, REQUEST).deltas, small().erase(tiny_model, REQUEST).deltas)


def test_an_attack_that_never_begins_is_refused() -> None:
    with pytest.raises(BadOption, match="attack_from"):
        small(attack_from=3)


def step_of(index: int) -> Step:
    return Step(index, 0, torch.optim.Adam([torch.zeros(1)]), tiny())


def test_the_word_brings_a_prediction_back_and_leaves_the_weights_alone(tiny_model: Any) -> None:
    """On one latent, against a student whose keys and values were disturbed: what the attack minimises falls."""
    student = tiny_model.student(lambda n: ".attn2." in n)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in student.weights(lambda n: ".attn2." in n).values():
            w += 0.1 * torch.randn(w.shape, generator=rng)
    z, t, c = tiny_model.noise(1, rng), torch.tensor([500]), tiny_model.encode(["cat"])
    eps = tiny_model.predict(z, t, c)
    adversary = Adversary(tiny_model, ["cat"], [tiny_model.embed(["house"]).embeddings[:, 1]], lr=1e-2, restart=0)
    adversary.begin(step_of(0), 0)
    losses = []
    with student.frozen():
        for _ in range(30):
            loss = (student.predict(z, t, adversary.cond([0])) - eps).square().mean()
            loss.backward()
            adversary.follow([0])
            losses.append(float(loss.detach()))
    assert min(losses[-5:]) < losses[0]
    assert all(w.grad is None for w in student.weights(lambda n: ".attn2." in n).values())


def test_the_word_goes_on_and_starts_again() -> None:
    starts = [torch.arange(8.0).reshape(2, 4)]
    adversary = Adversary(tiny(), ["cat"], starts, lr=0.1, restart=3)

    def word(index: int) -> torch.Tensor:
        adversary.begin(step_of(index), 1)
        before = adversary.words.values[0].detach().clone()
        adversary.words.values[0].grad = torch.ones_like(before)
        adversary.follow([0])
        return before

    known = [tuple(row) for row in starts[0].tolist()]
    seen = [word(i) for i in (1, 2, 3, 4)]
    assert [tuple(w[0].tolist()) in known for w in seen] == [True, False, True, False]
    # Adam without a past takes a first step of its full length.
    torch.testing.assert_close(adversary.words.values[0].detach(), seen[3] - 0.1, atol=1e-6, rtol=0)


def test_agreement_is_0_for_the_target_and_1_for_the_anchor(tiny_model: Any) -> None:
    before = tiny_model.evals.forward
    found = agreement(tiny_model, "cat", "", ["cat", "", "dog"], steps=3, guidance=2.0, seed=0)
    assert tiny_model.evals.forward - before == LOOKS * (2 * 3 + 5)
    assert found["cat"] == 0
    assert found[""] == 1
    assert found["dog"] > 0


def test_the_attack_starts_at_words_that_mean_the_target() -> None:
    """The vocabulary alone tells: the miniature was taught both as synonyms of rabbit, and elephant and cow as other animals."""
    mini = load_model("mini")
    log: dict[str, Any] = {}
    method = build_method("rap", preset="mini")
    assert isinstance(method, AP)
    (rows,) = method._starts(mini, EraseRequest(("rabbit",), ""), log)
    words = log["attack_words"]["rabbit"]
    assert {"hare", "bunny"} <= set(words)
    assert not {"elephant", "cow", "rabbit"} & set(words)
    assert len(rows) == 1 + len(words)  # and the name itself


def test_the_pool_is_filled_once_for_erasure_attack_and_preservation(tiny_model: Any) -> None:
    """The attack's draws cost nothing but its two predictions."""
    run = Run()
    spent = [small(attacks=n).erase(tiny_model, REQUEST, run).card.cost["forward"] for n in (1, 3)]
    assert spent[1] - spent[0] == small().steps * small().batch * 2 * 2
