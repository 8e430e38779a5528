"""What is special to Sana, on a tiny model of the real classes: its text stands behind an instruction that the network does not
see, Gemma has no end token, and the released models are drawn by DPM-Solver. What it shares with other families is in
test_families.py."""

from __future__ import annotations

import dataclasses
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, PromptTooLong
from efface.guards import Negative
from efface.methods import UCE
from efface.models.cond import MASK
from efface.models.load import load_model
from efface.models.readers import text_readers
from efface.models.sana import Sana
from efface.models.select import CROSS_SELECTIONS, text_layers
from efface.models.tiny import TINY_T5_ROWS, TINY_WORDS, tiny_sana
from efface.models.tokens import SPACE
from efface.patches.export import export
from efface.preservation.adversary import of_one_token, word_rows, worded
from efface.registry import METHODS
from efface.testing import same, state

PROMPTS = ("a cat", "a Photo of the castle")
CALL = {"height": 32, "width": 32, "output_type": "pt", "max_sequence_length": TINY_T5_ROWS, "use_resolution_binning": False}


@pytest.fixture
def sana() -> Sana:
    return tiny_sana()


def stock(pipe: Any, prompt: str, steps: int, scale: float, **more: Any) -> torch.Tensor:
    """(1, 3, H, W) from the latent that efface draws for seed 0."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():  # the scheduler hands tensors to numpy in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        out: torch.Tensor = pipe(prompt, latents=noise, num_inference_steps=steps, guidance_scale=scale, **CALL, **more).images
    return out


def cases(scale: float = 4.5) -> list[Case]:
    return [Case("x", "", "a cat", 0, scale)]


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


def test_encodings_are_those_of_the_stock_pipeline(sana: Sana) -> None:
    """encode_prompt gives Gemma's output; the network reads it behind its projection and its norm."""
    told = {"max_sequence_length": TINY_T5_ROWS, "complex_human_instruction": sana._instruction.split("\n")}
    hidden, mask, negative, negative_mask = sana._pipeline()[0].encode_prompt([*PROMPTS, ""], **told)
    network: Any = sana.transformer
    pairs = (
        (sana.encode([*PROMPTS, ""]), hidden, mask),
        (sana.unconditional(3), negative, negative_mask),
    )
    for c, theirs, read in pairs:
        assert torch.equal(c.extras[MASK], read.float())
        expected = network.caption_norm(network.caption_projection(theirs))
        assert c.tokens.shape == expected.shape == (3, TINY_T5_ROWS, 16)
        torch.testing.assert_close(c.tokens, expected * read[..., None], atol=1e-6, rtol=1e-6)
    assert sana.encode([*PROMPTS, ""]).counts() == [3, 6, 2]
    assert sana.encode(PROMPTS).last.tolist() == [2, 5]
    assert sana.unconditional(1).counts() == [1]
    read = sana.evals.text
    sana.unconditional(4)
    assert sana.evals.text == read, "the null prompt is read once"
    assert sana.token_ids(["a Photo of the castle"])[0][0] == sana.tokenizer.bos_token_id


def test_half_precision_draws_as_the_stock_pipeline_does() -> None:
    """Its linear attention multiplies in float32: with torch's autocast around it, denominators of 1e-15 become zeros here."""
    for dtype in ("bfloat16", "float32"):
        sana = tiny_sana(dtype=dtype)
        theirs = stock(sana._pipeline()[0], "a cat", 4, 4.5)
        # 0.02: latents stay in float32 here, and bfloat16 has three digits; other prompts are 0.2 off
        torch.testing.assert_close(sana.sample(cases(), 4), theirs.float(), atol=0.02, rtol=0)
    half = tiny_sana()
    for part in ("transformer", "text_encoder"):
        torch.nn.Module.to(getattr(half, part), torch.float16)
    half.configure(autocast="float16")
    # as above, with another digit
    torch.testing.assert_close(half.sample(cases(), 4), sana.sample(cases(), 4), atol=0.02, rtol=0)


