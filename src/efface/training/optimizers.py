"""The optimizers of a training: Adam in float32, or with its two moments in eight bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import BadOption

ADAM, ADAM_8BIT = "adam", "adam8bit"
OPTIMIZERS = (ADAM, ADAM_8BIT)
SMALL = 4096
"""Numbers of a tensor below which bitsandbytes leaves the moments in float32."""
BLOCK = 256
"""Numbers that share one float32 scale in each of the two moments."""


def optimizer_of(kind: str, weights: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam with betas 0.9 and 0.999 and no weight decay. With ``adam8bit``, its moments are kept in blocks of eight-bit numbers
    (Dettmers et al. 2022, arXiv:2110.02861, as bitsandbytes has it)."""
    if kind == ADAM:
        return torch.optim.Adam(list(weights), lr=lr)
    found: torch.optim.Optimizer = _library().optim.Adam8bit(list(weights), lr=lr)
    return found


def moment_bytes(kind: str, numbers: int) -> int:
    """Bytes of Adam's two moments of a tensor of so many numbers."""
    if kind == ADAM or numbers < SMALL:
        return 8 * numbers
    return 2 * (numbers + 4 * -(-numbers // BLOCK))


def check_optimizer(kind: str, device: torch.device) -> None:
    """Raises BadOption where the optimizer's library is not there, or takes no step on the device."""
    if kind == ADAM:
        return
    try:
        probe = torch.zeros(SMALL, device=device, requires_grad=True)
        probe.grad = torch.ones_like(probe)
        _library().optim.Adam8bit([probe], lr=1.0).step()
        moved = bool((probe < 0).all())
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, OSError) as error:
        raise BadOption(f"bitsandbytes cannot serve optimizer={kind} on {device} ({error}); use optimizer={ADAM}.") from error
    if not moved:
        raise BadOption(f"bitsandbytes takes no step on {device}, so optimizer={kind} would train nothing; use optimizer={ADAM}.")


def _library() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise BadOption(
            f"optimizer={ADAM_8BIT} needs bitsandbytes, which is not installed: pip install 'efface[adam8bit]', or use "
            f"optimizer={ADAM}."
        ) from error
    return bitsandbytes
