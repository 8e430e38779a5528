"""No work is lost or done twice: places are checked first, checkpoints end no run, two runs do not share a place."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from efface import verbs
from efface.cli import main
from efface.cli.main import AFTER_A_STOP, Once
from efface.errors import BadFile, BadOption, Cancelled
from efface.io.files import check_writable, claimed
from efface.methods import ESD
from efface.patches import Patch
from efface.testing import same
from efface.training import Run
from efface.training.loop import finished_steps

ERASE = ("erase", "esd", "--model", "tiny", "--target", "cat", "--set", "steps=4", "--set", "sampling_steps=3")
METHOD = ESD(steps=4, sampling_steps=3, sampler="pool", **{"sampler.trajectories": 1})


def run(*args: object) -> Any:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that loads a model: what is refused is refused before."""

    def load(*args: Any, **more: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("efface.models.load.load_model", load)


@pytest.fixture(scope="module")
def patch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patch") / "p.safetensors"
    verbs.erase("tiny", "uce", targets=["cat"]).save(path)
    return path


def places(folder: Path) -> list[Path]:
    """Where nothing can be written, whoever asks: below a file, and in a folder of the kernel."""
    (folder / "file").write_text("x")
    return [
        folder / "file" / "p.safetensors",
        folder / "file" / "deep" / "er" / "p.safetensors",
        Path("/proc/efface/p.safetensors"),
    ]


def test_places_are_checked_and_left_as_they_were(tmp_path: Path) -> None:
    for place in places(tmp_path):
        with pytest.raises(BadFile, match="cannot write"):
            check_writable(place)
    for good in ("p.safetensors", "new/deeper/p.safetensors", "file"):
        check_writable(tmp_path / good)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.usefixtures("no_model")
def test_every_command_checks_its_place_first(tmp_path: Path, patch_file: Path) -> None:
    bad = places(tmp_path)[1]
    folder = ("--patch", patch_file, "--profile", "smoke", "--out", bad.parent)
    for args in (
        (*ERASE, "--out", bad),
        ("import", patch_file, "--target", "cat", "--out", bad),
        ("export", patch_file, "--to", "kohya", "--out", bad),
        ("export", patch_file, "--to", "folder", "--out", bad.parent),
        ("sample", "--prompt", "cat", "--out", bad.with_suffix(".png")),
        ("report", tmp_path, "--out", bad.with_suffix(".html")),
        ("evaluate", *folder),
        ("damage", *folder),
        ("attack", "direct", "--budget", 20, *folder),
        ("study", "locality", "--out", bad.parent),
    ):
        result = run(*args)
        assert (result.exit_code, "cannot write" in result.stderr) == (1, True), (args, result.output)


@pytest.mark.usefixtures("no_model")
def test_what_no_model_could_change_is_said_before_one_is_loaded(tmp_path: Path, patch_file: Path) -> None:
    out, none = tmp_path / "o.safetensors", tmp_path / "none"
    (tmp_path / "there").mkdir()
    for args, message in (
        (("export", patch_file, "--to", "khoya", "--out", out), "Did you mean 'kohya'"),
        (("export", patch_file, "--to", "folder", "--half", "--out", tmp_path / "f"), "leave half out"),
        (("export", patch_file, "--to", "folder", "--out", tmp_path / "there"), "is there already"),
        (("export", patch_file, "--to", "diff", "--out", tmp_path / "g.txt"), "must end in .safetensors"),
        (("sample", "--prompt", "cat", "--out", tmp_path / "g.txt"), "must end in .png"),
        (("sample", "--prompt", "cat", "--patch", none, "--out", tmp_path / "g.png"), "there is no file"),
        (("report", tmp_path, "--out", tmp_path / "r.txt"), "must end in .html"),
        (("import", none, "--target", "cat", "--out", out), "there is no file"),
        (("evaluate", "--patch", none, "--out", tmp_path / "e"), "there is no file"),
        (("damage", "--patch", none, "--out", tmp_path / "e"), "there is no file"),
        (("damage", "--patch", patch_file, "--space", none, "--out", tmp_path / "e"), "cannot read the concept list"),
        (("study", "locality", "--space", none, "--out", tmp_path / "e"), "cannot read the concept list"),
        (("attack", "direct", "--budget", 20, "--patch", none), "there is no file"),
        ((*ERASE, "--config", none, "--out", out), "cannot read the configuration"),
    ):
        result = run(*args)
        assert result.exit_code in (1, 2), (args, result.output)
        assert message in result.stderr, (args, result.output)
    assert {p.name for p in tmp_path.iterdir()} == {"there"}


# -- checkpoints -------------------------------------------------------------------------------------------------------


def stopped(out: Path, after: int = 2, every: int = 1) -> Path:
    """A run that was stopped; returns its checkpoint."""
    kept = Run(checkpoint=out.with_suffix(".checkpoint.safetensors"), every=every)
    kept.on_step = lambda step, total: os.kill(os.getpid(), signal.SIGINT) if step.index + 1 == after else None
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Cancelled, match="--resume"):
        verbs.erase("tiny", METHOD, targets=["cat"], run=kept)
    assert kept.checkpoint is not None
    return kept.checkpoint