def test_gemma_s_own_tokenizer_leaves_a_space_that_the_first_word_takes() -> None:
    """Its class with a small vocabulary: words are merged with the space before them, the first one with the instruction's."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    sana = tiny_sana()
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    letters = sorted({SPACE, "\n", *(c for c in sana._instruction + "".join(TINY_WORDS) if c != " ")})
    merges, merged = [], []
    for word in ("cat", "dog", "the"):
        steps = [word[: i + 1] for i in range(len(word))]
        merges += [(a, b[-1]) for a, b in pairwise(steps)] + [(SPACE, word)]
        merged += [*steps[1:], SPACE + word]
    vocab = {t: i for i, t in enumerate([*special, *letters, *merged])}
    theirs = GemmaTokenizer(vocab=vocab, merges=merges)
    begun = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])  # as the released files have it
    theirs.backend_tokenizer.post_processor = begun
    sana.tokenizer, network = theirs, torch.nn.Embedding(len(vocab), 32)
    sana.text_encoder.set_input_embeddings(network)
    told = {"max_sequence_length": TINY_T5_ROWS, "complex_human_instruction": sana._instruction.split("\n")}
    prompts = ["the cat", "Dog", ""]
    hidden, mask, *_ = sana._pipeline()[0].encode_prompt(prompts, **told)
    c = sana.encode(prompts)
    assert torch.equal(c.extras[MASK], mask.float())
    torch.testing.assert_close(c.tokens, sana._projected(hidden) * mask[..., None], atol=1e-5, rtol=1e-5)
    assert theirs.convert_ids_to_tokens(sana.token_ids(["the cat"])[0]) == ["<bos>", SPACE + "the", SPACE + "cat"]
    assert sana.locate("the cat", "cat").starts == (2,)
    torch.testing.assert_close(sana.encode_soft(sana.embed(["Dog"])).tokens, c.tokens[1:2], atol=1e-6, rtol=1e-6)


def test_a_negative_prompt_is_that_of_the_stock_pipeline(sana: Sana) -> None:
    theirs = stock(sana._pipeline()[0], "a cat", 4, 4.5, negative_prompt="the dog")
    with Negative(text="the dog").active(sana, ("dog",)):
        torch.testing.assert_close(sana.sample(cases(), 4), theirs, atol=1e-5, rtol=0)


def test_normalised_queries_and_keys_are_those_of_the_maps() -> None:
    """Sana 1.5 normalises them; the output of attention is that of the maps and the values."""
    sana = tiny_sana(qk_norm="rms_norm_across_heads")
    network: Any = sana.transformer
    layer, seen = network.transformer_blocks[1].attn2, dict[str, torch.Tensor]()
    for norm in (layer.norm_q, layer.norm_k):
        norm.weight.data.uniform_(1, 3)
    handles = [
        layer.to_v.register_forward_hook(lambda module, args, out: seen.__setitem__("v", out)),
        layer.to_out[0].register_forward_pre_hook(lambda module, args: seen.__setitem__("out", args[0])),
    ]
    with sana.attention_maps() as maps:
        sana.predict(sana.case_noise([0]), torch.tensor([500.0]), sana.encode(["a cat"]))
    for handle in handles:
        handle.remove()
    values = seen["v"].unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    torch.testing.assert_close((maps[1] @ values).transpose(1, 2).flatten(2), seen["out"], atol=1e-5, rtol=1e-5)
    assert float(maps[1][..., 3:].max()) == 0  # padding


def test_the_folder_of_a_pipeline_and_the_pipeline_itself(sana: Sana, tmp_path: Path) -> None:
    pipe = sana._pipeline()[0]
    pipe.save_pretrained(tmp_path / "m")
    loaded, wrapped = load_model(tmp_path / "m"), load_model(pipe)
    assert isinstance(loaded, Sana)
    assert isinstance(wrapped, Sana)
    assert wrapped.transformer is pipe.transformer
    assert (loaded.text_rows, loaded.usual_solver) == (300, "dpm")
    expected = sana.sample(cases(), 3)
    for model in (loaded, wrapped):  # padding is not read
        torch.testing.assert_close(model.sample(cases(), 3), expected, atol=1e-5, rtol=0)


def test_refusals(sana: Sana, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="Gemma 2 overflows in float16"):
        tiny_sana(dtype="float16")
    with pytest.raises(BadFile, match="Sana-Sprint"):
        tiny_sana(guidance_embeds=True)
    with pytest.raises(BadFile, match="reads 9 and gives 4 channels"):
        tiny_sana(in_channels=9)
    for option, value in (("use_flow_sigmas", False), ("prediction_type", "epsilon"), ("final_sigmas_type", "sigma_min")):
        with pytest.raises(BadFile, match=option):
            sana._sized({**sana.schedule.config, option: value})
    for option in ("use_karras_sigmas", "thresholding"):
        with pytest.raises(BadFile, match=f"{option}=true"):
            sana._sized({**sana.schedule.config, option: True})
    with pytest.raises(BadFile, match="samples with DDIMScheduler"):
        sana._sized({"_class_name": "DDIMScheduler"})
    with pytest.raises(PromptTooLong, match="17 tokens"):
        sana.encode(["a " * 16])
    sana.encode(["a " * 15])
    sana._hidden_ids = [*sana._hidden_ids, 0]  # as if the instruction's end had melted into the prompt
    with pytest.raises(BadOption, match="joins the beginning of 'a dog'"):
        sana.embed(["a dog"])
    pipe = sana._pipeline()[0]
    pipe.register_modules(text_encoder=None)
    with pytest.raises(BadFile, match="no text_encoder"):
        load_model(pipe)
    for relative in ("SanaSprintPipeline", "SanaVideoPipeline", "SanaPAGPipeline"):
        folder = tmp_path / relative
        folder.mkdir()
        (folder / "model_index.json").write_text(f'{{"_class_name": "{relative}"}}')
        with pytest.raises(BadFile, match=relative):
            load_model(folder)


def test_other_solvers_of_the_scheduler_are_not_taken_for_ours(sana: Sana) -> None:
    """Their levels are kept, and pictures are drawn by Euler's steps."""
    for option, value in (("solver_order", 3), ("algorithm_type", "sde-dpmsolver++"), ("solver_type", "heun")):
        sana._sized({**sana.schedule.config, option: value})
        assert sana.usual_solver == "ddim"


