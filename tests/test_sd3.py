"""What is special to Stable Diffusion 3, on a tiny model of the real classes, and the flow miniature. What it shares with other
families is in test_families.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, PromptTooLong, UnknownName
from efface.methods import AP, ESD
from efface.models.base import DiffusionModel
from efface.models.cond import POOLED
from efface.models.flow import flow_schedule_of
from efface.models.load import load_model
from efface.models.readers import text_readers
from efface.models.sd3 import StableDiffusion3
from efface.models.select import MMDIT_SELECTIONS
from efface.models.tiny import TINY_T5_ROWS, tiny_sd3

PROMPTS = ("a cat", "a photo of the castle")


@pytest.fixture
def sd3() -> StableDiffusion3:
    return tiny_sd3()


@pytest.fixture
def no_t5() -> StableDiffusion3:
    return tiny_sd3(t5=False)


def stock(pipe: Any, prompts: list[str], seeds: list[int], steps: int, guidance: float, rows: int) -> torch.Tensor:
    """(B, 3, H, W), from the latents that efface draws for the seeds."""
    pipe.set_progress_bar_config(disable=True)
    side = pipe.transformer.config.sample_size
    noise = [torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    px = side * pipe.vae_scale_factor
    more = {"height": px, "width": px, "output_type": "pt", "max_sequence_length": rows}
    return pipe(prompts, latents=torch.cat(noise), num_inference_steps=steps, guidance_scale=guidance, **more).images


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("t5", [True, False])
def test_encodings_are_those_of_the_stock_pipeline(t5: bool) -> None:
    model = tiny_sd3(t5)
    kwargs = {"prompt_2": None, "prompt_3": None, "device": "cpu", "max_sequence_length": TINY_T5_ROWS}
    with torch.no_grad():
        tokens, null, pooled, null_pooled = model._pipeline()[0].encode_prompt(list(PROMPTS), **kwargs)
    c, none = model.encode(PROMPTS), model.unconditional(2)
    assert c.tokens.shape == (2, 24 + TINY_T5_ROWS, 48)
    for ours, theirs in ((c.tokens, tokens), (c.extras[POOLED], pooled), (none.tokens, null), (none.extras[POOLED], null_pooled)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("t5", [True, False])
def test_a_folder_saved_by_diffusers_loads(t5: bool, tmp_path: Path) -> None:
    model = tiny_sd3(t5)
    model._pipeline()[0].save_pretrained(tmp_path / "folder")
    again = load_model(str(tmp_path / "folder"), device="cpu")
    assert isinstance(again, StableDiffusion3)
    assert (again.text_encoder_3 is not None) == t5
    again.t5_rows = model.t5_rows  # a folder does not say how many rows a pipeline will be called with
    cases = [Case("x", "", "a cat", 0, 4.0)]
    assert torch.equal(again.sample(cases, 3), model.sample(cases, 3))
    assert again.digest() == model.digest()


def test_a_loaded_pipeline_is_wrapped_and_a_patch_shows_in_it(sd3: StableDiffusion3) -> None:
    pipe = sd3._pipeline()[0]
    wrapped = load_model(pipe)
    assert isinstance(wrapped, StableDiffusion3)
    assert wrapped.transformer is pipe.transformer


# -- what is refused ---------------------------------------------------------------------------------------------------


def parts(model: StableDiffusion3) -> dict[str, Any]:
    names = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3", "transformer", "vae")
    return {"name": "x", "t5_rows": model.t5_rows, "scheduler": model.schedule.config, **{n: getattr(model, n) for n in names}}


def test_refusals(sd3: StableDiffusion3) -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler

    pipe = sd3._pipeline()[0]
    pipe.register_modules(text_encoder_2=None)
    with pytest.raises(BadFile, match="text_encoder_2"):
        load_model(pipe)
    pipe = sd3._pipeline()[0]
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(BadFile, match="FlowMatchEulerDiscreteScheduler"):
        load_model(pipe)
    with pytest.raises(BadFile, match="stochastic_sampling"):
        flow_schedule_of({"stochastic_sampling": True}, 16)
    with pytest.raises(BadOption, match="bfloat16"):
        tiny_sd3(dtype="float16")
    with pytest.raises(PromptTooLong, match="T5"):
        sd3.encode(["a " * 20])
    with pytest.raises(UnknownName, match="text-attn"):
        sd3.select("selfattn-two")
    for call in (sd3.attention_maps, sd3.start_detached, lambda: sd3.extra_context(torch.zeros(1), torch.zeros(1), "mid")):
        with pytest.raises(BadOption, match="softmax"):
            call()


# -- weights -----------------------------------------------------------------------------------------------------------


def medium() -> torch.nn.Module:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        return SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
            num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
            pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
        )  # fmt: skip


def test_selections_match_stable_diffusion_3_5_medium() -> None:
    sizes = {f"transformer.{n}": p.numel() for n, p in medium().named_parameters()}
    assert sum(sizes.values()) == 2_243_171_520
    expected = {
        "text-kv": (48, 113_246_208),
        "text-attn": (190, 224_279_040),
        "text": (196, 236_080_128),
        "image-attn": (192, 226_639_872),
        "joint": (382, 450_918_912),
        "context": (2, 6_292_992),
        "pooled": (4, 5_508_096),
    }
    for name, (tensors, numbers) in expected.items():
        chosen = [n for n in sizes if MMDIT_SELECTIONS[name](n)]
        assert (len(chosen), sum(sizes[n] for n in chosen)) == (tensors, numbers), name
    for alias, name in (("xattn-kv", "text-kv"), ("xattn", "text"), ("attn", "joint"), ("visual", "image-attn")):
        assert all(MMDIT_SELECTIONS[alias](n) == MMDIT_SELECTIONS[name](n) for n in sizes)
    assert not any(".attn2." in n for n in sizes if MMDIT_SELECTIONS["xattn"](n))


def test_readers_of_stable_diffusion_3_5_medium() -> None:
    """attn2 of its first 13 blocks attends to the picture alone."""
    found = {kind: [(r.name, r.width) for r in readers] for kind, readers in text_readers(medium()).items()}
    assert found == {
        "tokens": [("context_embedder.weight", 4096)],
        "pooled": [("time_text_embed.text_embedder.linear_1.weight", 2048)],
    }


def test_rows_of_both_tokenizers_have_their_own_last_word(sd3: StableDiffusion3, no_t5: StableDiffusion3) -> None:
    c, n = sd3.encode(["a photo of the cat"]), len(sd3.token_ids(["a photo of the cat"])[0]) - 2
    assert c.rows("last").shape[0] == 2
    assert torch.equal(c.rows("last")[0], c.tokens[0, n])  # CLIP's begin token is at 0
    assert torch.equal(c.rows("last")[1], c.tokens[0, 24 + 4])  # T5 has none, and five words
    x, y = c.aligned(sd3.encode(["a dog"]), "last..end")
    assert len(x) == len(y) == (24 - n) + (TINY_T5_ROWS - 4)
    assert torch.equal(c.rows("all"), c.tokens[0])
    assert no_t5.encode(["a photo of the cat"]).rows("last").shape[0] == 1
    both = c.repeat(2)[[1, 0]].detached()
    assert torch.equal(both.second, torch.tensor([4, 4]))


def test_the_preserved_concept_is_read_with_its_own_pooled_vector(sd3: StableDiffusion3) -> None:
    """Published ports of AP to FLUX give it the target's: then another target would move the preservation term."""
    method = AP.preset("tiny", search="random", steps=1)
    found: list[float] = []
    for strength in (1.0, 5.0):
        model = tiny_sd3()
        plain = model.encode(["cat"])

        def change(prompts: Any, c: Any, plain: Any = plain, strength: float = strength) -> Any:
            rows = torch.tensor([strength if p == "cat" else 1.0 for p in prompts])[:, None]
            return dataclasses.replace(c, extras={POOLED: c.extras[POOLED] * rows})

        with model.encoding(change):
            scene = method.scene(model, EraseRequest(("cat",)))
            z, t = model.noise(1, torch.Generator().manual_seed(0)), torch.tensor([400.0])
            for w in scene.weights.values():
                w.data += 0.01
            found.append(float(scene.damage(model.encode(["dog"]), z, t)))
    assert found[0] == found[1] > 0


