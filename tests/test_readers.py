"""Every method's default patch in every format, read by the reader's own code: diffusers and peft load, fuse and unload it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import stock
import torch
from chequered import chequered

from efface import Patch, erase, export, load_model
from efface.errors import BadOption
from efface.methods import UCE
from efface.models.base import DiffusionModel
from efface.models.load import load_model as loaded
from efface.models.tiny import tiny, tiny_xl
from efface.patches.export import kohya_names
from efface.registry import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*peft")
MADE: dict[tuple[str, str], Patch] = {}


def default_patch(family: str, method: str) -> Patch:
    """Of the tiny model; made once. What a default of the method trains is not reduced, its steps are."""
    if (family, method) not in MADE:
        preserve = {"preserve": ["bus"]} if method == "fixed" else {}
        model = (tiny_xl if family == "xl" else tiny)()
        MADE[family, method] = erase(model, METHODS[method].preset("tiny"), targets=["cat"], **preserve)
    return MADE[family, method]


@pytest.mark.filterwarnings("ignore:.*(left out|no web interface):UserWarning")
@pytest.mark.parametrize(("method", "family"), chequered(METHODS, ("sd", "xl")))
def test_default_patches_are_read_as_they_were_written(family: str, method: str, tmp_path: Path) -> None:
    patch = default_patch(family, method)
    model = load_model(stock.pipe(family))
    for to in ("diffusers", "kohya"):
        if not stock.fits(patch):
            with pytest.raises(BadOption, match="cannot hold this patch"):
                export(model, patch, tmp_path / f"{to}.safetensors", to=to)
            continue
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            facts = export(model, patch, tmp_path / f"{to}.safetensors", to=to, tolerance=1e-6)
        assert facts["left_out"] == [] or any(facts["left_out"][0] in str(w.message) for w in told), "left out without a word"
        wanted = {n: d for n, d in patch.deltas.items() if n not in facts["left_out"]}
        got = stock.fused(stock.pipe(family), tmp_path / f"{to}.safetensors")
        # Where W + delta is rounded, 2^-24 of W is lost: 1e-2 of one entry where deltas are 1e-5 of the weights.
        assert stock.off(wanted, got) < (1e-2 if patch.norm() < 0.01 else 1e-4)
        missing = Patch({n: patch.deltas[n] for n in facts["left_out"]}, patch.card).norm() / patch.norm()
        assert facts["residual"] == pytest.approx(missing, abs=1e-4)
    facts = export(model, patch, tmp_path / "folder", to="folder")
    assert facts["residual"] < 1e-6
    before, after = (
        stock.weights(stock.pipe(family)),
        stock.weights(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder")),
    )
    got = {n: w - before[n] for n, w in after.items() if not torch.equal(w, before[n])}
    assert stock.off(dict(patch.deltas), got) < 1e-5


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_every_matrix_of_the_network_has_a_name_that_diffusers_reads(family: str) -> None:
    """Layer by layer: one LoRA of kohya's names, converted by diffusers' own code."""
    model = (tiny_xl if family == "xl" else tiny)()
    live, names = model.weights(lambda n: n.startswith("unet.")), kohya_names(model)
    unread = []
    for name, w in live.items():
        if w.ndim < 2:
            continue
        key = names[name.removesuffix(".weight")]
        up = torch.ones(len(w), 1, *[1] * (w.ndim - 2))
        found = model.read_lora(
            {
                f"{key}.lora_down.weight": torch.ones(1, *w.shape[1:]),
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(2.0),
            }
        )
        if list(found) != [name]:
            unread.append(name)
        else:
            assert torch.equal(found[name], torch.full(w.shape, 2.0))
    assert unread == []


def test_a_layer_that_the_reader_loses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check by the reader's code can fail: under its own name SDXL's pooled layer is lost."""
    import efface.patches.export as module

    model = tiny_xl()
    patch = erase(model, "uce", targets=["cat"], anchor="dog")
    assert "unet.add_embedding.linear_1.weight" in patch.deltas
    export(model, patch, tmp_path / "k.safetensors", to="kohya")
    monkeypatch.setattr(module, "SGM", {})
    with pytest.raises(BadOption, match="inf"):
        export(model, patch, tmp_path / "x.safetensors", to="kohya")
    assert not (tmp_path / "x.safetensors").exists()


def test_our_older_files_of_sdxl_are_still_imported(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from efface import import_patch

    model = tiny_xl()
    patch = erase(model, "uce", targets=["cat"], anchor="dog")
    export(model, patch, tmp_path / "k.safetensors", to="kohya", tolerance=1e-6)
    tensors = load_file(tmp_path / "k.safetensors")
    old = {k.replace("label_emb_0_0", "add_embedding_linear_1"): t for k, t in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "old.safetensors")
    for name in ("k", "old"):
        again = import_patch(model, tmp_path / f"{name}.safetensors", targets=["cat"])
        assert stock.off(dict(patch.deltas), dict(again.deltas)) < 1e-4


def test_biases_are_held_where_every_layer_has_one(tmp_path: Path) -> None:
    patch = default_patch("sd", "stereo")
    names = [n for n in patch.deltas if ".to_out.0." in n]
    out = Patch({n: patch.deltas[n] for n in names}, patch.card)
    assert any(n.endswith("bias") for n in names)
    facts = export(load_model(stock.pipe()), out, tmp_path / "o.safetensors", to="diffusers", tolerance=1e-6)
    assert facts["left_out"] == []
    assert stock.off(dict(out.deltas), stock.fused(stock.pipe(), tmp_path / "o.safetensors")) < 1e-3


class Tampered:
    """Writes a folder of the base's weights whatever is applied."""

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, stock.pipe()

    def __call__(self, path: Path) -> list[str]:
        self.base.save_pretrained(path)
        return []


def test_a_folder_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: DiffusionModel = load_model(stock.pipe())
    patch = UCE().erase(model, default_patch("sd", "uce").card.request)
    monkeypatch.setattr(model, "save_folder", Tampered(model))
    with pytest.raises(BadOption, match="differs from the patch by 1 of its norm"):
        export(model, patch, tmp_path / "f", to="folder")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_half_precision_says_what_rounding_takes(tmp_path: Path) -> None:
    model = loaded("tiny", dtype="bfloat16")
    patch = erase(model, "uce", targets=["cat"], anchor="dog")
    facts = export(model, patch, tmp_path / "f", to="folder")
    assert 1e-4 < facts["residual"] < 0.1
    with pytest.warns(UserWarning, match=r"rounding changes the patch by [\d.e+]+ % of its norm.*float32"):
        small = export(model, patch.scaled(1e-2), tmp_path / "g", to="folder")
    assert small["residual"] > 0.1