# -- words -------------------------------------------------------------------------------------------------------------


def test_padding_is_not_read(sana: Sana) -> None:
    z, t, c = sana.case_noise([0]), torch.tensor([500.0]), sana.encode(["a cat"])
    other = dataclasses.replace(c, tokens=torch.where(c.extras[MASK][..., None] > 0, c.tokens, 5.0))
    torch.testing.assert_close(sana.predict(z, t, other), sana.predict(z, t, c), atol=1e-6, rtol=0)


def test_vectors_stand_in_the_places_of_words(sana: Sana) -> None:
    words, rows = word_rows(sana)
    assert "cat" in words
    assert of_one_token(sana, ["cat", "a cat"]) == ["cat"]
    dog = rows[words.index("dog")][None, None]
    for place, written in (("prefix", "dog a cat"), ("suffix", "a cat dog"), ("insert", "a dog cat"), ("replace", "dog")):
        c, plain = worded(sana, ["a cat"], dog, place), sana.encode([written])
        torch.testing.assert_close(c.tokens, plain.tokens, atol=1e-5, rtol=1e-5)
        assert c.counts() == plain.counts()
    span = sana.locate("A Photo of a Cat", "CAT")
    assert (span.starts, span.eos) == ((5,), 6)
    assert sana.locate("cat of the cat", "cat").starts == (1, 4)


