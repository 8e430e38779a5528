"""Do the tests notice a wrong line? Plant one small fault at a time, run the tests that execute its line, and count survivors.

    python tools/mutants.py reach runs/reach.json
    python tools/mutants.py try runs/reach.json --count 200 --seed 0 --out runs/mutants.json [--only equations/ methods/esd.py]

``reach`` runs the tests once (those that are not marked slow) and writes which of them executes which line of the package, and
how long each takes. ``try`` plants the faults. A mutant is one changed operator, comparison, constant or condition of a function
body, planted in a copy of ``src``; the working tree is never touched. The tests of a mutant are those that execute its line, in
whatever file they stand, those that execute least of the package first, as long as their times sum to less than ``--seconds``.
The mutant is killed by the first that fails, or by running far longer than the tests should. At the end, the tests that killed
are run without a mutant, where all of them must pass. A survivor wants a test, unless the changed line means the same.

Left out by rule is what cannot change what the package computes for a caller who uses it rightly: the texts and conditions inside
of ``raise`` and ``warnings.warn``, annotations, and ``strict=`` of ``zip``.

A process that has imported torch, diffusers and everything else but the package is forked for each mutant, which saves the ten
seconds that these imports take.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import gc
import importlib
import json
import os
import py_compile
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "efface"
AREAS = ("equations/", "methods/", "preservation/", "attacks/", "guards/", "patches/", "evaluation/", "training/")
# hypothesis and other plug-ins of pytest are imported before it starts, in the process that is forked.
QUIET = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
TOGETHER = 10
"""Tests that are run by one process: most mutants die early, and every test file takes time to import."""
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

# -- which test executes which line ------------------------------------------------------------------------------------


class Watch:
    """A plug-in of pytest that tells coverage which test is running, and times the tests."""

    def __init__(self, cov: Any) -> None:
        self.cov, self.seconds, self.failed = cov, dict[str, float](), set[str]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.cov.switch_context(item.nodeid)
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - start
            self.cov.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)


def reach(out: Path, arguments: list[str]) -> None:
    """Write ``{"seconds": {test: s}, "lines": {file: {line: [test, ...]}}}`` of the tests that pass."""
    import coverage

    out.parent.mkdir(parents=True, exist_ok=True)
    cov = coverage.Coverage(data_file=None, source=[str(PACKAGE)])
    watch = Watch(cov)
    sys.path.insert(0, str(ROOT))  # as `python -m pytest` does
    cov.start()
    pytest.main([*QUIET, *arguments], plugins=[watch])
    cov.stop()
    data = cov.get_data()
    lines = {}
    for file in sorted(data.measured_files()):
        found = data.contexts_by_lineno(file)
        tests = {line: sorted({t for t in names if t} - watch.failed) for line, names in found.items()}
        lines[str(Path(file).relative_to(PACKAGE))] = {line: names for line, names in sorted(tests.items()) if names}
    seconds = {t: round(s, 3) for t, s in watch.seconds.items() if t not in watch.failed}
    out.write_text(json.dumps({"seconds": seconds, "lines": lines}), "utf-8")
    print(f"{len(seconds)} tests pass, {len(watch.failed)} do not or are skipped; written to {out}.")


# -- faults ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    statement: int
    was: str
    became: str
    code: str


def silent(node: ast.AST) -> bool:
    """Whether what stands inside changes no result: the making of a message, an annotation, a check of equal lengths."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn":
        return True
    return isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "strict")


def sites(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, str]]:
    """Nodes inside functions that can be changed, with the kind of change."""
    if silent(node):
        return
    if inside:
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp) and type(node.op) in SWAPS:
            yield node, "op"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, "ops"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield node, "constant"
        elif isinstance(node, ast.If | ast.IfExp):
            yield node, "test"
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        body = inside or (isinstance(node, ast.FunctionDef) and name == "body")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from sites(child, body)


def change(node: ast.AST, kind: str) -> None:
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


def mutant(file: str, i: int) -> Mutant:
    """The i-th of a file."""
    text = (PACKAGE / file).read_text("utf-8")
    tree = ast.parse(text)
    node, kind = list(sites(tree))[i]
    line: int = node.lineno  # type: ignore[attr-defined]
    statement = max(s.lineno for s in ast.walk(tree) if isinstance(s, ast.stmt) and s.lineno <= line <= (s.end_lineno or 0))
    before = ast.unparse(node).splitlines()[0]
    change(node, kind)
    after = ast.unparse(node).splitlines()[0]
    return Mutant(file, line, statement, text.splitlines()[line - 1].strip(), f"{before} -> {after}", ast.unparse(tree))


# -- one mutant --------------------------------------------------------------------------------------------------------


def warm() -> None:
    """Import what the package and the tests import from others."""
    names = {("torch", ""), ("pytest", "")}
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names |= {(node.module, a.name) for a in node.names}
            elif isinstance(node, ast.Import):
                names |= {(a.name, "") for a in node.names}
    own = {"efface", *(p.stem for p in ROOT.iterdir()), *(p.stem for p in (ROOT / "tests").glob("*.py"))}
    for module, name in sorted(names):
        if module.split(".")[0] not in own:
            with contextlib.suppress(ImportError):
                getattr(importlib.import_module(module), name, None)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # a fork does not copy what the collector would touch


