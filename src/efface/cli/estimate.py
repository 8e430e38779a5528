"""``efface estimate METHOD``."""

from __future__ import annotations

from typing import Any

import click

from .erase import _describe as erase_describe
from .erase import _find, _table
from .options import (
    device_option,
    dtype_option,
    encoders_option,
    json_option,
    model_option,
    preset_option,
    set_option,
    storage_option,
)
from .output import emit
from .settings import group


@click.command()
@model_option
@click.option("--target", "targets", multiple=True, help="Concept that would be erased; repeat. Default: one concept.")
@preset_option
@set_option
@device_option
@dtype_option
@encoders_option
@storage_option
@click.option("--checkpointing", is_flag=True, help="Compute activations again instead of storing them: slower, less memory.")
@click.option("--autocast", default=None, help="Run the network in bfloat16 or float16; the weights stay as they were loaded.")
@json_option
@click.pass_context
def _estimate(
    ctx: click.Context,
    source: str,
    targets: tuple[str, ...],
    preset: str | None,
    pairs: tuple[str, ...],
    device: str,
    dtype: str,
    encoders: str,
    storage: str | None,
    checkpointing: bool,
    autocast: str | None,
    as_json: bool,
) -> None:
    """Body of every ``efface estimate METHOD``; the method is the name of the command."""
    import dataclasses

    from .. import verbs
    from ..models.load import load_model
    from ..models.room import GIB
    from ..registry import METHODS, build_method, parse_set, preset_for
    from ..verbs.cost import duration

    name = str(ctx.info_name)
    model = load_model(source, dtype=dtype, device=device, encoders=encoders, storage=storage)
    method = build_method(name, preset=preset or preset_for(METHODS.find(name), model), settings=parse_set(pairs))
    found = verbs.estimate(model, method, targets=targets, checkpointing=checkpointing or None, autocast=autocast)
    lines = [f"{size / GIB:9.3f} GiB  {what}" for what, size in found.parts.items()]
    lines.append(f"{found.total / GIB:9.3f} GiB  in all")
    if found.free is not None:
        verdict = "It fits." if found.fits else f"It does NOT fit. {found.remedy}"
        lines.append(f"{found.free / GIB:9.3f} GiB  are free on {model.device}, the loaded weights counted as free. {verdict}")
    lines += [f"{saved / GIB:9.3f} GiB  less with {given}" for given, saved in found.savings.items()]
    bound = "At most" if found.at_most else "About"
    taken = duration(*found.seconds)
    lines.append(f"{bound} {found.evaluations:,.0f} UNet evaluations: {taken} on {model.device}, by a measured probe.")
    emit(as_json, {**dataclasses.asdict(found), "total": found.total, "fits": found.fits}, "\n".join(lines))


def _describe(cls: Any) -> tuple[str, str]:
    summary, text = erase_describe(cls)
    return summary, text.replace("efface erase ", "efface estimate ")


group(
    "estimate",
    "Say what an erasure will take before it is started: memory by what it is for, evaluations, seconds, and the setting that "
    "makes it fit: efface estimate METHOD --model MODEL.",
    """
    efface estimate ap --model mini
    efface estimate ap --model mini --dtype bfloat16 --checkpointing
    """,
    table=_table,
    find=_find,
    describe=_describe,
    body=_estimate,
)
