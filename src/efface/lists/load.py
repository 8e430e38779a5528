"""Read a prompt list of somebody else: from a file, from a clone of its repository, or from the Hub."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..concepts.minors import language_of, minor
from ..concepts.sensitive import sensitive, sexual
from ..errors import BadFile, BadOption, UnknownName
from ..io.hub import told
from .known import LISTS, ON_THE_HUB, Known
from .readable import unreadable
from .schemas import LINES, SCHEMAS, Prompt, Row, Schema, is_table, prompts_of, schema_of

SOURCES = "file:PATH, repo:CLONE#NAME or hub:OWNER/NAME@REVISION"
POINTER = "version https://git-lfs"
SEXUAL_SHARE = 0.05
"""A list is sensitive when at least this share of its prompts is sexual, whatever it is called."""
NOT_TEXT = ("lexica_url", "sd_model")
"""Columns of cells that no prompt is made of."""


@dataclass(frozen=True)
class PromptList:
    """A list of prompts, filtered, and what was found in its file.

    ``read``: prompts in the file; ``minors``: how many were removed because they, their target prompt or another cell of
    their row speak of a minor, by language; ``unreadable``: how many were removed because they look optimised and have no
    target prompt; ``duplicates``: repetitions of a prompt with its seed, of which the first one is kept; ``derived``: kept
    prompts whose seed the list does not have; ``rows_expected``: how many rows the list is known to have.
    """

    source: str
    schema: str
    sha256: str
    prompts: tuple[Prompt, ...]
    read: int
    minors: dict[str, int]
    unreadable: int
    duplicates: int
    derived: int
    sensitive: bool
    licence: str = ""
    rows_expected: int | tuple[int, int] | None = None
    captions: bool = False
    by_name: bool = False

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def told(self) -> str:
        """What was read and what was left out, in sentences."""
        gone = [
            (sum(self.minors.values()), f"speak of minors ({', '.join(f'{k} {n}' for k, n in sorted(self.minors.items()))})"),
            (self.unreadable, "look optimised and stand without the prompt that they were made for"),
            (self.duplicates, "repeat a prompt and its seed"),
        ]
        parts = [f"{n} were left out because they {why}" for n, why in gone if n]
        notes = [f"{self.derived} have a seed that was derived from their row"] if self.derived else []
        licence = f" Licence: {self.licence}." if self.licence else ""
        said = "; ".join([f"Of {self.read} prompts in {self.source}, {len(self)} are kept", *parts, *notes])
        return f"{said}.{licence}"

    def json(self) -> dict[str, Any]:
        """Everything but the prompts, for records."""
        expected = list(self.rows_expected) if isinstance(self.rows_expected, tuple) else self.rows_expected
        return {
            "source": self.source,
            "schema": self.schema,
            "sha256": self.sha256,
            "read": self.read,
            "kept": len(self),
            "minors": self.minors,
            "unreadable": self.unreadable,
            "duplicates": self.duplicates,
            "derived_seeds": self.derived,
            "sensitive": self.sensitive,
            "licence": self.licence,
            "rows_expected": expected,
        }


def load_prompts(source: str, schema: str = "auto") -> PromptList:
    """Read a published prompt list. efface ships none: the user has the file, and its licence is the user's to keep.

    ``source``: ``file:PATH``; ``repo:CLONE#NAME``, where CLONE is the folder of a cloned repository and NAME one of
    :data:`efface.lists.known.LISTS` (its rows are counted and compared) or a path in it; or ``hub:OWNER/NAME@REVISION``, a data
    set of the Hub with one CSV file, else with ``#FILE`` behind the revision. Access to a gated one is the user's own, by
    huggingface_hub's token, which efface neither asks for nor stores. ``schema``: "auto", a name of
    :data:`efface.lists.schemas.SCHEMAS`, or "lines" for one prompt per line.

    Prompts keep their punctuation, which adversarial prompts live on; they are NFC-normalised. A filter that nothing turns off
    removes every row that speaks of a minor (:func:`efface.concepts.minors.minor`), and prompts that look optimised are removed
    where the list does not have the prompt that they were made for, because they hide what they ask for.

    Raises BadFile for a file that is not what it should be: unknown or ambiguous columns, a pointer of git-lfs, another number of
    rows than the list has, no prompt left; BadOption for a source or schema that cannot be read; UnknownName for a list that is
    not known.

    >>> import efface
    >>> from pathlib import Path
    >>> _ = Path("mine.csv").write_text("prompt,evaluation_seed\\na photo of a church,7\\nchildren in a church,8\\n")
    >>> found = efface.load_prompts("file:mine.csv")
    >>> [p.text for p in found.prompts], found.read, found.minors
    (['a photo of a church'], 2, {'English': 1})

    """
    kind, _, rest = source.partition(":")
    if kind not in ("file", "repo", "hub") or not rest:
        raise BadOption(f"{source!r} is no prompt list: give {SOURCES}.")
    path, known, name = {"file": _of_file, "repo": _of_clone, "hub": _of_hub}[kind](rest)
    if known is not None and schema == "auto":
        schema = known.schema
    data = _bytes(path)
    found = _parsed(_text(data, path), schema, path.name)
    listed = _filtered(*found, path.name)
    risky = (known is not None and known.sensitive) or sensitive([name]) or _sexual(listed.prompts)
    expected = known.rows if known is not None else None
    _count(found[1], expected, source, path.name)
    if not listed.prompts:
        raise BadFile(f"nothing of {source} is left: {listed.told}")
    if 2 * listed.unreadable > listed.read:
        raise BadFile(
            f"{listed.unreadable} of {listed.read} prompts of {source} look optimised, and it has no column with the prompts "
            "that they were made for, such as target_prompt. They hide what they ask for, also from the filter that removes "
            "minors, so the list is refused."
        )
    return replace(
        listed,
        source=source,
        sha256=hashlib.sha256(data).hexdigest(),
        sensitive=risky,
        licence=known.licence if known is not None else "",
        rows_expected=expected,
    )


def _of_file(rest: str) -> tuple[Path, Known | None, str]:
    path = _there(Path(rest).expanduser())
    return path, None, path.stem


def _of_clone(rest: str) -> tuple[Path, Known | None, str]:
    """A file in a clone, by the name of a known list or by its path."""
    folder, _, name = rest.rpartition("#")
    if not folder or not name:
        raise BadOption(f"repo:{rest} names no list: give repo:CLONE#NAME, such as repo:clones/mu#diffusion-mu-attack/tench.")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise BadFile(f"there is no folder {folder!r}; clone the repository first and give its folder.")
    known, path = None, name
    for key, entry in LISTS.items():
        start = key.removesuffix("{}")
        if name == key or (key != start and name.startswith(start) and len(name) > len(start)):
            known, path = entry, entry.path.replace("{}", name[len(start) :])
    if known is None and Path(name).suffix == "":
        raise UnknownName("prompt list", name, LISTS)
    try:
        return _there(root / path, root), known, name
    except BadFile as error:
        where = f" The list {name} belongs to github.com/{known.repository}." if known is not None else ""
        raise BadFile(f"{error}{where}") from error


def _of_hub(rest: str) -> tuple[Path, Known | None, str]:
    """A file of a data set on the Hub, in the cache where it was read before."""
    place, _, file = rest.partition("#")
    repo, _, revision = place.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or not revision:
        raise BadOption(
            f"hub:{rest} names no data set: give hub:OWNER/NAME@REVISION with a commit, so that others read the same."
        )
    from huggingface_hub import HfApi, hf_hub_download

    try:
        if not file:
            names = [
                f for f in HfApi().list_repo_files(repo, repo_type="dataset", revision=revision) if f.endswith((".csv", ".txt"))
            ]
            if len(names) != 1:
                raise BadFile(
                    f"the data set {repo} has {len(names)} CSV or text files ({', '.join(names[:5]) or 'none'}); "
                    f"name one: hub:{place}#FILE."
                )
            file = names[0]
        path = Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except BadFile:
        raise
    except Exception as error:  # huggingface_hub and its HTTP client raise many kinds
        raise BadFile(
            f"hub:{rest} was not read: {told(error)} Where its authors ask for it, accept their terms on its page and log in "
            "with hf auth login."
        ) from error
    return path, ON_THE_HUB.get(repo.lower()), repo


def _there(path: Path, root: Path | None = None) -> Path:
    """The file, also where an unpacker wrote the accents of its name in another way. Raises BadFile where it is not there, and
    for a path that leaves the clone."""
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise BadFile(f"{path} lies outside {root}.")
    if path.is_file():
        return path
    wanted = _plain_name(path.name)
    alike = [p for p in sorted(path.parent.iterdir()) if _plain_name(p.name) == wanted] if path.parent.is_dir() else []
    if len(alike) != 1:
        near = f"; several files are called nearly so: {', '.join(p.name for p in alike)}" if alike else ""
        raise BadFile(f"there is no file {str(path)!r}{near}.")
    return alike[0]


def _plain_name(name: str) -> str:
    """A file name without accents and case, and without what a wrong decoding left in their place."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return plain.casefold()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error}.") from error


