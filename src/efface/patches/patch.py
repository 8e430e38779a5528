"""A Patch is what a method returns: ``W' - W`` per parameter, and a card that says where it came from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadOption, NonFiniteLoss, WrongBaseModel
from ..models.base import DiffusionModel
from ..models.identity import same_base
from ..models.select import ENCODERS, in_checkpoint
from . import store
from .card import PatchCard

EXAMINED = 8
"""Targets of a patch of which it is looked whether their prediction changes."""


@dataclass(frozen=True)
class Patch:
    """Weight changes by checkpoint name, in float32 on the CPU. Immutable; combining patches makes new ones."""

    deltas: Mapping[str, Tensor]
    card: PatchCard

    @staticmethod
    def between(base: Mapping[str, Tensor], edited: Mapping[str, Tensor], card: PatchCard) -> Patch:
        """``edited - base``, leaving out tensors that did not change. Raises NonFiniteLoss for NaN or infinite weights.

        The check matters: fused attention turns a NaN query into zeros, so broken weights can hide behind a finite loss.
        """
        return Patch.of({n: (edited[n].detach().float() - w.detach().float()).cpu() for n, w in base.items()}, card)

    @staticmethod
    def of(deltas: Mapping[str, Tensor], card: PatchCard) -> Patch:
        """As :meth:`between`, of the changes themselves."""
        # A finite sum has finite terms alone and is made in a fraction of the time; one that is not may only have overflowed.
        broken = [n for n, d in deltas.items() if not bool(d.sum().isfinite()) and not bool(d.isfinite().all())]
        if broken:
            raise NonFiniteLoss(f"the erased weights are not finite ({broken[0]}); no patch was made. Lower the learning rate.")
        return Patch({n: d for n, d in deltas.items() if bool(d.any())}, card)

    @contextmanager
    def applied(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """The model with ``W + delta`` inside, and bit-exactly as before outside, whatever happens in between.

        The original tensors are kept and put back: subtracting the delta again would change about a tenth of the
        weights in their last bit. Raises WrongBaseModel for another base.
        """
        self.check_base(model)
        with self._applied_unchecked(model):
            yield model

    @contextmanager
    def _applied_unchecked(self, model: DiffusionModel) -> Iterator[None]:
        live = model.weights(lambda _: True)
        missing = [n for n in self.deltas if n not in live]
        if missing:
            raise WrongBaseModel(
                f"the model {model.name!r} has no parameter {missing[0]!r} (and {len(missing) - 1} more of the patch)."
            )
        wrong = [n for n, d in self.deltas.items() if d.shape != live[n].shape]
        if wrong:
            n = wrong[0]
            raise WrongBaseModel(
                f"{n} has shape {tuple(live[n].shape)} in {model.name!r} and {tuple(self.deltas[n].shape)} in the patch."
            )
        model.unround(self.deltas.__contains__)
        originals = {n: live[n].data for n in self.deltas}
        try:
            self._add(live, model)
            yield
        finally:
            for n, w in originals.items():
                live[n].data = w
            model.weights_changed()

    def apply_(self, model: DiffusionModel) -> None:
        """Change the model for good. Raises WrongBaseModel for another base."""
        self.check_base(model)
        model.unround(self.deltas.__contains__)
        self._add(model.weights(lambda _: True), model)

    def _add(self, live: Mapping[str, Tensor], model: DiffusionModel) -> None:
        """Raises BadOption where every number of the change is lost in the precision of the weights."""
        lost = bool(self.deltas)
        for n, d in self.deltas.items():
            w = live[n].data
            live[n].data = (w.float() + d.to(w.device)).to(w.dtype)
            lost = lost and torch.equal(live[n].data, w)
        model.weights_changed()
        if lost and self.norm() > 0:
            raise BadOption(
                f"the patch (norm {self.norm():.2g}) changes no weight of {model.name!r} in {model.info.get('dtype')}: every "
                "change is below the precision of the number it is added to. Load the model with --dtype float32."
            )

    def check_base(self, model: DiffusionModel) -> None:
        """Raises WrongBaseModel unless ``model`` is the base, in whatever precision; see :mod:`efface.models.identity`."""
        base = self.card.base
        if base.get("text_encoder_digest") is not None and all(n.startswith(ENCODERS) for n in self.deltas):
            if not same_base(base, {**model.info, **model.identity("text_encoder")}, "text_encoder_"):
                raise WrongBaseModel(
                    f"this patch changes the text encoder of {base.get('name')!r}, and {model.name!r} has another one. "
                    f"Load a model with that text encoder, or erase again on this one.{self._precisions(model)}"
                )
            return
        mine = model.identity()
        if not same_base(base, {**model.info, **mine}):
            raise WrongBaseModel(
                f"this patch was made for {base.get('name')!r} (digest {str(base.get('digest'))[:12]}), "
                f"not for {model.name!r} (digest {mine['digest'][:12]}). Load that model, or erase again on this one."
                f"{self._precisions(model)}"
            )

    def check_in_checkpoint(self) -> None:
        """Raises BadOption for changes of the rows of the text alone (:mod:`efface.models.text_rows`), which files and pipelines
        of diffusers have no place for."""
        if rows := [n for n in self.deltas if not in_checkpoint(n)]:
            raise BadOption(
                f"this patch changes {rows[0]} ({len(rows)} such tensors): a layer that text and picture share, for the rows of "
                "the text alone. Neither a file of another tool nor a pipeline of diffusers has a place for that. Draw with "
                "efface (efface sample --patch), or erase with train=text."
            )

    def _precisions(self, model: DiffusionModel) -> str:
        made, loaded = self.card.base.get("dtype"), model.info.get("dtype")
        if made == loaded or "bfloat16" not in (made, loaded):
            return ""
        return f" The patch was made in another precision ({made}; this is {loaded}): if it is the same model, load it in {made}."

    @torch.no_grad()
    def without_effect(self, model: DiffusionModel) -> list[str]:
        """Of the first EXAMINED targets those whose prediction at one fixed latent is the same, bit for bit, with this patch as
        without: none, unless the weights that it changes are not those that the model computes with. Raises WrongBaseModel, and
        BadOption as :meth:`applied`. Cost: 2 evaluations per target, one row at a time, which no counter shows."""
        if not self.norm():
            return []
        targets = self.card.request.targets[:EXAMINED]
        z = model.case_noise([0])
        t = model.schedule.numbered([model.schedule.size // 2], model.device)
        before = replace(model.evals)
        model.unround(self.deltas.__contains__)
        try:
            plain = [model.predict(z, t, model.encode([name])) for name in targets]
            with self.applied(model):
                changed = [model.predict(z, t, model.encode([name])) for name in targets]
        finally:
            for count, value in vars(before).items():
                setattr(model.evals, count, value)
        return [name for name, a, b in zip(targets, plain, changed, strict=True) if torch.equal(a, b)]

    def scaled(self, factor: float) -> Patch:
        """``factor`` times the change: 0 is the base model, 1 this patch."""
        if not math.isfinite(factor):
            raise BadOption(f"the patch scale must be a finite number, got {factor}.")
        log = {**self.card.log, "scale": factor * float(self.card.log.get("scale", 1.0))}
        measured = self.card.measured if factor == 1 else {}  # what was measured is of this strength
        return Patch({n: d * factor for n, d in self.deltas.items()}, replace(self.card, log=log, measured=measured))

    def __add__(self, other: Patch) -> Patch:
        """Both changes at once; both must be made for the same base."""
        mine, theirs = self.card.base, other.card.base
        if mine.get("digest") != theirs.get("digest") and not ("sketch" in theirs and same_base(mine, theirs)):
            raise WrongBaseModel("the two patches were made for different base models and cannot be added.")
        names = {**self.deltas, **other.deltas}
        deltas = {n: self.deltas[n] + other.deltas[n] if n in self.deltas and n in other.deltas else names[n] for n in names}
        card = PatchCard(
            method="+".join((self.card.method, other.card.method)),
            config={},
            request=self.card.request + other.card.request,
            base=self.card.base,
            cost={k: self.card.cost.get(k, 0) + other.card.cost.get(k, 0) for k in {**self.card.cost, **other.card.cost}},
            versions=self.card.versions,
            log={"parts": [part.json() for part in (self, other)]},
        )
        return Patch(deltas, card)

    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return math.sqrt(math.fsum(d.double().square().sum().item() for d in self.deltas.values()))

    def digest(self) -> str:
        """sha256 of the change itself (names, shapes, bits)."""
        h = hashlib.sha256()
        for name, d in sorted(self.deltas.items()):
            h.update(f"{name}{tuple(d.shape)}".encode())
            h.update(d.contiguous().numpy().tobytes())
        return h.hexdigest()

    def json(self) -> dict[str, Any]:
        """The card and the size of the change, as plain data."""
        c = self.card
        return {
            "method": c.method,
            "config": dict(c.config),
            "request": c.request.json(),
            "base": dict(c.base),
            "cost": dict(c.cost),
            "versions": dict(c.versions),
            "log": dict(c.log),
            "measured": dict(c.measured),
            "tensors": len(self.deltas),
            "parameters": sum(d.numel() for d in self.deltas.values()),
            "norm": self.norm(),
        }

    def __repr__(self) -> str:
        """One line: the method, what was erased from which model, and the size of the change."""
        targets = self.card.request.asked
        named = ", ".join(repr(t) for t in targets[:3]) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
        size = f"{len(self.deltas)} tensors, norm {self.norm():.3g}"
        return f"<Patch: {self.card.method} of {named} from {self.card.base.get('name')!r}, {size}>"

    def save(self, path: str | Path) -> None:
        """Write the patch as one safetensors file. Raises BadFile when the place cannot be written; what was there before
        stays then."""
        store.write(Path(path), self.deltas, self.card)

    @staticmethod
    def load(path: str | Path) -> Patch:
        """Read a patch, bit for bit. Raises BadFile for anything that is not a whole, well-formed patch file."""
        return Patch(*store.read(Path(path)))


def empty_like(patch: Patch, method: str) -> Patch:
    """The change of nothing, with the same base: the entrant ``none``."""
    return Patch({}, replace(patch.card, method=method, config={}, cost={}, log={}, measured={}))


def noise_like(patch: Patch, rng: torch.Generator) -> Patch:
    """Gaussian noise with the same Frobenius norm on every tensor of the patch: the entrant ``noise``."""
    deltas = {}
    for name, d in patch.deltas.items():
        n = torch.randn(d.shape, generator=rng)
        deltas[name] = n * (d.norm() / n.norm())
    return Patch(deltas, replace(patch.card, method="noise", config={}, cost={}, log={}, measured={}))


def residual(patch: Patch, found: Mapping[str, Tensor]) -> float:
    """``|found - patch| / |patch|`` over all tensors; infinite where one is missing or more than the patch has."""
    if found.keys() != patch.deltas.keys():
        return float("inf")
    if not patch.deltas:
        return 0.0
    off = sum(float((found[n].double().reshape(d.shape) - d).square().sum()) for n, d in patch.deltas.items())
    return (off / sum(float(d.double().square().sum()) for d in patch.deltas.values())) ** 0.5