def test_a_checkpoint_is_not_discarded_in_silence(tmp_path: Path) -> None:
    whole = verbs.erase("tiny", METHOD, targets=["cat"])
    path = stopped(tmp_path / "p.safetensors")
    before = path.read_bytes()
    with pytest.raises(BadOption, match=r"--resume.*--force"):
        verbs.erase("tiny", METHOD, targets=["cat"], run=Run(checkpoint=path))
    assert path.read_bytes() == before
    assert finished_steps(Run(checkpoint=path, resume=True)) == 2
    assert finished_steps(Run(checkpoint=path)) == 0
    assert same(verbs.erase("tiny", METHOD, targets=["cat"], run=Run(checkpoint=path, resume=True)).deltas, whole.deltas)
    again = verbs.erase("tiny", METHOD, targets=["cat"], run=Run(checkpoint=path, overwrite=True))
    assert same(again.deltas, whole.deltas)


def test_the_command_line_asks_for_resume_or_force_and_counts_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    args = (*ERASE, "--preset", "tiny", "--checkpoint-every", 1, "--out", out)

    def interrupted(step: Any, total: int) -> None:
        if step.index == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("efface.cli.output.TrainingBar.step", lambda self, step, total: interrupted(step, total))
        first = run(*args)
    assert first.exit_code == 1
    assert "stopped after step 2 of 4. Continue with --resume" in first.stderr
    refused = run(*args)
    assert refused.exit_code == 2
    assert "continue it with --resume" in refused.stderr
    went_on = run(*args, "--resume")
    assert went_on.exit_code == 0, went_on.output
    assert "what is left after step 2 of 4" in went_on.stderr
    evals = [int(re.search(r"about ([\d,]+) UNet", r.stderr)[1].replace(",", "")) for r in (first, went_on)]  # type: ignore[index]
    assert abs(evals[1] - evals[0] / 2) <= 1
    nothing = run(*args, "--resume", "--force")
    assert "no checkpoint" in nothing.stderr
    assert same(
        Patch.load(out).deltas, verbs.erase("tiny", ESD.preset("tiny", steps=4, sampling_steps=3), targets=["cat"]).deltas
    )
    assert "not in the range" in run(*ERASE, "--checkpoint-every", 0, "--out", tmp_path / "q.safetensors").stderr


