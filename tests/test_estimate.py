"""What a run will take: bytes that are kept are counted exactly, rows are those of the update, and what cannot fit is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import efface
from efface.cli import main
from efface.errors import BadOption
from efface.methods.trained import Trained
from efface.models.footprint import Kept, activations
from efface.models.load import load_model
from efface.registry import METHODS
from efface.verbs import memory
from efface.verbs.erase import request_for

FAMILIES = ("tiny", "tiny-xl", "tiny-sd3", "tiny-flux", "tiny-pixart", "tiny-sana", "tiny-z-image", "tiny-wan", "mini-flow")
SEARCHED = [n for n, cls in METHODS.items() if issubclass(cls, Trained)]


@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_on_meta_are_those_of_a_real_forward_pass(name: str) -> None:
    model = load_model(name)
    select = model.select("xattn")
    expected = activations(model, select, torch.float32)
    student = model.student(select)
    for p in student.weights(select).values():
        p.requires_grad_(True)
    kept = Kept(student.network.parameters())
    z, c = torch.zeros((1, *model.latent_shape)), model.encode([""])
    t = model.schedule.numbered([model.schedule.size // 2], z.device)
    with kept.counting():
        student.predict(z, t, c)
    assert kept.bytes == expected > 0


def test_the_unet_of_stable_diffusion_keeps_what_was_measured() -> None:
    """0.73 GiB for a row of 512 pixels in half precision with cross-attention trained, as counted by an independent script."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(torch.bfloat16)
        z, c = torch.empty((1, 4, 64, 64), dtype=torch.bfloat16), torch.empty((1, 77, 768), dtype=torch.bfloat16)
    for n, p in unet.named_parameters():
        p.requires_grad_(".attn2." in n)
    kept = Kept(unet.parameters())
    with kept.counting():
        unet(z, torch.zeros(1, device="meta"), c)
    assert kept.bytes / 2**30 == pytest.approx(0.73, abs=0.04)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_rows_of_an_update_are_those_that_are_announced(name: str, tiny_model: Any, monkeypatch: Any) -> None:
    """Counted as the rows of every prediction that one optimizer step differentiates."""
    from efface.training.loop import Step

    method = METHODS[name].preset("tiny", steps=1, batch=2)
    differentiated: list[int] = []
    predict, minimize = type(tiny_model).predict, Step.minimize

    def counted(self: Any, z: Any, t: Any, c: Any) -> Any:
        out = predict(self, z, t, c)
        if out.requires_grad and any(p.requires_grad for p in self.network.parameters()):
            differentiated.append(len(z))
        return out

    taken: list[int] = []

    def step(self: Step, **terms: Any) -> None:
        taken.append(sum(differentiated))
        minimize(self, **terms)

    monkeypatch.setattr(type(tiny_model), "predict", counted)
    monkeypatch.setattr(Step, "minimize", step)
    names = ["dog"] if name in ("fixed",) else []
    method.erase(tiny_model, request_for(tiny_model, "cat", preserve=names))
    assert taken[0] == method.gradient_rows * 2


def test_checkpointing_and_half_precision_keep_less() -> None:
    model = load_model("mini")
    select = model.select("xattn")
    whole = activations(model, select, torch.float32)
    assert activations(model, select, torch.bfloat16) == pytest.approx(whole / 2, rel=0.02)
    assert activations(model, select, torch.float32, checkpointing=True) < whole / 2


def test_an_estimate_adds_up_and_changes_nothing(tiny_model: Any) -> None:
    before, evals = tiny_model.digest(), tiny_model.evals.forward
    found = efface.estimate(tiny_model, "ap", targets=["cat"])
    assert (tiny_model.digest(), tiny_model.evals.forward) == (before, evals)
    assert all(p.grad is None and not p.requires_grad for p in tiny_model.network.parameters())
    trained = sum(w.numel() for w in tiny_model.weights(tiny_model.select("xattn")).values())
    assert found.parts["trained copy, gradients and two moments of Adam, in float32"] == 16 * trained
    assert found.fits is True
    assert "activations" not in " ".join(efface.estimate(tiny_model, "uce", targets="cat").parts)


def test_a_large_run_that_cannot_fit_is_refused_before_anything_is_spent(tiny_model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "LARGE", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda model: 1000)
    with pytest.raises(BadOption, match=r"needs about .* GiB and 0.0 GiB are free on cpu. Load the weights in half precision"):
        efface.erase(tiny_model, "naive", targets="cat")
    assert efface.erase(tiny_model, "uce", targets="cat").norm() > 0, "a closed form is not refused"


def test_the_command_line() -> None:
    result = CliRunner().invoke(main, ["estimate", "ap", "--model", "tiny", "--target", "cat"])
    assert result.exit_code == 0, result.output
    assert "GiB  activations that" in result.output
    assert "It fits." in result.output
    raw = CliRunner().invoke(main, ["estimate", "ap", "--model", "tiny", "--json", "--checkpointing"])
    facts = json.loads(raw.stdout)
    assert facts["total"] == sum(facts["parts"].values())
