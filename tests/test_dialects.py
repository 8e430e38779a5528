"""One LoRA under every name that tools give it is one patch; what is not understood is refused by its kind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import pipeline, pipeline_xl
from safetensors.torch import load_file, save_file

from efface import verbs
from efface.errors import BadFile, MissingExtra, WrongBaseModel
from efface.models.load import load_model
from efface.patches.dialects import NO_WEIGHTS, kind_of, ldm_names, role_of
from efface.testing import same

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
TEXT = "encoder.layers.1.self_attn.out_proj"
KEY = "encoder.layers.0.self_attn.k_proj"


def factors(model: Any, *names: str, rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    live, rng = model.weights(lambda _: True), torch.Generator().manual_seed(3)
    shapes = {n: live[f"{n}.weight"].shape for n in names}
    return {n: (torch.randn(s[0], rank, generator=rng), torch.randn(rank, *s[1:], generator=rng)) for n, s in shapes.items()}


def imported(model: Any, tensors: dict[str, torch.Tensor], path: Path, **header: Any) -> Any:
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata=header or None)
    return verbs.import_patch(model, path, targets=["cat"])


DIALECTS = {
    # what writes it: (name of a UNet's layer, name of a text encoder's layer, end of down, end of up)
    "diffusers": ("unet.{}", "text_encoder.{}", ".lora_A.weight", ".lora_B.weight"),
    "transformers before 5": ("unet.{}", "text_encoder.text_model.{}", ".lora_A.weight", ".lora_B.weight"),
    "an adapter with its name": ("unet.{}", "text_encoder.{}", ".lora_A.default_0.weight", ".lora_B.default_0.weight"),
    "peft": ("base_model.model.{}", "base_model.model.text_model.{}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers before 0.26": ("unet.{}", "text_encoder.{}", ".lora.down.weight", ".lora.up.weight"),
    "LoRA layers": ("unet.{}", "text_encoder.text_model.{}", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "dots before kohya's ends": ("unet.{}", "text_encoder.{}", ".lora_down.weight", ".lora_up.weight"),
    "bare names": ("{}", "text_model.{}", ".lora_A.weight", ".lora_B.weight"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_lora_under_every_name(dialect: str, tiny_model: Any, tmp_path: Path) -> None:
    unet, text, down_end, up_end = DIALECTS[dialect]
    made = factors(tiny_model, f"unet.{UNET}", f"unet.{QUERY}", f"text_encoder.{TEXT}", f"text_encoder.{KEY}")
    named = {n: (unet if n.startswith("unet.") else text).format(n.partition(".")[2]) for n in made}
    tensors = {named[n] + end: t for n, pair in made.items() for end, t in zip((up_end, down_end), pair, strict=True)}
    found = imported(tiny_model, tensors, tmp_path / "f.safetensors")
    assert found.deltas.keys() == {f"{n}.weight" for n in made}
    for n, (up, down) in made.items():
        assert torch.equal(found.deltas[f"{n}.weight"], up @ down), n


def test_attention_processors(tiny_model: Any, tmp_path: Path) -> None:
    """What diffusers wrote before 0.22: the LoRA in the attention processor, ``to_out`` without its number."""
    made = factors(tiny_model, f"unet.{UNET}", f"unet.{QUERY}", f"text_encoder.{TEXT}", f"text_encoder.{KEY}")
    spelled = {
        f"unet.{UNET}": f"unet.{UNET.removesuffix('.to_out.0')}.processor.to_out_lora",
        f"unet.{QUERY}": f"unet.{QUERY.removesuffix('.to_q')}.processor.to_q_lora",
        f"text_encoder.{TEXT}": f"text_encoder.text_model.{TEXT.removesuffix('.out_proj')}.to_out_lora",
        f"text_encoder.{KEY}": f"text_encoder.text_model.{KEY.removesuffix('.k_proj')}.to_k_lora",
    }
    tensors = {f"{spelled[n]}.{e}.weight": t for n, p in made.items() for e, t in zip(("up", "down"), p, strict=True)}
    found = imported(tiny_model, tensors, tmp_path / "f.safetensors")
    assert found.deltas.keys() == {f"{n}.weight" for n in made}
    assert all(torch.equal(found.deltas[f"{n}.weight"], up @ down) for n, (up, down) in made.items())


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
@pytest.mark.parametrize("numbered", [False, True])
def test_kohya_names_with_blocks_and_numbers(model: str, numbered: bool, tmp_path: Path) -> None:
    """kohya's SDXL files number the blocks of the UNet as Stability's code does."""
    network = load_model(model)
    layers = [
        n.removesuffix(".weight") for n, w in network.weights(lambda _: True).items() if w.ndim >= 2 and "embedding" not in n
    ]
    made = factors(network, *layers)
    ldm = ldm_names({n.removeprefix("unet.") for n in layers if n.startswith("unet.")})
    tensors = {}
    for n, (up, down) in made.items():
        part, _, inside = n.partition(".")
        if part == "unet":
            name = "lora_unet_" + (ldm[inside] if numbered else inside)
        else:
            te = {"tiny": "lora_te", "tiny-xl": "lora_te2" if part == "text_encoder_2" else "lora_te1"}[model]
            name = f"{te}_" + (inside if inside == "text_projection" else f"text_model_{inside}")
        name = name.replace(".", "_")
        tensors |= {f"{name}.lora_up.weight": up.reshape(*up.shape, *(1,) * (down.ndim - 2)), f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    found = imported(network, tensors, tmp_path / "f.safetensors")
    assert found.card.config["read as"] == "kohya"
    assert found.deltas.keys() == {f"{n}.weight" for n in made}
    for n, (up, down) in made.items():
        torch.testing.assert_close(found.deltas[f"{n}.weight"].flatten(1), 0.5 * up @ down.flatten(1), rtol=1e-6, atol=1e-6)


LAYOUTS = {
    "SD 1": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
    },
    "SDXL": {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    },
}


SAMPLERS = {
    "SD 1": {
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.2.downsamplers.0.conv": "input_blocks.9.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "up_blocks.2.upsamplers.0.conv": "output_blocks.8.2.conv",
    },
    "SDXL": {
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    },
}
"""As in the published checkpoints. The converter below takes an upsampler under any number."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_blocks_are_those_of_diffusers_own_converter(layout: str) -> None:
    """Renamed by :func:`ldm_names`, a whole UNet is what diffusers reads from a checkpoint."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet: Any = UNet2DConditionModel(
        sample_size=8, attention_head_dim=2, norm_num_groups=4, cross_attention_dim=8, **LAYOUTS[layout]
    )
    state = unet.state_dict()
    names = ldm_names({n.rpartition(".")[0] for n in state})
    renamed = {f"model.diffusion_model.{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t for n, t in state.items()}
    assert len(renamed) == len(state)
    assert {m: names[m] for m in SAMPLERS[layout]} == SAMPLERS[layout]
    assert same(convert_ldm_unet_checkpoint(renamed, dict(unet.config)), state)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("partial", [True, False])
def test_state_dicts_with_numbered_blocks(prefix: str, partial: bool, tiny_model: Any, tmp_path: Path) -> None:
    state = {n: t.clone() for n, t in tiny_model.unet.state_dict().items()}
    changed = [n for n in state if "attn2.to_k" in n]
    for n in changed:
        state[n] += 0.5
    names = ldm_names({n.rpartition(".")[0] for n in state})
    tensors = {
        f"{prefix}{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t
        for n, t in state.items()
        if n in changed or not partial
    }
    if prefix and not partial:  # a whole checkpoint has more in it that no erasure changes
        tensors["alphas_cumprod"], tensors["first_stage_model.decoder.conv_in.weight"] = torch.ones(3), torch.ones(3)
        text = tiny_model.text_encoder.state_dict()
        tensors |= {f"cond_stage_model.transformer.text_model.{n.removeprefix('text_model.')}": t for n, t in text.items()}
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "f.ckpt")
    found = verbs.import_patch(tiny_model, tmp_path / "f.ckpt", targets=["cat"])
    assert found.deltas.keys() == {f"unet.{n}" for n in changed}
    assert ("VAE" in found.card.config.get("notes", "")) == bool(prefix and not partial)


def test_buffers_are_no_weights() -> None:
    for name in ("text_model.embeddings.position_ids", "position_ids", "betas", "first_stage_model.x", "denoiser.sigmas"):
        assert NO_WEIGHTS.search(name), name
    for name in ("text_model.embeddings.position_embedding.weight", "conv_in.weight", "unet.first.weight"):
        assert not NO_WEIGHTS.search(name), name


KINDS = {
    "LoHa": ("x.hada_w1_a", "x.hada_t2"),
    "LoKr": ("x.lokr_w1", "x.lokr_w2_b"),
    "DoRA": ("x.dora_scale", "x.lora_magnitude_vector", "x.lora_magnitude_vector.default.weight"),
    "Tucker": ("x.lora_mid.weight",),
    "IA3": ("x.on_input", "base.ia3_l.default"),
    "OFT": ("x.oft_blocks", "x.boft_R", "x.oft_diag.weight"),
    "VeRA": ("x.vera_lambda_b",),
    "AdaLoRA": ("x.lora_E.default",),
    "GLoRA": ("x.a1.weight", "x.b2.weight"),
    "token embedding": ("x.lora_embedding_A",),
    "textual inversion": ("emb_params", "clip_g"),
    "ControlNet": ("control_model.input_blocks.0.0.weight",),
    "FLUX": (
        "transformer.single_blocks.0.x.lora_A.weight",
        "lora_transformer_x.lora_up.weight",
        "double_blocks.0.img_mod.lin.weight",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_name(kind: str, tiny_model: Any, tmp_path: Path) -> None:
    good = factors(tiny_model, f"unet.{QUERY}")[f"unet.{QUERY}"]
    lora = {f"unet.{QUERY}.lora_B.weight": good[0], f"unet.{QUERY}.lora_A.weight": good[1]}
    for name in KINDS[kind]:
        with pytest.raises(BadFile, match=rf"{kind}.*which efface does not read"):
            imported(tiny_model, {**lora, name: torch.ones(2)}, tmp_path / "f.safetensors")


def test_no_name_of_a_model_is_taken_for_another_kind() -> None:
    for name in ("tiny", "tiny-xl"):
        weights = load_model(name).weights(lambda _: True)
        assert kind_of(weights) is None
        assert not [n for n in weights if role_of(n)]
        assert not [n for n in weights if NO_WEIGHTS.search(n)]


# -- what peft's configuration says -----------------------------------------------------------------------------------

PATTERNS = [
    {"alpha_pattern": {"attn2.to_v": 16}},
    {"alpha_pattern": {"^mid_block.attentions.0.transformer_blocks.0.attn2.to_v": 16}},
    {"alpha_pattern": {r"mid_block.*attn2\.to_v": 16, "to_v": 1}},
    {"alpha_pattern": {"to_v": 1, r"mid_block.*attn2\.to_v": 16}},
    {"rank_pattern": {r"down_blocks.*to_k": 3, "mid_block.+": 1}},
    {"rank_pattern": {"to_k": 3}, "alpha_pattern": {r".*transformer_blocks\.0\.attn[12]\.to_k": 5}},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_patterns_are_read_as_peft_reads_them(pattern: Any, part: str, tiny_model: Any, tmp_path: Path) -> None:
    """The reference is the network as peft merges it. The patterns are written for the UNet; a text encoder has other layers."""
    from peft import LoraConfig, PeftModel, get_peft_model

    words = {"to_k": "k_proj", "to_v": "v_proj", "attn2.": "self_attn.", "attn[12]": "self_attn", "mid_block": "encoder.layers.0"}
    words |= {"down_blocks": "encoder.layers.1", ".attentions.0.transformer_blocks.0": "", r".*transformer_blocks\.0\.": ".*"}
    if part == "text_encoder":
        text = json.dumps(pattern)
        for was, now in words.items():
            text = text.replace(json.dumps(was)[1:-1], json.dumps(now)[1:-1])
        pattern = json.loads(text)
    targets = ["to_k", "to_v"] if part == "unet" else ["k_proj", "v_proj"]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False, **pattern)
    torch.manual_seed(0)
    network: Any = get_peft_model(getattr(load_model("tiny"), part), config)
    network.save_pretrained(str(tmp_path / "adapter"))
    before = {n: w.clone() for n, w in getattr(load_model("tiny"), part).state_dict().items()}
    fresh: Any = PeftModel.from_pretrained(getattr(load_model("tiny"), part), str(tmp_path / "adapter"))
    merged = fresh.merge_and_unload().state_dict()
    want = {f"{part}.{n.removeprefix('text_model.')}": w - before[n] for n, w in merged.items() if not torch.equal(w, before[n])}
    found = verbs.import_patch(tiny_model, tmp_path / "adapter", targets=["cat"])
    assert found.deltas.keys() == want.keys()
    for n, d in want.items():
        torch.testing.assert_close(found.deltas[n], d, atol=2e-6, rtol=1e-5)  # peft's W' - W carries the rounding of W


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", [((4, 16), (4, 16)), ((4, 16), (2, 8)), ((4, 4), (2, 1)), ((1, 3), (3, 1))])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_part_has_a_configuration_of_its_own(numbers: Any, family: str, tmp_path: Path) -> None:
    """Written by diffusers as its training scripts do; the reference is what diffusers itself fuses."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    _, pipe = pipeline("StableDiffusionPipeline") if family == "sd" else pipeline_xl()
    parts = ["unet", "text_encoder"] if family == "sd" else ["unet", "text_encoder", "text_encoder_2"]
    torch.manual_seed(0)
    for part, (rank, alpha) in zip(parts, (*numbers, numbers[0]), strict=False):
        layers = ["to_k"] if part == "unet" else ["q_proj"]
        getattr(pipe, part).add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, init_lora_weights=False))
    modules = {part: getattr(pipe, part) for part in parts}
    pipe.save_lora_weights(
        tmp_path,
        **{f"{part}_lora_layers": get_peft_model_state_dict(m) for part, m in modules.items()},
        **_collate_lora_metadata(modules),
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    assert "lora_adapter_metadata" in _header(file)
    _, stock = pipeline("StableDiffusionPipeline") if family == "sd" else pipeline_xl()
    before = {p: {n: w.clone() for n, w in getattr(stock, p).state_dict().items()} for p in parts}
    stock.load_lora_weights(str(file))
    stock.fuse_lora(components=parts)
    stock.unload_lora_weights()
    want = {
        f"{p}.{n.removeprefix('text_model.')}": w - before[p][n]
        for p in parts
        for n, w in getattr(stock, p).state_dict().items()
        if not torch.equal(w, before[p][n])
    }
    found = verbs.import_patch(load_model("tiny" if family == "sd" else "tiny-xl"), file, targets=["cat"])
    assert found.deltas.keys() == want.keys()
    for n, d in want.items():
        torch.testing.assert_close(found.deltas[n], d, atol=2e-6, rtol=1e-5)


def _header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        return dict(f.metadata() or {})


REFUSED = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "an_option_of_tomorrow": {"an_option_of_tomorrow": {"x": 1}},
    "bias": {"bias": "lora_only"},
    "pissa": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "LOHA": {"peft_type": "LOHA"},
    "has rank 2, its configuration says 8": {"r": 8},
}


