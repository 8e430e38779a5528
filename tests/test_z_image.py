"""What is special to Z-Image, on a tiny model of the real classes: a chat around the prompt, time and sign that run backwards,
and one stream of text and picture. What it shares with other families is in test_families.py."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from efface import verbs
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, BadOption, BadRequest, PromptTooLong, UnknownName
from efface.guards import Negative
from efface.methods import ESD, UCE
from efface.models.cond import MASK, Cond
from efface.models.load import load_model
from efface.models.low_rank import low_rank_student
from efface.models.readers import text_readers
from efface.models.select import FOR_TEXT, Z_IMAGE_SELECTIONS, text_layers, z_shared
from efface.models.text_rows import is_unchanged, moved, text_rows_of
from efface.models.tiny import TINY_T5_ROWS, tiny_z_image
from efface.models.tokens import BYTE_SPACE
from efface.models.z_image import ZImage
from efface.patches import Patch, PatchCard
from efface.patches.export import FORMATS, export
from efface.preservation.adversary import of_one_token, word_rows, worded
from efface.registry import METHODS
from efface.testing import same, state

PROMPTS = ("a cat", "a Photo of the castle")
ROWS = TINY_T5_ROWS + 8


@pytest.fixture
def z_image() -> ZImage:
    return tiny_z_image()


def stock(pipe: Any, prompt: str, steps: int, g: float, **more: Any) -> torch.Tensor:
    """(1, 3, H, W) from the latent that efface draws for seed 0; ``g`` is the pipeline's own scale."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    facts = {"height": 16, "width": 16, "output_type": "pt", "max_sequence_length": ROWS, "latents": noise, **more}
    out: torch.Tensor = pipe([prompt], num_inference_steps=steps, guidance_scale=g, **facts).images
    return out


def cases(scale: float = 4.0) -> list[Case]:
    return [Case("x", "", "a cat", 0, scale)]


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


