"""A PatchCard says where a patch came from: enough to make the patch again and to refuse another base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..concepts.request import EraseRequest


@dataclass(frozen=True)
class PatchCard:
    """Provenance. Everything needed to make the patch again and to refuse a wrong base."""

    method: str
    config: Mapping[str, Any]
    request: EraseRequest
    base: Mapping[str, Any]
    """The adapter's facts about the base model plus its ``digest``."""
    cost: Mapping[str, int] = field(default_factory=dict)
    """UNet evaluations spent: forward, calls, backward."""
    versions: Mapping[str, str] = field(default_factory=dict)
    log: Mapping[str, Any] = field(default_factory=dict)
    """What the method wants remembered, such as AP's searched concepts."""