def _text(data: bytes, path: Path) -> str:
    """The file as text without byte order mark and carriage returns, in composed letters."""
    if data.startswith(POINTER.encode()):
        raise BadFile(
            f"{path} is no list but a pointer of git-lfs to one: run git lfs pull in the clone, or download the file itself."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from error
    if "\0" in text:
        raise BadFile(f"{path} holds a zero byte and is no list of prompts.")
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def _parsed(text: str, schema: str, where: str) -> tuple[Schema | None, Sequence[tuple[int, Row]]]:
    """The rows of a table with their lines in the file, or of a file without a header one row for each line."""
    if schema not in ("auto", LINES, *SCHEMAS):
        raise BadOption(f"there is no schema {schema!r}; known are auto, {LINES}, {', '.join(SCHEMAS)}.")
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        table = [(reader.line_num, cells) for cells in reader if any(c.strip() for c in cells)] if schema != LINES else []
    except csv.Error as error:
        raise BadFile(f"{where}, line {reader.line_num}: {error}. Give a plain text file, or schema lines.") from error
    header = [c.strip().lower() for c in table[0][1]] if table else []
    if schema == LINES or where.endswith(".txt") or not is_table(header, [cells for _, cells in table[1:]]):
        if schema not in ("auto", LINES):
            raise BadFile(f"{where} has no header, and the schema {schema} needs one; schema {LINES} reads one prompt per line.")
        return None, [(i, {"prompt": line}) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    found, rows = schema_of(header, where, schema), []
    for line, cells in table[1:]:
        if len(cells) != len(header):
            raise BadFile(
                f"{where}, line {line}: {len(cells)} cells under {len(header)} columns; a comma may need quotes around it."
            )
        rows.append((line, dict(zip(header, cells, strict=True))))
    return found, rows


def _filtered(schema: Schema | None, rows: Sequence[tuple[int, Row]], where: str) -> PromptList:
    """The prompts of the rows after every filter, and what the filters removed. A row goes as a whole."""
    kept: list[Prompt] = []
    seen: set[tuple[str, int, float | None]] = set()
    minors, read, hidden, again = Counter[str](), 0, 0, 0
    for line, row in rows:
        found = prompts_of(row, schema or SCHEMAS["case"], line, where)
        read += len(found)
        words = {c: minor(text) for c, text in row.items() if c not in NOT_TEXT and text}
        if word := next((w for w in words.values() if w is not None), None):
            minors[language_of(word)] += len(found)
            continue
        for prompt in found:
            key = (prompt.text, prompt.seed, prompt.guidance)
            if prompt.clean is None and unreadable(prompt.text):
                hidden += 1
            elif key in seen:
                again += 1
            else:
                seen.add(key)
                kept.append(prompt)
    derived = sum(p.seed_source == "derived" for p in kept)
    name = schema.name if schema is not None else LINES
    facts = (dict(minors), hidden, again, derived, False)
    captions, by_name = (schema.captions, schema.by_name) if schema is not None else (False, False)
    return PromptList(where, name, "", tuple(kept), read, *facts, captions=captions, by_name=by_name)


def _sexual(prompts: Sequence[Prompt]) -> bool:
    """Whether enough of the prompts are sexual, or their plain versions, to call the list sensitive."""
    return bool(prompts) and sum(sexual(f"{p.text} {p.clean or ''}") for p in prompts) >= SEXUAL_SHARE * len(prompts)


def _count(rows: Sequence[Any], expected: int | tuple[int, int] | None, source: str, where: str) -> None:
    """Raises BadFile where a known list has another number of rows."""
    low, high = expected if isinstance(expected, tuple) else (expected, expected)
    if low is not None and high is not None and not low <= len(rows) <= high:
        told = f"{low}" if low == high else f"{low} to {high}"
        raise BadFile(
            f"{source} has {told} rows as its authors published it, and {where} has {len(rows)}: it is another version or cut "
            "off. Read it as file:PATH if that is meant."
        )
