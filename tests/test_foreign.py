"""Files of other tools become patches with the same effect, or an error; nothing in them is passed over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface import verbs
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadRequest, UnknownName, WrongBaseModel
from efface.methods import AP, UCE, AdvUnlearn
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.select import selection
from efface.patches import Patch
from efface.patches.export import export
from efface.testing import same

REQUEST = EraseRequest(("cat",), "dog")


def weights(model: DiffusionModel, patch: Patch) -> dict[str, torch.Tensor]:
    """The changed weights under diffusers' names, without our prefix."""
    live = model.weights(lambda n: n in patch.deltas)
    return {n.removeprefix("unet."): live[n].detach() + d for n, d in patch.deltas.items()}


@pytest.fixture
def patch(tiny_model: Any) -> Patch:
    return UCE().erase(tiny_model, REQUEST)


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
@pytest.mark.parametrize("to", ["diffusers", "kohya", "diff", "folder", "single-file"])
def test_what_efface_writes_it_reads(model: str, to: str, tmp_path: Path) -> None:
    network = load_model(model)
    method = {"diff": AP.preset("tiny", lr=1e-2, train="full")}.get(to, UCE(pooled=False))
    if to in ("folder", "single-file"):
        method = AdvUnlearn.preset("tiny", lr=1e-2)
    patch = method.erase(network, EraseRequest(("cat",)))
    path = tmp_path / ("folder" if to == "folder" else "f.safetensors")
    export(patch, network, path, to, **({"tolerance": 1e-6} if to in ("diffusers", "kohya") else {}))
    again = verbs.import_patch(network, path, targets=["cat"], name="theirs")
    assert again.deltas.keys() == patch.deltas.keys()
    for n, d in patch.deltas.items():
        # 1e-6: the factors of a LoRA were rounded, and so was W + delta in a folder
        torch.testing.assert_close(again.deltas[n], d, atol=1e-6, rtol=0)
    assert again.card.method == "theirs"
    assert again.card.request.targets == ("cat",)
    assert again.card.config["read as"] == {"folder": "pipeline", "single-file": "checkpoint"}.get(to, to)
    assert len(again.card.config["sha256"]) == 64
    again.save(tmp_path / "again.safetensors")
    assert same(Patch.load(tmp_path / "again.safetensors").deltas, again.deltas)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_partial_state_dicts(ending: str, prefix: str, tiny_model: Any, patch: Patch, tmp_path: Path) -> None:
    path, tensors = tmp_path / f"f.{ending}", {prefix + n: t for n, t in weights(tiny_model, patch).items()}
    if ending == "pt":
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    else:
        save_file(tensors, path)
    again = verbs.import_patch(tiny_model, path, targets=["cat"])
    assert again.deltas.keys() == patch.deltas.keys()
    with again.applied(tiny_model):
        live = tiny_model.weights(lambda _: True)
        assert all(torch.equal(live["unet." + n.removeprefix("unet.")], t) for n, t in tensors.items())


def test_a_whole_network_in_half_precision_changes_only_what_was_changed(tiny_model: Any, patch: Patch, tmp_path: Path) -> None:
    live = tiny_model.weights(selection("full"))
    whole = {n.removeprefix("unet."): (p.detach() + patch.deltas.get(n, 0)).half() for n, p in live.items()}
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file(whole, folder / "diffusion_pytorch_model.safetensors")
    again = verbs.import_patch(tiny_model, folder, targets=["cat"])
    assert again.deltas.keys() == patch.deltas.keys(), "rounding to half precision is no erasure"
    with again.applied(tiny_model):
        assert all(
            torch.equal(tiny_model.weights(lambda _: True)[n], whole[n.removeprefix("unet.")].float()) for n in again.deltas
        )


def test_a_pipeline_in_half_precision_changes_only_what_was_changed(tiny_model: Any, patch: Patch, tmp_path: Path) -> None:
    """It is loaded in single precision, where every rounded weight differs from the base's."""
    other: Any = load_model("tiny")
    patch.apply_(other)
    for part in (other.unet, other.text_encoder, other.vae):
        part.half()
    other.save_folder(tmp_path / "half")
    again = verbs.import_patch(tiny_model, tmp_path / "half", targets=["cat"])
    assert again.card.config["read as"] == "pipeline"
    assert again.deltas.keys() == patch.deltas.keys()


