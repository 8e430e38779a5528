"""What is special to FLUX.1, on a tiny model of the real classes; what it shares with other families is in test_families.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from efface.cli.main import main
from efface.concepts.prompts import Case
from efface.errors import BadFile, BadOption, PromptTooLong
from efface.guards import Negative
from efface.models.cond import GUIDANCE, POOLED
from efface.models.flux import SIDE, Flux, packed, places, unpacked
from efface.models.load import load_model
from efface.models.readers import text_readers
from efface.models.select import FLUX_SELECTIONS
from efface.models.tiny import TINY_T5_ROWS, tiny_flux
from efface.preservation.adversary import PLACES, word_rows, worded
from efface.registry import GUARDS, build_guard
from efface.verbs.sample import sample

PROMPTS = ("a cat", "a photo of the castle")
DISTILLED = pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])


@pytest.fixture
def flux() -> Flux:
    return tiny_flux()


def pipeline(model: Flux) -> Any:
    pipe = model._pipeline()[0]
    pipe.default_sample_size = model.side
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipe: Any, prompts: list[str], seeds: list[int], steps: int, scale: float, **more: Any) -> torch.Tensor:
    """(B, 3, H, W), from the latents that efface draws for the seeds."""
    noise = torch.cat([torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    facts = {"height": 16, "width": 16, "output_type": "pt", "max_sequence_length": TINY_T5_ROWS, **more}
    latents = packed(noise).to(pipe.transformer.dtype)
    out: torch.Tensor = pipe(prompts, latents=latents, num_inference_steps=steps, guidance_scale=scale, **facts).images
    return out


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


def test_the_grid_of_schnell_is_even_and_that_of_dev_is_shifted_by_the_picture_s_size() -> None:
    assert tiny_flux(False).schedule.timesteps(4) == [1000.0, 750.0, 500.0, 250.0]
    small, large = tiny_flux(), tiny_flux()
    large.side = SIDE
    large._sized(large.schedule.config)
    assert large.latent_shape == (4, 128, 128)
    assert large.schedule.tokens == 4096
    # exp(mu) / (exp(mu) + 1 / s - 1) at s = 0.5, with mu = 1.15 at 1,024 pixels
    assert large.schedule.timesteps(2)[1] == pytest.approx(1000 * 2.71828**1.15 / (2.71828**1.15 + 1), rel=1e-4)
    assert small.schedule.timesteps(2)[1] < large.schedule.timesteps(2)[1]


def test_in_bfloat16_the_network_is_told_the_rounded_time_of_the_stock_pipeline() -> None:
    model, told = tiny_flux(dtype="bfloat16"), list[torch.Tensor]()
    handle = model.transformer.time_text_embed.register_forward_pre_hook(lambda module, args: told.append(args[0].float()))
    stock(pipeline(model), ["a cat"], [0], 7, 3.5)
    theirs, told = told, []
    handle.remove()
    model.transformer.time_text_embed.register_forward_pre_hook(lambda module, args: told.append(args[0].float()))
    model.sample([Case("x", "", "a cat", 0, 3.5)], 7)
    assert [float(t[0]) for t in told] == [float(t[0]) for t in theirs]
    assert [float(t[0]) for t in told] != pytest.approx(model.schedule.timesteps(7), abs=0.1)


def test_encodings_are_those_of_the_stock_pipeline(flux: Flux) -> None:
    with torch.no_grad():
        tokens, pooled, _ = pipeline(flux).encode_prompt(list(PROMPTS), device="cpu", max_sequence_length=TINY_T5_ROWS)
    c = flux.encode(PROMPTS)
    assert c.tokens.shape == (2, TINY_T5_ROWS, 48)
    torch.testing.assert_close(c.tokens, tokens, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(c.extras[POOLED], pooled, atol=1e-6, rtol=1e-6)
    assert c.last.tolist() == [1, 4]  # T5 has no begin token


def test_latents_are_packed_as_the_stock_pipeline_packs_them() -> None:
    from diffusers import FluxPipeline

    z = torch.randn(2, 3, 6, 4)
    assert torch.equal(packed(z), FluxPipeline._pack_latents(z, 2, 3, 6, 4))
    assert torch.equal(unpacked(packed(z), 3, 2), z)
    cpu = torch.device("cpu")
    assert torch.equal(places(3, 2, cpu), FluxPipeline._prepare_latent_image_ids(1, 3, 2, cpu, torch.float32))


def test_a_folder_a_pipeline_and_their_sizes(flux: Flux, tmp_path: Path) -> None:
    pipe = pipeline(flux)
    wrapped = load_model(pipe)
    assert isinstance(wrapped, Flux)
    assert wrapped.transformer is pipe.transformer
    assert wrapped.latent_shape == flux.latent_shape
    assert wrapped.t5_rows == 512
    pipe.save_pretrained(tmp_path / "folder")
    again = load_model(str(tmp_path / "folder"), device="cpu")
    assert isinstance(again, Flux)
    assert again.latent_shape == (4, SIDE, SIDE)
    assert (again.takes_guidance, again.usual_guidance, again.usual_steps) == (True, 3.5, 28)
    same_size = Flux.from_folder(tmp_path / "folder", dtype="float32", device="cpu", side=8, t5_rows=TINY_T5_ROWS)
    cases = [Case("x", "", "a cat", 0, 4.0)]
    assert torch.equal(same_size.sample(cases, 3), flux.sample(cases, 3))
    assert same_size.digest() == flux.digest()


# -- guidance and cost -------------------------------------------------------------------------------------------------


@DISTILLED
def test_a_picture_takes_one_evaluation_per_step(guidance: bool) -> None:
    model = tiny_flux(guidance)
    assert model.branches(1.0) == model.branches(7.0) == 1
    before = model.evals.forward
    weak, strong = (model.sample([Case("x", "", "a cat", 0, scale)], 5) for scale in (1.0, 6.0))
    assert model.evals.forward - before == 10
    assert torch.equal(weak, strong) == (not guidance)
    assert sample(model, ["a cat"]).shape == (1, 3, 16, 16)
    assert model.evals.forward - before == 10 + (28 if guidance else 4)


def test_in_losses_the_network_is_told_scale_1(flux: Flux) -> None:
    z, t, c = flux.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500.0]), flux.encode(["a cat"])
    told = dataclasses.replace(c, extras={**c.extras, GUIDANCE: torch.ones(1)})
    assert torch.equal(flux.predict(z, t, c), flux.predict(z, t, told))
    assert not torch.equal(flux.predict(z, t, c), flux.predict(z, t, flux.told(c, 3.5)[0]))


@pytest.mark.parametrize("name", GUARDS)
def test_guards_have_no_branch_to_change(name: str, flux: Flux) -> None:
    with pytest.raises(BadOption, match="no second branch"), build_guard(name).active(flux, ("cat",)):
        pass
    out = CliRunner().invoke(main, ["list", "guards", "--model", "tiny-flux"]).output
    assert out.count("REFUSED") == len(GUARDS)


def parts(model: Flux) -> dict[str, Any]:
    return {"name": "x", "scheduler": model.schedule.config, "side": 8, **{n: getattr(model, n) for n in model._kinds()}}


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_refusals(flux: Flux, tmp_path: Path) -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler, FluxImg2ImgPipeline

    pipe = pipeline(flux)
    with pytest.raises(BadFile, match="FluxImg2ImgPipeline is no pipeline"):
        load_model(
            FluxImg2ImgPipeline(**{k: v for k, v in pipe.components.items() if "image_" not in k and "extractor" not in k})
        )
    pipe.register_modules(text_encoder_2=None)
    with pytest.raises(BadFile, match="text_encoder_2"):
        load_model(pipe)
    pipe = pipeline(flux)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(BadFile, match="FlowMatchEulerDiscreteScheduler"):
        load_model(pipe)
    with pytest.raises(BadOption, match="bfloat16"):
        tiny_flux(dtype="float16")
    with pytest.raises(BadFile, match="inpainting or editing"):
        Flux(**{**parts(flux), "transformer": tiny_flux(in_channels=24, out_channels=16).transformer})
    with pytest.raises(PromptTooLong, match="17 tokens"):
        flux.encode(["a " * 16])
    save_file({"double_blocks.0.img_mod.lin.weight": torch.zeros(2)}, tmp_path / "flux.safetensors")
    with pytest.raises(BadFile, match=r"FluxTransformer2DModel\.from_single_file"):
        load_model(tmp_path / "flux.safetensors")
    save_file({"model.diffusion_model.joint_blocks.0.x.weight": torch.zeros(2)}, tmp_path / "sd3.safetensors")
    with pytest.raises(BadFile, match="single file of Stable Diffusion 3"):
        load_model(tmp_path / "sd3.safetensors")


def test_a_prompt_that_clip_cuts_is_said_to_be_cut(flux: Flux) -> None:
    flux.t5_rows = 40
    with pytest.warns(UserWarning, match="reads the first 24 of 32 tokens"):
        c = flux.encode(["a " * 30])
    assert c.tokens.shape == (1, 40, 48)


# -- text --------------------------------------------------------------------------------------------------------------


def test_vectors_stand_in_the_places_of_t5_s_words(flux: Flux) -> None:
    """A vector that is a word's own row is that word, at the first position too; CLIP reads what was written."""
    words, rows = word_rows(flux)
    dog = rows[words.index("dog")][None, None]
    for place, written in (("prefix", "dog a cat"), ("suffix", "a cat dog"), ("insert", "a dog cat"), ("replace", "dog")):
        assert place in PLACES
        c = worded(flux, ["a cat"], dog, place)
        torch.testing.assert_close(c.tokens, flux.encode([written]).tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(c.extras[POOLED], flux.encode(["a cat"]).extras[POOLED])
    assert flux.locate("cat of a cat", "cat").starts == (0, 3)
    with pytest.raises(BadOption, match="not inside the prompt"):
        flux.embed(["a cat"]).splice(2, 3, dog[0])
    v = dog.clone().requires_grad_(True)
    worded(flux, ["a cat"], v, "replace").tokens.square().sum().backward()
    assert v.grad is not None
    assert bool((v.grad != 0).any())


def test_the_text_encoder_of_a_patch_is_clip(flux: Flux) -> None:
    names = set(flux.weights(flux.select("text-encoder")))
    assert {n.partition(".")[0] for n in names} == {"text_encoder"}
    student = flux.student(flux.select("text-encoder"))
    assert student.text_encoder is not flux.text_encoder
    assert student.text_encoder_2 is flux.text_encoder_2
    with torch.enable_grad():
        for p in student.weights(flux.select("text-encoder")).values():
            p.requires_grad_(True)
        student.encode_soft(student.embed(["a cat"])).extras[POOLED].sum().backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in student.text_encoder.parameters())


