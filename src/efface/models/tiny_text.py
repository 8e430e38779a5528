"""The tokenizers of the tiny models, whose words are :data:`TINY_WORDS`, and their text encoders of CLIP's and T5's classes."""

from __future__ import annotations

from typing import Any

from .tokens import BYTE_SPACE, SPACE

TINY_WORDS = (
    "cat",
    "dog",
    "car",
    "bus",
    "truck",
    "rose",
    "tulip",
    "castle",
    "church",
    "house",
    "sword",
    "knife",
    "a",
    "photo",
    "of",
    "the",
)


def clip_words(pad: str = "") -> Any:
    """A tokenizer of CLIP's own class that reads 24 tokens; ``pad``: another padding token than the end token."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*alphabet, *(a + "</w>" for a in alphabet)])}
    merges: list[tuple[str, str]] = []
    for word in TINY_WORDS:
        left = word[0]
        for i, ch in enumerate(word[1:], 2):
            right = ch + "</w>" if i == len(word) else ch
            if left + right not in vocab:
                merges.append((left, right))
                vocab[left + right] = len(vocab)
            left += right
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=24)
    if pad:
        tokenizer.pad_token = pad
    return tokenizer


def t5_words() -> Any:
    """A tokenizer of T5's kind: whole words, an end token, no begin token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(("<pad>", "</s>", "<unk>", *TINY_WORDS))}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **special)


def gemma_words() -> Any:
    """A tokenizer of Gemma's kind: a begin token, no end token, and words that hold the space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*TINY_WORDS, SPACE, *(SPACE + word for word in TINY_WORDS)]
    vocab = {t: i for i, t in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *words))}
    spaced = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never")
    spaced.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=spaced, padding_side="right", **special)


def qwen_words() -> Any:
    """A tokenizer of Qwen's kind: words that hold the space before them, no begin token, and a chat template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*TINY_WORDS, *(BYTE_SPACE + word for word in TINY_WORDS), "user", "assistant", "\n"]
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
    chat = Tokenizer(models.WordLevel({t: i for i, t in enumerate((*special, *words))}, unk_token="<unk>"))
    spaced = pre_tokenizers.Metaspace(replacement=BYTE_SPACE, prepend_scheme="never")
    chat.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("\n"), "isolated"), spaced])
    chat.add_special_tokens(list(special[:3]))
    return PreTrainedTokenizerFast(
        tokenizer_object=chat,
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        padding_side="right",
        chat_template="{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<unk>{% endif %}{% endif %}",
    )


def clip_encoder(cls: Any, tokenizer: Any, hidden_size: int = 16) -> Any:
    """A CLIP text encoder of class ``cls``, two layers deep."""
    from transformers import CLIPTextConfig

    encoder = cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            projection_dim=hidden_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=1.0,
        )
    )
    # The CLIP initialiser makes all prompts nearly equal; a spread embedding gives the contract tests something to see.
    encoder.get_input_embeddings().weight.data.normal_()
    return encoder


def t5_encoder(tokenizer: Any, cls: Any = None, config: Any = None) -> Any:
    """A T5 of width 48, two layers deep; or of a class like T5's with its configuration."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 48, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    told = (config or T5Config)(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes)
    encoder = (cls or T5EncoderModel)(told)
    encoder.get_input_embeddings().weight.data.normal_()
    return encoder.eval()
