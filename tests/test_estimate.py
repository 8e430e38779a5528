"""What a run will take: bytes that are kept are counted exactly, rows are those of the update, and what cannot fit is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import efface
from efface.cli import main
from efface.errors import BadOption
from efface.methods.trained import Trained
from efface.models.cond import MASK
from efface.models.footprint import WIDE, Kept, _Autocast, _Blocks, footprint
from efface.models.load import load_model
from efface.models.parts import named_dtype
from efface.models.select import CROSS_SELECTIONS, Z_IMAGE_SELECTIONS
from efface.registry import METHODS
from efface.verbs import memory
from efface.verbs.erase import request_for

FAMILIES = ("tiny", "tiny-xl", "tiny-sd3", "tiny-flux", "tiny-pixart", "tiny-sana", "tiny-z-image", "tiny-wan", "mini-flow")
SEARCHED = [n for n, cls in METHODS.items() if issubclass(cls, Trained)]


@pytest.mark.parametrize(("dtype", "through"), [("float32", False), ("bfloat16", True)], ids=["weights", "weights and text"])
@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_on_meta_are_those_of_a_real_forward_pass(name: str, dtype: str, through: bool) -> None:
    """In half precision under autocast as it is on the CPU, with the copies that it makes of weights in float32. The CPU alone
    keeps the means of norms in half precision, which is less than a fiftieth of all."""
    model = load_model(name, dtype=dtype)
    select, computed = model.select("xattn"), named_dtype(dtype)
    expected = footprint(model, select, loaded=computed, computed=computed, through_encodings=through)
    student = model.student(select)
    for p in student.weights(select).values():
        p.requires_grad_(True)
    kept = Kept(student.network.parameters())
    z, c = torch.zeros((1, *model.latent_shape)), model.encode([""])
    if through:
        extras = {k: v if k == MASK else v.clone().requires_grad_(v.is_floating_point()) for k, v in c.extras.items()}
        c = replace(c, tokens=c.tokens.clone().requires_grad_(True), extras=extras)
    t = model.schedule.numbered([model.schedule.size // 2], z.device)
    with kept.counting():
        student.predict(z, t, c)
    assert kept.bytes == pytest.approx(expected.row + expected.copies, rel=0.02 if dtype == "bfloat16" else 0)
    assert expected.row > 0
    assert (expected.copies > 0) == (dtype == "bfloat16")


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
        ("SanaTransformer2DModel", {}, _sana, CROSS_SELECTIONS["xattn"], 3.03, 0.25),
        ("ZImageTransformer2DModel", {}, _z_image, Z_IMAGE_SELECTIONS["text"], 26.68, 1.90),
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
        if p.requires_grad_(select(f"transformer.{n}")).requires_grad:
            p.data = p.data.float()
    cast = _Autocast(torch.bfloat16, WIDE, network.parameters())
    kept, blocks, inputs = Kept(network.parameters(), cast.copies), _Blocks(), Kept(network.parameters(), cast.copies)
    with kept.counting(), blocks.watched(network, kept), cast:
        call(network, empty)
    network.enable_gradient_checkpointing()
    network.train()
    with inputs.counting(), cast:
        call(network, empty)
    found = kept.bytes / 2**30, (inputs.bytes + max(blocks.sizes)) / 2**30
    assert found == pytest.approx((kept_gib, recomputed_gib), abs=0.006)
    row = f"| {kept_gib:.2f} | {recomputed_gib:.2f} |"
    assert row in (Path(__file__).parents[1] / "docs" / "flow.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35-medium"])
def test_peaks_that_were_measured_on_a_gpu_are_those_that_are_counted(name: str, monkeypatch: Any) -> None:
    """Of networks of true size without numbers. Peaks are at most 6 % above the count: buffers that live for a moment are not in
    it. Those of the run are at most 5 % above."""
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    gpu_models, gpu_efface = import_module("gpu_models"), import_module("gpu_efface")

    def without_numbers(make: Any, dtype: torch.dtype, device: str) -> Any:
        with torch.device(device):
            return torch.nn.Module.to(make(), dtype).eval().requires_grad_(False)

    monkeypatch.setattr(gpu_models, "filled", without_numbers)
    model = gpu_models.sized(name, torch.bfloat16, "meta", False, 8)
    monkeypatch.setattr(model, "_autocast", lambda device=None: nullcontext())  # torch has none for "meta"
    rows = json.loads((root / "docs" / "numbers" / "gpu_adapters.json").read_text("utf-8"))["rows"]
    taken = [r for r in rows if r["model"].split()[0] == name and "predicted_gib" in r and "offloaded" not in r["mode"]]
    assert taken
    for row in taken:
        method = gpu_efface.trained_methods(name)[row["what"].removesuffix(", one update")][0]
        needs = memory.Needs(model, method, checkpointing=row["mode"] == "checkpointing")
        assert 0.97 < row["peak_gib"] / (needs.total() / memory.GIB) < 1.06, row["what"]


@pytest.mark.parametrize("name", [*SEARCHED, "ap, joint", "rap, joint"])
def test_the_rows_of_an_update_are_those_that_are_announced(name: str, tiny_model: Any, monkeypatch: Any) -> None:
    """Counted as the rows of every prediction that one optimizer step differentiates."""
    from efface.training.loop import Step

    name, _, update = name.partition(", ")
    searched = {"search.update": update} if update else {}
    method = METHODS[name].preset("tiny", steps=1, batch=2, **searched)
    differentiated: list[int] = []
    through: list[bool] = []
    predict, minimize = type(tiny_model).predict, Step.minimize

    def counted(self: Any, z: Any, t: Any, c: Any) -> Any:
        out = predict(self, z, t, c)
        if out.requires_grad and any(p.requires_grad for p in self.network.parameters()):
            differentiated.append(len(z))
            through.append(c.tokens.requires_grad)
        return out

    taken: list[tuple[int, bool]] = []

    def step(self: Step, **terms: Any) -> None:
        taken.append((sum(differentiated), any(through)))
        minimize(self, **terms)

    monkeypatch.setattr(type(tiny_model), "predict", counted)
    monkeypatch.setattr(Step, "minimize", step)
    names = ["dog"] if name in ("fixed",) else []
    method.erase(tiny_model, request_for(tiny_model, "cat", preserve=names))
    assert taken[0] == (method.gradient_rows * 2, method.through_encodings)


def test_checkpointing_and_half_precision_keep_less() -> None:
    model = load_model("mini")
    select = model.select("xattn")
    half, full = torch.bfloat16, torch.float32
    whole = footprint(model, select, loaded=full, computed=full).row
    assert footprint(model, lambda _: False, loaded=half, computed=half, through_encodings=True).row == pytest.approx(
        footprint(model, lambda _: False, loaded=full, computed=full, through_encodings=True).row / 2, rel=0.02
    )
    assert whole / 2 < footprint(model, select, loaded=half, computed=half).row < 0.6 * whole
    assert footprint(model, select, loaded=full, computed=full, checkpointing=True).row < whole / 2


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