def test_the_last_word_has_read_the_prompt(sana: Sana) -> None:
    """Gemma has no end token: closed forms and attacks that ask for it get the last token that is read."""
    c = sana.encode(PROMPTS)
    assert torch.equal(c.end_token(), torch.stack([c.tokens[0, 2], c.tokens[1, 5]]))
    x, y = c.aligned(sana.encode(["", ""]), "last..end")
    assert len(x) == len(y) == 2


def test_layers_of_the_text_encoder(sana: Sana) -> None:
    layers = sana.text_layers(["a cat"])
    assert len(layers) == 3
    assert layers[-1].tokens.shape == (1, TINY_T5_ROWS, 32)
    torch.testing.assert_close(sana._projected(layers[-1].tokens)[:, :3], sana.encode(["a cat"]).tokens[:, :3])
    first = sana.weights(text_layers("0"))
    assert first
    assert all(n.startswith("text_encoder.layers.0.") for n in first)
    assert not any("embed_tokens" in n for n in sana.weights(text_layers("all")))
    before = state(sana)
    patch = METHODS["advunlearn"].preset("tiny", lr=1e-2).erase(sana, EraseRequest(("cat",)))
    assert all(n.startswith("text_encoder.") for n in patch.deltas)
    assert same(state(sana), before)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_selections_and_readers_match_sana() -> None:
    """Sana 1.6B is the class's own configuration."""
    from diffusers import SanaTransformer2DModel

    with torch.device("meta"):
        network = SanaTransformer2DModel()
    sizes = {f"transformer.{n}": p.numel() for n, p in network.named_parameters()}
    assert sum(sizes.values()) == 1_604_462_752
    expected = {
        "xattn": (160, 401_587_200),
        "xattn-qkv": (60, 301_056_000),
        "xattn-kv": (40, 200_704_000),
        "selfattn": (100, 401_452_800),
        "attn": (260, 803_040_000),
    }
    for name, (tensors, numbers) in expected.items():
        chosen = [n for n in sizes if CROSS_SELECTIONS[name](n)]
        assert (len(chosen), sum(sizes[n] for n in chosen)) == (tensors, numbers), name
    left = [n for n in sizes if not CROSS_SELECTIONS["full"](n)]
    assert left == [n for n in sizes if "caption_" in n]
    found = text_readers(network)
    assert set(found) == {"tokens"}
    assert len(found["tokens"]) == 40
    assert {r.width for r in found["tokens"]} == {2240}


def test_a_closed_form_makes_the_target_act_like_the_anchor(sana: Sana) -> None:
    z, t = sana.noise(4, torch.Generator().manual_seed(0)), torch.tensor([900.0, 600.0, 300.0, 100.0])

    def out(name: str) -> torch.Tensor:
        return sana.predict(z, t, sana.encode([name] * 4))

    cat, dog = out("cat"), out("dog")
    patch = UCE(rows="all", lam=1e-6).erase(sana, EraseRequest(("cat",), "dog"))
    with patch.applied(sana):
        left = float((out("cat") - dog).norm() / (cat - dog).norm())
    assert left < 0.01


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_lora_is_fused_and_unloaded(sana: Sana, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    patch = METHODS["esd"].preset("tiny", lr=1e-2).erase(sana, EraseRequest(("cat",)))
    export(patch, sana, tmp_path / "lora.safetensors", "diffusers")
    before = state(sana)
    with patch.applied(sana):
        expected = sana.sample(cases(), 4)
    pipe = sana._pipeline()[0]
    plain = stock(pipe, "a cat", 4, 4.5)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    pipe.fuse_lora()
    with pytest.raises(BadFile, match="adapter loaded"):
        load_model(pipe).weights(lambda _: True)
    # 1e-3: what the LoRA may leave out of the patch
    torch.testing.assert_close(stock(pipe, "a cat", 4, 4.5), expected, atol=1e-3, rtol=0)
    assert (expected - plain).abs().max() > 5e-3
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    found = state(load_model(pipe))
    for name, weight in before.items():  # fusing adds and subtracts, which rounds
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)
