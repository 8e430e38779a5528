"""What must hold on a GPU: ``pytest -m gpu``, never in the default run, under a minute.

EFFACE_TEST_DEVICE=cpu rehearses every test on the CPU, so that none fails for a reason of its own where minutes count. On a GPU
float32 means float32 here (TF32 is off). Where bits are compared, kernels are deterministic, which needs
CUBLAS_WORKSPACE_CONFIG=:4096:8 (set below).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product on the GPU

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from efface import verbs
from efface.cli import main
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.errors import BadOption, OutOfMemory
from efface.methods import AP, ESD, RAP, AdvUnlearn, Method
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.sd import StableDiffusion
from efface.models.select import selection
from efface.models.tiny import TINY
from efface.patches import Patch
from efface.preservation.gumbel import Gumbel
from efface.registry import METHODS
from efface.testing import check_method, check_resume, same, state
from efface.training.loop import Run
from efface.training.samplers import Pool
from efface.verbs.memory import less_memory

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("EFFACE_TEST_DEVICE", "cuda")
CUDA = DEVICE.startswith("cuda")
REQUEST = EraseRequest(("cat",), "", ("dog",))
REQUEST_OF_MINI = EraseRequest(("dog",))
XATTN = selection("xattn")


@pytest.fixture(autouse=True)
def _exact_device() -> Iterator[None]:
    if CUDA and not torch.cuda.is_available():
        pytest.skip("no GPU here; EFFACE_TEST_DEVICE=cpu rehearses these tests on the CPU")
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.fixture
def same_bits_every_time() -> Iterator[None]:
    """Deterministic kernels; an operation that has none raises. Attention's backward pass needs this, too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_device(name: str = "tiny", dtype: str = "float32") -> StableDiffusion:
    model = load_model(name, dtype=dtype, device=DEVICE)
    assert isinstance(model, StableDiffusion)
    assert model.device.type == torch.device(DEVICE).type
    return model


def gradients(model: DiffusionModel, student: DiffusionModel) -> dict[str, torch.Tensor]:
    """Of the square output at fixed latents, by the student's cross-attention."""
    weights = student.weights(XATTN)
    for p in weights.values():
        p.requires_grad_(True)
    z, t = model.noise(2, torch.Generator().manual_seed(0)), torch.tensor([100, 700], device=model.device)
    found = torch.autograd.grad(student.predict(z, t, model.encode(["cat", "dog"])).square().mean(), list(weights.values()))
    for p in weights.values():
        p.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def off(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative distance of two sets of tensors, as a whole."""
    assert a.keys() == b.keys()
    over = sum(float((a[n].cpu().double() - b[n].cpu().double()).square().sum()) for n in a)
    whole = sum(float(b[n].cpu().double().square().sum()) for n in b)
    return float((over / whole) ** 0.5)


# -- the same results as on the CPU --------------------------------------------------------------------------------


def test_start_noise_is_the_cpus_bit_for_bit() -> None:
    there, here = (m.noise(3, torch.Generator().manual_seed(7)) for m in (on_device(), load_model("tiny", device="cpu")))
    assert torch.equal(there.cpu(), here)
    assert torch.equal(on_device().case_noise([1, 2]).cpu(), load_model("tiny", device="cpu").case_noise([1, 2]))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_the_cpus_patch(name: str) -> None:
    """Closed forms solve on the CPU from encodings of the device: 1e-4. Trained ones take Adam steps, which divide by the
    gradient's own size: an entry whose gradient is rounding noise may differ by 2 lr, so the patch is compared as a whole."""
    cls = METHODS[name]
    method = cls.preset("tiny", **({"lr": 1e-3} if "lr" in cls.__dataclass_fields__ else {}))
    there = method.erase(on_device(), REQUEST)
    here = method.erase(load_model("tiny", device="cpu"), REQUEST)
    assert there.card.cost == here.card.cost
    assert off(dict(there.deltas), dict(here.deltas)) < (1e-2 if here.card.cost["backward"] else 1e-4)


@pytest.mark.parametrize("name", ["ap", "esd", "uce"])
@pytest.mark.usefixtures("same_bits_every_time")
def test_contract_of_a_method(name: str) -> None:
    cls = METHODS[name]
    check_method(cls.preset("tiny"), REQUEST, on_device())


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("tiny", "tiny-v")])
def test_a_family_trains_and_draws_on_the_device(name: str) -> None:
    model = on_device(name)
    train = "joint-text-kv" if name == "tiny-z-image" else "xattn"
    patch = AP.preset("tiny", sampler="pool", train=train, **{"search.update": "joint"}).erase(model, REQUEST)
    assert patch.deltas
    assert patch.card.base["device"].startswith(torch.device(DEVICE).type)
    images = model.sample([Case("free", "", "a dog", 1, 2.0)], 2)
    assert bool(torch.isfinite(images).all())