# -- weights -----------------------------------------------------------------------------------------------------------


def true_size() -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


def test_selections_and_readers_match_flux_dev() -> None:
    network = true_size()
    sizes = {f"transformer.{n}": p.numel() for n, p in network.named_parameters()}
    assert sum(sizes.values()) == 11_901_408_320
    expected = {
        "text-kv": (38, 358_612_992),
        "text-attn": (152, 717_459_456),
        "text": (158, 741_848_064),
        "image-attn": (380, 1_793_648_640),
        "joint": (532, 2_511_108_096),
        "single-attn": (228, 1_076_189_184),
        "context": (2, 12_585_984),
        "pooled": (4, 11_802_624),
    }
    for name, (tensors, numbers) in expected.items():
        chosen = [n for n in sizes if FLUX_SELECTIONS[name](n)]
        assert (len(chosen), sum(sizes[n] for n in chosen)) == (tensors, numbers), name
    for alias, name in (("xattn-kv", "text-kv"), ("xattn", "text"), ("attn", "joint"), ("visual", "image-attn")):
        assert all(FLUX_SELECTIONS[alias](n) == FLUX_SELECTIONS[name](n) for n in sizes)
    found = {kind: [(r.name, r.width) for r in readers] for kind, readers in text_readers(network).items()}
    assert found == {
        "tokens": [("context_embedder.weight", 4096)],
        "pooled": [("time_text_embed.text_embedder.linear_1.weight", 768)],
    }


def test_negative_prompts_are_refused_before_anything_is_computed(flux: Flux) -> None:
    before = flux.evals.forward
    with pytest.raises(BadOption, match="guidance"), Negative().active(flux, ("cat",)):
        pass
    assert flux.evals.forward == before


def test_profiles_take_the_steps_that_the_network_draws_in() -> None:
    from efface.verbs.subject import profile_for

    dev, schnell = (profile_for(tiny_flux(guidance), "mini") for guidance in (True, False))
    assert (dev.steps, dev.guidance) == (28, 3.5)
    assert (schnell.steps, schnell.guidance) == (4, 1.0)
