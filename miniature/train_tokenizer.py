"""Stage ``tokenizer``: a CLIP-style BPE trained on captions, saved as a transformers ``CLIPTokenizer``."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from efface.models.icon_world import IconWorld

from .data import caption
from .networks import MINI, Sizes

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
VOCAB = 1900


def corpus(world: IconWorld, n: int) -> list[str]:
    rng = random.Random(0)
    lines = [
        caption(world, rng.choice(world.concepts).name, rng.choice(world.all_styles), rng.choice(world.backgrounds), rng)
        for _ in range(n)
    ]
    for c in world.concepts:  # every name and description often enough to become whole-word tokens
        lines += [c.name, *c.synonyms, *c.implicit] * 40
    return lines


def train(world: IconWorld, work: Path, sizes: Sizes = MINI, vocabulary: int = VOCAB, captions: int = 60_000) -> None:
    bpe = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
        min_frequency=2,
    )
    lines = corpus(world, captions)
    bpe.train_from_iterator(lines, trainer)
    learned = bpe.get_vocab()
    # As in OpenAI's CLIP: bytes, bytes with the word end, merges, then the two specials last.
    vocab = {t: i for i, t in enumerate(alphabet)}
    for t in alphabet:
        vocab.setdefault(t + "</w>", len(vocab))
    for t, _ in sorted(learned.items(), key=lambda kv: kv[1]):
        vocab.setdefault(t, len(vocab))
    for t in (BOS, EOS):
        vocab[t] = len(vocab)
    import json

    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=sizes.tokens)
    longest = max(len(tokenizer(line).input_ids) for line in set(lines))
    words = {w for c in world.concepts for w in c.name.split()}
    split = [w for w in words if len(tokenizer(w).input_ids) != 3]
    print(
        f"vocabulary {len(tokenizer)}, longest caption {longest} of {sizes.tokens} tokens, "
        f"name words that are not one token: {split}"
    )
    if longest > sizes.tokens:
        raise SystemExit(f"a caption has {longest} tokens, more than the {sizes.tokens} positions of the text encoder.")
    tokenizer.save_pretrained(work / "tokenizer")
    again = CLIPTokenizer.from_pretrained(work / "tokenizer")
    assert again(lines[0]).input_ids == tokenizer(lines[0]).input_ids
    print(
        tokenizer.tokenize("a twemoji Delivery  Truck on a red background"),
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        again.model_max_length,
    )
