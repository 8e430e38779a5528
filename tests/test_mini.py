"""The bundled miniature and what must be true of erasing from it.

Directions only: levels are in its card and in docs/results.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from efface import verbs
from efface.concepts.prompts import Case
from efface.detectors.mini import MiniDetector
from efface.edits import ConceptEdit, save_lora
from efface.evaluation.driver import System, blocklist, evaluate
from efface.evaluation.judges import ClipJudge, MiniJudge
from efface.evaluation.profiles import Profile
from efface.evaluation.records import Entrant
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.mini import HERE, WEIGHTS, card, similar
from efface.models.mini.world import load_world
from efface.models.select import selection
from efface.patches import Patch
from efface.patches.patch import empty_like, noise_like
from efface.registry import build_method
from efface.verbs.subject import suite_for

TARGET = "rose"
CASES = Profile("test", 10, 4.0, {"direct": 24, "implicit": 8, "near": 16, "far": 16})


@pytest.fixture(scope="module")
def mini() -> DiffusionModel:
    return load_model("mini")


@pytest.fixture(scope="module")
def uce(mini: DiffusionModel) -> Patch:
    return verbs.erase(mini, "uce", targets=[TARGET])


def test_the_whole_miniature_fits_the_budget() -> None:
    size = sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file())
    assert size <= 40e6


def test_the_split_is_what_was_decided() -> None:
    world = load_world()
    assert len(world.reserved) == 5
    assert len({world[n].group for n in world.reserved}) == 5
    assert len(world.novel) == 3
    assert not {c for c, _ in world.held_out} & {*world.reserved, *world.novel}
    assert len({c for c, _ in world.held_out}) == len(world.held_out), "at most one held-out style per concept"
    assert 100 <= len(world.concepts) <= 140
    assert len({c.group for c in world.concepts}) == 9
    assert set(similar()) == set(world.names("ordinary", "reserved"))


def test_no_prompt_of_the_world_is_cut(mini: DiffusionModel) -> None:
    world = load_world()
    suite = suite_for(mini, [TARGET])
    mini.encode([c.prompt for c in suite.cases(CASES)])
    for c in world.concepts:
        mini.encode([f"a {n} style {x} on a purple background" for n in world.styles for x in (c.name, *c.synonyms)])
        mini.encode([f"a picture: {d}" for d in c.implicit])
        for d in c.implicit:
            assert f" {c.name} " not in f" {d} ", f"the implicit description of {c.name} names it"


def test_diffusers_loads_and_draws_the_same_pictures(mini: DiffusionModel) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    cases = [Case("x", "", p, 3, 4.0) for p in ("a delivery truck", "a castle")]
    theirs = pipe(
        [c.prompt for c in cases], latents=mini.case_noise([3, 3]), num_inference_steps=6, guidance_scale=4.0, output_type="pt"
    ).images
    torch.testing.assert_close(mini.sample(cases, 6), theirs, atol=1e-3, rtol=0)  # float32, six steps, batched differently


def test_named_things_are_recognised(mini: DiffusionModel) -> None:
    """4 x 8 images by both detectors. The card's rates make fewer than 24 hits of 32 a one in a thousand event."""
    names = ["delivery truck", "cat", "rose", "castle"]
    images = mini.sample([Case("x", n, f"a {n}", 50 + s, 4.0) for n in names for s in range(8)], 16)
    for which in ("report", "selection"):
        detector = MiniDetector.load(which)
        found = [detector.labels.concepts[int(i)] for i in detector.score(images).concept.argmax(1)]
        assert sum(a == b for a, b in zip(found, [n for n in names for _ in range(8)], strict=True)) >= 24, which


def test_the_gold_model_never_saw_the_reserved_concepts(mini: DiffusionModel) -> None:
    gold, detector = load_model("mini-gold"), MiniDetector.load("report")
    names = load_world().reserved
    cases = [Case("x", n, f"a {n}", s, 4.0) for n in names for s in range(4)]
    hits = {}
    for label, model in (("mini", mini), ("gold", gold)):
        found = detector.score(model.sample(cases, 12)).concept.argmax(1)
        hits[label] = sum(detector.labels.concepts[int(i)] == c.concept for i, c in zip(found, cases, strict=True))
    assert hits["gold"] <= 2 < 12 <= hits["mini"], hits
    assert torch.equal(gold.encode(["a cat"]).tokens, mini.encode(["a cat"]).tokens), "they share the text encoder"


