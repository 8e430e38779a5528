"""One checkpoint file under the original names: read by diffusers' own loader, it draws what the patch draws."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import ldm
import pytest
import stock
import torch
from pipelines import pipeline, pipeline_xl
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_dialects import LAYOUTS

from efface import import_patch, load_model, verify
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption
from efface.methods import AP, UCE, AdvUnlearn
from efface.models.tiny import tiny, tiny_sd3
from efface.patches import Patch, whole
from efface.patches.export import export
from efface.patches.original import to_open_clip, to_original

CAT = EraseRequest(("cat",))


def everything(model: Any) -> Patch:
    """A patch that changes the whole UNet and the text encoders."""
    unet = AP.preset("tiny", lr=1e-2, train="full").erase(model, CAT)
    return Patch({**unet.deltas, **AdvUnlearn.preset("tiny", lr=1e-2).erase(model, CAT).deltas}, unet.card)


def drawn(pipe: Any) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(pipe.unet.dtype)
    images: torch.Tensor = pipe("a cat", latents=noise, num_inference_steps=4, guidance_scale=4.0, output_type="pt").images[0]
    return images.float()


def read(file: Path, folder: Path, kind: Any, dtype: torch.dtype = torch.float32) -> Any:
    """By diffusers' own loader. The structure of a tiny model is in ``folder``; that of a real one is on the Hub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = kind.from_single_file(str(file), config=str(folder), local_files_only=True, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore:.*upcast_vae")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sd", "float32"), ("xl", "float32"), ("xl", "float16"), pytest.param("sd", "float16", marks=pytest.mark.slow)],
)
def test_the_reader_of_diffusers_draws_what_the_patch_draws(family: str, dtype: str, tmp_path: Path) -> None:
    model, pipe = pipeline("StableDiffusionPipeline") if family == "sd" else pipeline_xl()
    patch, file = everything(model), tmp_path / "erased.safetensors"
    pipe.save_pretrained(tmp_path / "structure")
    if dtype == "float16":
        model = load_model(pipe.to(torch.float16))
    plain = drawn(pipe)
    with patch.applied(model):
        wanted, live = drawn(pipe), {n: w.clone() for n, w in stock.weights(pipe).items()}
    facts = export(patch, model, file, "single-file")
    assert facts["residual"] < {"float32": 1e-6, "float16": 1e-2}[dtype]  # half precision rounds W + delta
    assert facts["tensors"] == len(load_file(file))
    assert torch.equal(drawn(pipe), plain), "the model itself is as before"
    again = read(file, tmp_path / "structure", type(pipe), getattr(torch, dtype))
    assert all(torch.equal(w, live[n]) for n, w in stock.weights(again).items()), "every weight, bit for bit"
    assert all(torch.equal(w, again.vae.state_dict()[n]) for n, w in pipe.vae.state_dict().items())
    assert torch.equal(drawn(again), wanted)
    assert (wanted - plain).abs().max() > 5e-3, "the patch does nothing, so this would show nothing"
    found = verify(file, model)
    assert found.ok
    assert found.kind == "single-file"
    assert import_patch(model, file, targets=["cat"]).deltas.keys() == set(patch.deltas)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_names_and_tensors_are_those_of_a_checkpoint(family: str) -> None:
    """Against the writer of the tests, which shares no code with efface's."""
    model, pipe = pipeline("StableDiffusionPipeline") if family == "sd" else pipeline_xl()
    made, wanted = to_original(model), ldm.checkpoint(pipe)
    assert made.keys() == wanted.keys()
    assert all(torch.equal(t, wanted[n]) for n, t in made.items())


PUBLISHED = {
    # name in the published checkpoints: name in diffusers
    "model.diffusion_model.output_blocks.8.2.conv.weight": "unet.up_blocks.2.upsamplers.0.conv.weight",
    "model.diffusion_model.input_blocks.9.0.op.bias": "unet.down_blocks.2.downsamplers.0.conv.bias",
    "first_stage_model.decoder.up.3.block.2.conv1.weight": "vae.decoder.up_blocks.0.resnets.2.conv1.weight",
    "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight": "vae.decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
    "first_stage_model.decoder.up.1.upsample.conv.weight": "vae.decoder.up_blocks.2.upsamplers.0.conv.weight",
    "first_stage_model.encoder.down.2.downsample.conv.weight": "vae.encoder.down_blocks.2.downsamplers.0.conv.weight",
    "first_stage_model.decoder.mid.attn_1.proj_out.weight": "vae.decoder.mid_block.attentions.0.to_out.0.weight",
    "first_stage_model.encoder.mid.block_2.norm2.bias": "vae.encoder.mid_block.resnets.1.norm2.bias",
    "first_stage_model.encoder.norm_out.weight": "vae.encoder.conv_norm_out.weight",
    "first_stage_model.post_quant_conv.weight": "vae.post_quant_conv.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": "text_encoder.final_layer_norm.bias",
}


def test_blocks_of_the_real_depth_have_the_published_names(tmp_path: Path) -> None:
    """Four levels of two layers in the UNet and in the VAE, as Stable Diffusion 1.x has them."""
    from diffusers import AutoencoderKL

    pipe = stock.pipe("sd", sample_size=8, attention_head_dim=2, norm_num_groups=4, cross_attention_dim=16, **LAYOUTS["SD 1"])
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipe.vae = AutoencoderKL(block_out_channels=(4, 4, 8, 8), layers_per_block=2, norm_num_groups=2, latent_channels=4, **levels)
    model = load_model(pipe)
    made = to_original(model)
    ours = stock.weights(pipe) | {f"vae.{n}": w for n, w in pipe.vae.state_dict().items()}
    for theirs, name in PUBLISHED.items():
        assert torch.equal(made[theirs].reshape(ours[name].shape), ours[name]), theirs
    assert len(made) == len(ours)
    export(UCE(pooled=False).erase(model, CAT), model, tmp_path / "f.safetensors", "single-file")


