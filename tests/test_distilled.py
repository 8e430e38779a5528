"""Distilled networks: one evaluation per step, and costs that say so before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
import stock
import torch

from efface.attacks import Deployed
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadOption
from efface.evaluation.damage import damage_cost
from efface.evaluation.profiles import PROFILES
from efface.evaluation.scan import Probe, climb_cost, prediction_changes
from efface.methods import ESD
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.tiny import TINY_WORDS, tiny, tiny_flux
from efface.registry import ATTACKS, METHODS
from efface.testing import check_attack, check_method

REQUEST = EraseRequest(("cat",), "", ("bus",))


@pytest.fixture
def lcm() -> DiffusionModel:
    """A UNet that takes the scale as an input, as the Latent Consistency Models do."""
    model = load_model(stock.pipe(time_cond_proj_dim=8))
    model.concept_names = TINY_WORDS[:12]
    return model


FAST = ("esd", "advunlearn", "mace", "forget-me-not")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in METHODS])
def test_a_guidance_distilled_unet_costs_what_is_announced(name: str, lcm: DiffusionModel) -> None:
    """Its announced cost was up to twice what was spent. A method that trains walks to z_t with one evaluation per step."""
    check_method(METHODS[name].preset("tiny"), EraseRequest(("cat",)) if name == "forget-me-not" else REQUEST, lcm)


@pytest.mark.parametrize("name", ["ap", "advunlearn", "ablation", "stereo"])
def test_without_guidance_a_method_costs_half_of_its_walk(name: str) -> None:
    check_method(METHODS[name].preset("tiny", guidance=1.0), REQUEST)


@pytest.mark.parametrize("name", ["concept_inversion", "seed_search", "unlearndiff"])
def test_attacks_plan_one_evaluation_per_step(name: str, lcm: DiffusionModel) -> None:
    check_attack(ATTACKS[name].preset("tiny"), Deployed(lcm, 2, ("cat",)), budget=60)


def test_images_and_scans_are_announced_as_they_are_spent(lcm: DiffusionModel) -> None:
    profile, probe = PROFILES["smoke"], Probe(trajectories=1, levels=1, steps=3)
    for model, branches in ((lcm, 1), (tiny_flux(), 1), (tiny(), 2)):
        assert profile.evals_per_image(model) == branches * profile.steps
        before = model.evals.forward
        model.sample([Case("x", "", "a cat", 0, profile.guidance)], profile.steps)
        assert model.evals.forward - before == profile.evals_per_image(model)
        patch = ESD.preset("tiny").erase(model, REQUEST)
        before = model.evals.forward
        prediction_changes(model, patch, ["cat", "dog"], probe, seed=0)
        assert model.evals.forward - before == probe.cost(model, 2) == 2 * branches * 2 + 2 * 2
        assert climb_cost(model, probe, 1) == branches * 2 + 4
    assert damage_cost(tiny(), 8, 2, profile, "images") == 2 * damage_cost(lcm, 8, 2, profile, "images")


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_scale_of_one_or_less_is_no_guidance_as_in_stock_pipelines(family: str, scale: float) -> None:
    """Turbo and Lightning models are called with guidance 0, which means the prompt alone and not the empty prompt alone."""
    pipe: Any = stock.pipe(family)
    model = load_model(pipe)
    before = model.evals.forward
    ours = model.sample([Case("x", "", "a cat", 0, scale)], 4)
    assert model.evals.forward - before == 4
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    facts = {"num_inference_steps": 4, "guidance_scale": scale, "output_type": "pt", "height": 16, "width": 16}
    theirs = pipe("a cat", latents=noise, **facts).images
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_guards_say_that_a_distilled_network_has_no_branch(lcm: DiffusionModel) -> None:
    from efface.guards import Negative

    with pytest.raises(BadOption, match="no second branch"), Negative().active(lcm, ("cat",)):
        pass
    model = tiny()
    with Negative().active(model, ("cat",)), pytest.raises(BadOption, match="guidance 0 has none"):
        model.sample([Case("x", "", "a cat", 0, 0.0)], 2)
