"""Weights in fewer bits: half precision, eight-bit floats, eight-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadOption
from ..models.base import DiffusionModel
from ..patches import Patch
from .base import Condition, Setting, applied, sampled


@dataclass(frozen=True)
class Precision(Condition):
    """Abstract. The erased weights are made in float32, as they are shipped, and then stored in ``kind``."""

    name: ClassVar[str] = "precision"
    kind: str
    told: str

    def stored(self, model: DiffusionModel) -> DiffusionModel:
        """A twin with the weights in this kind."""
        raise NotImplementedError

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        with applied(setting.model, patch) as model:
            twin = self.stored(model)
        with torch.no_grad():
            return sampled(twin, setting.cases, setting.steps)


@dataclass(frozen=True)
class Half(Precision):
    """Network and text encoders in float16 or bfloat16, called as a stock pipeline in that precision calls them. The VAE keeps
    its weights and computes under torch's autocast."""

    def stored(self, model: DiffusionModel) -> DiffusionModel:
        dtype, parts = getattr(torch, self.kind), (model.part, *getattr(model, "encoders", ()))
        twin = model.copied(parts)
        for part in parts:
            nn.Module.to(getattr(twin, part), dtype)
        twin.configure(autocast=self.kind)
        return twin


@dataclass(frozen=True)
class Eight(Precision):
    """The network's weights as float8_e4m3fn by diffusers' ``enable_layerwise_casting``, which computes in float32 and leaves
    norms and embeddings of positions alone; text encoders as they are."""

    def stored(self, model: DiffusionModel) -> DiffusionModel:
        twin = model.copied((model.part,))
        if not hasattr(twin.network, "enable_layerwise_casting"):
            raise BadOption("the network is none of diffusers' and has no layerwise casting.")
        twin.network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        return twin


@dataclass(frozen=True)
class Integer(Precision):
    """The weights of the network's linear and convolutional layers as 8-bit integers: symmetric, one scale per output row,
    rounded to nearest. This is what weight-only quantisation stores (torchao's ``Int8WeightOnlyConfig``, quanto's ``qint8``); the
    arithmetic stays in float32. Dynamic quantisation, which rounds activations too, is not covered."""

    def stored(self, model: DiffusionModel) -> DiffusionModel:
        twin = model.copied((model.part,))
        for module in twin.network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.data = int8(module.weight.data)
        return twin


def int8(weight: Tensor) -> Tensor:
    """The weight (out, ...) rounded to 255 levels that are symmetric about 0, the largest magnitude of each row at 127."""
    rows = weight.flatten(1)
    scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return ((rows / scale).round().clamp(-127, 127) * scale).reshape(weight.shape)
