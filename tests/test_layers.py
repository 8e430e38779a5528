"""Data flows one way: which module may import which, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "efface"

LEVELS = [  # a module may import its own level only inside its own package, and everything below
    ["errors", "versions"],
    ["equations", "options", "plugins"],
    ["io"],
    ["concepts"],
    ["lists"],
    ["models"],
    ["patches", "training"],
    ["preservation", "edits", "guards"],
    ["methods", "attacks", "detectors"],
    ["conditions"],
    ["evaluation"],
    ["plans"],
    ["registry", "reporting"],
    ["studies"],
    ["testing"],
    ["verbs"],
    ["demo", "api"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}


def imports(path: Path) -> list[tuple[str, ...]]:
    """Absolute dotted names below ``efface`` that a file imports, relative imports resolved; TYPE_CHECKING blocks too."""
    package = path.relative_to(SRC).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            dotted = (*base, *(node.module.split(".") if node.module else ()))
            found += [dotted] if dotted else [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efface"):
            found.append(tuple((node.module or "").split(".")[1:]))
    return found


def files() -> list[Path]:
    return [p for p in SRC.rglob("*.py") if p != SRC / "__init__.py"]


def test_every_module_has_a_level() -> None:
    top = {p.relative_to(SRC).parts[0].removesuffix(".py") for p in files()}
    assert top == set(LEVEL)


def test_a_long_file_says_why_it_is_long() -> None:
    long = [p for p in files() if len(p.read_text("utf-8").splitlines()) > 400]
    silent = [str(p.relative_to(SRC)) for p in long if "Longer than 400 lines because" not in p.read_text("utf-8")]
    assert not silent, silent


def test_imports_point_downwards() -> None:
    wrong = []
    for path in files():
        me = path.relative_to(SRC).parts[0].removesuffix(".py")
        for dotted in imports(path):
            other = dotted[0]
            if other != me and LEVEL[other] >= LEVEL[me]:
                wrong.append(f"{path.relative_to(SRC)} (level {LEVEL[me]}) imports {other} (level {LEVEL[other]})")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """No circles among modules, imports inside functions included; a package's ``__init__`` only passes names on."""
    modules = {p.relative_to(SRC).with_suffix("").parts: p for p in files() if p.name != "__init__.py"}
    graph = {}
    for name, path in modules.items():
        targets: set[tuple[str, ...]] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = (*name[: len(name) - node.level], *(node.module.split(".") if node.module else ()))
                targets |= {base, *((*base, alias.name) for alias in node.names)} & set(modules)
        graph[name] = targets
    done: set[tuple[str, ...]] = set()

    def walk(name: tuple[str, ...], above: tuple[tuple[str, ...], ...]) -> None:
        assert name not in above, " -> ".join(".".join(n) for n in (*above, name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())
    assert ("patches", "store") in graph[("patches", "patch")]


def test_methods_and_equations_do_not_import_their_siblings() -> None:
    wrong = []
    own = {
        "methods": {"base", "trained"},
        "attacks": {"base", "fine_tuning", "textual"},
        "guards": {"base", "modular"},
        "equations": set(),
    }
    for package, shared in own.items():
        for path in (SRC / package).glob("*.py"):
            if path.name == "__init__.py":
                continue
            for dotted in imports(path):
                if dotted[0] == package and len(dotted) > 1 and dotted[1] not in shared:
                    wrong.append(f"{path.name} imports {'.'.join(dotted)}")
    assert not wrong, "\n".join(wrong)


def test_import_is_light_and_silent() -> None:
    code = "import efface, efface.reporting, sys; print(sorted(set(sys.modules) & {'torch', 'diffusers', 'transformers'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_public_names_exist_and_torchvision_is_absent_or_works() -> None:
    import importlib.util

    import efface
    from efface import verbs

    for name in efface.__all__:
        assert getattr(efface, name) is not None
        home = SRC / name
        assert not home.is_dir(), f"importing the package efface.{name} would hide efface.{name}"
        assert not home.with_suffix(".py").is_file(), f"importing the module efface.{name} would hide efface.{name}"
    assert set(verbs.__all__) <= set(efface.__all__), "a verb is no public name"
    assert callable(efface.report)
    if importlib.util.find_spec("torchvision") is not None:
        import torchvision  # noqa: F401  # a broken torchvision breaks transformers: better to hear of it here


def test_the_module_of_the_last_release_warns_and_works() -> None:
    code = "import efface; print(efface.api.suite_for.__module__, efface.api.erase is efface.erase)"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["efface.verbs.subject", "True"]
    assert "FutureWarning: efface.api is called efface.verbs now." in done.stderr
