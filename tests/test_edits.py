"""Closed-form edits as things to keep: four equal forms, an exact state, the way back, and every family's text inputs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.edits import BringBack, ConceptEdit, facts, filtered, folded, forms, lora, save_lora, text_filter, to_patch
from efface.edits.forms import OTHERS, side_effect
from efface.equations.closed_form import Edit, apply_edit, moved, sealed, shared_edit, span
from efface.errors import BadFile, BadOption, BadRequest, NothingSelected, PromptTooLong, UnknownName, WrongBaseModel
from efface.methods import ESD, UCE
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.readers import read_part, text_readers
from efface.models.select import selection
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.testing import same, state

F64 = torch.float64
KV = selection("xattn-kv")
CASES = [Case("x", "", p, s, 4.0) for s, p in enumerate(["cat", "a dog", "a photo of the rose"])]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edit_of(model: DiffusionModel, target: str = "cat", anchor: str = "bus") -> Edit:
    x, y = model.encode([target]).aligned(model.encode([anchor]), "last..end")
    q = model.encode(["dog"]).rows("all")
    return shared_edit(x, y, torch.ones(len(x)), q, torch.full((len(q),), 0.1), 0.5)


# -- four forms --------------------------------------------------------------------------------------------------


def test_four_forms_draw_the_same_pictures(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Folded weights, Patch, LoRA and text filter: three samplings in float32 that round at different places."""
    edit, base = edit_of(tiny_model), tiny_model.weights(KV)
    plain = tiny_model.sample(CASES, 4)
    card = UCE().card(tiny_model, EraseRequest(("cat",)), tiny_model.evals.snapshot())
    patch, by_hand = to_patch(base, edit, card), folded(base, edit)
    with patch.applied(tiny_model):
        drawn = {"patch": tiny_model.sample(CASES, 4)}
        for n, w in by_hand.items():  # W + (W' - W) in float32: the last bit may differ
            torch.testing.assert_close(tiny_model.weights(KV)[n].detach(), w, atol=1e-6, rtol=1e-6)
    with filtered(tiny_model, edit):
        drawn["filter"] = tiny_model.sample(CASES, 4)
    assert "encode" not in vars(tiny_model), "the filter stays on the model"
    save_lora(tmp_path / "l.safetensors", base, edit)
    factors = load_file(tmp_path / "l.safetensors")
    names = [n.removesuffix(".weight") for n in base]
    deltas = {f"{n}.weight": factors[f"{n}.lora_B.weight"] @ factors[f"{n}.lora_A.weight"] for n in names}
    with Patch(deltas, card).applied(tiny_model):
        drawn["lora"] = tiny_model.sample(CASES, 4)
    for form, images in drawn.items():
        torch.testing.assert_close(images, drawn["patch"], atol=1e-4, rtol=0, msg=form)
        assert (images - plain).abs().max() > 1e-2, f"{form}: the edit does nothing, so this shows nothing"


@pytest.mark.parametrize("target", ["cat", "a photo of the rose"])
def test_forms_agree_on_the_network_output(tiny_model, target: str) -> None:  # type: ignore[no-untyped-def]
    edit, base = edit_of(tiny_model, target), tiny_model.weights(KV)
    z, t, c = draw(1, 1, 4, 8, 8), torch.tensor([500]), tiny_model.encode(["cat"])
    filter_output = tiny_model.predict(z, t, text_filter(edit, c))
    by_lora = {n: w + up @ down for (n, w), (up, down) in zip(base.items(), lora(base, edit).values(), strict=True)}
    downs = {id(down) for _, down in lora(base, edit).values()}
    assert len(downs) == 1, "one tensor is shared by every layer"
    before = state(tiny_model)
    for weights in (folded(base, edit), by_lora):
        for n, w in weights.items():
            base[n].data = w
        torch.testing.assert_close(tiny_model.predict(z, t, c), filter_output, atol=1e-5, rtol=1e-5)
        for n in base:
            base[n].data = before[n]
    assert (tiny_model.predict(z, t, c) - filter_output).abs().max() > 1e-3


def test_half_precision_weights_are_widened_before_they_are_edited() -> None:
    model = tiny()
    edit, exact = edit_of(model), folded(model.weights(KV), edit_of(model))
    model.unet.half()
    for name, w in folded(model.weights(KV), edit).items():
        assert w.dtype == torch.float32
        torch.testing.assert_close(w, exact[name], atol=2e-3, rtol=2e-3)  # the weights themselves were rounded to half


