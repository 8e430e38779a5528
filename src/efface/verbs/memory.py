"""How much memory an erasure needs, how much there is, and which settings make it need less."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadOption
from ..methods.base import Method
from ..methods.trained import Trained
from ..models.base import DiffusionModel
from ..models.footprint import Footprint, footprint
from ..models.load import family_of
from ..models.parts import named_dtype
from ..models.placement import CPU, DEVICE, OFFLOAD
from ..models.plain import FP8
from ..models.room import GIB, available_bytes, stored_numbers, trained_numbers
from ..models.storage import storable
from ..training.optimizers import ADAM, ADAM_8BIT, moment_bytes

ON_A_GPU = 1.0
"""GiB that CUDA and its libraries take beside all tensors."""
OF_COPIES = 8
"""Bytes for each trained number: its copy and its gradient, in float32."""
LARGE = 100_000_000
"""Parameters of a network from which on a run that does not fit is refused: counting takes seconds there and saves minutes."""
CLOSED_FORM = "Use a closed form (efface erase uce), which trains nothing and runs on the CPU."


@dataclass(frozen=True)
class Setup:
    """The settings that decide how much memory a training takes."""

    encoders: str
    dtype: torch.dtype
    """Precision of the loaded weights."""
    computed: torch.dtype
    """Precision that the network computes in."""
    checkpointing: bool
    batch: int
    train: str
    storage: str | None
    optimizer: str


class Needs:
    """What one method needs on one model, under the settings that it has and under others."""

    def __init__(
        self, model: DiffusionModel, method: Method, *, checkpointing: bool | None = None, autocast: str | None = None
    ) -> None:
        """``checkpointing`` and ``autocast``: those of the model, or what they would be."""
        self.model, self.method = model, method
        loaded = named_dtype(str(model.info["dtype"]))
        on = bool(getattr(model.network, "is_gradient_checkpointing", False))
        self.setup = Setup(
            encoders=model.encoders_at,
            dtype=loaded,
            computed=loaded if autocast is None else named_dtype(autocast),
            checkpointing=on if checkpointing is None else checkpointing,
            batch=getattr(method, "batch", 1),
            train=getattr(method, "train", ""),
            storage=None if model.rounded is None else "fp8",
            optimizer=getattr(method, "optimizer", ADAM),
        )
        self._loaded = loaded
        self._kept: dict[tuple[Any, ...], Footprint] = {}

    # -- what is needed ------------------------------------------------------------------------------------------

    def parts(self, setup: Setup | None = None) -> dict[str, int]:
        """Bytes by what they are for. Raises BadOption for a method whose rows are not known."""
        setup = self.setup if setup is None else setup
        beside = [_bytes_of(module.parameters(), setup.dtype) for module in self.model.beside().values()]
        parts = self._network(setup)
        if setup.encoders == DEVICE or self.model.device.type == "cpu":
            parts["weights of the text encoders and the VAE"] = sum(beside)
        trained = self._training(setup) if isinstance(self.method, Trained) else {}
        if setup.encoders == OFFLOAD and self.model.device.type != "cpu":
            # Prompts are read before the copies, moments and activations are there, unless updates learn words.
            later = 0 if getattr(self.method, "learns_words", False) else sum(trained.values())
            parts["the largest text encoder while it computes, beyond what training takes later"] = max(0, max(beside) - later)
        parts |= trained
        if self.model.device.type == "cuda":
            parts["CUDA and its libraries"] = int(ON_A_GPU * GIB)
        return parts

    def _network(self, setup: Setup) -> dict[str, int]:
        network, select = self.model.network, self.model.select(setup.train) if setup.train else lambda _: False
        stored = list[nn.Parameter]()
        for name, layer in storable(network).items() if setup.storage is not None else ():
            own = dict(layer.named_parameters(recurse=False))
            if not any(select(f"{self.model.part}.{name}.{n}") for n in own):
                stored += own.values()
        held = {id(p) for p in stored}
        whole = [p for p in network.parameters() if id(p) not in held]
        parts = {"weights of the network": _bytes_of(whole, setup.dtype, self._loaded)}
        if stored:
            parts["frozen weights of the network, in eight bits"] = sum(p.numel() for p in stored)
            if self.model.device.type == "cpu":
                kept = _bytes_of(stored, setup.dtype, self._loaded)
                parts["the same weights unrounded, which stay in the computer's memory"] = kept
        return parts

    def total(self, setup: Setup | None = None) -> int:
        return sum(self.parts(setup).values())

    def _training(self, setup: Setup) -> dict[str, int]:
        assert isinstance(self.method, Trained)
        trained = self._trained(setup.train)
        tensors = self.model.weights(self.model.select(setup.train)).values()
        parts = {
            "trained copy and gradients, in float32": OF_COPIES * trained,
            f"two moments of Adam, in {'float32' if setup.optimizer == ADAM else 'eight bits'}": sum(
                moment_bytes(setup.optimizer, w.numel()) for w in tensors
            ),
        }
        if not self.method.gradient_rows:
            raise BadOption(f"it is not known how many rows an update of {self.method.label} differentiates.")
        rows, kept = self.method.gradient_rows * setup.batch, self._footprint(setup, self.method.through_encodings)
        if setup.computed != torch.float32:
            parts["half-precision copies of weights, which autocast keeps"] = kept.copies
        parts[f"activations that {rows} rows keep for the backward pass"] = rows * kept.row
        patch = 4 * trained - rows * kept.row
        if self.model.device.type == "cpu" and patch > 0:  # it is made in this memory
            parts["the patch, beyond the activations, which are gone when it is made"] = patch
        return parts

    def _footprint(self, setup: Setup, through_encodings: bool) -> Footprint:
        key = setup.train, setup.dtype, setup.computed, setup.checkpointing, through_encodings
        if key not in self._kept:
            self._kept[key] = footprint(
                self.model,
                self.model.select(setup.train),
                loaded=setup.dtype,
                computed=setup.computed,
                checkpointing=setup.checkpointing,
                through_encodings=through_encodings,
            )
        return self._kept[key]

    def _trained(self, train: str) -> int:
        return sum(w.numel() for w in self.model.weights(self.model.select(train)).values())

    @cached_property
    def free(self) -> int | None:
        """Bytes that the run may take on the device, with the loaded weights counted as free; None where that is unknown."""
        return free_bytes(self.model)

    # -- what makes it smaller -----------------------------------------------------------------------------------

    def savings(self) -> dict[str, int]:
        """Bytes that each setting which is off would save by itself, by how the setting is given, in the order of their cost."""
        total = self.total()
        return {s.given: total - self.total(off) for s in SWITCHES if (off := s.on(self, self.setup)) is not None}

    def fitting(self) -> tuple[Switch, ...] | None:
        """The first settings, in the order of their cost, with which the run fits; () where it does, None where none help."""
        taken: list[Switch] = []
        if self._fits(taken):
            return ()
        for switch in SWITCHES:
            if switch.on(self, self._with(taken)) is not None:
                taken.append(switch)
                if self._fits(taken):
                    break
        else:
            return None
        for switch in taken[-2::-1]:  # what turned out not to be needed, the dearest first
            if self._fits(rest := [s for s in taken if s is not switch]):
                taken = rest
        return tuple(taken)

    def _with(self, switches: list[Switch]) -> Setup:
        setup = self.setup
        for switch in switches:
            setup = switch.on(self, setup) or setup
        return setup

    def _fits(self, switches: list[Switch]) -> bool:
        return self.free is None or self.total(self._with(switches)) <= self.free

    def remedy(self) -> str:
        """What makes the run fit, as a sentence; "" where it fits."""
        found = self.fitting()
        if found is None:
            return f"It does not fit with every setting that saves memory, either. {CLOSED_FORM}"
        return f"It fits with {' '.join(s.given for s in found)}." if found else ""


@dataclass(frozen=True)
class Switch:
    """A setting that saves memory."""

    given: str
    """How the command line is told."""
    advice: str
    on: Callable[[Needs, Setup], Setup | None]
    """The settings with it; None where it is on, or would change nothing."""


def _offloaded(needs: Needs, setup: Setup) -> Setup | None:
    alone = needs.model.device.type == "cpu" or setup.encoders != DEVICE
    return None if alone else replace(setup, encoders=OFFLOAD)


def _halved(needs: Needs, setup: Setup) -> Setup | None:
    return replace(setup, dtype=torch.bfloat16, computed=torch.bfloat16) if setup.dtype == torch.float32 else None


def _checkpointed(needs: Needs, setup: Setup) -> Setup | None:
    return None if setup.checkpointing else replace(setup, checkpointing=True)


def _one_row(needs: Needs, setup: Setup) -> Setup | None:
    return replace(setup, batch=1) if setup.batch > 1 else None


def _narrower(needs: Needs, setup: Setup) -> Setup | None:
    if "xattn-kv" not in needs.model.selections or not setup.train or setup.train == "xattn-kv":
        return None
    fewer = needs._trained("xattn-kv") < needs._trained(setup.train)
    return replace(setup, train="xattn-kv") if fewer else None


def _stored(needs: Needs, setup: Setup) -> Setup | None:
    alone = needs.model.device.type == "cpu" or not isinstance(needs.method, Trained)
    return None if alone or setup.storage is not None else replace(setup, storage="fp8")


def _eight_bit_moments(needs: Needs, setup: Setup) -> Setup | None:
    possible = hasattr(needs.method, "optimizer") and needs.model.device.type in ("cpu", "cuda", "meta")
    return replace(setup, optimizer=ADAM_8BIT) if possible and setup.optimizer == ADAM else None


def _on_the_cpu(needs: Needs, setup: Setup) -> Setup | None:
    return replace(setup, encoders=CPU) if needs.model.device.type != "cpu" and setup.encoders == OFFLOAD else None


SWITCHES = (
    Switch(
        "--encoders offload",
        "Leave the text encoders and the VAE in the computer's memory while they do not compute (--encoders offload).",
        _offloaded,
    ),
    Switch(
        "--dtype bfloat16",
        "Load the weights in half precision (--dtype bfloat16); what is trained stays in float32.",
        _halved,
    ),
    Switch("--checkpointing", "Compute activations again instead of storing them (--checkpointing).", _checkpointed),
    Switch("--set batch=1", "Take one row per update (--set batch=1).", _one_row),
    Switch("--set train=xattn-kv", "Train fewer tensors (--set train=xattn-kv).", _narrower),
    Switch("--storage fp8", "Store what is frozen in eight bits (--storage fp8).", _stored),
    Switch(
        "--set optimizer=adam8bit",
        "Keep Adam's moments in eight bits (--set optimizer=adam8bit, which needs efface[adam8bit]).",
        _eight_bit_moments,
    ),
    Switch(
        "--encoders cpu",
        "Let the text encoders and the VAE compute in the computer's memory, which takes long (--encoders cpu).",
        _on_the_cpu,
    ),
)
"""In the order of what they cost: time, then the accuracy or the strength of the erasure."""


def less_memory(model: DiffusionModel, method: Method) -> str:
    """The next setting that makes a run smaller, in the order of what it costs."""
    needs = Needs(model, method)
    return next((s.advice for s in SWITCHES if s.on(needs, needs.setup) is not None), CLOSED_FORM)


def check_fit(model: DiffusionModel, method: Method) -> None:
    """Raises BadOption for a run that needs more memory than is free, before it is started. Small networks are let pass."""
    if not isinstance(method, Trained) or sum(p.numel() for p in model.network.parameters()) < LARGE:
        return
    needs = Needs(model, method)
    needed, free = needs.total(), needs.free
    if free is not None and needed > free:
        raise BadOption(
            f"{method.label} on {model.name!r} needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free on "
            f"{model.device}. {needs.remedy()}"
        )


def check_folder(
    source: Any,
    method: type[Method],
    settings: Mapping[str, Any],
    dtype: str,
    device: str,
    encoders: str = DEVICE,
    storage: str | None = None,
) -> None:
    """Raises BadOption where a folder's weights and what training needs for each trained number are more than is free. Only the
    headers of its files are read. ``settings`` are the method's options that differ from its defaults. What rows keep for the
    backward pass is counted after loading; see :func:`check_fit`. Anything that is not a folder on disk is let pass."""
    if not issubclass(method, Trained) or not isinstance(source, str | Path) or not (Path(source) / "model_index.json").is_file():
        return
    source, folder, free = str(source), Path(source), available_bytes(torch.device(device))
    family = family_of(source)
    train = settings.get("train", method.__dataclass_fields__["train"].default)
    if free is None or train not in family.selections:
        return  # of a selection that there is not, the model says which it has
    trained = trained_numbers(folder, family.part, family.selections[train])
    away = encoders != DEVICE and torch.device(device).type != "cpu"
    whole, network = stored_numbers(folder), stored_numbers(folder, family.part)
    weights = (0 if away else whole - network) * named_dtype(dtype).itemsize
    weights += network * (1 if storage is not None else named_dtype(dtype).itemsize)  # at least: some layers are not stored so
    optimizer = settings.get("optimizer", ADAM)
    training = OF_COPIES * trained + moment_bytes(optimizer, trained)
    if weights + training > free:
        smaller = " Half-precision weights (--dtype bfloat16) take half of the first." if dtype == "float32" else ""
        if not away and torch.device(device).type != "cpu":
            smaller += " Text encoders and VAE can stay in the computer's memory (--encoders offload)."
        raise BadOption(
            f"{method.name} on {source!r} needs {weights / GIB:.1f} GiB for the weights and {training / GIB:.1f} GiB for what "
            f"is trained (train={train}), activations not counted, and {free / GIB:.1f} GiB are free on {device}.{smaller} "
            "Train fewer tensors (--set train=xattn-kv), or use a closed form (efface erase uce), which trains none."
        )


def free_bytes(model: DiffusionModel) -> int | None:
    """Bytes that the run may take, with the loaded weights counted as free."""
    free = available_bytes(model.device)
    modules = [model.network, *model.beside().values()]
    loaded = sum(p.nbytes for m in modules for p in m.parameters() if p.device == model.device)
    if model.rounded is not None and model.device.type == "cpu":
        loaded += sum(w.nbytes for w in model.rounded.unrounded.values())
    return None if free is None else free + loaded


def _bytes_of(parameters: Iterable[nn.Parameter], dtype: torch.dtype, loaded: torch.dtype | None = None) -> int:
    """Bytes of parameters, of which none is wider than ``dtype``. Those that are stored in eight bits were ``loaded`` wider."""
    sizes = ((p, loaded.itemsize if loaded is not None and p.dtype == FP8 else p.element_size()) for p in parameters)
    return sum(p.numel() * min(size, dtype.itemsize) for p, size in sizes)
