"""Closed-form edits of linear maps that share their input: one d x d matrix for all layers, solved
in float64.

Throughout, rows ``x`` (r, d) are inputs to change, ``y`` (r, d) the inputs that they should act
like and ``a`` (r,) their weights. ``q`` (p, d) with weights ``b`` (p,) are inputs that must act as
before. Every map W (out, d) that reads these inputs solves

    min_W'  sum_i a_i |W' x_i - W y_i|^2 + sum_j b_j |W' q_j - W q_j|^2 + lam |W' - W|_F^2

by ``W' = W T`` with one matrix T for all maps. What is computed is ``D = T - I``: preserved rows
and ridge drop out of it exactly, where ``M G^-1 - I`` would lose digits.

Longer than 400 lines because all of it shares :class:`Edit`, and equations do not import each other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import IllPosed

F64 = torch.float64
ENOUGH = 7e-7  # largest relative error of W' on the probed rows for which float32 is used: below 1e-6 with a margin
ROWS = 4096  # rows that are widened to float64 at a time, so that memory does not grow with their number
JITTERS = (0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)  # multiples of the mean diagonal entry that are added in turn
WORST = 1e14  # a condition number above which float64 (2e-16) leaves less than two digits


@dataclass(frozen=True)
class Edit:
    """An edit ``W' = W T``, kept as ``D = T - I = left @ right`` in float64. Without ``right``,
    ``left`` (d, d) is D itself."""

    left: Tensor
    right: Tensor | None
    condition: float
    """Condition number of the linear system that was solved (an estimate from below)."""

    @property
    def matrix(self) -> Tensor:
        """D, (d, d)."""
        return self.left if self.right is None else self.left @ self.right

    def to(self, *where: Any) -> Edit:
        """The same on another device, in another precision, or as :meth:`torch.Tensor.to` takes both from a tensor."""
        return Edit(self.left.to(*where), None if self.right is None else self.right.to(*where), self.condition)

    @property
    def transform(self) -> Tensor:
        """T = I + D, (d, d)."""
        return torch.eye(len(self.left), dtype=F64) + self.matrix


@dataclass(frozen=True)
class Moments:
    """The sums over rows on which a solution depends, (d, d) float64 each. Edits are combined by
    adding their moments."""

    gram: Tensor
    """``sum a x x^T``."""
    shift: Tensor
    """``sum a (y - x) x^T``."""
    keep: Tensor
    """``sum b q q^T``."""

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.shift + other.shift, self.keep + other.keep)

    @staticmethod
    def of(x: Tensor, y: Tensor, a: Tensor, q: Tensor, b: Tensor) -> Moments:
        """Sum the rows up. The symbols are those of the module.

        Cost: about 1.3 x 2 d^2 operations for each erased row and 0.6 x 2 d^2 for each preserved
        one. Rows y that occur many times, such as one anchor's, are added up first. All is float64,
        because float32 Gram matrices alone cost 5e-3 of a small-ridge edit.
        """
        gram = weighted_gram(x, a)
        goals, which = distinct(y)
        ax = torch.zeros(len(goals), x.shape[1], dtype=F64)
        for rows, weights, i in zip(x.split(ROWS), a.split(ROWS), which.split(ROWS), strict=True):
            ax.index_add_(0, i, rows.to(F64) * weights.to(F64)[:, None])
        return Moments(gram, goals.to(F64).T @ ax - gram, weighted_gram(q, b))


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``(u, which)`` with ``u[which] == rows`` and no row of u twice. rows: (r, d).

    Rows are sorted by one projection of each, which takes a tenth of the time of sorting whole
    rows. Where two different rows have the same projection, whole rows are sorted after all.
    """
    direction = torch.cos(torch.arange(rows.shape[1], dtype=F64))
    keys = torch.cat([part.to(F64) @ direction for part in rows.split(ROWS)]) if len(rows) else rows.new_zeros(0)
    values, which = torch.unique(keys, return_inverse=True)
    first = torch.full((len(values),), len(rows)).scatter_reduce_(0, which, torch.arange(len(rows)), "amin")
    found = rows[first]
    if all(torch.equal(found[i], part) for part, i in zip(rows.split(ROWS), which.split(ROWS), strict=True)):
        return found, which
    return torch.unique(rows, dim=0, return_inverse=True)


