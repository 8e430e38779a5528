"""How far two sets of images lie apart as a whole: the Fréchet distance and the kernel distance of their features."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadOption, EvaluationError

SUBSETS, SUBSET = 50, 50
"""Random subsets over which the kernel distance is averaged, and how many images each has at most."""
LEAST = 50
"""With fewer images than this, a distance of sets says nothing."""


@dataclass(frozen=True)
class Distance:
    """``fd``: Fréchet distance; ``kid``: kernel distance, the mean over random subsets; ``kid_std``: its deviation over them."""

    fd: float
    kid: float
    kid_std: float

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Given(nn.Module):
    """Hands over features that were computed before, where torchmetrics expects a network."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, x: Tensor) -> Tensor:
        return x


def distance(first: Tensor, second: Tensor, seed: int = 0) -> Distance:
    """Of two sets of features (n, d), by torchmetrics. The numbers mean nothing without the name of what made the features.

    The Fréchet distance grows when n falls, so that only sets of one size can be compared; the kernel distance does not. Raises
    EvaluationError for fewer than 50 images and for features that are not finite, BadOption without the package torchmetrics.
    """
    for features in (first, second):
        if len(features) < LEAST:
            raise EvaluationError(f"{len(features)} images are too few for a distance of sets; at least {LEAST} are needed.")
        if not bool(torch.isfinite(features).all()):
            raise EvaluationError("some images have no finite features, and leaving them out would flatter.")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise BadOption(f"distances of sets need the package torchmetrics: pip install 'efface[eval]' ({error}).") from error
    given, size = Given(first.shape[1]), min(SUBSET, len(first), len(second))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that all features are kept in memory, which they are already
        torch.manual_seed(seed)  # of the subsets
        frechet = FrechetInceptionDistance(feature=given, input_img_size=(3, 1, 1)).set_dtype(torch.float64)
        kernel = KernelInceptionDistance(feature=given, subsets=SUBSETS, subset_size=size)
        for metric in (frechet, kernel):
            metric.update(first.double(), real=True)
            metric.update(second.double(), real=False)
        mean, deviation = kernel.compute()
        return Distance(float(frechet.compute()), float(mean), float(deviation))
