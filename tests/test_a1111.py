"""The script for Stable Diffusion WebUI and Forge, against stand-ins with their interfaces and module names.

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


class Forge:
    """Forge's UnetPatcher, as it is published: changes are kept by (file, strengths, online) in a clone; ``refresh`` merges them
    into the network when it is drawn with, keeps the originals, and does nothing where the names are those of before."""

    def __init__(self, model: Any, loader: Any = None) -> None:
        self.model, self.lora_patches = model, dict[Any, dict[str, list[Any]]]()
        self.lora_loader = loader or SimpleNamespace(backup={}, loaded="[]")

    def clone(self) -> Forge:
        made = Forge(self.model, self.lora_loader)
        made.lora_patches = self.lora_patches.copy()
        return made

    def add_patches(
        self, *, filename: str, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0, online_mode: bool = False
    ) -> set[str]:
        known = {f"diffusion_model.{n}" for n, _ in self.model.diffusion_model.named_parameters()}
        taken = {k: [strength_patch, v] for k, v in patches.items() if k in known}
        self.lora_patches[filename, strength_patch, strength_model, online_mode] = taken
        return set(taken)

    def refresh(self) -> dict[str, torch.Tensor]:
        loader, parameters = self.lora_loader, dict(self.model.diffusion_model.named_parameters())
        if str(list(self.lora_patches)) != loader.loaded:
            for key, original in loader.backup.items():
                parameters[key.removeprefix("diffusion_model.")].data = original.data
            loader.backup, loader.loaded = {}, str(list(self.lora_patches))
            for changes in self.lora_patches.values():
                for key, (strength, (kind, (delta,))) in changes.items():
                    assert kind == "diff"
                    p = parameters[key.removeprefix("diffusion_model.")]
                    loader.backup.setdefault(key, torch.nn.Parameter(p.data))
                    p.data = (p.data.float() + strength * delta).to(p.dtype)
        return {n: p.detach().clone() for n, p in parameters.items()}


def forge(script: Any, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(script, "FORGE", True)
    patcher = Forge(webui(model).model)
    return SimpleNamespace(patcher=patcher, forge_objects=SimpleNamespace(unet=patcher))


def test_jobs_of_forge_are_drawn_under_the_patch(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job after job, with one patch, another one, at half the strength, and with none."""
    model = load_model("tiny")
    patches = {"a": UCE().erase(model, CAT), "b": AP.preset("tiny", lr=1e-2, train="full").erase(model, CAT)}
    for name, patch in patches.items():
        patch.save(tmp_path / "efface" / f"{name}.safetensors")
    sd, run = forge(script, model, monkeypatch), script.Script()
    plain = sd.patcher.refresh()
    for chosen, strength in (("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.5), ("", 1.0), ("ab", 1.0)):
        job = SimpleNamespace(extra_generation_params={}, sd_model=sd)
        sd.forge_objects = SimpleNamespace(unet=sd.patcher)  # as Forge begins every sampling
        files = [f"{name}.safetensors" for name in chosen]
        run.before_process(job, files, strength)
        run.process_before_every_sampling(job, files, strength, x=None, noise=None, c=None, uc=None)
        drawn = sd.forge_objects.unet.refresh()
        wanted = {n: w.clone() for n, w in plain.items()}
        for name in chosen:
            for n, d in patches[name].deltas.items():
                wanted[ldm.unet_name(n.removeprefix("unet."))] += strength * d
        for n, w in wanted.items():
            torch.testing.assert_close(drawn[n], w, atol=1e-6, rtol=0)  # the sum of two patches is rounded once
        assert ("Efface" in job.extra_generation_params) == bool(chosen)
        run.postprocess(job, None, files, strength)
    assert all(torch.equal(w, plain[n]) for n, w in sd.patcher.refresh().items())


def test_what_forge_refuses(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "efface" / "p.safetensors"
    UCE().erase(load_model("tiny"), CAT).save(path)
    other, same, packed = (forge(script, m, monkeypatch) for m in (tiny(seed=1), tiny(), tiny()))
    next(packed.patcher.model.diffusion_model.parameters()).data = torch.zeros(2, dtype=torch.uint8)
    monkeypatch.setattr(Forge, "add_patches", lambda self, *, filename, patches, strength_patch: set(list(patches)[1:]))
    for sd, why in ((other, "another model"), (same, "did not take"), (packed, r"stored as torch\.uint8")):
        before = sd.forge_objects.unet
        job = SimpleNamespace(extra_generation_params={}, sd_model=sd)
        with pytest.raises(ValueError, match=why):
            script.Script().process_before_every_sampling(job, [path.name], 1.0)
        assert script.stopped.pop() == 1, "the program would draw on without the erasure"
        assert sd.forge_objects.unet is before
        assert not job.extra_generation_params


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