def weighted_gram(rows: Tensor, weights: Tensor) -> Tensor:
    """``sum_i w_i r_i r_i^T``, (d, d) float64.

    Only the upper triangle of blocks is multiplied out, for some rows at a time.
    """
    d = rows.shape[1]
    edges = [d * i // 4 for i in range(5)]
    gram = torch.zeros(d, d, dtype=F64)
    for part, w in zip(rows.split(ROWS), weights.split(ROWS), strict=True):
        scaled = part.to(F64) * w.to(F64)[:, None].sqrt()
        for start, stop in pairwise(edges):
            gram[start:stop, start:].addmm_(scaled[:, start:stop].T, scaled[:, start:])
    for start, stop in pairwise(edges):
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def factored(system: Tensor) -> tuple[Tensor, float]:
    """``(L, condition)`` with ``L L^T = system``, (d, d) symmetric positive definite.

    Where the system is singular to working precision, 1e-12 of its mean diagonal entry is added to
    the diagonal, growing tenfold to 1e-8, with a RuntimeWarning. Raises IllPosed when that is not
    enough, because the answer would be noise.
    """
    scale = float(system.diagonal().mean())
    for jitter in JITTERS:
        lower, failed = torch.linalg.cholesky_ex(system + jitter * scale * torch.eye(len(system), dtype=F64))
        condition = float("inf") if int(failed) else condition_estimate(system, lower)
        if condition < WORST:
            if jitter:
                warnings.warn(
                    f"the system of the edit is singular to float64; {jitter:.0e} of its mean diagonal entry was added "
                    f"(condition now {condition:.1e}). Raise lam or the preserve weights.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return lower, condition
    raise IllPosed(
        f"the system of the edit has no usable solution (condition {condition:.1e} even with {JITTERS[-1]:.0e} of its mean "
        f"diagonal entry added). Raise lam, raise the preserve weights, or edit fewer concepts at once."
    )


def condition_estimate(system: Tensor, lower: Tensor, rounds: int = 12) -> float:
    """Largest over smallest eigenvalue of a symmetric positive definite matrix, by power iteration
    with it and its Cholesky factor.

    This is a lower bound, usually within a few per cent. It takes 4 d^2 operations for each round,
    where eigenvalues take 4 d^3 / 3.
    """
    start = torch.cos(torch.arange(len(system), dtype=F64))[
        :, None
    ]  # a fixed start that is orthogonal to no eigenvector in general
    up, down = start, start
    for _ in range(rounds):
        up, down = system @ (up / up.norm()), torch.cholesky_solve(down / down.norm(), lower)
    return max(1.0, float(up.norm() * down.norm()))


def span(rows: Tensor, tolerance: float = 1e-6) -> Tensor:
    """(d, k) orthonormal basis of the space of the rows (n, d), without directions below
    ``tolerance`` of the largest."""
    if not len(rows):
        return torch.zeros(rows.shape[1], 0, dtype=F64)
    _, s, vh = torch.linalg.svd(rows.to(F64), full_matrices=False)
    return vh[s > tolerance * s[0]].T


def solved(moments: Moments, lam: float, pinned: Tensor | None = None) -> Edit:
    """The edit for given moments: ``D = shift G^-1`` with ``G = lam I + gram + keep``. ``pinned``
    (k, d) is explained in :func:`pin`.

    Cost: one Cholesky factorisation (d^3 / 3) and one solve (2 d^3), for any number of rows and
    layers. Raises IllPosed.
    """
    lower, condition = factored(lam * torch.eye(len(moments.gram), dtype=F64) + moments.gram + moments.keep)
    d = torch.cholesky_solve(moments.shift.T, lower).T
    return Edit(d if pinned is None else pin(d, lower, pinned), None, condition)


def answered(rows: Tensor, s: Tensor) -> Tensor:
    """``|W r|^2`` of each row r, over all maps that ``s`` (:func:`gram_of_maps`) is of; rows: (n, d) in the dtype of ``s``."""
    return (rows @ s * rows).sum(1).clamp(min=0)


def reached(edit: Edit, x: Tensor, y: Tensor, s: Tensor) -> float:
    """How far the edited maps have come from their answers to x towards their answers to y, over all rows and maps:
    ``1 - |W' x - W y| / |W x - W y|``.

    1 means that they answer x as they answered y, 0 that nothing was gained. x and y are (r, d), s is :func:`gram_of_maps`.
    """
    left, apart = (answered(rows - y.to(F64), s).sum().sqrt() for rows in (moved(edit, x), x.to(F64)))
    return 1 - float(left / apart) if apart else 1.0


HEAVIEST, LIGHTEST, DECADE = 1e4, 1e-8, 0.01
"""Between which multiples of the targets' own Gram matrix (by trace) a prior's weight is looked for, and how exactly, in
powers of ten."""


def affordable(
    moments: Moments, prior: Tensor, lam: float, rows: tuple[Tensor, Tensor, Tensor], cost: float, pinned: Tensor | None = None
) -> tuple[Edit, float]:
    """The edit with the heaviest prior that the targets can afford, and the weight: with it they still come at least ``1 - cost``
    as far as without a prior (:func:`reached`).

    The answer does not depend on the length of the text vectors, on their number in the prior or on the ridge's unit, as a weight
    would. prior is ``sum q q^T`` (d, d), and ``rows`` are x, y and s of :func:`reached`, which falls with the weight, so that
    bisection finds it. Cost: 13 solves of :func:`solved`.
    """

    def at(weight: float) -> Edit:
        return solved(Moments(moments.gram, moments.shift, moments.keep + weight * prior), lam, pinned)

    unit = float(moments.gram.trace() / prior.trace())
    least = (1 - cost) * reached(at(LIGHTEST * unit), *rows)
    low, high = math.log10(LIGHTEST), math.log10(HEAVIEST)
    while high - low > DECADE:
        middle = (low + high) / 2
        low, high = (middle, high) if reached(at(10**middle * unit), *rows) >= least else (low, middle)
    weight = 10**low * unit
    return at(weight), weight


def pin(right: Tensor, lower: Tensor, pinned: Tensor) -> Tensor:
    """Keep pinned encodings from moving at all: ``right - right N (N^T G^-1 N)^-1 N^T G^-1``.

    D = T - I is the change that the edit makes, and G the matrix of the system that it solves (see
    the top of this file). The result minimises the edit's objective under ``D n = 0`` for every
    pinned encoding n; the formula follows from the KKT conditions. With the empty prompt pinned, the
    unconditional branch of guidance does not move. right (r, d): the right factor of D, where D is a
    product, or D itself. lower: the Cholesky factor of G. pinned: (k, d), and N is an orthonormal
    basis of its rows.
    """
    n = span(pinned)
    solved_n = torch.cholesky_solve(n, lower)
    return right - (right @ n) @ torch.linalg.solve(n.T @ solved_n, solved_n.T)


def right_factor(x: Tensor, a: Tensor, q: Tensor, b: Tensor, lam: float, pinned: Tensor | None = None) -> tuple[Tensor, float]:
    """``(A X G^-1, condition)``, (r, d): the factor of the edit that every map shares, whatever its
    targets are.

    Few rows (r + p < d / 2) are solved by their own (r + p)-square system and never form a d x d
    matrix (push-through identity). More rows, or pinned ones, take one Cholesky factorisation of G.
    Raises IllPosed.
    """
    x, a, q, b = (v.to(F64) for v in (x, a, q, b))
    if pinned is None and 2 * (len(x) + len(q)) < x.shape[1]:
        root = torch.cat([a, b]).sqrt()
        z = torch.cat([x, q]) * root[:, None]
        lower, condition = factored(lam * torch.eye(len(z), dtype=F64) + z @ z.T)
        chosen = torch.eye(len(z), len(x), dtype=F64) * root[: len(x)]
        return torch.cholesky_solve(chosen, lower).T @ z, condition
    gram = weighted_gram(x, a) + weighted_gram(q, b)
    lower, condition = factored(lam * torch.eye(x.shape[1], dtype=F64) + gram)
    right = torch.cholesky_solve(x.T, lower).T * a[:, None]
    return right if pinned is None else pin(right, lower, pinned), condition


def shared_edit(x: Tensor, y: Tensor, a: Tensor, q: Tensor, b: Tensor, lam: float, pinned: Tensor | None = None) -> Edit:
    """The edit of the module's objective: ``D = (Y - X)^T A X G^-1`` with ``G = lam I + X^T A X +
    Q^T B Q``.

    x and y are (r, d), a is (r,) > 0, q is (p, d) where p may be 0, b is (p,) > 0; pinned (k, d)
    are rows that must not move at all. The edit is of low rank where that is cheaper (r < d / 2),
    else one (d, d) matrix. Raises IllPosed.
    """
    if 2 * len(x) >= x.shape[1]:
        return solved(Moments.of(x, y, a, q, b), lam, pinned)
    right, condition = right_factor(x, a, q, b, lam, pinned)
    return Edit((y.to(F64) - x.to(F64)).T, right, condition)


def per_layer_edits(weights: Sequence[Tensor], goals: Sequence[Tensor], x: Tensor, right: Tensor) -> list[Tensor]:
    """``W'_l - W_l = (V_l - X W_l^T)^T (A X G^-1)`` where each layer has targets V_l (r, out_l) of
    its own; float64.

    T is not shared here, but G is: ``right`` (r, d) comes from one :func:`right_factor` for all
    layers.
    """
    x = x.to(F64)
    return [(v.to(F64) - x @ w.to(F64).T).T @ right for w, v in zip(weights, goals, strict=True)]


def apply_edit(weight: Tensor, edit: Edit) -> Tensor:
    """``W' - W = W D`` for W (out, d), in float32: correct to 1e-6 of W', usually to 1e-7.

    The product is made in float32, which takes half the time, where 16 of its rows agree with
    float64 well enough. Otherwise, and for small matrices, it is made in float64. Cost: 2 out d^2
    operations, or 4 out d r for an edit of rank r.
    """
    single = _single(weight, edit)
    return _product(weight.to(F64), edit).float() if single is None else _product(weight.float(), single)


def edited(weight: Tensor, edit: Edit) -> Tensor:
    """``W' = W + W D`` in float32. It is computed as in :func:`apply_edit`, with the sum inside the
    last product."""
    single = _single(weight, edit)
    if single is None:
        return weight.float() + _product(weight.to(F64), edit).float()
    weight = weight.float()
    left, right = (weight, single.left) if single.right is None else (weight @ single.left, single.right)
    return torch.addmm(weight, left, right)


def _single(weight: Tensor, edit: Edit) -> Edit | None:
    """The edit in float32 where that is exact enough for this weight, else None."""
    if len(weight) < 256:
        return None
    single = edit.to(torch.float32)
    probe = weight[:: len(weight) // 16]
    exact = _product(probe.to(F64), edit)
    close = float((_product(probe.float(), single) - exact).norm()) < ENOUGH * float((probe + exact).norm())
    return single if close else None


def _product(weight: Tensor, edit: Edit) -> Tensor:
    return weight @ edit.left if edit.right is None else (weight @ edit.left) @ edit.right


def singular_values(edit: Edit) -> Tensor:
    """(d,) singular values of T, descending.

    A low-rank edit is measured inside the span of its factors; all other singular values are 1.
    """
    d = len(edit.left)
    if edit.right is None or 4 * edit.left.shape[1] >= d:
        return torch.linalg.svdvals(edit.transform)
    basis, _ = torch.linalg.qr(torch.cat([edit.left, edit.right.T], 1))
    inner = torch.eye(basis.shape[1], dtype=F64) + (basis.T @ edit.left) @ (edit.right @ basis)
    values = torch.cat([torch.linalg.svdvals(inner), torch.ones(d - basis.shape[1], dtype=F64)])
    return values.sort(descending=True).values


def low_rank(edit: Edit, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """D as ``left @ right``, (d, k) and (k, d), by its singular directions above ``tolerance`` of
    the largest.

    Each factor takes the square root of the singular values.
    """
    if edit.right is not None:
        # After a QR factorisation of both sides, only an r x r matrix needs a singular value decomposition.
        q_left, r_left = torch.linalg.qr(edit.left)
        q_right, r_right = torch.linalg.qr(edit.right.T)
        u, s, vh = torch.linalg.svd(r_left @ r_right.T)
        u, vh = q_left @ u, vh @ q_right.T
    else:
        u, s, vh = torch.linalg.svd(edit.left)
    kept = s > tolerance * s[0]
    root = s[kept].sqrt()
    return u[:, kept] * root, vh[kept] * root[:, None]


def preimage(edit: Edit, c: Tensor) -> Tensor:
    """The shortest inputs that T maps closest to ``c`` (n, d): ``T^-1 c`` where T has an inverse.

    This is the attack that every edit with one shared T allows: ``W' T^-1 c = W T T^-1 c = W c`` in
    all layers at once.
    """
    c = c.to(F64)
    if edit.right is None:
        back, failed = torch.linalg.solve_ex(edit.transform, c.T)
    else:  # The inverse of I + left right follows from the Woodbury identity.
        inner = torch.eye(len(edit.right), dtype=F64) + edit.right @ edit.left
        found, failed = torch.linalg.solve_ex(inner, edit.right @ c.T)
        back = c.T - edit.left @ found
    if int(failed) or float((moved(edit, back.T) - c).norm()) > 1e-6 * float(c.norm()):  # no inverse, or none in float64
        back = torch.linalg.pinv(edit.transform, rtol=1e-13) @ c.T
    return back.T


def moved(edit: Edit, rows: Tensor) -> Tensor:
    """T applied to rows (..., d), in float64: what the edited model reads in their place."""
    rows = rows.to(F64)
    return rows + (rows @ edit.left.T if edit.right is None else (rows @ edit.right.T) @ edit.left.T)


def shared_matrix(base: Iterable[Tensor], edited: Iterable[Tensor]) -> tuple[Edit, float]:
    """The T that the weights alone give away: the least-squares T of ``W' = W T`` over all layers,
    and ``|W T - W'| / |W' - W|``.

    A residual near 0 says that all layers share one T, so that :func:`preimage` undoes the edit.
    All layers together need at least as many rows as columns.
    """
    pairs = [(w.to(F64), v.to(F64)) for w, v in zip(base, edited, strict=True)]
    s = gram_of_maps(w for w, _ in pairs)
    lower, condition = factored(s)
    edit = Edit(torch.cholesky_solve(sum((w.T @ (v - w) for w, v in pairs), torch.zeros_like(s)), lower), None, condition)
    missed = sum(float((w @ edit.left - (v - w)).square().sum()) for w, v in pairs)
    return edit, (missed / sum(float((v - w).square().sum()) for w, v in pairs)) ** 0.5


def brought_back(base: Sequence[Tensor], edited: Sequence[Tensor], ridge: float = 0.0) -> Tensor:
    """The matrix ``R`` (d, d) that brings concepts back: the edited maps answer ``c' = R c`` as the
    original ones answered c.

        c' = argmin sum_l |W'_l c' - W_l c|^2 + ridge |c'|^2      (ridge 0: the shortest minimum)

    For an invertible edit that all layers share, R is ``T^-1`` and the minimum is 0. This needs no
    gradient, no image and no knowledge of the method, only both sets of weights. For other edits it
    is the best common answer. ridge > 0 keeps c' short. R comes from a QR factorisation of the
    stacked maps, because normal equations would square the condition number of T.
    """
    stacked = torch.cat([w.to(F64) for w in edited])
    wanted = torch.cat([w.to(F64) for w in base])
    if ridge:
        d = stacked.shape[1]
        stacked = torch.cat([stacked, ridge**0.5 * torch.eye(d, dtype=F64)])
        wanted = torch.cat([wanted, torch.zeros(d, d, dtype=F64)])
    q, r = torch.linalg.qr(stacked)
    return torch.linalg.pinv(r, rtol=1e-13) @ (q.T @ wanted)


def gram_of_maps(weights: Iterable[Tensor]) -> Tensor:
    """``S = sum_l W_l^T W_l`` (d, d), once for each base model: all that RECE's derivation needs to
    know of the layers."""
    return torch.stack([weighted_gram(w, torch.ones(len(w))) for w in weights]).sum(0)


REGAIN = ("zero", "anchor", "surrogate-1st", "surrogate-2nd", "surrogate-both")


def regained(s: Tensor, p: Tensor, ridge: float, kind: str) -> tuple[Tensor, Tensor | None]:
    """``(A, B)`` such that ``c' = A c + B t`` makes the edited maps ``W P`` answer as W answered c.
    t is the anchor's row.

    ``kind`` says in which regularised least squares, summed over layers with ``S = gram_of_maps``:

        zero             min |W P c' - W c|^2 + ridge |c'|^2
        anchor           min |W P c' - W c|^2 + ridge |c' - t|^2
        surrogate-1st    c' = ((1 + ridge) P^T S P)^-1 (P^T S + ridge P^T S P) c
        surrogate-2nd    min |W P c' - W c|^2 + ridge |c' - c|^2
        surrogate-both   c' = (ridge I + (1 + ridge) P^T S P)^-1 (ridge I + P^T S + ridge P^T S P) c

    B is None where it is zero. s and p are (d, d). Each kind is linear, so A and B serve any number
    of concepts. As ridge -> 0, A -> P^-1. Source: close_form_emb.py of RECE, with ``Wn = W P``.
    """
    eye, old = torch.eye(len(s), dtype=F64), p.T @ s
    new = old @ p
    system, of_c = {
        "zero": (ridge * eye + new, old),
        "anchor": (ridge * eye + new, old),
        "surrogate-1st": ((1 + ridge) * new, old + ridge * new),
        "surrogate-2nd": (ridge * eye + new, ridge * eye + old),
        "surrogate-both": (ridge * eye + (1 + ridge) * new, ridge * eye + old + ridge * new),
    }[kind]
    lower, _ = factored((system + system.T) / 2)
    of_t = torch.cholesky_solve(ridge * eye, lower) if kind == "anchor" else None
    return torch.cholesky_solve(of_c, lower), of_t


def sealed(edit: Edit, x: Tensor, keep: Tensor, lam: float, tolerance: float = 0.03) -> Edit:
    """``(I - U V^T) T``: T followed by a projection after which no embedding brings the concept
    ``x`` back whole.

    U spans ``x``. The projection is the oblique one along U that moves the kept rows K least:

        V = H^-1 U (U^T H^-1 U)^-1,   H = lam h I + (T K)^T (T K)

    so that V^T U = I and ``sum |V^T T k|^2 + lam h |V|^2`` is smallest. h is the mean diagonal
    entry of ``(T K)^T (T K)``, which makes lam a number without a unit.

    The result T' has ``V^T T' = 0``, so no inverse on the concept: ``|T' c' - c| >= |c| / s_max(V)`` for every
    c' and every c in the span. The price is what kept and other inputs lose along U. A small
    ``lam`` protects the kept rows, a large one seals better (s_max(V) -> 1). x: (r, d); keep: (m,
    d), anchors included.
    """
    u = span(x, tolerance)
    kept = moved(edit, keep)
    gram = kept.T @ kept
    lower, condition = factored(lam * gram.diagonal().mean() * torch.eye(len(u), dtype=F64) + gram)
    h = torch.cholesky_solve(u, lower)
    v = torch.linalg.solve(u.T @ h, h.T)  # (k, d), which is V^T
    if edit.right is None:
        return Edit(edit.left - u @ (v + v @ edit.left), None, max(condition, edit.condition))
    right = torch.cat([edit.right, v + (v @ edit.left) @ edit.right])
    return Edit(torch.cat([edit.left, -u], 1), right, max(condition, edit.condition))


def neighbour_moments(e: Tensor, y: Tensor, low: float, high: float, directions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Expected ``(x x^T, (y - x) x^T)`` of a random neighbour x of ``e`` (d,) that should act like
    ``y`` (d,).

        x = rho (s u0 + sqrt(1 - s^2) u),   s uniform on [low, high]
        u uniform on the unit sphere orthogonal to u0

    Here ``e = rho u0``, so s is the cosine of x and e, and x is as long as e. With ``directions``
    (k, d), u stays in their span (made orthogonal to e); with None it takes every direction. The
    expectation is exact, so nothing is sampled.
    """
    e, y = e.to(F64), y.to(F64)
    rho = e.norm()
    u0 = e / rho
    mean, square = (low + high) / 2, (low * low + low * high + high * high) / 3
    if directions is None:
        across = (torch.eye(len(e), dtype=F64) - torch.outer(u0, u0)) / (len(e) - 1)
    else:
        basis = span(directions.to(F64) - torch.outer(directions.to(F64) @ u0, u0))
        across = basis @ basis.T / max(1, basis.shape[1])
    gram = rho**2 * (square * torch.outer(u0, u0) + (1 - square) * across)
    return gram, rho * mean * torch.outer(y, u0) - gram


def worst_neighbour(
    e: Tensor, p: Tensor, s: Tensor, low: float, high: float, directions: Tensor | None, cosines: int = 9
) -> tuple[Tensor, float]:
    """The neighbour x of an erased encoding ``e`` (d,) that brings the concept back best through
    edited layers, and how much of e it misses.

        x = argmin sum over layers |W P x - W e|^2
        x = rho (c u0 + sqrt(1 - c^2) u),   rho = |e|,   u0 = e / rho,   u orthogonal to u0, |u| = 1
        missed = |W P x - W e| / |W e|

    W are the unedited layers, and the edit multiplies every one of them by the same ``p`` = P (d, d).
    ``s`` = sum of W^T W (:func:`gram_of_maps`), which is all that the sum over layers needs. c is the
    cosine of x and e, and u lies in the span of ``directions`` (k, d), or anywhere with None. For one c
    the sum is a quadratic in u on the unit sphere, which :func:`least_on_sphere` minimises exactly; c
    takes ``cosines`` values from ``low`` to ``high``, and the best of them is returned. Cost: one
    eigendecomposition of a (k, k) matrix for each value of c.
    """
    e, p, s = e.to(F64), p.to(F64), s.to(F64)
    rho = e.norm()
    u0 = e / rho
    across = torch.eye(len(e), dtype=F64) if directions is None else directions.to(F64)
    basis = span(across - torch.outer(across @ u0, u0))
    mapped = p @ basis
    pull = mapped.T @ s
    gram, found = pull @ mapped, []
    for c in torch.linspace(low, high, cosines, dtype=F64).tolist():
        r, base = float(rho) * (1 - c * c) ** 0.5, c * (p @ e) - e
        x = c * e
        if basis.shape[1]:
            x = x + r * basis @ least_on_sphere(r * r * gram, r * pull @ base)
        off = p @ x - e
        found.append((float(off @ s @ off), x))
    missed, x = min(found, key=lambda pair: pair[0])
    return x, (max(0.0, missed) / float(e @ s @ e)) ** 0.5


def least_on_sphere(a: Tensor, b: Tensor) -> Tensor:
    """``argmin v^T A v + 2 b^T v`` over ``|v| = 1``; A (k, k) symmetric, b (k,), float64.

    ``v = -(A - mu I)^-1 b`` with the mu below A's least eigenvalue that gives length 1, found by
    bisection. This is the global minimum, also where A is indefinite (a trust-region subproblem on
    its boundary). Where no such mu exists, because b has no part along the least eigenvector, the
    missing length is added along that vector.
    """
    values, vectors = torch.linalg.eigh(a)
    g = vectors.T @ b
    scale = float(g.norm()) or 1.0
    near, far = 0.0, scale * (1 + 1e-12)  # bounds on the distance of mu from the least eigenvalue; at |g| the length is at most 1
    for _ in range(200):
        gap = (near + far) / 2
        length = float((g / (values - values[0] + gap)).norm()) if gap > 0 else float("inf")
        near, far = (gap, far) if length > 1 else (near, gap)
    v = -g / (values - values[0] + far)
    missing = 1 - float(v @ v)
    if missing > 0:
        v[0] = (-1 if v[0] < 0 else 1) * (float(v[0]) ** 2 + missing) ** 0.5
    return vectors @ (v / v.norm())


def fused(ups: Tensor, downs: Tensor, grams: Tensor, lower: Tensor) -> Tensor:
    """Merge many low-rank changes into one weight, each on the rows of its own concept; returns
    ``W* - W`` of one layer, float64.

        min sum_i sum_{e in rows i} |W* e - (W + up_i down_i) e|^2
            + sum_p |W* p - W0 p|^2 + lam |W* - W|_F^2
        W* - W = sum_i up_i (down_i G_i) G^-1  +  (W0 - W) P G^-1
        G = sum_i G_i + P + lam I = L L^T

    Only the first term, of rank n k, is computed here. The second is a shared matrix again, ``W0
    D2`` with ``D2 = (I - T) P G^-1`` where W = W0 T. ups: (n, out, k); downs: (n, k, d); grams: (n,
    d, d); lower: L. Returns (out, d).
    """
    n, out, k = ups.shape
    right = torch.cholesky_solve((downs @ grams).reshape(n * k, -1).T, lower).T
    return ups.permute(1, 0, 2).reshape(out, n * k) @ right
