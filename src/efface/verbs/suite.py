"""Write down what an evaluation will look at, so that it can be edited before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..concepts.request import names_of
from ..errors import BadFile, BadOption
from ..evaluation.proposed import proposed, write_suite
from ..evaluation.suite import Suite
from .subject import known_to


def suite(targets: Sequence[str], out: str | Path, *, detector: str | Sequence[str] | None = None, force: bool = False) -> Suite:
    """Propose near, far, synonyms and a description of objects from WordNet and write them to a TOML file; returns the suite.

    ``detector``: only names that one of these detectors can name. The file is for ``efface evaluate --suite FILE`` and can be
    edited. Raises BadRequest for a target that WordNet's list has not, BadFile for a file that exists, without ``force``.

    >>> import efface
    >>> made = efface.suite("church", "church.toml")
    >>> [n.name for n in made.near][:3], made.synonyms["church"]
    (['mosque', 'stupa', 'temple'], ('church building',))

    """
    path = Path(out)
    if path.suffix != ".toml":
        raise BadOption(f"a suite is a TOML file: {str(path)!r} must end with .toml.")
    if path.exists() and not force:
        raise BadFile(f"{path} exists, and you may have edited it; give another --out, or --force.")
    made = proposed(names_of(targets, "targets"), known_to(detector, None))
    write_suite(made, path)
    return made
