"""A network that somebody has used: wrappers are taken off, everything an edit would miss is refused by name before it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stock
import torch
from torch import nn

from efface import Patch, erase, export, import_patch, load_model
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, EffaceError, MethodError
from efface.methods import ESD, UCE
from efface.models.tiny import tiny

U = {"targets": ["cat"], "anchor": "dog"}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning", "ignore::DeprecationWarning")


def lora(pipe: Any, part: str = "unet", targets: tuple[str, ...] = ("to_k",), kind: str = "LoraConfig") -> Any:
    import peft

    getattr(pipe, part).add_adapter(
        getattr(peft, kind)(r=2, target_modules=list(targets), **({"lora_alpha": 4} if kind == "LoraConfig" else {})), "style"
    )
    return pipe


def fused_lora(pipe: Any) -> Any:
    lora(pipe).fuse_lora(components=["unet"])
    return pipe


def wrapped_peft(pipe: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    pipe.unet = get_peft_model(pipe.unet, LoraConfig(r=2, target_modules=["to_v"]))
    return pipe


def fused_projections(pipe: Any) -> Any:
    pipe.fuse_qkv_projections()
    return pipe


def offloaded(pipe: Any, part: str = "unet") -> Any:
    from accelerate import cpu_offload

    cpu_offload(getattr(pipe, part), execution_device=torch.device("cpu"))
    return pipe


def group_offloaded(pipe: Any) -> Any:
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(pipe.unet, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    return pipe


def compiled_blocks(pipe: Any) -> Any:
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block)
    return pipe


def pruned(pipe: Any) -> Any:
    from torch.nn.utils import prune

    prune.random_unstructured(pipe.unet.conv_in, "weight", 0.5)
    return pipe


def parametrised(pipe: Any) -> Any:
    torch.nn.utils.parametrizations.weight_norm(pipe.unet.conv_out)
    return pipe


def on_meta(pipe: Any) -> Any:
    pipe.unet.conv_in.to("meta")
    return pipe


def changed_layer(pipe: Any) -> Any:
    pipe.unet.conv_in = nn.Conv2d(9, 8, 3, padding=1)
    return pipe


def eight_bits(pipe: Any) -> Any:
    pipe.unet.conv_in.weight = nn.Parameter(pipe.unet.conv_in.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return pipe


LOADED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lora": (lora, r"adapter loaded \(style\).*pipe\.unload_lora_weights"),
    "lora of the text encoder": (lambda p: lora(p, "text_encoder", ("q_proj",)), r"text_encoder of .* has an adapter loaded"),
    "loha": (lambda p: lora(p, kind="LoHaConfig"), "adapter loaded"),
    "fused lora": (fused_lora, r"adapter loaded \(style, fused\)"),
    "peft wrapper": (wrapped_peft, "adapter loaded"),
    "fused projections": (fused_projections, r"fused projections .*unfuse_qkv_projections"),
    "offloaded": (offloaded, r"hook that moves or casts its weights.*remove_all_hooks"),
    "offloaded text encoder": (lambda p: offloaded(p, "text_encoder"), r"text_encoder of .* is under a hook"),
    "layerwise casting": (group_offloaded, "under a hook"),
    "compiled blocks": (compiled_blocks, r"compiled blocks inside \(mid_block\)"),
    "pruned": (pruned, "reparametrised|not the network of its configuration"),
    "weight norm": (parametrised, "reparametrised"),
    "meta": (on_meta, "on the meta device"),
    "changed layer": (changed_layer, r"conv_in\.weight is \(8, 9, 3, 3\) instead of \(8, 4, 3, 3\)"),
    "eight bits": (eight_bits, "float8"),
}


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.parametrize("state", LOADED)
def test_what_an_edit_would_miss_is_refused_by_name(family: str, state: str) -> None:
    change, told = LOADED[state]
    with pytest.raises(BadFile, match=told):
        erase(change(stock.pipe(family)), "uce", **U)


@pytest.mark.parametrize("state", ["lora", "fused projections", "offloaded"])
def test_a_pipeline_that_is_changed_after_it_was_wrapped(state: str, tmp_path: Path) -> None:
    change, told = LOADED[state]
    pipe = stock.pipe()
    model = load_model(pipe)
    patch = erase(model, "uce", **U)
    spent = model.evals.snapshot()
    change(pipe)
    for verb in (
        lambda: erase(model, ESD(steps=2, sampling_steps=3), **U),
        lambda: export(model, patch, tmp_path / "f", to="folder"),
        lambda: import_patch(model, tmp_path / "none.safetensors", targets=["cat"]),
        lambda: patch.apply_(model),
    ):
        with pytest.raises(BadFile, match=told):
            verb()
    assert model.evals.snapshot() == spent
    assert not list(tmp_path.iterdir())


def compiled(pipe: Any) -> Any:
    pipe.unet = torch.compile(pipe.unet)
    return pipe


def compiled_in_place(pipe: Any) -> Any:
    pipe.unet.compile()
    return pipe


def parallel(pipe: Any) -> Any:
    pipe.unet = nn.DataParallel(pipe.unet)
    return pipe


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, parallel], ids=lambda f: f.__name__)
def test_wrappers_are_taken_off(wrap: Any, tmp_path: Path) -> None:
    plain = erase(stock.pipe(), "uce", **U)
    pipe = wrap(stock.pipe())
    model = load_model(pipe)
    patch = erase(model, "uce", **U)
    assert patch.digest() == plain.digest()
    plain.check_base(model)
    inner = getattr(pipe.unet, "_orig_mod", getattr(pipe.unet, "module", pipe.unet))
    weight = inner.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    before = weight.detach().clone()
    with patch.applied(model):  # shows in the user's pipeline, too
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert (getattr(pipe.unet, "_compiled_call_impl", None) is not None) == (wrap is compiled_in_place), (
        "the user's own is untouched"
    )
    facts = export(model, patch, tmp_path / "f", to="folder")
    assert facts["residual"] < 1e-6


def test_after_fusing_and_unloading_a_lora_is_part_of_the_model() -> None:
    pipe = lora(stock.pipe())
    torch.nn.init.normal_(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.lora_B["style"].weight)
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    patch = erase(pipe, "uce", **U)
    assert all("lora" not in n and "base_layer" not in n for n in patch.deltas)
    with pytest.raises(EffaceError):
        patch.check_base(tiny())


def objects() -> dict[str, tuple[Callable[[], Any], str]]:
    import diffusers

    def sd3() -> Any:
        parts = ("transformer", "vae", *(f"{p}{i}" for p in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")))
        return diffusers.StableDiffusion3Pipeline(**dict.fromkeys(parts), scheduler=diffusers.FlowMatchEulerDiscreteScheduler())

    def without(family: str, part: str) -> Any:
        pipe = stock.pipe(family)
        setattr(pipe, part, None)
        return pipe

    return {
        "sd3": (sd3, "has no text_encoder, without which the stock pipeline reads no prompt"),
        "unet": (lambda: stock.pipe().unet, "UNet2DConditionModel is no pipeline"),
        "number": (lambda: 3, "a int is no pipeline"),
        "none": (lambda: None, "a NoneType is no pipeline"),
        "no text encoder": (lambda: without("sd", "text_encoder"), "has no text_encoder"),
        "no tokenizer": (lambda: without("sd", "tokenizer"), "has no tokenizer"),
        "no vae": (lambda: without("xl", "vae"), "has no vae"),
        "no second encoder": (lambda: without("xl", "text_encoder_2"), "has no text_encoder_2"),
        "refiner": (lambda: without("xl", "text_encoder"), "refiner"),
        "inpainting": (lambda: stock.pipe(in_channels=9), "9 and gives 4 channels where latents have 4"),
        "depth": (lambda: stock.pipe(in_channels=5), "made for inpainting, depth"),
        "editing, xl": (lambda: stock.pipe("xl", in_channels=8), "8 and gives 4 channels"),
        "learned variance": (lambda: stock.pipe(out_channels=8), "4 and gives 8 channels"),
        "classes": (lambda: stock.pipe(num_class_embeds=7), "num_class_embeds=7"),
        "pooled text in sd": (lambda: stock.pipe(**stock.XL_UNET | {"cross_attention_dim": 16}), "addition_embed_type=text_time"),
        "no pooled text in xl": (lambda: stock.pipe("xl", addition_embed_type=None), "no pooled text"),
        "another text encoder": (lambda: stock.pipe(cross_attention_dim=24), "width 24, its encoders give 16"),
        "no size": (lambda: stock.pipe(sample_size=None), r"sample_size=None.*register_to_config"),
    }


@pytest.mark.parametrize("kind", objects())
def test_objects_of_other_kinds_are_refused_by_name(kind: str) -> None:
    make, told = objects()[kind]
    source = make()
    with pytest.raises(BadFile, match=told):
        load_model(source)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_latents_that_are_not_square(family: str) -> None:
    """A list in the configuration: pictures are those of the stock pipeline, size conditions included."""
    from efface.concepts.prompts import Case

    pipe = stock.pipe(family, sample_size=[8, 16])
    model = load_model(pipe)
    assert model.latent_shape == (4, 8, 16)
    noise = model.case_noise([3])
    more = {"height": 16, "width": 32} if family == "xl" else {}
    theirs = pipe("a cat", latents=noise.clone(), num_inference_steps=4, guidance_scale=5.0, output_type="pt", **more).images[0]
    ours = model.sample([Case("x", "", "a cat", 3, 5.0)], 4)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_a_guidance_distilled_network_is_told_the_scale(family: str) -> None:
    pipe = stock.pipe(family, time_cond_proj_dim=8)
    model = load_model(pipe)
    noise = model.case_noise([3])
    for scale in (1.5, 7.5):
        theirs = pipe("a cat", latents=noise.clone(), num_inference_steps=4, guidance_scale=scale, output_type="latent").images
        before = model.evals.forward
        ours = model.denoise(model.encode(["a cat"]), noise, 4, scale)
        assert model.evals.forward - before == 4, "no second branch: the network was distilled"
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    patch = erase(model, ESD(steps=2, sampling_steps=3), targets=["cat"])
    assert patch.norm() > 0
    from efface.guards import Negative

    with pytest.raises(BadOption, match="no second branch"), Negative().active(model, ["cat"]):
        pass


def test_a_patch_that_the_prediction_does_not_see_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from efface.verbs.erase import erase_request

    model = tiny()
    patch = UCE().erase(model, EraseRequest(("cat",), "dog"))
    assert patch.without_effect(model) == []
    spent = model.evals.snapshot()
    patch.without_effect(model)
    assert model.evals.snapshot() == spent
    # An embedding of a token that the target does not have: the weights change, no prediction for the target does.
    name = "text_encoder.embeddings.token_embedding.weight"
    delta = torch.zeros_like(model.weights(lambda n: n == name)[name].detach())
    delta[model.token_ids(["rose"])[0][1]] = 1.0
    dead = Patch({name: delta}, patch.card)
    assert dead.without_effect(model) == ["cat"]
    monkeypatch.setattr(UCE, "erase", lambda *args, **more: dead)
    from efface.training.loop import Run

    with pytest.raises(MethodError, match="does not change what 'tiny' predicts for cat"):
        erase_request(model, UCE(), EraseRequest(("cat",), "dog"), Run())
    table = model.text_encoder.get_input_embeddings().weight.detach()
    save_file({name: (table + delta).contiguous()}, tmp_path / "dead.safetensors")
    with pytest.raises(BadFile, match="nothing of what it predicts for cat"):
        import_patch(model, tmp_path / "dead.safetensors", targets=["cat"])
    assert import_patch(model, tmp_path / "dead.safetensors", targets=["rose"]).norm() > 0


def test_a_change_below_the_precision_of_the_weights() -> None:
    model = tiny()
    patch = UCE().erase(model, EraseRequest(("cat",), "dog")).scaled(1e-7)
    half = tiny(dtype="bfloat16")
    with pytest.raises(BadOption, match=r"changes no weight of 'tiny' in bfloat16.*--dtype float32"), patch.applied(half):
        pass
    with patch.scaled(0.0).applied(half):
        pass
    assert half.digest() == tiny(dtype="bfloat16").digest()
    with pytest.warns(UserWarning, match="bfloat16"):
        erase(half, ESD(steps=1, lr=1e-9, sampling_steps=2), targets=["cat"])
