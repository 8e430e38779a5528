"""Exported files act in stock diffusers pipelines as the patch does, and say how much they leave out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stock
import torch
from chequered import chequered
from hypothesis import given
from hypothesis import strategies as st
from pipelines import pipeline, pipeline_xl
from safetensors import safe_open
from safetensors.torch import load_file

from efface import import_patch, verify
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, UnknownName, WrongBaseModel
from efface.methods import AP, UCE, AdvUnlearn
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.tiny import tiny, tiny_flux, tiny_sana, tiny_sd3, tiny_wan, tiny_xl, tiny_z_image
from efface.patches import Patch
from efface.patches.export import FORMATS, export, kohya_names, low_rank_factors, read_back
from efface.patches.header import _kind
from efface.patches.patch import residual

REQUEST = EraseRequest(("cat",), "dog")
FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {"sd": lambda: pipeline("StableDiffusionPipeline"), "xl": pipeline_xl}


def trained(model: DiffusionModel, train: str) -> Patch:
    return AP.preset("tiny", lr=1e-2, train=train).erase(model, EraseRequest(("cat",)))


def drawn(pipe: Any) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images: torch.Tensor = pipe("a cat", latents=noise, num_inference_steps=4, guidance_scale=4.0, output_type="pt").images[0]
    return images


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("family", "to", "what"),
    chequered(FAMILIES, ("diffusers", "kohya"), ("closed form", "xattn-qkv", "xattn", "convolutions")),
)
def test_a_lora_draws_what_the_patch_draws(family: str, to: str, what: str, tmp_path: Path) -> None:
    model, pipe = FAMILIES[family]()
    if what == "closed form":
        patch = UCE(pooled=False).erase(model, REQUEST)
    elif what == "convolutions":
        whole = trained(model, "full")
        patch = Patch({n: d for n, d in whole.deltas.items() if d.ndim == 4}, whole.card)
        assert {d.shape[-1] for d in patch.deltas.values()} >= {1, 3}
    else:
        patch = trained(model, what)
    plain = drawn(pipe)
    with patch.applied(model):
        wanted = drawn(pipe)
    assert (wanted - plain).abs().max() > 5e-3, "the patch does nothing, so this would show nothing"
    path = tmp_path / "l.safetensors"
    if what == "xattn":  # biases beside layers that have none: kohya has no place for them, peft could not fuse them
        with pytest.warns(UserWarning, match=r"to_out\.0\.bias and \d+ more .* % of the patch's norm\) are left out"):
            facts = export(patch, model, path, to, tolerance=1e-6)
        assert facts["left_out"] == sorted(n for n in patch.deltas if n.endswith("bias"))
        held = Patch({n: d for n, d in patch.deltas.items() if n not in facts["left_out"]}, patch.card)
        assert facts["residual"] == pytest.approx((patch.norm() ** 2 - held.norm() ** 2) ** 0.5 / patch.norm(), rel=1e-4)
        with held.applied(model):
            wanted = drawn(pipe)
    else:
        facts = export(patch, model, path, to, tolerance=1e-6)
        assert facts["residual"] < 1e-5
        assert facts["left_out"] == []
    assert facts["bytes"] == path.stat().st_size
    pipe.load_lora_weights(str(path))
    # 2e-4: the LoRA is added to the output of a layer, the patch to its weights; they round differently.
    torch.testing.assert_close(drawn(pipe), wanted, atol=2e-4, rtol=0)


def of_encoders(model: Any, *, beside: float = 0.05) -> Patch:
    """A patch of the text encoders as AdvUnlearn makes it, in which layer norms and biases, of which a tiny encoder has more than
    its share, are ``beside`` of the norm, as in an encoder of the real size (CLIP-L: 4 %)."""
    patch = AdvUnlearn.preset("tiny", lr=1e-2).erase(model, EraseRequest(("cat",)))
    other = {n: d for n, d in patch.deltas.items() if d.ndim == 1}
    factor = beside * patch.norm() / Patch(other, patch.card).norm()
    return Patch({n: d * factor if n in other else d for n, d in patch.deltas.items()}, patch.card)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_text_encoders_is_loaded_fused_and_unloaded(family: str, to: str, tmp_path: Path) -> None:
    """Read by diffusers' own loader: fused it changes the weights by what the patch does, unloaded every bit is as before."""
    model, pipe = FAMILIES[family]()
    patch = of_encoders(model)
    path, plain = tmp_path / "l.safetensors", drawn(pipe)
    with pytest.warns(UserWarning, match=r"layer_norm1\.bias and \d+ more tensors \([\d.]+ % of the patch's norm\) are left out"):
        facts = export(patch, model, path, to, tolerance=1e-6)
    held = Patch({n: d for n, d in patch.deltas.items() if n not in facts["left_out"]}, patch.card)
    assert facts["residual"] == pytest.approx((patch.norm() ** 2 - held.norm() ** 2) ** 0.5 / patch.norm(), rel=1e-3)
    matrices = {n for n, d in patch.deltas.items() if d.ndim == 2}
    biases = {n for n in patch.deltas if n.endswith("bias") and "norm" not in n}
    if to == "kohya":
        assert set(held.deltas) == matrices
    else:  # the second encoder of SDXL has a projection without a bias
        assert set(held.deltas) == matrices | {n for n in biases if n.startswith("text_encoder.")}
    starts = {"diffusers": {"text_encoder", "text_encoder_2"}, "kohya": {"lora_te1", "lora_te2"}}
    one = {"diffusers": {"text_encoder"}, "kohya": {"lora_te"}}
    found = {k.partition("." if to == "diffusers" else "_text_")[0] for k in load_file(path)}
    assert found == (starts if family == "xl" else one)[to]
    fused = stock.fused(pipe, path)
    assert stock.off(dict(held.deltas), fused) < 1e-3  # W + delta is rounded to float32
    acts = drawn(pipe)
    fresh_model, fresh = FAMILIES[family]()
    assert torch.equal(drawn(fresh), plain)
    with held.applied(fresh_model):
        wanted = drawn(fresh)
    assert (wanted - plain).abs().max() > 5e-3, "the patch does nothing, so this would show nothing"
    torch.testing.assert_close(acts, wanted, atol=2e-4, rtol=0)
    again = import_patch(fresh_model, path, targets=["cat"])  # the other pipeline is fused
    assert residual(held, again.deltas) < 1e-5
    with again.applied(fresh_model):
        torch.testing.assert_close(drawn(fresh), wanted, atol=2e-4, rtol=0)
    assert verify(path, fresh_model).ok


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_lora_holds_denoiser_and_text_encoder_together(tmp_path: Path) -> None:
    model, _ = FAMILIES["sd"]()
    unet, text = trained(model, "xattn-kv"), of_encoders(model)
    text_matrices = {n: d for n, d in text.deltas.items() if d.ndim == 2}
    bias = next(n for n in text.deltas if n.endswith("q_proj.bias"))
    some = Patch({**text_matrices, bias: text.deltas[bias]}, text.card)  # the other layers get a bias of zeros
    assert export(some, model, tmp_path / "some.safetensors", "diffusers", tolerance=1e-6)["residual"] < 1e-5
    assert stock.off(dict(some.deltas), stock.fused(FAMILIES["sd"]()[1], tmp_path / "some.safetensors")) < 1e-3
    patch = Patch({**unet.deltas, **text_matrices}, unet.card)
    for to in ("diffusers", "kohya"):
        assert export(patch, model, tmp_path / f"{to}.safetensors", to, tolerance=1e-6)["left_out"] == []
        assert stock.off(dict(patch.deltas), stock.fused(FAMILIES["sd"]()[1], tmp_path / f"{to}.safetensors")) < 1e-3


