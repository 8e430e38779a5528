"""Weights that do not fit are refused by their files' headers, before they are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import efface
from efface.cli import main
from efface.errors import BadOption
from efface.models import room
from efface.models.load import load_model
from efface.models.room import available_bytes, refuse_too_large, stored_numbers, trained_numbers
from efface.verbs.memory import check_folder


def test_numbers_are_counted_as_the_model_has_them(tmp_path: Path) -> None:
    model = load_model("tiny")
    model.save_folder(tmp_path / "m")
    held = sum(p.numel() for part in (model.unet, model.text_encoder, model.vae) for p in part.state_dict().values())
    assert stored_numbers(tmp_path / "m") == held


def test_a_variant_beside_the_plain_weights_is_not_counted_twice(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"w": torch.zeros(10, 10)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({"w": torch.zeros(10, 10).half()}, tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert stored_numbers(tmp_path) == 100
    (tmp_path / "vae").mkdir()
    for i in (1, 2):
        for variant in ("", ".fp16"):
            save_file({f"w{i}": torch.zeros(7)}, tmp_path / "vae" / f"model{variant}-0000{i}-of-00002.safetensors")
    assert stored_numbers(tmp_path) == 114, "the parts of one component belong together"


@pytest.mark.parametrize("single", [False, True])
def test_what_does_not_fit_is_refused_unread(single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model("tiny").save_folder(tmp_path / "m")
    path = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors" if single else tmp_path / "m"
    numbers = stored_numbers(path)
    monkeypatch.setattr(room, "available_bytes", lambda device: 3 * numbers)
    monkeypatch.setattr("efface.models.load.family_of", lambda source: pytest.fail("loading began"))
    monkeypatch.setattr("efface.models.load._of_file", lambda source: pytest.fail("loading began"))
    with pytest.raises(BadOption, match=r"in float32, and .*--dtype bfloat16"):
        load_model(str(path))
    refuse_too_large(path, torch.bfloat16, "cpu")  # half of it fits
    monkeypatch.setattr(room, "available_bytes", lambda device: 1)
    with pytest.raises(BadOption, match=r"in bfloat16.*Use a device"):
        load_model(str(path), dtype="bfloat16")
    monkeypatch.setattr(room, "available_bytes", lambda device: None)
    refuse_too_large(path, torch.float32, "cpu")  # unknown


@pytest.mark.parametrize("name", ["tiny", "tiny-sd3", "tiny-pixart"])
def test_trained_numbers_are_counted_as_the_model_has_them(name: str, tmp_path: Path) -> None:
    model = load_model(name)
    model.save_folder(tmp_path / "m")
    for group in ("xattn", "xattn-kv"):
        select = model.select(group)
        assert trained_numbers(tmp_path / "m", model.part, select) == sum(w.numel() for w in model.weights(select).values()) > 0


def test_a_training_that_does_not_fit_is_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights fit, and the weights with what is trained do not; with half-precision weights or fewer trained tensors both do.
    A closed form trains nothing."""
    model, folder, refusal = load_model("tiny"), tmp_path / "m", r"esd on .* for what is trained \(train=xattn\).*xattn-kv"
    model.save_folder(folder)
    weights = 4 * stored_numbers(folder)
    whole, less = (16 * trained_numbers(folder, "unet", model.select(n)) for n in ("xattn", "xattn-kv"))
    assert less < whole
    monkeypatch.setattr("efface.verbs.memory.available_bytes", lambda device: weights + (less + whole) // 2)
    with monkeypatch.context() as patched:
        patched.setattr("efface.models.sd.loaded", lambda *_: pytest.fail("loading began"))
        with pytest.raises(BadOption, match=refusal):
            efface.erase(folder, "esd", targets="cat")
        with pytest.raises(BadOption, match=refusal):
            efface.erase(str(folder), efface.ESD(steps=1), targets="cat")
        said = CliRunner().invoke(
            main, ["erase", "esd", "--model", str(folder), "--target", "cat", "--out", str(tmp_path / "p.safetensors")]
        )
        assert said.exit_code == 2
        assert re.search(refusal, said.output, re.DOTALL)
    assert efface.erase(folder, efface.ESD(steps=1, sampling_steps=4, train="xattn-kv"), targets="cat").norm()
    assert efface.erase(folder, "uce", targets="cat").norm()
    check_folder(folder, efface.ESD, {}, "bfloat16", "cpu")
    monkeypatch.setattr("efface.verbs.memory.available_bytes", lambda device: None)
    check_folder(folder, efface.ESD, {}, "float32", "cpu")  # unknown


def test_free_memory_is_known_here() -> None:
    free = available_bytes(torch.device("cpu"))
    assert free is not None
    assert free > 2**20


def test_a_broken_file_is_left_to_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no header")
    assert stored_numbers(path) == 0
