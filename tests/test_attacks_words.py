"""Attacks that search words: what they optimise, what they may not use, and what they write."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from efface import verbs
from efface.attacks import MMA, P4D, Deployed, Goal, Plan, RingABell
from efface.attacks.p4d import _due, _with
from efface.attacks.ring_a_bell import concept_direction
from efface.concepts.prompts import Case
from efface.methods import UCE
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.preservation.adversary import word_rows
from efface.registry import GUARDS
from efface.testing import check_attack

CASES = tuple(Case("direct", "cat", p, s, 2.0) for p, s in (("a cat", 1), ("a photo of a cat", 2), ("the cat", 3)))
GOAL = Goal("cat", CASES)


def test_the_concept_direction_has_a_zero_start_row() -> None:
    """The text encoder is causal, so the start token cannot know what follows."""
    v = concept_direction(tiny(), "cat")
    assert float(v[0, 0].abs().max()) == 0.0
    assert float(v[0, 1:].abs().max()) > 0


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_words_that_are_searched_are_read_again_as_they_were_written(name: str) -> None:
    """Whatever words a search puts side by side, the tokenizer reads each as its own token, and no other token comes in."""
    model = load_model(name)
    words, _ = word_rows(model)
    (edges,) = model.token_ids([""])
    start, end = edges[: model.starts], edges[model.starts :]
    own = {word: ids[model.starts : -model.ends] for word, ids in zip(words, model.token_ids(words), strict=True)}
    assert len(end) == model.ends == 1
    assert all(len(ids) == 1 for ids in own.values())
    assert not {ids[0] for ids in own.values()} & {*edges}, "a special token is no word"
    assert not [word for word in words if not word.isalpha()], "a word holds no space and no sign"
    rng = torch.Generator().manual_seed(0)
    for n in range(1, 21):
        lists = [[words[j] for j in row] for row in torch.randint(len(words), (20, n), generator=rng).tolist()]
        found = model.token_ids([" ".join(one) for one in lists])
        assert found == [[*start, *(own[word][0] for word in one), *end] for one in lists]


def test_the_best_list_of_the_genetic_search_never_gets_worse() -> None:
    """Searches of n and n + 1 generations draw the same random numbers, so the longer one is the shorter one and one generation
    more: each of the first 12 generations is compared with the one before."""
    model = tiny()
    words, _ = word_rows(model)
    sought = model.encode(["a cat"]).tokens

    def best(generations: int) -> float:
        attack = RingABell(tokens=3, population=12, generations=generations)
        lists = attack._evolve(model, words, sought, torch.Generator().manual_seed(0))
        texts = [" ".join(words[j] for j in one) for one in lists]
        off = (model.encode(texts).tokens - sought).square().flatten(1).sum(1).tolist()
        assert off == pytest.approx(sorted(off)), "the lists come best first"
        return float(off[0])

    found = [best(n) for n in (*range(1, 13), 30)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.8 * found[0]


def test_ring_a_bell_draws_its_lists_in_turn_with_a_fresh_seed_for_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RingABell, "_evolve", lambda self, model, words, sought, rng: [(0, 1), (2, 3)])
    deployed = Deployed(tiny(), steps=2)
    words, _ = word_rows(deployed.original)
    found = [a for a in RingABell.preset("tiny").run(deployed, Goal("cat", CASES), Plan(5)) if a.case == 0]
    assert [a.stage for a in found] == ["list 1", "list 2", "list 1", "list 2", "list 1"]
    assert [a.prompt for a in found[:2]] == [f"{words[0]} {words[1]}", f"{words[2]} {words[3]}"]
    assert [a.seed - CASES[0].seed for a in found] == [0, 0, 1, 1, 2]


def test_words_of_the_target_are_not_used_and_the_end_token_comes_nearer() -> None:
    deployed = Deployed(tiny(), steps=2)
    goal = Goal("cat", CASES, {"synonym": ("house",)})
    before, after = (MMA(tokens=3, steps=n, topk=8, candidates=12).run(deployed, goal, Plan(1)) for n in (0, 12))
    assert not {"cat", "house"} & {word for a in after for word in a.prompt.split()}
    model = deployed.original

    def off(prompts: list[str]) -> torch.Tensor:
        sought = model.encode([c.prompt for c in CASES])
        return 1 - torch.cosine_similarity(model.encode(prompts).end_token(), sought.end_token())

    start, end = (off([a.prompt for a in attempts]) for attempts in (before, after))
    assert bool((end <= start + 1e-6).all()), "the best list of all is kept"
    assert float(end.mean()) < float(start.mean())


def test_the_gradient_of_the_search_agrees_with_the_loss_that_it_predicts() -> None:
    """For 50 swaps of one word, the attack's own gradient of the one-hot rows has the sign of the finite difference of the loss
    on the way from the old word to the new one. A gradient that belongs to the place before or behind agrees in half of them."""
    model, attack = tiny(), MMA(tokens=3)
    words, table = word_rows(model)
    sought = model.encode(["a cat"]).end_token()
    start, rng, agreed = model.embed([""]), torch.Generator().manual_seed(0), 0

    @torch.no_grad()
    def loss(one_hot: torch.Tensor) -> float:
        c = model.encode_soft(start.splice(1, 1, (one_hot @ table)[None]))
        return float(1 - torch.cosine_similarity(c.end_token(), sought))

    for k in range(50):
        ids = torch.randint(len(words), (3,), generator=rng)
        place, old = k % 3, int(ids[k % 3])
        other = (old + 1 + int(torch.randint(len(words) - 1, (1,), generator=rng))) % len(words)
        with model.frozen():
            gradient = attack._gradient(model, start, table, ids, sought)
        assert gradient.shape == (3, len(words))
        one_hot = torch.nn.functional.one_hot(ids, len(words)).float()
        move = torch.zeros_like(one_hot)
        move[place, old], move[place, other] = -1e-3, 1e-3
        agreed += (loss(one_hot + move) - loss(one_hot - move)) * float(gradient[place, other] - gradient[place, old]) > 0
    assert agreed >= 45


def test_a_swapped_word_comes_from_the_gradient_of_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gradient that recommends another word for every place, each list that is scored differs from the first one in one
    place, by the word recommended there."""
    deployed, asked = Deployed(tiny(), steps=2), list[str]()
    model = deployed.original
    words = [word for word in word_rows(model)[0] if word != "cat"]

    def planted(self: MMA, model: Any, start: Any, table: torch.Tensor, ids: torch.Tensor, sought: torch.Tensor) -> torch.Tensor:
        gradient = torch.zeros(3, len(words))
        gradient[[0, 1, 2], [(int(j) + 1) % len(words) for j in ids]] = -1
        return gradient

    embed = model.embed
    monkeypatch.setattr(MMA, "_gradient", planted)
    monkeypatch.setattr(model, "embed", lambda texts: (asked.extend(texts), embed(texts))[1])
    MMA(tokens=3, steps=1, topk=1, candidates=6).run(deployed, Goal("cat", CASES[:1]), Plan(1))
    first, *swapped = [text.split() for text in asked if len(text.split()) == 3 and set(text.split()) <= {*words}]
    assert len(swapped) == 6
    for k, found in enumerate(swapped):
        expected = [*first]
        expected[k % 3] = words[(words.index(first[k % 3]) + 1) % len(words)]
        assert found == expected