def test_what_a_lora_has_no_place_for(tmp_path: Path) -> None:
    """Too much of the norm, nothing but it, and a T5: refused by name, and nothing is written."""
    model = tiny()
    patch, path = of_encoders(model, beside=0.3), tmp_path / "l.safetensors"
    for to in ("diffusers", "kohya"):
        with pytest.raises(BadOption, match=r"layer_norm1\.bias and \d+ more tensors, \d+ % of its norm, .* diff or folder\.$"):
            export(patch, model, path, to)
    rows = "text_encoder.embeddings.token_embedding.weight"
    words = Patch({rows: torch.ones_like(model.weights(lambda n: n == rows)[rows])}, patch.card)
    with pytest.raises(BadOption, match=r"token_embedding\.weight, 1e\+02 % of its norm"):
        export(words, model, path, "kohya")
    flow = tiny_sd3()
    t5 = UCE().erase(flow, REQUEST)
    t5 = Patch({**t5.deltas, "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(4, 4)}, t5.card)
    with pytest.raises(BadOption, match=r"text_encoder_3\..* a T5"):
        export(t5, flow, path, "diffusers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_draws_what_the_patch_draws(family: str, tmp_path: Path) -> None:
    import diffusers

    model, pipe = FAMILIES[family]()
    patch = AdvUnlearn.preset("tiny", lr=1e-2).erase(model, EraseRequest(("cat",)))
    assert any(n.startswith("text_encoder") for n in patch.deltas)
    with patch.applied(model):
        wanted = drawn(pipe)
    before = model.digest()
    facts = export(patch, model, tmp_path / "new" / "folder", "folder")
    assert model.digest() == before
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "new" / "folder")
    stock.set_progress_bar_config(disable=True)
    torch.testing.assert_close(drawn(stock), wanted, atol=1e-5, rtol=0)
    assert facts["bytes"] > 0
    assert facts["residual"] < 1e-6  # W + delta is rounded to float32
    assert facts["left_out"] == []
    assert json.loads((tmp_path / "new" / "folder" / "efface_card.json").read_text("utf-8"))["method"] == "advunlearn"
    with pytest.raises(BadFile, match="is there already"):
        export(patch, model, tmp_path / "new" / "folder", "folder")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["folder"], "a temporary folder was left behind"
    again = load_model(tmp_path / "new" / "folder")
    with pytest.raises(WrongBaseModel), patch.applied(again):
        pass


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", ["full", "text"])
def test_diff_holds_every_tensor(family: str, train: str, tmp_path: Path) -> None:
    model, _ = FAMILIES[family]()
    encoder = AdvUnlearn.preset("tiny", lr=1e-2)
    patch = trained(model, "full") if train == "full" else encoder.erase(model, EraseRequest(("cat",)))
    path = tmp_path / "d.safetensors"
    if train == "text":
        with pytest.warns(UserWarning, match=r"norm.* no web interface that reads \.diff is known to look at them there"):
            facts = export(patch, model, path, "diff")
        assert facts["left_out"]
        assert all("norm" in n for n in facts["left_out"])
    else:
        facts = export(patch, model, path, "diff")
        assert facts["left_out"] == []
    assert facts["residual"] == 0
    tensors = load_file(path)
    assert len(tensors) == len(patch.deltas)
    ends = {key.rpartition(".")[2] for key in tensors}
    assert ends >= {"diff", "diff_b", "w_norm", "b_norm"}
    norms = [k for k in tensors if k.endswith("w_norm")]
    assert all(tensors[k].ndim == 1 for k in norms)
    assert any("norm" in k for k in norms)
    prefixes = {"full": "lora_unet_", "text": "lora_te"}
    assert all(k.startswith(prefixes[train]) for k in tensors)
    if train == "text":
        numbered = {"sd": {"lora_te_"}, "xl": {"lora_te1_", "lora_te2_"}}[family]
        assert {k[: k.index("text_")] for k in tensors} == numbered
    for to in ("kohya", "diffusers"):
        with pytest.raises(BadOption, match="cannot hold this patch"):
            export(patch, model, tmp_path / "x.safetensors", to)


class Called(torch.nn.Module):
    """A text encoder with its level ``text_model``, which LyCORIS looks for and transformers dropped in version 5."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.text_model = encoder


@pytest.mark.filterwarnings(
    "ignore:.*(left out|at them there):UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", ["xattn", "full", "text"])
def test_lycoris_reads_diff_and_draws_what_the_patch_draws(family: str, train: str, tmp_path: Path) -> None:
    """The library that the format comes from, with its own code, on a stock pipeline: every tensor to the bit, norms and text
    encoders too. SDXL's pooled layer has the original code's name in the file; LyCORIS looks for it under diffusers'."""
    kohya = pytest.importorskip("lycoris.kohya")
    # No layers to be trained: those of the file alone.
    kohya.LycorisNetworkKohya.apply_preset({f"{p}_target_{x}": [] for p in ("unet", "text_encoder") for x in ("module", "name")})
    model, pipe = FAMILIES[family]()
    encoder = AdvUnlearn.preset("tiny", lr=1e-2)
    patch = encoder.erase(model, EraseRequest(("cat",))) if train == "text" else trained(model, train)
    path = tmp_path / "d.safetensors"
    export(patch, model, path, "diff")
    held = Patch({n: d for n, d in patch.deltas.items() if "add_embedding" not in n}, patch.card)
    plain = drawn(pipe)
    with held.applied(model):
        wanted = drawn(pipe)
    assert (wanted - plain).abs().max() > 5e-3, "the patch does nothing, so this would show nothing"
    theirs = FAMILIES[family]()[1]
    before = stock.weights(theirs)
    both = [theirs.text_encoder, *([theirs.text_encoder_2] if family == "xl" else [])]
    both = [e if hasattr(e, "text_model") else Called(e) for e in both]
    encoders = both if family == "xl" else both[0]
    network, weights = kohya.create_network_from_weights(1.0, str(path), theirs.vae, encoders, theirs.unet, for_inference=True)
    network.merge_to(encoders, theirs.unet, weights, torch.float32, "cpu")
    found = {n: w - before[n] for n, w in stock.weights(theirs).items() if not torch.equal(w, before[n])}
    assert stock.off(dict(held.deltas), found) < 1e-4
    torch.testing.assert_close(drawn(theirs), wanted, atol=1e-5, rtol=0)


def test_names_are_kohyas(tmp_path: Path) -> None:
    names = kohya_names(tiny())
    assert names["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"] == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    )
    assert names["text_encoder.encoder.layers.1.self_attn.k_proj"] == "lora_te_text_model_encoder_layers_1_self_attn_k_proj"
    xl = kohya_names(FAMILIES["xl"]()[0])
    assert xl["text_encoder_2.encoder.layers.1.self_attn.k_proj"] == "lora_te2_text_model_encoder_layers_1_self_attn_k_proj"
    assert xl["text_encoder_2.text_projection"] == "lora_te2_text_projection"
    assert len(set(xl.values())) == len(xl)


def test_headers_say_what_is_inside(tmp_path: Path) -> None:
    model = tiny()
    patch = UCE().erase(model, REQUEST)
    export(patch, model, tmp_path / "k.safetensors", "kohya", half=True)
    with safe_open(tmp_path / "k.safetensors", framework="pt") as f:
        header = f.metadata()
    tensors = load_file(tmp_path / "k.safetensors")
    alphas = {float(t) for k, t in tensors.items() if k.endswith("alpha")}
    ranks = {t.shape[0] for k, t in tensors.items() if k.endswith("lora_down.weight")}
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert alphas == {float(r) for r in ranks}
    assert {str(r) for r in ranks} == {header["ss_network_dim"]} == {header["ss_network_alpha"]}
    assert json.loads(header["efface_card"])["request"]["targets"] == ["cat"]
    assert "not a guarantee" in header["modelspec.description"]
    assert all(isinstance(v, str) for v in header.values())
    assert str(tmp_path) not in json.dumps(header)


@pytest.mark.parametrize(
    ("model", "version", "architecture"),
    [
        (tiny(), "sd_v1", "stable-diffusion-v1"),
        (tiny_xl(), "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        (tiny_sd3(), "sd3", "stable-diffusion-3-medium"),
        (tiny_flux(), "flux1", "flux-1-dev"),
        (tiny_flux(guidance=False), "flux1", "flux-1-schnell"),
        (tiny_sana(), "sana", "sana"),
        (tiny_z_image(), "z-image", "z-image"),
        (tiny_wan(), "wan", "wan"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_headers_name_the_family(model: Any, version: str, architecture: str, tmp_path: Path) -> None:
    export(UCE().erase(model, REQUEST), model, tmp_path / "l.safetensors", "diffusers")
    with safe_open(tmp_path / "l.safetensors", framework="pt") as f:
        header = f.metadata()
    assert (header["ss_base_model_version"], header["modelspec.architecture"]) == (version, f"{architecture}/lora")


def test_stable_diffusion_2_is_told_by_the_width_of_its_text() -> None:
    assert [_kind({"family": "stable-diffusion", "cross_attention_dim": n}) for n in (768, 1024)] == ["sd1", "sd2"]


def test_a_rank_that_is_too_small_and_one_that_is_reported(tmp_path: Path) -> None:
    model = tiny()
    patch = trained(model, "xattn-kv")
    with pytest.raises(BadOption, match=r"differs from the patch by 0\.\d+ .*Raise the rank"):
        export(patch, model, tmp_path / "l.safetensors", "kohya", rank=1)
    assert not list(tmp_path.iterdir())
    most = export(patch, model, tmp_path / "l.safetensors", "kohya", tolerance=0.05)
    assert 1e-3 < most["residual"] <= 0.05
    given_rank = export(patch, model, tmp_path / "l.safetensors", "kohya", rank=most["rank"])
    assert given_rank["residual"] == pytest.approx(most["residual"])


@pytest.mark.parametrize("to", ["diffusers", "kohya", "diff"])
def test_half_precision_halves_the_file(to: str, tmp_path: Path) -> None:
    model = tiny()
    patch = trained(model, "xattn-qkv")
    whole, half = (export(patch, model, tmp_path / f"{h}.safetensors", to, half=h) for h in (False, True))
    sizes = [sum(t.nbytes for t in load_file(tmp_path / f"{h}.safetensors").values()) for h in (False, True)]
    assert sizes[1] == sizes[0] / 2
    assert whole["residual"] < half["residual"] < 2e-3


@pytest.mark.parametrize(
    ("to", "more", "message"),
    [
        ("diff", {"rank": 2}, "whole weights"),
        ("diff", {"tolerance": 0.1}, "whole weights"),
        ("folder", {"half": True}, "precision"),
        ("kohya", {"rank": 2, "tolerance": 0.1}, "a rank of at least 1, or a tolerance"),
        ("kohya", {"rank": -1}, "rank=-1"),
        ("kohya", {"tolerance": 1.0}, "tolerance=1.0"),
    ],
)
def test_what_would_do_nothing_is_refused(to: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(BadOption, match=message):
        export(UCE().erase(model, REQUEST), model, tmp_path / "x.safetensors", to, **more)
    assert not list(tmp_path.iterdir())


def test_foreign_models_and_formats(tmp_path: Path) -> None:
    patch = UCE().erase(tiny(), REQUEST)
    with pytest.raises(WrongBaseModel):
        export(patch, tiny(seed=1), tmp_path / "x.safetensors", "kohya")
    with pytest.raises(UnknownName, match="Did you mean 'kohya'"):
        export(patch, tiny(), tmp_path / "x.safetensors", "kohia")
    assert set(FORMATS) == {"diffusers", "kohya", "diff", "folder", "single-file"}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.05, 0.3]))
def test_the_smallest_rank_that_is_good_enough(out: int, k: int, seed: int, tolerance: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    matrices = {
        "a": torch.randn(out, 5, generator=rng),
        "b": torch.randn(7, k, generator=rng) @ torch.randn(k, 9, generator=rng),
        "c": torch.randn(4, 2, 3, 3, generator=rng),
    }
    whole = sum(float(d.double().square().sum()) for d in matrices.values())

    def off(r: int) -> float:
        factors, _ = low_rank_factors(matrices, r, 0.0)
        missed = [u.double() @ v.double() - matrices[n].reshape(len(u), -1) for n, (u, v) in factors.items()]
        return (sum(float(m.square().sum()) for m in missed) / whole) ** 0.5

    factors, r = low_rank_factors(matrices, 0, tolerance)
    assert {u.shape[1] for u, _ in factors.values()} == {v.shape[0] for _, v in factors.values()} == {r}
    assert off(r) <= tolerance + 1e-6  # float32 SVD
    assert r == 1 or off(r - 1) > tolerance


def test_reading_back_sees_what_is_missing_or_scaled(tmp_path: Path) -> None:
    """The check that every export passes must be able to fail."""
    model = tiny()
    patch, names = trained(model, "xattn-kv"), kohya_names(model)
    export(patch, model, tmp_path / "k.safetensors", "kohya", tolerance=0.0)
    tensors = load_file(tmp_path / "k.safetensors")
    assert residual(patch, read_back(tensors, "kohya", names)) < 1e-5
    first = next(k for k in tensors if k.endswith("lora_up.weight"))
    without = {k: t for k, t in tensors.items() if not k.startswith(first.removesuffix(".lora_up.weight"))}
    assert residual(patch, read_back(without, "kohya", names)) == float("inf")
    halved = {k: t / 2 if k.endswith("alpha") else t for k, t in tensors.items()}
    assert residual(patch, read_back(halved, "kohya", names)) == pytest.approx(0.5, abs=1e-5)
