"""The script for Stable Diffusion WebUI, against a stand-in with that program's interface and module names.

The names of the stand-in are made by tests/ldm.py and, at the true sizes, by the published layout, not by the code under test.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ldm
import pytest
import torch
from test_dialects import LAYOUTS

from efface.concepts.request import EraseRequest
from efface.methods import AP, UCE, AdvUnlearn
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.patches.dialects import ldm_names

SCRIPT = Path(__file__).parents[1] / "integrations" / "a1111" / "scripts" / "efface_script.py"
CAT = EraseRequest(("cat",))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    stopped: list[int] = []
    gradio, modules = ModuleType("gradio"), ModuleType("modules")
    base = type("Script", (), {"__init__": lambda self: None})
    modules.paths = SimpleNamespace(models_path=str(tmp_path))  # type: ignore[attr-defined]
    modules.scripts = SimpleNamespace(Script=base, AlwaysVisible=object())  # type: ignore[attr-defined]
    modules.shared = SimpleNamespace(sd_model=None, state=SimpleNamespace(interrupt=lambda: stopped.append(1)))  # type: ignore[attr-defined]
    for module in (gradio, modules):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("efface_a1111", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    (tmp_path / "efface").mkdir()
    made.stopped = stopped
    return made


def webui(model: DiffusionModel) -> Any:
    """The model as this program holds it: modules under the original names."""
    network = torch.nn.Module()
    for name, w in model.weights(lambda n: n.startswith("unet.")).items():
        *path, kind = ldm.unet_name(name.removeprefix("unet.")).split(".")
        at = network
        for part in path:
            if part not in at._modules:
                at.add_module(part, torch.nn.Module())
            at = at._modules[part]  # type: ignore[assignment]
        at.register_parameter(kind, torch.nn.Parameter(w.detach().clone(), requires_grad=False))
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=network))


def named(web: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in web.model.diffusion_model.named_parameters()}


@pytest.mark.parametrize("kind", ["closed", "full"])
def test_a_job_runs_under_the_patch_and_leaves_nothing(kind: str, script: Any, tmp_path: Path) -> None:
    model = load_model("tiny")
    method: Any = UCE() if kind == "closed" else AP.preset("tiny", lr=1e-2, train="full")
    patch = method.erase(model, CAT)
    patch.save(tmp_path / "efface" / "p.safetensors")
    web = webui(model)
    before, job, run = named(web), SimpleNamespace(extra_generation_params={}), script.Script()
    script.shared.sd_model = web
    run.before_process(job, ["p.safetensors"], 1.0)
    with patch.applied(model):
        wanted = named(webui(model))
    inside = named(web)
    assert all(torch.equal(inside[n], w) for n, w in wanted.items())
    assert sum(not torch.equal(inside[n], w) for n, w in before.items()) == len(patch.deltas)
    assert "cat erased by" in job.extra_generation_params["Efface"]
    run.postprocess(job, None, ["p.safetensors"], 1.0)
    assert all(torch.equal(named(web)[n], w) for n, w in before.items())
    run.before_process(job, ["p.safetensors"], 0.5)
    run.before_process(job, [], 0.5)  # the job before was stopped
    assert all(torch.equal(named(web)[n], w) for n, w in before.items())


def test_what_is_refused_changes_nothing(script: Any, tmp_path: Path) -> None:
    model, path = load_model("tiny"), tmp_path / "efface" / "p.safetensors"
    job, run = SimpleNamespace(extra_generation_params={}), script.Script()

    def refused(web: Any, why: str) -> None:
        before = named(web)
        script.shared.sd_model = web
        with pytest.raises(ValueError, match=why):
            run.before_process(job, [path.name], 1.0)
        assert script.stopped.pop() == 1, "the program would draw on without the erasure"
        assert all(torch.equal(named(web)[n], w) for n, w in before.items())

    AdvUnlearn.preset("tiny", lr=1e-2).erase(model, CAT).save(path)
    refused(webui(model), "no weight of the UNet")
    UCE().erase(model, CAT).save(path)
    refused(webui(tiny(seed=1)), "and this is another model")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(webui(model), "not as it was written")
    path.write_bytes(whole[:50])
    refused(webui(model), "truncated")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_at_every_size_are_those_of_the_original_code(layout: str, script: Any) -> None:
    """Against efface's own table, which tests/test_dialects.py compares with diffusers' converter at the same sizes."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        small = {"sample_size": 8, "attention_head_dim": 2, "norm_num_groups": 4, "cross_attention_dim": 8}
        unet: Any = UNet2DConditionModel(**small, **LAYOUTS[layout])
    modules = {n for n, m in unet.named_modules() if any(True for _ in m.parameters(recurse=False))}
    wanted = ldm_names(modules)
    assert script.diffusers_names(list(wanted.values())) == wanted
