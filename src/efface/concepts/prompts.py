"""Prompts as rows: everything one image depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Case:
    """One image to make and what it should show.

    ``axis``: direct, synonym, implicit (of the target), near, trap or far (concepts to keep). ``concept`` is what a correct
    model draws. The start latent comes from ``seed`` alone, so cases are paired across models.
    """

    axis: str
    concept: str
    prompt: str
    seed: int
    guidance: float = 4.0

    @property
    def id(self) -> str:
        """First 16 hex digits of the hash of the canonical JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def filled(template: str, name: str) -> str:
    """The template with the name in it, "a" turned into "an" before a vowel. A name with a capital is a proper name and has no
    article."""
    if name[:1].isupper():
        template = template.replace("a {}", "{}").replace("the {}", "{}")
    return template.replace("a {}", "an {}").format(name) if name[:1].lower() in "aeiou" else template.format(name)
