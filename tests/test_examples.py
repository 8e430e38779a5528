"""The examples in the docstrings of the public verbs run and print what they show."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import efface

FAST = (
    "apply",
    "load_model",
    "load_patch",
    "load_prompts",
    "stack",
    "verify",
    "erase",
    "estimate",
    "sample",
    "export",
    "import_patch",
)
SLOW = (
    *("agreement", "attack", "bench", "card", "certify", "damage", "distance", "evaluate"),
    *("leaderboard", "query", "report", "study", "suite", "survive"),
)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_the_example_of_a_verb(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(efface, name), name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    result = runner.run(test, out=said.append)
    assert result.attempted >= 2
    assert not result.failed, "".join(said)


def test_every_verb_has_an_example() -> None:
    lower = {n for n in efface.__all__ if n.islower() and not n.startswith("_")}
    # push needs an account and sign a key: tests/test_shipping.py and tests/test_verify.py run them with ones of their own.
    assert lower == {*FAST, *SLOW, "push", "sign"}
