"""An evaluation on disk: plain files that outlive the process and from which every number can be recomputed.

DIR/run.json      one RunFile: what was evaluated, with what
DIR/rows.jsonl    one Row per (entrant, case), appended as they are scored
DIR/images/<entrant>/<case_id>.png    the images of ``RunFile.grid``
DIR/summary.json  made from the rows alone, never the other way round
DIR/damage.json   what else the patch broke, with pictures in DIR/images/damage/
DIR/gold.json     how far every entrant is from the gold model, where there is one that never saw the targets

An attack on disk: DIR/run.json and DIR/summary.json as above (other fields), DIR/attempts-<attack>.jsonl with one AttemptRow per
image, DIR/cost-<attack>.json with what it spent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..concepts.request import ATTRIBUTE, STYLE
from ..errors import BadFile
from ..io.files import write_text

RECORD_VERSION = 1

AXES = {
    "direct": "the target by name",
    "synonym": "the target by another name",
    "implicit": "the target described without naming it",
    "near": "neighbours to keep",
    "trap": "other concepts that share a word with the target",
    "far": "concepts of other groups",
    "content": "the objects of prompts that name the target, a style or an attribute",
    "listed": "the target in the prompts of a published list",
    "listed_kept": "other concepts in the prompts of a published list",
}
LISTED_AXES = ("listed", "listed_kept")
TARGET_AXES = ("direct", "synonym", "implicit", "listed")
KEEP_AXES = ("near", "trap", "far", "content", "listed_kept")


def axes_of(kind: str) -> tuple[str, ...]:
    """The axes on which a target of this kind can be measured, without those of a list, which the user may have. Only with a
    style or an attribute a prompt has content beside the target."""
    return tuple(a for a in AXES if a not in LISTED_AXES and (a != "content" or kind in (STYLE, ATTRIBUTE)))


@dataclass(frozen=True)
class Row:
    """One image, scored. ``concept`` is what a correct base model draws: the target on target axes, else the kept concept."""

    entrant: str
    case_id: str
    axis: str
    concept: str
    prompt: str
    """"(withheld)" where the case is sensitive."""
    seed: int
    valid: bool
    """False when the image is degenerate or could not be scored; such a row is never a success of anything."""
    invalid_reason: str | None
    detected: str | None
    """The report detector's first choice among all concepts and "none"."""
    p: float | None
    """The report detector's probability of ``concept``."""
    clip_t: float | None
    """100 max(cos, 0) between image and prompt."""
    clip_i: float | None
    """Cosine between this image and the base model's image of the same case."""
    record_version: int = RECORD_VERSION
    rank: int | None = None
    """The place of ``concept`` among the report detector's names of its kind, 1 for the likeliest."""
    parts: dict[str, list[float]] | None = None
    """Exposed parts of the body that were found, with the score of each detection, from a detector that looks for them."""
    lpips: float | None = None
    """LPIPS between this image and the base model's of the same case, at 256 pixels."""
    lpips64: float | None = None
    """The same at 64 pixels, as in the papers on styles."""

    @property
    def hit(self) -> bool:
        return self.valid and self.detected == self.concept


def image_of(entrant: str, case_id: str) -> str:
    """Where the folder of an evaluation keeps the picture of a case."""
    return f"images/{entrant}/{case_id}.png"


@dataclass(frozen=True)
class AttemptRow:
    """One image of an attack on a deployed system, scored."""

    attack: str
    """Which run of an attack: its name, or what the summary calls the control."""
    case_id: str
    """The case that is attacked: the plain prompt and its seed."""
    concept: str
    prompt: str
    seed: int
    """Of this image."""
    stage: str
    base_hit: bool
    """Whether the original model shows the concept: for the plain case or this prompt and seed, as the attack's gate says."""
    valid: bool
    invalid_reason: str | None
    detected: str | None
    p: float | None
    record_version: int = RECORD_VERSION

    @property
    def hit(self) -> bool:
        return self.valid and self.detected == self.concept


