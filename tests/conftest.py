from __future__ import annotations

import dataclasses
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach a network

import pytest
import torch
from hypothesis import settings

from efface.evaluation.profiles import PROFILES
from efface.models.tiny import tiny

settings.register_profile("efface", deadline=None, derandomize=True)  # wall time is no property; the same examples every run
settings.load_profile("efface")


@pytest.fixture(autouse=True)
def _quiet_threads(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # results must not depend on it
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the folder of the whole run: what one worker drew of the base model, the other need not draw
    monkeypatch.setenv("EFFACE_CACHE", str(base / "cache"))


@pytest.fixture
def smaller_smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile smoke with a third of its images and half its steps, for tests of what commands do and not of what they
    measure."""
    smoke = PROFILES["smoke"]
    fewer = {axis: count // 3 for axis, count in smoke.cases.items()}
    monkeypatch.setitem(PROFILES, "smoke", dataclasses.replace(smoke, steps=smoke.steps // 2, cases=fewer))


@pytest.fixture
def tiny_model():  # type: ignore[no-untyped-def]
    return tiny()
