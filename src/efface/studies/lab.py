"""What all studies need: erasures and scans that are made once, kept on disk, and found again by every study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..concepts.request import EraseRequest
from ..detectors.cloud import MINIMUM
from ..errors import BadFile, BadOption
from ..evaluation.driver import Judge, judge_facts
from ..evaluation.profiles import Profile
from ..evaluation.scan import Probe, Scan, case_images, climb_cost, climbed, drops, prediction_changes, scan_cases, scored
from ..io.files import atomic_write
from ..methods import Method
from ..models.base import DiffusionModel
from ..patches import Patch
from ..training.loop import Run

GOLD = "gold"
SCANS = 2
"""Which numbers a stored scan of images holds; a store of another kind of scan is not read."""
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

    kind: ClassVar[str] = "images"

    erasure: Erasure | None
    names: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def facts(self) -> list[Any]:
        return [self.names, self.seeds]

    def cost(self, model: DiffusionModel, profile: Profile) -> int:
        return len(self.names) * len(self.seeds) * profile.evals_per_image(model)


@dataclass(frozen=True)
class Distances:
    """A scan by noise predictions; ``seed`` chooses the latents."""

    kind: ClassVar[str] = "distances"

    erasure: Erasure
    names: tuple[str, ...]
    seed: int
    probe: Probe

    @property
    def facts(self) -> list[Any]:
        return [self.names, self.seed, asdict(self.probe)]

    def cost(self, model: DiffusionModel, profile: Profile) -> int:
        return self.probe.cost(model, len(self.names))


@dataclass(frozen=True)
class Climb:
    """A free embedding that starts at the target's and climbs the damage; see :func:`efface.evaluation.scan.climbed`."""

    kind: ClassVar[str] = "climb"

    erasure: Erasure
    seed: int
    probe: Probe
    ascents: int
    rate: float

    @property
    def facts(self) -> list[Any]:
        return [self.seed, asdict(self.probe), self.ascents, self.rate]

    def cost(self, model: DiffusionModel, profile: Profile) -> int:
        return climb_cost(model, self.probe, self.ascents)


