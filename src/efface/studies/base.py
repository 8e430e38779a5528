"""What a study is: one question, the data that it needs, and what the data allow one to say."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..equations.statistics import clustered_bootstrap
from ..errors import BadOption
from .lab import GOLD, Erasure, Images, Lab, Want

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tree(dict[str, dict[str, list[float]]]):
    """Values by target and training seed, the groups that intervals resample."""

    def put(self, e: Erasure, values: Sequence[float]) -> None:
        """Add values of an erased model."""
        self.setdefault(e.target, {}).setdefault(str(e.seed), []).extend(values)


@dataclass(frozen=True, kw_only=True)
class Study(abc.ABC):
    """Abstract. A study of erased models: its question, the scans it needs, its conclusion and its
    figure.

    ``targets`` are concepts that are erased one at a time, ``names`` the concept space with the
    targets in it, ``methods`` the methods (or named variants) that are compared, ``seeds`` the
    training seeds, and ``images`` the number of images for each name.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    default_methods: ClassVar[tuple[str, ...]]
    default_seeds: ClassVar[tuple[int, ...]] = (0,)
    default_images: ClassVar[int] = 2
    default_targets: ClassVar[int] = 4
    """How many of the miniature's targets are taken where none is named."""
    min_targets: ClassVar[int] = 1
    min_seeds: ClassVar[int] = 1

    targets: tuple[str, ...]
    names: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    images: int

    def __post_init__(self) -> None:
        for what, given, least in (("target", self.targets, self.min_targets), ("seed", self.seeds, self.min_seeds)):
            if len(given) < least or len(set(given)) < len(given):
                raise BadOption(f"study {self.name} needs at least {least} different --{what}, got {list(given)}.")
        if not self.methods or self.images < 1:
            raise BadOption(f"study {self.name} needs a method and at least 1 image per name.")

    @property
    def erasures(self) -> list[Erasure]:
        """Every combination of method, target and training seed."""
        return [Erasure(m, t, s) for m in self.methods for t in self.targets for s in self.seeds]

    def of(self, method: str) -> list[Erasure]:
        """The erasures by one method."""
        return [e for e in self.erasures if e.row == method]

    def gold(self, lab: Lab) -> list[Erasure]:
        """The model that never saw one of the targets, where there is one."""
        return [Erasure(GOLD, t) for t in self.targets if t in lab.unseen][:1]

    @property
    def others(self) -> tuple[str, ...]:
        """The concept space without the targets: what is preserved or damaged."""
        return tuple(n for n in self.names if n not in self.targets)

    def scan(self, erasure: Erasure | None) -> Images:
        """The images of the whole concept space by an erased model, or by the base model for None."""
        return Images(erasure, self.names, tuple(range(self.images)))

    @abc.abstractmethod
    def wants(self, lab: Lab) -> Sequence[Want]:
        """Every scan that the study reads, so that its cost is known before anything is computed."""

    @abc.abstractmethod
    def conclude(self, lab: Lab) -> dict[str, Any]:
        """The numbers as JSON: ``sentence`` says what they allow one to say, and ``records`` are
        the measurements behind them."""

    @abc.abstractmethod
    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        """The one figure that answers the question, drawn from the numbers alone."""


def nested(tree: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """The mean over all values, its resampled interval, and the means ``per_target``.

    The interval draws targets anew, then training seeds, then values. With one target it draws
    seeds, then values; with one target and one seed, values alone.
    """
    values = [v for seeds in tree.values() for group in seeds.values() for v in group]
    groups: Mapping[str, Any] = tree
    while len(groups) == 1 and isinstance(only := next(iter(groups.values())), Mapping):
        groups = only
    if len(groups) == 1:
        groups = {str(i): [v] for i, v in enumerate(next(iter(groups.values())))}
    interval = clustered_bootstrap(groups) if values else None
    per = {t: sum(found) / len(found) for t, s in tree.items() if (found := [v for group in s.values() for v in group])}
    return {
        "value": sum(values) / len(values) if values else None,
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
        "n": len(values),
        "per_target": per,
    }


def said(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """An estimate as text, ``3.1 {1.2, 5.0}``. Braces say that targets and training seeds are
    resampled."""
    if estimate["value"] is None:
        return "not measured"
    interval = f" {{{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}}}" if estimate["low"] is not None else ""
    return f"{estimate['value']:.{digits}f}{interval}"


def sign(estimate: Mapping[str, Any], against: float = 0.0) -> int:
    """1 where the whole interval is above ``against``, -1 where it is below, else 0."""
    if estimate["low"] is None:
        return 0
    return 1 if estimate["low"] > against else -1 if estimate["high"] < against else 0
