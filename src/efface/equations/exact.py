"""Sums of outer products without rounding: the same bits in any order and on any number of threads,
and exactly subtractable.

A float64 holds integers exactly up to 2^53, so a product of matrices of small integers is exact in
whichever order its terms are added. Rows are cut into two integer halves of 17 bits (an error-free
splitting as in Ozaki et al. 2012, doi:10.1007/s11075-011-9478-1), and the three partial products
are kept apart as integers. Adding a row and subtracting it again gives back every bit, which
ordinary floating-point sums do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 17
"""Bits of each half. Products have 2 x 16 bits and a sign, and cross products come twice, so 2^20 rows fit into 2^53."""
MOST_ROWS = 2**20


def halves(rows: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Two integer matrices, as float64, with ``rows ~ unit (high + low / 2^17)`` and ``unit = limit
    / 2^16``, of at most 2^16.

    ``limit`` is a power of two, and no entry of ``rows`` (n, d) is larger. At most ``limit / 2^34``
    of an entry is lost: at limit 64 that is 4e-9, while float32 itself resolves a number of order
    one to 6e-8.
    """
    scaled = rows.double() * (2**16 / limit)
    high = scaled.round()
    return high, ((scaled - high) * 2**HALF).round()


def outer_sums(y: tuple[Tensor, Tensor], x: tuple[Tensor, Tensor]) -> Tensor:
    """``sum_i y_i x_i^T`` of halved rows as (3, d, d) exact integers: high-high, both cross
    products, low-low."""
    (y_high, y_low), (x_high, x_low) = y, x
    return torch.stack([y_high.T @ x_high, y_high.T @ x_low + y_low.T @ x_high, y_low.T @ x_low])


def value(sums: Tensor, limit: float) -> Tensor:
    """The (d, d) float64 matrix that (3, d, d) exact integers stand for. Only here is anything
    rounded."""
    unit = limit / 2**16
    return unit * unit * (sums[0] + sums[1] * 2.0**-HALF + sums[2] * 2.0 ** (-2 * HALF))