def test_flux_leaves_out_the_attention_kernels_that_end_its_training() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    on_device("tiny-flux")
    assert torch.backends.cuda.cudnn_sdp_enabled() != CUDA  # on the CPU nothing is switched off


@pytest.mark.usefixtures("same_bits_every_time")
def test_a_resumed_run_reproduces_the_uninterrupted_one() -> None:
    pooled: dict[str, Any] = {"steps": 5, "sampling_steps": 4, "lr": 1e-3}
    methods: list[Method] = [
        RAP(search=Gumbel(nearest=4), sampler="pool", attacks=1, **pooled),
        ESD(**pooled),
        AP(search=Gumbel(nearest=4), sampler="harvest", **pooled),
    ]
    for method in methods:
        check_resume(method, REQUEST, on_device())


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_student_shares_what_it_does_not_train() -> None:
    model = on_device("mini")
    before = torch.cuda.memory_allocated() if CUDA else 0
    student = model.student(XATTN)
    mine, theirs = ({n: p.data_ptr() for n, p in m.weights(lambda _: True).items()} for m in (student, model))
    assert {n for n in mine if mine[n] != theirs[n]} == set(model.weights(XATTN))
    if CUDA:
        trained = sum(p.nbytes for p in student.weights(XATTN).values())
        # The allocator rounds every tensor up to 512 bytes.
        assert trained <= torch.cuda.memory_allocated() - before <= trained + 512 * len(model.weights(XATTN))


def test_checkpointing_gives_the_same_gradients() -> None:
    model = on_device("mini")
    plain = gradients(model, model.student(XATTN))
    model.configure(checkpointing=True)
    assert model.unet.is_gradient_checkpointing
    assert off(gradients(model, model.student(XATTN)), plain) < 1e-5  # the same operations, computed again


@pytest.mark.parametrize("encoders", ["offload", "cpu"])
def test_text_encoders_off_the_device_read_the_same(encoders: str) -> None:
    """On the CPU to rounding; under offload with the device's own kernels, so to the bit."""
    here, away = on_device("mini"), load_model("mini", device=DEVICE, encoders=encoders)
    assert {p.device.type for p in away.text_encoder.parameters()} == {"cpu"}
    a, b = (m.encode(["a dog", "a cat"]).tokens for m in (here, away))
    assert a.device == b.device
    assert float((a - b).abs().max()) <= (0 if encoders == "offload" else 1e-4)
    soft = away.embed(["a dog"])
    rows = soft.embeddings.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(away.encode_soft(dataclasses.replace(soft, embeddings=rows)).tokens.square().mean(), rows)
    assert torch.isfinite(g).all()
    there, moved = (dict(ESD.preset("tiny").erase(m, REQUEST_OF_MINI).deltas) for m in (here, away))
    assert off(moved, there) < 1e-2


