"""Sana: a transformer with linear self-attention and cross-attention, trained as a rectified flow, whose text Gemma 2 reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadFile, BadOption
from .cond import MASK, Cond
from .cross import CrossTransformer
from .flow import DPM, FLOW_LACKS, UNIPC, FlowSchedule, flow_schedule_of
from .select import CROSS_SELECTIONS, Select
from .tokens import SoftPrompt, TokenSpan, last_words, read_rows, substituted, token_table

NEGATIVE = "\0"
"""In front of a negative prompt where encodings are kept: it is read otherwise than the same prompt."""
TEXT_ROWS = 300
"""Tokens of the text encoder that the stock pipeline gives to the network when it is not told otherwise."""


class Sana(CrossTransformer):
    """Adapter of one loaded Sana (``SanaPipeline``); see also :class:`CrossTransformer`.

    **Text.** The stock pipeline writes an instruction of some 200 tokens in front of every prompt ("complex human instruction";
    Xie et al. 2024, arXiv:2410.10629, section 3.1), and so does this adapter. Gemma 2 reads both, each token only what stands
    before it; the network gets the begin token and the last ``text_rows`` - 1 tokens, which leaves the instruction out but for a
    space at its end that becomes a part of the first word. Tokens are Gemma's last hidden states behind ``caption_projection``
    and ``caption_norm``, (B, ``text_rows``, 2240). Padding is masked; its rows are zeros here, and ``extras["mask"]`` says which
    rows are read. There is a begin token and no end token: the last word has read the whole prompt.

    Negative prompts, and so the empty one that guidance moves away from, are read without the instruction, as in the stock
    pipeline; :meth:`encode` of the empty prompt reads the instruction alone. Prompts are written in lower case, and not cleaned
    (``clean_caption``), both as the stock pipeline does by default. Gemma is the text encoder that methods may train.

    **Pictures** are drawn with the steps of the scheduler that the model comes with: DPM-Solver++(2M), that of the released
    models, or UniPC on flow sigmas, or Euler's. The network is told 1000 s, times its ``timestep_scale``; the first two leave
    fractions out of it.

    **Precision.** Linear attention multiplies in float32 in the stock pipeline. So it does here when pictures are drawn; while
    weights are trained in bfloat16 with copies in float32, torch's autocast makes these products in bfloat16.
    """

    family: ClassVar[str] = "sana"
    called: ClassVar[str] = "a Sana"
    kind: ClassVar[str] = "SanaTransformer2DModel"
    pipeline: ClassVar[str] = "SanaPipeline"
    reads_with: ClassVar[str] = "Gemma 2"
    projections: ClassVar[tuple[str, ...]] = ("caption_projection", "caption_norm")
    selections: ClassVar[Mapping[str, Select]] = CROSS_SELECTIONS
    starts: ClassVar[int] = 1
    ends: ClassVar[int] = 0
    usual_guidance, usual_steps = 4.5, 20
    schedule: FlowSchedule

    def __init__(self, *, text_rows: int = TEXT_ROWS, **parts: Any) -> None:
        """``text_rows``: the stock pipeline's ``max_sequence_length``."""
        self.text_rows = text_rows
        super().__init__(**parts)

    def _sized(self, scheduler: Mapping[str, Any]) -> None:
        config: Any = self.transformer.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        tokens = (config.sample_size // config.patch_size) ** 2
        self.schedule = flow_schedule_of(scheduler, tokens, repr(self.name), also=(DPM, UNIPC))
        self.usual_solver = self.schedule.usual_solver

    def _check_modules(self) -> None:
        super()._check_modules()
        if self.transformer.config.guidance_embeds:
            raise BadFile(f"{self.name!r} is distilled to few steps (Sana-Sprint), which efface does not erase from; load Sana.")

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
        from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
        from transformers import AutoTokenizer, Gemma2Model

        return {
            "tokenizer": AutoTokenizer,
            "text_encoder": Gemma2Model,
            "transformer": SanaTransformer2DModel,
            "vae": AutoencoderDC,
        }

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def _text(self) -> tuple[Any, Any, int]:
        return self.tokenizer, self.text_encoder, self.text_rows

    @cached_property
    def _instruction(self) -> str:
        """What the installed stock pipeline writes in front of a prompt."""
        told = inspect.signature(self._stock().__call__).parameters["complex_human_instruction"].default
        return "\n".join(told)

    @cached_property
    def _hidden_ids(self) -> list[int]:
        """Tokens of the instruction that Gemma reads and the network does not see: all but the begin token and the last one."""
        found: list[int] = self.tokenizer(self._instruction).input_ids[1:-1]
        return found

    def _written(self, prompts: Sequence[str]) -> tuple[Tensor, list[int], Tensor]:
        """(B, ``text_rows``) ids of the tokens that the network sees, how many of each prompt are no padding, and (B, n) ids of
        those between the begin token and the rest, which it does not see: as in the stock pipeline, by their places."""
        n = len(self._hidden_ids)
        rows = self.tokenizer([self._instruction + p.lower().strip() for p in prompts], verbose=False).input_ids
        ids, lengths = self._padded(prompts, [[row[0], *row[1 + n :]] for row in rows])
        return ids, lengths, torch.tensor([row[1 : 1 + n] for row in rows])

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        return self._written(prompts)[:2]

    def _read_prompts(self, prompts: Sequence[str]) -> Cond:
        ids, lengths, hidden = self._written(prompts)
        return self._cond(self._states(ids, lengths, None, hidden).last_hidden_state, lengths)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> SoftPrompt:
        for prompt, hidden in zip(prompts, self._written(prompts)[2].tolist(), strict=True):
            if hidden != self._hidden_ids:
                raise BadOption(f"the tokenizer joins the beginning of {prompt!r} with the instruction; write it otherwise.")
        return super().embed(prompts)

    def locate(self, prompt: str, phrase: str) -> TokenSpan:
        return super().locate(prompt, f" {phrase.lower().strip()}")  # every word stands behind a space, the first one too

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        hidden = torch.tensor([self._hidden_ids] * len(ids))
        return self._cond(self._states(ids, lengths, embeddings, hidden).last_hidden_state, lengths)

    def _states(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None, hidden: Tensor, **more: Any) -> Any:
        """What Gemma says of tokens (B, L), or of vectors (B, L, e) in their places, with ``hidden`` (B, n) behind the first."""
        self.evals.text += len(ids)
        table, between = token_table(self.text_encoder), hidden.to(ids)
        written = torch.cat([ids[:, :1], between, ids[:, 1:]], dim=1)
        mask = read_rows([n + between.shape[1] for n in lengths], written.shape[1]).long()
        vectors = embeddings
        if embeddings is not None:
            vectors = torch.cat([embeddings[:, :1], self._looked_up(table, between).to(embeddings), embeddings[:, 1:]], dim=1)
        with self._computing(self.text_encoder) as there, substituted(table, vectors):
            return self.text_encoder(written.to(there), attention_mask=mask.to(there), **more)

    def _seen(self, states: Tensor) -> Tensor:
        """(B, ``text_rows``, d): the begin token's and the last rows of what Gemma says of all tokens."""
        return torch.cat([states[:, :1], states[:, states.shape[1] - self.text_rows + 1 :]], dim=1)

    def _cond(self, states: Tensor, lengths: Sequence[int]) -> Cond:
        with self._running():
            tokens = self._projected(*self._given(self._seen(states.to(self.device))))
        mask = read_rows(lengths, self.text_rows).to(tokens)
        return Cond(tokens * mask[..., None], last_words(lengths, self.ends), {MASK: mask})

    @torch.no_grad()
    def encode_negative(self, prompts: Sequence[str]) -> Cond:
        kept = {p: f"{NEGATIVE}{p}" for p in prompts}
        missing = [p for p, key in kept.items() if key not in self._encoded]
        if missing:
            rows = self.tokenizer([p.lower().strip() for p in missing], verbose=False).input_ids
            ids, lengths = self._padded(missing, rows)
            c = self._cond(self._states(ids, lengths, None, ids[:, :0]).last_hidden_state, lengths)
            self._encoded |= {kept[p]: c[i] for i, p in enumerate(missing)}
        return Cond.cat([self._encoded[kept[p]] for p in prompts])

    @torch.no_grad()
    def text_layers(self, prompts: Sequence[str]) -> list[Cond]:
        ids, lengths, hidden = self._written(prompts)
        states = self._states(ids, lengths, None, hidden, output_hidden_states=True).hidden_states
        last = last_words(lengths, self.ends)
        return [Cond(self._seen(layer.to(self.device)), last) for layer in states]

    # -- network -------------------------------------------------------------------------------------------------

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        z, tokens = self._given(z_t, c.tokens)  # linear attention multiplies in float32, which autocast would undo
        with self._running(), self._reading_projected():
            output: Tensor = self.transformer(
                z,
                encoder_hidden_states=tokens,
                # In a mixture of prompts, what any of them reads is read.
                encoder_attention_mask=(c.extras[MASK] > 0).to(tokens),
                timestep=self.schedule.told(t) * self.transformer.config.timestep_scale,
                return_dict=False,
            )[0]
        return output.float()

    @property
    def lacking(self) -> Mapping[str, str]:
        return {**super().lacking, **FLOW_LACKS}
