"""``efface evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import command
from .options import (
    FILE,
    clip_option,
    detector_option,
    device_option,
    dtype_option,
    encoders_option,
    far_option,
    guard_option,
    json_option,
    kind_option,
    model_option,
    near_option,
    out_option,
    patch_option,
    profile_option,
    prompts_option,
    sensitive_option,
    target_option,
    world_option,
)
from .output import Bars, command_line, emit, note, rate


@command(
    "evaluate",
    examples="""
    efface evaluate --model mini --patch no-engine.safetensors --profile mini-lite --out runs/no-engine
    efface evaluate --model mini --guard negative --target "fire engine" --profile smoke --out runs/guarded
    """,
)
@model_option
@world_option
@patch_option()
@guard_option
@target_option("Concept to block, only with --guard and without --patch; repeat for several.")
@kind_option
@profile_option
@clip_option
@detector_option
@near_option
@far_option
@click.option(
    "--synonym",
    "synonyms",
    multiple=True,
    metavar="[TARGET=]NAME",
    help="Another name of the target, which must go too; repeat. Models other than the miniature need one for a verdict.",
)
@click.option(
    "--suite", default=None, metavar="NAME", help="Protocol of the evaluation (efface list suites), or path/to/file.py:Name."
)
@click.option(
    "--keep-images",
    is_flag=True,
    help="Keep every image, with a table labels.csv in which people write what they see (efface agreement).",
)
@prompts_option
@click.option("--rows", type=click.IntRange(min=1), default=None, help="At most so many prompts of each list, spread over it.")
@sensitive_option
@click.option("--lpips", type=FILE, default=None, metavar="FILE", help="AlexNet's weights by torchvision, for LPIPS.")
@click.option("--lpips-heads", type=FILE, default=None, metavar="FILE", help="LPIPS's linear weights; default: torchmetrics'.")
@out_option("Folder for rows, pictures and summary.", folder=True)
@device_option
@dtype_option
@encoders_option
@json_option
def evaluate(
    source: str,
    world: str | None,
    patch_path: str | None,
    guard: str | None,
    targets: tuple[str, ...],
    kind: str,
    profile: str,
    clip: str | None,
    detector: tuple[str, ...],
    near: tuple[str, ...],
    far: tuple[str, ...],
    synonyms: tuple[str, ...],
    suite: str | None,
    keep_images: bool,
    prompts: tuple[str, ...],
    rows: int | None,
    sensitive: bool,
    lpips: Path | None,
    lpips_heads: Path | None,
    out: Path,
    device: str,
    dtype: str,
    encoders: str,
    as_json: bool,
) -> None:
    """Measure a patch, a guard or both: the same prompts and seeds before and after.

    Beside it stand the unmodified model, noise of the same size as the patch, and a blocklist of the target's name.
    """
    from .. import verbs
    from ..errors import BadOption
    from ..evaluation.profiles import profile as find_profile
    from ..io.files import check_writable
    from ..models.load import load_model
    from ..registry import build_guard
    from ..verbs.hub import load_patch
    from ..verbs.listed import lists_of
    from ..verbs.subject import with_world

    find_profile(profile)  # an unknown name is said before a model is loaded
    guarded = build_guard(guard) if guard is not None else None
    if patch_path is None and guarded is None:
        raise BadOption("nothing to measure: give --patch FILE, or --guard NAME with --target NAME.")
    if suite is not None and (near or far or synonyms):
        raise BadOption("--suite says what is looked at; leave --near, --far and --synonym out.")
    lists = lists_of(prompts)  # a list that cannot be read is said before a model is loaded
    patch = load_patch(patch_path) if patch_path is not None else None
    check_writable(out)
    model = with_world(load_model(source, dtype=dtype, device=device, encoders=encoders), world)
    with Bars() as bars:
        summary = verbs.evaluate(
            model,
            patch,
            out=out,
            targets=targets,
            kind=kind,
            guard=guarded,
            profile=profile,
            clip=clip,
            detector=detector,
            near=near,
            far=far,
            synonyms=_by_target(synonyms, targets or (patch.card.request.asked if patch is not None else ())),
            suite=suite,
            keep_images=keep_images,
            prompts=lists,
            rows=rows,
            sensitive=sensitive,
            lpips=lpips,
            lpips_heads=lpips_heads,
            on_image=bars.images,
            note=note,
            command=command_line(),
        )
    emit(as_json, {"out": str(out), **summary}, evaluation_table(summary))


def _by_target(synonyms: tuple[str, ...], targets: tuple[str, ...]) -> dict[str, list[str]]:
    """``TARGET=NAME``, or NAME alone where there is one target."""
    from ..errors import BadOption

    found: dict[str, list[str]] = {}
    for text in synonyms:
        target, sign, name = text.rpartition("=")
        if not sign and len(targets) != 1:
            raise BadOption(f"--synonym {text!r} does not say of which target; write TARGET={text}.")
        found.setdefault(target if sign else targets[0], []).append(name)
    return found


def evaluation_table(summary: dict[str, Any]) -> str:
    """Entrants and axes as rows of text."""
    lines = [f"{'entrant':<12}{'axis':<10}{'measure':<16}{'rate':>7}  {'95 % interval':<16}{'k / n':>9}{'invalid':>9}"]
    for entrant, found in summary["entrants"].items():
        for axis, s in found["axes"].items():
            measure = "erased_valid" if s["erased_valid"] else "preserved"
            value, interval, counts = rate(s[measure])
            invalid = s["detection"]["invalid"]
            lines.append(f"{entrant:<12}{axis:<10}{measure:<16}{value:>7}  {interval:<16}{counts:>9}{invalid:>9}")
    return "\n".join(lines)
