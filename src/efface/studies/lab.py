"""What all studies need: erasures and scans that are made once, kept on disk, and found again by every study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..bench.evaluate import Judge
from ..bench.profiles import Profile
from ..bench.scan import Probe, Scan, case_images, climb_cost, climbed, distances, drops, scan_cases, scored
from ..concepts.request import EraseRequest
from ..detectors.cloud import MINIMUM
from ..errors import BadFile
from ..files import atomic_write
from ..methods import Method
from ..models.base import DiffusionModel
from ..patches import Patch
from ..training import Run

GOLD = "gold"
"""Row of the model that never saw the target: nothing is erased, nothing is trained."""


@dataclass(frozen=True)
class Erasure:
    """One erased model of a study: a method's row with its options, a target, a training seed, and the patch's strength."""

    row: str
    target: str
    seed: int = 0
    method: str = ""
    """Name of the method; empty: as the row."""
    settings: tuple[tuple[str, Any], ...] = ()
    preserve: tuple[str, ...] = ()
    strength: float = 1.0

    @property
    def folder(self) -> str:
        return f"{self.target.replace(' ', '-')}-{self.seed}"


@dataclass(frozen=True)
class Images:
    """A scan by images: by whom (None: the base model), of which names, on which seeds."""

    erasure: Erasure | None
    names: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Distances:
    """A scan by noise predictions; ``seed`` chooses the latents."""

    erasure: Erasure
    names: tuple[str, ...]
    seed: int
    probe: Probe


@dataclass(frozen=True)
class Climb:
    """A free embedding that starts at the target's and climbs the damage; see :func:`bench.scan.climbed`."""

    erasure: Erasure
    seed: int
    probe: Probe
    ascents: int
    rate: float


Want = Erasure | Images | Distances | Climb


