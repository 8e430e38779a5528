"""Whether a file of efface is what it says it is: a patch, an export, or an exported folder, with or without its base model.

Nothing in a file is trusted. No pickle is opened, no code of a file runs, and whatever is wrong with it is a failed check and no
exception. What cannot be looked at (no model, no signature, a file of an older version) is called skipped, never passed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..equations.statistics import wilson
from ..errors import BadFile, EffaceError, MissingExtra, WrongBaseModel
from ..models.base import DiffusionModel
from .card import PatchCard
from .foreign import read_changes
from .header import module_norms, tensor_norms
from .manifest import changed_files, read_manifest
from .patch import Patch
from .seal import check_seal
from .signature import check_signature, signature_path
from .store import FORMAT, card_of, is_pickle
from .whole import SINGLE

NORM = 1e-4
"""Relative: how far the norm of a layer's change may be from the recorded one. Both are sums in float64 over the same numbers, so
that anything above rounding is another content; the margin is for numbers stored in half precision by another program."""
HOSTILE = (EffaceError, SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError)
"""What a damaged or hostile file may raise while it is looked at. RecursionError is a RuntimeError."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``status``: passed, failed, or skipped where it could not be looked at."""

    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Verification:
    """All checks of a file. It is ``ok`` where none failed."""

    path: str
    kind: str
    """patch, diffusers, kohya, diff, folder, single-file, or "" for a file that efface did not write."""
    checks: tuple[Check, ...]
    card: PatchCard | None = None
    patch: Patch | None = None
    """The change that the file makes, where it could be read: of an export only with a model."""

    @property
    def ok(self) -> bool:
        return all(c.status != "failed" for c in self.checks)

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {"file": self.path, "kind": self.kind, "ok": self.ok, "checks": [asdict(c) for c in self.checks]}


class _Checks:
    """Runs one check after the other; an error is a failed check."""

    def __init__(self) -> None:
        self.found: list[Check] = []

    def run(self, name: str, look: Callable[[], str | tuple[str, str]]) -> bool:
        """``look`` says what it found, or (status, text), or raises. Whether the check did not fail."""
        try:
            said = look()
        except MissingExtra:
            raise
        except HOSTILE as error:
            said = "failed", str(error).splitlines()[0] if str(error) else type(error).__name__
        status, text = said if isinstance(said, tuple) else ("passed", said)
        self.found.append(Check(name, status, text))
        return status != "failed"


def verify(path: str | Path, model: DiffusionModel | None = None, key: str | Path | None = None) -> Verification:
    """Look at the file or folder, and with ``model`` at whether it fits that base.

    key: a public key (file or base64) that must have signed it. Raises BadFile where there is nothing at ``path``, MissingExtra
    where a key is given and ``cryptography`` is not installed; everything else is a failed check. Cost: one reading of the file;
    0 UNet evaluations.
    """
    path = Path(path)
    if not path.exists():
        raise BadFile(f"there is no {str(path)!r}.")
    checks, it = _Checks(), _Opened(path)
    if checks.run("file", it.open):
        checks.run("seal", it.seal)
        if checks.run("card", it.complete):
            checks.run("content", it.content)
            checks.run("numbers", it.numbers)
            checks.run("base", lambda: it.base(model))
    checks.run("signature", lambda: _signature(path, key))
    return Verification(str(path), it.kind, tuple(checks.found), it.card, it.patch)


def _signature(path: Path, key: str | Path | None) -> str | tuple[str, str]:
    if not signature_path(path).is_file():
        if key is not None:
            return "failed", f"there is no {signature_path(path).name}, and a key was given."
        return "skipped", "the file is not signed."
    try:
        public = check_signature(path, key)
    except MissingExtra as error:
        if key is not None:
            raise
        return "skipped", f"{signature_path(path).name} was not looked at: {error}"
    whose = "the given key" if key is not None else "a key that you must know; --key says which it has to be"
    return f"signed by {public}, {whose}."


