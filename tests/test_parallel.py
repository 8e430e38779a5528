"""Two processes against one: the same batch, divided.

Updates are plain gradient descent here, so that patches are compared by the gradients that made them. Adam divides every entry
of a gradient by its own size: an entry that is zero in exact arithmetic and rounding noise on a processor moves by the whole
learning rate, up or down, and no tolerance separates that from a fault.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from efface.cli import main
from efface.models.load import load_model
from efface.patches import Patch
from efface.training import processes as parallel

DESCENT = """
import sys, torch
torch.set_num_threads(1)
torch.optim.Adam = lambda params, lr, maximize=False: torch.optim.SGD(params, lr=1000 * lr, maximize=maximize)
from efface.cli import main
main()
"""
"""The step is 1000 times Adam's learning rate: the tiny model's gradients are about 1e-3."""
ERASE = ("erase", "--model", "tiny", "--target", "cat", "--target", "rose", "--set", "batch=4", "--set", "lr=1e-3")


def arguments(out: Path, method: str, *rest: str) -> list[str]:
    return [ERASE[0], method, *ERASE[1:], *rest, "--out", str(out)]


def in_two(out: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = out.with_suffix(".py")
    path.write_text(DESCENT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(path)]
    return subprocess.run([*launch, *arguments(out, *args)], capture_output=True, text=True, check=False)


def in_one(out: Path, *args: str) -> None:
    """The same descent in this process."""

    def descent(params: Any, lr: float, maximize: bool = False) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=1000 * lr, maximize=maximize)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim, "Adam", descent)
        done = CliRunner().invoke(main, arguments(out, *args))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(("ap", "--set", "sampler=pool", "--set", "search.ascents=2"), id="ap-pool"),
        pytest.param(("kpop", "--set", "prompt_size=2"), id="kpop-student", marks=pytest.mark.slow),
        pytest.param(("rap", "--set", "sampler=pool"), id="rap-pool", marks=pytest.mark.slow),
        pytest.param(("stereo", "--set", "latents=pictures"), id="stereo-pictures", marks=pytest.mark.slow),
        pytest.param(("forget-me-not",), id="forget-me-not", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_patch_of_one(args: tuple[str, ...], tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    in_one(one, *args)
    done = in_two(two, *args)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = Patch.load(one), Patch.load(two)
    assert a.deltas.keys() == b.deltas.keys()
    weights = load_model("tiny").weights(lambda _: True)
    for name, d in a.deltas.items():
        # The mean of two half-batch means is the batch mean up to float32 summation, which the subtractions in the loss magnify:
        # 1.6e-4 of all changes together was measured (stereo), 1e-5 for the others. One row of the four too many, too few or
        # weighted wrongly moves a gradient by about a quarter; 1e-2 lies between. Each addition of an update to a weight rounds
        # it to 24 bits, and so does the patch's difference: below that many roundings a change is not resolved.
        updates = 1 + a.card.cost["backward"]
        floor = updates * 2**-24 * float(weights[name].detach().norm())
        assert float((b.deltas[name] - d).norm()) < 1e-2 * float(d.norm()) + floor, name
    whole = torch.cat([d.flatten() for d in a.deltas.values()])
    off = torch.cat([(b.deltas[n] - d).flatten() for n, d in a.deltas.items()])
    assert float(off.norm() / whole.norm()) < 1e-2, "the floor above must not hide the whole patch"
    pick = lambda p: [(row["target"], row["concept"]) for row in p.card.log.get("adversarial", [])]  # noqa: E731
    assert pick(a) == pick(b), "the processes searched differently"
    assert not list(tmp_path.glob("*.checkpoint.safetensors"))


@pytest.mark.slow
def test_an_uneven_batch_is_refused_and_names_the_remedy(tmp_path: Path) -> None:
    done = in_two(tmp_path / "p.safetensors", "ap", "--set", "batch=3")
    assert done.returncode != 0
    assert "batch" in done.stderr
    assert not (tmp_path / "p.safetensors").exists()


@pytest.mark.parametrize(("others", "told"), [(0.0, False), (1.0, True)])
def test_a_flag_of_another_process_counts(others: float, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda t: t.add_(others))
    assert parallel.anyone(False, torch.device("cpu")) is told
    assert parallel.anyone(True, torch.device("cpu"))


def test_without_a_launcher_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.joined("cpu"):
        assert (parallel.size(), parallel.rank()) == (1, 0)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
