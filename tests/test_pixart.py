"""What is special to PixArt, on a tiny model of the real classes: its text enters by attn2, so everything of the UNets carries
over. What it shares with other families is in test_families.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, PromptTooLong
from efface.guards import Negative
from efface.methods import UCE
from efface.models.cond import MASK, Cond
from efface.models.load import load_model
from efface.models.pixart import PixArt, PixArtAlpha
from efface.models.readers import text_readers
from efface.models.select import CROSS_SELECTIONS
from efface.models.tiny import TINY_T5_ROWS, tiny_pixart
from efface.patches.foreign import import_patch
from efface.preservation.adversary import word_rows, worded
from efface.registry import METHODS
from efface.testing import same, state

PROMPTS = ("a cat", "a Photo of the castle")


@pytest.fixture
def pixart() -> PixArt:
    return tiny_pixart()


def stock(pipe: Any, prompts: list[str], seeds: list[int], steps: int, scale: float, side: int = 8, **more: Any) -> torch.Tensor:
    """(B, 3, H, W), from the latents that efface draws for the seeds."""
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    facts = {"height": 2 * side, "width": 2 * side, "output_type": "pt", "max_sequence_length": TINY_T5_ROWS, **more}
    facts |= {"use_resolution_binning": False, "clean_caption": False}
    out: torch.Tensor = pipe(prompts, latents=torch.cat(noise), num_inference_steps=steps, guidance_scale=scale, **facts).images
    return out


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


def test_alpha_at_1024_pixels_is_told_the_picture_s_size() -> None:
    """Its latents have 128 x 128 pixels; the stock pipeline tells the size to no other network."""
    wide = {"attention_head_dim": 12, "cross_attention_dim": 24}  # the size takes a third of the width for each of its numbers
    model = tiny_pixart(True, sample_size=128, use_additional_conditions=True, **wide)
    theirs = stock(model._pipeline()[0], ["a cat"], [0], 2, 4.5, side=128, output_type="latent")
    ours = model.denoise(model.encode(["a cat"]), model.case_noise([0]), 2, 4.5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_default_solver_of_the_pipeline_loads(pixart: PixArt, tmp_path: Path) -> None:
    """DPMSolverMultistep has Stable Diffusion's law of noise; efface draws by DDIM, or by its own DPM-Solver++."""
    from diffusers import DPMSolverMultistepScheduler

    pipe = pixart._pipeline()[0]
    pipe.scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    model = load_model(pipe)
    assert torch.equal(model.schedule.alphas_cumprod, pixart.schedule.alphas_cumprod)  # type: ignore[attr-defined]
    pipe.save_pretrained(tmp_path / "m")
    assert load_model(tmp_path / "m").info["family"] == "pixart"


def test_encodings_are_what_the_blocks_of_the_stock_network_read(pixart: PixArt) -> None:
    pipe, seen = pixart._pipeline()[0], dict[str, torch.Tensor]()
    layer = pixart.transformer.transformer_blocks[0].attn2.to_k
    handle = layer.register_forward_pre_hook(lambda module, args: seen.setdefault("read", args[0]))
    stock(pipe, list(PROMPTS), [0, 1], 1, 1.0)
    handle.remove()
    c = pixart.encode(PROMPTS)
    assert c.tokens.shape == (2, TINY_T5_ROWS, 16)
    assert c.counts() == [3, 6]
    assert c.last.tolist() == [1, 4]
    for i, n in enumerate(c.counts()):
        torch.testing.assert_close(c.tokens[i, :n], seen["read"][i, :n], atol=1e-6, rtol=1e-6)
        assert not bool(c.tokens[i, n:].any())


def test_padding_is_not_read(pixart: PixArt) -> None:
    z, t, c = pixart.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500]), pixart.encode(["a cat"])
    other = dataclasses.replace(c, tokens=torch.where(c.extras[MASK][..., None] > 0, c.tokens, 5.0))
    torch.testing.assert_close(pixart.predict(z, t, other), pixart.predict(z, t, c), atol=1e-6, rtol=0)
    with pixart.attention_maps() as maps:
        pixart.predict(z, t, c)
    assert len(maps) == 2
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones_like(m[..., 0]))
        assert float(m[..., 3:].max()) == 0
        assert float(m[..., :3].min()) > 0


def test_rows_and_goals_are_those_that_are_read(pixart: PixArt) -> None:
    c, null = pixart.encode(["a cat", "a photo of the cat"]), pixart.encode(["", ""])
    assert c.rows("all").shape[0] == 3 + 6
    assert c.rows("last..end").shape[0] == 4
    x, y = c.aligned(null, "last..end")
    assert torch.equal(x, torch.cat([c.tokens[0, 1:3], c.tokens[1, 4:6]]))
    assert torch.equal(y, null.tokens[0, :1].expand(4, -1))  # what is longer than the goal acts like its end token
    back, goal = null.aligned(c, "all")
    assert torch.equal(back, null.tokens[:, 0])
    assert torch.equal(goal, c.tokens[:, 0])
    both = Cond.cat([c, null]).repeat(2)[[0, 4]]
    assert both.counts() == [3, 1]
    assert both.bare().counts() == [3, 1]
    assert c.mixture(torch.tensor([0.5, 0.5]), 0).counts() == [6]


def test_vectors_stand_in_the_places_of_words(pixart: PixArt) -> None:
    words, rows = word_rows(pixart)
    dog = rows[words.index("dog")][None, None]
    for place, written in (("prefix", "dog a cat"), ("suffix", "a cat dog"), ("replace", "dog")):
        c, plain = worded(pixart, ["a cat"], dog, place), pixart.encode([written])
        torch.testing.assert_close(c.tokens, plain.tokens, atol=1e-5, rtol=1e-5)
        assert c.counts() == plain.counts()
    assert pixart.locate("A Photo of a Cat", "CAT").starts == (4,)


