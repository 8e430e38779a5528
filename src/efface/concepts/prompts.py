"""Prompts as rows: everything one image depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

WITHHELD = "(withheld)"
"""What records have in the place of a sensitive prompt."""


@dataclass(frozen=True)
class Case:
    """One image to make and what it should show.

    ``axis``: direct, synonym, implicit (of the target), near, trap or far (concepts to keep). ``concept`` is what a correct
    model draws. The start latent comes from ``seed`` alone, so cases are paired across models. ``sensitive``: the image may show
    what nobody wants to come upon, so it is blurred before it is written, and the prompt is not written at all.
    """

    axis: str
    concept: str
    prompt: str
    seed: int
    guidance: float = 4.0
    sensitive: bool = False

    @property
    def id(self) -> str:
        """First 16 hex digits of the hash of the canonical JSON of what the image depends on."""
        facts = {k: v for k, v in asdict(self).items() if k != "sensitive"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The prompt as records have it: nothing of a sensitive one."""
        return WITHHELD if self.sensitive else self.prompt


def filled(template: str, name: str) -> str:
    """The template with the name in it, "a" turned into "an" before a vowel. A name with a capital is a proper name and has no
    article."""
    if name[:1].isupper():
        template = template.replace("a {}", "{}").replace("the {}", "{}")
    return template.replace("a {}", "an {}").format(name) if name[:1].lower() in "aeiou" else template.format(name)
