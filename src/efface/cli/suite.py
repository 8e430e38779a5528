"""``efface suite``."""

from __future__ import annotations

from pathlib import Path

from .main import command
from .options import detector_option, force_option, json_option, out_option, target_option
from .output import emit


@command(
    "suite",
    examples="""
    efface suite --target church --out church.toml
    efface suite --target "garbage truck" --detector imagenet --out truck.toml
    """,
)
@target_option("Object whose erasure will be measured; repeat for several.", required=True)
@detector_option
@out_option("Suite to write (.toml).")
@force_option
@json_option
def suite(targets: tuple[str, ...], detector: tuple[str, ...], out: Path, force: bool, as_json: bool) -> None:
    """Propose what an evaluation looks at, for models that bring no world along: related and unrelated concepts that must stay,
    other names, and a description, all from WordNet. The file can be edited; efface evaluate --suite FILE reads it.
    """
    from .. import verbs

    made = verbs.suite(targets, out, detector=detector, force=force)
    emit(as_json, {"out": str(out), **made.json()}, f"{made.told}\nWrote {out}; edit it, then: efface evaluate --suite {out} ...")
