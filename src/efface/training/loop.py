"""The training loop of every trained method: ``for step in training(...)``.

The loop owns the optimizer, random numbers, the log, checks for finite values, checkpoints and
cancelling. The method owns the algorithm.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..equations.steps import shrunk
from ..errors import BadFile, Cancelled, MethodError, NonFiniteLoss
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from ..models.select import Select
from ..training import processes as parallel
from .optimizers import ADAM, optimizer_of


class Stateful(Protocol):
    """Anything whose tensors must survive an interruption, such as an optimizer or the logits of
    AP's search."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class Run:
    """What surrounds the algorithm: checkpoint, progress and log. The default run is silent and
    stores nothing."""

    checkpoint: Path | None = None
    """File for the state. It is written every ``every`` steps and on Ctrl-C, and removed when the run is complete."""
    resume: bool = False
    overwrite: bool = False
    """Start anew where a checkpoint of a stopped run lies, which is lost; otherwise that is an error."""
    every: int = 50
    on_step: Callable[[Step, int], None] = lambda step, total: None
    """Called after every step, with the step and the number of all steps."""
    fingerprint: str = ""
    """Identifies method, options, request and base model. A checkpoint of another run is refused."""
    log: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    before: float = 0.0
    """Seconds that the stopped run had taken at the checkpoint that is continued; nan where the checkpoint does not say."""


class Step:
    """One update of the weights.

    ``rng`` depends only on the seed and the index, so that step i can be reproduced by itself.
    """

    def __init__(
        self, index: int, seed: int, optimizer: torch.optim.Optimizer, model: DiffusionModel, accumulate: bool = False
    ) -> None:
        self.index = index
        self.rng = torch.Generator().manual_seed(seed * 1_000_003 + index)
        self.terms: dict[str, float] = {}
        self.logged: dict[str, Any] = {}
        self._optimizer, self._model, self._accumulate = optimizer, model, accumulate

    def randint(self, n: int) -> int:
        """A random integer, uniform on 0 .. n - 1."""
        return int(torch.randint(n, (1,), generator=self.rng))

    def draw(self, n: int, batch: int) -> list[int]:
        """A random index below n for every row of the whole batch, the same in every process.

        :func:`efface.training.processes.share` cuts out the rows of this process.
        """
        return [self.randint(n) for _ in range(batch)]

    def minimize(self, **terms: Tensor) -> None:
        """Take one optimizer step on the sum of the named loss terms. Call it exactly once in each
        step."""
        if self.terms:
            raise MethodError(f"step {self.index}: minimize() was called twice.")
        means = torch.stack([value.detach().reshape(()).float() for value in terms.values()])
        parallel.average_([means])
        self.terms = dict(zip(terms, means.tolist(), strict=True))
        bad = {n: v for n, v in self.terms.items() if not math.isfinite(v)}
        if bad:
            raise NonFiniteLoss(
                f"step {self.index}: loss term {next(iter(bad))} is {next(iter(bad.values()))}. No patch was written. "
                "Lower the learning rate (--set lr=...) or use --dtype float32."
            )
        if not self._accumulate:
            self._optimizer.zero_grad(set_to_none=True)
        torch.stack([v.reshape(()) for v in terms.values()]).sum().backward()
        self._model.evals.backward += 1
        parallel.average_(p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None)
        self._optimizer.step()

    def restart(self, lr: float) -> None:
        """Clear the optimizer and go on with this learning rate, because another phase of the
        method begins."""
        self._optimizer.state.clear()
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def shrink(self, weights: Mapping[str, Tensor], origin: Mapping[str, Tensor], rho: float) -> None:
        """Move the trained weights a share ``rho`` of their way back to ``origin``; see
        :func:`efface.equations.steps.shrunk`."""
        for name, w in weights.items():
            w.copy_(shrunk(w, origin[name].to(w.dtype), rho))

    def log(self, **values: Any) -> None:
        """Remember plain values of this step. They appear in the run's log under these names."""
        self.logged.update(values)


