"""Two processes against one: the same batch, divided."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efface.patches import Patch
from efface.training import processes as parallel

ERASE = ("erase", "--model", "tiny", "--target", "cat", "--target", "rose", "--set", "batch=4", "--set", "lr=1e-3")


def run(out: Path, *args: str, processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if processes == 1:
        command = [sys.executable]
    script = "import torch, sys; torch.set_num_threads(1); from efface.cli import main; main()"
    path = out.with_suffix(".py")
    path.write_text(script)
    method, *rest = args
    line = [*command, str(path), ERASE[0], method, *ERASE[1:], *rest, "--out", str(out)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "args",
    [
        ("ap", "--set", "sampler=pool", "--set", "ascents=2"),
        ("kpop", "--set", "prompt_size=2"),
        ("rap", "--set", "sampler=pool"),
        ("stereo", "--set", "latents=pictures"),
        ("forget-me-not",),
    ],
    ids=["ap-pool", "kpop-student", "rap-pool", "stereo-pictures", "forget-me-not"],
)
def test_two_processes_give_the_patch_of_one(args: tuple[str, ...], tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for out, processes in ((one, 1), (two, 2)):
        done = run(out, *args, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    a, b = Patch.load(one), Patch.load(two)
    assert a.deltas.keys() == b.deltas.keys()
    for name, d in a.deltas.items():
        # The mean of two half-batch means is the batch mean up to float32 summation. Adam divides by the gradient's own size, so
        # an entry whose gradient is rounding noise can differ by up to 2 lr; measured against the tensor's change as a whole.
        assert float((b.deltas[name] - d).norm() / d.norm()) < 1e-2, name
    pick = lambda p: [(row["target"], row["concept"]) for row in p.card.log.get("adversarial", [])]  # noqa: E731
    assert pick(a) == pick(b), "the processes searched differently"
    assert not list(tmp_path.glob("*.checkpoint.safetensors"))


def test_an_uneven_batch_is_refused_and_names_the_remedy(tmp_path: Path) -> None:
    done = run(tmp_path / "p.safetensors", "ap", "--set", "batch=3", processes=2)
    assert done.returncode != 0
    assert "batch" in done.stderr
    assert not (tmp_path / "p.safetensors").exists()


def test_without_a_launcher_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.joined("cpu"):
        assert (parallel.size(), parallel.rank()) == (1, 0)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
