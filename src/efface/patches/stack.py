"""Several patches on one model: whether they agree, and each of them removable without a trace.

The weights under a stack are ``W + (d_1 + ... + d_n)``, from the original W and rounded once. They depend on the patches and
their order alone, and not on what was put on or taken off before: removing one leaves the same bits as never having added it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..concepts.request import normalised
from ..errors import BadOption, UnknownName
from ..models.base import DiffusionModel
from ..models.identity import same_base
from .patch import EXAMINED, Patch

INTERFERENCE = 0.5
"""Share of a patch's own effect on its targets by which the others may change it before a warning says so: half of what was
measured of the patch alone is then something else."""


@dataclass(frozen=True)
class Stack:
    """Patches by name, in order. Immutable; names are unique."""

    entries: tuple[tuple[str, Patch], ...]

    @staticmethod
    def of(patches: Mapping[str, Patch] | Sequence[Patch]) -> Stack:
        """Patches without names are called after their targets. Raises BadOption for none, and for two of one name."""
        named = list(patches.items()) if isinstance(patches, Mapping) else [(_called(p), p) for p in patches]
        if not named:
            raise BadOption("a stack needs at least one patch.")
        twice = [n for i, (n, _) in enumerate(named) if n in [m for m, _ in named[:i]]]
        if twice:
            raise BadOption(
                f"two patches of the stack are called {twice[0]!r}: give them names, as in stack({{'a': ..., 'b': ...}})."
            )
        return Stack(tuple(named))

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(name for name, _ in self.entries)

    def with_(self, name: str, patch: Patch) -> Stack:
        """One more on top. Raises BadOption for a name that is taken."""
        return Stack.of({**dict(self.entries), name: patch}) if name not in self.names else self._taken(name)

    def _taken(self, name: str) -> Stack:
        raise BadOption(f"a patch called {name!r} is on the stack already; remove it first, or give another name.")

    def without(self, name: str) -> Stack:
        """All but one. Raises UnknownName for a name that is not there."""
        if name not in self.names:
            raise UnknownName("patch of the stack", name, self.names)
        return Stack(tuple(entry for entry in self.entries if entry[0] != name))

    def patch(self) -> Patch:
        """All changes as one patch, whose card has the cards of its parts."""
        return reduce(lambda a, b: a + b, (patch for _, patch in self.entries))

    def deltas(self) -> dict[str, Tensor]:
        """``d_1 + ... + d_n`` by weight, summed in the order of the stack."""
        found: dict[str, Tensor] = {}
        for _, patch in self.entries:
            for name, d in patch.deltas.items():
                found[name] = found[name] + d if name in found else d
        return found

    def conflicts(self) -> list[str]:
        """What the requests of two patches have against each other, one sentence each: a name that one erases and the other
        preserves, erases as well, or maps its own target to; and two base models."""
        told = []
        for i, (a, p) in enumerate(self.entries):
            for b, q in self.entries[i + 1 :]:
                if not _same_base(p, q):
                    told.append(f"{a!r} and {b!r} were made for different base models")
                told += _contradictions(a, p, b, q) + _contradictions(b, q, a, p)
                both = {normalised(t) for t in p.card.request.targets} & {normalised(t) for t in q.card.request.targets}
                told += [f"{a!r} and {b!r} both erase {name!r}; the two changes would add up" for name in sorted(both)]
        return told

    @torch.no_grad()
    def interference(self, model: DiffusionModel) -> dict[str, float]:
        """By patch, ``|eps_all - eps_alone| / |eps_alone - eps_0|`` at one fixed latent of t = T / 2, the largest over its
        targets: how far the other patches change what this one does to the prediction for its target. 0: not at all. Raises
        WrongBaseModel.

        eps_0, eps_alone and eps_all are the predictions of the model, under this patch, and under the stack. Cost: 3 evaluations
        per target, one row at a time, which no counter shows.
        """
        z = model.case_noise([0])
        t = model.schedule.numbered([model.schedule.size // 2], model.device)
        targets = {name: patch.card.request.targets[:EXAMINED] for name, patch in self.entries}

        def predicted(names: Sequence[str]) -> list[Tensor]:
            return [model.predict(z, t, model.encode([name])).float() for name in names]

        before = replace(model.evals)
        try:
            plain = {name: predicted(words) for name, words in targets.items()}
            alone = {}
            for name, patch in self.entries:
                with patch.applied(model):
                    alone[name] = predicted(targets[name])
            with applied(self, model):
                together = {name: predicted(words) for name, words in targets.items()}
        finally:
            for count, value in vars(before).items():
                setattr(model.evals, count, value)
        return {
            name: max(
                float((c - b).norm() / (b - a).norm().clamp(min=1e-12))
                for a, b, c in zip(plain[name], alone[name], together[name], strict=True)
            )
            for name in self.names
        }


def _called(patch: Patch) -> str:
    return ", ".join(patch.card.request.asked)


def _same_base(p: Patch, q: Patch) -> bool:
    a, b = p.card.base, q.card.base
    return a.get("digest") == b.get("digest") or ("sketch" in b and same_base(a, b))


def _contradictions(a: str, p: Patch, b: str, q: Patch) -> list[str]:
    """Of the targets of p in the request of q."""
    told, erased = [], {normalised(t): t for t in p.card.request.targets}
    told += [f"{a!r} erases {n!r}, which {b!r} preserves" for n in q.card.request.preserve if normalised(n) in erased]
    if q.card.request.anchor and normalised(q.card.request.anchor) in erased:
        told.append(f"{b!r} maps its target to {q.card.request.anchor!r}, which {a!r} erases")
    return told


@contextmanager
def applied(stack: Stack, model: DiffusionModel) -> Iterator[DiffusionModel]:
    """Inside, the model under the stack; outside, bit for bit as before. Raises WrongBaseModel for another base."""
    on = Applied(model, stack)
    try:
        yield model
    finally:
        on.revert()


class Applied:
    """A stack on a model, until :meth:`revert`. Patches can be added and removed in any order, each without a trace."""

    def __init__(self, model: DiffusionModel, stack: Stack) -> None:
        """Raises WrongBaseModel for a patch of another base, and BadOption for one that a pipeline of diffusers would not see,
        before a weight is changed."""
        self.model, self.stack = model, Stack(())
        self.originals: dict[str, Tensor] = {}
        for _, patch in stack.entries:
            patch.check_in_checkpoint()
            patch.check_base(model)
        self._set(stack)

    def add(self, name: str, patch: Patch) -> None:
        """Put one more on. Raises WrongBaseModel for one of another base than the model was before the stack, BadOption."""
        following = self.stack.with_(name, patch)
        patch.check_in_checkpoint()
        with self._as_before():
            patch.check_base(self.model)
        self._set(following)

    def remove(self, name: str) -> None:
        """Take the patch of this name off. The weights are then those of the other patches alone, to the bit. Raises UnknownName
        where no patch of the stack has the name."""
        self._set(self.stack.without(name))

    def revert(self) -> None:
        """Take all off: every bit is as before the first one. Does nothing the second time."""
        self._set(Stack(()))

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.revert()

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        kept = self.stack
        self._set(Stack(()))
        try:
            yield
        finally:
            self._set(kept)

    def _set(self, stack: Stack) -> None:
        live, deltas = self.model.weights(lambda _: True), stack.deltas()
        self.model.unround(deltas.__contains__)
        for name in [n for n in self.originals if n not in deltas]:
            live[name].data = self.originals.pop(name)
        for name, d in deltas.items():
            original = self.originals.setdefault(name, live[name].data)
            live[name].data = (original.float() + d.to(original.device)).to(original.dtype)
        self.stack = stack
        self.model.weights_changed()
