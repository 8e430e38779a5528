"""AdvUnlearn: contract, cost, the patch of a text encoder, and that ours has not the faults of the official code."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from chequered import chequered

from efface.concepts.request import EraseRequest
from efface.errors import BadOption, BadRequest, NothingSelected, WrongBaseModel
from efface.methods import AdvUnlearn
from efface.models.load import load_model
from efface.models.select import selection, text_layers
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.preservation.adversary import PLACES, word_rows, worded
from efface.testing import check_method, check_resume, same, state
from efface.training.loop import Run

REQUEST = EraseRequest(("cat",), "", ("dog",))


def small(**options: Any) -> AdvUnlearn:
    return AdvUnlearn.preset("tiny", **options)


VARIANTS = [
    small(),
    small(attack="sign", attack_steps=1, warmup=0, place="suffix", tokens=2),
    small(place="insert", keep_null=False, batch=2),
    small(place="replace", retain=0, layers="1"),
    small(train="xattn", legacy_stale=True, batch=2),
    small(attack_steps=0, keep_null=False, retain=0),
]


@pytest.mark.parametrize("method", chequered(VARIANTS, ids=[str(i) for i in range(len(VARIANTS))]))
def test_contract_and_exact_cost(method: AdvUnlearn) -> None:
    patch = check_method(method, EraseRequest(("cat", "rose"), "", ("dog",)))
    assert patch.card.cost["forward"] == method.expected_evals(tiny(), EraseRequest(("cat", "rose"), "", ("dog",)))


def test_the_official_schedule_stays_below_80_000_evaluations(tiny_model: Any) -> None:
    """1,000 updates, 30 attack steps, 243 retained prompts; the formula is what the contract test counts."""
    method, names = AdvUnlearn(), [f"thing {i}" for i in range(243)]
    method_retained = dataclasses.replace(method, space="english", apart=0.0)
    assert len(method_retained.retained(tiny_model, EraseRequest(("cat",), ""))[0]) == len(names)
    assert method_retained.expected_evals(tiny_model, EraseRequest(("cat",), "")) == 73_584


def test_a_resumed_run_ends_with_the_same_bits(tiny_model: Any) -> None:
    method = small(steps=4, batch=2)
    check_resume(method, REQUEST, tiny_model)


def test_the_patch_goes_on_every_model_with_this_encoder_and_on_no_other(tmp_path: Any) -> None:
    shipped, gold = load_model("mini"), load_model("mini-gold")
    assert shipped.digest() != gold.digest()
    small_run = {"steps": 1, "warmup": 0, "attack_steps": 1, "pool": 1, "retain": 1, "batch": 1, "most": 2}
    made = AdvUnlearn.preset("mini", **small_run).erase(shipped, EraseRequest(("dog",), ""))
    made.save(tmp_path / "p.safetensors")
    patch = Patch.load(tmp_path / "p.safetensors")
    assert {n.split(".")[0] for n in patch.deltas} == {"text_encoder"}
    before, plain = state(gold), gold.encode(["a dog"]).tokens.clone()
    with patch.applied(gold):
        assert not torch.equal(gold.encode(["a dog"]).tokens, plain)
        changed = gold.encode(["a dog"]).tokens.clone()
    with patch.applied(shipped):
        assert torch.equal(shipped.encode(["a dog"]).tokens, changed)
    assert same(state(gold), before)
    assert torch.equal(gold.encode(["a dog"]).tokens, plain)
    with pytest.raises(WrongBaseModel, match="text encoder"), patch.applied(tiny()):
        pass
    of_the_unet = small(train="xattn").erase(tiny(), REQUEST)
    assert "text_encoder_digest" not in of_the_unet.card.base


# -- faults of the official code --------------------------------------------------------------------------------------


def test_fault_1_no_token_of_the_concept_is_lost(tiny_model: Any) -> None:
    """Counting words cut a concept of several tokens; every place keeps them all, in order, but "replace"."""
    rows, concept = word_rows(tiny_model)[1][:2][None], "a photo of the house"
    soft = tiny_model.embed([concept])
    n = soft.lengths[0] - 2
    seen: list[Any] = []
    encode = tiny_model.encode_soft
    tiny_model.encode_soft = lambda s: (seen.append(s), encode(s))[1]
    for place in PLACES:
        worded(tiny_model, [concept], rows, place)
    for place, s in zip(PLACES, seen, strict=True):
        text = [tuple(row.tolist()) for row in s.embeddings[0, 1 : s.lengths[0] - 1]]
        own, added = [tuple(row.tolist()) for row in soft.embeddings[0, 1 : n + 1]], [tuple(r.tolist()) for r in rows[0]]
        wanted = {
            "prefix": added + own,
            "suffix": own + added,
            "insert": own[: n // 2] + added + own[n // 2 :],
            "replace": added,
        }
        assert text == wanted[place]
    with pytest.raises(BadOption, match="prefix, suffix"):
        worded(tiny_model, [concept], rows, "middle")


def test_fault_2_the_last_attack_step_counts(tiny_model: Any) -> None:
    """One step of the sign attack moves the words by its length, and that is what the update sees; ``legacy_stale`` the old."""
    for stale in (False, True):
        method = small(attack="sign", attack_steps=1, attack_lr=0.5, legacy_stale=stale)
        pool, table = method._pool(tiny_model, REQUEST, []), word_rows(tiny_model)[1]
        student = tiny_model.student(method.select(tiny_model))
        from efface.training.loop import training

        for step in training(student, method.select(tiny_model), steps=1, lr=0.0, seed=0, run=Run()):
            got = method._attack(step, student, pool, ["cat"], table)
            off = (got[0, 0] - table).abs().amax(1).min()
            assert float(off) == pytest.approx(0.0 if stale else 0.5, abs=1e-6)
            step.minimize(loss=sum(p.sum() for p in student.weights(method.select(tiny_model)).values()))


def test_fault_3_layers_are_matched_by_number() -> None:
    names = [f"text_encoder.encoder.layers.{i}.mlp.fc1.weight" for i in range(12)]
    assert [n for n in names if text_layers("1")(n)] == [names[1]]
    assert [n for n in names if text_layers("0,11")(n)] == [names[0], names[11]]
    everything = text_layers("all")
    assert all(everything(n) for n in [*names, "text_encoder.final_layer_norm.bias"])
    assert not everything("text_encoder.embeddings.token_embedding.weight")
    assert not everything("unet.conv_in.weight")
    assert selection("text-encoder")("text_encoder.embeddings.token_embedding.weight")


def test_fault_4_a_latent_and_its_level_belong_together(tiny_model: Any) -> None:
    """The pool hands out what the walk yields at that level, with the predictions that belong to it."""
    method = small(pool=1, batch=1)
    pool = method._pool(tiny_model, REQUEST, [])
    z, eps_e, eps_0 = pool.latents["cat"][0].chunk(3, dim=1)
    walked = list(tiny_model.walk(tiny_model.encode(["cat"]), z[:1], pool.grid[:-1], method.guidance, pool.grid[-1]))
    assert [t for t, _ in walked] == pool.grid
    # One latent in a batch and alone differ by rounding only.
    assert torch.allclose(torch.cat([x for _, x in walked]), z, atol=1e-4)
    t = torch.tensor(pool.grid)
    for eps, prompt in ((eps_e, "cat"), (eps_0, "")):
        assert torch.allclose(tiny_model.predict(z, t, tiny_model.encode([prompt] * len(z))), eps, atol=1e-5)


def test_the_attack_lowers_its_own_loss(tiny_model: Any) -> None:
    patch = small(steps=4, warmup=0, attack_steps=12, attack_lr=0.05, pool=1, sampling_steps=2).erase(tiny_model, REQUEST)
    first, last = (sum(a[k] for a in patch.card.log["attacks"]) for k in ("attack_first", "attack_last"))
    assert last < first


def test_retained_prompts_take_turns_and_drop_what_is_too_near(tiny_model: Any) -> None:
    method = small(batch=2, retain=2)
    kept, dropped = method.retained(tiny_model, REQUEST)
    assert "cat" not in kept
    assert "dog" in kept
    assert not set(kept) & set(dropped)
    turns = [name for i in range(len(kept)) for name in method._turn(i, kept)]
    assert {turns.count(n) for n in kept} == {4}
    assert set(turns[: len(kept)]) == set(kept)
    with pytest.raises(BadRequest, match="apart"):
        small(apart=2.0).retained(tiny_model, EraseRequest(("cat",), ""))


def test_bad_options_are_refused(tiny_model: Any) -> None:
    with pytest.raises(BadOption, match="attack_steps"):
        small(legacy_stale=True, attack_steps=0)
    with pytest.raises(BadOption, match="train=xattn"):
        small(layers="1", train="xattn")
    with pytest.raises(BadOption, match=r"0,1,11"):
        small(layers="first")
    with pytest.raises(NothingSelected):
        small(layers="77").erase(tiny_model, REQUEST)