def test_encodings_are_those_of_the_stock_pipeline(z_image: ZImage) -> None:
    """encode_prompt gives Qwen3's hidden states of real tokens; the linear layer reads them behind the norm before it."""
    prompts = [*PROMPTS, ""]
    positive, negative = z_image._pipeline()[0].encode_prompt(list(prompts), max_sequence_length=ROWS)
    c, null, norm = z_image.encode(prompts), z_image.unconditional(3), z_image.transformer.cap_embedder[0]
    assert c.counts() == [len(rows) for rows in positive] == [10, 13, 8]
    for i in range(3):
        torch.testing.assert_close(c.tokens[i, : c.counts()[i]], norm(positive[i]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(null.tokens[i, :8], norm(negative[i]), atol=1e-5, rtol=1e-5)
    assert (z_image.starts, z_image.ends) == (3, 5)
    assert c.last.tolist() == [4, 7, 2]


def test_qwen_s_own_tokenizer_has_words_with_the_space_before_them() -> None:
    """Its class, with bytes and three words: the first word of a prompt is another token than the same word later on."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    z_image, merges, merged = tiny_z_image(), list[tuple[str, str]](), list[str]()
    for word in ("cat", "dog", "the"):
        steps = [word[: i + 1] for i in range(len(word))]
        merges += [(a, b[-1]) for a, b in pairwise(steps)] + [(BYTE_SPACE, word)]
        merged += [*steps[1:], BYTE_SPACE + word]
    vocab = {t: i for i, t in enumerate([*sorted(ByteLevel.alphabet()), *merged])}
    theirs = Qwen2Tokenizer(vocab=vocab, merges=merges)
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # type: ignore[dict-item]
    theirs.chat_template = z_image.tokenizer.chat_template
    z_image.text_encoder.set_input_embeddings(torch.nn.Embedding(len(theirs), 32))
    parts = {part: getattr(z_image, part) for part in ("text_encoder", "transformer", "vae")}
    model = ZImage(name="qwen", tokenizer=theirs, scheduler={}, text_rows=64, side=8, **parts)
    prompts = ["the cat", "cat dog", ""]
    positive, _ = model._pipeline()[0].encode_prompt(list(prompts), max_sequence_length=64)
    c = model.encode(prompts)
    assert c.counts() == [len(rows) for rows in positive]
    for i in range(3):
        expected = model.transformer.cap_embedder[0](positive[i])
        torch.testing.assert_close(c.tokens[i, : c.counts()[i]], expected, atol=1e-5, rtol=1e-5)
    assert c.last.tolist() == [model.starts + 1, model.starts + 1, model.starts - 1]
    assert model.locate("the cat", "cat").starts == (model.starts + 1,)
    assert model.locate("cat the cat", "cat").starts == (model.starts, model.starts + 2)
    assert {"cat", "dog", "the"} <= set(model.vocabulary())


def test_time_and_sign_are_turned(z_image: ZImage) -> None:
    """The network is told 1 - s and gives x0 - noise; predict gives noise - x0, of which clean latents and noise follow."""
    z, t, c = z_image.case_noise([0]), torch.tensor([250.0]), z_image.encode(["a cat"])
    rows = z_image._pipeline()[0].encode_prompt(["a cat"], max_sequence_length=ROWS)[0]
    raw = z_image.transformer([z[0][:, None]], torch.tensor([0.75]), rows, return_dict=False)[0][0]
    torch.testing.assert_close(z_image.predict(z, t, c)[0], -raw[:, 0], atol=1e-5, rtol=1e-5)


def test_scales_are_those_of_other_families(z_image: ZImage) -> None:
    pipe = z_image._pipeline()[0]
    torch.testing.assert_close(z_image.sample(cases(5.0), 3), stock(pipe, "a cat", 3, 4.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_image.sample(cases(1.0), 3), stock(pipe, "a cat", 3, 0.0), atol=1e-5, rtol=0)
    with Negative(text="the dog").active(z_image, ("dog",)):
        ours = z_image.sample(cases(5.0), 3)
    torch.testing.assert_close(ours, stock(pipe, "a cat", 3, 4.0, negative_prompt=["the dog"]), atol=1e-5, rtol=0)


def test_folders_pipelines_and_refusals(z_image: ZImage, tmp_path: Path) -> None:
    pipe = z_image._pipeline()[0]
    pipe.save_pretrained(tmp_path / "m")
    loaded, wrapped = load_model(tmp_path / "m"), load_model(pipe)
    expected = z_image.sample(cases(), 3)
    for model in (loaded, wrapped):
        assert isinstance(model, ZImage)
        assert (model.text_rows, model.side, model.starts, model.ends) == (512, 128, 3, 5)
        model.side = 8
        model._sized(dict(model.schedule.config))
        torch.testing.assert_close(model.sample(cases(), 3), expected, atol=1e-5, rtol=0)
    assert wrapped.transformer is pipe.transformer  # type: ignore[attr-defined]
    for changed, told in (
        ({"siglip_feat_dim": 8}, "Omni"),
        ({"all_patch_size": (1,)}, "patches of 2 x 2"),
        ({"in_channels": 9}, "reads 9"),
    ):
        with pytest.raises(BadFile, match=told):
            tiny_z_image(**changed)
    with pytest.raises(PromptTooLong, match="25 tokens"):
        z_image.encode(["a " * 16 + "cat"])
    with pytest.raises(BadFile, match="samples with DDIMScheduler"):
        z_image._sized({"_class_name": "DDIMScheduler"})
    with pytest.raises(UnknownName, match="text-attn"):
        z_image.select("selfattn")
    folder = tmp_path / "omni"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "ZImageOmniPipeline"}')
    with pytest.raises(BadFile, match="ZImageOmniPipeline"):
        load_model(folder)
    pipe.tokenizer.chat_template = None
    with pytest.raises(BadFile, match="no chat template"):
        load_model(pipe)


# -- words -------------------------------------------------------------------------------------------------------------


def test_padding_is_not_read(z_image: ZImage) -> None:
    z, t, c = z_image.case_noise([0]), torch.tensor([500.0]), z_image.encode(["a cat"])
    other = dataclasses.replace(c, tokens=torch.where(c.extras[MASK][..., None] > 0, c.tokens, 5.0))
    assert torch.equal(z_image.predict(z, t, other), z_image.predict(z, t, c))


def test_vectors_stand_in_the_places_of_words(z_image: ZImage) -> None:
    words, rows = word_rows(z_image)
    assert "cat" in words
    assert of_one_token(z_image, ["cat", "a cat"]) == ["cat"]
    dog = rows[words.index("dog")][None, None]
    torch.testing.assert_close(worded(z_image, ["cat"], dog, "replace").tokens, z_image.encode(["dog"]).tokens)
    assert worded(z_image, ["a cat"], dog, "suffix").counts() == [11]
    assert worded(z_image, ["a cat"], dog, "insert").last.tolist() == [5]


def test_words_are_found_with_the_space_before_them_and_without(z_image: ZImage) -> None:
    assert z_image.locate("a photo of a cat", "cat").starts == (7,)
    assert z_image.locate("cat of the cat", "cat").starts == (3, 6)
    assert z_image.locate("the cat", "the cat").starts == (3,)
    assert z_image.locate("a cat", "cat").eos == 5
    with pytest.raises(BadRequest, match="does not stand"):
        z_image.locate("a cat", "dog")


def test_the_text_encoder_that_is_trained_is_qwen(z_image: ZImage) -> None:
    layers = z_image.text_layers(["a cat"])
    assert len(layers) == 4  # the embeddings, and three layers
    assert all(n.startswith("text_encoder.layers.1.") for n in z_image.weights(text_layers("1")))
    before = state(z_image)
    patch = METHODS["advunlearn"].preset("tiny", lr=1e-2).erase(z_image, EraseRequest(("cat",)))
    assert all(n.startswith("text_encoder.") for n in patch.deltas)
    assert same(state(z_image), before)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_selections_and_readers_match_z_image() -> None:
    """Z-Image is the class's own configuration."""
    from diffusers import ZImageTransformer2DModel

    with torch.device("meta"):
        network = ZImageTransformer2DModel()
    sizes = {f"transformer.{n}": p.numel() for n, p in network.named_parameters()}
    assert sum(sizes.values()) == 6_154_908_736
    expected = {
        "text-kv": (4, 58_982_400),
        "text-attn": (8, 117_964_800),
        "text": (15, 363_724_800),
        "context": (2, 9_834_240),
        "single-attn": (120, 1_769_472_000),
        "image-attn": (128, 1_887_436_800),
        "joint": (136, 2_005_401_600),
    }
    for name, (tensors, numbers) in expected.items():
        chosen = [n for n in sizes if Z_IMAGE_SELECTIONS[name](n)]
        assert (len(chosen), sum(sizes[n] for n in chosen)) == (tensors, numbers), name
    assert [n for n in sizes if not Z_IMAGE_SELECTIONS["full"](n)] == ["transformer.cap_embedder.0.weight"]
    assert not [n for n in sizes if Z_IMAGE_SELECTIONS["noxattn"](n) and Z_IMAGE_SELECTIONS["xattn"](n)]
    (reader,) = text_readers(network)["tokens"]
    assert (reader.name, reader.width) == ("cap_embedder.1.weight", 2560)


def test_what_acts_on_the_text_alone_leaves_the_picture_s_own_way(z_image: ZImage) -> None:
    """The stream of the picture behind its refiner is the same under a patch of ``text``, and the prediction is not."""
    seen: list[torch.Tensor] = []
    refiner = z_image.transformer.noise_refiner[-1]
    handle = refiner.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    z, t, c = z_image.case_noise([0]), torch.tensor([500.0]), z_image.encode(["a cat"])
    plain = z_image.predict(z, t, c)
    patch = ESD.preset("tiny", lr=1e-2).erase(z_image, EraseRequest(("cat",)))
    seen.clear()
    z_image.predict(z, t, c)
    with patch.applied(z_image):
        assert (z_image.predict(z, t, c) - plain).abs().max() > 1e-4
    handle.remove()
    assert torch.equal(seen[0], seen[1])


def test_a_closed_form_makes_the_target_act_like_the_anchor(z_image: ZImage) -> None:
    z, t = z_image.noise(4, torch.Generator().manual_seed(0)), torch.tensor([900.0, 600.0, 300.0, 100.0])

    def out(name: str) -> torch.Tensor:
        return z_image.predict(z, t, z_image.encode([name] * 4))

    cat, dog = out("cat"), out("dog")
    patch = UCE(rows="all", lam=1e-6).erase(z_image, EraseRequest(("cat",), "dog"))
    with patch.applied(z_image):
        left = float((out("cat") - dog).norm() / (cat - dog).norm())
    assert left < 0.01


# -- shared layers, changed for the rows of the text alone --------------------------------------------------------------


def card(z_image: ZImage) -> PatchCard:
    return PatchCard("planted", {}, EraseRequest(("cat",)), {"digest": z_image.digest()})


def keys(z_image: ZImage, z: torch.Tensor, c: Cond) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first shared block's projection to keys gets and gives in one prediction, (B, L, d) both."""
    attention, seen = z_image.transformer.layers[0].attention, dict[str, torch.Tensor]()
    hooks = [
        attention.to_k.register_forward_pre_hook(lambda module, args: seen.update(into=args[0])),
        attention.norm_k.register_forward_pre_hook(lambda module, args: seen.update(out=args[0].flatten(2))),
    ]
    with torch.no_grad():
        z_image.predict(z, torch.full((len(z),), 500.0), c)
    for hook in hooks:
        hook.remove()
    return seen["into"], seen["out"]


def test_counts_of_changes_for_the_text_alone() -> None:
    from diffusers import ZImageTransformer2DModel

    with torch.device("meta"):
        network = ZImageTransformer2DModel()
    rows = text_rows_of(network, "transformer", z_shared)
    for name, (tensors, numbers) in {"joint-text-kv": (60, 884_736_000), "joint-text-attn": (120, 1_769_472_000)}.items():
        chosen = [n for n in rows if Z_IMAGE_SELECTIONS[name](n)]
        assert (len(chosen), sum(rows[n].numel() for n in chosen)) == (tensors, numbers), name
    others = set(Z_IMAGE_SELECTIONS) - {"joint-text-kv", "joint-text-attn"}
    assert not [(name, n) for name in others for n in rows if Z_IMAGE_SELECTIONS[name](n)]


@pytest.mark.parametrize(("sides", "start"), [((8, 8), 32), ((16, 16), 64), ((8, 20), 64)])
def test_a_change_for_the_text_alone_acts_on_its_rows_at_every_size(z_image: ZImage, sides: tuple[int, int], start: int) -> None:
    """At rows of words the layer is ``W + D``; at those of the picture, and of padding, it is W to the bit."""
    layer = z_image.transformer.layers[0].attention.to_k
    assert layer.bias is None
    d = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    z, c = torch.randn(2, 4, *sides, generator=torch.Generator().manual_seed(1)), z_image.encode(PROMPTS)
    plain_in, plain = keys(z_image, z, c)
    with Patch({f"transformer.layers.0.attention.to_k{FOR_TEXT}": d}, card(z_image)).applied(z_image):
        same_in, changed = keys(z_image, z, c)
    assert torch.equal(plain_in, same_in)
    is_text = torch.zeros(plain.shape[:2], dtype=torch.bool)
    for i, n in enumerate(c.counts()):
        is_text[i, start : start + n] = True
    assert torch.equal(changed[~is_text], plain[~is_text])
    torch.testing.assert_close(changed[is_text], plain_in[is_text] @ (layer.weight + d).T)


def test_an_erasure_for_the_text_alone_from_training_to_file(z_image: ZImage, tmp_path: Path) -> None:
    before, digest = state(z_image), z_image.digest()
    method = ESD.preset("tiny", lr=1e-2, train="joint-text-kv")
    patch = method.erase(z_image, EraseRequest(("cat",)))
    assert set(patch.deltas) == {f"transformer.layers.{i}.attention.to_{x}{FOR_TEXT}" for i in (0, 1) for x in "kv"}
    patch.save(tmp_path / "patch.safetensors")
    plain = z_image.sample(cases(), 2)
    with Patch.load(tmp_path / "patch.safetensors").applied(z_image):
        assert z_image.digest() != digest, "what is changed is no base of another patch"
        with pytest.raises(BadOption, match="a folder of diffusers has no place"):
            z_image.save_folder(tmp_path / "changed")
        assert (z_image.sample(cases(), 2) - plain).abs().max() > 1e-4
    assert torch.equal(z_image.sample(cases(), 2), plain)
    assert same(before, state(z_image))
    assert z_image.digest() == digest
    for to in FORMATS:
        with pytest.raises(BadOption, match="rows of the text alone"):
            export(patch, z_image, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()
    pipe = z_image._pipeline()[0]
    with pytest.raises(BadOption, match="pipeline of diffusers"):
        verbs.apply(pipe, patch)
    on = verbs.apply(pipe, UCE().erase(z_image, EraseRequest(("cat",), "dog")))
    with pytest.raises(BadOption, match="pipeline of diffusers"):
        on.add("rows", patch)
    on.revert()
    assert same(before, state(z_image))
    export(UCE().erase(z_image, EraseRequest(("cat",), "dog")), z_image, tmp_path / "folder", "folder")
    with pytest.raises(BadOption, match="rank=0"):
        low_rank_student(z_image, z_image.select("joint-text-kv"), 2, torch.Generator())


def test_activations_that_are_computed_again_know_their_own_rows(z_image: ZImage) -> None:
    """Two predictions of other lengths before one gradient, with and without checkpointing."""
    select, z, t = z_image.select("joint-text-kv"), z_image.case_noise([0]), torch.tensor([500.0])

    def gradients() -> list[torch.Tensor]:
        student = z_image.student(select)
        weights = student.weights(select)
        for i, p in enumerate(weights.values()):
            p.data = 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
            p.requires_grad_(True)
        loss = sum(student.predict(z, t, student.encode([prompt])).square().sum() for prompt in PROMPTS)
        return list(torch.autograd.grad(loss, list(weights.values())))

    plain = gradients()
    z_image.configure(checkpointing=True)
    again = gradients()
    z_image.transformer.disable_gradient_checkpointing()
    assert z_image.transformer._gradient_checkpointing_func is not None, "diffusers leaves the function where it was"
    off = gradients()
    assert all(g.abs().max() > 0 for g in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_changes_for_the_text_alone_take_no_memory_before_they_are_made(z_image: ZImage) -> None:
    rows = z_image.weights(lambda n: n.endswith(FOR_TEXT))
    assert all(d.untyped_storage().nbytes() == 4 and not d.any() for d in rows.values())
    z_image.place("device", "cpu")
    assert all(z_image.weights(lambda n: n.endswith(FOR_TEXT))[n] is d for n, d in rows.items())
    away = moved({n: torch.nn.Parameter(d.detach()) for n, d in rows.items()}, torch.device("meta"))
    assert all(d.is_meta and is_unchanged(d) for d in away.values())
    z_image.store("fp8")
    patch = Patch({n: torch.ones_like(d) for n, d in rows.items()}, card(z_image))
    z, t, c = z_image.case_noise([0]), torch.tensor([500.0]), z_image.encode(["a cat"])
    plain = z_image.predict(z, t, c)
    with patch.applied(z_image):
        assert (z_image.predict(z, t, c) - plain).abs().max() > 1e-4, "eight bits replace the layers' forward"
    assert torch.equal(z_image.predict(z, t, c), plain)


def test_a_compiled_network_would_not_see_changes_for_the_text_alone(z_image: ZImage) -> None:
    z_image.compiled = True
    z, t, c = z_image.case_noise([0]), torch.tensor([500.0]), z_image.encode(["a cat"])
    z_image.predict(z, t, c)
    rows = z_image.weights(lambda n: n.endswith(FOR_TEXT))
    with (
        Patch({n: torch.ones_like(d) for n, d in rows.items()}, card(z_image)).applied(z_image),
        pytest.raises(BadOption, match="--compile"),
    ):
        z_image.predict(z, t, c)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_lora_is_fused_and_unloaded(z_image: ZImage, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    patch = ESD.preset("tiny", lr=1e-2).erase(z_image, EraseRequest(("cat",)))
    export(patch, z_image, tmp_path / "lora.safetensors", "diffusers")
    before = state(z_image)
    with patch.applied(z_image):
        expected = z_image.sample(cases(), 4)
    pipe = z_image._pipeline()[0]
    plain = stock(pipe, "a cat", 4, 3.0)
    pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    pipe.fuse_lora()
    # 1e-3: what the LoRA may leave out of the patch
    torch.testing.assert_close(stock(pipe, "a cat", 4, 3.0), expected, atol=1e-3, rtol=0)
    assert (expected - plain).abs().max() > 5e-3
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    for name, weight in before.items():  # fusing adds and subtracts, which rounds
        torch.testing.assert_close(state(z_image)[name], weight, atol=1e-6, rtol=0)
