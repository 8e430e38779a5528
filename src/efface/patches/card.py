"""A PatchCard says where a patch came from: enough to make the patch again and to refuse another base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..concepts.request import EraseRequest
from ..errors import BadFile, UsageError


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
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What an evaluation, a search for damage and attacks found; see :func:`efface.reporting.measured.measured`. Empty before."""

    def json(self, *, pictures: bool = True) -> dict[str, Any]:
        """The card as plain data. Without ``pictures`` words stand for each: they would swell the header of a small file."""
        plain = asdict(self)
        return plain if pictures else {**plain, "log": _without_pictures(plain["log"])}

    @staticmethod
    def from_json(raw: Any) -> PatchCard:
        """The card again. Raises BadFile for anything that could not have been written by :meth:`json`."""
        if not isinstance(raw, Mapping):
            raise BadFile(f"the card is a {type(raw).__name__} and not a table of facts.")
        known, needed = {f.name for f in fields(PatchCard)}, ("method", "config", "request", "base")
        strange, missing = [k for k in raw if k not in known], [k for k in needed if k not in raw]
        if strange or missing:
            raise BadFile(f"the card has the unexpected entry {strange[0]!r}." if strange else f"the card has no {missing[0]!r}.")
        wrong = [k for k, v in raw.items() if not isinstance(v, str if k == "method" else Mapping)]
        if wrong:
            raise BadFile(f"the card's {wrong[0]!r} is a {type(raw[wrong[0]]).__name__}.")
        try:
            request = EraseRequest.from_json(raw["request"])
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise BadFile(f"the card's request cannot be read ({error}).") from error
        return PatchCard(**{**raw, "request": request})


def _without_pictures(value: Any) -> Any:
    """The same data, in which every base64 PNG is a word."""
    if isinstance(value, Mapping):
        return {key: _without_pictures(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_pictures(inner) for inner in value]
    return "a picture, left out" if isinstance(value, str) and value.startswith("iVBORw0KGgo") else value