def test_text_encoders(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.text_encoder.save_pretrained(tmp_path / "same")
    with pytest.raises(BadFile, match="changes nothing"):
        verbs.import_patch(tiny_model, tmp_path / "same", targets=["cat"])
    other: Any = load_model("tiny")
    with torch.no_grad():
        other.text_encoder.encoder.layers[0].mlp.fc1.weight.mul_(1.1)
    other.text_encoder.save_pretrained(tmp_path / "other")
    again = verbs.import_patch(tiny_model, tmp_path / "other", targets=["cat"])
    assert set(again.deltas) == {"text_encoder.encoder.layers.0.mlp.fc1.weight"}


def test_a_lora_without_alpha_has_scale_one(tiny_model: Any, patch: Patch, tmp_path: Path) -> None:
    path = tmp_path / "k.safetensors"
    export(patch, tiny_model, path, "kohya", tolerance=1e-6)
    save_file({k: t for k, t in load_file(path).items() if not k.endswith("alpha")}, path)
    again = verbs.import_patch(tiny_model, path, targets=["cat"])
    for n, d in patch.deltas.items():
        torch.testing.assert_close(again.deltas[n], d, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft_have_the_strength_that_their_configuration_says(tiny_model: Any, tmp_path: Path) -> None:
    """Written by peft itself, alpha unlike the rank; the reference is peft's own merged network."""
    from peft import LoraConfig, get_peft_model

    network: Any = load_model("tiny").network
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_k", "to_v"], init_lora_weights=False, alpha_pattern={"to_v": 3})
    adapted: Any = get_peft_model(network, config)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merged = adapted.merge_and_unload()
    again = verbs.import_patch(tiny_model, tmp_path / "adapter", targets=["cat"])
    assert again.card.config["read as"] == "diffusers"
    with again.applied(tiny_model):
        ours = dict(tiny_model.unet.named_parameters())
        for name, weight in merged.named_parameters():
            torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-6)
    # The same as diffusers writes it: one file, the configuration in its header.
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    facts = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"to_v": 3}}
    renamed = {k.replace("base_model.model.", "unet."): t for k, t in tensors.items()}
    save_file(renamed, tmp_path / "one.safetensors", metadata={"format": "pt", "lora_adapter_metadata": json.dumps(facts)})
    assert same(verbs.import_patch(tiny_model, tmp_path / "one.safetensors", targets=["cat"]).deltas, again.deltas)
    facts["unet.use_rslora"] = True
    save_file(renamed, tmp_path / "one.safetensors", metadata={"format": "pt", "lora_adapter_metadata": json.dumps(facts)})
    with pytest.raises(BadFile, match="rslora"):
        verbs.import_patch(tiny_model, tmp_path / "one.safetensors", targets=["cat"])


class _Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_files_that_are_refused(tiny_model: Any, patch: Patch, tmp_path: Path) -> None:
    def load(tensors: Any, name: str = "f.safetensors") -> Any:
        path = tmp_path / name
        if name.endswith(".pt"):
            torch.save(tensors, path)
        else:
            save_file(tensors, path)
        return verbs.import_patch(tiny_model, path, targets=["cat"])

    good = weights(tiny_model, patch)
    key = next(iter(good))
    with pytest.raises(BadFile, match="names no weight of 'tiny'; nothing that is not understood is passed over"):
        load({**good, "down_blocks.9.attn2.to_k.weight": torch.ones(2, 2)})
    with pytest.raises(WrongBaseModel, match=r"\(2, 2\), in 'tiny'"):
        load({**good, key: torch.ones(2, 2)})
    with pytest.raises(BadFile, match="non-finite"):
        load({**good, key: good[key] * float("nan")})
    with pytest.raises(BadFile, match="names no layer of 'tiny'"):
        load({"lora_unet_nowhere.lora_up.weight": torch.ones(2, 1), "lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)})
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    with pytest.raises(BadFile, match=r"is a DoRA file .*dora_scale'\), which efface does not read"):
        load(
            {
                f"{name}.lora_up.weight": torch.ones(8, 1),
                f"{name}.lora_down.weight": torch.ones(1, 16),
                f"{name}.dora_scale": torch.ones(8),
            }
        )
    with pytest.raises(BadFile, match="not executed"):
        load({"x": _Hostile(tmp_path / "made")}, "h.pt")
    assert not (tmp_path / "made").exists()
    with pytest.raises(BadFile, match="no tensors by name"):
        load([torch.ones(2)], "list.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(BadFile, match="could not be read"):
        verbs.import_patch(tiny_model, tmp_path / "broken.safetensors", targets=["cat"])
    with pytest.raises(BadFile, match="there is no file"):
        verbs.import_patch(tiny_model, tmp_path / "none.safetensors", targets=["cat"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="holds none of"):
        verbs.import_patch(tiny_model, tmp_path / "empty", targets=["cat"])
    patch.save(tmp_path / "ours.safetensors")
    with pytest.raises(BadFile, match="patch of efface already"):
        verbs.import_patch(tiny_model, tmp_path / "ours.safetensors", targets=["cat"])
    with pytest.raises(BadRequest, match="at least one target"):
        verbs.import_patch(tiny_model, tmp_path / "ours.safetensors", targets=[])
    with pytest.raises(UnknownName):
        verbs.import_patch(tiny_model, tmp_path / "ours.safetensors", targets=["zeppelin"])
