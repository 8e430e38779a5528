"""A vision-language model as a detector: a small one of a real class, whose weights are random but for what it answers.

LLaVA is taken because its processor reads images with Pillow alone. Those of Qwen2-VL and SmolVLM need torchvision for videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from efface.detectors.base import Seen
from efface.detectors.several import Several
from efface.detectors.vlm import Vlm
from efface.errors import BadFile, BadOption
from efface.evaluation.judges import DetectorJudge
from efface.models.load import load_model
from efface.registry import DETECTORS
from efface.testing import check_detector
from efface.verbs.subject import judge_for

WORDS = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "yes", "no", *map(chr, range(32, 127)), "\n")
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


PROMPT = "USER: <image>\nDoes this image show dog? Answer with one word, yes or no. ASSISTANT:"


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def picture(pixels: Tensor) -> Any:
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def small_llava(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    """A LLaVA of 16 channels with its processor."""
    from tokenizers import Tokenizer, models
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers import PreTrainedTokenizerFast as Fast
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    vocabulary = {w: i for i, w in enumerate(words)}
    # Merged letter by letter: "yes" and "no" are one token each.
    merges = [("y", "e"), ("ye", "s"), ("n", "o")] if "yes" in words else []
    vocabulary |= {"ye": len(vocabulary)} if merges else {}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = Fast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(
            **small,
            vocab_size=len(fast),
            num_hidden_layers=1,
            num_key_value_heads=2,
            pad_token_id=3,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=4,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    side = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(size={"shortest_edge": 16}, crop_size=side),
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )
    with torch.no_grad():
        # The last state is about the same for all images. So both words get it, which makes their probability large, and the
        # difference between two images, with opposite signs: what is answered depends on the image.
        model.model.multi_modal_projector.linear_2.weight.mul_(50)
        given = processor(text=[PROMPT] * 2, images=list(map(picture, pictures(2, seed=9))), return_tensors="pt")
        first, second = model.model(**given).last_hidden_state[:, -1]
        mean, change = (first + second) / 2, first - second
        for word, sign in (("yes", 1), ("no", -1)):
            row = 8 * mean / mean.square().sum() + 2 * sign * change / change.square().sum()
            model.lm_head.weight[vocabulary.get(word, 5)] = row
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_llava(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def detector(folder: Path) -> Vlm:
    return Vlm(("cat", "dog"), str(folder))


def test_the_contract_of_detectors(folder: Path) -> None:
    class Mine(Vlm):
        def __init__(self, names: tuple[str, ...]) -> None:
            super().__init__(names, str(folder))

    check_detector(Mine)
    assert DETECTORS["vlm"] is Vlm


def test_p_is_read_from_the_probabilities_of_yes_and_no(detector: Vlm) -> None:
    """By hand, with the model itself: one prompt, one image, the softmax over the first token of the answer."""
    images = pictures(3)
    seen = detector.look(images)
    for i, pixels in enumerate(images):
        given = detector._processor(text=PROMPT, images=picture(pixels), return_tensors="pt")
        with torch.no_grad():
            p = detector._model(**given).logits[0, -1].softmax(0)
        yes, no = float(p[WORDS.index("yes")]), float(p[WORDS.index("no")])
        assert float(seen.probabilities[i, 2]) == pytest.approx(yes / (yes + no), abs=1e-5)
    assert detector.names == ["cat", "no cat", "dog", "no dog"]
    assert seen.probabilities.std(0).max() > 1e-3, "the answer depends on the image"
    assert detector.facts["weights"].startswith("sha256 ")
    assert detector.facts["calibration"] == "none"


def test_an_image_without_an_answer_is_invalid_for_its_name(detector: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.cat([pictures(60), pictures(1).fill_(torch.nan)])
    judge = DetectorJudge(detector)
    judge.calibrate(images)
    plain = judge.detect(images[:3].clone(), ["cat"] * 3)
    assert {name for name, _, _ in plain} <= {"cat", "no cat"}
    assert judge.detect(images[58:].clone(), ["cat"] * 3)[2] == (None, None, "non-finite")
    monkeypatch.setattr(Vlm, "LEAST", 1.1)  # as of a model that says something else
    assert [why for _, _, why in judge.detect(images[:2].clone(), ["cat", "dog"])] == ["the model answers neither yes nor no"] * 2

    class Reader:
        def __call__(self, images: list[Any], **facts: Any) -> Any:
            if any(i.getpixel((0, 0)) == (0, 0, 0) for i in images):
                raise ValueError("too dark\nand more")
            return detector._processor(images=images, **facts)

    monkeypatch.undo()
    mine = Vlm.__new__(Vlm)
    mine.__dict__ |= detector.__dict__ | {"_processor": Reader()}
    dark = pictures(2)
    dark[1] = 0
    unread = mine.look(dark).unread
    assert unread is not None
    assert unread[0] == {}
    assert unread[1] == dict.fromkeys(("cat", "dog"), "the model cannot read it: too dark")


def test_beside_another_detector_its_reasons_are_kept(detector: Vlm) -> None:
    class Other(Vlm):
        name = "other"

        def __init__(self) -> None:
            self.names, self._asked, self.facts = ["bus", "no bus"], ["bus"], {"name": "other"}

        def look(self, images: Tensor) -> Seen:
            return Seen(torch.full((len(images), 2), 0.5), torch.zeros(len(images), 3), unread=[{"bus": "dark"} for _ in images])

    seen = Several([detector, Other()]).look(pictures(2))
    assert seen.unread == [{"bus": "dark"}] * 2


def test_the_folder_stands_behind_the_name(folder: Path, tmp_path: Path) -> None:
    model: Any = load_model("tiny")
    model.concept_names = ()
    judge = judge_for(model, ["cat", "dog"], detector=f"vlm:{folder}", heads=[["cat"], ["dog"]])
    assert set(judge.names) == {"cat", "no cat", "dog", "no dog"}
    for text, error, said in (
        ("vlm", BadOption, "--detector vlm:FOLDER"),
        (f"vlm:{tmp_path / 'nowhere'}", BadFile, "no config.json"),
    ):
        with pytest.raises(error, match=said):
            judge_for(model, ["cat"], detector=text)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadFile, match="as a vision-language model"):
        Vlm(("cat",), str(tmp_path))


def test_a_tokenizer_without_the_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no token for 'yes'"):
        Vlm(("cat",), str(small_llava(tmp_path / "silent", tuple(w for w in WORDS if w not in ("yes", "no")))))
