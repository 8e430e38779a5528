"""Every way in that the documentation names, without a network: folders, variants, single files, Hub ids, pipelines; the same
model in every precision; and every component on the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ldm
import pytest
import stock
import torch
from safetensors.torch import save_file

from efface import Patch, erase, export, load_model
from efface.errors import BadFile, WrongBaseModel
from efface.methods import AdvUnlearn
from efface.models.identity import entries_of, identity_of, same_base
from efface.models.tiny import tiny, tiny_xl
from efface.patches import PatchCard

U = {"targets": ["cat"], "anchor": "dog"}
DTYPES = ("float32", "float16", "bfloat16")
REPOS = {"sd": "stable-diffusion-v1-5/stable-diffusion-v1-5", "xl": "stabilityai/stable-diffusion-xl-base-1.0"}


# -- single files and Hub ids: in a process of their own, because the Hub's client reads its folder when it is imported ---------

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import efface
folder, file, erased, hub = sys.argv[1:]
model = efface.load_model(file)
print(type(model).__name__, model.digest(), model.schedule.prediction_type)
base = efface.load_model(folder)
patch = efface.import_patch(base, erased, targets=["cat"])
print(sorted(patch.deltas))
print(efface.load_model(hub).digest())
patch = efface.erase(model, "uce", targets=["cat"], anchor="dog")
print(efface.export(model, patch, Path(file).with_name("out"), to="folder"))
whole = Path(file).with_name("whole.safetensors")
efface.export(model, patch, whole, to="single-file")
again = efface.load_model(whole)
with patch.applied(model):
    print(type(again).__name__, again.digest() == model.digest())
"""