def test_folders_pipelines_and_refusals(pixart: PixArt, tmp_path: Path) -> None:
    pipe = pixart._pipeline()[0]
    wrapped = load_model(pipe)
    assert type(wrapped) is PixArt
    assert wrapped.transformer is pipe.transformer
    assert wrapped.t5_rows == 300
    tiny_pixart(True)._pipeline()[0].save_pretrained(tmp_path / "alpha")
    alpha = load_model(tmp_path / "alpha")
    assert type(alpha) is PixArtAlpha
    assert alpha.t5_rows == 120
    cases = [Case("x", "", "a cat", 0, 4.5)]
    torch.testing.assert_close(alpha.sample(cases, 3), pixart.sample(cases, 3), atol=1e-5, rtol=0)  # padding is not read
    pipe.register_modules(text_encoder=None)
    with pytest.raises(BadFile, match="no text_encoder"):
        load_model(pipe)
    with pytest.raises(BadOption, match="bfloat16"):
        tiny_pixart(dtype="float16")
    with pytest.raises(BadFile, match="inpainting or editing"):
        tiny_pixart(in_channels=9)
    with pytest.raises(BadFile, match="no caption_projection"):
        tiny_pixart(caption_channels=None)
    with pytest.raises(PromptTooLong, match="17 tokens"):
        pixart.encode(["a " * 16])


def test_bfloat16_draws_nearly_the_same() -> None:
    half, whole = tiny_pixart(dtype="bfloat16"), tiny_pixart()
    case = [Case("x", "", "a cat", 0, 2.0)]
    # 0.1: pictures of random weights in 8 bits of mantissa; other prompts' pictures differ by as much, NaN would not pass.
    torch.testing.assert_close(half.sample(case, 3), whole.sample(case, 3), atol=0.1, rtol=0)


def test_a_negative_prompt_is_that_of_the_stock_pipeline(pixart: PixArt) -> None:
    theirs = stock(pixart._pipeline()[0], ["a photo of the cat"], [0], 4, 5.0, negative_prompt="cat")
    with Negative().active(pixart, ("cat",)):
        ours = pixart.sample([Case("x", "", "a photo of the cat", 0, 5.0)], 4)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# -- weights -----------------------------------------------------------------------------------------------------------


def true_size() -> torch.nn.Module:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        return PixArtTransformer2DModel(
            sample_size=128, num_layers=28, attention_bias=True, caption_channels=4096, use_additional_conditions=False
        )


def test_selections_and_readers_match_pixart_sigma() -> None:
    network = true_size()
    sizes = {f"transformer.{n}": p.numel() for n, p in network.named_parameters()}
    assert sum(sizes.values()) == 610_856_096
    expected = {
        "xattn": (224, 148_764_672),
        "xattn-qkv": (84, 111_476_736),
        "xattn-kv": (56, 74_317_824),
        "selfattn": (224, 148_764_672),
        "attn": (448, 297_529_344),
    }
    for name, (tensors, numbers) in expected.items():
        chosen = [n for n in sizes if CROSS_SELECTIONS[name](n)]
        assert (len(chosen), sum(sizes[n] for n in chosen)) == (tensors, numbers), name
    left = [n for n in sizes if not CROSS_SELECTIONS["full"](n)]
    assert left == [n for n in sizes if "caption_projection" in n]
    assert not [n for n in sizes if CROSS_SELECTIONS["noxattn"](n) and ".attn2." in n]
    found = text_readers(network)
    assert set(found) == {"tokens"}
    assert len(found["tokens"]) == 56
    assert {r.width for r in found["tokens"]} == {1152}


def test_a_closed_form_makes_the_target_act_like_the_anchor(pixart: PixArt) -> None:
    z, t = pixart.noise(4, torch.Generator().manual_seed(0)), torch.tensor([900, 600, 300, 100])

    def out(name: str) -> torch.Tensor:
        return pixart.predict(z, t, pixart.encode([name] * 4))

    cat, dog = out("cat"), out("dog")
    patch = UCE(rows="all", lam=1e-6).erase(pixart, EraseRequest(("cat",), "dog"))
    with patch.applied(pixart):
        left = float((out("cat") - dog).norm() / (cat - dog).norm())
    assert left < 0.01


def test_the_text_encoder_that_is_trained_is_t5(pixart: PixArt) -> None:
    from efface.models.select import text_layers

    names = set(pixart.weights(pixart.select("text-encoder")))
    assert {n.partition(".")[0] for n in names} == {"text_encoder"}
    assert not any("shared" in n or "embed_tokens" in n for n in pixart.weights(text_layers("all")))
    first = pixart.weights(text_layers("0"))
    assert first
    assert all(n.startswith("text_encoder.encoder.block.0.") for n in first)
    before = state(pixart)
    patch = METHODS["advunlearn"].preset("tiny", lr=1e-2).erase(pixart, EraseRequest(("cat",)))
    plain = pixart.encode(["cat"]).tokens
    with patch.applied(pixart):
        assert (pixart.encode(["cat"]).tokens - plain).abs().max() > 1e-4
    assert torch.equal(pixart.encode(["cat"]).tokens, plain)
    assert same(state(pixart), before)


# -- files -------------------------------------------------------------------------------------------------------------


def test_loras_of_others_are_read(pixart: PixArt, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn2.to_k"
    up, down = torch.randn(16, 2), torch.randn(2, 16)
    save_file(
        {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}, tmp_path / "l.safetensors"
    )
    found = import_patch(pixart, tmp_path / "l.safetensors", targets=["cat"])
    torch.testing.assert_close(found.deltas[f"transformer.{name}.weight"], up @ down)