class _Opened:
    """A file or folder with what was found in it so far."""

    def __init__(self, path: Path) -> None:
        self.path, self.kind = path, ""
        self.header: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {}
        self.card: PatchCard | None = None
        self.patch: Patch | None = None

    def open(self) -> str:
        if self.path.is_dir():
            self.card, self.facts = read_manifest(self.path)
            self.kind = "folder"
            return f"a pipeline folder of efface, {len(self.facts.get('efface_files', ()))} files."
        if is_pickle(self.path):
            raise BadFile("it is a pickle; pickles can run code and are not opened.")
        try:
            self.read()
        except SafetensorError as error:
            raise BadFile(f"it is truncated, damaged, or no safetensors file ({error}).") from error
        if not self.kind:
            if self.header.get("efface_card"):
                raise BadFile("an export of an older version of efface, which cannot be checked; export the patch again.")
            raise BadFile("efface did not write it, so it has no card to check. efface import makes a patch of it.")
        return f"{'a patch' if self.kind == 'patch' else f'an export ({self.kind})'} of efface."

    def read(self) -> None:
        """The header, and the tensors of an export."""
        with safe_open(self.path, framework="pt") as f:
            self.header = dict(f.metadata() or {})
            if self.header.get("format") == FORMAT:
                self.kind = "patch"
            elif "efface_card" in self.header:
                self.kind = self.header.get("efface_format", "")
                self.tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  # safe_open is no mapping

    def seal(self) -> str | tuple[str, str]:
        if self.kind == "folder":
            changed = changed_files(self.path, self.facts.get("efface_files", {}))
            if changed:
                more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
                raise BadFile(f"{changed[0]}{more}.")
            return "every file of the folder is as it was written."
        found = check_seal(self.path)
        if not found:
            if self.kind == "patch" and self.header.get("format_version") == "1":
                return "skipped", "a patch of an older version, without a seal: changed bytes would not be found."
            raise BadFile("the header has lost its seal (efface_sha256): another program has written the file again.")
        return f"every byte is as it was written (sha256 {found[:12]}...)."

    def complete(self) -> str:
        if self.kind != "folder":
            self.card = card_of(self.header["card" if self.kind == "patch" else "efface_card"], self.path)
        assert self.card is not None
        base, versions = self.card.base, self.card.versions
        facts = {
            "method": self.card.method,
            "base.name": base.get("name"),
            "base.digest": re.fullmatch(r"[0-9a-f]{64}", str(base.get("digest"))),
            "base.dtype": base.get("dtype"),
            "versions.efface": versions.get("efface"),
            "versions.torch": versions.get("torch"),
        }
        lacking = [name for name, value in facts.items() if not value]
        if lacking:
            raise BadFile(f"the card lacks {', '.join(lacking)}.")
        return f"{self.card.method} erases {', '.join(self.card.request.asked)} from {base['name']}; nothing is missing."

    def content(self) -> str | tuple[str, str]:
        if self.kind == "patch":
            self.patch = Patch.load(self.path)
            return f"{len(self.patch.deltas)} tensors, all finite (change {self.patch.digest()[:12]}...)."
        if self.kind == "folder":
            return "skipped", "the digests of the files, in the check before, say what the weights are."
        broken = [n for n, t in self.tensors.items() if not t.is_floating_point() or not bool(torch.isfinite(t.float()).all())]
        if broken:
            raise BadFile(f"{broken[0]} holds values that are not finite numbers.")
        whole = self.kind == SINGLE
        recorded, found = json.loads(self.header["efface_norms"]), (tensor_norms if whole else module_norms)(self.tensors)
        missing, strange = sorted(recorded.keys() - found.keys()), sorted(found.keys() - recorded.keys())
        if missing or strange:
            raise BadFile(f"{missing[0]} is missing." if missing else f"{strange[0]} was added.")
        for name, norm in recorded.items():
            if not math.isfinite(norm) or abs(found[name] - norm) > NORM * norm + 1e-12:
                ratio = f", {found[name] / norm:.3g} times as much" if norm else ""
                what = name if whole else f"the change of {name}"
                raise BadFile(f"{what} has norm {found[name]:.4g}, the header says {norm:.4g}{ratio}.")
        if whole:
            return f"{len(found)} tensors of the whole model, each with the norm that the header says."
        return f"{len(found)} layers change by what the header says."

    def numbers(self) -> str | tuple[str, str]:
        assert self.card is not None
        measured = self.card.measured
        if not measured:
            return "skipped", "the card has no measurements; efface card puts those of an evaluation into it."
        rates = list(recorded_rates(measured))
        for name, r in rates:
            kept = wilson(int(r["k"]), int(r["n"]))
            if abs(kept.low - r["low"]) > 1e-6 or abs(kept.high - r["high"]) > 1e-6:
                raise BadFile(f"the recorded interval of {name} is not that of {r['k']} of {r['n']}.")
        return f"{len(rates)} rates with their intervals; --remeasure measures those of the evaluation again."

    def base(self, model: DiffusionModel | None) -> str | tuple[str, str]:
        assert self.card is not None
        if model is None:
            name, digest = self.card.base["name"], str(self.card.base["digest"])[:12]
            return "skipped", f"made for {name} (digest {digest}...); --model compares with a model of yours."
        if self.patch is None:
            empty = Patch({}, self.card)
            if self.card.base.get("text_encoder_digest") is None:
                empty.check_base(model)
            kind, deltas, _ = read_changes(model, self.path)
            self.patch = Patch(deltas, self.card)
            if not deltas:
                raise BadFile(f"read as {kind}, it changes nothing in {model.name!r}.")
        self.patch.check_base(model)
        live = model.weights(lambda _: True)
        for name, d in self.patch.deltas.items():
            if name not in live or live[name].shape != d.shape:
                raise WrongBaseModel(f"{name} of {tuple(d.shape)} is no weight of {model.name!r}.")
        return f"{model.name} is the base; {len(self.patch.deltas)} of its tensors change, norm {self.patch.norm():.4g}."


def recorded_rates(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every rate of a card's measurements by name."""
    evaluation = measured.get("evaluation") or {}
    found = [(f"{axis} ({r['measure']})", r) for axis, r in (evaluation.get("rates") or {}).items()]
    return found + [(f"the attack {a['attack']}", a["broken"]) for a in measured.get("attacks") or ()]
