"""The template package of examples/plugin, installed beside efface as a user installs it, without a line of efface changed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
CHECKS = """
from efface import testing as t
from efface.registry import ATTACKS, DETECTORS, GUARDS, METHODS, SUITES, WORLDS, build_method
from efface.verbs.cost import predicted
import efface

t.check_method(METHODS["fade"]())
t.check_attack(ATTACKS["echo"]())
t.check_guard(GUARDS["swap"]())
t.check_detector(DETECTORS["brightness"])
world = t.check_world(WORLDS["pets"]())
t.check_suite(SUITES["two-words"](), world, ["cat"])
print("checked")
"""
PLAN = """
from efface.studies import STUDIES
from efface.studies.lab import erasures

built = STUDIES["locality"](targets=("dog",), names=("dog", "cat"), methods=("esd", "fade"), seeds=(0,), images=2)
print("planned", sorted({e.row for e in erasures(built.wants(None))}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package was installed into; nothing else of this environment is touched."""
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("site")
    command = [
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--no-compile",
        "--target",
        target,
    ]
    copied = tmp_path_factory.mktemp("source") / "plugin"  # a build leaves its litter beside the source
    import shutil

    shutil.copytree(PLUGIN, copied)
    done = subprocess.run([sys.executable, *map(str, command), str(copied)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, *args: object, cwd: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(installed), "PYTHONWARNINGS": "error::DeprecationWarning:efface"}
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def efface(installed: Path, line: str, cwd: Path) -> str:
    return run(installed, "-c", "from efface.cli import main; main()", *shlex.split(line)[1:], cwd=cwd)


def test_it_appears_in_every_list(installed: Path, tmp_path: Path) -> None:
    rows = json.loads(efface(installed, "efface list plugins --json", tmp_path))
    ours = {name for name, text in rows.items() if text.endswith("registered by efface-example")}
    assert ours == {"method fade", "attack echo", "guard swap", "detector brightness", "world pets", "suite two-words"}
    code = "import json; from efface.cli.list_ import KINDS; print(json.dumps({k: KINDS[k]() for k in sys.argv[1:]}))"
    kinds = ("methods", "attacks", "guards", "detectors", "worlds", "suites")
    listed = json.loads(run(installed, "-c", f"import sys; {code}", *kinds))
    for kind, name in zip(kinds, ("fade", "echo", "swap", "brightness", "pets", "two-words"), strict=True):
        assert name in listed[kind], kind
        assert "cannot be used" not in listed[kind][name]
    assert {"mini", "mini-flow"} <= set(listed["worlds"]), "our own are registered the same way"


def test_it_passes_the_contract_checks(installed: Path) -> None:
    assert "checked" in run(installed, "-c", CHECKS)


def test_its_method_stands_in_a_plan_of_a_study(installed: Path) -> None:
    assert "'fade'" in run(installed, "-c", PLAN)


BENCH = """
models = ["tiny"]
targets = ["cat"]
world = "pets"
suite = "two-words"
profile = {steps = 2, guidance = 4.0, cases = {direct = 12, near = 2}}
attack_budget = 16
attack_cases = 2
[entrants.faded]
method = "fade"
[entrants.swapped]
guard = "swap"
[attacks.echo]
"""


@pytest.mark.slow
def test_it_stands_in_a_plan_of_a_bench(installed: Path, tmp_path: Path) -> None:
    """A method, a guard, an attack, a world with its judge and a suite of another package, by their names alone."""
    (tmp_path / "plan.toml").write_text(BENCH)
    found = json.loads(efface(installed, "efface bench plan.toml --out bench --json", tmp_path))
    assert (found["failed"], found["finished"]) == ({}, found["cells"])
    said = "SELECT DISTINCT entrant, attack FROM cells WHERE role = 'attack' ORDER BY entrant"
    rows = json.loads(efface(installed, f'efface query bench "{said}" --format json', tmp_path))
    assert [(r["entrant"], r["attack"]) for r in rows] == [("faded", "echo"), ("none", "echo"), ("swapped", "echo")]


@pytest.mark.slow
def test_the_commands_of_its_page(installed: Path, tmp_path: Path) -> None:
    text = (PLUGIN / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = block.splitlines()
    assert len(lines) == 4
    said = [efface(installed, line, tmp_path) for line in lines]
    assert "echo" in said[2]
    summary = json.loads((tmp_path / "runs" / "faded" / "run.json").read_text())
    assert [n["name"] for n in summary["suite"]["near"] + summary["suite"]["far"]] == ["dog", "bus"]
    files = set(re.findall(r"`(\w+\.py)`", text))
    assert files == {p.name for p in (PLUGIN / "src" / "efface_example").glob("*.py")} - {"__init__.py"}


def test_its_examples_are_those_of_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for name, code in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", text, re.S):
        assert (PLUGIN / "src" / "efface_example" / name).read_text("utf-8") == code, name
