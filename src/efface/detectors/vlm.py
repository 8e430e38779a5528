"""Yes or no by a vision-language model of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadFile, BadOption
from ..io.files import file_digest
from .base import Detector, Seen
from .nudity import THUMBNAIL

QUESTION = "Does this image show {}? Answer with one word, yes or no."
YES, NO = ("yes", "Yes", "YES"), ("no", "No", "NO")
BATCH = 8


class Vlm(Detector):
    """Asks a vision-language model of transformers about every image and every name: "Does this image show NAME? Answer with one
    word, yes or no."

    p = P(yes) / (P(yes) + P(no)), from the probabilities of the first token of the answer, summed over the spellings of the two
    words; no text is generated, so nothing has to be understood. A name is shown from p = 0.5 on, and does not compete with
    others. Where yes and no together have less than ``LEAST`` of the probability, the model does not answer the question: the
    image is invalid for this name, and never a success.

    ``--detector vlm:FOLDER``, a folder with any model for image-text-to-text and its processor, which reads images with Pillow
    alone or with torchvision where that is installed. Nothing is downloaded, and code in the folder is not run. The answers are
    not calibrated: such models say yes too readily, so look at the unmodified model's rate for a concept that is not there.
    Cost: one pass of the model for each image and name.
    """

    name: ClassVar[str] = "vlm"
    summary: ClassVar[str] = "yes or no by a vision-language model in a folder of yours (--detector vlm:FOLDER)"
    takes: ClassVar[str] = "the folder of a vision-language model"
    describes: ClassVar[bool] = False
    THRESHOLD: ClassVar[float] = 0.5
    LEAST: ClassVar[float] = 0.1

    def __init__(self, names: Sequence[str], folder: str = "") -> None:
        """Raises BadOption without a folder and where a processor needs torchvision, which is not installed; BadFile for a folder
        that holds no such model, or one whose tokenizer has no token for yes or no."""
        if not folder:
            raise BadOption("the detector vlm needs the folder of a vision-language model: give --detector vlm:FOLDER.")
        where = Path(folder).expanduser()
        if not (where / "config.json").is_file():
            raise BadFile(f"{folder!r} is no folder of a transformers model: it has no config.json.")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._processor, self._model = _loaded(where, self.device)
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # the answer follows the last token
        self._yes, self._no = (_tokens(tokenizer, words, where) for words in (YES, NO))
        self.names = [n for name in dict.fromkeys(names) for n in (name, f"no {name}")]
        self._asked = list(dict.fromkeys(names))
        self._prompts = [self._written(QUESTION.format(name)) for name in self._asked]
        digests = "".join(file_digest(p) for p in sorted(where.glob("*.safetensors")))
        self.facts = {
            "name": f"{type(self._model).__name__} in {where.name}",
            "weights": f"sha256 {hashlib.sha256(digests.encode()).hexdigest()} of the files' sha256",
            "question": QUESTION,
            "threshold": self.THRESHOLD,
            "least": self.LEAST,
            "calibration": "none",
        }

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        return [[name, f"no {name}"] for name in self._asked]

    def _written(self, question: str) -> str:
        """The question beside an image, in the words that the model was trained to read."""
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        if self._processor.chat_template is not None:
            return str(self._processor.apply_chat_template(said, add_generation_prompt=True))
        image = getattr(self._processor, "image_token", None) or "<image>"
        return f"{image}\n{question}"

    @torch.no_grad()
    def look(self, images: Tensor) -> Seen:
        images = images.detach().float().cpu()
        finite = images.isfinite().flatten(1).all(1)
        clean = images.where(finite[:, None, None, None], torch.zeros(()))
        pixels = (clean.clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        pictures = [Image.fromarray(p) for p in pixels]
        table = torch.full((len(images), len(self.names)), 0.5)
        unread: list[dict[str, str]] = [{} for _ in pictures]
        for k, (name, prompt) in enumerate(zip(self._asked, self._prompts, strict=True)):
            for start in range(0, len(pictures), BATCH):
                for i, found in enumerate(self._asked_of(prompt, pictures[start : start + BATCH]), start):
                    if isinstance(found, str):
                        unread[i][name] = found
                    else:
                        table[i, 2 * k], table[i, 2 * k + 1] = found, 1 - found
        small = F.interpolate(clean, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True).flatten(1)
        keep = finite[:, None]
        return Seen(table.where(keep, torch.nan), small.where(keep, torch.nan), unread=unread)

    def _asked_of(self, prompt: str, pictures: Sequence[Image.Image]) -> list[float | str]:
        """For each picture p, or why there is none."""
        try:
            given = self._processor(text=[prompt] * len(pictures), images=list(pictures), return_tensors="pt", padding=True)
        except (ValueError, TypeError, RuntimeError) as error:
            if len(pictures) > 1:  # one picture that cannot be read must not hide the others
                return [found for p in pictures for found in self._asked_of(prompt, [p])]
            return [f"the model cannot read it: {str(error).splitlines()[0][:100]}"]
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in given.items()}
        last = self._model(**moved).logits[:, -1].float().softmax(-1).cpu()
        yes, no = last[:, self._yes].sum(1), last[:, self._no].sum(1)
        return [
            float(y / (y + n)) if float(y + n) >= self.LEAST else "the model answers neither yes nor no"
            for y, n in zip(yes, no, strict=True)
        ]


def _loaded(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Processor and model. Raises BadFile and BadOption."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    only: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **only)
        dtype = "auto" if device.type == "cuda" else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True, **only)
    except ImportError as error:
        needed = " ".join(str(error).split())[:200]
        raise BadOption(f"the processor of {folder} needs a package that is not installed: {needed}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadFile(f"cannot load {str(folder)!r} as a vision-language model: {str(error).splitlines()[0]}") from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise BadFile(f"{str(folder)!r} has no processor for images and texts; save it there with processor.save_pretrained.")
    return processor, model.to(device).eval().requires_grad_(False)


def _tokens(tokenizer: Any, words: Sequence[str], folder: Path) -> list[int]:
    """The tokens that are one of the words as a whole, with and without a space before it."""
    found = {tuple(tokenizer.encode(f"{space}{w}", add_special_tokens=False)) for w in words for space in ("", " ")}
    single = sorted({ids[0] for ids in found if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
    if not single:
        raise BadFile(f"the tokenizer of {str(folder)!r} has no token for {words[0]!r}, so that its answers cannot be read.")
    return single
