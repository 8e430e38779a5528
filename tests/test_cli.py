"""The command line as a user meets it: exit codes, one clear message, nothing half written, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from efface.cli import main
from efface.patches import Patch


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def fails(code: int, *args: object) -> str:
    result = run(*args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


ERASE = ("erase", "esd", "--model", "tiny", "--set", "steps=2", "--set", "sampling_steps=3")


def test_erase_writes_a_patch_and_reports_its_cost(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    result = run(*ERASE, "--target", "cat", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["request"]["targets"] == ["cat"]
    assert facts["cost"] == Patch.load(out).card.cost
    assert "UNet evaluations" in result.stderr, "the cost is announced before the run"
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"], "the checkpoint is removed when the run is complete"


def test_options_come_from_preset_then_file_then_set(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('preset = "tiny"\nlr = 1e-4\neta = 2\nsteps = 9\n')
    out = tmp_path / "p.safetensors"
    result = run(
        "erase", "esd", "--model", "tiny", "--target", "cat", "--config", config, "--set", "steps=1", "--seed", 7, "--out", out
    )
    assert result.exit_code == 0, result.output
    used = Patch.load(out).card.config
    assert (used["sampling_steps"], used["lr"], used["eta"], used["steps"], used["seed"]) == (5, 1e-4, 2.0, 1, 7)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("erase", "edd", "--target", "cat"), "Did you mean 'esd'"),
        ((*ERASE, "--target", "cta"), "Did you mean 'cat'"),
        ((*ERASE, "--target", ""), "is empty"),
        ((*ERASE, "--target", "cat", "--target", "CAT"), "named twice"),
        ((*ERASE, "--target", "cat", "--anchor", " Cat"), "target and anchor"),
        ((*ERASE, "--target", "cat", "--preserve", "cat"), "both a target and to be preserved"),
        ((*ERASE, "--target", "cat", "--preserve", "dgo"), "Did you mean 'dog'"),
        ((*ERASE, "--target", "cat", "--anchor", "dog " * 30), "has 32 tokens and the model reads 24"),
        ((*ERASE, "--target", "cat", "--set", "stps=1"), "Did you mean 'steps'"),
        ((*ERASE, "--target", "cat", "--set", "lr=fast"), "option lr='fast' is not a float"),
        ((*ERASE, "--target", "cat", "--set", "lr=nan"), "option lr='nan' is not a float"),
        ((*ERASE, "--target", "cat", "--set", "batch=0"), "below its smallest value"),
        ((*ERASE, "--target", "cat", "--set", "train=xatn"), "Did you mean 'xattn'"),
        ((*ERASE, "--target", "cat", "--set", "lr"), "not of the form name=value"),
        ((*ERASE, "--target", "cat", "--set", "lr=1", "--set", "lr=2"), "given twice"),
        ((*ERASE, "--target", "cat", "--preset", "papper"), "Did you mean 'paper'"),
        (
            ("erase", "ap", "--model", "tiny", "--target", "cat", "--set", "sampler=pool", "--set", "search.hard=false"),
            "needs search.hard=true",
        ),
        (("erase", "uce", "--model", "tiny", "--target", "cat", "--seed", "1"), "has no seed"),
        (("erase", "esd", "--model", "minni", "--target", "cat"), "Did you mean 'mini'"),
        ((*ERASE, "--target", "cat", "--dtype", "int4"), "unknown dtype"),
        ((*ERASE, "--target", "cat", "--device", "tpu9"), "unknown device"),
    ],
)
def test_usage_errors(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    if "--dtype" in args:
        args = tuple("mini" if a == "tiny" else a for a in args)
    out = tmp_path / "p.safetensors"
    text = fails(2, *args, "--out", out)
    assert message in text
    assert len(text.strip().splitlines()) <= 2, f"one message, not a page:\n{text}"
    assert not list(tmp_path.iterdir())


def test_out_must_be_a_safetensors_file(tmp_path: Path) -> None:
    assert "must end in .safetensors" in fails(2, *ERASE, "--target", "cat", "--out", tmp_path / "p.pt")


def test_an_existing_patch_is_not_replaced_without_force(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    out.write_bytes(b"precious")
    assert "only replaced with --force" in fails(2, *ERASE, "--target", "cat", "--out", out)
    assert out.read_bytes() == b"precious"
    assert run(*ERASE, "--target", "cat", "--out", out, "--force").exit_code == 0
    assert Patch.load(out).deltas


def test_click_usage_errors_exit_with_2() -> None:
    assert "Missing option '--out'" in fails(2, *ERASE, "--target", "cat")
    assert "no target: name at least one" in fails(2, *ERASE, "--out", "x.safetensors")
    assert "No such command" in fails(2, "erse") or "no such command" in fails(2, "erse").lower()


def test_bad_configuration_files(tmp_path: Path) -> None:
    out, config = tmp_path / "p.safetensors", tmp_path / "run.toml"
    for text, message, code in (
        ("lr = [", "cannot read the configuration", 1),
        ("[esd]\nlr = 1", "unknown option of esd", 2),
        ("lr = [1, 2]", "is a list", 2),
        ("learning_rate = 1", "unknown option of esd", 2),
    ):
        config.write_text(text)
        assert message in fails(code, *ERASE, "--target", "cat", "--config", config, "--out", out)
    assert not out.exists()


def test_nan_loss_exits_with_1_and_writes_nothing(tmp_path: Path) -> None:
    # One Adam step at this rate makes the next prediction overflow.
    text = fails(
        1,
        "erase",
        "esd",
        "--model",
        "tiny",
        "--target",
        "cat",
        "--set",
        "lr=1e20",
        "--set",
        "steps=5",
        "--out",
        tmp_path / "p.safetensors",
    )
    assert "Lower the learning rate" in text
    assert not (tmp_path / "p.safetensors").exists()


def test_patch_files_that_cannot_be_used(tmp_path: Path) -> None:
    foreign, patch = tmp_path / "f.safetensors", tmp_path / "p.safetensors"
    import torch

    save_file({"w": torch.ones(1)}, foreign)
    args = ("--model", "tiny-v", "--prompt", "cat", "--n", 1, "--steps", 1, "--out", tmp_path / "g.png")
    assert "not an efface patch" in fails(1, "sample", "--patch", foreign, *args)
    assert "there is no file" in fails(1, "sample", "--patch", tmp_path / "none.safetensors", *args)
    assert run(*ERASE, "--target", "cat", "--out", patch).exit_code == 0
    assert "has 4 tokens" not in fails(
        1, "sample", "--patch", patch, "--model", "mini", "--prompt", "cat", "--out", tmp_path / "g.png"
    )
    assert not (tmp_path / "g.png").exists()


def test_sample_grid_and_bad_prompt(tmp_path: Path) -> None:
    out = tmp_path / "g.png"
    result = run(
        "sample", "--model", "tiny", "--prompt", "cat", "--prompt", "dog", "--n", 3, "--steps", 2, "--out", out, "--json"
    )
    assert json.loads(result.stdout) == {"out": str(out), "images": 6, "blurred": False, "evals": 24}
    from PIL import Image

    with Image.open(out) as picture:
        assert picture.size == (3 * 96, 2 * 96)
    assert "has 42 tokens" in fails(2, "sample", "--model", "tiny", "--prompt", "cat " * 40, "--out", tmp_path / "h.png")
    assert "at least 1" in fails(2, "sample", "--model", "tiny", "--prompt", "cat", "--n", 0, "--out", tmp_path / "h.png")


def test_evaluate_needs_something_to_judge_with(tmp_path: Path) -> None:
    patch = tmp_path / "p.safetensors"
    assert run(*ERASE, "--target", "cat", "--out", patch).exit_code == 0
    args = ("evaluate", "--model", "tiny", "--patch", patch, "--out", tmp_path / "e")
    assert "no detectors of its own" in fails(2, *args)
    assert "give --clip" in fails(2, *args, "--near", "dog", "--far", "bus")
    assert "Did you mean 'mini'" in fails(2, *args, "--profile", "mni")
    assert not (tmp_path / "e").exists()


def test_report_of_something_else(tmp_path: Path) -> None:
    assert "there is no" in fails(1, "report", tmp_path, "--out", tmp_path / "r.html")
    (tmp_path / "run.json").write_text("{")
    assert "damaged" in fails(1, "report", tmp_path, "--out", tmp_path / "r.html")


@pytest.mark.parametrize("kind", ["methods", "models", "formats", "concepts", "metrics"])
def test_lists(kind: str) -> None:
    rows = json.loads(run("list", kind, "--json").stdout)
    assert rows
    text = run("list", kind).stdout
    assert all(name in text for name in rows)


def test_help_is_generated_from_the_dataclass() -> None:
    from efface.options import described
    from efface.registry import METHODS

    for name, cls in METHODS.items():
        text = run("erase", name, "--help").output
        for option in described(cls):
            assert f"{option['name']} = {option['default']!r}" in text
            assert option["source"].split()[0] in text


def test_env() -> None:
    assert {"efface", "torch", "python", "cuda", "cache"} <= set(json.loads(run("env", "--json").stdout))


def test_demo_does_not_write_into_somebody_elses_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    assert "not made by the demo" in fails(1, "demo", "--out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_texts_are_wrapped_paragraphs(name: str) -> None:
    """No line breaks of the source inside: they would show as gaps in the wrapped text."""
    help = main.commands[name].help or ""
    assert not re.search(r"\S {2,}\S", help.partition("\b")[0]), help
    assert not re.search(r"(?m)^ ", help.partition("\b")[0]), help


def test_the_libraries_below_say_nothing(tmp_path: Path) -> None:
    """A process of its own, as a user starts it: a library that is merely installed, such as bitsandbytes, must not talk."""
    command = [sys.executable, "-m", "efface", "sample", "--model", "tiny", "--prompt", "a cat", "--n", "1", "--steps", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "x.png")], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == f"Wrote {tmp_path / 'x.png'} (1 images).\n"