def test_out_of_memory_is_reported_and_the_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the failing allocation is a real one, of more than any card has."""
    model = on_device("mini")
    method = ESD(steps=3, sampling_steps=4, sampler=Pool(trajectories=1), batch=2)
    predict, calls = StableDiffusion.predict, []

    def hungry(self: StableDiffusion, *args: Any) -> torch.Tensor:
        calls.append(torch.zeros(2**20, device=self.device))
        if len(calls) > 8:
            calls.clear()
            if CUDA:
                torch.empty(2**50, device=self.device)
            raise torch.OutOfMemoryError("as on a GPU")
        return predict(self, *args)

    assert verbs.erase(model, method, targets=["dog"]).deltas  # what stays for good, such as cuBLAS's workspace, is there now
    gc.collect()
    before = torch.cuda.memory_allocated() if CUDA else 0
    with monkeypatch.context() as patched:
        patched.setattr(StableDiffusion, "predict", hungry)
        with pytest.raises(OutOfMemory, match="--encoders offload" if CUDA else "--dtype bfloat16") as caught:
            verbs.erase(model, method, targets=["dog"])
        if CUDA:
            gc.collect()  # while the error is still at hand
            # Encodings of two prompts may be kept, of 12 KiB each. What the failed call held are tensors of 4 MiB.
            assert torch.cuda.memory_allocated() <= before + 2**16, caught.value
    assert verbs.erase(model, method, targets=["dog"]).deltas
    model.place("offload")
    model.configure(checkpointing=True)
    assert "--dtype" in less_memory(model, method)
    half = on_device("mini", "bfloat16")
    half.place("offload")
    assert "--checkpointing" in less_memory(half, method)
    half.configure(checkpointing=True)
    assert "batch=1" in less_memory(half, method)
    assert "xattn-kv" in less_memory(half, ESD())


# -- half precision --------------------------------------------------------------------------------------------------


def test_small_updates_of_half_precision_weights_are_not_swallowed() -> None:
    """bfloat16 has 8 bits: an update of 1e-5 of a weight of 0.02 would be rounded away."""
    model = on_device("mini", "bfloat16")
    patch = ESD(steps=3, sampling_steps=4, lr=1e-5).erase(model, EraseRequest(("dog",)))
    base = model.weights(XATTN)
    assert patch.deltas.keys() == base.keys()
    moved = torch.cat([d.flatten() for d in patch.deltas.values()]).abs()
    assert float(moved.max()) <= 3.1e-5
    assert float((moved > 0).float().mean()) > 0.9
    swallowed = [(base[n].cpu().float() + d).bfloat16() == base[n].cpu() for n, d in patch.deltas.items()]
    assert float(torch.cat([s.flatten() for s in swallowed]).float().mean()) > 0.5  # else the test could not fail


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_samples_and_reverts(dtype: str) -> None:
    model = on_device("mini", dtype)
    exact = verbs.sample(on_device("mini"), ["a dog"], n=2, steps=8)
    plain = verbs.sample(model, ["a dog"], n=2, steps=8)
    assert float((plain - exact).abs().mean()) < 0.05  # in [0, 1]; another seed's picture is several tenths away
    before = state(model)
    patch = AP(steps=3, sampling_steps=4, search=Gumbel(nearest=4), lr=1e-3, sampler=Pool(trajectories=1)).erase(
        model, EraseRequest(("dog",))
    )
    assert all(torch.isfinite(d).all() for d in patch.deltas.values())
    with patch.applied(model):
        assert not torch.equal(verbs.sample(model, ["a dog"], n=2, steps=8), plain)
        assert not same(state(model), before)
    assert same(state(model), before)


def test_an_attack_has_gradients_in_bfloat16() -> None:
    model = on_device("mini", "bfloat16")
    told = verbs.attack(model, "unlearndiff", target="dog", budget=120, cases=1, profile="smoke", controls=False)
    assert "unlearndiff" in str(told)
    patch = AdvUnlearn.preset("tiny").erase(on_device("tiny", "bfloat16"), REQUEST)
    assert all(torch.isfinite(d).all() for d in patch.deltas.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fp8_storage_trains_as_a_plain_network_with_the_rounded_numbers(checkpointing: bool) -> None:
    stored, plain = load_model("mini", dtype="bfloat16", device=DEVICE, storage="fp8"), on_device("mini", "bfloat16")
    stored.unround(XATTN)
    for p, q in zip(plain.network.parameters(), stored.network.parameters(), strict=True):
        if q.dtype == torch.float8_e4m3fn:
            p.data = p.data.to(q.dtype).to(p.dtype)
    assert {w.device.type for w in stored.rounded.unrounded.values()} == {"cpu"}
    for model in (stored, plain):
        model.configure(checkpointing=checkpointing)
    assert off(gradients(stored, stored.student(XATTN)), gradients(plain, plain.student(XATTN))) < 1e-2  # rounding of bfloat16
    assert stored.digest() == on_device("mini", "bfloat16").digest()
    patch = ESD.preset("tiny").erase(stored, REQUEST_OF_MINI)
    assert all(torch.isfinite(d).all() for d in patch.deltas.values())


# -- the whole way ---------------------------------------------------------------------------------------------------


def test_the_command_line_end_to_end(tmp_path: Path) -> None:
    patch, grid, folder = tmp_path / "p.safetensors", tmp_path / "grid.png", tmp_path / "evaluation"
    steps = "20" if CUDA else "2"
    erase = f"erase ap --target dog --set steps={steps} --device {DEVICE} --out {patch}"
    for line in (
        erase if CUDA else f"{erase} --set search.nearest=4 --set sampler.trajectories=1",
        f"sample --patch {patch} --prompt dog --device {DEVICE} --out {grid}",
        f"evaluate --patch {patch} --profile smoke --device {DEVICE} --out {folder}",
    ):
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert grid.is_file()
    assert (folder / "summary.json").is_file()
    assert Patch.load(patch).card.base["device"].startswith(torch.device(DEVICE).type)


def test_a_compiled_student_is_right_or_refused() -> None:
    """Last: the compiler takes longer than all the rest. torch 2.13 on a CPU gives wrong gradients, and is refused."""
    model = on_device()
    plain = gradients(model, model.student(XATTN))
    model.configure(compiled=True)
    if not CUDA:
        with contextlib.suppress(BadOption):
            assert off(gradients(model, model.student(XATTN)), plain) < 1e-3
        return
    student = model.student(XATTN)
    assert off(gradients(model, student), plain) < 1e-3
    run = Run()
    assert ESD(steps=2, sampling_steps=3, sampler=Pool(trajectories=1)).erase(model, REQUEST, run).deltas
    assert len(run.log) == 2
