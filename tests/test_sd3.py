"""Stable Diffusion 3 on a tiny model of the real classes: the same pictures as the stock pipeline, and every method on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from efface.attacks import Deployed
from efface.cli.main import main
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, PromptTooLong, UnknownName, WrongBaseModel
from efface.methods import AP, ESD, UCE, Naive
from efface.methods.ablation import ConceptAblation
from efface.models.base import DiffusionModel
from efface.models.capabilities import CAPABILITIES
from efface.models.cond import POOLED
from efface.models.flow import flow_schedule_of
from efface.models.identity import same_base
from efface.models.load import load_model
from efface.models.readers import text_readers
from efface.models.sd3 import StableDiffusion3
from efface.models.select import MMDIT_SELECTIONS
from efface.models.tiny import TINY_T5_ROWS, tiny, tiny_sd3
from efface.patches.export import export, residual
from efface.patches.foreign import import_patch
from efface.registry import ATTACKS, GUARDS, METHODS, build_guard
from efface.testing import check_attack, check_method, check_resume, same, state

REQUEST = EraseRequest(("cat", "rose"), "", ("bus",))
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
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_pictures_are_those_of_the_stock_pipeline(t5: bool, guidance: float) -> None:
    model = tiny_sd3(t5)
    cases = [Case("x", "", prompt, seed, guidance) for seed, prompt in enumerate(PROMPTS)]
    together = stock(model._pipeline()[0], list(PROMPTS), [0, 1], 5, guidance, TINY_T5_ROWS)
    # 1e-5: float32 sums in another order; pictures of other prompts differ by more than 1e-3.
    torch.testing.assert_close(model.sample(cases, 5), together, atol=1e-5, rtol=0)
    for i, prompt in enumerate(PROMPTS):
        alone = stock(model._pipeline()[0], [prompt], [i], 5, guidance, TINY_T5_ROWS)
        torch.testing.assert_close(model.sample([cases[i]], 5), alone, atol=1e-5, rtol=0)
    other = model.sample([Case("x", "", "a dog", 1, guidance)], 5)
    assert (other - together[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("shift", [{"shift": 1.0}, {"shift": 3.0}, {"use_dynamic_shifting": True, "shift": 3.0}])
def test_every_level_of_the_walk_is_the_stock_pipeline_s(shift: dict[str, Any], sd3: StableDiffusion3) -> None:
    model = StableDiffusion3(**{**parts(sd3), "scheduler": {"num_train_timesteps": 1000, **shift}})
    pipe, seen = model._pipeline()[0], []

    def keep(pipe: Any, i: int, t: torch.Tensor, kwargs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((float(t), kwargs["latents"].clone()))
        return kwargs

    pipe.set_progress_bar_config(disable=True)
    noise = model.noise(1, torch.Generator().manual_seed(0))
    more = {"height": 16, "width": 16, "output_type": "latent", "max_sequence_length": TINY_T5_ROWS}
    pipe("a cat", latents=noise, num_inference_steps=6, guidance_scale=4.0, callback_on_step_end=keep, **more)
    ours = list(model.walk(model.encode(["a cat"]), noise, model.schedule.timesteps(6), 4.0))
    assert [t for t, _ in ours] == [t for t, _ in seen] + [0.0]
    for (_, z), (_, theirs) in zip(ours[1:], seen, strict=True):
        torch.testing.assert_close(z, theirs, atol=1e-5, rtol=1e-5)


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


def test_what_is_lacking_is_named_where_methods_are_listed(sd3: StableDiffusion3) -> None:
    assert set(sd3.lacking) <= set(CAPABILITIES)
    out = CliRunner().invoke(main, ["list", "methods", "--model", "tiny-sd3"]).output.splitlines()
    refused = {line.split()[0] for line in out if "REFUSED" in line}
    # tiny presets; ablation's own default detaches the start token
    assert refused == {"ablation", "forget-me-not", "kpop", "mace", "time", "trce"}
    assert "REFUSED" not in CliRunner().invoke(main, ["list", "methods", "--model", "tiny"]).output


# -- every method, guard and attack ------------------------------------------------------------------------------------


@pytest.mark.parametrize("t5", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_contract_or_names_the_reason(name: str, t5: bool) -> None:
    method, model = METHODS[name].preset("tiny"), tiny_sd3(t5)
    request = EraseRequest(("cat",)) if name == "forget-me-not" else REQUEST
    if any(need in model.lacking for need in method.needs):
        before = model.evals.forward
        with pytest.raises(BadOption, match="does not offer"):
            method.erase(model, request)
        assert model.evals.forward == before, "refused after something was computed"
        return
    patch = check_method(method, request, model)
    if getattr(method, "train", "xattn") == "xattn":
        assert not any(".attn2." in n for n in patch.deltas)
    assert not any(n.startswith("text_encoder_3") for n in patch.deltas)


@pytest.mark.parametrize(
    "method",
    [
        AP.preset("tiny", sampler="noised"),
        AP.preset("tiny", sampler="pool", solver="dpm"),
        ESD.preset("tiny", loss_space="x0", sampler="frozen"),
        ESD.preset("tiny", train="context"),
        Naive.preset("tiny", train="joint", loss_space="eps"),
        ConceptAblation.preset("tiny", detach_start=False),
        UCE(rows="all"),
        UCE.preset("sealed", prior_scale=0.5, prior="vocabulary"),
    ],
    ids=lambda m: f"{m.name}-{getattr(m, 'train', '')}-{getattr(m, 'loss_space', '')}",
)
def test_variants(method: Any, sd3: StableDiffusion3) -> None:
    patch = check_method(method, REQUEST, sd3)
    if hasattr(method, "train"):
        assert all(sd3.select(method.train)(n) for n in patch.deltas)


def test_resume_is_bit_exact(sd3: StableDiffusion3) -> None:
    check_resume(AP.preset("tiny", steps=4, sampler="noised"), EraseRequest(("cat",)), sd3)


@pytest.mark.parametrize("name", GUARDS)
def test_every_guard_changes_pictures_or_names_the_reason(name: str) -> None:
    guard, case = build_guard(name), [Case("x", "", "a photo of the cat", 0, 5.0)]
    for model in (tiny_sd3(), tiny_sd3(t5=False)):
        plain = model.sample(case, 4)
        if any(need in model.lacking for need in guard.needs):
            with pytest.raises(BadOption, match="does not offer"), guard.active(model, ("cat",)):
                pass
            continue
        with guard.active(model, ("cat",)):
            assert not torch.equal(model.sample(case, 4), plain)
        assert torch.equal(model.sample(case, 4), plain)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_its_contract(name: str) -> None:
    model, attack, patch = tiny_sd3(), ATTACKS[name].preset("tiny"), None
    if name == "inverse":  # context_embedder is wider than high: without a ridge there is more than one way back
        attack, patch = ATTACKS[name](ridge=1e-3), UCE().erase(model, EraseRequest(("cat",)))
    if name == "restore":
        patch = UCE().erase(model, EraseRequest(("cat",)))
    check_attack(attack, Deployed(model, 2, ("cat",), patch), budget=60)


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


def test_only_selected_tensors_change_and_the_frozen_network_stays(sd3: StableDiffusion3) -> None:
    before = state(sd3)
    z, t, c = sd3.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500.0]), sd3.encode(["a dog"])
    out = sd3.predict(z, t, c)
    patch = ESD.preset("tiny", train="text-kv", lr=1e-2).erase(sd3, EraseRequest(("cat",)))
    assert set(patch.deltas) == {n for n in before if sd3.select("text-kv")(n)}
    assert torch.equal(sd3.predict(z, t, c), out)
    with patch.applied(sd3):
        assert not torch.equal(sd3.predict(z, t, c), out)
    assert same(state(sd3), before)


def test_a_closed_form_is_a_filter_of_the_text(sd3: StableDiffusion3) -> None:
    """The network under the patch equals the original one fed with T c and T' y: at every block, to rounding."""
    from efface.edits.forms import text_filter
    from efface.equations.closed_form import moved

    method, request = UCE(rows="all", pooled=True), EraseRequest(("cat",), "dog", ("bus",))
    source, goal = method._pairs(sd3, request)
    tokens, pooled = method._solve(sd3, request, *source.aligned(goal, "all")), method._pooled_edit(sd3, request, source, goal)
    patch = method.erase(sd3, request)
    assert set(patch.deltas) == {
        "transformer.context_embedder.weight",
        "transformer.time_text_embed.text_embedder.linear_1.weight",
    }
    z, t, c = sd3.noise(2, torch.Generator().manual_seed(0)), torch.tensor([500.0, 900.0]), sd3.encode(["a cat", "the bus"])
    fed = text_filter(tokens, c)
    fed = dataclasses.replace(fed, extras={POOLED: moved(pooled, c.extras[POOLED]).to(z)})
    by_text, plain = sd3.predict(z, t, fed), sd3.predict(z, t, c)
    with patch.applied(sd3):
        by_weights = sd3.predict(z, t, c)
    # 1e-4: the filter is in float64, the folded weights in float32; the edit itself moves the output by more than 0.01.
    torch.testing.assert_close(by_weights, by_text, atol=1e-4, rtol=1e-4)
    assert (by_weights - plain)[0].abs().max() > 1e-2


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


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t5", [True, False])
def test_a_folder_is_read_by_the_stock_pipeline_and_by_us(t5: bool, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    model = tiny_sd3(t5)
    patch = ESD.preset("tiny", lr=1e-2).erase(model, EraseRequest(("cat",)))
    export(patch, model, tmp_path / "erased", "folder")
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(str(tmp_path / "erased"), **absent)
    case = [Case("x", "", "a cat", 3, 4.0)]
    plain = model.sample(case, 4)
    with patch.applied(model):
        ours = model.sample(case, 4)
    torch.testing.assert_close(stock(pipe, ["a cat"], [3], 4, 4.0, TINY_T5_ROWS), ours, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 1e-3
    again = load_model(str(tmp_path / "erased"), device="cpu")
    with pytest.raises(WrongBaseModel):
        patch.check_base(again)


@pytest.mark.parametrize("train", ["text-kv", "text-attn", "text", "context"])
def test_a_lora_of_diffusers_loads_and_acts(train: str, sd3: StableDiffusion3, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    patch = ESD.preset("tiny", lr=1e-2, train=train).erase(sd3, EraseRequest(("cat",)))
    facts = export(patch, sd3, tmp_path / "lora.safetensors", "diffusers")
    assert facts["residual"] <= 1e-3
    case = [Case("x", "", "a cat", 3, 4.0)]
    with patch.applied(sd3):
        ours = sd3.sample(case, 4)
    pipe = tiny_sd3()._pipeline()[0]
    plain = stock(pipe, ["a cat"], [3], 4, 4.0, TINY_T5_ROWS)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    theirs = stock(pipe, ["a cat"], [3], 4, 4.0, TINY_T5_ROWS)
    # 1e-3: what the LoRA may leave out of the patch
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert (theirs - plain).abs().max() > 5e-3


def test_kohya_s_names_are_refused(sd3: StableDiffusion3, tmp_path: Path) -> None:
    patch = ESD.preset("tiny", train="text-kv").erase(sd3, EraseRequest(("cat",)))
    for to in ("kohya", "diff"):
        with pytest.raises(BadOption, match="diffusers"):
            export(patch, sd3, tmp_path / "x.safetensors", to)


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


# -- what main's checks say of this family -----------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_a_lora_is_read_back_as_the_patch(named: bool, sd3: StableDiffusion3, tmp_path: Path) -> None:
    """Also without ``transformer.`` in front of the names; a model with a UNet refuses both by their kind."""
    pytest.importorskip("peft")
    patch = ESD.preset("tiny", lr=1e-2, train="text-kv").erase(sd3, EraseRequest(("cat",)))
    export(patch, sd3, tmp_path / "lora.safetensors", "diffusers")
    tensors = load_file(tmp_path / "lora.safetensors")
    save_file(tensors if named else {n.removeprefix("transformer."): t for n, t in tensors.items()}, tmp_path / "x.safetensors")
    found = import_patch(sd3, tmp_path / "x.safetensors", targets=["cat"])
    assert residual(patch, found.deltas) <= 1e-3
    with pytest.raises(BadFile, match="SD3 or FLUX"):
        import_patch(tiny(), tmp_path / "x.safetensors", targets=["cat"])


def test_the_identity_knows_t5_and_its_rows(sd3: StableDiffusion3, no_t5: StableDiffusion3) -> None:
    rows = StableDiffusion3(**{**parts(sd3), "t5_rows": sd3.t5_rows - 1})
    other = tiny_sd3()
    next(other.text_encoder_3.parameters()).data[0, 0] += 1
    for model in (no_t5, rows, other):
        assert not same_base({**model.info, **model.identity()}, {**sd3.info, **sd3.identity()})
    half = tiny_sd3(dtype="bfloat16")
    assert same_base({**half.info, **half.identity()}, {**sd3.info, **sd3.identity()})


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