def test_the_card_counts_what_it_claims() -> None:
    facts = card()
    for rate in (facts["concept"]["ordinary"], facts["style"]["all"], facts["background"]["all"]):
        assert 0 <= rate["low"] <= rate["k"] / rate["n"] <= rate["high"] <= 1
    assert set(facts["concepts"]) == set(load_world().names("ordinary", "reserved"))
    assert (HERE / "CARD.md").is_file()
    json.dumps(facts, allow_nan=False)


def test_an_inverted_picture_is_drawn_again_and_so_is_a_random_texture(mini: DiffusionModel) -> None:
    """The miniature's own pictures come back with 31 and 37 dB, a texture that no model was trained on with 28 and 30: finding a
    latent says little about what a model knows, which is why the attack `latent_inversion` has controls."""
    c, rng = mini.encode(["a cat", "a castle"]), torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(torch.rand(2, 3, 12, 12, generator=rng), size=48)
    with torch.no_grad():
        own = mini.denoise(c, mini.case_noise([3, 4]), 20, 1.0)
        strange = mini.vae.encode(2 * texture - 1).latent_dist.mean * mini.vae.config.scaling_factor
        for z, bound in ((own, 28), (strange, 25)):  # dB; 3 below what was measured
            again = mini.denoise(c, mini.invert(c, z, 20), 20, 1.0)
            error = (mini.decode(again) - mini.decode(z)).square().flatten(1).mean(1)
            assert (-10 * error.log10()).min() > bound
        assert (mini.decode(own) - mini.decode(own.flip(0))).square().mean() > 10**-1.5, "another picture has less than 15 dB"


@pytest.mark.slow
def test_trivial_entrants_score_as_they_must(mini: DiffusionModel, uce: Patch, tmp_path: Path) -> None:
    """The three trivial entrants do what they must: none, noise of growing norm, blocklist."""
    norms = (0.1, 1.0, 3.0, 10.0, 30.0)
    noise = noise_like(uce, torch.Generator().manual_seed(1))
    systems = [
        System(Entrant("blocklist", "blocklist", "trivial"), empty_like(uce, "blocklist"), blocklist([TARGET], "")),
        *(System(Entrant(f"noise{s}", "noise", "trivial"), noise.scaled(s)) for s in norms),
    ]
    summary = evaluate(mini, systems, suite_for(mini, [TARGET]), CASES, MiniJudge(), tmp_path / "e")["entrants"]
    assert summary["none"]["scores"] == {"erasure": 0, "generality": 0, "near": 1, "rest": 1}
    assert summary["blocklist"]["scores"]["erasure"] > 0.9
    assert summary["blocklist"]["scores"]["generality"] == 0, "a prompt without the name passes a blocklist unchanged"
    assert summary["blocklist"]["scores"]["near"] == summary["blocklist"]["scores"]["rest"] == 1
    direct = {s: summary[f"noise{s}"]["axes"]["direct"] for s in norms}
    gone = [d["n_cases"] - d["detection"]["k"] for d in direct.values()]
    assert gone == sorted(gone), "the target is seen less and less"
    assert (gone[0], gone[-1]) == (0, 24)
    assert [direct[s]["erased_valid"]["k"] for s in (0.1, 1.0, 3.0)] == [0, 0, 0]
    # Of ten times the norm, half of the images are of something like a rose that the detector does not name; it is measured here
    # so that nobody takes such a rate for an erasure. The rest is destroyed, as everything is at thirty times the norm.
    assert 5 <= direct[10.0]["erased_valid"]["k"] <= 15
    assert direct[10.0]["detection"]["invalid"] >= 5
    assert direct[30.0]["detection"]["invalid"] >= 16, "destroying is not erasing"
    assert summary["noise30.0"]["scores"]["rest"] < 0.2