class Told:
    """A plug-in of pytest that writes the names of failing tests into a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.pipe, f"{report.nodeid}\n".encode())


def failing(tests: list[str], seconds: float, *options: str) -> list[str]:
    """The tests that fail in a fork of this process, or how else it ended; with the option -x of pytest the first of them."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(reading)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = 3
        try:
            code = pytest.main([*QUIET, *options, *tests], plugins=[Told(writing)])
            if code not in (0, 1):
                os.write(writing, b"the tests cannot be imported\n")
        finally:
            os._exit(int(code))
    os.close(writing)
    told, end = "", time.monotonic() + seconds
    while select.select([reading], [], [], max(end - time.monotonic(), 0))[0]:
        more = os.read(reading, 10_000).decode()
        told += more
        if not more:
            break
    else:
        told += "the tests do not end\n"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return list(dict.fromkeys(told.splitlines())) or (["the interpreter crashed"] if status else [])


def limit(tests: list[str], seconds: Mapping[str, float]) -> float:
    """Seconds after which tests do not end any more, as far as one can tell: an endless loop, or an example that shrinks."""
    return 30 + 4 * sum(seconds[t] for t in tests)


class Copy:
    """A copy of ``src`` that is imported in place of the working tree."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "src"
        shutil.copytree(ROOT / "src", self.source, ignore=shutil.ignore_patterns("__pycache__"))
        # Compiled files are chosen by the text they were made from: two mutants of one second and one length are different.
        compileall.compile_dir(self.source, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(self.source), str(ROOT)]
        os.environ |= {"PYTHONPATH": str(self.source), "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        target = self.source / "efface" / mutant.file
        kept = target.read_text("utf-8")
        target.write_text(mutant.code, "utf-8")
        try:
            yield
        finally:
            target.write_text(kept, "utf-8")

    def killer(self, mutant: Mutant, tests: list[str], seconds: Mapping[str, float]) -> str:
        """The test that fails first with the mutant, or how else the run ended; empty where all tests pass."""
        with self.planted(mutant):
            for start in range(0, len(tests), TOGETHER):
                batch = tests[start : start + TOGETHER]
                if names := failing(batch, limit(batch, seconds), "-x"):
                    return names[0]
        return ""


def chosen(known: dict[str, Any], mutant: Mutant, seconds: float) -> list[str]:
    """The tests that execute the line, those that execute least of the package first, until their times sum to ``seconds``."""
    lines, found, total = known["lines"].get(mutant.file, {}), list[str](), 0.0
    # Within a statement of several lines, Python counts only some of them as executed.
    tests = lines.get(str(mutant.line)) or lines.get(str(mutant.statement), [])
    for test in sorted(tests, key=lambda t: (known["executed"][t], known["seconds"][t])):
        total += known["seconds"][test]
        if found and total > seconds:
            break
        found.append(test)
    return found


def attempt(known: dict[str, Any], only: tuple[str, ...], count: int, seed: int, seconds: float, out: Path) -> None:
    files = [f for p in sorted(PACKAGE.rglob("*.py")) if (f := str(p.relative_to(PACKAGE))).startswith(only)]
    places = [(f, i) for f in files for i in range(len(list(sites(ast.parse((PACKAGE / f).read_text("utf-8"))))))]
    known["executed"] = Counter(t for lines in known["lines"].values() for tests in lines.values() for t in tests)
    results: list[dict[str, Any]] = json.loads(out.read_text("utf-8")) if out.exists() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        os.chdir(ROOT)
        warm()
        assert not any(name.partition(".")[0] == "efface" for name in sys.modules)
        assert not (wrong := failing(["tests/test_statistics.py"], 120)), f"without a mutant: {wrong[0]}"
        for file, i in random.Random(seed).sample(places, min(count, len(places)))[len(results) :]:
            planted = mutant(file, i)
            tests, start = chosen(known, planted, seconds), time.perf_counter()
            killer = copy.killer(planted, tests, known["seconds"])
            facts = {k: v for k, v in asdict(planted).items() if k != "code"}
            took = round(time.perf_counter() - start, 1)
            results.append(facts | {"place": i, "tests": len(tests), "killer": killer, "took": took})
            out.write_text(json.dumps(results, indent=1), "utf-8")
            state = f"killed by {killer}" if killer else f"SURVIVED {len(tests)} tests"
            print(f"{len(results)} {file}:{planted.line} {planted.became} | {took} s, {state}", flush=True)
        killers = sorted({r["killer"] for r in results if "::" in r["killer"]})
        unsound = failing(killers, limit(killers, known["seconds"])) if killers else []
    died = sum(bool(r["killer"]) for r in results)
    print(f"{died} of {len(results)} mutants were killed; {len(places)} could be planted.")
    print(f"Tests among the killers that also fail without a mutant, so that they prove nothing: {unsound or 'none'}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("reach", help="run the tests once and write which lines each of them executes")
    first.add_argument("out", type=Path, help="JSON file to write")
    first.add_argument("arguments", nargs="*", help="arguments of pytest, such as test files; all tests without")
    then = commands.add_parser("try", help="plant faults and run the tests that execute them")
    then.add_argument("reach", type=Path, help="file that the command reach wrote")
    then.add_argument("--count", type=int, default=200, help="mutants that are tried")
    then.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    then.add_argument("--seconds", type=float, default=60, help="that the tests of one mutant may take, by the times in the file")
    then.add_argument("--only", nargs="*", default=AREAS, help="beginnings of paths below src/efface")
    then.add_argument(
        "--out",
        type=Path,
        required=True,
        help="JSON file of the results, written after every mutant and continued",
    )
    args = parser.parse_args()
    if args.command == "reach":
        reach(args.out, args.arguments)
    else:
        known = json.loads(args.reach.read_text("utf-8"))
        attempt(known, tuple(args.only), args.count, args.seed, args.seconds, args.out)


if __name__ == "__main__":
    main()
