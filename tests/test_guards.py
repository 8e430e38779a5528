"""Guards: their equations, the pipelines they must agree with, and the systems that evaluation and attacks see."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import pipeline

from efface import verbs
from efface.concepts.prompts import Case
from efface.equations.guidance import guided, safety
from efface.equations.subspace import projector, triggers
from efface.errors import BadOption, UnknownName
from efface.guards import SAFREE, SLD, Guard, Negative
from efface.guards.sld import STRENGTHS
from efface.models.tiny import tiny
from efface.registry import GUARDS, build_guard
from efface.testing import check_guard, hooks, same, state

F64 = torch.float64
# middle=-9: on random weights b means nothing; the filter shall run its full length.
EVERY = [Negative(), SLD(strength="max"), SAFREE(middle=-9.0)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(st.integers(0, 50), st.integers(1, 4), st.integers(4, 9))
def test_projector_is_the_orthogonal_projector_onto_the_span(seed: int, n: int, d: int) -> None:
    v = randn(n, d, seed=seed)
    v = torch.cat([v, v[:1] * 2])  # dependent rows do no harm
    p = projector(v)
    assert torch.allclose(p @ p, p, atol=1e-10)
    assert torch.allclose(p, p.T, atol=1e-12)
    assert torch.allclose(v @ p, v, atol=1e-10)
    assert float(p.trace()) == pytest.approx(min(n, d), abs=1e-8)


def test_a_trigger_stands_out_and_one_token_has_no_others() -> None:
    assert triggers(torch.tensor([1.0, 1.0, 1.0]), 0.01).tolist() == [False] * 3
    assert triggers(torch.tensor([1.0, 1.5, 1.0]), 0.01).tolist() == [False, True, False]
    assert triggers(torch.tensor([5.0]), 0.01).tolist() == [False]


def test_safety_acts_only_where_prompt_and_concept_agree_and_saturates() -> None:
    e0, ec, es = randn(1, 4, 5, 5), randn(1, 4, 5, 5, seed=1), randn(1, 4, 5, 5, seed=2)
    gamma = safety(e0, ec, es, 1e9, 0.0)
    on = ec - es < 0
    assert torch.allclose(gamma[on], (es - e0)[on])
    assert not gamma[~on].any()
    assert not safety(e0, ec, es, 0.0, 0.0).any()


@pytest.mark.parametrize("guard", EVERY, ids=lambda g: g.name)
def test_a_guard_costs_what_it_says_changes_the_image_and_leaves_nothing(guard: Guard) -> None:
    model = tiny()
    before, hooked = state(model), hooks(model)
    cases = [Case("direct", "cat", p, s, 3.0) for p, s in (("a cat", 1), ("a photo of a cat", 2))]
    plain = model.sample(cases, 8)
    spent = model.evals.forward
    with guard.active(model, ("cat",)):
        guarded = model.sample(cases, 8)
    assert model.evals.forward - spent == guard.branches * 8 * 2
    assert not torch.equal(guarded, plain)
    assert torch.equal(model.sample(cases, 8), plain)
    assert same(state(model), before)
    assert hooks(model) == hooked
    with pytest.raises(RuntimeError, match="inside"), guard.active(model, ("cat",)):
        raise RuntimeError("inside")
    assert model.guide is None
    assert "encode" not in vars(model)


@pytest.mark.parametrize("guard", EVERY, ids=lambda g: g.name)
def test_guidance_one_is_refused(guard: Guard) -> None:
    model = tiny()
    with pytest.raises(BadOption, match="guidance 1"), guard.active(model, ("cat",)):
        model.sample([Case("direct", "cat", "a cat", 1, 1.0)], 2)


def test_negative_replaces_the_empty_prompt() -> None:
    model, z, t = tiny(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    c = model.encode(["a dog"])
    with Negative().active(model, ("cat",)):
        found = model.deployed(z, t, c, 3.0)
    expected = guided(model.predict(z, t, model.encode(["cat"])), model.predict(z, t, c), 3.0)
    # The same network at batch 2 and at batch 1: float32 rounding, which guidance 3 multiplies.
    assert torch.allclose(found, expected, atol=1e-5)


def latents_of(model: Any, guard: Guard, prompt: str, steps: int) -> torch.Tensor:
    with guard.active(model, ("cat",)):
        return model.denoise(model.encode([prompt]), model.case_noise([3]), steps, 7.5)


@pytest.mark.parametrize("strength", ["medium", "max"])
def test_sld_matches_the_official_pipeline(strength: str) -> None:
    model, pipe = pipeline("StableDiffusionPipelineSafe")
    pipe.safety_concept = "cat"
    delta, scale, threshold, momentum, beta = STRENGTHS[strength]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pipe(
            "a dog", num_inference_steps=50, guidance_scale=7.5, latents=model.case_noise([3]), output_type="np",
            sld_guidance_scale=scale, sld_warmup_steps=delta, sld_threshold=threshold, sld_momentum_scale=momentum,
            sld_mom_beta=beta,
        ).images  # fmt: skip
    theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2)
    ours = model.decode(latents_of(model, SLD(strength=strength), "a dog", 50))
    plain = model.render(model.encode(["a dog"]), [3], 50, 7.5)
    off = float((ours - theirs).norm() / theirs.norm())
    assert off < 1e-3 * float((plain - theirs).norm() / theirs.norm()), "rounding is amplified by 50 steps, the guard is not"


def test_sld_acts_on_a_stock_pipeline_through_hooks() -> None:
    model, pipe = pipeline("StableDiffusionPipeline")
    call = {"num_inference_steps": 10, "guidance_scale": 7.5, "output_type": "latent"}
    before = pipe("a dog", latents=model.case_noise([3]), **call).images
    guard = SLD(strength="max")
    with guard.on_pipeline(pipe, ("cat",)):
        twice = [pipe("a dog", latents=model.case_noise([3]), **call).images for _ in range(2)]
    assert torch.equal(*twice), "the momentum of one image must not reach the next"
    assert torch.allclose(twice[0], latents_of(model, guard, "a dog", 10), atol=1e-3 * float(twice[0].abs().max()))
    assert not torch.allclose(twice[0], before, atol=1e-2 * float(before.abs().max()))
    assert torch.equal(pipe("a dog", latents=model.case_noise([3]), **call).images, before)


def test_sld_acts_on_every_picture_of_a_batch() -> None:
    model, pipe = pipeline("StableDiffusionPipeline")
    noise = model.case_noise([3, 4, 5, 6])
    call = {"num_inference_steps": 4, "guidance_scale": 7.5, "output_type": "latent"}
    with SLD(strength="max").on_pipeline(pipe, ("cat",)):
        together = pipe("a dog", latents=noise.clone(), num_images_per_prompt=4, **call).images
        alone = torch.cat([pipe("a dog", latents=noise[[i]], **call).images for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("guard", [Negative(), SAFREE(middle=-9.0), SAFREE(middle=-9.0, negative=True)])
def test_pipelines_take_the_arguments_of_guards(guard: Any) -> None:
    model, pipe = pipeline("StableDiffusionPipeline")
    call = {"num_inference_steps": 10, "guidance_scale": 7.5, "output_type": "latent", "latents": model.case_noise([3])}
    prompt = "a photo of a cat"
    if isinstance(guard, SAFREE):
        theirs = pipe(**guard.pipeline_arguments(pipe, prompt, ("cat",)), **call).images
    else:
        theirs = pipe(prompt, **guard.pipeline_arguments(("cat",)), **call).images
    ours = latents_of(model, guard, prompt, 10)
    assert torch.allclose(theirs, ours, atol=1e-3 * float(ours.abs().max()))


def test_safree_leaves_a_prompt_without_a_trigger_alone_and_filters_one_with() -> None:
    model = tiny()
    guard = SAFREE(alpha=0.0)
    with guard.active(model, ("cat",)):
        empty = model.encode([""])
        filtered = model.encode(["a photo of a cat"])
    assert torch.equal(empty.extras["early"], model.encode([""]).tokens)
    assert empty.extras["until"].tolist() == [-1]
    plain = model.encode(["a photo of a cat"])
    assert torch.equal(filtered.tokens, plain.tokens), "the plain tokens stay for the later steps"
    assert not torch.equal(filtered.extras["early"], plain.tokens)
    with SAFREE(alpha=1e9, alone=False).active(model, ("cat",)):
        none = model.encode(["a photo of a cat", "cat"])
    assert torch.equal(none.extras["early"], none.tokens)
    assert none.extras["until"].tolist() == [-1, -1]


@pytest.mark.parametrize("middle", [0.5, 2.0])
def test_safree_filters_as_long_as_the_words_moved_far(middle: float) -> None:
    """Up to step 10 sigmoid(2 k (10 b - m)): b is the mean, over the words, of 1 less the cosine of a word and its projection
    on the span of the prompt with one word masked at a time, and away from the target's direction."""
    model, prompt, k = tiny(), "a photo of a cat", 0.1
    soft, last = model.embed([prompt]), len(model.token_ids([prompt])[0]) - 1
    rows = []
    for j in range(1, last):
        without = soft.embeddings.clone()
        without[0, j] = soft.pad
        rows.append(model.encode_soft(replace(soft, embeddings=without)).tokens[0, last])
    target = model.encode(["cat"]).tokens[0, len(model.token_ids(["cat"])[0]) - 1].double()
    away = torch.eye(len(target), dtype=torch.float64) - torch.outer(target, target) / (target @ target)
    words = model.encode([prompt]).tokens[0, 1:last].double()
    b = float(1 - torch.nn.functional.cosine_similarity(words, words @ projector(torch.stack(rows)) @ away, dim=1).mean())
    with SAFREE(alpha=0.0, sharpness=k, middle=middle).active(model, ("cat",)):
        until = model.encode([prompt]).extras["until"].tolist()
    assert until == [round(10 / (1 + math.exp(-2 * k * (10 * b - middle))))]
    assert until != [round(10 / (1 + math.exp(-2 * k * (10 * (2 - b) - middle))))], "the test would see a wrong sign"


