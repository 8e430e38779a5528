"""The tool that plants faults: what it plants, what it leaves out, and which tests it runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = '''
LIMIT = 3

def f(x: "tuple[1, 2]", most: int = 5) -> int:
    """3 + 4"""
    k: "list[7]" = [8]
    if x < 1 and k:
        raise ValueError(f"{x + 1} of {most}")
    warnings.warn("too few", stacklevel=2)
    return [a * -b for a, b in zip(x, k, strict=True)]
'''


@pytest.fixture
def mutants() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("mutants", Path(__file__).parents[1] / "tools" / "mutants.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants"]


def test_faults_are_planted_where_they_change_a_result(mutants: Any) -> None:
    tree = ast.parse(SOURCE)
    found = sorted((n.lineno, kind, ast.unparse(n)) for n, kind in mutants.sites(tree) if not isinstance(n, ast.If))
    assert found == [
        (6, "constant", "8"),
        (7, "constant", "1"),
        (7, "op", "x < 1 and k"),
        (7, "ops", "x < 1"),
        (10, "op", "-b"),
        (10, "op", "a * -b"),
    ]
    for i in range(len(list(mutants.sites(tree)))):
        changed = ast.parse(SOURCE)
        mutants.change(*list(mutants.sites(changed))[i])
        assert ast.unparse(changed) != ast.unparse(tree)
        compile(ast.unparse(changed), "changed", "exec")


def test_the_most_special_tests_of_the_line_are_run_first(mutants: Any) -> None:
    known = {
        "seconds": {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.1},
        "executed": {"a": 9, "b": 3, "c": 5, "d": 1},
        "lines": {"x.py": {"7": ["a", "b", "c"], "5": ["d"]}},
    }
    at = lambda line, statement: mutants.Mutant("x.py", line, statement, "", "", "")  # noqa: E731
    assert mutants.chosen(known, at(7, 7), 3.5) == ["b", "c"]
    assert mutants.chosen(known, at(7, 7), 0.5) == ["b"]
    assert mutants.chosen(known, at(6, 5), 60) == ["d"]
    assert mutants.chosen(known, at(9, 9), 60) == []


@pytest.mark.slow
def test_a_run_from_nothing_kills_what_the_statistics_are_tested_for(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    tool = [sys.executable, str(root / "tools" / "mutants.py")]
    reach, out = tmp_path / "reach.json", tmp_path / "out.json"
    subprocess.run([*tool, "reach", str(reach), "tests/test_statistics.py"], cwd=root, check=True)
    wanted = ["--only", "equations/statistics.py", "--count", "4", "--out", str(out)]
    for _ in range(2):  # the second time everything is there
        done = subprocess.run([*tool, "try", str(reach), *wanted], cwd=root, check=True, capture_output=True, text=True)
    assert "prove nothing: none" in done.stdout
    killers = [row["killer"] for row in json.loads(out.read_text("utf-8"))]
    assert len(killers) == 4
    assert sum("tests/test_statistics.py::" in killer for killer in killers) >= 2
