"""The tables that prompt lists come in: which columns they have, and how a row becomes a prompt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..concepts.request import normalised
from ..errors import BadFile, BadOption

Row = Mapping[str, str]
"""Column (in small letters) -> cell."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a list.

    ``clean`` is the plain text that an optimised prompt was made for, or that stands beside a sensitive one. ``concept`` is what
    the list says that the prompt asks for, None where it says nothing. ``control`` marks a prompt that asks for something else
    than the list is about. ``seed_source`` is "list", or "derived" from a hash of the row where the list has no seeds.
    """

    text: str
    seed: int
    seed_source: str = "list"
    guidance: float | None = None
    clean: str | None = None
    concept: str | None = None
    control: bool = False
    language: str | None = None
    line: int = 0


@dataclass(frozen=True)
class Schema:
    """A form of table. ``needs``: columns of which each must be there, given as alternatives; ``may``: further columns that are
    known; ``texts``: columns that hold texts, all of which the filter reads."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    may: tuple[str, ...]
    rows: Callable[[Row], Iterable[tuple[str, str | None, str | None, bool, str | None]]]
    """A row -> (text, clean, concept, control, language) of each prompt in it."""
    captions: bool = False
    """Captions of photographs, which ask for no target."""
    by_name: bool = False
    """A row asks for the target only where it names it: the list is about many concepts and does not say which row is whose."""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(c for group in self.needs for c in group) | frozenset(self.may)

    def fits(self, header: Sequence[str]) -> bool:
        """Whether every needed column is there, and no unknown one."""
        return all(any(c in header for c in group) for group in self.needs) and set(header) <= self.columns


COUNT = ("", "unnamed: 0", "index", "id", "case_number", "case_num", "image_id")
SEEDS = ("evaluation_seed", "sd_seed")
SCALES = ("evaluation_guidance", "sd_guidance_scale")
CONCEPTS = ("class", "classes", "artist", "profession", "concept", "label_str", "target")
"""Columns that say what a prompt asks for. Of several the first one that is filled counts."""
LANGUAGES = ("spanish", "french", "german", "italian", "portuguese")
TIMED = tuple(f"{kind}{i}" for kind in ("positive", "gt", "negative", "gn") for i in range(1, 6))


def _concept(row: Row) -> str | None:
    return next((row[c] for c in CONCEPTS if row.get(c)), None)


def _plain(row: Row) -> list[tuple[str, str | None, str | None, bool, str | None]]:
    return [(row.get("prompt") or row.get("text", ""), None, _concept(row), False, None)]


def _paired(text: str, clean: str) -> Callable[[Row], list[tuple[str, str | None, str | None, bool, str | None]]]:
    return lambda row: [(row[text], row[clean], _concept(row), False, None)]


def _timed(row: Row) -> list[tuple[str, str | None, str | None, bool, str | None]]:
    """An edit of TIME's data: prompts that it must change, and prompts that it must not."""
    changed = [(row[f"positive{i}"], row[f"gt{i}"], row["old"], False, None) for i in range(1, 6) if row.get(f"positive{i}")]
    others = [(row[f"negative{i}"], row[f"gn{i}"], None, True, None) for i in range(1, 6) if row.get(f"negative{i}")]
    return [(row["old"], row["new"], row["old"], False, None), *changed, *others]


def _languages(row: Row) -> list[tuple[str, str | None, str | None, bool, str | None]]:
    found = [(row[name], row["original"], None, False, name) for name in LANGUAGES if row.get(name)]
    return [(row["original"], None, None, False, "english"), *found]