def test_guards_by_name() -> None:
    assert set(GUARDS) == {"negative", "sld", "safree"}
    assert build_guard("sld:strength=max") == SLD(strength="max")
    with pytest.raises(UnknownName, match="Did you mean 'sld'"):
        build_guard("slt")
    with pytest.raises(UnknownName, match="Did you mean 'strength'"):
        build_guard("sld:strenth=max")
    with pytest.raises(UnknownName, match="medium"):
        build_guard("sld:strength=huge")


def test_a_guard_alone_needs_a_target(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="name one with --target"):
        verbs.evaluate("mini", None, guard="negative", out=tmp_path / "e", profile="smoke")


@pytest.mark.slow
def test_evaluation_sees_the_guard(tmp_path: Path) -> None:
    """Strong safety guidance lowers how often the trained miniature shows its target, beyond the paired interval."""
    found = verbs.evaluate(
        "mini", None, guard="sld:strength=strong", targets=["fire engine"], out=tmp_path / "e", profile="smoke"
    )["entrants"]
    assert set(found) == {"none", "sld"}
    assert found["sld"]["axes"]["direct"]["difference"]["high"] < 0


@pytest.mark.parametrize("guard", [*EVERY[:2], SAFREE(alpha=0.0, middle=-9.0)], ids=lambda g: g.name)
def test_contract(guard: Guard) -> None:
    check_guard(guard)


def test_the_contract_refuses_a_guard_that_does_nothing_or_costs_something_else() -> None:
    class Idle(Negative):
        def active(self, model: Any, targets: tuple[str, ...]) -> Any:
            return contextlib.nullcontext()

    class Dear(Negative):
        branches = 3

    with pytest.raises(AssertionError, match="the guard changed nothing"):
        check_guard(Idle())
    with pytest.raises(AssertionError, match="branches says 3 evaluations per step, 2 were counted"):
        check_guard(Dear())