def test_a_full_disk_at_a_checkpoint_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    whole = verbs.erase("tiny", METHOD, targets=["cat"])
    monkeypatch.setattr("efface.training.loop.save_file", full)
    kept = Run(checkpoint=tmp_path / "c.safetensors", every=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patch = verbs.erase("tiny", METHOD, targets=["cat"], run=kept)
    assert same(patch.deltas, whole.deltas)
    assert len([w for w in told if "No space left" in str(w.message) and "The run goes on" in str(w.message)]) == 4
    kept.on_step = lambda step, total: os.kill(os.getpid(), signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Cancelled, match="Nothing of it was kept"):
            verbs.erase("tiny", METHOD, targets=["cat"], run=kept)


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, patch_file: Path) -> None:
    def stop(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("efface.models.load.load_model", stop)
    folder = ("--patch", patch_file, "--profile", "smoke", "--out", tmp_path / "o")
    for args in (
        ("evaluate", *folder),
        ("damage", *folder),
        ("attack", "direct", "--budget", 9, *folder),
        (*ERASE, "--out", tmp_path / "q.safetensors"),
    ):
        result = run(*args)
        assert result.exit_code == 1
        assert result.stderr.strip().endswith(AFTER_A_STOP[str(args[0])]), result.output
    assert set(AFTER_A_STOP) <= set(main.commands)


# -- two runs ----------------------------------------------------------------------------------------------------------


def _hold(paths: list[Path], ready: Any, done: Any) -> None:
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(claimed(path))
        ready.set()
        done.wait(60)


def test_two_runs_do_not_write_to_one_place(tmp_path: Path, patch_file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    file, folder = places = [tmp_path / "p.safetensors", tmp_path / "folder"]
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(places, ready, done))
    other.start()
    assert ready.wait(60)
    for place in places:
        with pytest.raises(BadFile, match="another run is writing"), claimed(place):
            pass
    result = run(*ERASE, "--out", file)
    assert (result.exit_code, "another run is writing" in result.stderr) == (1, True)
    with pytest.raises(BadFile, match="another run is writing"):
        verbs.attack("mini", "direct", budget=20, target="dog", cases=1, profile="smoke", out=folder)
    other.terminate()  # however it ends, the places are free again
    other.join(60)
    for place in places:
        with claimed(place):
            pass
    assert not list(tmp_path.iterdir())


# -- options that would be passed over ---------------------------------------------------------------------------------


def every_command() -> list[tuple[tuple[str, ...], click.Command]]:
    context, found = click.Context(main), []
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            first = command.list_commands(context)[0]
            inner = command.get_command(click.Context(command), first)
            assert inner is not None
            found.append(((name, first), inner))
        else:
            found.append(((name,), command))
    return found


def test_no_option_is_given_twice_in_silence() -> None:
    tried = 0
    for words, command in every_command():
        assert isinstance(command, Once), words
        for option in command.params:
            if isinstance(option, click.Option) and not option.multiple and not option.is_flag:
                result = run(*words, option.opts[0], "1", option.opts[0], "2")
                assert (result.exit_code, "is given twice" in result.output) == (2, True), (words, option.opts, result.output)
                tried += 1
    assert tried > 60


def test_no_number_is_nan_or_infinite() -> None:
    tried = 0
    for words, command in every_command():
        needed = [a for p in command.params if p.required and isinstance(p, click.Option) for a in (p.opts[0], "1")]
        needed += ["x" for p in command.params if isinstance(p, click.Argument)]
        for option in command.params:
            if isinstance(option, click.Option) and option.type is click.FLOAT:
                for value in ("nan", "inf", "-inf"):
                    result = run(*words, *needed, option.opts[0], value)
                    assert (result.exit_code, "is no number" in result.output) == (2, True), (words, option.opts, result.output)
                    tried += 1
    assert tried >= 3 * 6
    for value in (float("nan"), float("inf")):
        with pytest.raises(BadOption, match="is no number"):
            verbs.sample("tiny", "cat", guidance=value)


def test_several_options_and_flags_may_be_repeated(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    args = ("erase", "uce", "--model", "tiny", "--target", "cat", "--target", "dog", "--json", "--json", "--out", out)
    assert run(*args).exit_code == 0
    assert Patch.load(out).card.request.targets == ("cat", "dog")
