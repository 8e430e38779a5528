"""Adapters against diffusers itself, against the published parameter counts, and against bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from efface.concepts.prompts import Case
from efface.errors import BadFile, BadOption, NothingSelected, PromptTooLong, UnknownName
from efface.models.attention import cross_attentions
from efface.models.load import load_model
from efface.models.schedule import official_walk, schedule_of
from efface.models.sd import StableDiffusion
from efface.models.select import SELECTIONS, selection
from efface.models.tiny import tiny

SD14_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,
}
COUNTS = {  # of Stable Diffusion 1.4, counted on its published configuration
    "xattn": (80, 43_962_560),
    "xattn-qkv": (48, 31_559_680),
    "visual": (96, 61_964_480),
    "xattn-kv": (32, 19_169_280),
    "xattn-two": (10, 3_605_760),
    "selfattn-two": (10, 8_193_920),
    "linear-noxattn": (388, 815_358_084),
    "linear": (468, 859_320_644),
    "noxattn": (598, 813_495_680),
    "selfattn": (80, 49_574_080),
    "attn": (160, 93_536_640),
    "notime": (678, 857_458_240),
    "full": (686, 859_520_964),
}


def test_selections_match_stable_diffusion_1_4() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14_UNET)
    named = [(f"unet.{n}", p.numel()) for n, p in unet.named_parameters()]
    for name, expected in COUNTS.items():
        sizes = [n for p, n in named if selection(name)(p)]
        assert (len(sizes), sum(sizes)) == expected, name
    places = {place: len(cross_attentions(unet, place)) for place in ("mid", "midout", "inmidout")}
    assert places == {"mid": 1, "midout": 10, "inmidout": 16}
    assert set(COUNTS) | {"text-encoder"} == set(SELECTIONS)


def test_official_walk_has_the_counts_of_the_legacy_code() -> None:
    grid = tiny().schedule.timesteps(50)
    assert (grid[0], grid[-1]) == (981, 1)
    walks = [official_walk(grid, k) for k in range(50)]
    assert [len(levels) for levels, _ in walks] == [min(49, 50 - k) for k in range(50)]
    assert sum(len(levels) for levels, _ in walks) / 50 == pytest.approx(25.48)
    assert all(levels[0] == 961 for levels, _ in walks), "the legacy loop drops the noisiest level"
    levels, final = walks[20]
    assert (levels[-1], final) == (381, 361), "in the legacy code t_enc = 20 ends at 361 while the network is told 400..419"
    assert walks[0][1] == walks[1][1] == 0


def test_exact_alignment_stops_where_it_says(tiny_model) -> None:  # type: ignore[no-untyped-def]
    grid = tiny_model.schedule.timesteps(10)
    noise = tiny_model.noise(1, torch.Generator().manual_seed(0))
    c = tiny_model.encode(["cat"])
    for k in range(10):
        before = tiny_model.evals.forward
        z, t = tiny_model.sample_until(c, k, 10, noise, 3.0)
        assert int(t) == grid[k]
        assert tiny_model.evals.forward - before == 2 * k
        states = dict(tiny_model.walk(c, noise, grid[:-1], 3.0, final=grid[-1]))
        assert torch.equal(states[grid[k]], z)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_equals_the_diffusers_pipeline(prediction: str) -> None:
    model = tiny(prediction)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    cases = [Case("x", "", p, s, 5.0) for s, p in enumerate(["cat", "a dog", ""])]
    latents = model.case_noise([c.seed for c in cases])
    theirs = pipe([c.prompt for c in cases], latents=latents, num_inference_steps=7, guidance_scale=5.0, output_type="pt").images
    # 1e-4: float32, seven steps, another order of the same operations
    torch.testing.assert_close(model.sample(cases, 7), theirs, atol=1e-4, rtol=0)
    assert torch.equal(StableDiffusion.from_pipeline(pipe).sample(cases, 7), model.sample(cases, 7))


def test_images_do_not_depend_on_batch_order_or_company(tiny_model) -> None:  # type: ignore[no-untyped-def]
    cases = [Case("x", "", p, s, g) for s, (p, g) in enumerate([("cat", 4.0), ("dog", 1.0), ("bus", 4.0), ("rose", 2.0)])]
    together = tiny_model.sample(cases, 4, batch=4)
    for i, case in enumerate(cases):
        # 1e-5: matrix products of another batch size round differently
        torch.testing.assert_close(tiny_model.sample([case], 4)[0], together[i], atol=1e-5, rtol=0)
    torch.testing.assert_close(tiny_model.sample(cases[::-1], 4, batch=3).flip(0), together, atol=1e-5, rtol=0)


def test_too_long_prompts_are_refused_not_cut(tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PromptTooLong, match=r"has 32 tokens and the model reads 24.* It begins 'cat cat"):
        tiny_model.encode(["cat " * 30])
    assert tiny_model.encode(["cat " * 22]).tokens.shape[1] == 24


def test_encodings_are_kept_up_to_a_size(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tiny_model.encode(["cat", "dog", "bus"]).tokens
    tiny_model.weights_changed()
    monkeypatch.setattr("efface.models.sd.CACHE_BYTES", 2 * 4 * 24 * 16)  # two prompts
    for names in (["cat"], ["dog"], ["bus"], ["cat", "dog", "bus"]):
        tiny_model.encode(names)
        assert len(tiny_model._encoded) <= max(2, len(names))
    # 1e-5: another batch rounds differently
    torch.testing.assert_close(tiny_model.encode(["cat", "dog", "bus"]).tokens, wanted, atol=1e-5, rtol=0)


def test_last_token_points_at_the_last_word(tiny_model) -> None:  # type: ignore[no-untyped-def]
    c = tiny_model.encode(["", "cat", "a cat"])
    assert c.last.tolist() == [0, 1, 2]
    one = tiny_model.encode(["cat"])
    assert torch.equal(c.last_token()[1], one.tokens[0, 1])


def test_student_shares_everything_it_does_not_train(tiny_model) -> None:  # type: ignore[no-untyped-def]
    select = selection("xattn")
    student = tiny_model.student(select)
    ours, theirs = tiny_model.weights(lambda _: True), student.weights(lambda _: True)
    for name, p in ours.items():
        assert (theirs[name] is p) == (not select(name)), name
    assert student.evals is tiny_model.evals
    text = tiny_model.student(selection("text-encoder"))
    assert text.unet is tiny_model.unet
    assert text.text_encoder is not tiny_model.text_encoder
    assert text._encoded is not tiny_model._encoded, "a trained text encoder must not answer from the frozen one's cache"


def test_digest_survives_half_precision_and_sees_every_weight(tiny_model) -> None:  # type: ignore[no-untyped-def]
    before = tiny_model.digest()
    half = tiny()
    for part in (half.unet, half.text_encoder):
        part.half()
    assert half.digest() == before
    for name in ("unet.conv_out.bias", "text_encoder.final_layer_norm.weight"):
        p = tiny_model.weights(lambda n, name=name: n == name)[name]
        p.data += 1.0
        assert tiny_model.digest() != before
        p.data -= 1.0
    assert tiny_model.digest() == before


def test_folder_round_trip_and_foreign_folders(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
    )
    StableDiffusionPipeline(
        vae=tiny_model.vae, text_encoder=tiny_model.text_encoder, tokenizer=tiny_model.tokenizer, unet=tiny_model.unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "m")  # fmt: skip
    again = load_model(tmp_path / "m")
    assert again.digest() == tiny_model.digest()
    cases = [Case("x", "", "cat", 0, 4.0)]
    assert torch.equal(again.sample(cases, 3), tiny_model.sample(cases, 3))
    index = tmp_path / "m" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    with pytest.raises(BadFile, match="is a QwenImagePipeline"):
        load_model(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="cannot load"):
        load_model(tmp_path / "empty")


def test_names_that_are_no_model() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'mini'"):
        load_model("minni")
    with pytest.raises(BadOption, match="no GPU"):
        load_model("tiny", device="cuda") if not torch.cuda.is_available() else pytest.skip("a GPU is present")
    with pytest.raises(BadOption, match="unknown dtype 'int4'"):
        load_model("mini", dtype="int4")


def test_single_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(BadFile, match="cannot load"):
        load_model(path)


def test_empty_selection(tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NothingSelected, match="nothing would be trained"):
        tiny_model.weights(lambda n: "attn9" in n)


def test_schedule_reads_any_scheduler_config() -> None:
    pndm = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    assert torch.equal(schedule_of(pndm).alphas_cumprod, tiny().schedule.alphas_cumprod)


@pytest.mark.parametrize("name", ["tiny", "tiny-v", "tiny-xl"])
def test_tiny_models_take_dtype_and_device(name: str) -> None:
    half, plain = load_model(name, dtype="bfloat16", device="cpu"), load_model(name, device="cpu")
    assert half.info["dtype"] == "bfloat16"
    halved = half.weights(lambda _: True)
    assert {p.dtype for p in halved.values()} == {torch.bfloat16}
    for n, p in plain.weights(lambda _: True).items():
        assert torch.equal(p.bfloat16(), halved[n])
    assert {p.device.type for p in load_model(name, device="meta").weights(lambda _: True).values()} == {"meta"}


@pytest.mark.parametrize("name", ["tiny", "tiny-xl"])
def test_a_network_in_half_precision_is_called_as_the_stock_pipeline_calls_it(name: str) -> None:
    """To the bit, and without autocast, which is for students, whose trained weights are float32."""
    model = load_model(name, dtype="bfloat16", device="cpu")
    z, t, c = model.noise(2, torch.Generator().manual_seed(0)), torch.tensor([501, 501]), model.encode(["a cat", "a dog"])
    seen: list[bool] = []
    with torch.no_grad():
        stock = model.unet(z.bfloat16(), t, c.tokens.bfloat16(), return_dict=False, **model._beside(c))[0].float()
        model.unet.conv_in.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        assert torch.equal(model.predict(z, t, c), stock)
        student = model.student(lambda n: "attn2" in n)  # it takes the hook with it
        assert {p.dtype for p in student.unet.parameters()} == {torch.bfloat16, torch.float32}
        assert float((student.predict(z, t, c) - stock).abs().max()) < 0.1, "the same network, rounded elsewhere"
        assert torch.equal(model.predict(z, t, c), stock), "what a student needs does not change its source"
    assert seen == [False, True, False]