def test_a_part_of_what_the_network_reads_tells_how_far_an_edit_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more keys and values than READ, every third here, the shares hardly change: two digits are shown."""
    model = load_model("mini")
    log = UCE().erase(model, EraseRequest(("fire engine", "castle"))).card.log["edit"]["side_effect"]
    total = sum(len(w) for w in model.weights(model.reads()).values())
    monkeypatch.setattr(forms, "READ", total // 3 + 1)
    part = UCE().erase(model, EraseRequest(("fire engine", "castle"))).card.log["edit"]["side_effect"]
    assert part["median"] != log["median"]
    assert part["median"] == pytest.approx(log["median"], rel=0.02)
    assert part["worst"]["share"] == pytest.approx(log["worst"]["share"], rel=0.02)
    assert part["worst"]["name"] == log["worst"]["name"]


def test_nested_filters_unwind_in_order_also_after_an_error(tiny_model) -> None:  # type: ignore[no-untyped-def]
    edit, plain = edit_of(tiny_model), tiny_model.encode(["cat"]).tokens
    with filtered(tiny_model, edit):
        once = tiny_model.encode(["cat"]).tokens
        with filtered(tiny_model, edit):
            assert not torch.equal(tiny_model.encode(["cat"]).tokens, once)
        with pytest.raises(PromptTooLong), filtered(tiny_model, edit):
            tiny_model.encode(["cat " * 30])
        assert torch.equal(tiny_model.encode(["cat"]).tokens, once)
    assert torch.equal(tiny_model.encode(["cat"]).tokens, plain)


# -- the way back ------------------------------------------------------------------------------------------------


def test_the_name_of_the_last_release_is_accepted_with_a_warning_that_says_the_new_one() -> None:
    with pytest.warns(FutureWarning, match="BringBack now"):
        from efface.edits import WayBack
    assert WayBack is BringBack
    with pytest.raises(ImportError):
        from efface.edits import Forward  # noqa: F401


def test_the_way_back_undoes_a_closed_form_erasure_and_a_sealed_one_keeps_its_distance(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat",), "bus")
    open_patch = UCE.preset("2023").erase(tiny_model, request)
    back = BringBack.of(tiny_model, open_patch)
    rows = tiny_model.encode(["cat"]).rows("last+eos")
    assert back.missed(rows).max() < 1e-3  # float32 weights, a condition number of about 100
    assert open_patch.card.log["edit"]["bring_back"]["missed"] < 1e-9
    plain = tiny_model.sample(CASES, 4)
    with open_patch.applied(tiny_model):
        erased = tiny_model.sample(CASES, 4)
        with filtered(tiny_model, Edit(back.matrix - torch.eye(16, dtype=F64), None, 1.0)):
            torch.testing.assert_close(tiny_model.sample(CASES, 4), plain, atol=2e-3, rtol=0)
        with back.against(tiny_model):
            attacked = tiny_model.sample([Case("x", "", "cat", 0, 1.0)], 4)
    assert (erased - plain).abs().max() > 1e-2
    torch.testing.assert_close(attacked, tiny_model.sample([Case("x", "", "cat", 0, 1.0)], 4), atol=2e-3, rtol=0)
    shut = UCE(rows="last+eos", seal=1.0).erase(tiny_model, request)
    assert shut.card.log["edit"]["condition"] is None
    assert shut.card.log["edit"]["bring_back"]["missed"] > 0.05
    assert BringBack.of(tiny_model, shut).missed(rows).min() > 0.05
    assert "encode" not in vars(tiny_model)


def test_the_way_back_of_a_trained_patch_is_the_best_common_answer(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """Trained keys and values share no T. The least squares still finds something, and a ridge makes it shorter and worse."""
    patch = ESD.preset("tiny", train="xattn-kv", lr=0.05).erase(tiny_model, EraseRequest(("cat",)))
    rows = tiny_model.encode(["cat"]).rows("last")
    exact, short = BringBack.of(tiny_model, patch), BringBack.of(tiny_model, patch, ridge=1.0)
    assert 1e-3 < float(exact.missed(rows)) < float(short.missed(rows))
    assert float(short.length(rows)) < float(exact.length(rows))
    with pytest.raises(BadRequest, match="no keys and values"):
        BringBack.of(tiny_model, Patch({}, patch.card))


def test_facts_of_an_edit(tiny_model) -> None:  # type: ignore[no-untyped-def]
    edit = edit_of(tiny_model)
    said = facts(edit, tiny_model, ["cat", "dog"])
    t = edit.transform
    assert said["condition"] == pytest.approx(float(torch.linalg.cond(t)), rel=1e-6)
    assert said["norm"] == pytest.approx(float(torch.linalg.matrix_norm(t, 2)), rel=1e-9)
    c = tiny_model.encode(["cat", "dog"]).last_token().double()
    length = torch.linalg.solve(t, c.T).T.norm(dim=1) / c.norm(dim=1)
    assert said["bring_back"]["length"] == pytest.approx(float(length.min()), rel=1e-6)
    assert said["bring_back"]["target"] == ("cat", "dog")[int(length.argmin())]
    maps = [w.double() for w in tiny_model.weights(tiny_model.reads()).values()]

    def change(*names: str) -> float:
        rows = tiny_model.encode(names).rows("last..end").double()
        moves = [torch.cat([r @ w.T for w in maps], 1) for r in (rows @ t.T - rows, rows)]
        return float(moves[0].norm() / moves[1].norm())

    others = [n for n in tiny_model.concept_names if n not in ("cat", "dog")]
    shares = sorted((change(n) / change("cat", "dog"), n) for n in others)
    beside = said["side_effect"]
    assert len(others) == beside["names"] <= OTHERS
    assert beside["median"] == pytest.approx(shares[len(shares) // 2][0], rel=1e-6)
    assert beside["worst"]["name"] == shares[-1][1]
    assert beside["worst"]["share"] == pytest.approx(shares[-1][0], rel=1e-6)
    assert side_effect(edit, tiny_model, list(tiny_model.concept_names)) is None, "nothing is left to look at"
    still = Edit(torch.zeros_like(t), None, 1.0)
    assert side_effect(still, tiny_model, ["cat"]) is None, "a share of nothing is no number"


# -- a state -----------------------------------------------------------------------------------------------------


def concept(seed: int, r: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 10 * draw(seed, r, d), 10 * draw(seed + 10_000, r, d)


def bits(edit: ConceptEdit) -> tuple[bytes, ...]:
    m = edit.moments
    return tuple(v.numpy().tobytes() for v in (m.gram, m.shift, m.keep))


def test_fifty_adds_and_removes_in_random_order_leave_no_trace(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """The issue's last criterion: moments bit for bit, and the same pictures exactly."""
    edit = ConceptEdit.of(tiny_model, pin_null=False)
    for name in ("cat", "rose"):
        edit.erase(name, *tiny_model.encode([name]).aligned(tiny_model.encode(["bus"]), "last..end"))
    edit.preserve("dog", tiny_model.encode(["dog"]).rows("all"))
    before, patch = bits(edit), edit.patch(tiny_model)
    with patch.applied(tiny_model):
        pictures = tiny_model.sample(CASES, 4)
    rng, extra = random.Random(0), list(range(25))
    for i in extra:
        if i % 2:
            edit.preserve(f"extra {i}", 10 * draw(i, 5, 16))
        else:
            edit.erase(f"extra {i}", *concept(i, 5, 16))
    assert bits(edit) != before
    rng.shuffle(extra)
    for i in extra:
        edit.remove(f"extra {i}")
    assert bits(edit) == before
    again = edit.patch(tiny_model)
    assert same(again.deltas, patch.deltas)
    with again.applied(tiny_model):
        assert torch.equal(tiny_model.sample(CASES, 4), pictures)


