"""What is special to Wan 2.1, on a tiny model of the real classes: videos of one frame, and UniPC's levels. What it shares with
other families is in test_families.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, PromptTooLong
from efface.guards import Negative
from efface.methods import ESD, UCE
from efface.models.load import load_model
from efface.models.readers import text_readers
from efface.models.select import CROSS_SELECTIONS
from efface.models.tiny import TINY_T5_ROWS, tiny, tiny_wan
from efface.models.wan import Wan
from efface.patches.export import export
from efface.preservation.adversary import word_rows, worded
from efface.testing import state


@pytest.fixture
def wan() -> Wan:
    return tiny_wan()


def stock(pipe: Any, prompt: str, steps: int, scale: float, **more: Any) -> torch.Tensor:
    """(1, 3, H, W) from the latent that efface draws for seed 0."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))[:, :, None]
    facts = {"height": 16, "width": 16, "num_frames": 1, "output_type": "pt", "max_sequence_length": TINY_T5_ROWS, **more}
    out: torch.Tensor = pipe(prompt, latents=noise, num_inference_steps=steps, guidance_scale=scale, **facts).frames[:, 0]
    return out


def cases(scale: float = 5.0) -> list[Case]:
    return [Case("x", "", "a cat", 0, scale)]


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


def test_encodings_are_those_of_the_stock_pipeline(wan: Wan) -> None:
    """encode_prompt gives UMT5's output with zeros for padding; the network reads it behind its text embedder."""
    prompts = ["a cat", " a Photo of the  castle", ""]
    positive, negative = wan._pipeline()[0].encode_prompt(prompts, max_sequence_length=TINY_T5_ROWS)
    embedder = wan.transformer.condition_embedder.text_embedder
    c = wan.encode(prompts)
    assert c.tokens.shape == (3, TINY_T5_ROWS, 24)
    torch.testing.assert_close(c.tokens, embedder(positive), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wan.unconditional(3).tokens, embedder(negative), atol=1e-5, rtol=1e-5)
    assert c.last.tolist() == [1, 4, 0]
    assert c.counts() == [TINY_T5_ROWS] * 3  # padding is read
    assert torch.equal(c.tokens[0, 3:], c.tokens[0, 3].expand(TINY_T5_ROWS - 3, -1))


