"""LPIPS, the perceptual distance of Zhang et al., on plain torch and with weight files of the user's."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadFile, BadOption
from ..io.files import file_digest
from ..io.images import resized
from ..io.tensors import read_tensors

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""By which images in [-1, 1] are normalised."""
CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
"""AlexNet's, by their places in torchvision's ``features``: channels in and out, kernel, stride, padding."""
POOLED = (3, 6)
"""Before these a maximum over 3 x 3 with stride 2 is taken."""
PAPERS = "7be5be79"
"""How the sha256 of torchvision's weights begins (alexnet-owt-7be5be79.pth), which papers use."""
SIDES = (256, 64)
"""Pixels at which images are compared: ours, and that of ESD, UCE and RECE. Numbers of two sizes are not comparable."""
CHUNK = 32


class Lpips(nn.Module):
    """d(x, y) = sum over the five layers l of AlexNet of the mean over places of w_l . (f_l(x) - f_l(y))^2, where f_l are the
    layer's activations, divided by their length over the channels, and w_l >= 0 were learned from people's judgements.

    Source: Zhang, Isola, Efros, Shechtman and Wang 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
    CVPR; version 0.1 with AlexNet. torchmetrics' implementation needs torchvision, which is not needed here.
    """

    def __init__(self, alexnet: str | Path, heads: str | Path | None = None) -> None:
        """``alexnet``: the state dict of torchvision's AlexNet (``.pth`` or ``.safetensors``). ``heads``: the linear weights of
        LPIPS (``alex.pth``); by default those that lie in an installed torchmetrics. Raises BadFile for files that are
        something else, and BadOption without heads."""
        super().__init__()
        backbone, found = Path(alexnet), Path(heads) if heads is not None else packaged_heads()
        state, linear = _state(backbone), _state(found)
        self.convolutions = nn.ModuleDict()
        for place, (inner, outer, kernel, stride, padding) in CONVOLUTIONS.items():
            layer = nn.Conv2d(inner, outer, kernel, stride, padding)
            names = {n: f"features.{place}.{n}" for n in ("weight", "bias")}
            layer.load_state_dict({n: _tensor(state, key, getattr(layer, n).shape, backbone) for n, key in names.items()})
            self.convolutions[str(place)] = layer
        channels = [outer for _, outer, *_ in CONVOLUTIONS.values()]
        for i, c in enumerate(channels):
            self.register_buffer(f"head{i}", _tensor(linear, f"lin{i}.model.1.weight", (1, c, 1, 1), found))
        self.eval().requires_grad_(False)
        digest = file_digest(backbone)
        self.facts: dict[str, Any] = {
            "name": "LPIPS 0.1, AlexNet",
            "weights": f"sha256 {digest}",
            "heads": f"sha256 {file_digest(found)}",
            "torchvision": digest.startswith(PAPERS),
            "pixels": list(SIDES),
        }

    def activations(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> the five activations, each of length 1 over its channels."""
        shift, scale = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = (x * 2 - 1 - shift) / scale
        found = []
        for place, layer in self.convolutions.items():
            x = F.relu(layer(F.max_pool2d(x, 3, 2) if int(place) in POOLED else x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, 3, H, W) images in [0, 1], twice -> (B,) distances."""
        total = torch.zeros(len(x))
        for i, (a, b) in enumerate(zip(self.activations(x), self.activations(y), strict=True)):
            total = total + (getattr(self, f"head{i}") * (a - b).square()).sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def between(self, x: Tensor, y: Tensor, side: int = SIDES[0]) -> list[float | None]:
        """The distance of each pair after both were resized to ``side`` pixels with anti-aliasing; None where one is not
        finite."""
        finite = (torch.isfinite(x) & torch.isfinite(y)).flatten(1).all(1)
        found: list[float] = []
        for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            found += self(*(resized(images.nan_to_num(0, 0, 0), side) for images in (a, b))).tolist()
        return [d if ok else None for d, ok in zip(found, finite.tolist(), strict=True)]


def packaged_heads() -> Path:
    """The linear weights in an installed torchmetrics (BSD 2-clause, 6 KB). Raises BadOption without the package."""
    spec = importlib.util.find_spec("torchmetrics")
    path = Path(str(spec.origin)).parent / "functional" / "image" / "lpips_models" / "alex.pth" if spec is not None else None
    if path is None or not path.is_file():
        raise BadOption("LPIPS needs its linear weights: give --lpips-heads alex.pth, or pip install 'efface[eval]'.")
    return path


def _state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file. Raises BadFile."""
    state = read_tensors(path)
    if not isinstance(state, Mapping):
        raise BadFile(f"{str(path)!r} is no state dict but a {type(state).__name__}; save network.state_dict().")
    return state


def _tensor(state: Mapping[str, Tensor], key: str, shape: Any, path: Path) -> Tensor:
    found = state.get(key)
    if not isinstance(found, Tensor) or tuple(found.shape) != tuple(shape):
        what = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
        raise BadFile(f"{path} is not the file that LPIPS needs: {key} {what}, and {tuple(shape)} is expected.")
    return found.float()