def test_order_does_not_matter_and_neither_does_history() -> None:
    names = list(range(12))
    first = ConceptEdit(16)
    for i in names:
        first.erase(str(i), *concept(i, 6, 16))
    second, rng = ConceptEdit(16), random.Random(1)
    rng.shuffle(names)
    for i in names:
        second.erase(f"not {i}", *concept(i + 500, 6, 16))
        second.erase(str(i), *concept(i, 6, 16))
    for i in names:
        second.remove(f"not {i}")
    assert bits(first) == bits(second)
    assert torch.equal(first.solve().matrix, second.solve().matrix)


def test_the_state_gives_the_edit_of_the_method(tiny_model) -> None:  # type: ignore[no-untyped-def]
    x, y = tiny_model.encode(["cat", "rose"]).aligned(tiny_model.encode(["bus", "bus"]), "last..end")
    q = tiny_model.encode(["dog"]).rows("all")
    edit = ConceptEdit(16, erase_scale=2.0, preserve_scale=0.1)
    edit.erase("both", x, y)
    edit.preserve("dog", q)
    direct = shared_edit(x, y, torch.full((len(x),), 2.0), q, torch.full((len(q),), 0.1), 0.5)
    # 1e-6: rows are rounded to 4e-9, and the system's condition number is a few thousand
    torch.testing.assert_close(edit.solve().matrix, direct.matrix, rtol=1e-6, atol=1e-6)
    edit.lam = 50.0  # options may change at any time
    assert edit.solve().matrix.norm() < direct.matrix.norm()
    pinned = ConceptEdit(16, pinned=q[:3])
    pinned.erase("both", x, y)
    assert (moved(pinned.solve(), q[:3]) - q[:3].double()).abs().max() < 1e-9


