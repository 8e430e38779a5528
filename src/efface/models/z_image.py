"""Z-Image: one stream of text and picture, trained as a rectified flow that runs backwards, whose text Qwen3 reads in a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import BadFile, BadOption, BadRequest
from .cond import MASK, Cond
from .flow import JointFlow
from .select import Z_IMAGE_SELECTIONS, Select, z_shared
from .text_rows import is_unchanged, moved, owned, read_by, text_rows_of
from .tokens import SoftPrompt, TokenSpan, last_words, occurrences, read_rows, substituted, token_table
from .transformer import passing

ROWS_AT_ONCE = 32
"""The network fills up the rows of the picture, and those of the text, to a multiple of this."""
SIDE = 128
"""Side of latents that the stock pipeline draws when it is not told otherwise: pictures of 1,024 pixels."""
TEXT_ROWS = 512
"""The most tokens of a prompt in the stock pipeline, those of the chat included (``max_sequence_length``)."""


class ZImage(JointFlow):
    """Adapter of one loaded Z-Image, base or Turbo (``ZImagePipeline``); see also :class:`JointFlow`.

    **Text.** The prompt is the message of a user in the chat template of the tokenizer, "thinking" on. Tokens are Qwen3's hidden
    states before its last layer, behind the norm of the network's ``cap_embedder``, (B, ``text_rows``, 2560). The network gets
    real tokens alone, those of the chat included; ``extras["mask"]`` says which they are. ``starts`` tokens of the chat stand in
    front of the words, ``ends`` behind. Qwen3 is the text encoder that methods may train.

    **Time and sign.** Z-Image counts time from noise to picture, (1000 - t) / 1000, and gives the negative velocity. Both are
    turned here: ``predict`` gives ``noise - x0`` at t = 1000 s, as for every other flow.

    **Guidance.** The stock pipeline adds ``g (positive - negative)`` to the positive prediction. Here the scale is that of every
    other family, ``s = g + 1``: 6 for the pipeline's default of 5. Turbo was distilled to draw without guidance in 8 or 9 steps,
    which none of its files says: give it a scale of 1 and so many steps. ``cfg_normalization`` and ``cfg_truncation`` are off, as
    they are by default.

    **Weights.** ``cap_embedder`` and ``context_refiner`` act on the text alone. All 30 blocks behind them share every weight
    between text and picture, so no change of theirs acts on the text alone; a change of their attention for the rows of the text
    alone is a weight of its own here (:mod:`efface.models.text_rows`). Closed forms edit the linear layer of ``cap_embedder``,
    where Qwen3's output enters.
    """

    family: ClassVar[str] = "z-image"
    called: ClassVar[str] = "a Z-Image"
    kind: ClassVar[str] = "ZImageTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    t5_parts: ClassVar[tuple[str, str]] = ("tokenizer", "text_encoder")
    selections: ClassVar[Mapping[str, Select]] = Z_IMAGE_SELECTIONS
    even: ClassVar[bool] = True
    entry: ClassVar[str] = "cap_embedder"
    usual_guidance, usual_steps = 6.0, 50
    _rows: Mapping[str, nn.Parameter] = {}
    """See :mod:`efface.models.text_rows`."""

    def __init__(self, *, text_rows: int = TEXT_ROWS, side: int = SIDE, **parts: Any) -> None:
        """``side``: of latents; a picture has 8 times as many pixels. ``text_rows``: see :data:`TEXT_ROWS`."""
        self.side, self.text_rows = side, text_rows
        super().__init__(**parts)
        self._rows = text_rows_of(self.transformer, self.part, z_shared)
        before, behind = self._chat
        self.starts = len(self.tokenizer(before).input_ids)  # type: ignore[misc]  # of this tokenizer
        self.ends = len(self.tokenizer(behind, add_special_tokens=False).input_ids)  # type: ignore[misc]

    @property
    def _picture(self) -> tuple[int, int, int]:
        return self.transformer.config.in_channels, self.side, (self.side // 2) ** 2

    @property
    def _channels(self) -> tuple[int, int]:
        channels = self.transformer.config.in_channels
        return channels, channels

    def _check_modules(self) -> None:
        super()._check_modules()
        config: Any = self.transformer.config
        if config.siglip_feat_dim is not None:
            raise BadFile(f"{self.name!r} also reads pictures (Z-Image-Omni), which efface does not do; load Z-Image.")
        if 2 not in config.all_patch_size or 1 not in config.all_f_patch_size:
            raise BadFile(f"{self.name!r} has no patches of 2 x 2, which the stock pipeline draws by; load Z-Image as it came.")

    def _t5(self) -> list[Any]:
        return []  # the one encoder is trained like every other, and is in ``encoders``

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def _stock(cls) -> Any:
        from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline

        return ZImagePipeline

    @classmethod
    def _kinds(cls) -> dict[str, Any]:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
        from transformers import AutoTokenizer, Qwen3Model

        return {
            "tokenizer": AutoTokenizer,
            "text_encoder": Qwen3Model,
            "transformer": ZImageTransformer2DModel,
            "vae": AutoencoderKL,
        }

    @classmethod
    def from_single_file(cls, path: Path, *, dtype: str, device: str) -> ZImage:
        """Refused: such files hold the transformer alone."""
        raise BadFile(f"{str(path)!r} is a single file of Z-Image, which lacks the text encoder; load a folder or Hub id.")

    # -- text ----------------------------------------------------------------------------------------------------

    @property
    def _text(self) -> tuple[Any, Any, int]:
        return self.tokenizer, self.text_encoder, self.text_rows

    @property
    def _numbers_per_prompt(self) -> int:
        return int(self.text_rows * self.transformer.config.cap_feat_dim)

    @cached_property
    def _chat(self) -> tuple[str, str]:
        """What the chat template writes in front of a prompt and behind it. Raises BadFile for a tokenizer without one."""
        mark = "PROMPT"
        if not getattr(self.tokenizer, "chat_template", None):
            raise BadFile(f"the tokenizer of {self.name!r} has no chat template, in which the stock pipeline writes prompts.")
        told = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        before, _, behind = self.tokenizer.apply_chat_template([{"role": "user", "content": mark}], **told).partition(mark)
        return before, behind

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        before, behind = self._chat
        return self._padded(prompts, self.tokenizer([before + p + behind for p in prompts], verbose=False).input_ids)

    def locate(self, prompt: str, phrase: str) -> TokenSpan:
        """As of other families; the first word of a prompt has no space before it, and may be another token for that."""
        (ids,) = self.token_ids([prompt])
        inside, first = (self.tokenizer(f"{space}{phrase.strip()}", add_special_tokens=False).input_ids for space in (" ", ""))
        starts, wanted = occurrences(ids, inside), inside
        if ids[self.starts : self.starts + len(first)] == first and (not starts or len(first) == len(inside)):
            starts, wanted = tuple(sorted({self.starts, *starts})), first
        if not starts:
            raise BadRequest(f"{phrase!r} does not stand in the prompt {prompt!r} as the tokenizer reads it.")
        return TokenSpan(starts, len(wanted), eos=len(ids) - self.ends)

    def _read(self, ids: Tensor, lengths: Sequence[int], embeddings: Tensor | None = None) -> Cond:
        read = read_rows(lengths, ids.shape[1])
        with substituted(token_table(self.text_encoder), embeddings):
            hidden = self._states(ids, read)[-2]
        mask = read.to(self.device)
        with self._running():
            tokens = self.transformer.cap_embedder[0](*self._given(hidden))
        return Cond(tokens * mask[..., None], last_words(lengths, self.ends), {MASK: mask.to(tokens.dtype)})

    def _states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        self.evals.text += len(ids)
        with self._computing(self.text_encoder) as there:
            out = self.text_encoder(ids.to(there), attention_mask=mask.long().to(there), output_hidden_states=True)
        return tuple(h.to(self.device) for h in out.hidden_states)

    def encode_soft(self, prompts: SoftPrompt) -> Cond:
        return self._read(prompts.ids, prompts.lengths, prompts.embeddings)

    @torch.no_grad()
    def text_layers(self, prompts: Sequence[str]) -> list[Cond]:
        ids, lengths = self._tokenize(prompts)
        mask = read_rows(lengths, ids.shape[1])
        last = last_words(lengths, self.ends)
        return [Cond(layer, last) for layer in self._states(ids, mask)]

    # -- network -------------------------------------------------------------------------------------------------

    def predict(self, z_t: Tensor, t: Tensor, c: Cond) -> Tensor:
        self.evals.forward += len(z_t)
        self.evals.calls += 1
        if self.compiled and not all(map(is_unchanged, self._rows.values())):
            raise BadOption("a compiled network does not see changes of the rows of the text alone; run it without --compile.")
        height, width = z_t.shape[2] // 2, z_t.shape[3] // 2
        start, counts = -(-height * width // ROWS_AT_ONCE) * ROWS_AT_ONCE, c.counts()
        rows = read_by(self.transformer, self.part, self._rows, start, counts)
        z, read = self._given(z_t, c.tokens)
        with self._running(), passing([self.transformer.cap_embedder[0]]), rows:
            outputs: list[Tensor] = self.transformer(
                list(z.to(self.autocast_dtype)[:, :, None]),
                (1000 - t) / 1000,
                # In a mixture of prompts, what any of them reads is read.
                [tokens[:n] for tokens, n in zip(read, counts, strict=True)],
                return_dict=False,
            )[0]
        return -torch.stack(outputs)[:, :, 0].float()

    # -- weights -------------------------------------------------------------------------------------------------

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [*super()._named_parameters(), *self._rows.items()]

    def _identifying(self) -> list[tuple[str, Tensor]]:
        """The rows of the text count where something has changed them, so that no patch for the base fits what is changed."""
        return [*super()._identifying(), *self._changed_rows()]

    def _changed_rows(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, d) for n, d in self._rows.items() if not is_unchanged(d) and d.any()]

    def _owning(self, selected: set[int]) -> Self:
        twin = super()._owning(selected)
        twin._rows = owned(self._rows, selected)
        return twin

    def place(self, encoders: str, device: str | None = None) -> None:
        super().place(encoders, device)
        self._rows = moved(self._rows, self.device)

    # -- files ---------------------------------------------------------------------------------------------------

    def save_folder(self, path: Path) -> list[str]:
        """As of other families. Raises BadOption where the rows of the text are changed, for which a folder has no place."""
        if changed := self._changed_rows():
            raise BadOption(
                f"{self.name!r} is changed for the rows of the text alone ({changed[0][0]}, {len(changed)} such tensors), and a "
                "folder of diffusers has no place for that. Save the folder of the unchanged model, and ship the patch."
            )
        return super().save_folder(path)

    @property
    def _of_the_family(self) -> Mapping[str, object]:
        return {"cap_feat_dim": self.transformer.config.cap_feat_dim, "text_rows": self.text_rows}
