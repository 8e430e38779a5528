"""TRCE: contract, cost, both stages against their formulas, and that ours has not the faults of the official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efface.concepts.pairs import read_pairs
from efface.concepts.request import EraseRequest
from efface.edits import filtered
from efface.equations.guidance import hinge
from efface.errors import BadFile, BadOption, BadRequest
from efface.methods import TRCE
from efface.methods.trce import PROMPT, TEMPLATES
from efface.models.tiny import tiny
from efface.testing import check_method, check_resume
from efface.training.loop import Run, training

REQUEST = EraseRequest(("cat", "rose"), "", ("dog",))


def small(**options: Any) -> TRCE:
    return TRCE.preset("tiny", **options)


VARIANTS = [
    small(),
    small(stages="textual", start=1.0, padding=1.0, word=1.0, pin=True),
    small(stages="visual", batch=2, kept=3, early=1.0),
    small(legacy_word_index=True, legacy_accumulate=True, legacy_levels=True),
]


@pytest.mark.parametrize("method", VARIANTS, ids=range(len(VARIANTS)))
def test_contract_and_exact_cost(method: TRCE) -> None:
    patch = check_method(method, REQUEST)
    assert patch.card.cost["forward"] == method.expected_evals(tiny(), REQUEST)
    text, seen = (any(part in n for n in patch.deltas) for part in (".attn2.to_k.", ".attn1."))
    assert (text, seen) == (method.stages != "visual", method.stages != "textual")


def test_the_second_stage_costs_six_evaluations_with_backward_per_update(tiny_model: Any) -> None:
    """The official schedule, without its pools: 300 updates of 1 + 1 + 4 predictions, and none of a frozen network."""
    short, long = (small(stages="visual", kept=4, steps=s) for s in (0, 300))
    request = EraseRequest(("cat",), "")
    assert TRCE().kept == 4
    assert long.expected_evals(tiny_model, request) - short.expected_evals(tiny_model, request) == 6 * 300


def test_a_resumed_run_ends_with_the_same_bits(tiny_model: Any) -> None:
    """With gradients that pile up, which must survive the interruption."""
    method = small(steps=4, legacy_accumulate=True)
    check_resume(method, REQUEST, tiny_model)


# -- first stage ------------------------------------------------------------------------------------------------------


def test_a_row_weighs_what_its_tokens_weigh_together(tiny_model: Any) -> None:
    """[BOS], the first [EoT], all padding after it, and the word: each once for each template, divided by their number."""
    method = small(stages="textual", start=0.5, end=2.0, padding=0.1, word=3.0)
    x, y, weights = method._rows(tiny_model, [("cat", "dog")])
    rows, last = weights.reshape(len(TEMPLATES), 4) * len(TEMPLATES), 23
    for i, (template, row) in enumerate(zip(TEMPLATES, rows.tolist(), strict=True)):
        cat, dog = template.format("cat"), template.format("dog")
        ids, end = tiny_model.token_ids([cat])[0], len(tiny_model.token_ids([cat])[0]) - 1  # [BOS] and [EoT] are among them
        assert row == pytest.approx([0.5, 2.0, 0.1 * (24 - len(ids)), 3.0], rel=1e-5)
        c, g = tiny_model.encode([cat]).tokens[0], tiny_model.encode([dog]).tokens[0]
        word = tiny_model.locate(cat, "cat").start
        close = {"atol": 1e-5, "rtol": 0}
        torch.testing.assert_close(x[4 * i : 4 * i + 4], torch.stack([c[0], c[end], c[last], c[word]]), **close)
        torch.testing.assert_close(y[4 * i : 4 * i + 4], torch.stack([g[0], g[end], g[last], g[last]]), **close)


def test_the_textual_stage_is_the_weighted_least_squares_of_every_layer(tiny_model: Any) -> None:
    """W' against the sums of the paper, layer by layer, prompt by prompt and position by position."""
    method, request = small(stages="textual"), EraseRequest(("cat",), "dog")
    names = [n for n in tiny_model.concept_names or _space(tiny_model) if n != "cat"]
    d = tiny_model.encode([""]).tokens.shape[-1]
    left, right = torch.zeros(d, d, dtype=torch.float64), method.lam * torch.eye(d, dtype=torch.float64)
    left += right
    for f in TEMPLATES:
        p, s = f.format("cat"), f.format("dog")
        e_p, e_s = (tiny_model.encode([x]).tokens[0, len(tiny_model.token_ids([x])[0]) - 1].double() for x in (p, s))
        left += torch.outer(e_s, e_p) / len(TEMPLATES)
        right += torch.outer(e_p, e_p) / len(TEMPLATES)
        for name in names:
            for e in tiny_model.encode([f.format(name)]).tokens[0].double():
                both = method.mu * torch.outer(e, e) / (len(TEMPLATES) * len(names))
                left += both
                right += both
    patch = method.erase(tiny_model, request)
    for name, w in tiny_model.weights(lambda n: n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))).items():
        wanted = w.double() @ (left @ torch.linalg.inv(right))
        # The patch is float32; the system's condition number (about 1e4) allows no more in float64's reference either.
        assert torch.allclose(w + patch.deltas[name], wanted.float(), atol=1e-5)


