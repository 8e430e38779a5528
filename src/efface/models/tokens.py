"""Where words sit among tokens, and prompts made of vectors instead of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadOption, PromptTooLong

SPACE, BYTE_SPACE = "\u2581", "\u0120"
"""How the space before a word is written by the tokenizers of T5 and Gemma, and by those of bytes, such as Qwen's."""


@dataclass(frozen=True)
class TokenSpan:
    """The positions of a phrase in a prompt, found by token ids."""

    starts: tuple[int, ...]
    """First position of every occurrence."""
    width: int
    """Tokens per occurrence."""
    eos: int
    """The position behind the last word: of the end token, where there is one. Everything after it is padding, or the end of a
    chat; also where the padding token is the end token."""

    @property
    def start(self) -> int:
        """First position of the first occurrence."""
        return self.starts[0]

    @property
    def stop(self) -> int:
        """The position after the first occurrence."""
        return self.starts[0] + self.width

    @property
    def positions(self) -> tuple[int, ...]:
        """Every position of every occurrence, ascending."""
        return tuple(sorted({s + i for s in self.starts for i in range(self.width)}))


def last_words(lengths: Sequence[int], ends: int = 1) -> Tensor:
    """(B,) index of each prompt's last word, the one before the ``ends`` tokens behind the words; 0 for an empty prompt."""
    return torch.tensor([max(n - 1 - ends, 0) for n in lengths])


def read_rows(lengths: Sequence[int], rows: int) -> Tensor:
    """(B, ``rows``) which rows of each prompt hold a token; the rest is padding."""
    return torch.arange(rows) < torch.tensor(lengths)[:, None]


def whole_words(tokenizer: Any) -> list[str]:
    """The words of letters that are one token: those that CLIP's tokenizer ends with ``</w>`` and others begin with a mark."""
    tokens = tokenizer.get_vocab()
    for mark in ("</w>", SPACE, BYTE_SPACE):
        if any(mark in t for t in tokens):
            tokens = [t.replace(mark, "") for t in tokens if (t.endswith(mark) if mark == "</w>" else t.startswith(mark))]
            break
    return sorted({w for w in tokens if len(w) > 1 and w.isascii() and w.isalpha()})


def occurrences(ids: Sequence[int], phrase: Sequence[int]) -> tuple[int, ...]:
    """Every index at which ``phrase`` stands in ``ids`` as a contiguous run; none for an empty phrase."""
    n, wanted = len(phrase), list(phrase)
    return tuple(i for i in range(len(ids) - n + 1) if list(ids[i : i + n]) == wanted) if n else ()


@dataclass(frozen=True)
class SoftPrompt:
    """Prompts as input embeddings of the text encoder, so that vectors can stand where words stood.

    Made by :meth:`DiffusionModel.embed`, read by :meth:`DiffusionModel.encode_soft`, which is differentiable in them.
    """

    embeddings: Tensor
    """(B, L, e) rows of the token table, before positions are added."""
    ids: Tensor
    """(B, L) the ids they were read at; 0 where a vector has no word. They say where the text ends and nothing else."""
    lengths: tuple[int, ...]
    """Tokens per prompt, start and end of text included."""
    pad: Tensor
    """(e,) the row that stands for padding."""
    pad_id: int
    beside: tuple[Tensor, Tensor] | None = None
    """Of an encoder that goes on reading the prompts as they were written: what T5 of SD3 made of them, rows (B, n, d), and (B,)
    the index of the last word among them; or what CLIP of FLUX will be given, ids (B, n), and (B,) lengths. Splicing does not
    change it."""
    starts: int = 1
    """Tokens in front of the words, which nothing replaces."""
    ends: int = 1
    """Tokens behind the words, which nothing replaces."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def splice(self, start: int, stop: int, rows: Tensor) -> SoftPrompt:
        """``rows`` in the place of positions start .. stop - 1, the rest of the text moved; start = stop inserts.

        rows: (m, e) for every prompt, or (B, m, e). Raises BadOption for a place that would hit start or end of text,
        PromptTooLong when the text would not fit any more.
        """
        end = min(self.lengths) - self.ends
        if not self.starts <= start <= stop <= end:
            raise BadOption(f"token positions {start} .. {stop} are not inside the prompt; its words end before {end}.")
        m, limit = rows.shape[-2], self.ids.shape[1]
        grown = m - (stop - start)
        if max(self.lengths) + grown > limit:
            raise PromptTooLong(
                f"with {m} vectors the prompt has {max(self.lengths) + grown} tokens, the model reads {limit}. Use fewer."
            )
        rows = rows.to(self.embeddings).expand(len(self), m, -1)
        filler = self.pad.expand(len(self), max(-grown, 0), -1)
        no_word, padding = (self.ids.new_full((len(self), n), i) for n, i in ((m, 0), (max(-grown, 0), self.pad_id)))
        return SoftPrompt(
            torch.cat([self.embeddings[:, :start], rows, self.embeddings[:, stop:], filler], dim=1)[:, :limit],
            torch.cat([self.ids[:, :start], no_word, self.ids[:, stop:], padding], dim=1)[:, :limit],
            tuple(n + grown for n in self.lengths),
            self.pad,
            self.pad_id,
            self.beside,
            self.starts,
            self.ends,
        )


def token_table(encoder: Any) -> nn.Module:
    """The module that a text encoder looks tokens up in. T5 names another one as its input embeddings, of the same weights."""
    inside = getattr(getattr(encoder, "encoder", None), "embed_tokens", None)
    found: nn.Module = encoder.get_input_embeddings() if inside is None else inside
    return found


@contextmanager
def substituted(table: nn.Module, embeddings: Tensor | None) -> Iterator[None]:
    """Inside, the token table answers with ``embeddings`` whatever it is asked; every other part of the encoder is stock, and so
    is the table where there are none."""
    if embeddings is None:
        yield
        return
    handle = table.register_forward_hook(lambda module, args, output: embeddings.to(output))
    try:
        yield
    finally:
        handle.remove()