def test_queries_keys_and_values_of_open_clip_are_one_matrix() -> None:
    model, _ = pipeline_xl()
    own = {
        n.removeprefix("text_encoder_2."): w.detach() for n, w in model.weights(lambda n: n.startswith("text_encoder_2.")).items()
    }
    made = to_open_clip(own)
    layer = "encoder.layers.1.self_attn."
    for i, x in enumerate("qkv"):
        for end in ("weight", "bias"):
            part = made[f"transformer.resblocks.1.attn.in_proj_{end}"][24 * i : 24 * (i + 1)]
            assert torch.equal(part, own[f"{layer}{x}_proj.{end}"])
    assert torch.equal(made["text_projection"], own["text_projection.weight"].T)
    assert sum(t.numel() for t in made.values()) == sum(t.numel() for t in own.values())


def test_its_header_has_the_card(tmp_path: Path) -> None:
    model = tiny()
    export(UCE().erase(model, CAT), model, tmp_path / "f.safetensors", "single-file")
    with safe_open(tmp_path / "f.safetensors", framework="pt") as f:
        header = f.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-v1"
    assert json.loads(header["efface_card"])["request"]["targets"] == ["cat"]
    assert "not a guarantee" in header["modelspec.description"]
    assert str(tmp_path) not in json.dumps(header)


def test_models_without_such_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    distilled = load_model(stock.pipe("sd", time_cond_proj_dim=8))
    second = tiny()
    vars(second)["unet"].register_to_config(cross_attention_dim=1024)
    for model, why in (
        (tiny_sd3(), "it is a stable-diffusion-3"),
        (tiny("v_prediction"), "predicts v_prediction"),
        (distilled, r"no place for unet\.time_embedding\.cond_proj"),
        (second, "its text encoder has a layer there"),
    ):
        patch = UCE().erase(model, CAT)
        with pytest.raises(BadOption, match=f"{why}.*format folder"):
            export(patch, model, file, "single-file")
        with pytest.raises(BadOption, match="in the precision it was loaded in"):
            export(patch, model, file, "single-file", half=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight", "unet", "vae"])
def test_a_file_that_is_read_otherwise_does_not_count(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that every file passes must be able to fail: keys in the place of queries, a weight of another model, a VAE's."""
    model, _ = pipeline_xl()

    def wrong(of: Any) -> dict[str, torch.Tensor]:
        made = to_original(of)
        start = {"unet": "model.diffusion_model.out", "vae": "first_stage_model."}.get(name, name)
        key = next(k for k in made if k.startswith(start))
        made[key] = made[key].roll(24, 0) if name == start else made[key] + 1
        return made

    monkeypatch.setattr(whole, "to_original", wrong)
    with pytest.raises(BadOption, match="it was removed"):
        export(UCE().erase(model, CAT), model, tmp_path / "f.safetensors", "single-file")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_stable_diffusion_2_is_read_with_its_other_text_encoder(tmp_path: Path) -> None:
    """OpenCLIP's names, and a projection that no reader uses."""
    model, pipe = pipeline("StableDiffusionPipeline")
    state = {n: t for n, t in ldm.checkpoint(pipe).items() if not n.startswith("cond_stage_model.")}
    own = model.weights(lambda n: n.startswith("text_encoder."))
    text = to_open_clip({n.removeprefix("text_encoder."): w.detach() for n, w in own.items()})
    text |= {"text_projection": torch.eye(16), "logit_scale": torch.tensor(4.6)}
    key = "transformer.resblocks.0.attn.in_proj_bias"
    text[key] = text[key] + torch.cat([torch.zeros(32), torch.ones(16)])  # the values
    state |= {f"cond_stage_model.model.{n}": t.contiguous() for n, t in text.items()}
    torch.save({"state_dict": state}, tmp_path / "theirs.ckpt")
    found = import_patch(model, tmp_path / "theirs.ckpt", targets=["cat"])
    assert list(found.deltas) == ["text_encoder.encoder.layers.0.self_attn.v_proj.bias"]


def test_other_peoples_checkpoints_of_sdxl_are_read_without_a_network(tmp_path: Path) -> None:
    """Also in part, as a training of the text encoders leaves them; a name that no text encoder has is an error."""
    model, pipe = pipeline_xl()
    state = ldm.checkpoint(pipe)
    key = "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"
    state[key] = state[key].clone()
    state[key][24:48] += 0.1  # the keys
    state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    only = {k: t for k, t in state.items() if k.startswith("conditioner.embedders.1.")}
    for tensors in (state, only):
        save_file(tensors, tmp_path / "theirs.safetensors")
        found = import_patch(model, tmp_path / "theirs.safetensors", targets=["cat"])
        assert list(found.deltas) == ["text_encoder_2.encoder.layers.1.self_attn.k_proj.weight"]
    for strange, why in (
        ({"conditioner.embedders.1.model.visual.proj": torch.ones(2, 2)}, "names no weight of a text encoder"),
        ({key: torch.ones(3)}, "no matrix"),
    ):
        save_file({**state, **strange}, tmp_path / "theirs.safetensors")
        with pytest.raises(BadFile, match=why):
            import_patch(model, tmp_path / "theirs.safetensors", targets=["cat"])
    save_file(only, tmp_path / "theirs.safetensors")
    with pytest.raises(BadFile, match="second text encoder"):
        import_patch(tiny(), tmp_path / "theirs.safetensors", targets=["cat"])
