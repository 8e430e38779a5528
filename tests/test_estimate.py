"""What a run will take: bytes that are kept are counted exactly, rows are those of the update, and what cannot fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import efface
from efface.cli import main
from efface.errors import BadOption
from efface.methods.trained import Trained
from efface.models.footprint import Kept, _Blocks, activations
from efface.models.load import load_model
from efface.models.select import CROSS_SELECTIONS, Z_IMAGE_SELECTIONS
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


def _sana(network: Any, empty: Any) -> None:
    text = {"encoder_hidden_states": empty(1, 300, 2304), "encoder_attention_mask": empty(1, 300)}
    network(empty(1, 32, 32, 32), timestep=empty(1), **text)


def _z_image(network: Any, empty: Any) -> None:
    network([empty(16, 1, 128, 128)], empty(1), [empty(32, 2560)])


def _wan(network: Any, empty: Any) -> None:
    network(hidden_states=empty(1, 16, 1, 60, 104), timestep=empty(1), encoder_hidden_states=empty(1, 512, 4096))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "facts", "call", "select", "kept_gib", "recomputed_gib"),
    [
        ("SanaTransformer2DModel", {}, _sana, CROSS_SELECTIONS["xattn"], 3.19, 0.25),
        ("ZImageTransformer2DModel", {}, _z_image, Z_IMAGE_SELECTIONS["text"], 26.65, 1.87),
        (
            "WanTransformer3DModel",
            {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            _wan,
            CROSS_SELECTIONS["xattn"],
            3.60,
            0.27,
        ),
    ],
)
def test_the_page_says_what_transformers_of_true_size_keep(
    kind: str, facts: dict[str, int], call: Any, select: Any, kept_gib: float, recomputed_gib: float
) -> None:
    """The table of docs/flow.md, on networks of the classes' own configurations without numbers."""
    import diffusers

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    with torch.device("meta"):
        network = torch.nn.Module.to(getattr(diffusers, kind)(**facts), torch.bfloat16)
    for n, p in network.named_parameters():
        p.requires_grad_(select(f"transformer.{n}"))
    kept, blocks, inputs = Kept(network.parameters()), _Blocks(), Kept(network.parameters())
    with kept.counting(), blocks.watched(network, kept):
        call(network, empty)
    network.enable_gradient_checkpointing()
    network.train()
    with inputs.counting():
        call(network, empty)
    found = kept.bytes / 2**30, (inputs.bytes + max(blocks.sizes)) / 2**30
    assert found == pytest.approx((kept_gib, recomputed_gib), abs=0.006)
    row = f"| {kept_gib:.2f} | {recomputed_gib:.2f} |"
    assert row in (Path(__file__).parents[1] / "docs" / "flow.md").read_text("utf-8")


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
    assert found.parts["trained copy and gradients, in float32"] == 8 * trained
    assert found.parts["two moments of Adam, in float32"] == 8 * trained
    assert found.fits is True
    assert "activations" not in " ".join(efface.estimate(tiny_model, "uce", targets="cat").parts)


def test_a_large_run_that_cannot_fit_is_refused_before_anything_is_spent(tiny_model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "LARGE", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda model: 1000)
    with pytest.raises(BadOption, match=r"needs about .* GiB and 0.0 GiB are free on cpu. It does not fit with every"):
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
