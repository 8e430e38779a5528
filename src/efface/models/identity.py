"""What the weights of a base model are recognised by, in whatever precision they are loaded.

A checkpoint of float32 numbers x is used as x, as half(x) and as bfloat16(x). Each has fewer numbers than the one before, and two
files of one model differ in most bits. Three facts recognise it:

- ``digest``: sha256 over names, shapes and half(w). The same for x and half(x).
- ``digest_bfloat16``: the same over half(bfloat16(w)). The same for x and bfloat16(x).
- ``sketch``: one entry w[i] of every tensor. half(x) and bfloat16(x) share no digest, because bfloat16(half(x)) rounds twice;
  their entries agree within the rounding of both, |a - b| <= (2^-8 + 2^-11) |x| + 2^-24.

Only the last comparison is inexact: a fine-tune by less than 0.4 % of every entry looked at passes it. It is made only between a
model in float16 and one in bfloat16.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

NARROW = 2.0**-8 + 2.0**-11
"""Relative: what bfloat16 and float16 may each have rounded away of one number."""
SMALLEST = 2.0**-24
"""Absolute: the spacing of float16 near zero."""


class Identity(TypedDict):
    """The three facts, as plain data for a patch's card."""

    digest: str
    digest_bfloat16: str
    sketch: str


def identity_of(named: Iterable[tuple[str, Tensor]]) -> Identity:
    """Of weights by name; their order does not matter."""
    weights = sorted(named, key=lambda pair: pair[0])
    plain, narrow = hashlib.sha256(), hashlib.sha256()
    # Where all weights are in bfloat16 both digests are of the same numbers, and gigabytes are hashed once.
    same = all(w.dtype == torch.bfloat16 for _, w in weights)
    for name, w in weights:
        w = w.detach().cpu()
        head = f"{name}{tuple(w.shape)}".encode()
        for digest, values in [(plain, w)] if same else [(plain, w), (narrow, w.to(torch.bfloat16))]:
            digest.update(head)
            digest.update(values.to(torch.float16).contiguous().numpy())
    entries = entries_of(w for _, w in weights).numpy().astype("<f4")
    return {
        "digest": plain.hexdigest(),
        "digest_bfloat16": (plain if same else narrow).hexdigest(),
        "sketch": base64.b64encode(entries.tobytes()).decode(),
    }


def told_apart(identity: Identity, fact: int) -> Identity:
    """The identity of a model that no parameter tells from others, but a number does."""
    entries = base64.b64decode(identity["sketch"]) + np.array([fact], "<f4").tobytes()
    return {
        "digest": hashlib.sha256(f"{identity['digest']} {fact}".encode()).hexdigest(),
        "digest_bfloat16": hashlib.sha256(f"{identity['digest_bfloat16']} {fact}".encode()).hexdigest(),
        "sketch": base64.b64encode(entries).decode(),
    }


def entries_of(weights: Iterable[Tensor]) -> Tensor:
    """(n,) float32 on the CPU: the entry of every tensor that stands a golden section into it."""
    found = [w.detach().reshape(-1)[int(0.618 * w.numel())].float() for w in weights]
    return torch.stack([x.to(found[0].device) for x in found]).cpu() if found else torch.zeros(0)  # one wait for a GPU


def same_base(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether two sets of facts are of one model: the three with ``prefix`` before the names of a's, and each one's ``dtype``.

    Patches of older versions have a digest alone: they match in float32, in float16, and where they were made in bfloat16."""
    digest, narrow, sketch = (a.get(prefix + key) for key in ("digest", "digest_bfloat16", "sketch"))
    if digest is None or digest == b["digest"]:
        return digest is not None
    precisions = {a.get("dtype"), b.get("dtype")}
    if "bfloat16" in precisions and (b["digest_bfloat16"] in (digest, narrow) or narrow == b["digest"]):
        return True
    if precisions != {"float16", "bfloat16"} or sketch is None:
        return False
    x, y = (np.frombuffer(base64.b64decode(text), "<f4") for text in (sketch, b["sketch"]))
    return x.shape == y.shape and bool((np.abs(x - y) <= NARROW * np.maximum(np.abs(x), np.abs(y)) + SMALLEST).all())