# -- the flow miniature ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_flow() -> DiffusionModel:
    return load_model("mini-flow", device="cpu")


def test_the_flow_miniature_draws_what_the_stock_pipeline_draws(mini_flow: StableDiffusion3) -> None:
    prompts, seeds = ["a dog", "a castle"], [1, 2]
    theirs = stock(mini_flow._pipeline()[0], prompts, seeds, 8, 4.0, 0)
    ours = mini_flow.sample([Case("x", "", p, s, 4.0) for p, s in zip(prompts, seeds, strict=True)], 8)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_gold_model_shares_all_but_the_transformer(mini_flow: StableDiffusion3) -> None:
    gold = load_model("mini-flow-gold", device="cpu")
    assert mini_flow.world is not None
    assert mini_flow.world.gold == gold.name
    assert gold.digest() != mini_flow.digest()
    assert gold.identity("text_encoder") == mini_flow.identity("text_encoder")
    for a, b in zip(gold.encode(["a dog"]).extras.values(), mini_flow.encode(["a dog"]).extras.values(), strict=True):
        assert torch.equal(a, b)


def test_latents_are_at_the_level_they_are_said_to_be_at(mini_flow: StableDiffusion3) -> None:
    """Else losses would be evaluated on pictures that are labelled as noise, as in published ports."""
    from efface.training.latents import LatentPool

    names = ("dog", "castle", "rose")
    pool = LatentPool(mini_flow, steps=8, trajectories=8, guidance=1.0, solver="ddim", seed=0, batch=1)
    pool.fill(names)
    walked = torch.stack([pool.latents[n] for n in names])  # (names, trajectories, levels, C, h, w)
    clean = mini_flow.denoise(mini_flow.encode(names * 8), mini_flow.noise(24, torch.Generator().manual_seed(1)), 8, 1.0)
    for k, t in enumerate(pool.grid):
        s = t / 1000
        expected = ((1 - s) ** 2 * float(clean.square().mean()) + s**2) ** 0.5
        # 0.05: at most 0.02 was measured; clean latents instead would be off by up to 0.4. Guidance moves it by up to 0.2.
        assert abs(float(walked[:, :, k].square().mean().sqrt()) / expected - 1) < 0.05


