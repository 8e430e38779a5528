"""Do the tests notice a wrong line? Plant one small fault at a time, run the tests of that module, and count what survives.

    python tools/mutants.py --count 200 --seed 0 --out runs/mutants.json [--only equations/simplex.py ...]

A mutant is one changed operator, comparison, constant or condition of a function body, planted in a copy of ``src``; the working
tree is never touched. It is killed when a test of the module fails or does not end in time. A survivor wants a test, unless the
changed line means the same.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "equations/statistics.py": ["test_statistics", "test_values"],
    "equations/closed_form.py": ["test_closed_form"],
    "equations/exact.py": ["test_closed_form", "test_edits"],
    "equations/": ["test_equations", "test_values"],
    "options.py": ["test_options", "test_spaces"],
    "registry.py": ["test_plugins", "test_spaces", "test_options"],
    "preservation/": ["test_methods", "test_values", "test_rap", "test_spaces"],
    "training/": ["test_training", "test_latents", "test_methods", "test_values"],
    "patches/": ["test_patches", "test_export", "test_foreign", "test_values"],
    "evaluation/": ["test_evaluate", "test_values", "test_studies", "test_attacks"],
    "guards/": ["test_guards", "test_values"],
    "attacks/": ["test_attacks", "test_values"],
    "methods/rap.py": ["test_rap", "test_values"],
    "methods/advunlearn.py": ["test_advunlearn", "test_official"],
    "methods/trce.py": ["test_trce", "test_official"],
    "methods/stereo.py": ["test_stereo"],
    "methods/kpop.py": ["test_prompt_methods"],
    "methods/ablation.py": ["test_prompt_methods"],
    "methods/forget_me_not.py": ["test_prompt_methods"],
    "methods/uce.py": ["test_closed_form_methods", "test_official"],
    "methods/time.py": ["test_closed_form_methods", "test_official"],
    "methods/rece.py": ["test_closed_form_methods", "test_official"],
    "methods/mace.py": ["test_closed_form_methods", "test_official"],
    "methods/realera.py": ["test_closed_form_methods"],
    "methods/": ["test_methods", "test_values", "test_official"],
}
"""The tests of a module; the first entry that its path begins with counts."""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.USub: ast.UAdd,
}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    was: str
    became: str
    code: str


def sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Nodes inside functions that can be changed, with the kind of change. Messages of errors are left alone."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        raised = {id(n) for r in ast.walk(function) if isinstance(r, ast.Raise) for n in ast.walk(r)}
        for node in (n for statement in function.body for n in ast.walk(statement) if id(n) not in raised):
            if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp) and type(node.op) in SWAPS:
                yield node, "op"
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
                yield node, "ops"
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
                yield node, "constant"
            elif isinstance(node, ast.If | ast.IfExp):
                yield node, "test"


def mutate(node: ast.AST, kind: str) -> None:
    """Change the node in place."""
    if kind == "op":
        node.op = SWAPS[type(node.op)]()  # type: ignore[attr-defined]
    elif kind == "ops":
        node.ops = [SWAPS[type(node.ops[0])](), *node.ops[1:]]  # type: ignore[attr-defined]
    elif kind == "constant":
        value = node.value  # type: ignore[attr-defined]
        node.value = (not value) if isinstance(value, bool) else value + 1  # type: ignore[attr-defined]
    else:
        node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]


def mutants_of(path: Path, file: str) -> list[Mutant]:
    text = path.read_text("utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    found = []
    for i in range(len(list(sites(tree)))):
        changed = copy.deepcopy(tree)
        node, kind = list(sites(changed))[i]
        line = node.lineno  # type: ignore[attr-defined]
        before = ast.unparse(node)
        mutate(node, kind)
        found.append(Mutant(file, line, lines[line - 1].strip(), f"{before} -> {ast.unparse(node)}", ast.unparse(changed)))
    return found


def tests_of(file: str) -> list[str] | None:
    return next((tests for prefix, tests in TESTS.items() if file.startswith(prefix)), None)


def killed(mutant: Mutant, source: Path, seconds: float) -> bool:
    """Whether a test of the module fails on it, or none ends in time."""
    target = source / "efface" / mutant.file
    kept = target.read_text("utf-8")
    target.write_text(mutant.code, "utf-8")
    tests = [str(ROOT / "tests" / f"{name}.py") for name in tests_of(mutant.file) or []]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=seconds, check=False)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(kept, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="mutants that are tried")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    parser.add_argument("--seconds", type=float, default=900, help="after which a mutant counts as killed")
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of paths below src/efface")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results, written after every mutant")
    args = parser.parse_args()
    package = ROOT / "src" / "efface"
    files = sorted(str(p.relative_to(package)) for p in package.rglob("*.py"))
    files = [f for f in files if tests_of(f) and (not args.only or f.startswith(tuple(args.only)))]
    everything = [m for f in files for m in mutants_of(package / f, f)]
    chosen = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        for i, mutant in enumerate(chosen):
            dead = killed(mutant, source, args.seconds)
            results.append({k: v for k, v in asdict(mutant).items() if k != "code"} | {"killed": dead})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1), "utf-8")
            state = "killed" if dead else "SURVIVED"
            print(f"{i + 1}/{len(chosen)} {state} {mutant.file}:{mutant.line} {mutant.became}", flush=True)
    died = sum(r["killed"] for r in results)
    print(f"{died} of {len(results)} mutants were killed; {len(everything)} could be planted.")


if __name__ == "__main__":
    main()