Want = Images | Distances | Climb
"""A scan that a study reads. ``facts`` are what tells it from others of its ``kind``."""


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
    requests: Mapping[str, EraseRequest] = field(default_factory=dict)
    """Target -> its request, where it is no object that is erased by its own name."""
    calibrated: bool = False

    # -- erasures ------------------------------------------------------------------------------------------------

    def path(self, e: Erasure) -> Path:
        return self.store / e.folder / f"{e.row}.safetensors"

    def request(self, e: Erasure) -> EraseRequest:
        return replace(self.requests.get(e.target, EraseRequest((e.target,))), preserve=e.preserve)

    def patch(self, e: Erasure) -> Patch:
        """Found or made; a stopped training goes on from its checkpoint. Raises BadFile for another model's or target's patch."""
        path = self.path(e)
        if not path.is_file():
            run = Run(checkpoint=path.with_suffix(".checkpoint.safetensors"), resume=True)
            run.on_step = lambda step, total: self.on_progress(f"{e.row}, {e.target}, seed {e.seed}", step.index + 1, total)
            self.erase(self.make(e), self.request(e), run).save(path)
        patch = Patch.load(path)
        patch.check_base(self.model)
        made = patch.card.request.targets, patch.card.request.preserve, patch.card.config.get("seed", e.seed)
        if (list(made[0]), list(made[1]), made[2]) != (list(self.request(e).targets), list(e.preserve), e.seed):
            raise BadFile(
                f"{path} is the patch of another target, preserve set or training seed; give another --store, or delete it."
            )
        return patch.scaled(e.strength) if e.strength != 1 else patch

    # -- scans ---------------------------------------------------------------------------------------------------

    @cached_property
    def _facts(self) -> list[Any]:
        return [self.model.digest(), asdict(self.profile), judge_facts(self.judge)]

    def _scan_path(self, want: Want) -> Path:
        """A patch is part of the key by its contents: a store with new patches never gives old scans."""
        e, patch, folder = want.erasure, None, self.store / "base"
        if e is not None:
            patch = (
                [self._gold.digest()] if e.row == GOLD else [_contents(self.path(e), self.path(e).stat().st_mtime_ns), e.strength]
            )
            folder = self.store / e.folder / e.row
        text = json.dumps([want.kind, SCANS, self._facts, patch, *want.facts], sort_keys=True, default=str)
        return folder / f"{want.kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    @property
    def _gold(self) -> DiffusionModel:
        if self.gold is None:
            raise BadOption("this model has no gold model beside it.")
        return self.gold

    def _found(self, want: Want, make: Callable[[Patch | None], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a scan, from the store or made and put there; the patch is read only to make them."""
        e = want.erasure
        trained = e if e is not None and e.row != GOLD else None
        if trained is not None and not self.path(trained).is_file():
            self.patch(trained)
        path = self._scan_path(want)
        if not path.is_file():
            found = dict(make(self.patch(trained) if trained is not None else None))
            atomic_write(path, lambda p: save_file(found, p))
        return load_file(path)

    def images(self, want: Images) -> Scan:
        """Numbers of the images, taken from the store or computed. What is valid is learned from the base model's images of the
        whole space."""
        e = want.erasure

        def make(patch: Patch | None) -> Mapping[str, Tensor]:
            self._calibrate()
            model = self._gold if e is not None and e.row == GOLD else self.model
            what = "images of the base model" if e is None else f"images of {e.row}, {e.target}"
            return scored(
                self._drawn(model, patch, want.names, want.seeds, what), want.names, len(want.seeds), self.judge
            ).tensors()

        return Scan(want.names, **self._found(want, make))

    def _drawn(self, model: DiffusionModel, patch: Patch | None, names: Sequence[str], seeds: Sequence[int], what: str) -> Tensor:
        cases = scan_cases(names, seeds, self.profile.guidance)
        return case_images(model, patch, cases, self.profile, lambda done: self.on_progress(what, done, len(cases)))

    def _calibrate(self) -> None:
        if not self.calibrated:
            images = self._drawn(self.model, None, self.names, range(self._calibration_seeds), "images to calibrate")
            self.judge.calibrate(images)
            self.calibrated = True

    @property
    def _calibration_seeds(self) -> int:
        return -(-MINIMUM // len(self.names))

    def drops(self, want: Images) -> Tensor:
        """(n, s) fall of the image-text score against the base model on the same names and seeds; see :func:`drops`."""
        return drops(want.names, self.images(replace(want, erasure=None)).text, self.images(want).text)

    def distances(self, want: Distances) -> Tensor:
        """(names, pairs) how far the patch moves the noise predictions of each name, taken from the store or computed by
        :func:`efface.evaluation.scan.prediction_changes`."""

        def make(patch: Patch | None) -> Mapping[str, Tensor]:
            assert patch is not None
            self.on_progress(f"noise predictions of {want.erasure.row}, {want.erasure.target}", 0, 1)
            return {"distances": prediction_changes(self.model, patch, want.names, want.probe, want.seed).contiguous()}

        return self._found(want, make)["distances"]

    def climbed(self, want: Climb) -> dict[str, Tensor]:
        """``embedding`` (L, d) and ``damage`` (ascents + 1,) of :func:`climbed`, taken from the store or computed."""

        def make(patch: Patch | None) -> Mapping[str, Tensor]:
            assert patch is not None
            target, probe = want.erasure.target, want.probe
            return climbed(self.model, patch, target, probe, want.seed, ascents=want.ascents, rate=want.rate)

        return self._found(want, make)

    # -- the plan ------------------------------------------------------------------------------------------------

    def fulfil(self, wants: Sequence[Want]) -> None:
        """Make everything that is missing, erasures first."""
        for e in erasures(wants):
            self.patch(e)
        for w in with_base(wants):
            if isinstance(w, Images):
                self.images(w)
            elif isinstance(w, Distances):
                self.distances(w)
            else:
                self.climbed(w)

    def cost(self, wants: Sequence[Want]) -> int:
        """UNet evaluations for what is missing. A scan of a patch that is not there is missing."""
        training = sum(
            self.make(e).expected_evals(self.model, self.request(e)) for e in erasures(wants) if not self.path(e).is_file()
        )
        missing = [w for w in with_base(wants) if self._missing(w)]
        calibrates = not self.calibrated and any(isinstance(w, Images) for w in missing)
        calibration = len(self.names) * self._calibration_seeds * self.profile.evals_per_image(self.model) if calibrates else 0
        return round(training) + sum(w.cost(self.model, self.profile) for w in missing) + calibration

    def _missing(self, want: Want) -> bool:
        e = want.erasure
        trained = e is None or e.row == GOLD or self.path(e).is_file()
        return not trained or not self._scan_path(want).is_file()


def with_base(wants: Sequence[Want]) -> list[Want]:
    """The distinct wants, and the base model's images that images of an erased model are compared with, in front of them."""
    return list(dict.fromkeys(x for w in wants for x in ([replace(w, erasure=None), w] if isinstance(w, Images) else [w])))


def erasures(wants: Sequence[Want]) -> list[Erasure]:
    """The distinct trainings behind the wants; a strength is no training of its own."""
    found = [w.erasure for w in wants]
    return list(dict.fromkeys(replace(e, strength=1.0) for e in found if e is not None and e.row != GOLD))


@lru_cache(maxsize=512)
def _contents(path: Path, changed: int) -> str:
    """Hash of a file, computed again when its time of change is another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mean_rows(values: Tensor) -> list[float]:
    """Mean over the finite entries of each row; NaN where there are none."""
    return torch.nanmean(values, dim=1).tolist()
