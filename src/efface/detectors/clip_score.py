"""Image-text scores of any CLIP checkpoint: the miniature's own scorer, or one from a folder or the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadFile, PromptTooLong

# What OpenAI's CLIP was trained with; used when a checkpoint says nothing else.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
CHUNK = 128


def packaged_folder() -> Path:
    return Path(str(resources.files("efface.models.mini"))) / "weights" / "clip"


class ClipScorer:
    """Unit embeddings of images and texts, and the scores made from them. Evaluation mode, no gradients."""

    def __init__(self, source: str | Path | None = None, device: str = "cpu") -> None:
        """``source``: folder or Hub id of a CLIP checkpoint with its tokenizer; the packaged scorer by default."""
        from transformers import CLIPModel, CLIPTokenizer

        where = str(source or packaged_folder())
        try:
            self.model: Any = CLIPModel.from_pretrained(where, dtype=torch.float32)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(where)
            config = preprocessor_config(where)
        except (OSError, ValueError) as error:
            raise BadFile(f"cannot load {where!r} as a CLIP model: {str(error).splitlines()[0]}") from error
        self.model.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        size = config.get("crop_size") or config.get("size") or self.model.config.vision_config.image_size
        if isinstance(size, dict):
            size = size.get("shortest_edge") or size["height"]
        self.size = int(size)
        self.mean = torch.tensor(config.get("image_mean", OPENAI_MEAN)).reshape(1, 3, 1, 1)
        self.std = torch.tensor(config.get("image_std", OPENAI_STD)).reshape(1, 3, 1, 1)
        positions = int(self.model.config.text_config.max_position_embeddings)
        self.limit = min(positions, int(self.tokenizer.model_max_length))

    def preprocess(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, size, size) normalised: shortest edge to size, then the centre."""
        x = images.detach().float().cpu()
        h, w = x.shape[-2:]
        if min(h, w) != self.size:
            scale = self.size / min(h, w)
            target = (max(self.size, round(h * scale)), max(self.size, round(w * scale)))
            x = F.interpolate(x, size=target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (x.shape[-2] - self.size) // 2, (x.shape[-1] - self.size) // 2
        return (x[..., top : top + self.size, left : left + self.size] - self.mean) / self.std

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, d) unit vectors on the CPU; non-finite images give NaN rows."""
        rows = []
        for part in images.split(CHUNK):
            pooled = self.model.vision_model(pixel_values=self.preprocess(part).to(self.device)).pooler_output
            rows.append(F.normalize(self.model.visual_projection(pooled), dim=-1).cpu())
        out = torch.cat(rows)
        finite = images.detach().isfinite().flatten(1).all(1).cpu()
        return out.where(finite[:, None], torch.full((), torch.nan))

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def fits(self, text: str) -> bool:
        """Whether the text is read as a whole."""
        return self._tokens(text) <= self.limit

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, d) unit vectors on the CPU. Raises PromptTooLong instead of cutting."""
        for text in texts:
            if not self.fits(text):
                raise PromptTooLong.of(text, self._tokens(text), self.limit, "the scorer")
        rows = []
        for start in range(0, len(texts), CHUNK):
            part = list(texts[start : start + CHUNK])
            tokens = self.tokenizer(part, padding="max_length", max_length=self.limit, return_tensors="pt").to(self.device)
            pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            rows.append(F.normalize(self.model.text_projection(pooled), dim=-1).cpu())
        return torch.cat(rows)

    def clip_t(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """100 max(cos, 0) of each image (B, 3, H, W) with its own prompt; NaN for non-finite images."""
        cosine = (self.embed_images(images) * self.embed_texts(prompts)).sum(-1)
        return [float(v) for v in 100 * cosine.clamp(min=0)]

    def zero_shot(self, images: Tensor, names: Sequence[str], template: str = "a {}") -> Tensor:
        """(B, len(names)) probabilities of ``template`` filled with each name, at the model's own temperature."""
        return self.name_probabilities(self.embed_images(images), names, template)

    def name_probabilities(self, embedded: Tensor, names: Sequence[str], template: str = "a {}") -> Tensor:
        """As :meth:`zero_shot`, for images that are embedded already: (B, d) unit vectors."""
        logits = embedded @ self.embed_texts([template.format(name) for name in names]).T
        return (logits * float(self.model.logit_scale.exp())).softmax(-1)


def preprocessor_config(source: str) -> dict[str, Any]:
    """The checkpoint's ``preprocessor_config.json``, from a folder or the Hub; empty if it has none."""
    from transformers.utils.hub import cached_file

    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    config: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    return config
