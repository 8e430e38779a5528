"""The miniature's two detectors: small CNNs of different architecture that share no weights with what they judge.

``report`` gives the numbers that are published; ``selection`` is the one that methods and attacks may optimise or select
against, so that nothing is ever tuned on the judge of the final table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadFile, EvaluationError, UnknownName
from ..models.icon_world import IconWorld
from ..models.mini.world import load_world

NONE = "none"
IMAGE_PX = 48
CHUNK = 256
UNIFORM_STD = 0.02
"""Below this pixel deviation an image is blank. The faintest of 3,024 augmented renders has 0.045."""


@dataclass(frozen=True)
class Labels:
    """Class names of the three heads in output order; the last one of each is ``none``."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]

    @classmethod
    def of(cls, world: IconWorld) -> Labels:
        return cls((*world.names(), NONE), (*world.all_styles, NONE), (*world.backgrounds, NONE))

    def digest(self) -> str:
        """Stored with the weights: weights trained for another list of names must not name anything."""
        return hashlib.sha256(repr((self.concepts, self.styles, self.backgrounds)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scores:
    """What a detector says about B images. Rows of images with a non-finite pixel are NaN throughout."""

    concept: Tensor
    """(B, concepts + 1) probabilities."""
    style: Tensor
    """(B, styles + 1) probabilities."""
    background: Tensor
    """(B, backgrounds + 1) probabilities."""
    features: Tensor
    """(B, d) penultimate features, for nearest neighbours."""

    def top(self) -> Tensor:
        """(B,) index of the most probable concept; -1 where there are no probabilities."""
        best = self.concept.nan_to_num(-1).argmax(1)
        return torch.where(self.concept.isfinite().all(1), best, torch.full_like(best, -1))


class Heads(nn.Module):
    """Three linear heads on one feature vector."""

    def __init__(self, width: int, labels: Labels) -> None:
        super().__init__()
        self.concept = nn.Linear(width, len(labels.concepts))
        self.style = nn.Linear(width, len(labels.styles))
        self.background = nn.Linear(width, len(labels.backgrounds))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.concept(features), self.style(features), self.background(features)


def scaled(width: int, scale: float) -> int:
    """A number of channels times ``scale``, in whole groups of eight."""
    return max(8, round(width * scale / 8) * 8)


class PlainCNN(nn.Module):
    """``report``: 3 x 3 convolutions, batch norm, SiLU, max pooling; average-pooled features (B, 144)."""

    WIDTHS = ((24,), (48,), (96, 96), (144,))

    def __init__(self, labels: Labels, scale: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for stage, widths in enumerate(self.WIDTHS):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for width in (scaled(w, scale) for w in widths):
                layers += [nn.Conv2d(last, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
                last = width
        self.trunk = nn.Sequential(*layers)
        self.heads = Heads(last, labels)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 48, 48) in [0, 1] -> (B, 144)."""
        out: Tensor = self.trunk(x * 2 - 1).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.features(x)
        return (*self.heads(features), features)


class Residual(nn.Module):
    """Depthwise 5 x 5, group norm, pointwise expansion with GELU, residual."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(8, width)
        self.wide = nn.Conv2d(width, expansion * width, 1)
        self.narrow = nn.Conv2d(expansion * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.narrow(F.gelu(self.wide(self.norm(self.mix(x)))))
        return out


class ResidualCNN(nn.Module):
    """``selection``: strided stem, depthwise residual blocks, group norm, GELU; average- and max-pooled features (B, 256)."""

    def __init__(self, labels: Labels, scale: float = 1.0) -> None:
        super().__init__()
        a, b, c = (scaled(width, scale) for width in (32, 72, 128))
        self.trunk = nn.Sequential(
            nn.Conv2d(3, a, 4, stride=2, padding=1),
            nn.GroupNorm(8, a),
            Residual(a, 3),
            nn.Conv2d(a, b, 2, stride=2),
            nn.GroupNorm(8, b),
            Residual(b, 4),
            Residual(b, 4),
            nn.Conv2d(b, c, 2, stride=2),
            nn.GroupNorm(8, c),
            Residual(c, 3),
            nn.GroupNorm(8, c),
        )
        self.heads = Heads(2 * c, labels)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 48, 48) in [0, 1] -> (B, 256)."""
        grid = self.trunk(x * 2 - 1)
        return torch.cat([grid.mean((2, 3)), grid.amax((2, 3))], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.features(x)
        return (*self.heads(features), features)


ARCHITECTURES: dict[str, Callable[[Labels, float], PlainCNN | ResidualCNN]] = {"report": PlainCNN, "selection": ResidualCNN}


def packaged_folder() -> Path:
    return Path(str(resources.files("efface.models.mini"))) / "weights" / "detectors"


class MiniDetector:
    """One loaded detector. Always in evaluation mode and without gradients; rows do not depend on their batch."""

    def __init__(self, name: str, net: PlainCNN | ResidualCNN, labels: Labels) -> None:
        self.name, self.labels = name, labels
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, name: str, folder: Path | None = None, world: IconWorld | None = None) -> MiniDetector:
        """``report`` or ``selection``, from the package or from another folder of ``<name>.safetensors``, for the miniature's
        world or another one."""
        if name not in ARCHITECTURES:
            raise UnknownName("detector", name, ARCHITECTURES)
        path = (folder or packaged_folder()) / f"{name}.safetensors"
        labels = Labels.of(world or load_world())
        try:
            with safe_open(str(path), "pt") as f:
                facts = f.metadata() or {}
                state = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (safe_open is no mapping)
        except (OSError, SafetensorError) as error:
            raise BadFile(
                f"cannot read the detector {name!r} at {path}: {error}. Reinstall the package that it belongs to, or rebuild it."
            ) from error
        if facts.get("labels") != labels.digest():
            raise BadFile(f"the detector at {path} was trained for another list of names; rebuild it with its stage detectors.")
        net = ARCHITECTURES[name](labels, float(facts.get("scale", 1)))
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        return cls(name, net, labels)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """images: (B, 3, 48, 48) float in [0, 1]. See :class:`Scores` for shapes."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, IMAGE_PX, IMAGE_PX):
            raise EvaluationError(
                f"the miniature's detectors read (B, 3, {IMAGE_PX}, {IMAGE_PX}) images, not {tuple(images.shape)}."
            )
        self.net.eval()
        images = images.detach().float().cpu()
        finite = images.isfinite().flatten(1).all(1)
        clean = images.where(finite[:, None, None, None], torch.zeros(()))
        parts = (
            [self.net(part) for part in clean.split(CHUNK)]
            if len(clean)
            else [self.net(clean.new_zeros(1, 3, IMAGE_PX, IMAGE_PX))]
        )
        concept, style, background, features = (torch.cat(column)[: len(images)] for column in zip(*parts, strict=True))
        nan = torch.full((), torch.nan)
        keep = finite[:, None]
        return Scores(
            concept=concept.softmax(1).where(keep, nan),
            style=style.softmax(1).where(keep, nan),
            background=background.softmax(1).where(keep, nan),
            features=features.where(keep, nan),
        )


def validity(images: Tensor, scores: Scores) -> list[str | None]:
    """One entry per image: None if it counts as an image of something, else why not.

    ``non-finite``: a NaN or infinite pixel or score; ``uniform``: spatial deviation below :data:`UNIFORM_STD` in every
    channel; ``none``: the detector's none class wins. images: (B, 3, H, W) as scored.
    """
    if len(images) != len(scores.concept):
        raise EvaluationError(f"{len(images)} images with the scores of {len(scores.concept)}.")
    images = images.detach().float().cpu()
    finite = images.isfinite().flatten(1).all(1) & scores.concept.isfinite().all(1)
    flat = images.flatten(2).std(2).amax(1) < UNIFORM_STD
    none = scores.top() == scores.concept.shape[1] - 1
    return ["non-finite" if not finite[i] else "uniform" if flat[i] else "none" if none[i] else None for i in range(len(images))]
