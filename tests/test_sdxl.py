"""What is special to SDXL, on a tiny model of the real classes; what it shares with other families is in test_families.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import stock_xl
from safetensors.torch import save_file

from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.edits import ConceptEdit, save_lora
from efface.equations.subspace import projector
from efface.errors import BadFile, BadOption, WrongBaseModel
from efface.guards import SAFREE, SLD
from efface.guards.safree import _at, masked
from efface.methods import AP, UCE
from efface.models.base import DiffusionModel
from efface.models.cond import POOLED
from efface.models.load import load_model
from efface.models.readers import text_readers
from efface.models.sdxl import StableDiffusionXL
from efface.models.select import selection
from efface.models.tiny import tiny, tiny_xl
from efface.preservation.adversary import worded
from efface.preservation.gumbel import Gumbel
from efface.preservation.pgd import PGD, PgdSearch
from efface.registry import METHODS, build_guard
from efface.training.loop import Step


@pytest.fixture
def xl() -> StableDiffusionXL:
    return tiny_xl()


def stock(pipe: Any, prompt: str, seed: int, steps: int, guidance: float, **more: Any) -> torch.Tensor:
    """(3, H, W), from the latents that efface draws for the seed."""
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    out = pipe(prompt, latents=noise, num_inference_steps=steps, guidance_scale=guidance, output_type="pt", **more)
    return out.images[0]


def test_the_two_kinds_of_nothing_differ() -> None:
    """Else the test of the stock pictures in test_families.py could not tell whether guidance starts from zeros."""
    case = [Case("x", "", "a cat", 0, 5.0)]
    assert (tiny_xl(True).sample(case, 5) - tiny_xl(False).sample(case, 5)).abs().max() > 1e-3
    null = tiny_xl(True).unconditional(2)
    assert not null.tokens.any()
    assert not null.extras[POOLED].any()
    assert tiny_xl(True).encode([""]).tokens.any()


def test_pooled_text_reaches_the_network(xl: StableDiffusionXL) -> None:
    z, t = xl.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500])
    c, other = xl.encode(["cat"]), xl.encode(["dog"])
    mixed = dataclasses.replace(c, extras=other.extras)
    assert (xl.predict(z, t, c) - xl.predict(z, t, mixed)).abs().max() > 1e-3


def test_text_is_read_as_the_stock_pipeline_reads_it(xl: StableDiffusionXL) -> None:
    prompts = ["a cat", "", "a photo of the castle"]
    tokens, _, pooled, _ = stock_xl(xl).encode_prompt(prompts, do_classifier_free_guidance=False)
    c = xl.encode(prompts)
    torch.testing.assert_close(c.tokens, tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(c.extras[POOLED], pooled, atol=1e-5, rtol=0)
    # The second tokenizer pads otherwise; with the first one's padding its half would be another.
    xl.tokenizer_2.pad_token = xl.tokenizer.pad_token
    xl.weights_changed()
    assert (xl.encode(prompts).tokens - tokens).abs().max() > 1e-3


def test_vectors_stand_for_words_in_both_encoders(xl: StableDiffusionXL) -> None:
    prompts = ["a cat", "the photo of a bus"]
    soft, c = xl.embed(prompts), xl.encode(prompts)
    again = xl.encode_soft(soft)
    torch.testing.assert_close(again.tokens, c.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.extras[POOLED], c.extras[POOLED], atol=1e-5, rtol=0)
    word = xl.embed(["dog"]).embeddings[:, 1:2].clone().requires_grad_(True)
    told = worded(xl, ["cat"], word, "replace")
    dog = xl.encode(["dog"])
    torch.testing.assert_close(told.tokens, dog.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(told.extras[POOLED], dog.extras[POOLED], atol=1e-5, rtol=0)
    (of_tokens,) = torch.autograd.grad(told.tokens[..., :16].sum(), word, retain_graph=True)
    (of_pooled,) = torch.autograd.grad(told.extras[POOLED].sum(), word)
    assert of_tokens[..., :16].any()
    assert not of_tokens[..., 16:].any()
    assert of_pooled[..., 16:].any()
    assert not of_pooled[..., :16].any()
    assert [len(layer.tokens[0, 0]) for layer in xl.text_layers(["cat"])] == [16] * 3 + [24] * 3


def test_searched_concepts_bring_their_pooled_text(xl: StableDiffusionXL) -> None:
    scene = AP.preset("tiny", sampler="student").scene(xl, EraseRequest(("cat",)))
    step = Step(0, 0, torch.optim.Adam([torch.zeros(1)]), xl)
    gumbel = Gumbel(hard=True).begin(scene, [("dog", "bus", "rose")])
    chosen = gumbel.sample([0, 0], step)
    for k, name in enumerate(chosen.names):
        torch.testing.assert_close(chosen.cond.extras[POOLED][k], xl.encode([name]).extras[POOLED][0], atol=1e-5, rtol=0)
    chosen.cond.extras[POOLED].square().sum().backward()
    assert gumbel.pi.values[0].grad is not None
    assert gumbel.pi.values[0].grad.any()
    assert not chosen.fixed().extras[POOLED].requires_grad
    pgd = PgdSearch(scene, PGD())
    assert torch.equal(pgd.choose([0], step).cond.extras[POOLED], xl.encode(["cat"]).extras[POOLED])


def test_a_trained_erasure_erases(xl: StableDiffusionXL) -> None:
    """The target moves most of the way to "dog" at the latents it was trained on; tiny weights are random, so nothing is claimed
    beyond that."""
    from efface.methods import ESD

    method = ESD(steps=60, lr=3e-3, sampling_steps=4, sampler="pool", eta=0.0, batch=4)
    patch = method.erase(xl, EraseRequest(("cat",), "dog"))

    def gap() -> float:
        z, t = xl.noise(8, torch.Generator().manual_seed(1)), torch.full((8,), 750)
        with torch.no_grad():
            return float((xl.predict(z, t, xl.encode(["cat"] * 8)) - goal).square().mean())

    z, t = xl.noise(8, torch.Generator().manual_seed(1)), torch.full((8,), 750)
    with torch.no_grad():
        goal = xl.predict(z, t, xl.encode(["dog"] * 8))
    before = gap()
    with patch.applied(xl):
        after = gap()
    assert after < before / 2


def test_text_encoder_patches_change_both(xl: StableDiffusionXL) -> None:
    names = set(xl.weights(selection("text-encoder")))
    assert {n.partition(".")[0] for n in names} == {"text_encoder", "text_encoder_2"}
    student = xl.student(selection("text-encoder"))
    assert student.unet is xl.unet
    assert student.text_encoder_2 is not xl.text_encoder_2
    cls = METHODS["advunlearn"]
    patch = cls.preset("tiny", lr=1e-2).erase(xl, EraseRequest(("cat",)))
    assert {n.partition(".")[0] for n in patch.deltas} == {"text_encoder", "text_encoder_2"}
    before = xl.encode(["cat"])
    with patch.applied(xl):
        after = xl.encode(["cat"])
        assert (after.tokens - before.tokens).abs().max() > 1e-4
    assert torch.equal(xl.encode(["cat"]).tokens, before.tokens)
    with pytest.raises(WrongBaseModel), patch.applied(tiny()):
        pass


def test_guards_for_stock_pipelines_refuse_what_they_do_not_know(xl: StableDiffusionXL) -> None:
    safree: Any = build_guard("safree")
    sld: Any = build_guard("sld")
    pipe = stock_xl(xl)
    pipe.unet = None
    for put in (safree.pipeline_arguments, safree.guider):
        with pytest.raises(BadOption, match="StableDiffusionXLPipeline"):
            put(pipe, "a cat", ("cat",))
    with pytest.raises(BadOption, match="StableDiffusionXLPipeline"), sld.on_pipeline(pipe, ("cat",)):
        pass


def modular_xl(xl: StableDiffusionXL, pipe: Any, guider: Any) -> tuple[Any, int]:
    """A modular pipeline of the same modules with the guider, and the side of its pictures."""
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    modular: Any = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae", "scheduler")
    modular.update_components(
        **{part: getattr(pipe, part) for part in parts}, force_zeros_for_empty_prompt=xl.zero_null, guider=guider
    )
    modular.set_progress_bar_config(disable=True)
    return modular, xl.latent_shape[-1] * pipe.vae_scale_factor


FULL = SAFREE(alpha=0.0, middle=-9.0)
"""The filter runs its full length, the first two of ten steps; ENDED ends after the first on these random weights."""
ENDED = SAFREE(alpha=0.0, sharpness=1.0, middle=5.6)


@pytest.mark.parametrize(
    ("guard", "zero_null", "until"),
    [(FULL, True, 10), (FULL, False, 10), (ENDED, True, 4), (dataclasses.replace(FULL, negative=True), True, 10)],
)
def test_safree_acts_on_a_stock_pipeline_and_in_a_modular_one(guard: SAFREE, zero_null: bool, until: int) -> None:
    """A callback of a classic pipeline and a guider of a modular one draw what our own sampler draws under the guard."""
    xl = tiny_xl(zero_null)
    pipe, prompt = stock_xl(xl), "a photo of a cat"
    call: dict[str, Any] = {"num_inference_steps": 10, "output_type": "latent"}
    noise = xl.case_noise([3])
    plain = pipe(prompt, latents=noise, guidance_scale=5.0, **call).images
    with guard.active(xl, ("cat",)):
        c = xl.encode([prompt])
        ours = xl.denoise(c, noise, 10, 5.0)
    assert c.extras["until"].tolist() == [until]
    atol = 1e-3 * float(ours.abs().max())
    assert float((ours - plain).abs().max()) > 10 * atol, "the guard does nothing, so this would show nothing"
    said = guard.pipeline_arguments(pipe, prompt, ("cat",))
    torch.testing.assert_close(pipe(**said, latents=noise, guidance_scale=5.0, **call).images, ours, atol=atol, rtol=0)
    two = pipe(**said, latents=noise.repeat(2, 1, 1, 1), num_images_per_prompt=2, guidance_scale=5.0, **call).images
    torch.testing.assert_close(two, ours.repeat(2, 1, 1, 1), atol=atol, rtol=0)
    torch.testing.assert_close(pipe(prompt, latents=noise, guidance_scale=5.0, **call).images, plain, atol=0, rtol=0)
    modular, side = modular_xl(xl, pipe, guard.guider(pipe, prompt, ("cat",), guidance_scale=5.0))
    more = {"latents": noise, "height": side, "width": side, "output": "images"}
    for _ in range(2):
        torch.testing.assert_close(modular(prompt=prompt, **more, **call), ours, atol=atol, rtol=0)
    with pytest.raises(BadOption, match="made for the prompt 'a photo of a cat'"):
        modular(prompt="a photo of a dog", **more, **call)


def test_safree_takes_the_target_out_of_the_pooled_text(xl: StableDiffusionXL) -> None:
    """By the equation, from vectors that the test reads itself; without a trigger it stays."""
    guard, prompt = FULL, "a photo of a cat"
    plain, target = xl.encode([prompt]).extras[POOLED][0].double(), xl.encode(["cat"]).extras[POOLED]
    words = xl.embed([prompt])
    one_by_one = xl.encode_soft(masked(words, 0, words.lengths[0])).extras[POOLED].double()
    outside = torch.eye(len(plain), dtype=torch.float64) - projector(target)
    basis = torch.linalg.qr(one_by_one.T).Q
    with guard.active(xl, ("cat",)):
        early = _at(xl.encode([prompt]), torch.tensor([999]), 1000)
        late = _at(xl.encode([prompt]), torch.tensor([1]), 1000)
        empty = _at(xl.encode([""]), torch.tensor([999]), 1000)
    torch.testing.assert_close(early.extras[POOLED][0].double(), outside @ (basis @ (basis.T @ plain)), atol=1e-5, rtol=1e-4)
    assert (early.extras[POOLED][0] - plain).abs().max() > 1e-2
    assert float((projector(target) @ early.extras[POOLED][0].double()).norm()) < 1e-5, "nothing of the target is left"
    assert torch.equal(late.extras[POOLED][0].double(), plain)
    assert torch.equal(empty.extras[POOLED], xl.encode([""]).extras[POOLED])


def test_sld_acts_on_a_stock_pipeline_and_in_a_modular_one(xl: StableDiffusionXL) -> None:
    """Hooks of a classic pipeline and a guider of a modular one draw what our own sampler draws under the guard."""
    pipe, guard = stock_xl(xl), SLD(strength="max")
    call: dict[str, Any] = {"num_inference_steps": 6, "output_type": "latent"}
    noise = xl.case_noise([3])
    plain = pipe("a dog", latents=noise, guidance_scale=5.0, **call).images
    with guard.on_pipeline(pipe, ("cat",)):
        classic = pipe("a dog", latents=noise, guidance_scale=5.0, **call).images
    assert torch.equal(pipe("a dog", latents=noise, guidance_scale=5.0, **call).images, plain)
    with guard.active(xl, ("cat",)):
        ours = xl.denoise(xl.encode(["a dog"]), noise, 6, 5.0)
    atol = 1e-3 * float(ours.abs().max())
    assert float((classic - plain).abs().max()) > 10 * atol, "the guard does nothing, so this would show nothing"
    torch.testing.assert_close(classic, ours, atol=atol, rtol=0)
    modular, side = modular_xl(xl, pipe, guard.guider(pipe, ("cat",), guidance_scale=5.0))
    for _ in range(2):  # the momentum of one image must not reach the next
        drawn = modular(prompt="a dog", latents=noise, height=side, width=side, output="images", **call)
        torch.testing.assert_close(drawn, ours, atol=atol, rtol=0)
    assert modular.guider.num_conditions == 3
    with pytest.raises(BadOption, match="guidance"):
        guard.guider(pipe, ("cat",), guidance_scale=1.0)


def test_a_patch_and_a_lora_show_in_the_stock_stock_xl(xl: StableDiffusionXL, tmp_path: Path) -> None:
    pipe = stock_xl(xl)
    assert isinstance(load_model(pipe), StableDiffusionXL)
    plain = stock(pipe, "a cat", 0, 4, 5.0)
    patch = UCE().erase(load_model(pipe), EraseRequest(("cat",), "dog"))
    with patch.applied(load_model(pipe)):
        patched = stock(pipe, "a cat", 0, 4, 5.0)
    assert (patched - plain).abs().max() > 1e-3
    assert torch.equal(stock(pipe, "a cat", 0, 4, 5.0), plain)
    kept = ConceptEdit.of(xl)
    kept.erase("cat", *xl.encode(["cat"]).aligned(xl.encode(["dog"]), "last..end"))
    path = tmp_path / "edit.safetensors"
    save_lora(path, xl.weights(selection("xattn-kv")), kept.solve())
    pipe.load_lora_weights(str(path))
    assert (stock(pipe, "a cat", 0, 4, 5.0) - plain).abs().max() > 1e-3


def test_a_closed_form_edit_of_the_tokens_alone_leaves_a_second_way_in(xl: StableDiffusionXL) -> None:
    """What is left of the difference between two concepts that are to act alike, with and without the pooled text."""
    z, t = xl.noise(4, torch.Generator().manual_seed(0)), torch.tensor([900, 600, 300, 100])

    def out(name: str) -> torch.Tensor:
        return xl.predict(z, t, xl.encode([name] * 4))

    cat, dog = out("cat"), out("dog")
    left = {}
    for pooled in (True, False):
        patch = UCE(rows="all", lam=1e-6, pooled=pooled).erase(xl, EraseRequest(("cat",), "dog"))
        assert any("add_embedding" in n for n in patch.deltas) == pooled
        with patch.applied(xl):
            left[pooled] = float((out("cat") - dog).norm() / (cat - dog).norm())
            times = xl.weights(lambda n: n == "unet.add_embedding.linear_1.weight")["unet.add_embedding.linear_1.weight"]
            kept = times[:, 24:].clone()
        assert torch.equal(kept, xl.weights(lambda n: n == "unet.add_embedding.linear_1.weight").popitem()[1][:, 24:])
    assert left[True] < 0.01 < 0.5 < left[False]


def test_preserved_concepts_keep_their_pooled_text(xl: StableDiffusionXL) -> None:
    def pooled(name: str) -> torch.Tensor:
        w = xl.weights(lambda n: n == "unet.add_embedding.linear_1.weight")["unet.add_embedding.linear_1.weight"]
        return w[:, :24] @ xl.encode([name]).extras[POOLED][0]

    before, moved = pooled("bus"), {}
    for preserve in ((), ("bus",)):
        patch = UCE(preserve_scale=100.0).erase(xl, EraseRequest(("cat",), "dog", preserve))
        with patch.applied(xl):
            moved[preserve] = float((pooled("bus") - before).norm() / before.norm())
    assert moved[("bus",)] < moved[()] / 5


def test_folders_refiners_and_foreign_files(xl: StableDiffusionXL, tmp_path: Path) -> None:
    stock_xl(xl).save_pretrained(tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert isinstance(again, StableDiffusionXL)
    assert again.digest() == xl.digest()
    case = [Case("x", "", "a cat", 0, 5.0)]
    assert torch.equal(again.sample(case, 3), xl.sample(case, 3))
    index = tmp_path / "m" / "model_index.json"
    facts = json.loads(index.read_text("utf-8"))
    index.write_text(json.dumps({**facts, "_class_name": "StableDiffusionXLImg2ImgPipeline"}))
    with pytest.raises(BadFile, match="is a StableDiffusionXLImg2ImgPipeline"):
        load_model(tmp_path / "m")
    refiner = stock_xl(xl)
    refiner.text_encoder = None
    with pytest.raises(BadFile, match="refiner"):
        load_model(refiner)
    shifted = tiny_xl()
    shifted.vae.register_to_config(latents_mean=[0.0] * 4)
    with pytest.raises(BadFile, match="latents by a mean"):
        load_model(stock_xl(shifted))
    save_file({"conditioner.embedders.1.model.ln_final.weight": torch.zeros(2)}, tmp_path / "xl.safetensors")
    with pytest.raises(BadFile, match="as an SDXL checkpoint"):
        load_model(tmp_path / "xl.safetensors")


def test_half_precision_decodes_in_float32(xl: StableDiffusionXL) -> None:
    z = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = xl.decode(z)
    xl.vae.half()
    # 5e-3: the VAE's weights were rounded to half precision; the arithmetic was not.
    torch.testing.assert_close(xl.decode(z.half()), exact, atol=5e-3, rtol=0)
    assert next(xl.vae.parameters()).dtype == torch.float16
    assert xl.decode(z.half()).dtype == torch.float32


def test_true_size() -> None:
    """SDXL's own network, without weights: what an edit and a trained selection touch."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    names = {f"unet.{n}": p for n, p in unet.named_parameters()}
    assert sum(p.numel() for p in names.values()) == 2_567_463_684
    kv = [p for n, p in names.items() if selection("xattn-kv")(n)]
    assert len(kv) == 140
    assert {p.shape[1] for p in kv} == {2048}
    assert [r.width for r in text_readers(unet)["pooled"]] == [1280]


def test_it_is_a_diffusion_model(xl: StableDiffusionXL) -> None:
    assert isinstance(load_model("tiny-xl"), DiffusionModel)
    assert load_model("tiny-xl").digest() == xl.digest()
    assert xl.info["cross_attention_dim"] == 40
    assert xl.pixels == (16, 16)
