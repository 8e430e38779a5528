"""A method, an attack and a detector in one file each outside the package, and what other packages register."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from efface import plugins, registry
from efface.cli import main
from efface.detectors.base import Detector, Seen
from efface.errors import BadFile, EvaluationError, PluginError, UnknownName
from efface.evaluation.judges import DetectorJudge, MiniJudge
from efface.patches import Patch
from efface.plugins import Plugins
from efface.registry import ATTACKS, METHODS, TABLES, build_guard

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from efface.methods import Method, option
from efface.patches import Patch


@dataclass(frozen=True, kw_only=True)
class Shift(Method):
    """Adds a constant to one matrix."""

    name: ClassVar[str] = "shift"
    summary: ClassVar[str] = "an example"
    paper: ClassVar[str] = "none"
    presets: ClassVar = {"paper": {}, "small": {"by": 0.25}}

    by: float = option(0.5, "how far", "ours", low=0.0)

    def expected_evals(self, model, request):
        return 0.0

    def erase(self, model, request, run=None):
        spent, base = model.evals.snapshot(), model.weights(lambda n: n.endswith("mid_block.attentions.0.proj_in.weight"))
        edited = {name: w + self.by for name, w in base.items()}
        return Patch.between(base, edited, self.card(model, request, spent))
'''
ATTACK = '''
from dataclasses import dataclass
from typing import ClassVar

from efface.attacks import Attack, Attempt, Plan


@dataclass(frozen=True, kw_only=True)
class Shout(Attack):
    """The prompt in capitals."""

    name: ClassVar[str] = "shout"
    summary: ClassVar[str] = "an example"
    paper: ClassVar[str] = "none"
    tier: ClassVar[str] = "T0"

    def plan(self, deployed, goal, budget):
        self.afford(budget, deployed.per_image(goal.guidance))
        return Plan(images=1)

    def run(self, deployed, goal, plan):
        return [Attempt(i, case.prompt.upper(), case.seed, "shout") for i, case in enumerate(goal.cases)]
'''
DETECTOR = '''
import torch

from efface.detectors.base import Detector, Seen


class Redness(Detector):
    """Calls what is red by its first name."""

    name = "redness"
    summary = "an example"

    def __init__(self, names):
        self.names = [*names, "nothing"]
        self.facts = {"name": "redness"}

    def look(self, images):
        mean = images.mean((2, 3))
        p = torch.full((len(images), len(self.names)), 0.1 / (len(self.names) - 1))
        p[:, 0] = 0.9
        return Seen(p, mean)
'''


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_a_method_in_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "shift.py").write_text(METHOD, "utf-8")
    out, where = tmp_path / "p.safetensors", f"{tmp_path / 'shift.py'}:Shift"
    done = run("erase", where, "--model", "tiny", "--target", "cat", "--set", "by=0.125", "--out", out)
    assert done.exit_code == 0, done.output
    (delta,) = Patch.load(out).deltas.values()
    torch.testing.assert_close(delta, torch.full_like(delta, 0.125), rtol=0, atol=1e-6)  # float32 sums around 0.3
    assert Patch.load(out).card.config == {"by": 0.125}
    assert "by = 0.5" in run("erase", where, "--help").output
    wrong = run("erase", where, "--model", "tiny", "--target", "cat", "--set", "bi=1", "--out", tmp_path / "q.safetensors")
    assert "Did you mean 'by'" in wrong.output


def test_an_attack_and_a_detector_in_files_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(ATTACK, "utf-8")
    (tmp_path / "redness.py").write_text(DETECTOR, "utf-8")
    patch = tmp_path / "p.safetensors"
    assert run("erase", "uce", "--model", "tiny", "--target", "cat", "--out", patch).exit_code == 0
    done = run(
        *("attack", f"{tmp_path / 'shout.py'}:Shout", "--model", "tiny", "--patch", patch, "--budget", 40, "--cases", 3),
        *("--profile", "smoke", "--near", "dog", "--far", "bus", "--detector", f"{tmp_path / 'redness.py'}:Redness", "--json"),
    )
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["attacks"]["shout"]["images"] == 3
    assert summary["attacks"]["shout"]["rate"]["n"] <= 3


def test_files_that_hold_no_such_class(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    with pytest.raises(BadFile, match="there is no file"):
        METHODS.find(f"{path}:Shift")
    path.write_text("raise RuntimeError('no')", "utf-8")
    with pytest.raises(BadFile, match=r"cannot be run \(RuntimeError: no\)"):
        METHODS.find(f"{path}:Shift")
    path.write_text(METHOD, "utf-8")
    for wrong in (f"{path}:Nothing", f"{path}:Patch"):
        with pytest.raises(BadFile, match="has no Method of the name"):
            METHODS.find(wrong)
    with pytest.raises(BadFile, match="has no Attack"):
        ATTACKS.find(f"{path}:Shift")
    with pytest.raises(BadFile, match="there is no file"):
        build_guard(f"{tmp_path / 'none.py'}:Mine:strength=max")
    with pytest.raises(UnknownName, match="Did you mean 'esd'"):
        METHODS.find("edd")


class Point:
    """An installed package's entry point."""

    def __init__(self, name: str, value: str, dist: str) -> None:
        self.name, self.value, self.dist = name, value, type("Dist", (), {"name": dist})()


