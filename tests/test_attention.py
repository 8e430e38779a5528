"""Token spans, soft prompts and cross-attention hooks: exact against the stock forward, and gone afterwards."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import BadOption, BadRequest, PromptTooLong, UnknownName
from efface.models.attention import cross_attentions, extended, probed
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.tokens import occurrences
from efface.testing import hooks


def inputs(model: DiffusionModel, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return model.noise(n, torch.Generator().manual_seed(0)), torch.tensor([500, 100])[:n]


# -- token spans -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_occurrences_are_every_place_where_the_phrase_can_be_read(ids: list[int], phrase: list[int]) -> None:
    text = "".join(map(str, ids))
    assert occurrences(ids, phrase) == tuple(i for i in range(len(ids)) if text[i:].startswith("".join(map(str, phrase))))
    assert occurrences(ids, []) == ()


def test_spans_count_tokens_and_not_words(tiny_model: DiffusionModel) -> None:
    """ "tab" is three tokens of the tiny tokenizer, so a rule that counts words points into the middle of it."""
    span = tiny_model.locate("a tab of the cat", "cat")
    ids = tiny_model.embed(["a tab of the cat"]).ids[0].tolist()
    assert span.width == 1
    assert span.positions == (7,), "start, a, t, a, b, of, the: the word rule would say 5"
    assert tiny_model.tokenizer.decode(ids[7]) == "cat"  # type: ignore[attr-defined]
    assert span.eos == 8
    assert ids[8:] == [ids[8]] * (len(ids) - 8), "padding is the end token here, and only the first of them ends the text"
    assert tiny_model.locate("a tab of the cat", "tab").positions == (2, 3, 4)


def test_spans_find_every_occurrence_in_any_case_and_no_part_of_a_word(tiny_model: DiffusionModel) -> None:
    span = tiny_model.locate("Cat and cat", "cat")
    assert len(span.starts) == len(span.positions) == 2
    assert (span.start, span.stop) == (1, 2)
    with pytest.raises(BadRequest, match="'cat' does not stand in the prompt 'cats'"):
        tiny_model.locate("cats", "cat")
    with pytest.raises(BadRequest, match="does not stand"):
        tiny_model.locate("cat", "")


# -- soft prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_the_words_own_vectors_give_the_stock_encoding(name: str) -> None:
    model = load_model(name)
    prompts = ["a photo of dog", "cat", ""]
    hard, soft = model.encode(prompts), model.encode_soft(model.embed(prompts))
    torch.testing.assert_close(soft.tokens, hard.tokens, rtol=0, atol=1e-6)  # the same operations on the same numbers
    assert torch.equal(soft.last, hard.last)
    one = model.embed(["a photo of dog"])
    again = one.splice(4, 5, one.embeddings[0, 4:5])
    torch.testing.assert_close(model.encode_soft(again).tokens, hard.tokens[:1], rtol=0, atol=1e-6)


def test_splicing_is_editing_the_text(tiny_model: DiffusionModel) -> None:
    """Insertion, replacement and deletion give what the tokenizer gives for the edited text, end and padding included."""
    table = tiny_model.embed(["cat dog"]).embeddings[0]
    cat, dog, both = table[1:2], table[2:3], table[1:3]
    soft = tiny_model.embed(["a car of cat", "the bus of cat"])
    assert soft.lengths == (6, 6), "one token per word, so that positions can be counted off"
    nothing = table[:0]
    for edited, texts in [
        (soft.splice(1, 1, both), ["cat dog a car of cat", "cat dog the bus of cat"]),
        (soft.splice(4, 5, dog), ["a car of dog", "the bus of dog"]),
        (soft.splice(4, 5, torch.stack([both, both])), ["a car of cat dog", "the bus of cat dog"]),
        (soft.splice(2, 4, cat), ["a cat cat", "the cat cat"]),
        (soft.splice(1, 3, nothing), ["of cat", "of cat"]),
    ]:
        told = tiny_model.embed(texts)
        assert torch.equal(edited.embeddings, told.embeddings), texts
        assert edited.lengths == told.lengths
        assert torch.equal(tiny_model.encode_soft(edited).last, tiny_model.encode(texts).last)


def test_splicing_keeps_inside_the_text_and_the_context(tiny_model: DiffusionModel) -> None:
    soft = tiny_model.embed(["a cat"])
    rows = torch.zeros(1, soft.embeddings.shape[-1])
    for start, stop in [(0, 1), (1, 4), (3, 2), (4, 4)]:
        with pytest.raises(BadOption, match="not inside the prompt; its words end before 3"):
            soft.splice(start, stop, rows)
    assert soft.splice(3, 3, rows.expand(20, -1)).lengths == (24,)
    with pytest.raises(PromptTooLong, match="with 21 vectors the prompt has 25 tokens, the model reads 24"):
        soft.splice(3, 3, rows.expand(21, -1))


def test_soft_encoding_is_differentiable_and_causal(tiny_model: DiffusionModel) -> None:
    soft = tiny_model.embed(["a photo of cat"])
    v = soft.embeddings[0, 3:4].clone().requires_grad_(True)
    tokens = tiny_model.encode_soft(soft.splice(3, 4, v)).tokens[0]
    (early,) = torch.autograd.grad(tokens[:3].sum(), v, retain_graph=True, allow_unused=True)
    assert early is None or not early.any(), "positions before the vector cannot see it"
    # Against a central difference in a random direction: float32 leaves about 1e-3 of a number of order one.
    direction, weight = (torch.randn(s, generator=torch.Generator().manual_seed(1)) for s in (v.shape, tokens.shape))
    (gradient,) = torch.autograd.grad((tokens * weight).sum(), v)
    h = 1e-2
    with torch.no_grad():
        up, down = (tiny_model.encode_soft(soft.splice(3, 4, v + s * h * direction)).tokens[0] for s in (1, -1))
    assert ((up - down) * weight).sum() / (2 * h) == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_soft_encoding_counts_text_and_leaves_the_table_alone(tiny_model: DiffusionModel) -> None:
    soft, before, count = tiny_model.embed(["cat", "dog"]), hooks(tiny_model), tiny_model.evals.text
    tiny_model.encode_soft(soft)
    assert tiny_model.evals.text - count == 2
    bad = soft.embeddings[:, :3]  # does not fit the positions: raises inside
    with pytest.raises(RuntimeError):
        tiny_model.encode_soft(type(soft)(bad, soft.ids, soft.lengths, soft.pad, soft.pad_id))
    assert hooks(tiny_model) == before


# -- cross-attention -------------------------------------------------------------------------------------------------


class Recording(AttnProcessor):
    """diffusers' own unfused attention, writing down the probabilities it multiplies with: the oracle."""

    def __init__(self, seen: list[torch.Tensor]) -> None:
        self.seen = seen

    def __call__(self, attn, *args, **kwargs):  # type: ignore[no-untyped-def]
        scores = attn.get_attention_scores
        attn.get_attention_scores = lambda *a: self.seen.append(scores(*a)) or self.seen[-1]
        try:
            return super().__call__(attn, *args, **kwargs)
        finally:
            del attn.get_attention_scores


