"""Is an image anything like what the base model makes? Distances in a detector's feature space, no label needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import EvaluationError

NEIGHBOURS = 5
QUANTILE = 0.99
MINIMUM = 50


class Cloud:
    """The feature cloud of base-model images, with the distance beyond which one in a hundred of them lies.

    The distance of an image is the mean Euclidean distance to its ``NEIGHBOURS`` nearest cloud members; members equal to
    the image itself are left out, so that an image of the cloud is judged like a new one.
    """

    def __init__(self, features: Tensor) -> None:
        """features: (n, d), n >= 50: fewer say nothing about a first percentile."""
        features = features[features.isfinite().all(1)]
        if len(features) < MINIMUM:
            raise EvaluationError(
                f"{len(features)} finite base images are too few to say what is valid; at least {MINIMUM} needed."
            )
        self.features = features
        self.threshold = float(torch.quantile(self.distance(features), QUANTILE))

    def distance(self, features: Tensor) -> Tensor:
        """(B,) distances; NaN for features that are not finite."""
        # By differences: the faster way by products rounds the distance of an image from itself to as much as 1e-3 of its norm.
        d = torch.cdist(features.nan_to_num(), self.features, compute_mode="donot_use_mm_for_euclid_dist")
        # Same image, same features up to the rounding of another batch size.
        d = d.masked_fill(d < 1e-4 * self.features.norm(dim=1).mean(), torch.inf)
        mean = d.topk(NEIGHBOURS, largest=False).values.mean(1)
        return mean.where(features.isfinite().all(1), torch.nan)

    def unlike(self, features: Tensor) -> Tensor:
        """(B,) True where an image is farther from the cloud than 99 % of the cloud's own; True for non-finite features."""
        return ~(self.distance(features) <= self.threshold)
