"""Patches on a pipeline that somebody has loaded, in one line and reversible."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadOption
from ..models.load import load_model
from ..patches import Patch
from ..patches.stack import INTERFERENCE, Applied, Stack
from .hub import load_patch

Source = str | Path | Patch
_ON: weakref.WeakKeyDictionary[Any, Applied] = weakref.WeakKeyDictionary()
"""What is applied, by the denoiser that it is on: a second stack on top would take the first one's weights for the base."""


def stack(patches: Mapping[str, Source] | Sequence[Source], *, allow_conflicts: bool = False) -> Stack:
    """Several patches in order, by name (a mapping) or called after their targets; each is a patch, a file, or ``OWNER/NAME``.

    Raises BadOption where two contradict each other (one preserves or maps to what the other erases, both erase the same, their
    bases differ); ``allow_conflicts`` makes warnings of these. What they do to each other's targets is measured by
    :func:`apply`, and by :meth:`efface.patches.stack.Stack.interference`.

    >>> import efface
    >>> model = efface.load_model("tiny")
    >>> both = efface.stack([efface.erase(model, "uce", targets=name) for name in ("cat", "rose")])
    >>> list(both.names)
    ['cat', 'rose']

    """
    named = isinstance(patches, Mapping)
    read = {n: _read(p) for n, p in patches.items()} if named else [_read(p) for p in patches]  # type: ignore[union-attr]
    found = Stack.of(read)
    told = found.conflicts()
    if told and not allow_conflicts:
        raise BadOption(f"the patches contradict each other: {'; '.join(told)}. Leave one out, or say allow_conflicts=True.")
    for sentence in told:
        warnings.warn(f"{sentence}.", UserWarning, stacklevel=2)
    return found


def apply(pipe: Any, source: Source | Stack, *, scale: float = 1.0) -> Applied:
    """Put a patch, a file, a Hub repository or a :func:`stack` on a loaded diffusers pipeline, whose weights change in place.

    ``scale``: strength of a single patch, 1 as it was made. Returns what is on: ``.revert()``, or the end of a ``with``
    block, brings back every bit; ``.add(name, patch)`` and ``.remove(name)`` change a stack. Where patches of a stack change
    what another does to its target by more than half, a warning says so. Raises WrongBaseModel for another base, BadOption
    where something of efface is on the pipeline already, and for a patch that a pipeline of diffusers would not see. Cost: 3
    UNet evaluations per target of a stack of two or more, else none.

    >>> import efface
    >>> model = efface.load_model("tiny")  # or a loaded diffusers pipeline
    >>> patch = efface.erase(model, "uce", targets="cat")
    >>> before = model.digest()
    >>> with efface.apply(model, patch):
    ...     model.digest() == before
    False
    >>> model.digest() == before
    True

    """
    chosen = source if isinstance(source, Stack) else Stack.of([_read(source).scaled(scale)])
    if isinstance(source, Stack) and scale != 1.0:
        raise BadOption("scale is for a single patch: scale the patches of a stack before they are stacked.")
    model = load_model(pipe)
    model.check_plain()
    if model.network in _ON and _ON[model.network].stack.names:
        on = ", ".join(_ON[model.network].stack.names)
        raise BadOption(
            f"{on} is on this pipeline already: use what apply returned (.add, .remove, .revert), or efface.stack([...])."
        )
    if len(chosen.entries) > 1:
        for name, share in chosen.interference(model).items():
            if share > INTERFERENCE:
                warnings.warn(
                    f"the other patches change {100 * share:.0f} % of what {name!r} does to its target; what was measured of it "
                    "alone need not hold. Evaluate the stack: efface.evaluate(model, stack.patch(), ...).",
                    UserWarning,
                    stacklevel=2,
                )
    made = Applied(model, chosen)
    _ON[model.network] = made
    return made


def _read(source: Source) -> Patch:
    return source if isinstance(source, Patch) else load_patch(source)