@pytest.mark.parametrize("what", REFUSED)
def test_configurations_that_are_not_understood_are_refused(what: str, tiny_model: Any, tmp_path: Path) -> None:
    up, down = factors(tiny_model, f"unet.{QUERY}")[f"unet.{QUERY}"]
    folder = tmp_path / "a"
    folder.mkdir()
    save_file(
        {f"base_model.model.{QUERY}.lora_B.weight": up, f"base_model.model.{QUERY}.lora_A.weight": down},
        folder / "adapter_model.safetensors",
    )
    for facts in ({}, REFUSED[what]):
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **facts}))
        if facts:
            with pytest.raises(BadFile, match=what):
                verbs.import_patch(tiny_model, folder, targets=["cat"])
        else:
            found = verbs.import_patch(tiny_model, folder, targets=["cat"]).deltas[f"unet.{QUERY}.weight"]
            assert torch.equal(found, 2.0 * (up @ down))
    facts = {f"unet.{k}": v for k, v in {"r": 2, **REFUSED[what]}.items()}
    if what == "LOHA":
        return
    with pytest.raises(BadFile, match=what):
        imported(
            tiny_model,
            {f"unet.{QUERY}.lora_B.weight": up, f"unet.{QUERY}.lora_A.weight": down},
            tmp_path / "f.safetensors",
            lora_adapter_metadata=json.dumps(facts),
        )


