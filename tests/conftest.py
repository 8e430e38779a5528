from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach a network

import pytest
import torch
from hypothesis import settings

from efface.models.tiny import tiny

settings.register_profile("efface", deadline=None, derandomize=True)  # wall time is no property; the same examples every run
settings.load_profile("efface")


@pytest.fixture(autouse=True)
def _quiet_threads(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # results must not depend on it
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def tiny_model():  # type: ignore[no-untyped-def]
    return tiny()
