"""One tree of errors. Every message says what happened, names the value, and says what to do.

EffaceError
├── UsageError (also ValueError)   the request itself is wrong; the command line exits with 2
│   ├── UnknownName                no such method, model, concept or option; carries "did you mean"
│   ├── BadRequest                 empty target, target equal to the anchor, ...
│   ├── BadOption                  a value that its option does not take
│   └── PromptTooLong              the tokenizer would cut the prompt
├── WrongBaseModel                 a patch meets a model it was not made for
├── BadFile                        truncated, hostile or foreign file
├── NothingSelected                a parameter selection matches no weight of this model
├── MethodError                    a method broke the contract of the training loop
├── IllPosed                       a closed-form system without a usable solution
├── NonFiniteLoss                  NaN or infinity in a loss term; names step and term
├── OutOfMemory                    the device has no memory left; names the next setting to try
├── Cancelled                      Ctrl-C; names the checkpoint to resume from
├── EvaluationError                an evaluation that could not say anything true
├── PluginError                    an installed package registers something that cannot be used
└── MissingExtra                   an optional dependency is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EffaceError(Exception):
    """Base of every error efface raises on purpose."""


class UsageError(EffaceError, ValueError):
    """The request is wrong; nothing was computed."""


class UnknownName(UsageError):
    """``UnknownName("method", "epd", ["esd", "ap"])`` suggests the names that are spelled most alike, and shows five at most."""

    SHOWN = 5

    def __init__(self, kind: str, name: str, known: Iterable[str], note: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        nearest = sorted(known, key=lambda k: -difflib.SequenceMatcher(None, name, k).ratio())[: self.SHOWN]
        told = "Known" if len(known) <= self.SHOWN else f"The nearest of {len(known)} known"
        super().__init__(f"unknown {kind} {name!r}.{hint} {told}: {', '.join(nearest)}.{note}")


class BadRequest(UsageError):
    """An erasure request that cannot mean anything."""


class BadOption(UsageError):
    """A value outside what its option takes."""


class PromptTooLong(UsageError):
    """A prompt that the tokenizer would cut silently."""

    @classmethod
    def of(cls, prompt: str, tokens: int, limit: int, reader: str) -> PromptTooLong:
        """The reason first and of the prompt its beginning only, because a long prompt would hide the reason."""
        begins = prompt if len(prompt) <= 60 else prompt[:60] + "..."
        return cls(
            f"a prompt has {tokens} tokens and {reader} reads {limit}: the rest would be cut silently. Shorten it. "
            f"It begins {begins!r}."
        )


class WrongBaseModel(EffaceError):
    """The patch was made for another base model."""


class BadFile(EffaceError):
    """A file that cannot be read as what it claims to be."""


class NothingSelected(EffaceError):
    """A parameter selection that matches nothing."""


class MethodError(EffaceError):
    """A method did not keep the contract of the training loop."""


class IllPosed(EffaceError):
    """A linear system that float64 cannot solve."""


class NonFiniteLoss(EffaceError):
    """A loss term became NaN or infinite."""


class OutOfMemory(EffaceError):
    """The device has no memory left for this run."""


class Cancelled(EffaceError):
    """The user stopped the run."""


class EvaluationError(EffaceError):
    """No true statement can be made from what was measured."""


class PluginError(EffaceError):
    """An installed package registers something under one of our entry-point groups that cannot be used."""


class MissingExtra(EffaceError):
    """An optional dependency is missing; the message carries the install line."""