# -- refused before anything is computed -------------------------------------------------------------------------------


def test_plms_is_refused_before_anything_is_computed(sd3: StableDiffusion3) -> None:
    with pytest.raises(BadOption, match="noise prediction"):
        ESD.preset("tiny", sampler="frozen", solver="plms").erase(sd3, EraseRequest(("cat",)))
    with pytest.raises(BadOption, match="noise prediction"):
        sd3.sample_until(sd3.encode(["cat"]), 0, 4, sd3.noise(1, torch.Generator()), 3.0, solver="plms")
    assert not sd3.evals.forward


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3"])
def test_a_damaged_folder_and_a_changed_pipeline_are_refused(part: str, sd3: StableDiffusion3, tmp_path: Path) -> None:
    sd3.save_folder(tmp_path / "folder")
    (file,) = (tmp_path / "folder" / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(n for n in tensors if "attn" in n or "Attention" in n)
    save_file({n: t for n, t in tensors.items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(BadFile, match="random numbers"):
        load_model(str(tmp_path / "folder"), device="cpu")
    layer = next(m for m in getattr(sd3, part).modules() if isinstance(m, torch.nn.Linear))
    layer.lora_A = torch.nn.Linear(2, 2)
    with pytest.raises(BadFile, match="adapter"):
        sd3.weights(lambda _: True)


def test_a_pipeline_without_an_encoder_of_sd3_is_no_pipeline_of_ours(sd3: StableDiffusion3) -> None:
    class Flux:
        transformer, text_encoder, scheduler = sd3.transformer, sd3.text_encoder, None

    with pytest.raises(BadFile, match="a Flux is no pipeline that efface erases from"):
        load_model(Flux())