def test_probed_maps_are_the_ones_diffusers_multiplies_with(tiny_model: DiffusionModel) -> None:
    z, t = inputs(tiny_model)
    c = tiny_model.encode(["cat", "a dog"])
    plain = tiny_model.predict(z, t, c)
    with tiny_model.attention_maps() as maps:
        watched = tiny_model.predict(z, t, c)
        again = tiny_model.predict(z, t, c)  # fills the list anew
    assert torch.equal(watched, plain), "a probe changes nothing"
    assert torch.equal(again, plain)
    layers = cross_attentions(tiny_model.unet)  # type: ignore[attr-defined]
    assert len(maps) == len(layers) == 4
    stock, seen = [layer.processor for layer in layers], []
    for layer in layers:
        layer.set_processor(Recording(seen))
    tiny_model.predict(z, t, c)
    for layer, processor in zip(layers, stock, strict=True):
        layer.set_processor(processor)
    for ours, theirs in zip(maps, seen, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), theirs, rtol=0, atol=1e-5)  # fused and unfused round differently upstream
        torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:-1]))
        assert ours.std() > 1e-3, "flat maps would agree with anything"


def test_gradients_reach_queries_and_keys_through_the_probe(tiny_model: DiffusionModel) -> None:
    student = tiny_model.student(lambda n: ".attn2." in n)
    weights = student.weights(lambda n: ".attn2." in n)
    for p in weights.values():
        p.requires_grad_(True)
    z, t = inputs(tiny_model)
    with student.attention_maps() as maps:
        student.predict(z, t, tiny_model.encode(["cat", "a dog"]))
    maps[0][..., 1].sum().backward()
    name = next(n for n in weights if "down_blocks" in n).removesuffix("to_q.weight")
    assert weights[f"{name}to_q.weight"].grad.abs().sum() > 0
    assert weights[f"{name}to_k.weight"].grad.abs().sum() > 0
    assert weights[f"{name}to_v.weight"].grad is None, "the first map does not depend on values"