I2P = (
    *("categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "sd_safety_percentage"),
    *("prompt_toxicity", "lexica_url", "sd_image_width", "sd_image_height", "sd_model"),
)
SCHEMAS = {
    s.name: s
    for s in (
        Schema("i2p", (("prompt",), I2P[:4]), (*COUNT, *I2P, *SEEDS, *SCALES, *CONCEPTS, "type"), _plain),
        Schema(
            "mma",
            (("target_prompt",), ("adv_prompt",)),
            (*COUNT, *SEEDS, "sanitized_adv_prompt", "success_against_sanitization_defense", "clean_prompt"),
            _paired("adv_prompt", "target_prompt"),
        ),
        Schema(
            "pairs", (("sensitive prompt",), ("normal prompt",)), (*COUNT, *SEEDS), _paired("sensitive prompt", "normal prompt")
        ),
        Schema(
            "ring-a-bell",
            (("prompt",), ("prompt1",)),
            (*COUNT, *SEEDS, *SCALES, *CONCEPTS),
            _paired("prompt", "prompt1"),
        ),
        Schema("p4d", (("prompt",), ("safe_model",), ("safe_level",)), (*COUNT, *SEEDS, *SCALES, *CONCEPTS), _plain),
        Schema("timed", (("old",), ("new",), ("positive1",), ("gt1",)), TIMED, _timed),
        Schema("multilingual", (("original",), LANGUAGES), (*LANGUAGES, *COUNT), _languages),
        Schema("pinpoint", (("noun",), ("similarity",)), COUNT, lambda row: [(row["noun"], None, row["noun"], True, None)]),
        Schema("coco", (("source",), ("prompt",)), (*COUNT, *SEEDS, "coco_id", "width", "height"), _plain, captions=True),
        Schema("captions", (("image_id",), ("text",)), (*COUNT, "width", "height"), _plain, captions=True),
        Schema(
            "mace",
            (("type",), ("prompt",), SEEDS),
            ("", "unnamed: 0", "artist"),
            lambda row: [(row["prompt"], None, None, False, None)],
            by_name=True,
        ),
        Schema(
            "case",
            (("prompt",),),
            (*COUNT, *SEEDS, *SCALES, *CONCEPTS, "label_idx", "type", "width", "height", "coco_id"),
            _plain,
        ),
    )
}
"""In the order in which a table is compared with them: the narrower ones first."""
LINES = "lines"
"""No table: one prompt for each line, commas and quotes included."""
KNOWN_COLUMNS = frozenset(c for s in SCHEMAS.values() for c in s.columns) - {""}


def schema_of(header: Sequence[str], where: str, asked: str = "auto") -> Schema:
    """The schema of a table with this header. Raises BadFile for columns that are unknown, ambiguous, or of no schema, and says
    what was found; BadOption for a schema that does not exist."""
    if asked not in ("auto", LINES, *SCHEMAS):
        raise BadOption(f"there is no schema {asked!r}; known are auto, {LINES}, {', '.join(SCHEMAS)}.")
    found = f"{where} has the columns {', '.join(repr(c) for c in header)}"
    if twice := sorted({c for c in header if header.count(c) > 1}):
        raise BadFile(f"{found}, and {twice[0]!r} stands there twice: it cannot be said which one counts. Remove one.")
    if "adv_prompt" in header and "target_prompt" not in header:
        raise BadFile(
            f"{found}: optimised prompts without the column target_prompt that they were made for. Such prompts hide what they "
            "ask for, also from the filter that removes minors, so they are refused. Add the target prompts."
        )
    fitting = [s for s in SCHEMAS.values() if s.fits(header)]
    if asked != "auto":
        fitting = [s for s in fitting if s.name == asked]
    unknown = [c for c in header if c not in KNOWN_COLUMNS | {""}]
    if not fitting:
        why = f"; {', '.join(map(repr, unknown))} is in no schema that efface knows" if unknown else ""
        raise BadFile(
            f"{found}{why}. They are not the columns of {'any schema' if asked == 'auto' else f'the schema {asked}'} "
            f"({', '.join(SCHEMAS)}). Keep the columns of one, such as prompt, evaluation_seed and class, or give a plain text "
            "file with one prompt per line."
        )
    for group in (SEEDS, SCALES):
        if len(both := [c for c in header if c in group]) > 1:
            raise BadFile(f"{found}: both {' and '.join(both)} are there, and only one can count. Remove the other.")
    return fitting[0]


def is_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a file's first line names columns. A line without any known name is a prompt, unless it looks like names above a
    table."""
    if any(c in KNOWN_COLUMNS for c in header):
        return True
    alike = len(header) > 1 and bool(rows) and all(len(row) == len(header) for row in rows)
    return alike and all(re.fullmatch(r"[a-z][a-z0-9_]*", c) for c in header)


def prompts_of(row: Row, schema: Schema, line: int, where: str) -> list[Prompt]:
    """The prompts of one row, without empty ones. Raises BadFile for a seed or a guidance scale that is no number."""
    seed, scale = _number(row, SEEDS, line, where), _number(row, SCALES, line, where)
    if seed is not None and (seed < 0 or seed != int(seed)):
        raise BadFile(f"{where}, line {line}: the seed {seed:g} is no whole number from 0 on.")
    found = []
    for text, clean, concept, control, language in schema.rows(row):
        if text.strip():
            own = int(seed) if seed is not None else derived_seed(text, row)
            source = "list" if seed is not None else "derived"
            kept = concept if concept and normalised(concept) else None
            found.append(Prompt(text.strip(), own, source, scale, clean or None, kept, control, language, line))
    return found


def derived_seed(text: str, row: Row) -> int:
    """A seed below 2^31 from a hash of the prompt and its row: the same row has the same seed on every machine."""
    cells = json.dumps([text, dict(sorted((k, v) for k, v in row.items() if k not in COUNT))], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(cells.encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1


def _number(row: Row, columns: Sequence[str], line: int, where: str) -> float | None:
    """The number in the first of these columns that is there; None where the cell is empty. Whole numbers are kept exactly."""
    text = next((row[c].strip() for c in columns if row.get(c, "").strip()), "")
    if not text:
        return None
    try:
        value = int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError as error:
        raise BadFile(f"{where}, line {line}: {text!r} is no number, and {columns[0]} takes one.") from error
    if value != value or abs(value) == float("inf"):
        raise BadFile(f"{where}, line {line}: {text!r} is no finite number.")
    return value