def points_of(monkeypatch: pytest.MonkeyPatch, *points: Point) -> Plugins[Any]:
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: list(points))
    return Plugins("method", "efface.methods", METHODS.base)


def test_other_packages_stand_beside_ours_and_cannot_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    table = points_of(monkeypatch, Point("esd2", "efface.methods.esd:ESD", "other"))
    assert table.points["esd2"] == ("efface.methods.esd:ESD", "other")
    assert table["esd"].name == "esd"
    with pytest.raises(PluginError, match=r"registers efface\.methods\.esd:ESD as 'esd2', but its own name is 'esd'"):
        table["esd2"]
    with pytest.raises(PluginError, match="registered by efface and by other; uninstall one"):
        len(points_of(monkeypatch, Point("esd", "efface.methods.esd:ESD", "other")))
    for value, why in (("no.such.module:X", "cannot be imported"), ("efface.errors:BadFile", "is no Method")):
        with pytest.raises(PluginError, match=why):
            points_of(monkeypatch, Point("x", value, "other"))["x"]


def test_a_broken_package_does_not_break_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", points_of(monkeypatch, Point("broken", "no.such.module:X", "other")))
    done = run("list", "methods", "--json")
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert rows["broken"].startswith("cannot be used: 'no.such.module:X' of other cannot be imported")
    assert "esd" in rows


def test_a_source_checkout_registers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without installed metadata the groups are read from pyproject.toml."""
    installed = {group: plugins.own_points(group) for group in [table.group for table in TABLES]}

    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(plugins.metadata, "distribution", missing)
    for group, points in installed.items():
        assert points
        assert sorted(plugins.own_points(group)) == sorted(points)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.kind)
def test_everything_that_we_register_can_be_loaded(table: Plugins[Any]) -> None:
    for name in table:
        assert table[name].name == name
        assert table[name].summary


class Counting(Detector):
    name = "counting"
    summary = "counts its calls"

    def __init__(self, names: Any = ("cat",)) -> None:
        self.names, self.facts, self.calls, self.bad = [*names, "nothing"], {"name": "counting"}, 0, False

    def look(self, images: Tensor) -> Seen:
        self.calls += 1
        p = torch.tensor([[0.75, 0.25]]).expand(len(images), 2)
        return Seen(p[:, :1] if self.bad else p, images.flatten(1)[:, :4])


def test_a_judge_asks_its_detector_once_about_the_same_images() -> None:
    detector = Counting()
    judge, images = DetectorJudge(detector), torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    judge.calibrate(images)
    found = judge.detect(images, ["cat"] * 60)
    assert detector.calls == 1
    assert found[0][:2] == ("cat", 0.75)
    assert sum(reason is not None for _, _, reason in found) <= 3, "one in a hundred of the cloud lies outside"
    broken = images.clone()
    broken[0, 0, 0, 0], broken[1] = torch.nan, 0.5
    told = judge.detect(broken, ["cat"] * 60)
    assert (told[0], told[1][2]) == ((None, None, "non-finite"), "uniform")
    assert judge.clip_t(images, ["a cat"] * 60) == [None] * 60, "without a scorer nothing is scored"
    with pytest.raises(UnknownName):
        judge.detect(images, ["dog"] * 60)
    detector.bad = True
    with pytest.raises(EvaluationError, match="gave \\(60, 1\\) probabilities"):
        judge.detect(images.clone(), ["cat"] * 60)


def test_the_miniatures_judge_encodes_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, calls = MiniJudge(), []
    encode = judge.scorer.embed_images
    monkeypatch.setattr(judge.scorer, "embed_images", lambda images: calls.append(len(images)) or encode(images))
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    judge.embed_images(images)
    judge.clip_t(images, ["a cat"] * 4)
    assert calls == [4]
