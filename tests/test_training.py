"""Interruptions: a stopped run continues bit-exactly, and nothing is lost or half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from chequered import chequered

from efface import verbs
from efface.errors import BadFile, Cancelled, OutOfMemory
from efface.methods import AGE, AP, ESD, KPOP, ConceptAblation, ForgetMeNot, Method
from efface.models.tiny import tiny
from efface.preservation.exhaustive import Exhaustive
from efface.preservation.gumbel import Gumbel
from efface.preservation.pgd import PGD
from efface.testing import same
from efface.training.loop import Run
from efface.training.samplers import Harvest
from efface.verbs.erase import less_memory

CASES: list[Method] = [
    ESD(steps=6, sampling_steps=4, lr=1e-3),
    AP(steps=6, sampling_steps=4, search=Gumbel(nearest=4), lr=1e-3),
    AP(steps=6, sampling_steps=4, search=Gumbel(nearest=4), lr=1e-3, sampler="pool", batch=2),
    AP(steps=6, sampling_steps=4, lr=1e-3, sampler=Harvest(lifetime=2), search=Exhaustive(nearest=4, refresh=2), frames=3),
    AP(steps=6, sampling_steps=4, lr=1e-3, search=PGD(ascents=2), shrink=0.01),
    AGE(steps=6, sampling_steps=4, search=Gumbel(nearest=4, tau=0.1), lr=1e-3, sampler="noised"),
    KPOP(steps=6, sampling_steps=4, lr=1e-3, prompt_lr=1e-2, prompt_size=2),
    ConceptAblation(steps=6, sampling_steps=4, lr=1e-3, images=3, batch=2),
    ForgetMeNot(inversion_steps=2, vectors=2, steps=2, sampling_steps=4, lr=1e-3, images=2),  # 2 x 2 inversion, 2 resteering
]
NAMES = ["esd", "ap", "ap-pool", "ap-exhaustive-harvest", "ap-pgd", "age", "kpop", "ablation", "forget-me-not"]


def stop_after(n: int):  # type: ignore[no-untyped-def]
    def on_step(step, total):  # type: ignore[no-untyped-def]
        if step.index + 1 == n:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


@pytest.mark.parametrize("method", chequered(CASES, ids=NAMES))
@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_ctrl_c_and_resume_give_the_bits_of_an_uninterrupted_run(method: Method, stop: int, tmp_path: Path) -> None:
    whole_run = Run()
    whole = verbs.erase(tiny(), method, targets=["cat", "rose"], run=whole_run)
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(Cancelled, match=f"stopped after step {stop} of 6.*--resume"):
        verbs.erase(tiny(), method, targets=["cat", "rose"], run=Run(checkpoint=checkpoint, on_step=stop_after(stop)))
    resumed_run = Run(checkpoint=checkpoint, resume=True)
    resumed = verbs.erase(tiny(), method, targets=["cat", "rose"], run=resumed_run)
    assert same(resumed.deltas, whole.deltas)
    assert resumed_run.log == whole_run.log
    assert resumed.card.cost == whole.card.cost
    assert resumed.card.log["run"]["seconds"] > resumed_run.before > 0, "the time before the stop counts as the evaluations do"


@pytest.mark.parametrize("method", chequered(CASES, ids=NAMES, first=1))
@pytest.mark.parametrize("death", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_dying_between_checkpoints_costs_the_steps_since_and_no_bits(method: Method, death: int, tmp_path: Path) -> None:
    """Nothing is written on the way out, as after kill -9: the resumed run knows the last regular checkpoint only."""

    def die(step, total):  # type: ignore[no-untyped-def]
        if step.index == death:
            raise OSError("gone")

    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(OSError, match="gone"):
        verbs.erase(tiny(), method, targets=["cat", "rose"], run=Run(checkpoint=checkpoint, every=2, on_step=die))
    resumed_run, whole_run = Run(checkpoint=checkpoint, resume=True), Run()
    resumed = verbs.erase(tiny(), method, targets=["cat", "rose"], run=resumed_run)
    assert same(resumed.deltas, verbs.erase(tiny(), method, targets=["cat", "rose"], run=whole_run).deltas)
    assert resumed_run.log == whole_run.log


def test_kill_9_and_resume(tmp_path: Path) -> None:
    """The process dies without warning in the middle of a step; the last checkpoint continues to the same bits."""
    checkpoint = tmp_path / "c.safetensors"
    script = textwrap.dedent(
        f"""
        import os, pathlib, torch
        torch.set_num_threads({torch.get_num_threads()})  # as here: sums in another order are other bits
        from efface import verbs
        from efface import AP, Gumbel
        from efface.models.tiny import tiny
        from efface.training import Run
        def die(step, total):
            if step.index == 4:
                os.kill(os.getpid(), 9)
        run = Run(checkpoint=pathlib.Path({str(checkpoint)!r}), every=2, on_step=die)
        verbs.erase(tiny(), AP(steps=6, sampling_steps=4, search=Gumbel(nearest=4), lr=1e-3), targets=["cat"], run=run)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    method = AP(steps=6, sampling_steps=4, search=Gumbel(nearest=4), lr=1e-3)
    resumed = verbs.erase(tiny(), method, targets=["cat"], run=Run(checkpoint=checkpoint, resume=True))
    assert same(resumed.deltas, verbs.erase(tiny(), method, targets=["cat"]).deltas)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"], "litter of a half-written checkpoint"


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(Cancelled):
        verbs.erase(tiny(), CASES[0], targets=["cat"], run=Run(checkpoint=checkpoint, on_step=stop_after(2)))
    with pytest.raises(BadFile, match="belongs to another run"):
        verbs.erase(tiny(), CASES[0], targets=["dog"], run=Run(checkpoint=checkpoint, resume=True))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.safetensors"
    checkpoint.write_bytes(b"\x00" * 100)
    with pytest.raises(BadFile, match="damaged"):
        verbs.erase(tiny(), CASES[0], targets=["cat"], run=Run(checkpoint=checkpoint, resume=True))