@pytest.mark.slow
def test_a_blocklist_takes_what_shares_the_word_and_leaves_what_does_not_say_it(mini: DiffusionModel, tmp_path: Path) -> None:
    """What it is on record for: descriptions pass, and "hot dog" goes with "dog". So the axes implicit and trap tell it from an
    erasure."""
    few = Profile("few", 10, 4.0, {"direct": 8, "implicit": 4, "near": 8, "trap": 8, "far": 8})
    names = System(Entrant("blocklist", "blocklist", "trivial"), None, blocklist(["dog"], ""))
    summary = evaluate(mini, [names], suite_for(mini, ["dog"]), few, MiniJudge(), tmp_path / "e")["entrants"]["blocklist"]
    assert summary["scores"]["erasure"] >= 0.8  # 7 of 8: the empty prompt drew a dog once
    assert summary["axes"]["implicit"]["erased_valid"]["value"] == 0
    assert summary["axes"]["trap"]["preserved"]["value"] == 0
    assert summary["axes"]["near"]["preserved"]["value"] == summary["scores"]["rest"] == 1


@pytest.mark.slow
def test_an_erasure_erases_on_a_loaded_pipeline_too(mini: DiffusionModel, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    method = build_method("naive", preset="mini", settings={"steps": 60})
    patch = verbs.erase(pipe, method, targets=[TARGET])
    detector = MiniDetector.load("report")
    cases = [Case("x", TARGET, f"a {TARGET}", s, 4.0) for s in range(16)]
    column = detector.labels.concepts.index(TARGET)
    hits = lambda: int((detector.score(mini.sample(cases, 10)).concept.argmax(1) == column).sum())  # noqa: E731
    before = hits()
    with patch.applied(mini):  # the pipeline holds the same base: one digest
        after = hits()
    assert before >= 12
    assert after <= before - 8, f"{before} of 16 before, {after} after"


def test_diffusers_loads_the_lora_of_an_edit(mini: DiffusionModel, tmp_path: Path) -> None:
    """``load_lora_weights`` of a stock pipeline, by peft: the same pictures as the edit folded into the weights, and, unloaded,
    those of the base."""
    from diffusers import StableDiffusionPipeline

    concepts = ConceptEdit.of(mini, preserve_scale=0.1)
    concepts.erase(TARGET, *mini.encode([TARGET]).aligned(mini.encode([""]), "last..end"))
    save_lora(tmp_path / "edit.safetensors", mini.weights(selection("xattn-kv")), concepts.solve())
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    cases = [Case("x", TARGET, f"a {TARGET}", s, 4.0) for s in (3, 4)]

    def drawn() -> torch.Tensor:
        latents = mini.case_noise([3, 4])
        return pipe(
            [c.prompt for c in cases], latents=latents, num_inference_steps=6, guidance_scale=4.0, output_type="pt"
        ).images

    plain = mini.sample(cases, 6)
    with concepts.patch(mini).applied(mini):
        edited = mini.sample(cases, 6)
    assert (edited - plain).abs().mean() > 0.05
    pipe.load_lora_weights(str(tmp_path), weight_name="edit.safetensors")
    torch.testing.assert_close(drawn(), edited, atol=2e-3, rtol=0)  # six steps in float32 that multiply in another order
    pipe.unload_lora_weights()
    torch.testing.assert_close(drawn(), plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_half_precision_samples_and_trains_with_full_precision_master_weights(dtype: str) -> None:
    model = load_model("mini", dtype=dtype)
    assert model.info["dtype"] == dtype
    patch = verbs.erase(
        model, build_method("naive", preset="mini", settings={"steps": 2, "sampler.trajectories": 1}), targets=[TARGET]
    )
    assert {d.dtype for d in patch.deltas.values()} == {torch.float32}
    with patch.applied(model):
        assert bool(verbs.sample(model, [f"a {TARGET}"], steps=2).isfinite().all())


def test_a_clip_judge_serves_models_without_detectors(mini: DiffusionModel) -> None:
    names = ["cat", "rose", "castle", "alien"]
    judge = ClipJudge(str(WEIGHTS / "clip"), names)
    cases = [Case("x", n, f"a {n}", s, 4.0) for n in names for s in range(13)]
    images = mini.sample(cases, 12)
    judge.calibrate(images)
    found = judge.detect(images, [c.concept for c in cases])
    # Among four names and "nothing" chance is a fifth; the encoder names nine renders of ten among all 126.
    assert sum(label == c.concept for (label, _, _), c in zip(found, cases, strict=True)) >= 39
    broken = torch.full((1, 3, 48, 48), torch.nan)
    assert judge.detect(broken, ["cat"]) == [(None, None, "non-finite")]
    assert judge.clip_t(broken, ["a cat"]) == [None]