def test_a_thousand_concepts_in_one_edit() -> None:
    edit = ConceptEdit(64)
    for i in range(1000):
        edit.erase(str(i), *concept(i, 2, 64))
    whole = edit.solve()
    x, y = (torch.cat([concept(i, 2, 64)[k] for i in range(1000)]) for k in (0, 1))
    direct = shared_edit(x, y, torch.ones(2000), x[:0], torch.ones(0), 0.5)
    torch.testing.assert_close(whole.matrix, direct.matrix, rtol=1e-6, atol=1e-9)
    edit.remove("500")
    assert not torch.equal(edit.solve().matrix, whole.matrix)


def test_a_saved_state_comes_back_bit_for_bit_and_can_be_changed(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    edit = ConceptEdit.of(tiny_model, lam=0.3)
    for i, name in enumerate(("cat", "rose", "a b/c")):
        edit.erase(name, *concept(i, 3, 16))
    edit.preserve("dog", tiny_model.encode(["dog"]).rows("all"))
    edit.save(tmp_path / "e.safetensors")
    again = ConceptEdit.load(tmp_path / "e.safetensors")
    assert bits(again) == bits(edit)
    assert torch.equal(again.solve().matrix, edit.solve().matrix)
    assert (again.lam, again.base) == (edit.lam, edit.base)
    again.remove("a b/c")
    edit.remove("a b/c")
    assert bits(again) == bits(edit)
    (tmp_path / "t.safetensors").write_bytes((tmp_path / "e.safetensors").read_bytes()[:-9])
    with pytest.raises(BadFile, match="not a whole"):
        ConceptEdit.load(tmp_path / "t.safetensors")
    UCE().erase(tiny_model, EraseRequest(("cat",))).save(tmp_path / "p.safetensors")
    with pytest.raises(BadFile, match="not a saved concept edit"):
        ConceptEdit.load(tmp_path / "p.safetensors")


def test_a_state_refuses_what_it_cannot_hold(tiny_model) -> None:  # type: ignore[no-untyped-def]
    edit = ConceptEdit.of(tiny_model)
    with pytest.raises(BadRequest, match="erases nothing"):
        edit.solve()
    edit.erase("cat", *concept(0, 2, 16))
    with pytest.raises(BadRequest, match="already erased"):
        edit.erase("cat", *concept(1, 2, 16))
    with pytest.raises(BadRequest, match="2 rows should act like 3 rows"):
        edit.erase("x", draw(0, 2, 16), draw(1, 3, 16))
    with pytest.raises(BadRequest, match="takes \\(n, 16\\)"):
        edit.preserve("x", draw(0, 2, 8))
    with pytest.raises(BadRequest, match="above this edit"):
        edit.preserve("x", torch.full((1, 16), 65.0))
    with pytest.raises(UnknownName, match="Did you mean 'cat'"):
        edit.remove("cats")
    with pytest.raises(BadOption, match="power of two"):
        ConceptEdit(16, limit=60.0)
    with pytest.raises(BadOption, match="positive"):
        ConceptEdit(16, lam=0.0)
    with pytest.raises(WrongBaseModel):
        edit.patch(tiny(seed=1))


# -- families ----------------------------------------------------------------------------------------------------


def test_readers_of_true_size_networks() -> None:
    """Counted on the published configurations: 32 matrices at width 768, 140 at 2048 and the pooled path; d = 1024 for SD 2.x."""
    sd = {
        "cross_attention_dim": 768,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    sdxl = {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    }
    flux = {"num_layers": 1, "num_single_layers": 1}
    with torch.device("meta"):
        networks = [
            UNet2DConditionModel(**sd),
            UNet2DConditionModel(**{**sd, "cross_attention_dim": 1024}),
            UNet2DConditionModel(**sdxl),
            FluxTransformer2DModel(**flux),
        ]
    found = [text_readers(n) for n in networks]
    assert [len(f["tokens"]) for f in found] == [32, 32, 140, 1]
    assert [{r.width for r in f["tokens"]} for f in found] == [{768}, {1024}, {2048}, {4096}]
    assert ["pooled" in f for f in found] == [False, False, True, True]
    assert [f["pooled"][0].width for f in found[2:]] == [1280, 768]
    sizes = [dict(networks[2].named_parameters())[r.name].numel() for r in found[2]["tokens"]]
    assert sum(sizes) == 340_787_200
    with pytest.raises(NothingSelected, match="no text to edit"):
        text_readers(torch.nn.Linear(3, 3))


def test_an_edit_of_true_sdxl_width_is_exact_and_pins_its_rows() -> None:
    """Two of the 140 matrices at width 2048 with random weights; ten rows erased, rows with the norms of text embeddings."""
    d, x, y, null = 2048, draw(1, 10, 2048) * 0.6, draw(2, 10, 2048) * 0.6, draw(3, 2, 2048)
    none = x[:0]
    edit = shared_edit(x, y, torch.ones(10), none, torch.ones(0), 0.5)
    assert edit.left.shape == (d, 10), "rank 10, and no d x d matrix was formed"
    pinned = shared_edit(x, y, torch.ones(10), none, torch.ones(0), 0.5, null)
    for out in (640, 1280):
        w = draw(out, out, d) / d**0.5
        gram = 0.5 * torch.eye(10, dtype=F64) + x.double() @ x.double().T
        expected = w.double() + (w.double() @ (y - x).double().T) @ torch.linalg.solve(gram, x.double())
        error = (w + apply_edit(w, edit)).double() - expected
        assert error.norm() < 1e-6 * expected.norm()
        assert (null @ (w + apply_edit(w, pinned)).T - null @ w.T).abs().max() < 1e-4 < (null @ apply_edit(w, edit).T).abs().max()


def tiny_sdxl() -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTextModelWithProjection]:
    text = {
        "vocab_size": 60,
        "bos_token_id": 1,
        "eos_token_id": 59,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=16, initializer_range=1.0, **text))
        two = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=16, intermediate_size=16, projection_dim=20, initializer_range=1.0, **text)
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=20 + 6 * 4,
        )
    return unet.eval(), one.eval(), two.eval()