def test_extra_context_is_read_where_it_should_and_nowhere_else(tiny_model: DiffusionModel) -> None:
    z, t = inputs(tiny_model)
    c = tiny_model.encode(["cat", "a dog"])
    plain = tiny_model.predict(z, t, c)
    length, d = c.tokens.shape[1:]
    layers = cross_attentions(tiny_model.unet)  # type: ignore[attr-defined]
    assert [len(cross_attentions(tiny_model.unet, p)) for p in ("mid", "midout", "inmidout")] == [1, 3, 4]  # type: ignore[attr-defined]
    rows = torch.randn(2, 2, 3, d, generator=torch.Generator().manual_seed(2))
    for place in ("mid", "midout", "inmidout"):
        chosen = cross_attentions(tiny_model.unet, place)  # type: ignore[attr-defined]
        with tiny_model.extra_context(rows[0], rows[1], place), tiny_model.attention_maps() as maps:
            changed = tiny_model.predict(z, t, c)
        in_order = [layers[0], layers[3], layers[1], layers[2]]  # modules are listed down, up, mid and run down, mid, up
        assert [a.shape[-1] for a in maps] == [length + 3 * (layer in chosen) for layer in in_order]
        assert not torch.allclose(changed, plain)
    with tiny_model.extra_context(rows[0, :, :0], rows[1, :, :0], "inmidout"):
        assert torch.equal(tiny_model.predict(z, t, c), plain), "no rows are no change"
    with tiny_model.extra_context(0 * rows[0], 0 * rows[1], "mid"):
        assert not torch.allclose(tiny_model.predict(z, t, c), plain), "but a zero row takes its share of the softmax"
    assert torch.equal(tiny_model.predict(z, t, c), plain)


def test_extra_context_equals_more_text(tiny_model: DiffusionModel) -> None:
    """The same rows as keys and values are the same as a longer conditioning; one row for all is broadcast."""
    z, t = inputs(tiny_model)
    c = tiny_model.encode(["cat", "a dog"])
    rows = torch.randn(1, 3, c.tokens.shape[-1], generator=torch.Generator().manual_seed(2))
    longer = type(c)(torch.cat([c.tokens, rows.expand(2, -1, -1)], 1), c.last)
    with tiny_model.extra_context(rows, rows, "inmidout"):
        extended = tiny_model.predict(z, t, c)
    # 1e-6: the same products in one tensor instead of two joined ones
    torch.testing.assert_close(extended, tiny_model.predict(z, t, longer), rtol=0, atol=1e-6)


