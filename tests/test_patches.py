"""Patches: exact, tied to their base, and safe to read."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, WrongBaseModel
from efface.io import files
from efface.methods import UCE
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.patches.patch import empty_like, noise_like
from efface.testing import same, state


@pytest.fixture
def patch(tiny_model) -> Patch:  # type: ignore[no-untyped-def]
    return UCE().erase(tiny_model, EraseRequest(("cat",), "dog"))


def test_a_patch_prints_as_one_line(patch: Patch) -> None:
    assert repr(patch) == f"<Patch: uce of 'cat' from 'tiny', {len(patch.deltas)} tensors, norm {patch.norm():.3g}>"
    many = UCE().erase(tiny(), EraseRequest(("cat", "bus", "rose", "house"), "dog"))
    assert "'cat', 'bus', 'rose' and 1 more" in repr(many)


def test_apply_is_exact_and_revert_bit_identical_in_half_precision_too(patch: Patch) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = tiny()
        model.unet.to(dtype)
        before = state(model)
        with patch._applied_unchecked(model):
            now = state(model)
            for n, d in patch.deltas.items():
                assert torch.equal(now[n], (before[n].float() + d).to(dtype))
        assert same(state(model), before)


def test_nested_patches_unwind_in_order(patch: Patch, tiny_model) -> None:  # type: ignore[no-untyped-def]
    before = state(tiny_model)
    with patch.applied(tiny_model):
        once = state(tiny_model)
        with patch.scaled(0.5)._applied_unchecked(tiny_model):
            assert not same(state(tiny_model), once)
        assert same(state(tiny_model), once)
    assert same(state(tiny_model), before)


def test_an_applied_text_encoder_patch_changes_encodings_and_back(tiny_model) -> None:  # type: ignore[no-untyped-def]
    name = "text_encoder.final_layer_norm.bias"
    p = tiny_model.weights(lambda n: n == name)
    card = UCE().card(tiny_model, EraseRequest(("cat",)), {"forward": 0, "calls": 0, "backward": 0})
    patch = Patch({name: torch.ones_like(p[name])}, card)
    before = tiny_model.encode(["cat"]).tokens
    with patch.applied(tiny_model):
        assert not torch.equal(tiny_model.encode(["cat"]).tokens, before), "answered from the cache of other weights"
    assert torch.equal(tiny_model.encode(["cat"]).tokens, before)


def test_scale_add_and_trivial_patches(patch: Patch, tiny_model) -> None:  # type: ignore[no-untyped-def]
    double = patch + patch
    assert same(double.deltas, patch.scaled(2.0).deltas)
    assert double.card.request.targets == ("cat",)
    assert patch.scaled(0.5).scaled(0.5).card.log["scale"] == 0.25
    assert not empty_like(patch, "none").deltas
    noise = noise_like(patch, torch.Generator().manual_seed(0))
    for n, d in noise.deltas.items():
        assert d.norm().item() == pytest.approx(patch.deltas[n].norm().item(), rel=1e-5)
        assert not torch.allclose(d, patch.deltas[n])
    with pytest.raises(BadOption, match="finite"):
        patch.scaled(float("nan"))
    other = tiny(seed=1)
    with pytest.raises(WrongBaseModel, match="different base"):
        patch + UCE().erase(other, EraseRequest(("cat",), "dog"))


def test_another_base_is_refused_by_name(patch: Patch) -> None:
    with (
        pytest.raises(WrongBaseModel, match=r"made for 'tiny' \(digest [0-9a-f]{12}\), not for 'tiny' \(digest [0-9a-f]{12}\)"),
        patch.applied(tiny(seed=1)),
    ):
        pass


def test_a_patch_on_a_patched_model_is_refused(patch: Patch, tiny_model) -> None:  # type: ignore[no-untyped-def]
    patch.apply_(tiny_model)
    with pytest.raises(WrongBaseModel), patch.applied(tiny_model):
        pass


def test_round_trip_keeps_every_bit_and_the_card(patch: Patch, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "p.safetensors"
    patch.save(path)
    again = Patch.load(path)
    assert same(again.deltas, patch.deltas)
    assert again.json() == patch.json()
    assert again.digest() == patch.digest()
    assert [p.name for p in path.parent.iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 7, 200, -1])
def test_truncated_files(patch: Patch, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "p.safetensors"
    patch.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadFile, match="truncated"):
        Patch.load(path)


def hostile_header(path: Path, size: int, body: bytes) -> None:
    path.write_bytes(size.to_bytes(8, "little") + body)


@pytest.mark.parametrize(
    ("size", "body"),
    [
        (2**62, b"{}"),
        (2, b"{}"),
        (40, b'{"delta.x":{"dtype":"F32","shape":[9999999999999],"data_offsets":[0,4]}}'),
        (71, b'{"delta.x":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999999999]}}'),
    ],
)
def test_hostile_headers(tmp_path: Path, size: int, body: bytes) -> None:
    path = tmp_path / "p.safetensors"
    hostile_header(path, size, body)
    with pytest.raises(BadFile):
        Patch.load(path)


def test_foreign_and_poisoned_files(patch: Patch, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(BadFile, match="not an efface patch"):
        Patch.load(path)
    card = {"format": "efface-patch", "format_version": "1", "card": json.dumps(patch.json() | {"nonsense": 1})}
    save_file({"delta.x": torch.ones(2)}, path, metadata=card)
    with pytest.raises(BadFile, match=r"nonsense|unexpected"):
        Patch.load(path)
    good = {k: patch.json()[k] for k in ("method", "config", "request", "base", "cost", "versions", "log")}
    save_file({"delta.x": torch.tensor([torch.nan])}, path, metadata={**card, "card": json.dumps(good)})
    with pytest.raises(BadFile, match="non-finite"):
        Patch.load(path)
    save_file({"weight.x": torch.ones(1)}, path, metadata={**card, "card": json.dumps(good)})
    with pytest.raises(BadFile, match="no patch has"):
        Patch.load(path)
    save_file({"delta.x": torch.ones(1)}, path, metadata={**card, "card": json.dumps(good), "format_version": "99"})
    with pytest.raises(BadFile, match="newer efface"):
        Patch.load(path)
    with pytest.raises(BadFile, match="there is no file"):
        Patch.load(tmp_path / "missing.safetensors")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.write_text, (tmp_path / "boom", "boom"))

    for name, data in {"a.pt": pickle.dumps(Bomb()), "b.pt": None}.items():
        path = tmp_path / name
        path.write_bytes(data) if data else torch.save({"x": torch.ones(1)}, path)
        with pytest.raises(BadFile, match="pickle"):
            Patch.load(path)
    assert not (tmp_path / "boom").exists()


def test_a_full_disk_loses_nothing(patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.safetensors"
    patch.save(path)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BadFile, match=r"No space left.*Nothing was changed"):
        patch.scaled(2.0).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_an_unwritable_place_is_one_clear_error(patch: Patch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadFile, match="cannot write"):
        patch.save(tmp_path / "file" / "p.safetensors")


def test_measurements_are_of_the_strength_at_which_they_were_made(patch: Patch) -> None:
    known = Patch(patch.deltas, replace(patch.card, measured={"evaluation": {}}))
    assert [known.scaled(f).card.measured for f in (1.0, 0.5, 2.0)] == [{"evaluation": {}}, {}, {}]