def test_patterns_need_peft(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up, down = factors(tiny_model, f"unet.{QUERY}")[f"unet.{QUERY}"]
    tensors = {f"unet.{QUERY}.lora_B.weight": up, f"unet.{QUERY}.lora_A.weight": down}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"to_k": 3}})}
    monkeypatch.setitem(sys.modules, "peft.utils.other", None)
    with pytest.raises(MissingExtra, match="pip install peft"):
        imported(tiny_model, tensors, tmp_path / "f.safetensors", **header)


def test_layers_that_a_file_leaves_as_they_are_are_no_part_of_the_change(tiny_model: Any, tmp_path: Path) -> None:
    moved, still = "mid_block.attentions.0.proj_in", "mid_block.attentions.0.proj_out"
    made = factors(tiny_model, f"unet.{moved}", f"unet.{still}")
    tensors = {}
    for name, (up, down) in made.items():
        up = torch.zeros_like(up) if name.endswith(still) else up
        tensors |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    found = imported(tiny_model, tensors, tmp_path / "x.safetensors")
    assert set(found.deltas) == {f"unet.{moved}.weight"}


def test_a_linear_layer_is_a_convolution_of_one_pixel(tiny_model: Any, tmp_path: Path) -> None:
    """Stable Diffusion 1 and 2 differ in this, and files of one are written for the other."""
    name = "mid_block.attentions.0.proj_in.weight"
    live = tiny_model.weights(lambda _: True)[f"unet.{name}"]
    assert live.shape[2:] == (1, 1)
    changed = live.detach().clone()
    changed[0] += 1
    found = imported(tiny_model, {name: changed.flatten(1)}, tmp_path / "x.safetensors")
    torch.testing.assert_close(dict(found.deltas), {f"unet.{name}": changed - live.detach()})