@torch.no_grad()
def test_sdxl_both_encoders_and_the_pooled_path() -> None:
    """With the tokens edited alone, the concept still reaches the network through the pooled vector; with both, it is gone."""
    unet, one, two = tiny_sdxl()
    ids = {"target": [1, 5, 6, 59], "anchor": [1, 7, 8, 59], "other": [1, 9, 3, 59]}
    tokens, pooled = {}, {}
    for name, row in ids.items():
        first, second = one(torch.tensor([row])), two(torch.tensor([row]), output_hidden_states=True)
        tokens[name] = torch.cat([first.last_hidden_state, second.hidden_states[-2]], -1)[0]
        pooled[name] = second.text_embeds
    readers = text_readers(unet)
    edits = {}
    for path, rows in (("tokens", tokens), ("pooled", pooled)):
        keep = rows["other"]
        edits[path] = shared_edit(rows["target"], rows["anchor"], torch.ones(len(keep)), keep, torch.ones(len(keep)), 1e-6)

    z, t, times = draw(1, 1, 4, 8, 8), torch.tensor([500]), torch.arange(6.0)[None]

    def output(name: str) -> torch.Tensor:
        added = {"text_embeds": pooled[name], "time_ids": times}
        return unet(z, t, tokens[name][None], added_cond_kwargs=added, return_dict=False)[0]

    plain = {name: output(name) for name in ids}
    parameters = dict(unet.named_parameters())

    def apply(path: str) -> None:
        for reader in readers[path]:
            weight = parameters[reader.name]
            read_part(weight, reader).add_(apply_edit(read_part(weight, reader), edits[path]))

    times_before = parameters["add_embedding.linear_1.weight"][:, 20:].clone()
    apply("tokens")
    leak = (output("target") - plain["anchor"]).abs().max()
    apply("pooled")
    assert torch.equal(parameters["add_embedding.linear_1.weight"][:, 20:], times_before), "the time ids' columns moved"
    both = (output("target") - plain["anchor"]).abs().max()
    assert both < 1e-3 < leak, (both, leak)  # ridge 1e-6, float32 network
    torch.testing.assert_close(output("other"), plain["other"], atol=1e-3, rtol=0)