def test_a_negative_prompt_is_that_of_the_stock_pipeline(wan: Wan) -> None:
    theirs = stock(wan._pipeline()[0], "a cat", 4, 5.0, negative_prompt="the dog")
    with Negative(text="the dog").active(wan, ("dog",)):
        torch.testing.assert_close(wan.sample(cases(), 4), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_levels_of_unipc_are_kept_and_told_as_they_are(wan: Wan, shift: float) -> None:
    from diffusers import UniPCMultistepScheduler

    config = {**wan.schedule.config, "flow_shift": shift}
    wan._sized(config)
    for steps in (2, 7, 20, 1000):
        theirs = UniPCMultistepScheduler.from_config(config)
        theirs.set_timesteps(steps)
        grid = torch.tensor(wan.schedule.timesteps(steps))
        assert wan.schedule.told(grid).tolist() == theirs.timesteps.tolist()
        torch.testing.assert_close(wan.schedule.share(grid).flatten(), theirs.sigmas[:-1], atol=1e-6, rtol=0)


def test_other_solvers_of_the_scheduler_are_not_taken_for_ours(wan: Wan) -> None:
    """Their levels are kept, and pictures are drawn by Euler's steps."""
    assert wan.usual_solver == "unipc"
    for option, value in (("solver_order", 3), ("solver_type", "bh1"), ("predict_x0", False), ("disable_corrector", [0])):
        wan._sized({**wan.schedule.config, option: value})
        assert wan.usual_solver == "ddim"
    with pytest.raises(BadOption, match="unipc is of flows alone"):
        list(tiny().walk(tiny().encode(["a cat"]), tiny().case_noise([0]), [500], 1.0, solver="unipc"))


def test_attention_maps_are_those_that_the_network_computes(wan: Wan) -> None:
    layer, seen = wan.transformer.blocks[1].attn2, dict[str, torch.Tensor]()
    for norm in (layer.norm_q, layer.norm_k):
        norm.weight.data.uniform_(1, 3)
    handles = [
        layer.to_v.register_forward_hook(lambda module, args, out: seen.__setitem__("v", out)),
        layer.to_out[0].register_forward_pre_hook(lambda module, args: seen.__setitem__("out", args[0])),
    ]
    with wan.attention_maps() as maps:
        wan.predict(wan.case_noise([0]), torch.tensor([500.0]), wan.encode(["a cat"]))
    for handle in handles:
        handle.remove()
    values = seen["v"].unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    torch.testing.assert_close((maps[1] @ values).transpose(1, 2).flatten(2), seen["out"], atol=1e-5, rtol=1e-5)


def test_further_tokens_are_read(wan: Wan) -> None:
    z, t, c = wan.case_noise([0]), torch.tensor([500.0]), wan.encode(["a cat"])
    plain, rows = wan.predict(z, t, c), torch.ones(1, 2, 24)
    with wan.extra_context(rows[:, :0], rows[:, :0], "inmidout"):
        assert torch.equal(wan.predict(z, t, c), plain)
    with wan.extra_context(rows, rows, "inmidout"):
        assert not torch.equal(wan.predict(z, t, c), plain)


def test_folders_pipelines_and_refusals(wan: Wan, tmp_path: Path) -> None:
    pipe = wan._pipeline()[0]
    pipe.save_pretrained(tmp_path / "m")
    loaded, wrapped = load_model(tmp_path / "m"), load_model(pipe)
    expected = stock(pipe, "a cat", 3, 5.0, max_sequence_length=512)
    for model in (loaded, wrapped):
        assert isinstance(model, Wan)
        assert (model.t5_rows, model.latent_shape) == (512, (4, 60, 104))
        model.sides = (8, 8)
        model._sized(dict(model.schedule.config))
        torch.testing.assert_close(model.sample(cases(), 3), expected, atol=1e-5, rtol=0)
    assert wrapped.transformer is pipe.transformer  # type: ignore[attr-defined]
    with pytest.raises(BadOption, match="UMT5 overflows in float16"):
        tiny_wan(dtype="float16")
    with pytest.raises(BadFile, match="image to video"):
        tiny_wan(image_dim=8, added_kv_proj_dim=24)
    with pytest.raises(BadFile, match="reads 9 and gives 4 channels"):
        tiny_wan(in_channels=9)
    with pytest.raises(PromptTooLong, match="17 tokens"):
        wan.encode(["a " * 16])
    with pytest.raises(BadFile, match="flow_prediction"):
        wan._sized({**wan.schedule.config, "prediction_type": "epsilon"})
    for relative in ("WanImageToVideoPipeline", "WanVACEPipeline"):
        folder = tmp_path / relative
        folder.mkdir()
        (folder / "model_index.json").write_text(f'{{"_class_name": "{relative}"}}')
        with pytest.raises(BadFile, match=relative):
            load_model(folder)


def test_wan_2_2_is_refused_by_name(wan: Wan, tmp_path: Path) -> None:
    """A second transformer for low noise (14 billion parameters), or a time for every token (5 billion)."""
    from diffusers import WanPipeline

    own = {part: getattr(wan, part) for part in ("tokenizer", "text_encoder", "transformer", "vae")}
    scheduler = wan._pipeline()[0].scheduler
    two = WanPipeline(**own, scheduler=scheduler, transformer_2=wan.transformer, boundary_ratio=0.9)
    timed = WanPipeline(**own, scheduler=scheduler, expand_timesteps=True)
    for i, (pipe, told) in enumerate(((two, "transformer_2"), (timed, "a time for every token"))):
        pipe.save_pretrained(tmp_path / str(i))
        for source in (pipe, tmp_path / str(i)):
            with pytest.raises(BadFile, match=f"{told}.*Wan 2.2"):
                load_model(source)


def test_layers_that_diffusers_keeps_in_float32_do_not_hide_the_precision(wan: Wan, tmp_path: Path) -> None:
    """Its time embedding and its tables of scales stay in float32 in a model that is loaded in bfloat16."""
    wan._pipeline()[0].save_pretrained(tmp_path / "m")
    half: Any = load_model(tmp_path / "m", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16, torch.float32}
    half.sides = (8, 8)
    half._sized(dict(half.schedule.config))
    assert bool(torch.isfinite(half.sample(cases(), 2)).all())


# -- words and weights -------------------------------------------------------------------------------------------------


def test_vectors_stand_in_the_places_of_words(wan: Wan) -> None:
    words, rows = word_rows(wan)
    dog = rows[words.index("dog")][None, None]
    for place, written in (("prefix", "dog a cat"), ("suffix", "a cat dog"), ("replace", "dog")):
        torch.testing.assert_close(worded(wan, ["a cat"], dog, place).tokens, wan.encode([written]).tokens, atol=1e-5, rtol=1e-5)
    assert wan.locate("a photo of  a cat", "cat").starts == (4,)


@pytest.mark.parametrize(
    ("facts", "total", "expected"),
    [
        (
            {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            1_418_996_800,
            {"xattn": (240, 283_299_840), "xattn-kv": (60, 141_557_760), "selfattn": (240, 283_299_840)},
        ),
        (
            {},
            14_288_491_584,
            {"xattn": (320, 4_195_123_200), "xattn-kv": (80, 2_097_152_000), "selfattn": (320, 4_195_123_200)},
        ),
    ],
    ids=["1.3B", "14B"],
)
def test_selections_and_readers_match_wan(facts: dict[str, int], total: int, expected: dict[str, tuple[int, int]]) -> None:
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        network = WanTransformer3DModel(**facts)
    sizes = {f"transformer.{n}": p.numel() for n, p in network.named_parameters()}
    assert sum(sizes.values()) == total
    for name, (tensors, numbers) in expected.items():
        chosen = [n for n in sizes if CROSS_SELECTIONS[name](n)]
        assert (len(chosen), sum(sizes[n] for n in chosen)) == (tensors, numbers), name
    left = [n for n in sizes if not CROSS_SELECTIONS["full"](n)]
    assert left == [n for n in sizes if "text_embedder" in n]
    assert len(text_readers(network)["tokens"]) == expected["xattn-kv"][0]


def test_a_closed_form_makes_the_target_act_like_the_anchor(wan: Wan) -> None:
    z, t = wan.noise(4, torch.Generator().manual_seed(0)), torch.tensor([900.0, 600.0, 300.0, 100.0])

    def out(name: str) -> torch.Tensor:
        return wan.predict(z, t, wan.encode([name] * 4))

    cat, dog = out("cat"), out("dog")
    patch = UCE(rows="all", lam=1e-6).erase(wan, EraseRequest(("cat",), "dog"))
    with patch.applied(wan):
        left = float((out("cat") - dog).norm() / (cat - dog).norm())
    assert left < 0.01


def test_a_lora_is_fused_and_unloaded(wan: Wan, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    patch = ESD.preset("tiny", lr=1e-2).erase(wan, EraseRequest(("cat",)))
    export(patch, wan, tmp_path / "lora.safetensors", "diffusers")
    before = state(wan)
    with patch.applied(wan):
        expected = wan.sample(cases(), 4)
    pipe = wan._pipeline()[0]
    plain = stock(pipe, "a cat", 4, 5.0)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    pipe.fuse_lora()
    # 1e-3: what the LoRA may leave out of the patch
    torch.testing.assert_close(stock(pipe, "a cat", 4, 5.0), expected, atol=1e-3, rtol=0)
    assert (expected - plain).abs().max() > 5e-3
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    for name, weight in before.items():  # fusing adds and subtracts, which rounds
        torch.testing.assert_close(state(wan)[name], weight, atol=1e-6, rtol=0)