@dataclass
class Lab:
    """A model, its judge, and the store. ``make``: builds a row's method for a training seed; ``erase``: runs it.

    Patches are ``STORE/<target>-<seed>/<row>.safetensors``, scans lie in folders beside them, both written whole or not at all,
    so a killed study goes on where it was.
    """

    model: DiffusionModel
    judge: Judge
    names: tuple[str, ...]
    """The concept space, which calibrates the judge."""
    profile: Profile
    store: Path
    make: Callable[[Erasure], Method]
    erase: Callable[[Method, EraseRequest, Run], Patch]
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
    groups: Mapping[str, str] = field(default_factory=dict)
    """Name -> group, where the model's world has groups."""
    gold: DiffusionModel | None = None
    unseen: tuple[str, ...] = ()
    """What the gold model never saw."""
    calibrated: bool = False

    # -- erasures ------------------------------------------------------------------------------------------------

    def path(self, e: Erasure) -> Path:
        return self.store / e.folder / f"{e.row}.safetensors"

    def request(self, e: Erasure) -> EraseRequest:
        return EraseRequest((e.target,), "", e.preserve)

    def patch(self, e: Erasure) -> Patch:
        """Found or made; a stopped training goes on from its checkpoint. Raises BadFile for another model's or target's patch."""
        path = self.path(e)
        if not path.is_file():
            run = Run(checkpoint=path.with_suffix(".checkpoint.safetensors"), resume=True)
            run.on_step = lambda step, total: self.on_progress(f"{e.row}, {e.target}, seed {e.seed}", step.index + 1, total)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.erase(self.make(e), self.request(e), run).save(path)
        patch = Patch.load(path)
        patch.check_base(self.model)
        made = patch.card.request["targets"], patch.card.request["preserve"], patch.card.config.get("seed", e.seed)
        if (list(made[0]), list(made[1]), made[2]) != ([e.target], list(e.preserve), e.seed):
            raise BadFile(
                f"{path} is the patch of another target, preserve set or training seed; give another --store, or delete it."
            )
        return patch.scaled(e.strength) if e.strength != 1 else patch

    # -- scans ---------------------------------------------------------------------------------------------------

    @cached_property
    def _model_facts(self) -> list[Any]:
        return [self.model.digest(), asdict(self.profile), {k: v for k, v in self.judge.facts.items() if k != "validity"}]

    def _scan_path(self, kind: str, e: Erasure | None, *facts: Any) -> Path:
        """A patch is part of the key by its contents: a store with new patches never gives old scans."""
        patch: Any = None
        if e is not None:
            patch = [self.gold.digest()] if e.row == GOLD and self.gold else [_contents(self.path(e)), e.strength]
        text = json.dumps([kind, self._model_facts, patch, *facts], sort_keys=True, default=str)
        folder = self.store / "base" if e is None else self.store / e.folder / e.row
        return folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    def images(self, want: Images) -> Scan:
        """Numbers of the images, found or made. What is valid is learned from the base model's images of the whole space."""
        gold = want.erasure is not None and want.erasure.row == GOLD
        patch = None if want.erasure is None or gold else self.patch(want.erasure)
        path = self._scan_path("images", want.erasure, want.names, want.seeds)
        if not path.is_file():
            self._calibrate()
            cases = scan_cases(want.names, want.seeds, self.profile.guidance)
            model = self.gold if gold and self.gold else self.model
            what = "images of the base model" if want.erasure is None else f"images of {want.erasure.row}, {want.erasure.target}"
            images = case_images(model, patch, cases, self.profile, lambda n: self.on_progress(what, n, len(cases)))
            path.parent.mkdir(parents=True, exist_ok=True)
            scored(images, want.names, len(want.seeds), self.judge).save(path)
        return Scan.load(path, want.names)

    def _calibrate(self) -> None:
        if not self.calibrated:
            cases = scan_cases(self.names, range(self._calibration_seeds), self.profile.guidance)
            self.judge.calibrate(
                case_images(self.model, None, cases, self.profile, self._told("images to calibrate", len(cases)))
            )
            self.calibrated = True

    @property
    def _calibration_seeds(self) -> int:
        return -(-MINIMUM // len(self.names))

    def _told(self, what: str, total: int) -> Callable[[int], None]:
        return lambda done: self.on_progress(what, done, total)

    def drops(self, want: Images) -> Tensor:
        """(n, s) fall of the image-text score against the base model on the same names and seeds; see :func:`drops`."""
        return drops(want.names, self.images(replace(want, erasure=None)).text, self.images(want).text)

    def distances(self, want: Distances) -> Tensor:
        """(n, pairs) of :func:`bench.scan.distances`, found or made."""
        patch = self.patch(want.erasure)
        path = self._scan_path("distances", want.erasure, want.names, want.seed, asdict(want.probe))
        if not path.is_file():
            self.on_progress(f"noise predictions of {want.erasure.row}, {want.erasure.target}", 0, 1)
            found = distances(self.model, patch, want.names, want.probe, want.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, lambda p: save_file({"distances": found.contiguous()}, p))
        return load_file(path)["distances"]

    def climbed(self, want: Climb) -> dict[str, Tensor]:
        """``embedding`` (L, d) and ``damage`` (ascents + 1,) of :func:`climbed`, found or made."""
        patch = self.patch(want.erasure)
        path = self._scan_path("climb", want.erasure, want.seed, asdict(want.probe), want.ascents, want.rate)
        if not path.is_file():
            found = climbed(self.model, patch, want.erasure.target, want.probe, want.seed, ascents=want.ascents, rate=want.rate)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, lambda p: save_file(found, p))
        return load_file(path)

    # -- the plan ------------------------------------------------------------------------------------------------

    def fulfil(self, wants: Sequence[Want]) -> None:
        """Make everything that is missing, erasures first."""
        for e in erasures(wants):
            self.patch(e)
        for w in wants:
            if isinstance(w, Images):
                self.images(replace(w, erasure=None))
                self.images(w)
            elif isinstance(w, Distances):
                self.distances(w)
            elif isinstance(w, Climb):
                self.climbed(w)

    def cost(self, wants: Sequence[Want]) -> int:
        """UNet evaluations for what is missing. A scan of a patch that is not there is missing."""
        total = sum(
            self.make(e).expected_evals(self.model, self.request(e)) for e in erasures(wants) if not self.path(e).is_file()
        )
        base: dict[Any, int] = {}
        for w in dict.fromkeys(wants):
            if isinstance(w, Images):
                images = len(w.names) * len(w.seeds) * self.profile.evals_per_image
                base[w.names, w.seeds] = images
                total += images if w.erasure is not None and self._missing("images", w.erasure, w.names, w.seeds) else 0
            elif isinstance(w, Distances):
                missing = self._missing("distances", w.erasure, w.names, w.seed, asdict(w.probe))
                total += w.probe.cost(len(w.names)) if missing else 0
            elif isinstance(w, Climb):
                missing = self._missing("climb", w.erasure, w.seed, asdict(w.probe), w.ascents, w.rate)
                total += climb_cost(w.probe, w.ascents) if missing else 0
        total += sum(n for (names, seeds), n in base.items() if self._missing("images", None, names, seeds))
        scans = any(self._missing("images", w.erasure, w.names, w.seeds) for w in wants if isinstance(w, Images))
        calibration = len(self.names) * self._calibration_seeds * self.profile.evals_per_image
        return round(total) + (calibration if scans and not self.calibrated else 0)

    def _missing(self, kind: str, e: Erasure | None, *facts: Any) -> bool:
        trained = e is None or e.row == GOLD or self.path(e).is_file()
        return not trained or not self._scan_path(kind, e, *facts).is_file()


def erasures(wants: Sequence[Want]) -> list[Erasure]:
    """The distinct trainings behind the wants; a strength is no training of its own."""
    found = [w if isinstance(w, Erasure) else w.erasure for w in wants]
    return list(dict.fromkeys(replace(e, strength=1.0) for e in found if e is not None and e.row != GOLD))


@lru_cache(maxsize=512)
def _contents(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mean_rows(values: Tensor) -> list[float]:
    """Mean over the finite entries of each row; NaN where there are none."""
    return torch.nanmean(values, dim=1).tolist()