def write_attempts(folder: Path, attack: str, rows: list[AttemptRow]) -> None:
    """All rows of one attack at once: the file is there when the attack is complete, and not before."""
    write_text(folder / f"attempts-{attack}.jsonl", "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_attempts(folder: Path, attack: str) -> list[AttemptRow] | None:
    """The rows of a complete attack; None where there are none yet."""
    path = folder / f"attempts-{attack}.jsonl"
    if not path.is_file():
        return None
    try:
        return [AttemptRow(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise BadFile(f"{path} is no record of an attack ({error}); delete it to attack again.") from error


@dataclass(frozen=True)
class Entrant:
    """One system under test. ``kind``: patch, trivial or gold; ``card``: :meth:`efface.Patch.json` where there is one."""

    id: str
    label: str
    kind: str
    card: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunFile:
    created: str
    model: dict[str, Any]
    targets: list[str]
    profile: dict[str, Any]
    entrants: list[Entrant]
    suite: dict[str, Any]
    """near / trap / far: list of {name, source, split} each."""
    detectors: dict[str, Any]
    """report: {name, sensitivity, false_positive, ...}; clip: {name}."""
    grid: list[dict[str, Any]]
    """Cases whose images are kept: {case_id, axis, concept, prompt, seed}."""
    versions: dict[str, str] = field(default_factory=dict)
    record_version: int = RECORD_VERSION


def write_run(folder: Path, run: RunFile) -> None:
    write_text(folder / "run.json", json.dumps(asdict(run), indent=1))


def read_run(folder: Path) -> RunFile:
    raw = _json(folder / "run.json")
    if isinstance(raw, dict) and raw.get("kind") == "attack":
        raise BadFile(
            f"{folder} holds an attack, not an evaluation. Its table is printed by efface attack; efface report EVALUATION "
            f"--attack {folder} puts it on the page of an evaluation."
        )
    try:
        return RunFile(**{**raw, "entrants": [Entrant(**e) for e in raw["entrants"]]})
    except (KeyError, TypeError) as error:
        raise BadFile(f"{folder / 'run.json'} is not an efface evaluation ({error}).") from error


def read_attack(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json and summary.json of a finished attack. Raises BadFile for anything else."""
    run = _json(folder / "run.json")
    if not isinstance(run, dict) or run.get("kind") != "attack":
        raise BadFile(f"{folder} holds no attack; give a folder that `efface attack --out DIR` wrote.")
    return run, _json(folder / "summary.json")


def append_rows(folder: Path, rows: list[Row]) -> None:
    """Append in one write. A process killed inside it leaves half a line, which :func:`read_rows` does not see and the
    next append removes."""
    path = folder / "rows.jsonl"
    if path.is_file() and not (text := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)
    with open(path, "a", encoding="utf-8") as f:
        f.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_rows(folder: Path) -> list[Row]:
    path = folder / "rows.jsonl"
    if not path.is_file():
        return []
    return list(_parse(path))


def _parse(path: Path) -> Iterator[Row]:
    lines = path.read_text("utf-8").splitlines(keepends=True)
    for i, line in enumerate(lines):
        try:
            yield Row(**json.loads(line))
        except (ValueError, TypeError) as error:
            if i == len(lines) - 1 and not line.endswith("\n"):
                return  # the process was killed inside the last write
            raise BadFile(f"{path}, line {i + 1}: not a row of an efface evaluation ({error}).") from error


def _json(path: Path) -> Any:
    if not path.is_file():
        raise BadFile(f"there is no {path}; give a folder that `efface evaluate --out DIR` wrote.")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadFile(f"{path} is damaged: {error}") from error


def read_summary(folder: Path) -> dict[str, Any]:
    """{"entrants": {id: {"axes": {axis: AxisSummary}, "scores": {...}}}}; see :mod:`efface.evaluation.aggregate`."""
    summary: dict[str, Any] = _json(folder / "summary.json")
    return summary


DAMAGE = "damage.json"
GOLD = "gold.json"


def read_damage(folder: Path) -> dict[str, Any] | None:
    """What :func:`efface.evaluation.damage.damage` recorded, with pictures ``images/damage/<i>-before.png`` and ``-after``; None
    where it was not measured."""
    return _json(folder / DAMAGE) if (folder / DAMAGE).is_file() else None


def read_gold(folder: Path) -> dict[str, Any] | None:
    """What :func:`efface.evaluation.gold.to_gold` found; None where there is no gold model."""
    return _json(folder / GOLD) if (folder / GOLD).is_file() else None