def test_the_previous_signal_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    verbs.erase(tiny(), CASES[0], targets=["cat"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_without_memory_says_what_to_try_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's error is torch's; what is said and that the process goes on is ours."""
    model, method = tiny(), ESD(steps=2, sampling_steps=4, batch=2)
    predict = type(model).predict

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 4 GiB\nmore lines")

    monkeypatch.setattr(type(model), "predict", full)
    with pytest.raises(
        OutOfMemory, match=r"no memory left on cpu \(tried to allocate 4 GiB\)\. Load .*--dtype bfloat16"
    ) as caught:
        verbs.erase(model, method, targets=["cat"])
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None, "the frames of the failed run are kept, and its tensors with them"
    monkeypatch.setattr(type(model), "predict", predict)
    assert verbs.erase(model, method, targets=["cat"]).deltas
    half = tiny(dtype="bfloat16")
    assert "--checkpointing" in less_memory(half, method)
    half.configure(checkpointing=True)
    assert "batch=1" in less_memory(half, method)
    assert "train=xattn-kv" in less_memory(half, ESD())
    assert "train=" not in less_memory(half, ESD(train="xattn-kv"))


def test_a_run_that_is_interrupted_keeps_its_last_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between two regular checkpoints, which come after every 50 updates."""
    checkpoint = tmp_path / "c.safetensors"
    monkeypatch.setattr("efface.training.processes.anyone", lambda flag, device: True)
    with pytest.raises(Cancelled, match=r"stopped after step 1 of 3\. Continue with --resume"):
        verbs.erase(tiny(), ESD.preset("tiny"), targets=["cat"], run=Run(checkpoint=checkpoint, every=50))
    assert checkpoint.exists()
    with pytest.raises(Cancelled, match="Nothing of it was kept"):
        verbs.erase(tiny(), ESD.preset("tiny"), targets=["cat"], run=Run())