def training(
    student: DiffusionModel,
    select: Select,
    *,
    steps: int,
    lr: float,
    seed: int,
    run: Run,
    carry: Mapping[str, Stateful] | None = None,
    accumulate: bool = False,
    optimizer: str = ADAM,
) -> Iterator[Step]:
    """Yield one :class:`Step` for each update of the student's selected weights (Adam with betas
    0.9 and 0.999, no weight decay). ``optimizer``: one of :data:`efface.training.optimizers.OPTIMIZERS`.

    ``accumulate`` never sets gradients to zero, as in official codes that forgot to, so that every
    update takes the sum of all so far. ``carry`` names whatever else must survive an interruption.
    A resumed run continues with the same bits: weights, optimizer, carried state and cost counter
    are restored, and random numbers depend on the index alone.

    Raises MethodError if the body did not call ``minimize``, NonFiniteLoss, and Cancelled on
    Ctrl-C.
    """
    weights = student.weights(select)
    for p in weights.values():
        p.requires_grad_(True)
    stepping = optimizer_of(optimizer, weights.values(), lr)
    kept: dict[str, Stateful] = {
        "optimizer": stepping,
        **({"gradients": Gradients(weights)} if accumulate else {}),
        **(carry or {}),
    }
    first, start, saved = 0, student.evals.snapshot(), False
    if run.resume and run.checkpoint is not None and run.checkpoint.exists():
        first, saved = _restore(run, weights, kept, student), True
    with _interruptible() as interrupted:
        for index in range(first, steps):
            step = Step(index, seed, stepping, student, accumulate)
            yield step
            if not step.terms:
                raise MethodError(f"step {index}: the method never called step.minimize().")
            run.log.append({"step": index, **step.terms, **step.logged})
            run.on_step(step, steps)
            stop = parallel.anyone(interrupted.is_set(), student.device)
            if run.checkpoint is not None and (stop or (index + 1) % run.every == 0) and parallel.rank() == 0:
                saved = _kept(run, index + 1, weights, kept, student, start)
            if stop:
                where = f" Continue with --resume (checkpoint {run.checkpoint})." if saved else " Nothing of it was kept."
                raise Cancelled(f"stopped after step {index + 1} of {steps}.{where}")
    for p in weights.values():
        p.requires_grad_(False)


class Gradients:
    """The gradients that lie on weights, to be kept over an interruption."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def state_dict(self) -> dict[str, Any]:
        return {n: w.grad for n, w in self.weights.items() if w.grad is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, gradient in state.items():
            self.weights[name].grad = gradient.to(self.weights[name])


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that the current step is finished. A second Ctrl-C
    interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(signum: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def _kept(
    run: Run,
    step: int,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Stateful],
    model: DiffusionModel,
    start: Mapping[str, int],
) -> bool:
    """Whether a checkpoint lies on disk. One that cannot be written ends no run: the older one stays, and the run goes on."""
    assert run.checkpoint is not None
    try:
        _save(run, step, weights, kept, model, start)
    except BadFile as error:
        warnings.warn(f"no checkpoint after step {step}: {error} The run goes on.", stacklevel=2)
    return run.checkpoint.is_file()


def finished_steps(run: Run) -> int:
    """Steps of a stopped run that its checkpoint holds; 0 where there is none to be continued."""
    if not run.resume or run.checkpoint is None or not run.checkpoint.is_file():
        return 0
    try:
        with safe_open(run.checkpoint, framework="pt") as f:
            return int((f.metadata() or {}).get("step", "0"))
    except (SafetensorError, ValueError):
        return 0  # reading it as a whole will say what is wrong


def _save(
    run: Run,
    step: int,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Stateful],
    model: DiffusionModel,
    start: Mapping[str, int],
) -> None:
    """Write everything to one safetensors file: tensors by path, and plain values as JSON in the
    header."""
    tensors: dict[str, Tensor] = {f"weights/{n}": w.detach() for n, w in weights.items()}
    plain = {name: _flatten(item.state_dict(), f"{name}/", tensors) for name, item in kept.items()}
    # Every entry gets a copy, because safetensors refuses tensors that share memory.
    tensors = {n: t.detach().clone().contiguous() for n, t in tensors.items()}
    header = {
        "fingerprint": run.fingerprint,
        "step": str(step),
        "seconds": str(run.before + time.perf_counter() - run.began),
        "evals": json.dumps({k: v - start[k] for k, v in model.evals.snapshot().items()}),
        "plain": json.dumps(plain),
        "log": json.dumps(run.log),
    }
    assert run.checkpoint is not None
    atomic_write(run.checkpoint, lambda p: save_file(tensors, p, metadata=header))


def _restore(run: Run, weights: Mapping[str, Tensor], kept: Mapping[str, Stateful], model: DiffusionModel) -> int:
    assert run.checkpoint is not None
    try:
        with safe_open(run.checkpoint, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118  # safe_open is no mapping
        if header["fingerprint"] != run.fingerprint:
            raise BadFile(
                f"the checkpoint {run.checkpoint} belongs to another run (other method, options, request or base model). "
                "Give the original command, or delete the file to start anew."
            )
        plain = json.loads(header["plain"])
        for name, w in weights.items():
            w.data.copy_(tensors[f"weights/{name}"])
        for name, item in kept.items():
            item.load_state_dict(_unflatten(plain[name], tensors))
        run.log[:] = json.loads(header["log"])
        run.before = float(header.get("seconds", "nan"))
        for name, value in json.loads(header["evals"]).items():
            setattr(model.evals, name, getattr(model.evals, name) + value)
        return int(header["step"])
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"the checkpoint {run.checkpoint} is damaged ({error}); delete it to start anew.") from error


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested state in JSON form. Tensors move to ``tensors`` and leave their path behind; integer
    keys are kept."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[k, _flatten(v, f"{path}{k}/", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_flatten(v, f"{path}{i}/", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "items" in value:
        return {k: _unflatten(v, tensors) for k, v in value["items"]}
    if "list" in value:
        return [_unflatten(v, tensors) for v in value["list"]]
    return value["value"]