@pytest.mark.parametrize(("mode", "first"), [("n", ""), ("k", "a photo of a cat")])
def test_free_words_stand_where_they_are_written(mode: str, first: str) -> None:
    """The prompt that is written out encodes to what was optimised."""
    model = tiny()
    words, table = word_rows(model)
    attack = P4D(mode=mode, tokens=2) if mode == "n" else P4D(mode=mode, every=3)
    places = attack._places(model, first)
    free = [words[5 + i] for i in range(len(places))]
    rows = table[[words.index(w) for w in free]][None]
    soft = model.encode_soft(_with(model.embed([first]), rows, places))
    written = attack._written(first, free)
    assert written.split() == (free if mode == "n" else [free[0], "a", "photo", "of", free[1], "a", "cat"])
    torch.testing.assert_close(soft.tokens, model.encode([written]).tokens, atol=1e-5, rtol=0)


def test_p4d_lowers_its_loss_against_an_erased_model() -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat"])
    deployed = Deployed(model, 2, ("cat",), patch)
    attack = P4D(tokens=3, pairs=8, pictures=1)
    lessons = attack._ask(deployed, GOAL)
    off = {}
    for n in (0, 60):
        texts = {a.case: a.prompt for a in attack.run(deployed, GOAL, Plan(1, n))}
        with deployed.active() as erased, torch.no_grad():
            said = [erased.prediction(x.z, x.t, erased.encode([texts[i]]).repeat(8)) for i, x in enumerate(lessons)]
        off[n] = sum(float((a - x.said).square().mean()) for a, x in zip(said, lessons, strict=True))
    assert off[60] < off[0]


@pytest.mark.parametrize("guard", GUARDS)
def test_contract_of_p4d_under_a_guard(guard: str) -> None:
    check_attack(P4D.preset("tiny"), Deployed(tiny(), 2, ("cat",), None, GUARDS[guard]()), budget=60)


def test_contract_of_the_other_mode_and_cases_in_lock_step() -> None:
    attack = P4D(mode="k", every=2, pairs=2, pictures=2)
    deployed = Deployed(tiny(), steps=2)
    check_attack(attack, deployed)
    together = attack.run(deployed, GOAL, Plan(2, 6))
    alone = [
        dataclasses.replace(a, case=i)
        for i, case in enumerate(CASES)
        for a in attack.run(deployed, Goal("cat", (case,)), Plan(2, 6))
    ]
    assert sorted(together, key=str) == sorted(alone, key=str)


@pytest.mark.parametrize(("iterations", "pictures"), [(0, 3), (7, 3), (3, 7), (60, 3)])
def test_every_picture_is_due_once(iterations: int, pictures: int) -> None:
    assert sum(_due(step, iterations, pictures) for step in range(iterations + 1)) == pictures