def _space(model: Any) -> list[str]:
    from efface.preservation.candidates import concept_space

    return list(concept_space("auto", model).candidates)


def test_the_filter_is_the_weights(tiny_model: Any) -> None:
    method, request = small(stages="textual"), EraseRequest(("cat",), "")
    edit, patch = method.textual(tiny_model, request), method.erase(tiny_model, request)
    z, t = tiny_model.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500])
    plain = tiny_model.predict(z, t, tiny_model.encode(["a photo of a cat"]))
    with filtered(tiny_model, edit):
        by_filter = tiny_model.predict(z, t, tiny_model.encode(["a photo of a cat"]))
    with patch.applied(tiny_model):
        by_weights = tiny_model.predict(z, t, tiny_model.encode(["a photo of a cat"]))
    assert torch.allclose(by_filter, by_weights, atol=1e-5)
    assert not torch.allclose(plain, by_weights, atol=1e-4)


# -- second stage -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(-1, 1))
def test_the_hinge_is_affine_while_active_and_nothing_after(seed: int, margin: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, safe, away = (torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    leaf = x.clone().requires_grad_(True)
    h = hinge(leaf, safe, away, margin)
    (gradient,) = torch.autograd.grad(h.sum(), leaf)
    h = h.detach()
    n = x[0].numel()
    for i in range(2):
        by_hand = float((x[i] - safe[i]).square().mean() - (x[i] - away[i]).square().mean()) + margin
        assert float(h[i]) == pytest.approx(max(0.0, by_hand), abs=1e-12)
        if by_hand > 1e-9:
            assert torch.allclose(gradient[i], 2 * (away[i] - safe[i]) / n)
        elif by_hand < -1e-9:
            assert not gradient[i].any()


def test_the_hinge_closes_itself_for_a_safe_prompt_that_says_nothing(tiny_model: Any) -> None:
    """eps_s = eps_0: eps_p is nearer to f_s than to f_p from a scale of 2 on, so nothing would be steered, and that is said."""
    rng = torch.Generator().manual_seed(0)
    eps_0, eps_p = (torch.randn(1, 3, 4, 4, generator=rng) for _ in range(2))
    away = {scale: eps_0 + scale * (eps_p - eps_0) for scale in (1.5, 2.5)}
    assert float(hinge(eps_p, eps_0, away[1.5], 0.0)) > 0
    assert float(hinge(eps_p, eps_0, away[2.5], 0.0)) == 0
    with pytest.warns(RuntimeWarning, match="steered nothing"):
        small(stages="visual", margin=-1e6).erase(tiny_model, REQUEST)


# -- faults of the official code --------------------------------------------------------------------------------------


def test_fault_1_the_end_is_found_by_tokens(tiny_model: Any) -> None:
    prompt = "a photo of the unbreakable cat"
    ids = tiny_model.token_ids([prompt])[0]
    assert len(ids) - 2 > len(prompt.split()), "the test needs a word of several tokens"
    assert small()._end(tiny_model, prompt) == len(ids) - 1
    assert small(legacy_word_index=True)._end(tiny_model, prompt) == len(prompt.split()) + 1


def test_fault_2_gradients_are_zeroed(tiny_model: Any) -> None:
    """Two updates on constant gradients 1 and 0: the second sees 0, or with ``accumulate`` still 1."""
    for accumulate, wanted in ((False, 0.0), (True, 1.0)):
        student = tiny_model.student(lambda n: n.endswith("attn1.to_q.weight"))
        weights = student.weights(lambda n: n.endswith("attn1.to_q.weight"))
        steps = training(
            student, lambda n: n.endswith("attn1.to_q.weight"), steps=2, lr=0.0, seed=0, run=Run(), accumulate=accumulate
        )
        for step in steps:
            step.minimize(loss=(1 - step.index) * sum(w.sum() for w in weights.values()))
            seen = {float(w.grad.mean()) for w in weights.values()}
        assert seen == {wanted}


def test_fault_4_a_latent_is_trained_at_its_own_level(tiny_model: Any) -> None:
    """The early pool holds what the walk yields at each level with the predictions of that level."""
    method = small(pool=1, early=0.5)
    unsafe, kept = method._pools(tiny_model, tiny_model, [("cat", "dog")])
    prompt = PROMPT.format("cat")
    z, *known = unsafe.latents[prompt][0].chunk(4, dim=1)
    walked = list(tiny_model.walk(tiny_model.encode([prompt]), z[:1], unsafe.grid[:-1], method.guidance, unsafe.grid[-1]))
    assert [t for t, _ in walked] == unsafe.grid == tiny_model.schedule.timesteps(4)[:2]
    assert torch.allclose(torch.cat([x for _, x in walked]), z, atol=1e-4)
    t = torch.tensor(unsafe.grid)
    for found, asked in zip(known, (prompt, PROMPT.format("dog"), ""), strict=True):
        assert torch.allclose(tiny_model.predict(z, t, tiny_model.encode([asked] * len(z))), found, atol=1e-5)
    assert kept.latents[""].shape[:2] == (method.pool_kept, 4)


# -- wordings and bad input -------------------------------------------------------------------------------------------


def test_a_file_adds_wordings(tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([["house", "dog"], ["house", "dog"], ["cat", ""]]))
    method = small(pairs=str(path))
    assert method.wordings(EraseRequest(("cat",), "")) == [("cat", ""), ("house", "dog")]
    patch = method.erase(tiny_model, EraseRequest(("cat",), ""))
    assert patch.card.log["wordings"] == [["cat", ""], ["house", "dog"]]
    assert patch.card.cost["forward"] == method.expected_evals(tiny_model, EraseRequest(("cat",), ""))


@pytest.mark.parametrize("text", ["", "{}", "[]", '[["a"]]', '[["", "b"]]', '[["a", 1]]'])
def test_a_bad_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(BadFile, match=r"pairs\.json"):
        read_pairs(path)
    with pytest.raises(BadFile, match="missing"):
        read_pairs(tmp_path / "missing.json")


def test_bad_options_are_refused(tmp_path: Path, tiny_model: Any) -> None:
    with pytest.raises(BadOption, match="nothing of the target would be mapped"):
        small(end=0.0)
    with pytest.raises(BadOption, match="early"):
        small(early=1.5)
    (tmp_path / "space.txt").write_text("cat\n")
    with pytest.raises(BadRequest, match="prior"):
        small(prior=str(tmp_path / "space.txt")).erase(tiny_model, EraseRequest(("cat",), "", ("dog",)))