def ten_layers(pipe: Any) -> Any:
    """SDXL is recognised by the tenth layer of its second text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    facts = {**pipe.text_encoder_2.config.to_dict(), "num_hidden_layers": 10}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**facts))
    return pipe


@pytest.mark.parametrize(
    ("family", "end"),
    [("sd", "safetensors"), *(pytest.param(*p, marks=pytest.mark.slow) for p in (("sd", "ckpt"), ("xl", "safetensors")))],
)
def test_single_files_and_hub_ids_load_without_a_network(family: str, end: str, tmp_path: Path) -> None:
    pipe = ten_layers(stock.pipe("xl")) if family == "xl" else stock.pipe()
    pipe.save_pretrained(tmp_path / "m")
    ldm.cached(tmp_path / "hf", REPOS[family], tmp_path / "m")
    ldm.cached(tmp_path / "hf", "somebody/their-model", tmp_path / "m", weights=True)
    plain = ldm.checkpoint(pipe)
    changed = {k: v + 0.05 if "attn2.to_k" in k else v for k, v in plain.items()}
    for name, state in (("base", plain), ("erased", changed)):
        if end == "safetensors":
            save_file(state, tmp_path / f"{name}.{end}")
        else:
            torch.save({"state_dict": state, "global_step": 7}, tmp_path / f"{name}.{end}")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            tmp_path / "m",
            tmp_path / f"base.{end}",
            tmp_path / f"erased.{end}",
            "somebody/their-model",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout.splitlines()
    model = load_model(tmp_path / "m")
    assert told[0] == f"{type(model).__name__} {model.digest()} epsilon"
    assert told[1] == str(sorted(n for n in model.weights(lambda n: n.endswith("attn2.to_k.weight"))))
    assert told[2] == model.digest()
    assert "'left_out': []" in told[3]
    assert told[4] == f"{type(model).__name__} True", "a file of ours is loaded as the erased model"


# -- variants ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_of_one_variant_loads(family: str, variant: str, safe: bool, tmp_path: Path) -> None:
    pipe = stock.pipe(family, dtype="float16")
    pipe.save_pretrained(tmp_path / "m", variant=variant, safe_serialization=safe)
    model = load_model(tmp_path / "m")
    assert model.digest() == (tiny_xl if family == "xl" else tiny)(dtype="float16").digest()


def test_plain_weights_come_before_a_variant(tmp_path: Path) -> None:
    stock.pipe().save_pretrained(tmp_path / "m")
    other = stock.pipe()
    other.unet.conv_in.weight.data.zero_()
    other.save_pretrained(tmp_path / "v", variant="non_ema")
    shutil.copy(tmp_path / "v/unet/diffusion_pytorch_model.non_ema.safetensors", tmp_path / "m/unet")
    assert load_model(tmp_path / "m").digest() == tiny().digest()


def test_a_folder_whose_weights_are_missing_is_refused(tmp_path: Path) -> None:
    """As a model is saved while an adapter is loaded: the library fills the layers with random numbers and logs it."""
    from peft import LoraConfig

    pipe = stock.pipe()
    pipe.save_pretrained(tmp_path / "m")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), "style")
    save_file(
        {k: v.contiguous() for k, v in pipe.unet.state_dict().items()}, tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(BadFile, match=r"unet of .* lacks .*to_k\.weight \(8 such weights\).*unload_lora_weights"):
        load_model(tmp_path / "m")


# -- one model in every precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "source"),
    [
        ("sd", "float16"),
        ("xl", "float32"),
        pytest.param("sd", "float32", marks=pytest.mark.slow),
        pytest.param("xl", "float16", marks=pytest.mark.slow),
    ],
)
def test_one_checkpoint_is_one_base_in_every_precision(family: str, source: str, tmp_path: Path) -> None:
    stock.pipe(family, dtype=source).save_pretrained(tmp_path / "m")
    models = {dtype: load_model(tmp_path / "m", dtype=dtype) for dtype in DTYPES}
    patches = {dtype: erase(model, "uce", **U) for dtype, model in models.items()}
    for patch in patches.values():
        for model in models.values():
            with patch.applied(model):
                pass
        for other in patches.values():
            assert (patch + other).norm() > patch.norm()
    other = stock.pipe(family, dtype=source)
    torch.nn.init.normal_(other.unet.conv_out.weight)
    other.save_pretrained(tmp_path / "other")
    for made, patch in patches.items():
        for dtype in DTYPES:
            wrong = load_model(tmp_path / "other", dtype=dtype)
            with pytest.raises(WrongBaseModel, match="was made for") as told:
                patch.check_base(wrong)
            assert ("another precision" in str(told.value)) == (made != dtype and "bfloat16" in (made, dtype))


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_a_file_changes_the_same_tensors_of_a_base_in_every_precision(base: str, stored: str, tmp_path: Path) -> None:
    from efface import import_patch

    state = tiny().unet.state_dict()
    whole = {k: (v + 0.05 if "attn2.to_k" in k else v).to(getattr(torch, stored)).contiguous() for k, v in state.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    patch = import_patch(tiny(dtype=base), tmp_path / "whole.safetensors", targets=["cat"])
    if {base, stored} == {"float16", "bfloat16"}:  # neither is the other rounded: every number that was rounded twice differs
        assert {n for n in patch.deltas if "attn2.to_k" in n} == {f"unet.{k}" for k in state if "attn2.to_k" in k}
        return
    assert sorted(patch.deltas) == sorted(f"unet.{k}" for k in state if "attn2.to_k" in k)


@pytest.mark.parametrize("made", DTYPES)
@pytest.mark.parametrize("used", DTYPES)
def test_a_patch_of_a_text_encoder_is_tied_to_it_in_every_precision(made: str, used: str) -> None:
    patch = erase(tiny(dtype=made), AdvUnlearn.preset("tiny", steps=2, lr=1e-1), targets=["cat"])
    patch.check_base(tiny(dtype=used))
    with pytest.raises(WrongBaseModel, match="another one"):
        patch.check_base(tiny(seed=1, dtype=used))


@pytest.mark.parametrize("made", DTYPES)
def test_patches_of_before_have_a_digest_alone(made: str, tmp_path: Path) -> None:
    patch = erase(tiny(dtype=made), "uce", **U)
    base = {k: v for k, v in patch.card.base.items() if k not in ("digest_bfloat16", "sketch")}
    old = Patch(patch.deltas, PatchCard(patch.card.method, {}, patch.card.request, base))
    old.save(tmp_path / "old.safetensors")
    again = Patch.load(tmp_path / "old.safetensors")
    again.check_base(tiny(dtype=made))
    for used in DTYPES:
        if {made, used} in ({"float32", "bfloat16"}, {"float16", "bfloat16"}) and used == "bfloat16":
            with pytest.raises(WrongBaseModel, match=f"another precision.*load it in {made}"):
                again.check_base(tiny(dtype=used))
        elif {made, used} != {"float16", "bfloat16"}:
            again.check_base(tiny(dtype=used))


def test_digests_of_before_are_kept() -> None:
    """Files in the field carry them."""
    assert tiny().digest()[:12] == "3cae72c702eb"
    assert tiny(dtype="float16").digest()[:12] == "3cae72c702eb"
    assert tiny(dtype="bfloat16").digest()[:12] == "14a4e972e399"


def test_two_models_of_one_precision_are_told_apart_exactly() -> None:
    """Not by the coarser facts: a change that bfloat16 rounds away is another model in float32."""
    w = {"w": torch.tensor([1.0, 2.0])}
    near = {"w": torch.tensor([1.0, 2.0 + 2**-9])}
    a, b = ({**identity_of(x.items()), "dtype": "float32"} for x in (w, near))
    assert a["digest_bfloat16"] == b["digest_bfloat16"]
    assert not same_base(a, b)
    assert same_base(a, {**b, "dtype": "bfloat16"})
    assert entries_of(w.values()).tolist() == [2.0]


def test_weights_are_hashed_once_per_change(monkeypatch: pytest.MonkeyPatch) -> None:
    import efface.models.sd as module

    hashed = []
    real = module.identity_of
    monkeypatch.setattr(module, "identity_of", lambda named: hashed.append(1) or real(named))
    model = tiny()
    patch = erase(model, "uce", **U)
    digest = model.digest()
    first = len(hashed)
    for _ in range(3):
        model.digest()
        patch.check_base(model)
    assert len(hashed) == first
    name = "unet.conv_in.weight"
    w = model.weights(lambda n: n == name)[name]
    for change in (
        lambda: w.data.add_(1.0),  # not counted by torch
        lambda: model.unet.load_state_dict({**model.unet.state_dict(), "conv_in.weight": torch.zeros_like(w)}),
        lambda: setattr(w, "data", torch.ones_like(w)),
    ):
        before = model.digest()
        change()
        assert model.digest() != before
    with pytest.raises(WrongBaseModel):
        patch.check_base(model)
    fresh = tiny()
    with patch.applied(fresh):
        assert fresh.digest() != digest
    assert fresh.digest() == digest
    patch.apply_(fresh)
    assert fresh.digest() != digest


# -- the other components ------------------------------------------------------------------------------------------------------


def with_checker(pipe: Any) -> Any:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    parts = {n: c for n, c in pipe.components.items() if n not in ("safety_checker", "feature_extractor")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(pipe)(
            **parts, safety_checker=StableDiffusionSafetyChecker(config), feature_extractor=CLIPImageProcessor(crop_size=16)
        )


@pytest.mark.filterwarnings("ignore:.*ImageProcessor")
@pytest.mark.parametrize("source", ["folder", "object"])
def test_a_folder_keeps_the_safety_checker(source: str, tmp_path: Path) -> None:
    pipe = with_checker(stock.pipe())
    pipe.save_pretrained(tmp_path / "m")
    model = load_model(pipe if source == "object" else tmp_path / "m")
    facts = export(model, erase(model, "uce", **U), tmp_path / "new", to="folder")
    assert facts["left_out"] == []
    parts = {p.name for p in (tmp_path / "m").iterdir()}
    assert {p.name for p in (tmp_path / "new").iterdir()} == parts | {"efface_card.json"}
    assert {"safety_checker", "feature_extractor"} <= parts
    kept = [(tmp_path / n / "safety_checker/model.safetensors").read_bytes() for n in ("m", "new")]
    assert kept[0] == kept[1]
    indices = [json.loads((tmp_path / n / "model_index.json").read_text("utf-8")) for n in ("m", "new")]
    assert {**indices[1], "_name_or_path": ""} == {**indices[0], "_name_or_path": ""}


@pytest.mark.filterwarnings("ignore:.*ImageProcessor")
def test_a_component_that_was_not_downloaded_is_named(tmp_path: Path) -> None:
    with_checker(stock.pipe()).save_pretrained(tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "safety_checker")
    model = load_model(tmp_path / "m")
    with pytest.warns(UserWarning, match="names safety_checker and does not have it"):
        facts = export(model, erase(model, "uce", **U), tmp_path / "new", to="folder")
    assert facts["left_out"] == ["safety_checker"]
    assert not (tmp_path / "new" / "safety_checker").exists()
