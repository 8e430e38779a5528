"""Weights that do not fit are refused by their files' headers, before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efface.errors import BadOption
from efface.models import room
from efface.models.load import load_model
from efface.models.room import available_bytes, refuse_too_large, stored_numbers


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
    monkeypatch.setattr("efface.models.load._family", lambda source: pytest.fail("loading began"))
    monkeypatch.setattr("efface.models.load._of_file", lambda source: pytest.fail("loading began"))
    with pytest.raises(BadOption, match=r"in float32, and .*--dtype bfloat16"):
        load_model(str(path))
    refuse_too_large(path, torch.bfloat16, "cpu")  # half of it fits
    monkeypatch.setattr(room, "available_bytes", lambda device: 1)
    with pytest.raises(BadOption, match=r"in bfloat16.*Use a device"):
        load_model(str(path), dtype="bfloat16")
    monkeypatch.setattr(room, "available_bytes", lambda device: None)
    refuse_too_large(path, torch.float32, "cpu")  # unknown


def test_free_memory_is_known_here() -> None:
    free = available_bytes(torch.device("cpu"))
    assert free is not None
    assert free > 2**20


def test_a_broken_file_is_left_to_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no header")
    assert stored_numbers(path) == 0
