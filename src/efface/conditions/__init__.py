"""Conditions under which an erasure may be used, other than the one it was measured in; see :mod:`efface.verbs.survive`."""

from .base import Condition, Plain, Setting
from .precision import Eight, Half, Integer
from .sampling import SCHEDULERS, Guidance, Scheduler, Size, Steps
from .weights import Merged, Stacked, Tuned

__all__ = ["Condition", "Plain", "Setting", "conditions"]


def conditions(own_lora: bool = False, sibling: bool = False) -> dict[str, Condition]:
    """Every condition by its name on the command line, in the order of the table. ``own_lora``, ``sibling``: whether the user
    gives what is stacked and merged."""
    lora = "the given LoRA" if own_lora else "a LoRA of other concepts"
    other = "the given sibling" if sibling else lora
    return {
        "float16": Half("float16", "weights in float16"),
        "bfloat16": Half("bfloat16", "weights in bfloat16"),
        "float8": Eight("float8_e4m3fn", "weights in float8, layerwise casting"),
        "int8": Integer("int8", "weights in 8-bit integers"),
        **{name.lower().replace(" ", "-"): Scheduler(name) for name in SCHEDULERS},
        "fewer-steps": Steps(0.5, "half the sampler steps"),
        "more-steps": Steps(2.0, "twice the sampler steps"),
        "less-guidance": Guidance(0.5, "half the guidance"),
        "more-guidance": Guidance(2.0, "twice the guidance"),
        "smaller": Size(0.75, "smaller images"),
        "larger": Size(1.25, "larger images"),
        "lora": Stacked(f"{lora} on top"),
        "merge-base": Merged("merged with the unmodified model, half and half", with_base=True),
        "merge-sibling": Merged(f"merged with {other}, half and half"),
        "fine-tuning": Tuned("fine-tuned on images of other concepts"),
    }