def test_half_a_lora_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    up, down = factors(tiny_model, f"unet.{QUERY}")[f"unet.{QUERY}"]
    name, path = f"unet.{QUERY}", tmp_path / "f.safetensors"
    with pytest.raises(BadFile, match="one factor of a LoRA and not the other"):
        imported(tiny_model, {f"{name}.lora_B.weight": up}, path)
    with pytest.raises(BadFile, match="has an alpha and no factors"):
        imported(tiny_model, {f"{name}.alpha": torch.tensor(1.0)}, path)
    with pytest.raises(BadFile, match="ranks 2 and 1"):
        imported(tiny_model, {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down[:1]}, path)
    two = {f"{name}.lora_{f}.{a}.weight": t.clone() for f, t in (("A", down), ("B", up)) for a in ("one", "two")}
    with pytest.raises(BadFile, match="two adapters"):
        imported(tiny_model, two, path)
    with pytest.raises(WrongBaseModel, match=r"is \(8, 3\), in 'tiny' \(8, 8\)"):
        imported(tiny_model, {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": torch.ones(2, 3)}, path)
    header = json.dumps({"prior.r": 2})
    with pytest.raises(BadFile, match="no part of a Stable Diffusion"):
        imported(tiny_model, {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, path, lora_adapter_metadata=header)


def test_an_spm_is_said_to_have_lost_its_gate(tiny_model: Any, tmp_path: Path) -> None:
    up, down = factors(tiny_model, f"unet.{QUERY}", rank=1)[f"unet.{QUERY}"]
    name = f"lora_unet_{QUERY}".replace(".", "_")
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(1.0)}
    found = imported(tiny_model, tensors, tmp_path / "f.safetensors")
    assert torch.equal(found.deltas[f"unet.{QUERY}.weight"], up @ down)
    assert "SPM" in found.card.config["notes"]
    two = torch.cat([up, up], 1), torch.cat([down, down])
    other = {f"{name}.lora_up.weight": two[0], f"{name}.lora_down.weight": two[1], f"{name}.alpha": torch.tensor(1.0)}
    assert "notes" not in imported(tiny_model, other, tmp_path / "f.safetensors").card.config


def test_two_encoders_with_one_name_are_told_apart_by_size(tmp_path: Path) -> None:
    model = load_model("tiny-xl")
    for part in ("text_encoder", "text_encoder_2"):
        up, down = factors(model, f"{part}.{KEY}")[f"{part}.{KEY}"]
        tensors = {f"base_model.model.{KEY}.lora_B.weight": up, f"base_model.model.{KEY}.lora_A.weight": down}
        assert list(imported(model, tensors, tmp_path / "f.safetensors").deltas) == [f"{part}.{KEY}.weight"]
    assert load_file(tmp_path / "f.safetensors")
