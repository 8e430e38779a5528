"""What is printed is executed: README, CONTRIBUTING and the generated pages."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pipelines import pipeline

from efface.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.name != "performance.md"]  # made by benchmarks/gpu_page.py from one run on a GPU


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.S)


CHEAPER = {"--profile mini-lite": "--profile smoke", "erase ap": "erase ap --set steps=2 --set sampler.trajectories=1"}
DEAR = ("efface damage", "efface attack")


@pytest.mark.usefixtures("smaller_smoke")
def test_readme_command_line_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lines as below with fewer updates and a smaller profile, without those that other tests run (damage, attack)."""
    monkeypatch.chdir(tmp_path)
    for line in (line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()):
        if line.startswith("efface ") and not line.startswith(DEAR):
            for text, other in CHEAPER.items():
                line = line.replace(text, other)
            result = CliRunner().invoke(main, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert {"no-engine.safetensors", "grid.png", "no-engine.html"} <= {p.name for p in tmp_path.iterdir()}


def test_names_of_the_readme_exist() -> None:
    import efface

    code = "\n".join(blocks(ROOT / "README.md", "python"))
    used = set(re.findall(r"efface\.([a-zA-Z_]+)", code))
    assert used >= {"load_model", "erase", "evaluate"}
    assert used <= set(efface.__all__)


@pytest.mark.slow
def test_readme_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``efface ...`` line of the README, in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines() if line.startswith("efface ")]
    assert len(lines) >= 5
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert {"no-engine.safetensors", "grid.png", "no-engine.html"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
def test_readme_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "from-python.html").is_file()


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text("utf-8"), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.usefixtures("smaller_smoke")
def test_a_method_and_an_attack_are_one_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING's examples as printed: the files in a folder of their own, the commands, and the contract checks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", text, re.S))
    assert set(files) == {"fade.py", "echo.py"}
    for name, code in files.items():
        (tmp_path / name).write_text(code, "utf-8")
    lines = [line for block in blocks(ROOT / "CONTRIBUTING.md", "bash") for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["erase", "evaluate", "attack"]
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    for verb, name in (("erase", "fade.py:Fade"), ("attack", "echo.py:Echo")):
        told = CliRunner().invoke(main, [verb, name, "--help"]).output
        assert f"efface {verb} {name} --model mini" in told, "the example of the help runs the file"
    checks = [code for code in blocks(ROOT / "CONTRIBUTING.md", "python") if code not in files.values()]
    assert ["check_method(" in checks[0], "check_attack(" in checks[1]] == [True, True]
    for code in checks:
        said: dict[str, Any] = {}
        exec(compile(code, "CONTRIBUTING.md", "exec"), said)
        assert "patch" not in said or said["patch"].deltas
    for name in ("fade", "echo"):
        sys.modules.pop(name, None)


def test_what_contributing_says_about_generated_pages_is_true() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for pattern in re.findall(r"`(docs/[^`]+)`", text):
        assert list(ROOT.glob(pattern.replace("NAME", "*"))), pattern


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_have_small_tables_and_lead_to_the_glossary(page: Path) -> None:
    text = page.read_text("utf-8")
    for line in text.splitlines():
        if re.fullmatch(r"\|[-|]+\|", line):
            assert line.count("|") - 1 <= 7, f"{page.name} has a table of {line.count('|') - 1} columns; put it into a CSV file"
    whole = page.parent.name != "numbers" and not page.name.endswith(".intro.md")
    assert not whole or page.name == "glossary.md" or "glossary.md" in text, f"{page.name} does not link the glossary"


def test_generated_pages_are_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make as docs_make
    finally:
        sys.path.remove(str(ROOT / "docs"))
    from efface.registry import METHODS

    for name, cls in METHODS.items():
        assert (ROOT / "docs" / "methods" / f"{name}.md").read_text("utf-8") == docs_make.page(cls), (
            f"run python docs/make.py ({name})"
        )
    for name in ("attacks", "guards", "studies", "rankings"):
        made = getattr(docs_make, f"{name}_page")()
        assert (ROOT / "docs" / f"{name}.md").read_text("utf-8") == made, f"run python docs/make.py ({name})"


def test_every_attack_finds_what_the_unmodified_model_draws_and_on_the_gold_model_no_more_than_controls() -> None:
    """The table of controls as it was measured. An attack that is registered and not in it is a failure here: add it to
    benchmarks/plans/controls.toml and make the table again."""
    from efface.registry import ATTACKS

    with (ROOT / "docs" / "tables" / "attacks.intro_controls.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs = {name: [r for r in rows if r["attack"].partition(",")[0].partition("@")[0] == name] for name in ATTACKS}
    chance = max(int(r["k"]) for r in rows if r["entrant"] == "gold" and r["role"] in ("baseline", "control"))
    of_a_patch = {"inverse", "restore"}  # they undo a patch, and neither model has one
    unread = {"misspelling"}  # the miniature's text encoder never saw a misspelt word
    invented = {"latent_inversion"}  # a latent is found for almost any picture
    for name in ATTACKS.keys() - of_a_patch:
        found = {e: [(int(r["k"]), int(r["n"])) for r in runs[name] if r["entrant"] == e] for e in ("none", "gold")}
        assert len(found["none"]) == len(found["gold"]) > 0, name
        assert any(k == n > 0 for k, n in found["none"]) or name in unread, f"{name} fails on the unmodified model"
        most = max(k for k, _ in found["gold"])
        assert most <= chance + 1 or name in invented, f"{name} breaks the gold model"  # one of three cases is chance or teaching


def test_benchmarks_of_the_pages_take_the_options_that_are_printed() -> None:
    """They take hours; --quick runs below."""
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text("utf-8")
        for plan in re.findall(r"benchmarks/plans/[\w.-]+", text):
            assert (ROOT / plan.rstrip(".")).exists(), f"{page.name}: there is no {plan}"
        for script, options in re.findall(r"^ *python benchmarks/(\S+)(.*)$", text, re.M):
            code = (ROOT / "benchmarks" / script).read_text("utf-8")
            for option in re.findall(r"--\w+", options):
                assert f'"{option}"' in code, f"{page.name}: {script} has no {option}"


@pytest.mark.parametrize(
    "name",
    [
        "export",
        pytest.param("guards", marks=pytest.mark.slow),
        pytest.param("attacks", marks=pytest.mark.slow),
        pytest.param("rap", marks=pytest.mark.slow),
    ],
)
def test_commands_of_pages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(ROOT / "docs" / f"{name}.md", "bash") for line in block.splitlines()]
    assert lines
    for line in lines:
        if line.startswith("python benchmarks/"):  # its options: test_benchmarks_of_the_pages_...
            continue
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    if name == "export":
        (block,) = blocks(ROOT / "docs" / "export.md", "python")
        said: dict[str, Any] = {}
        exec(compile(block, "export.md", "exec"), said)
        assert said["image"].size == (48, 48)


@pytest.mark.slow  # tests/test_parallel.py has the fast one
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_start_several_processes(launcher: str, tmp_path: Path) -> None:
    """The lines of docs/large_models.md. Two processes share the work, one of them speaks, and the file is written once."""
    lines = [line for block in blocks(ROOT / "docs" / "large_models.md", "bash") for line in block.splitlines()]
    (line,) = [line for line in lines if line.startswith(launcher)]
    command = [str(Path(sys.executable).parent / launcher), *shlex.split(line)[1:]]
    if launcher == "torchrun":  # in small
        for word, other in {"mini": "tiny", "fire engine": "cat", "steps=4": "steps=1", "batch=4": "batch=2"}.items():
            command[command.index(word)] = other
        command += ["--preset", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("The work is shared by 2 processes.") == 1
    assert (done.stdout + done.stderr).count("Wrote ") == 1
    assert (tmp_path / command[command.index("--out") + 1]).is_file()


def test_the_estimate_and_the_smaller_runs_of_the_page_on_large_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(ROOT / "docs" / "large_models.md", "bash") for line in block.splitlines()]
    (estimate,) = [line for line in lines if "estimate" in line]
    result = CliRunner().invoke(main, shlex.split(estimate)[1:])
    assert result.exit_code == 0, result.output
    assert "GiB  in all" in result.output
    smaller = [line for line in lines if line.startswith("efface erase")]
    assert smaller
    for line in smaller:
        small = line.replace("--model mini", "--model tiny --preset tiny").replace("fire engine", "cat")
        result = CliRunner().invoke(main, shlex.split(small)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def test_guards_on_a_pipeline_as_printed() -> None:
    (block,) = blocks(ROOT / "docs" / "guards.md", "python")
    said: dict[str, Any] = {"pipe": pipeline("StableDiffusionPipeline")[1]}
    exec(compile(block, "guards.md", "exec"), said)
    assert len(said["images"]) == 1


SLOW_SCRIPTS = ("ap_cost.py", "search_films.py", "studies.py", "sampling.py", "operators.py")


@pytest.mark.parametrize("script", ["memory.py", *(pytest.param(s, marks=pytest.mark.slow) for s in SLOW_SCRIPTS)])
def test_benchmarks_quick(script: str, tmp_path: Path) -> None:
    """The promise of every script in benchmarks/ that measures something itself: --quick runs, --json prints one object of
    measured figures. What makes tables of a bench: test_bench_tables.py."""
    import json

    args = ["--out", str(tmp_path)] if script == "search_films.py" else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--json", *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    if script == "ap_cost.py":
        # Counted, with k uniform on 0..49: the mean over 30 iterations has a standard error of 19.
        assert result["ap, student"]["documented"] <= 159
        assert result["ap, pool"]["per_iteration"] <= 8
        for name in ("ap, pool", "ap, fast", "age, pool", "esd, pool"):
            assert result[name]["per_iteration"] == result[name]["documented"]
        assert result["ap, fast"]["times_fewer"] >= 30
    elif script == "studies.py":
        assert "link" in result["sentences"]["locality"]
    elif script == "sampling.py":
        assert result["ours_s"] > 0
        assert result["stock_s"] > 0
        assert result["largest_difference"] < 1e-4, "the pictures are the stock pipeline's"
    elif script == "operators.py":
        assert result.keys() == {"sd15", "sdxl", "sd35-medium", "flux"}
        for row in (row for rows in result.values() for row in rows):
            assert 100 < row["operators"] < row["stock_operators"] + 30
            assert row["ratio_range"][0] <= row["ratio"] <= row["ratio_range"][1]
    elif script == "memory.py":
        # The tiny model's encodings and latents are not small beside its trained tensors; the full size is measured by hand.
        assert result["live_gb"] > result["model_gb"] > result["trained_gb"] > 0
    elif script == "search_films.py":
        discrete, continuous = result
        assert discrete["steps"] == continuous["steps"] == [0, 2]
        # The continuous search starts at the target and has left it; the discrete one never looks at the target.
        assert continuous["moved"][0] == 0 < continuous["moved"][1]
        assert discrete["target"] not in discrete["concepts"]
        assert list((tmp_path / "quick").glob("*.html"))


def test_tables_of_defences_pair_what_belongs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Union over attacks of the plain prompts' cases; differences on the same cell and case, an edit without seeds on its one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import robust_table

    def found(**cells: dict[str, dict[str, bool]]) -> Any:
        attacks = {name.replace("_", "|"): mine for name, mine in cells.items()}
        return robust_table.Found({}, attacks, {name: ["1", "2"] for name in attacks}, [])

    a = found(
        x_0={"direct": {"1": False, "2": False}, "synonym": {"1": True}},
        x_1={"direct": {"1": True, "2": False}, "synonym": {"2": False}},
    )
    b = found(x_0={"direct": {"1": False, "2": False}, "synonym": {"1": False, "2": False}})
    unions = [robust_table.union(one, ("direct", "synonym")) for one in (a, b)]
    assert unions[0] == {"x|0": {"1": True, "2": False}, "x|1": {"1": True, "2": False}}
    blind = found(x_0={"direct": {"1": False}, "synonym": {"2": True}}, x_1={"direct": {"2": False}})
    assert robust_table.union(blind, ("direct", "synonym")) == {"x|0": {"1": False, "2": True}, "x|1": {"2": False}}, (
        "a case without a valid image of the plain prompt is broken by an attack, or undecided"
    )
    rate = robust_table.success_rate(unions[0])
    assert (rate["k"], rate["n"]) == (2, 4)
    minus = robust_table.less(*unions)
    assert (minus["difference"], minus["n"]) == (0.5, 4)
    assert robust_table.less(*(robust_table.of_one(one, "synonym") for one in (a, b)))["n"] == 2
    assert robust_table.success_rate({}) is None


def test_small_tables_and_their_csv_files_say_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table

    up, down, open_ = (
        {"difference": d, "clustered": c, "n": 4} for d, c in ((0.5, (0.1, 0.9)), (-0.5, (-0.9, -0.1)), (0.5, (0, 1)))
    )
    assert table.points(up) == "+50.0 {+10.0, +90.0} **better**"
    assert table.points(up, upwards=False) == "+50.0 {+10.0, +90.0} **worse**"
    assert table.points(down) == "-50.0 {-90.0, -10.0} **worse**"
    assert table.points(down, upwards=False) == "-50.0 {-90.0, -10.0} **better**"
    assert table.points(open_) == "+50.0 {+0.0, +100.0}"
    assert table.point_fields(down) == ["-50.0", "-90.0", "-10.0", "4"]
    assert table.point_fields(None) == [""] * len(table.POINT_FIELDS)
    rate = {"value": 0.75, "k": 3, "n": 4, "low": 0.3, "high": 0.95, "invalid": 1, "clustered": None}
    assert (table.short(rate), table.counted(rate)) == ("75%", "75% (3/4)")
    assert table.rate_fields(rate) == ["75", "3", "4", "1", "30", "95", "", ""]
    assert table.rate_fields({**rate, "clustered": (0.5, 1.0)})[-2:] == ["50", "100"]
    assert (table.short(None), table.rate_fields(None)) == ("not measured", [""] * len(table.RATE_FIELDS))

    page = tmp_path / "results.md"
    page.write_text("above\n<!-- robust -->\nold\n<!-- /robust -->\nbelow\n")
    text = "\n".join(table.sources(page, "robust", {"": "rates", "differences": "differences"}))
    table.into_page(page, "robust", text, {"": table.sheet(["a, b", "c"], [["1", "x, y"]]), "differences": "d\n"})
    assert page.read_text().startswith("above\n<!-- robust -->\nCounts")
    assert page.read_text().endswith("<!-- /robust -->\nbelow\n")
    for link in re.findall(r"\((tables/.*?)\)", page.read_text()):
        assert (tmp_path / link).is_file()
    assert (tmp_path / "tables" / "results_robust.csv").read_text() == '"a, b",c\n1,"x, y"\n'
    assert table.file_name(tmp_path / "robust.md", "robust") == "robust.csv"
    assert table.sources(None, "robust", {"": "rates"}) == []


@pytest.mark.slow
def test_the_way_to_a_decision_on_a_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/safety.md, on the miniature's weights under another name, with a CLIP detector."""
    import shutil

    from efface.models.load import load_model
    from efface.models.mini import WEIGHTS

    monkeypatch.chdir(tmp_path)
    load_model("mini").save_folder(Path("my-model"))
    shutil.copytree(WEIGHTS / "clip", "my-clip")
    (commands,) = blocks(ROOT / "docs" / "safety.md", "bash")
    for line in commands.splitlines():
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        decided = line.startswith("efface certify")
        assert result.exit_code == (3 if decided else 0), f"{line}\n{result.output}\n{result.exception!r}"
    assert "The policy is NOT kept" in result.output


def test_the_policy_of_the_safety_page_is_read(tmp_path: Path) -> None:
    from efface.reporting.policy import read_policy

    (text,) = blocks(ROOT / "docs" / "safety.md", "toml")
    (tmp_path / "p.toml").write_text(text, "utf-8")
    policy = read_policy(str(tmp_path / "p.toml"))
    assert policy.comes_back == {"direct": 0.05, "T4": 0.3}
    assert policy.required == ("unlearndiff", "relearn")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["kinds", "real_models"])
def test_the_commands_of_a_page_run_on_the_miniature(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(ROOT / "docs" / f"{page}.md", "bash") for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.filterwarnings("ignore:the tokenizer of my-model")
@pytest.mark.parametrize("page", ["kinds", pytest.param("real_models", marks=pytest.mark.slow)])
def test_the_commands_for_a_model_of_ones_own_come_as_far_as_its_images(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model, whose images show nothing: it is erased and drawn, the detectors look, and say that there is nothing. A
    small vision-language model of random weights, which sees what it likes, may answer otherwise."""
    import shutil

    from test_published import random_alexnet
    from test_vlm import small_llava

    from efface.evaluation import listed
    from efface.evaluation.profiles import PROFILES
    from efface.models.load import load_model
    from efface.models.mini import WEIGHTS

    monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], cases={"direct": 24, "near": 8, "far": 8}, open_steps=2))
    monkeypatch.chdir(tmp_path)
    load_model("tiny").save_folder(Path("my-model"))
    whole, digest = listed._file("styles-v1")
    brief = {**whole, "forms": ["a {} by NAME"], "subjects": ["cat", "bus"]}  # the tiny model reads 24 tokens
    monkeypatch.setattr(listed, "_file", lambda name: (brief, digest))
    shutil.copytree(WEIGHTS / "clip", "my-clip")
    if page == "real_models":
        small_llava(Path("my-vlm"))
        random_alexnet(Path("alexnet-owt-7be5be79.pth"))
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    efface ") and "my-model" in line]
    assert [line.split()[1] for line in lines] == ["erase", *["evaluate"] * (3 if page == "real_models" else 1)]
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        measured = line.startswith("efface evaluate") and (result.exit_code != 0 or "vlm:" not in line)
        assert result.exit_code == (1 if measured else 0), f"{line}\n{result.output}\n{result.exception!r}"
        assert not measured or "there is nothing to erase that could be measured" in result.output
