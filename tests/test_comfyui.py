"""The ComfyUI nodes, against a stand-in with ComfyUI's published interface: ComfyUI itself is on no package index.

The stand-in holds the tiny model under ComfyUI's names, made by tests/ldm.py and not by efface, and its key maps are built as
``comfy.lora.model_lora_keys_unet`` and ``model_lora_keys_clip`` build them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ldm
import pytest
import torch
from torch import Tensor

from efface.concepts.request import EraseRequest
from efface.methods import AP, UCE, AdvUnlearn
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.patches.export import export

NODES = Path(__file__).parents[1] / "integrations" / "comfyui" / "__init__.py"
CAT = EraseRequest(("cat",))


class Patcher:
    """ModelPatcher: clones share weights, patches are kept beside them, and keys that are not there are not taken."""

    def __init__(self, tensors: dict[str, Tensor], names: dict[str, str]) -> None:
        self.tensors, self.patches = tensors, dict[str, list[tuple[float, Tensor]]]()
        self.model = self.cond_stage_model = SimpleNamespace(
            state_dict=lambda: tensors, model_config=SimpleNamespace(unet_config=names)
        )

    def clone(self) -> Patcher:
        made = Patcher(self.tensors, self.model.model_config.unet_config)
        made.patches = {k: list(v) for k, v in self.patches.items()}
        return made

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> list[str]:
        taken = [k for k in patches if k in self.tensors]
        for k in taken:
            kind, (delta,) = patches[k]
            assert kind == "diff"
            self.patches.setdefault(k, []).append((strength, delta))
        return taken

    def weight(self, key: str) -> Tensor:
        return self.tensors[key] + sum(s * d for s, d in self.patches.get(key, []))


def comfy_model(model: DiffusionModel) -> tuple[Patcher, Patcher]:
    live = {n: w.detach() for n, w in model.weights(lambda _: True).items()}
    names = {n.removeprefix("unet."): ldm.unet_name(n.removeprefix("unet.")) for n in live if n.startswith("unet.")}
    unet = {f"diffusion_model.{names[n.removeprefix('unet.')]}": w for n, w in live.items() if n.startswith("unet.")}
    clip = "clip_l.transformer.text_model."
    text = {clip + n.removeprefix("text_encoder."): w for n, w in live.items() if n.startswith("text_encoder.")}
    return Patcher(unet, names), Patcher(text, {})


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    comfy, lora, utils, paths = (ModuleType(n) for n in ("comfy", "comfy.lora", "comfy.utils", "folder_paths"))

    def unet_keys(model: Any, found: dict[str, str]) -> dict[str, str]:
        for ours, theirs in model.model_config.unet_config.items():
            if ours.endswith(".weight"):
                found["lora_unet_" + ours.removesuffix(".weight").replace(".", "_")] = f"diffusion_model.{theirs}"
        return found

    def clip_keys(model: Any, found: dict[str, str]) -> dict[str, str]:
        for key in model.state_dict():
            module = key.removeprefix("clip_l.transformer.").removesuffix(".weight")
            if key.endswith(".weight"):
                found["lora_te_" + module.replace(".", "_")] = key
        return found

    lora.model_lora_keys_unet, lora.model_lora_keys_clip = unet_keys, clip_keys  # type: ignore[attr-defined]
    utils.unet_to_diffusers = lambda config: config  # type: ignore[attr-defined]
    comfy.lora, comfy.utils = lora, utils  # type: ignore[attr-defined]
    paths.models_dir, paths.folder_names_and_paths = str(tmp_path), {}  # type: ignore[attr-defined]
    paths.get_filename_list = lambda kind: [p.name for p in tmp_path.glob("*.safetensors")]  # type: ignore[attr-defined]
    paths.get_full_path = lambda kind, name: str(tmp_path / name)  # type: ignore[attr-defined]
    for module in (comfy, lora, utils, paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("efface_comfyui", NODES)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def made(kind: str, model: DiffusionModel, path: Path) -> Patch:
    method: Any = {"closed": UCE(), "full": AP.preset("tiny", lr=1e-2, train="full"), "text": AdvUnlearn.preset("tiny", lr=1e-2)}[
        kind
    ]
    patch: Patch = method.erase(model, CAT)
    patch.save(path)
    return patch


@pytest.mark.parametrize("kind", ["closed", "full", "text"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_weight_is_what_efface_makes_it(kind: str, strength: float, nodes: Any, tmp_path: Path) -> None:
    model = load_model("tiny")
    patch = made(kind, model, tmp_path / "p.safetensors")
    unet, clip = comfy_model(model)
    changed, text, told = nodes.EffaceApply().apply(unet, "p.safetensors", strength, clip)
    with patch.scaled(strength).applied(model):
        wanted_unet, wanted_text = comfy_model(model)
        for got, wanted in ((changed, wanted_unet), (text, wanted_text)):
            for key, w in wanted.tensors.items():
                torch.testing.assert_close(got.weight(key), w, atol=1e-6, rtol=0)
    assert len(changed.patches) + len(text.patches) == len(patch.deltas)
    assert not unet.patches, "the model that came in was changed"
    assert "cat erased by" in told
    assert ("at this strength" in told) == (strength != 1.0)


def test_a_stack_is_a_chain(nodes: Any, tmp_path: Path) -> None:
    model = load_model("tiny")
    a = made("closed", model, tmp_path / "a.safetensors")
    unet, _ = comfy_model(model)
    first, _, _ = nodes.EffaceApply().apply(unet, "a.safetensors", 1.0)
    second, _, _ = nodes.EffaceApply().apply(first, "a.safetensors", 1.0)
    assert {len(v) for v in second.patches.values()} == {2}
    assert len(second.patches) == len(a.deltas)


def test_what_is_refused(nodes: Any, tmp_path: Path) -> None:
    model = load_model("tiny")
    path = tmp_path / "p.safetensors"
    made("text", model, path)
    unet, _ = comfy_model(model)
    with pytest.raises(ValueError, match="connect CLIP too"):
        nodes.EffaceApply().apply(unet, path.name, 1.0)
    patch = made("closed", model, path)
    with pytest.raises(ValueError, match="made for 'tiny', and this is another model"):
        nodes.EffaceApply().apply(comfy_model(tiny(seed=1))[0], path.name, 1.0)
    smaller = Patcher({}, {})
    with pytest.raises(ValueError, match="another family"):
        nodes.EffaceApply().apply(smaller, path.name, 1.0)
    whole = path.read_bytes()
    for at in (20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"is not as it was written|is no sealed patch"):
            nodes.EffaceCertificate().read(path.name)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="truncated"):
        nodes.EffaceCertificate().read(path.name)
    export(patch, model, path, "kohya")
    with pytest.raises(ValueError, match="ComfyUI's own LoRA loader"):
        nodes.EffaceCertificate().read(path.name)


def test_half_precision_of_the_base_passes(nodes: Any, tmp_path: Path) -> None:
    model = load_model("tiny")
    made("closed", model, tmp_path / "p.safetensors")
    unet, _ = comfy_model(model)
    for dtype in (torch.float16, torch.bfloat16):
        half = Patcher({k: w.to(dtype) for k, w in unet.tensors.items()}, unet.model.model_config.unet_config)
        nodes.EffaceApply().apply(half, "p.safetensors", 1.0)


def test_the_certificate_names_what_was_measured(nodes: Any, tmp_path: Path) -> None:
    card = {"request": {"targets": ["cat"]}, "method": "uce", "base": {"name": "tiny"}}
    rates = {"direct": {"measure": "erased_valid", "k": 9, "n": 10, "low": 0.596, "high": 0.982}}
    assert "9 of 10 [60, 98] %" in nodes.certificate({**card, "measured": {"evaluation": {"rates": rates}}})
    assert "Nothing was measured" in nodes.certificate(card)
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    made("closed", load_model("tiny"), tmp_path / "p.safetensors")
    assert nodes.EffaceApply.INPUT_TYPES()["required"]["patch"] == (["p.safetensors"],)
