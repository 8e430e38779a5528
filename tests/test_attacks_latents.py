"""Attacks that control the sampler, its start latent or the weights: equations, planted truths, and what is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efface import verbs
from efface.attacks import Attempt, Completion, Deployed, Goal, LatentInversion, NoiseProbe, Plan, Relearn, Restore, Resurge
from efface.attacks.fine_tuning import FineTuning
from efface.attacks.misspelling import Misspelling, mistakes
from efface.attacks.noise_probe import ETAS, SCALES
from efface.attacks.paraphrase import SENTENCES
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.equations.diffusion import ddim_step, noised, spherical, with_fresh_noise
from efface.errors import BadOption
from efface.evaluation.attack import render
from efface.evaluation.attacked import summarise_attacks
from efface.evaluation.records import AttemptRow
from efface.guards import SLD
from efface.methods import UCE, AdvUnlearn
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.registry import build_attack
from efface.testing import check_attack
from efface.verbs.attack import attack_units

CASES = tuple(Case("direct", "cat", p, s, 2.0) for p, s in (("a cat", 1), ("a photo of a cat", 2)))
GOAL = Goal("cat", CASES)
ASKED = EraseRequest(("dog",))
F64 = torch.float64


def levels(ab: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(ab, dtype=F64).sqrt(), torch.tensor(1 - ab, dtype=F64).sqrt()


@given(st.floats(0.02, 0.9), st.floats(0.01, 0.5), st.floats(0, 1))
def test_fresh_noise_keeps_the_marginal_and_eta_0_is_the_deterministic_step(ab: float, gap: float, eta: float) -> None:
    rng = torch.Generator().manual_seed(0)
    x0, e, fresh = (torch.randn(1, 4, 3, 3, generator=rng, dtype=F64) for _ in range(3))
    now, after = torch.tensor(ab, dtype=F64), torch.tensor(min(ab + gap * (1 - ab), 0.999), dtype=F64)
    z = noised(x0, e, now)
    z_next = ddim_step(e, z, now, after)
    one = torch.ones((), dtype=F64)
    got = with_fresh_noise(z, z_next, levels(ab), levels(float(after)), eta * one, one, fresh)
    # The published form of DDIM's step: x0, what is left of the predicted noise, and fresh noise.
    sigma = eta * ((1 - after) / (1 - now)).sqrt() * (1 - now / after).sqrt()
    expected = after.sqrt() * x0 + (1 - after - sigma**2).clamp_min(0).sqrt() * e + sigma * fresh
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    if eta == 0:
        torch.testing.assert_close(got, z_next, atol=1e-9, rtol=0)


def test_fresh_noise_of_a_flow_has_the_level_it_goes_to() -> None:
    """A known pair stays a pair of that level in distribution: mean alpha' x0, variance sigma'^2."""
    rng = torch.Generator().manual_seed(1)
    n = 40_000
    x0, e, fresh = (
        torch.full((n, 1, 1, 1), 0.7, dtype=F64),
        *(torch.randn(n, 1, 1, 1, generator=rng, dtype=F64) for _ in range(2)),
    )
    s, s_next = (torch.tensor(v, dtype=F64) for v in (0.8, 0.6))
    z, z_next = (1 - s) * x0 + s * e, (1 - s_next) * x0 + s_next * e
    one = torch.ones((), dtype=F64)
    got = with_fresh_noise(z, z_next, (1 - s, s), (1 - s_next, s_next), one, one, fresh)
    # Five standard errors of a mean and of a variance over 40,000 draws.
    assert float(got.mean()) == pytest.approx(0.4 * 0.7, abs=5 * 0.6 / n**0.5)
    assert float(got.var()) == pytest.approx(0.36, abs=5 * 0.36 * (2 / n) ** 0.5)


def test_a_spherical_mixture_keeps_the_length_and_its_ends() -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(2, 4, 8, 8, generator=rng, dtype=F64)
    b = torch.randn(2, 4, 8, 8, generator=rng, dtype=F64)
    b = b / b.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * a.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    for share, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(spherical(a, b, torch.tensor(share)), end, atol=1e-6, rtol=0)
    half = spherical(a, b, torch.tensor(0.5))
    torch.testing.assert_close(half.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))


@pytest.mark.parametrize("name", ["tiny", "tiny-v", "tiny-sd3"])
def test_an_inverted_latent_is_drawn_again(name: str) -> None:
    """Up and down again meets the start more nearly the finer the grid: a first-order solver backwards."""
    model = load_model(name)
    c, noise = model.encode(["a cat"]), model.case_noise([3])
    off = []
    with torch.no_grad():
        for steps in (10, 80):
            z_0 = model.denoise(c, noise, steps, 1.0)
            again = model.denoise(c, model.invert(c, z_0, steps), steps, 1.0)
            off.append(float((again - z_0).norm() / z_0.norm()))
    assert off[1] < off[0] / 2
    assert off[1] < 0.2


def test_steps_that_are_taken_are_not_taken_again() -> None:
    model = tiny()
    c, noise, grid = model.encode(["a cat"]), model.case_noise([1]), model.schedule.timesteps(6)
    with torch.no_grad():
        whole = model.denoise(c, noise, 6, 3.0)
        states = [z for _, z in model.walk(c, noise, grid, 3.0)]
        before = model.evals.forward
        torch.testing.assert_close(model.denoise(c, states[2], 6, 3.0, taken=2), whole)
    assert model.evals.forward - before == 2 * 4


def test_render_starts_from_the_latents_that_are_handed_over_in_the_order_of_the_attempts() -> None:
    deployed, model = Deployed(tiny(), steps=4), tiny()
    done = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(9))
    attempts = [
        Attempt(0, "a cat", 1, "finished", latent=done, taken=4),
        Attempt(0, "a cat", 1, "plain"),
        Attempt(0, "a cat", 7, "from this latent", latent=model.case_noise([1])),
    ]
    images = render(deployed, GOAL, attempts)
    assert torch.equal(images[1], images[2])
    torch.testing.assert_close(images[0], (model.decode(done)[0].float() * 255).round() / 255, atol=1 / 255, rtol=0)


def test_on_the_original_model_completion_is_the_plain_image() -> None:
    deployed = Deployed(tiny(), steps=4)
    attempts = Completion(most=3).run(deployed, GOAL, Plan(3))
    assert [a.taken for a in attempts] == [1, 2, 3] * 2
    images = render(deployed, GOAL, [*attempts[:3], Attempt(0, "a cat", 1, "plain")])
    for image in images[:3]:
        torch.testing.assert_close(image, images[3], atol=1 / 255, rtol=0)
    with pytest.raises(BadOption, match="most=4"):
        Completion(most=4).plan(deployed, GOAL, 100)


def test_the_probe_tries_every_pair_before_it_repeats_one() -> None:
    attempts = NoiseProbe().run(Deployed(tiny(), steps=2), Goal("cat", CASES[:1]), Plan(len(ETAS) * len(SCALES)))
    assert len({a.stage for a in attempts}) == len(attempts) == 24
    assert attempts[0].stage == "eta 1.00, noise times 1.00"
    first, second = (a.latent for a in attempts[:2])
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


def test_a_short_fine_tuning_lowers_the_loss_on_its_images_and_touches_nothing_else() -> None:
    model = tiny()
    attack = Relearn(images=4, batch=4, rank=0, train="full", lr=3e-3, checkpoints="0,40")
    plan = attack.plan(Deployed(model, 2), GOAL, 10_000)
    assert (plan.images, plan.iterations) == (2, 40)
    before = {n: p.detach().clone() for n, p in model.weights(lambda _: True).items()}
    losses: list[float] = []
    train = FineTuning._train

    def spy(self: Any, student: Any, adam: Any, x: Any, captions: Any, rng: Any) -> None:
        state = rng.get_state()
        with torch.no_grad():
            fixed = torch.Generator().manual_seed(0)
            t = student.schedule.numbered([100, 400, 700, 900], x.device)
            n = student.noise(4, fixed)
            z = student.schedule.noised(x, n, t)
            losses.append(float((student.prediction(z, t, student.encode(captions)) - n).square().mean()))
        rng.set_state(state)
        train(self, student, adam, x, captions, rng)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FineTuning, "_train", spy)
        attack.run(Deployed(model, 2), GOAL, plan)
    assert losses[-1] < 0.98 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.weights(lambda _: True).items())


def test_relearning_starts_at_the_erased_model_and_resurging_never_shows_the_target() -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat"])
    deployed = Deployed(model, 2, ("cat",), patch)
    attack = build_attack("relearn", preset="tiny")
    start = [a for a in attack.run(deployed, GOAL, attack.plan(deployed, GOAL, 100)) if a.stage == "step 0"]
    plain = [Attempt(i, c.prompt, c.seed, "plain") for i, c in enumerate(CASES)]
    torch.testing.assert_close(render(deployed, GOAL, start), render(deployed, GOAL, plain), atol=1 / 255, rtol=0)
    shown = Resurge(images=50).names(deployed, Goal("cat", CASES, {"synonym": ("dog", "house cat")}))
    assert shown
    assert not {"cat", "dog", "house"} & set(shown)


def test_restoring_everything_is_the_original_model_and_a_text_encoder_goes_back_alone() -> None:
    model = tiny()
    patch = verbs.erase(model, AdvUnlearn.preset("tiny"), targets=["cat"])
    deployed = Deployed(model, 2, ("cat",), patch)
    attempts = check_attack(Restore(), deployed, goal=GOAL)
    assert [a.stage for a in attempts if a.case == 0] == ["share 0.25", "share 0.5", "share 0.75", "share 1.0", "text encoder"]
    plain = [Attempt(i, c.prompt, c.seed, "plain") for i, c in enumerate(CASES)]
    original = render(Deployed(model, 2), GOAL, plain)
    for stage in ("share 1.0", "text encoder"):  # this patch changes the text encoder alone
        torch.testing.assert_close(render(deployed, GOAL, [a for a in attempts if a.stage == stage]), original)
    with pytest.raises(BadOption, match="--patch"):
        Restore().plan(Deployed(model, 2), GOAL, 1000)


def test_what_breaks_every_model_stands_beside_the_union() -> None:
    """The original weights, and a latent that is found for any picture: both would fill the union for every defence. Their
    controls stay in it."""
    model = load_model("mini")
    tried = [LatentInversion.preset("mini"), Restore.preset("mini"), Completion.preset("mini")]
    units = attack_units(
        model, tried, "dog", ("dog",), Patch({}, UCE().card(model, ASKED, model.evals.snapshot())), None, 2, "smoke"
    )
    roles = {u.label: u.role for u in units}
    assert roles == {
        "direct": "baseline",
        "latent_inversion": "apart",
        "restore": "apart",
        "completion": "attack",
        "seed_search": "control",
        "latent_inversion_never_learned": "novel",
    }


def test_weights_are_not_attacked_where_only_a_guard_stands() -> None:
    with pytest.raises(BadOption, match="leaves the guard out"):
        Relearn().plan(Deployed(tiny(), 2, ("cat",), guard=SLD()), GOAL, 10_000)
    with pytest.raises(BadOption, match="two or more growing numbers"):
        Relearn(checkpoints="5,0")


@pytest.mark.parametrize("spare", [0, 1])
def test_fine_tuning_goes_to_the_last_checkpoint_that_its_budget_pays(spare: int) -> None:
    """Two cases, two training images, images of two steps with guidance: 4 evaluations for an image, 2 for a training row and its
    backward pass. To checkpoint 5, (2 + 3 * 2) * 4 + 2 * 2 * 5 = 52 of both cases, which is 26 for each."""
    plan = Relearn(images=2, batch=2, rank=2, checkpoints="0,1,5,40").plan(Deployed(tiny(), 2, ("cat",)), GOAL, 26 - spare)
    assert (plan.images, plan.iterations) == ((3, 5) if not spare else (2, 1))


def test_latents_are_attacked_under_a_guard() -> None:
    for attack in (NoiseProbe(), Completion(most=1), LatentInversion()):
        check_attack(attack, Deployed(tiny(), 2, ("cat",), guard=SLD()), goal=GOAL)


def test_misspellings_differ_from_the_name_and_from_each_other() -> None:
    variants = Misspelling().prompts(Goal("fire engine", CASES).call(0), "a photo of a fire engine")
    assert len(set(variants)) == len(variants) >= 15
    assert "a photo of a fire engine" not in variants
    assert all(v.startswith("a photo of a fire ") for v in variants)
    assert list(mistakes("rabbit", 3))[:4] == ["rabibt", "rabit", "rabbbit", "rabnit"]
    twice = Misspelling().prompts(Goal("rabbit", CASES).call(0), "a rabbit")
    assert "a raibbt" in twice, "of rabibt, the letters before those that were swapped"
    assert "a rabitb" not in twice
    for name in ("rabbit", "book", "fire engine", "balloon", "kiwi"):  # letters that stand twice, or are a neighbour's
        variants = Misspelling().prompts(Goal(name, CASES).call(0), f"the {name}")
        assert len(set(variants)) == len(variants), name
        assert f"the {name}" not in variants
    with pytest.raises(BadOption, match="3 letters"):
        Misspelling().plan(Deployed(tiny(), 2), Goal("ox", CASES), 100)


def test_paraphrases_keep_the_name() -> None:
    prompts = build_attack("paraphrase").prompts(Goal("owl", CASES).call(0), "an owl")  # type: ignore[attr-defined]
    assert len(prompts) == len(SENTENCES)
    assert all("owl" in p for p in prompts)
    assert "here is an owl" in prompts


def row(attack: str, case: str, stage: str, hit: bool, valid: bool = True) -> AttemptRow:
    return AttemptRow(attack, case, "cat", "a cat", 0, stage, True, valid, None, "cat" if hit else "dog", 1.0)


def test_a_curve_counts_each_stage_and_the_ratio_compares_when_half_are_back() -> None:
    curve = {"role": "attack", "tier": "T5", "gate": "plain", "curve": True, "taught": None}
    rows = {
        "direct": [row("direct", c, "plain", False) for c in "ab"],
        "relearn": [row("relearn", c, f"step {s}", hit) for s, hit in ((0, False), (5, True)) for c in "ab"],
        "relearn_never_learned": [row("x", c, f"step {s}", c == "a" and s == 20) for s in (0, 5, 20) for c in "ab"],
        "restore": [row("restore", c, "share 1.0", True, valid=c == "a") for c in "ab"],
    }
    facts = {
        "direct": {"role": "baseline", "tier": "T0", "gate": "plain"},
        "relearn": curve,
        "relearn_never_learned": {**curve, "role": "novel", "taught": "relearn"},
        "restore": {**curve, "role": "apart"},
    }
    found = summarise_attacks(rows, facts, dict.fromkeys(rows, ()))
    mine = found["attacks"]["relearn"]
    assert {s: (r["k"], r["n"]) for s, r in mine["stages"].items()} == {"step 0": (0, 2), "step 5": (2, 2)}
    assert mine["half"] == "step 5"
    assert mine["relearning_ratio"] == 5 / 20
    assert found["attacks"]["restore"]["stages"]["share 1.0"]["k"] == 1, "an invalid image is not the target"
    assert found["union"]["over"] == ["direct", "relearn"]
    assert {t: u["k"] for t, u in found["tiers"].items()} == {"T0": 0, "T5": 2}


def test_an_erased_patch_and_the_attempts_of_it_are_deterministic(tmp_path: Path) -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat"])
    assert isinstance(patch, Patch)
    deployed = Deployed(model, 2, ("cat",), patch)
    for name in ("noise_probe", "latent_inversion", "completion", "relearn"):
        attack = build_attack(name, preset="tiny")
        other = dataclasses.replace(attack, seed=1)
        goal = Goal("cat", CASES[:1])
        a, b = (x.run(deployed, goal, x.plan(deployed, goal, 60)) for x in (attack, other))
        assert any(not torch.equal(p.latent, q.latent) for p, q in zip(a, b, strict=True) if p.latent is not None), name


@pytest.mark.parametrize(
    ("name", "budget", "images", "forward", "backward"),
    [
        ("direct", 100, 1, 100, 0),
        ("seed_search", 5100, 51, 5100, 0),
        ("unlearndiff", 9100, 50, 7100, 2000),  # one of the published 51 images is the reference of the loss
        ("mma", 400, 4, 400, 0),
        ("noise_probe", 2400, 24, 2400, 0),
    ],
)
def test_what_attacks_cost_by_their_papers(name: str, budget: int, images: int, forward: int, backward: int) -> None:
    """Table A11 of the specification: 50 sampler steps with guidance, one case, the papers' settings."""
    plan = build_attack(name).plan(Deployed(tiny(), 50), Goal("cat", (Case("direct", "cat", "a cat", 1, 7.5),)), budget)
    # A step that is done on a latent before it is handed over is in ``forward`` and not taken again for the image.
    assert plan.forward + 2 * (50 * plan.images - plan.skipped) == forward
    assert (plan.images, plan.backward) == (images, backward)
