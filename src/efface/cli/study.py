"""``efface study STUDY``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    clip_option,
    detector_option,
    device_option,
    dtype_option,
    encoders_option,
    json_option,
    kind_option,
    model_option,
    out_option,
    profile_option,
    space_option,
    target_option,
)
from .output import Bars, emit, note
from .settings import group


@click.command()
@model_option
@target_option("Concept to erase; repeat. Default: two or four of the miniature.")
@kind_option
@click.option("--method", "methods", multiple=True, help="Method to study; repeat.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Training seed; repeat.")
@click.option("--images", type=int, default=None, help="Images per name.")
@space_option
@profile_option
@clip_option
@detector_option
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder where erasures and scans are kept, which several studies can share; default: OUT/store.",
)
@out_option("Folder for records and figure.", folder=True)
@device_option
@dtype_option
@encoders_option
@json_option
@click.pass_context
def _study(
    ctx: click.Context,
    source: str,
    targets: tuple[str, ...],
    kind: str,
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    images: int | None,
    space: str,
    profile: str,
    clip: str | None,
    detector: tuple[str, ...],
    store: Path | None,
    out: Path,
    device: str,
    dtype: str,
    encoders: str,
    as_json: bool,
) -> None:
    """Body of every ``efface study STUDY``; the study is the name of the command."""
    from .. import verbs
    from ..io.files import check_writable
    from ..models.load import load_model
    from ..preservation.candidates import check_space

    check_writable(out)
    check_space(space)
    model = load_model(source, dtype=dtype, device=device, encoders=encoders)
    with Bars() as bars:
        result = verbs.study(
            model,
            str(ctx.info_name),
            out=out,
            targets=targets,
            kind=kind,
            methods=methods,
            seeds=seeds,
            images=images,
            space=space,
            profile=profile,
            store=store,
            clip=clip,
            detector=detector,
            on_progress=bars.update,
            note=note,
        )
    text = f"{result['sentence']}\nWrote result.json, records.jsonl and figure.svg to {out}."
    emit(as_json, {"out": str(out), **result}, text)


def _table() -> Any:
    from ..studies import STUDIES

    return STUDIES


def _find(name: str) -> Any:
    from ..errors import UnknownName
    from ..studies import STUDIES

    if name not in STUDIES:
        raise UnknownName("study", name, STUDIES)
    return STUDIES[name]


def _describe(cls: Any) -> tuple[str, str]:
    defaults = [
        *(f"--method {m}" for m in cls.default_methods),
        *(f"--seed {s}" for s in cls.default_seeds),
        f"--images {cls.default_images}",
    ]
    return cls.question, f"{cls.question.capitalize()}\n\n{cls.__doc__}\n\nDefaults: {' '.join(defaults)}."


group(
    "study",
    "Answer one question about what erasing a concept does to the others: efface study STUDY --out DIR.",
    """
    efface study locality --model mini --target dog --out runs/locality
    """,
    table=_table,
    find=_find,
    describe=_describe,
    body=_study,
)