def test_detached_start_keeps_the_output_and_takes_its_gradient(tiny_model: DiffusionModel) -> None:
    z, t = inputs(tiny_model)
    c = tiny_model.encode(["cat", "a dog"])
    tokens = c.tokens.clone().requires_grad_(True)
    free = tiny_model.predict(z, t, type(c)(tokens, c.last))
    with tiny_model.start_detached():
        held = tiny_model.predict(z, t, type(c)(tokens, c.last))
    assert torch.equal(held, free)
    (of_free,), (of_held,) = (torch.autograd.grad(out.square().sum(), tokens) for out in (free, held))
    assert of_free[:, 0].abs().max() > 0
    assert of_held[:, 0].abs().max() == 0
    torch.testing.assert_close(of_held[:, 1:], of_free[:, 1:])


class Block(torch.nn.Module):
    """The part of a UNet that the hooks look for, small enough to compile in a test."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = torch.nn.Module()
        self.mid_block.attn2 = Attention(query_dim=4, cross_attention_dim=6, heads=1, dim_head=4)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mid_block.attn2(x, encoder_hidden_states=context)
        return out


def test_hooks_are_seen_by_compiled_networks() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block, x, context, row = Block(), torch.randn(1, 5, 4), torch.randn(1, 3, 6), torch.randn(1, 2, 6)
    with torch.no_grad():
        with extended(block, row, row, "mid"):
            eager = block(x, context)
        block.compile(backend="eager")
        plain = block(x, context)
        with extended(block, row, row, "mid"), probed(block) as maps:
            torch.testing.assert_close(block(x, context), eager)
        assert maps[0].shape[-1] == 5
        torch.testing.assert_close(block(x, context), plain)
        assert not torch.allclose(eager, plain)


def test_gradients_are_the_same_under_gradient_checkpointing(tiny_model: DiffusionModel) -> None:
    """Recomputation runs after the context ended, when the extra rows are gone."""
    z, t = inputs(tiny_model)
    c, unet, grads = tiny_model.encode(["cat", "a dog"]), tiny_model.unet, []  # type: ignore[attr-defined]
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        rows = torch.ones(2, 3, 16, requires_grad=True)
        with tiny_model.extra_context(rows, rows, "inmidout"), tiny_model.start_detached():
            out = tiny_model.predict(z, t, c)
        grads += torch.autograd.grad(out.square().sum(), rows)
        assert unet.is_gradient_checkpointing == checkpointing
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("what", ["attention_maps", "extra_context", "start_detached"])
def test_nothing_is_left_behind_also_after_an_exception(what: str, tiny_model: DiffusionModel) -> None:
    z, t = inputs(tiny_model)
    c, before = tiny_model.encode(["cat", "dog"]), hooks(tiny_model)
    plain = tiny_model.predict(z, t, c)
    row = torch.zeros(1, 1, 20)
    args = (row, row, "mid") if what == "extra_context" else ()
    wide = type(c)(torch.zeros(2, 24, 20), c.last)  # 20 wide where 16 are read: raises in the middle of the network
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), getattr(tiny_model, what)(*args):
        tiny_model.predict(z, t, wide)
    with getattr(tiny_model, what)(*args):
        assert hooks(tiny_model) > before, "there was something to leave behind"
    assert hooks(tiny_model) == before
    assert torch.equal(tiny_model.predict(z, t, c), plain)


def test_places_that_do_not_exist(tiny_model: DiffusionModel) -> None:
    row = torch.zeros(1, 1, 16)
    with (
        pytest.raises(UnknownName, match="midout"),
        tiny_model.extra_context(row, row, "middle"),
    ):
        pass
    with pytest.raises(BadOption, match="no cross-attention in 'mid'"):
        cross_attentions(torch.nn.Linear(1, 1), "mid")


def test_perfect_output_is_what_the_parameterization_means() -> None:
    for name in ("tiny", "tiny-v"):
        model = load_model(name)
        z_0, t = inputs(model)
        noise = model.noise(2, torch.Generator().manual_seed(5))
        ab = model.schedule.ab(t)
        z_t = ab.sqrt() * z_0 + (1 - ab).sqrt() * noise
        torch.testing.assert_close(model.to_eps(model.perfect_output(z_0, noise, t), z_t, t), noise)
