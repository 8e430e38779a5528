"""``efface env``."""

from __future__ import annotations

import os
from typing import Any

from .main import command
from .options import json_option
from .output import emit


@command("env", examples="efface env")
@json_option
def env(as_json: bool) -> None:
    """Print versions, threads and devices, to be pasted into a bug report."""
    import torch

    from ..evaluation.cache import cache_folder
    from ..versions import versions

    facts: dict[str, Any] = {
        **versions(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.is_available(),
        "cache": str(cache_folder()),
    }
    emit(as_json, facts, "\n".join(f"{k:<14}{v}" for k, v in facts.items()))
