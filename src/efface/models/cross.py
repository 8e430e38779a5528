"""Adapters of transformers that read their text by cross-attention, ``attn2`` in every block, as UNets do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import BadFile
from .cond import Cond
from .tokens import SoftPrompt, substituted, token_table
from .transformer import TransformerModel, passing


class CrossTransformer(TransformerModel):
    """Abstract. Text enters by the keys and values of ``attn2``, so closed forms, attention maps and further tokens carry over
    from UNets.

    Tokens are what those layers read: the text encoder's output behind the layers of the network that project it
    (``projections``), so that an edit and an attacker see what ``attn2`` multiplies. The projections count as a part of how text
    is read and are in no selection; a patch that changes them is applied like every other.
    """

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    t5_parts: ClassVar[tuple[str, str]] = ("tokenizer", "text_encoder")
    pipeline: ClassVar[str]
    """Class of the stock pipeline."""
    projections: ClassVar[tuple[str, ...]] = ("caption_projection",)
    """Layers of the network between the text encoder and ``attn2``, in order."""

    @classmethod
    def _stock(cls) -> Any:
        import diffusers

        return getattr(diffusers, cls.pipeline)

    @classmethod
    def from_single_file(cls, path: Path, *, dtype: str, device: str) -> Any:
        """Refused: such files leave the text encoder out, or are not read by diffusers."""
        raise BadFile(f"{str(path)!r} is a single file, which lacks the text encoder of {cls.called}; load a folder or Hub id.")

    def _check_modules(self) -> None:
        super()._check_modules()
        for name in self.projections:
            try:
                self.transformer.get_submodule(name)
            except AttributeError as error:
                raise BadFile(f"the transformer of {self.name!r} has no {name}; load {self.called} as it came.") from error

    def _layers(self) -> list[nn.Module]:
        found: list[nn.Module] = [self.transformer.get_submodule(name) for name in self.projections]
        return found

    def _projected(self, hidden: Tensor) -> Tensor:
        """What ``attn2`` reads of the text encoder's output (B, L, d)."""
        for layer in self._layers():
            hidden = layer(hidden)
        return hidden

    def _hidden(self, ids: Tensor, mask: Tensor, embeddings: Tensor | None) -> Tensor:
        """(B, L, d) last hidden states of the text encoder, for tokens (B, L) or vectors in their places, of which ``mask`` are
        read."""
        encoder = self._text[1]
        with self._computing(encoder) as there, substituted(token_table(encoder), embeddings):
            hidden: Tensor = encoder(ids.to(there), attention_mask=mask.long().to(there)).last_hidden_state
        return hidden.to(self.device)

    def _reading_projected(self) -> AbstractContextManager[None]:
        """Inside, the projections pass on what they get: they were applied when the text was read."""
        return passing(self._layers())

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        return self._read(prompts.ids, prompts.lengths, prompts.embeddings)

    # -- what this family lacks ----------------------------------------------------------------------------------

    @property
    def lacking(self) -> Mapping[str, str]:
        begun = {} if self.starts else {"start_detached": f"{self.reads_with} has no begin token; set detach_start=false"}
        return {**super().lacking, **begun, "places": "its blocks are all alike and have no middle; set place=inmidout"}

    def start_detached(self) -> AbstractContextManager[None]:
        if "start_detached" in self.lacking:
            raise self._refusal("start_detached")
        return super().start_detached()

    @property
    def _of_the_family(self) -> Mapping[str, object]:
        return {"cross_attention_dim": self._width, "t5_rows" if self.reads_with.endswith("T5") else "text_rows": self._text[2]}

    @property
    def _width(self) -> int:
        """Of what ``attn2`` reads."""
        config: Any = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    @property
    def _numbers_per_prompt(self) -> int:
        return self._text[2] * self._width
