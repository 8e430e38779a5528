"""Noise levels are those of the model's own scheduler, other laws are refused, and an exported folder keeps the scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import stock
import torch
from chequered import chequered

from efface import erase, export, load_model
from efface.errors import BadFile
from efface.methods import ESD
from efface.models.schedule import Schedule, schedule_of

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2
U = {"targets": ["cat"], "anchor": "dog"}
V = {"prediction_type": "v_prediction"}
ZERO = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KNOWN: dict[str, Any] = {
    "DDIMScheduler": {"steps_offset": 1, "clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading", "steps_offset": 1},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "trailing"},
    "HeunDiscreteScheduler": {"timestep_spacing": "linspace"},
    "KDPM2DiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
    "DPMSolverSinglestepScheduler": {"final_sigmas_type": "zero"},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "LCMScheduler": {"original_inference_steps": 50},
    "TCDScheduler": {},
}


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("law", [{}, V, {"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "linear", "beta_end": 0.02}])
def test_levels_are_the_schedulers_own(kind: str, law: dict[str, Any]) -> None:
    own = getattr(diffusers, kind)(**{**stock.BETAS, **KNOWN[kind], **law})
    for source in (own, dict(own.config) | {"_class_name": kind}):
        schedule = schedule_of(source)
        assert torch.equal(schedule.alphas_cumprod, own.alphas_cumprod)
        assert schedule.prediction_type == own.config.get("prediction_type", "epsilon")
        assert schedule.config["_class_name"] == kind
        expected = float(own.final_alpha_cumprod) if hasattr(own, "final_alpha_cumprod") else 1.0
        assert schedule.final_alpha == expected


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_zero_terminal_snr_is_kept(kind: str) -> None:
    own = getattr(diffusers, kind)(**stock.BETAS, **ZERO)
    schedule = schedule_of(own)
    assert torch.equal(schedule.alphas_cumprod, own.alphas_cumprod)
    assert schedule.alphas_cumprod[-1] < 1e-6  # Euler and DPM keep 2^-24
    plain = getattr(diffusers, kind)(**stock.BETAS, **V)
    assert float(plain.alphas_cumprod[-1]) > 1e-3, "the test compares nothing"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 50, 333])
def test_grids_are_those_of_diffusers(spacing: str, offset: int, steps: int) -> None:
    ddim = diffusers.DDIMScheduler(**stock.BETAS, timestep_spacing=spacing, steps_offset=offset)
    ddim.set_timesteps(steps)
    schedule = Schedule(ddim.alphas_cumprod, 1.0, offset, spacing=spacing)
    assert schedule.timesteps(steps) == ddim.timesteps.tolist()


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.parametrize(
    "facts",
    [
        {"steps_offset": 1, "set_alpha_to_one": False},
        {"timestep_spacing": "trailing"},
        {**V, "timestep_spacing": "trailing"},
        ZERO,
        {**ZERO, "timestep_spacing": "leading", "steps_offset": 199},
    ],
    ids=["leading", "trailing", "v", "zero snr", "zero snr, leading"],
)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_pictures_are_those_of_the_stock_pipeline(family: str, facts: dict[str, Any], scale: float) -> None:
    pipe = stock.pipe(family, diffusers.DDIMScheduler(**stock.BETAS, clip_sample=False, **facts))
    model = load_model(pipe)
    noise = model.case_noise([3])
    theirs = pipe("a cat", latents=noise.clone(), num_inference_steps=5, guidance_scale=scale, output_type="latent").images
    for solver in ("ddim",):
        *_, (_, ours) = model.walk(model.encode(["a cat"]), noise, model.schedule.timesteps(5), scale, solver=solver)
        assert torch.isfinite(ours).all()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
    *_, (_, other) = model.walk(model.encode(["a cat"]), noise, model.schedule.timesteps(5), scale, solver="dpm")
    assert torch.isfinite(other).all()


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_eulers_own_last_step_ends_at_the_clean_latents(family: str) -> None:
    """The deterministic Euler solver and DDIM are one method on one grid."""
    own = diffusers.EulerDiscreteScheduler(**stock.BETAS, timestep_spacing="leading", steps_offset=1)
    pipe = stock.pipe(family, own)
    model = load_model(pipe)
    noise = model.case_noise([3])
    own.set_timesteps(5)
    # The pipeline scales its start by the first sigma; ours starts at unit variance.
    scaled = noise * float(own.sigmas[0] ** 2 + 1) ** 0.5 / float(own.init_noise_sigma)
    theirs = pipe("a cat", latents=scaled, num_inference_steps=5, guidance_scale=5.0, output_type="latent").images
    ours = model.denoise(model.encode(["a cat"]), noise, 5, 5.0)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_methods_train_on_zero_snr(tmp_path: Path) -> None:
    model = load_model(stock.pipe(scheduler=diffusers.DDIMScheduler(**stock.BETAS, clip_sample=False, **ZERO)))
    for more in ({}, {"loss_space": "x0"}, {"sampler.alignment": "official"}, {"solver": "dpm"}):
        patch = erase(model, ESD.preset("tiny", steps=3, **more), targets=["cat"])
        assert all(torch.isfinite(d).all() for d in patch.deltas.values())
        assert patch.norm() > 0


REFUSED: dict[str, tuple[Any, str]] = {
    "EDM": (lambda: diffusers.EDMEulerScheduler(), "EDMEulerScheduler.*another noise law"),
    "EDM DPM": (lambda: diffusers.EDMDPMSolverMultistepScheduler(), "another noise law"),
    "flow": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler.*flow matching"),
    "flow sigmas": (
        lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        "use_flow_sigmas=True",
    ),
    "continuous": (
        lambda: diffusers.EulerDiscreteScheduler(**stock.BETAS, timestep_type="continuous", **V),
        "timestep_type=continuous",
    ),
    "sample": (lambda: diffusers.DDIMScheduler(**stock.BETAS, prediction_type="sample"), "predicts 'sample'"),
    "sample, Euler": (lambda: diffusers.EulerDiscreteScheduler(**stock.BETAS, prediction_type="sample"), "predicts 'sample'"),
    "eps of pure noise": (lambda: diffusers.DDIMScheduler(**stock.BETAS, rescale_betas_zero_snr=True), "pure noise"),
    "score": (lambda: diffusers.ScoreSdeVeScheduler(), "another noise law"),
}


@pytest.mark.parametrize("law", REFUSED)
def test_other_laws_are_refused_by_name(law: str, tmp_path: Path) -> None:
    make, told = REFUSED[law]
    pipe = stock.pipe(scheduler=make())
    with pytest.raises(BadFile, match=told):
        load_model(pipe)
    pipe.save_pretrained(tmp_path / "m")
    with pytest.raises(BadFile, match=told):
        load_model(tmp_path / "m")


def test_a_scheduler_that_diffusers_does_not_have(tmp_path: Path) -> None:
    stock.pipe().save_pretrained(tmp_path / "m")
    place = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text("utf-8")), "_class_name": "MyScheduler"}), "utf-8")
    with pytest.raises(BadFile, match="scheduler MyScheduler cannot be made"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("family", "kind", "source"),
    chequered(
        ("sd", "xl"),
        ("PNDMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"),
        ("folder", "object"),
    ),
)
def test_an_exported_folder_keeps_the_scheduler(family: str, kind: str, source: str, tmp_path: Path) -> None:
    pipe = stock.pipe(family, getattr(diffusers, kind)(**{**stock.BETAS, **KNOWN[kind]}))
    pipe.save_pretrained(tmp_path / "m")
    model = load_model(tmp_path / "m" if source == "folder" else pipe)
    export(model, erase(model, "uce", **U), tmp_path / "new", to="folder")
    before, after = (json.loads((tmp_path / n / "scheduler" / "scheduler_config.json").read_text("utf-8")) for n in ("m", "new"))
    assert after == before
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "new")
    assert type(again.scheduler).__name__ == kind
    assert type(again) is type(pipe)


def test_a_scheduler_that_clips_latents_is_named() -> None:
    clipping = diffusers.DDIMScheduler(**stock.BETAS)
    assert clipping.config.clip_sample
    with pytest.warns(UserWarning, match=r"clip_sample=True.*register_to_config"):
        load_model(stock.pipe("xl", clipping))
    load_model(stock.pipe("sd", diffusers.DDIMScheduler(**stock.BETAS)))  # the pipeline itself puts it right
    with pytest.warns(UserWarning, match="thresholding=True"):
        load_model(stock.pipe("sd", diffusers.DDIMScheduler(**stock.BETAS, thresholding=True)))