@torch.no_grad()
def test_flux_adds_its_biases_once() -> None:
    """The preserved concept's output stays; the official order (targets with the bias inside) shifts it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flux = FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(2, 2, 4),
        ).eval()  # fmt: skip
        for p in flux.parameters():
            p.data = p.data + 0.1 * torch.randn_like(p)  # biases start at zero, where nothing could be seen
    readers = text_readers(flux)
    tokens = {name: draw(i, 3, 12) for i, name in enumerate(("target", "anchor", "other"))}
    pooled = {name: draw(10 + i, 1, 10) for i, name in enumerate(("target", "anchor", "other"))}
    z, ids, text_ids = draw(20, 1, 4, 4), torch.zeros(4, 3), torch.zeros(3, 3)

    def output(name: str) -> torch.Tensor:
        return flux(
            hidden_states=z, encoder_hidden_states=tokens[name][None], pooled_projections=pooled[name],
            timestep=torch.tensor([0.5]), img_ids=ids, txt_ids=text_ids, return_dict=False,
        )[0]  # fmt: skip

    plain, parameters = {name: output(name) for name in tokens}, dict(flux.named_parameters())
    original = {r.name: parameters[r.name].clone() for path in readers.values() for r in path}
    for path, rows in (("tokens", tokens), ("pooled", pooled)):
        keep = rows["other"]
        edit = shared_edit(rows["target"], rows["anchor"], torch.ones(len(keep)), keep, torch.ones(len(keep)), 1e-6)
        for r in readers[path]:
            parameters[r.name].add_(apply_edit(parameters[r.name], edit))
    torch.testing.assert_close(output("other"), plain["other"], atol=1e-3, rtol=0)
    torch.testing.assert_close(output("target"), plain["anchor"], atol=1e-3, rtol=0)
    assert (plain["target"] - plain["anchor"]).abs().max() > 1e-2
    # Official: v* = module(y) = W y + b, so W' maps the preserved rows to W q + b, and the layer adds b again.
    for path, rows in (("tokens", tokens), ("pooled", pooled)):
        for r in readers[path]:
            w, b = original[r.name].double(), parameters[r.name.replace("weight", "bias")].double()
            x = torch.cat([rows["target"], rows["other"]]).double()
            v = torch.cat([rows["anchor"], rows["other"]]).double() @ w.T + b
            gram = 1e-6 * torch.eye(x.shape[1], dtype=F64) + x.T @ x
            parameters[r.name].copy_((1e-6 * w + v.T @ x) @ torch.linalg.inv(gram))
    assert (output("other") - plain["other"]).abs().max() > 1e-2


def test_sealing_trades_reach_for_damage(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """The one-parameter family between protecting kept rows and closing the way back."""
    edit = edit_of(tiny_model)
    x, keep = tiny_model.encode(["cat"]).rows("last+eos"), tiny_model.encode(["dog", "bus", ""]).rows("last+eos")
    found = []
    for lam in (1e-2, 1.0, 100.0):
        shut = sealed(edit, x, keep, lam)
        u = span(x, 1e-2)
        missed = float((moved(shut, torch.linalg.pinv(shut.transform) @ u[:, 0]) - u[:, 0]).norm())
        found.append((missed, float((moved(shut, keep) - moved(edit, keep)).norm())))
    assert found[0][0] < found[1][0] < found[2][0], "a larger ridge seals better"
    assert found[0][1] < found[1][1] < found[2][1], "and costs the kept rows more"


def test_the_report_and_the_command_line_show_the_way_back(tiny_model, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from click.testing import CliRunner

    from efface.cli import main
    from efface.reporting.view import _edit

    patches = {seal: UCE(rows="last+eos", seal=seal).erase(tiny_model, EraseRequest(("cat",), "bus")) for seal in (0.0, 1.0)}
    assert _edit(patches[0.0].json())["condition number of T"] == patches[0.0].card.log["edit"]["condition"]
    assert _edit(patches[1.0].json())["condition number of T"] == "T has no inverse"
    assert _edit({"log": {}}) == {}, "a trained patch has no such table"
    monkeypatch.chdir(tmp_path)
    for seal, expected in (("0", "brings the concept back"), ("1", "has no exact inverse")):
        name = f"{seal}.safetensors"
        done = CliRunner().invoke(
            main, ["erase", "uce", "--model", "tiny", "--target", "cat", "--set", f"seal={seal}", "--out", name]
        )
        assert done.exit_code == 0, done.output
        assert expected in done.output
        assert "What the network reads of other names changes" in done.output
