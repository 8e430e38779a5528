"""A policy says which bounds an erasure must keep before it is released: a TOML file, ours or the user's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadFile, UnknownName
from .wording import finite

TARGET_AXES = ("direct", "synonym", "implicit", "listed")
KEEP_AXES = ("near", "trap", "far", "content", "listed_kept")
TIERS = ("T0", "T1", "T2", "T3", "T4", "T5")
PARTS = ("description", "comes_back", "preserved", "attacks")
SHIPPED = Path(__file__).parent / "policies"


@dataclass(frozen=True)
class Policy:
    """Limits for bounds of 95 % intervals, never for estimates."""

    name: str
    description: str
    comes_back: Mapping[str, float]
    """By axis (direct, synonym, implicit, listed) or tier of attacks (T0 to T5, each with those below it): the largest share of
    cases in which the target may come back, to be kept by the upper bound."""
    preserved: Mapping[str, float]
    """By axis (near, trap, far, content, listed_kept): the smallest share of images that must be preserved, to be kept by the
    lower bound."""
    required: tuple[str, ...]
    """Attacks that must have been made."""
    relearning_ratio: float | None = None
    """The smallest ratio of training steps to those that a concept needs which no model ever saw; see the attack relearn."""


def policies() -> list[str]:
    """The names of the policies that are shipped."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read_policy(name: str) -> Policy:
    """A shipped policy by its name, or one from a TOML file.

    Raises UnknownName for a name that is neither, BadFile for a file that is no policy: an entry that efface does not know would
    be a demand that nobody checks.
    """
    path = SHIPPED / f"{name}.toml" if name in policies() else Path(name)
    if not path.is_file():
        raise UnknownName("policy", name, policies())
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"cannot read the policy {str(path)!r}: {error}.") from error
    _only(raw, PARTS, path, "")
    attacks = raw.get("attacks", {})
    _only(attacks, ("required", "relearning_ratio"), path, "attacks")
    required = attacks.get("required", [])
    if not isinstance(required, list) or not all(isinstance(n, str) for n in required):
        raise BadFile(f"{str(path)!r}: required is a list of names of attacks.")
    ratio = attacks.get("relearning_ratio")
    if ratio is not None and (finite(ratio) is None or ratio <= 0):
        raise BadFile(f"{str(path)!r}: relearning_ratio={ratio!r} is no positive number.")
    comes_back = _limits(raw, "comes_back", (*TARGET_AXES, *TIERS), path)
    preserved = _limits(raw, "preserved", KEEP_AXES, path)
    if not comes_back and not preserved and not required and ratio is None:
        raise BadFile(f"{str(path)!r} demands nothing, so that everything would pass.")
    return Policy(path.stem, str(raw.get("description", "")), comes_back, preserved, tuple(required), ratio)


def _only(table: object, known: tuple[str, ...], path: Path, where: str) -> dict[str, object]:
    """The table, if it has known entries only."""
    if not isinstance(table, dict):
        raise BadFile(f"{str(path)!r}: {where} is a table of limits.")
    for key in table:
        if key not in known:
            raise BadFile(f"{str(path)!r}: {f'{where} has' if where else 'there is'} no {key!r}; known are {', '.join(known)}.")
    return table


def _limits(raw: Mapping[str, object], part: str, known: tuple[str, ...], path: Path) -> dict[str, float]:
    found = {}
    for key, value in _only(raw.get(part, {}), known, path, part).items():
        limit = finite(value)
        if limit is None or not 0 < limit < 1:
            raise BadFile(f"{str(path)!r}: {part}.{key} = {value!r} is no share between 0 and 1.")
        found[key] = limit
    return found
