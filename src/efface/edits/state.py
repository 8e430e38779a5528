"""A saved edit: concepts can be added and taken away later, exactly and in any order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..concepts.request import EraseRequest
from ..equations.closed_form import F64, Edit, Moments, solved
from ..equations.exact import MOST_ROWS, halves, outer_sums, value
from ..errors import BadFile, BadOption, BadRequest, UnknownName
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from ..patches import Patch, PatchCard
from ..versions import versions
from .forms import facts, to_patch

FORMAT = "efface-concept-edit"


class ConceptEdit:
    """A closed-form edit that concepts can be added to and taken from at any time.

    It keeps the rows of erased concepts and of preserved prompts (the text encoder's vectors), and
    exact sums over them, the moments, from which the edit follows. Everything refers to the
    original weights, so the result depends only on the set of concepts.

    The moments are sums of outer products, kept as exact integers (:mod:`efface.equations.exact`).
    Adding and removing never round, so the moments after any history, and with them the patch, have
    the same bits as those of the same set built from nothing. Ordinary float64 sums would come back
    with other last digits. The rows are kept too: they are needed to take a concept away, and a
    text encoder may not give the same bits in another batch. The size of the moments does not
    depend on the number of concepts.

    ``lam``, ``erase_scale`` and ``preserve_scale`` are those of :class:`efface.methods.UCE` and may
    be changed at any time, because the moments do not contain them. ``limit`` is a power of two
    that no entry of a row exceeds; FLUX's T5 needs a larger one.
    """

    def __init__(
        self,
        d: int,
        *,
        lam: float = 0.5,
        erase_scale: float = 1.0,
        preserve_scale: float = 1.0,
        pinned: Tensor | None = None,
        limit: float = 64.0,
        base: Mapping[str, Any] | None = None,
    ) -> None:
        if lam <= 0 or erase_scale <= 0 or preserve_scale <= 0:
            raise BadOption(f"lam and the scales must be positive, got {lam}, {erase_scale}, {preserve_scale}.")
        if limit <= 0 or torch.frexp(torch.tensor(limit)).mantissa != 0.5:
            raise BadOption(f"limit must be a power of two, got {limit}.")
        self.d, self.lam, self.erase_scale, self.preserve_scale = d, lam, erase_scale, preserve_scale
        self.pinned, self.limit, self.base = pinned, limit, dict(base or {})
        self.erased: dict[str, tuple[Tensor, Tensor]] = {}
        self.preserved: dict[str, Tensor] = {}
        self._gram, self._cross, self._keep = (torch.zeros(3, d, d, dtype=F64) for _ in range(3))

    @staticmethod
    def of(model: DiffusionModel, *, pin_null: bool = True, **options: Any) -> ConceptEdit:
        """An empty edit of this model. With ``pin_null`` the empty prompt, start vector included,
        never moves."""
        null = model.encode([""]).rows("all")
        base = {**model.info, **model.identity()}
        return ConceptEdit(null.shape[1], pinned=null if pin_null else None, base=base, **options)

    # -- the set of concepts -------------------------------------------------------------------------------------

    def erase(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add a concept whose rows x (r, d) are to act like y (r, d); see
        :meth:`efface.models.cond.Cond.aligned`. Raises BadRequest."""
        if name in self.erased:
            raise BadRequest(f"{name!r} is already erased by this edit; remove it first to erase it in another way.")
        x, y = self._checked(name, x), self._checked(name, y)
        if x.shape != y.shape:
            raise BadRequest(f"{name!r}: {len(x)} rows should act like {len(y)} rows; the numbers must be equal.")
        self.erased[name] = (x, y)
        self._count(x, y, 1)

    def preserve(self, name: str, q: Tensor) -> None:
        """Add rows (p, d) that must act as before. Raises BadRequest."""
        if name in self.preserved:
            raise BadRequest(f"{name!r} is already preserved by this edit.")
        self.preserved[name] = q = self._checked(name, q)
        self._keep += self._gram_of(q)

    def remove(self, name: str) -> None:
        """Take an erased concept or preserved rows away again. Raises UnknownName."""
        if name in self.erased:
            self._count(*self.erased.pop(name), -1)
        elif name in self.preserved:
            self._keep -= self._gram_of(self.preserved.pop(name))
        else:
            raise UnknownName("concept of this edit", name, [*self.erased, *self.preserved])

    def _checked(self, name: str, rows: Tensor) -> Tensor:
        rows = rows.detach().float().cpu().contiguous()
        if rows.ndim != 2 or rows.shape[1] != self.d:
            raise BadRequest(f"{name!r}: rows of shape {tuple(rows.shape)}, this edit takes (n, {self.d}).")
        if not bool((rows.abs() <= self.limit).all()):
            raise BadRequest(
                f"the text encoding of {name!r} holds a number of size {float(rows.abs().max()):.3g}, above this edit's limit of "
                f"{self.limit:.3g}. Make the ConceptEdit with a larger limit."
            )
        if self.rows + len(rows) > MOST_ROWS:
            raise BadRequest(f"{self.rows + len(rows)} rows are more than {MOST_ROWS}, beyond which sums would round.")
        return rows

    @property
    def rows(self) -> int:
        """The number of rows of all concepts together."""
        return sum(len(x) for x, _ in self.erased.values()) + sum(map(len, self.preserved.values()))

    def _gram_of(self, rows: Tensor) -> Tensor:
        parts = halves(rows, self.limit)
        return outer_sums(parts, parts)

    def _count(self, x: Tensor, y: Tensor, sign: int) -> None:
        x_parts = halves(x, self.limit)
        self._gram += sign * outer_sums(x_parts, x_parts)
        self._cross += sign * outer_sums(halves(y, self.limit), x_parts)

    # -- the edit and its patch -----------------------------------------------------------------------------------

    @property
    def moments(self) -> Moments:
        """The weighted moments in float64, rounded once."""
        gram, shift = value(self._gram, self.limit), value(self._cross - self._gram, self.limit)
        return Moments(self.erase_scale * gram, self.erase_scale * shift, self.preserve_scale * value(self._keep, self.limit))

    def solve(self) -> Edit:
        """The edit for the present set of concepts. Raises BadRequest when nothing is erased, and
        IllPosed."""
        if not self.erased:
            raise BadRequest("this edit erases nothing; add a concept with erase().")
        return solved(self.moments, self.lam, self.pinned)

    def patch(self, model: DiffusionModel) -> Patch:
        """The edit as a patch of the model that it was made for. Raises WrongBaseModel for another
        one."""
        edit = self.solve()
        names = sorted(self.erased)
        card = PatchCard(
            method="concept-edit",
            config={"lam": self.lam, "erase_scale": self.erase_scale, "preserve_scale": self.preserve_scale},
            request=EraseRequest(tuple(names), preserve=tuple(sorted(self.preserved))),
            base=self.base,
            cost={"forward": 0, "calls": 0, "backward": 0},
            versions=versions(),
            log={"edit": facts(edit, model, names)},
        )
        patch = to_patch(model.weights(model.reads()), edit, card)
        patch.check_base(model)
        return patch

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the whole state: options and rows. The moments are left out, because they are
        computed again with the same bits."""
        tensors = {f"x.{n}": x for n, (x, _) in self.erased.items()} | {f"y.{n}": y for n, (_, y) in self.erased.items()}
        tensors |= {f"q.{n}": q for n, q in self.preserved.items()}
        if self.pinned is not None:
            tensors["pinned"] = self.pinned
        options = {k: getattr(self, k) for k in ("d", "lam", "erase_scale", "preserve_scale", "limit", "base")}
        header = {"format": FORMAT, "options": json.dumps(options)}
        # Every entry gets a copy, because safetensors refuses tensors that share memory.
        copies = {n: t.float().clone().contiguous() for n, t in tensors.items()}
        atomic_write(Path(path), lambda p: save_file(copies, p, metadata=header))

    @staticmethod
    def load(path: str | Path) -> ConceptEdit:
        """Read a saved edit. Raises BadFile for a file that is not a whole one."""
        try:
            with safe_open(path, framework="pt") as f:
                header = f.metadata() or {}
                if header.get("format") != FORMAT:
                    raise BadFile(f"{str(path)!r} is not a saved concept edit.")
                tensors = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118  # safe_open is no mapping
            state = ConceptEdit(pinned=tensors.pop("pinned", None), **json.loads(header["options"]))
            for name, x in tensors.items():
                if name.startswith("x."):
                    state.erase(name[2:], x, tensors[f"y.{name[2:]}"])
                elif name.startswith("q."):
                    state.preserve(name[2:], x)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadFile):
                raise
            raise BadFile(f"{str(path)!r} is not a whole concept edit ({error}). Get it again.") from error
        return state
