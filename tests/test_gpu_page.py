"""The GPU benchmark without a GPU: its networks have the true sizes, its page says what was measured, its rehearsal runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_networks_have_their_true_sizes() -> None:
    """Parameters of the released models, and of the keys and values of their text."""
    import gpu_models
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from efface.models.select import MMDIT_SELECTIONS

    def made(cls: Any, config: dict[str, Any]) -> Any:
        with torch.device("meta"):
            return cls(**config)

    def count(net: torch.nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert count(made(UNet2DConditionModel, gpu_models.UNETS["sd15"])) == 859_520_964
    assert count(made(UNet2DConditionModel, gpu_models.UNETS["sdxl"])) == 2_567_463_684
    for cls, config, whole, tensors, trained in (
        (SD3Transformer2DModel, gpu_models.SD3, 2_243_171_520, 48, 113_246_208),
        (FluxTransformer2DModel, gpu_models.FLUX, 11_901_408_320, 38, 358_612_992),
    ):
        net = made(cls, config)
        text_kv = {n: p for n, p in net.named_parameters() if MMDIT_SELECTIONS["text-kv"](f"transformer.{n}")}
        assert (count(net), len(text_kv)) == (whole, tensors)
        assert sum(p.numel() for p in text_kv.values()) == trained


@pytest.mark.slow
def test_parts_beside_the_network_have_their_true_sizes() -> None:
    """Parameters of the text encoders and the VAE, but for the words: the vocabulary is the tiny model's."""
    import gpu_models

    def count(part: Any, words: str) -> int:
        return sum(p.numel() for n, p in part.named_parameters() if not n.endswith((words, "shared.weight")))

    model = gpu_models.sized("sd15", torch.bfloat16, "cpu", False, 1)
    assert count(model.text_encoder, "token_embedding.weight") == 123_060_480 - 49_408 * 768
    assert count(model.vae, "none") == 83_653_863
    assert model.latent_shape == (4, 64, 64)
    assert model.encode(["cat"]).tokens.shape == (1, 77, 768)


def results(**facts: Any) -> dict[str, Any]:
    shared = {"model": "sd15", "dtype": "bf16", "scope": "efface", "ms_range": [9.0, 11.0], "repeats": 10}
    ours = {**shared, "what": "AP, one update", "mode": "eager", "ms": 10.0, "evals": {"forward": 6.0}}
    theirs = {
        **shared,
        "what": "AP, one outer iteration",
        "method": "AP",
        "ours": "AP, one update",
        "ms": 300.0,
        "evals": {"forward": 214.0},
    }
    return {
        "smoke": False,
        "card": "Some Card",
        "memory_gib": 80.0,
        "driver": "1.2",
        "cuda": "13.0",
        "note": "random weights: speed and memory only",
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.11.0", "diffusers": "0.42.1", "python": "3.12.3"},
        "sections": {"sd15": {"state": "done", "seconds": 9.0}, "flux": {"state": "dropped at its deadline", "seconds": 60.0}},
        "failures": [{"what": "flux fp8 storage", "error": "RuntimeError: no kernel"}],
        "rows": [
            {**ours, "peak_gib": 4.0, "predicted_gib": 3.8, "predicted": "8 F", "forwards": 9.0},
            {**shared, "what": "ESD, one update", "mode": "eager", "ms": 5.0, "peak_gib": 4.0, "predicted_gib": 3.0},
            {**theirs, "scope": "official schedule re-enacted", "times_ours": 30.0},
        ],
        **facts,
    }


def test_the_page_says_what_was_measured() -> None:
    import gpu_measure
    import gpu_page

    text = gpu_page.page(results(), "Notes by hand.")
    for said in (
        "Some Card (80 GiB), driver 1.2, torch 2.11.0",
        "| AP on sd15, bf16 | 300 | 10 | 30 | 214 | 6 | 35.67 |",
        "- flux: dropped at its deadline after 60 s",
        "- flux fp8 storage: RuntimeError: no kernel",
        "1 of 2 peaks lie within 15%",
        "- sd15, ESD, one update, eager: open, 4 GiB against 3.",
        "predicted 8 F, measured 10 ms, 9 F.",
        "Notes by hand.",
    ):
        assert said in text, said
    assert "sd15 | AP, one update | bf16 | eager | 10 | 4 |  | 8 F; 3.8 GiB" in gpu_measure.table(results())


@pytest.mark.parametrize("facts", [{"smoke": True}, {"rows": []}, {"card": "CPU"}])
def test_no_page_is_made_of_no_measurement(facts: dict[str, Any]) -> None:
    import gpu_page

    with pytest.raises(ValueError, match="Nothing was written"):
        gpu_page.page(results(**facts))


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    import gpu_page

    if not gpu_page.NUMBERS.exists():
        assert not gpu_page.PAGE.exists(), "a page of GPU figures without the figures"
        return
    notes = gpu_page.NOTES.read_text("utf-8") if gpu_page.NOTES.exists() else ""
    figures = json.loads(gpu_page.NUMBERS.read_text("utf-8"))
    assert gpu_page.PAGE.read_text("utf-8") == gpu_page.page(figures, notes), (
        "run python benchmarks/gpu_page.py docs/numbers/gpu.json"
    )


@pytest.mark.slow
def test_the_rehearsal_runs_every_section(tmp_path: Path) -> None:
    """A minute: tiny networks of the same classes on the CPU. A section that fails here would cost minutes on a GPU."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)],
        env={**os.environ, "EFFACE_GPU_SMOKE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert {s["state"] for s in found["sections"].values()} == {"done"}, found["sections"]
    assert not found.get("failures"), found["failures"]
    assert {r["model"].split()[0] for r in found["rows"]} == {"card", "sd15", "sdxl", "sd35-medium", "flux"}
    compared = [r for r in found["rows"] if r.get("times_ours")]
    assert {(r["model"], r["dtype"], r["method"]) for r in compared} >= {("sd15", "bf16", "AP"), ("sdxl", "bf16", "ESD")}
