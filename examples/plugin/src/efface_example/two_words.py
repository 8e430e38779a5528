"""Two words: a protocol with one near and one far concept, in two wordings."""

from __future__ import annotations

from collections.abc import Sequence

from efface.errors import BadOption
from efface.evaluation.suite import Neighbour, Suite, SuiteSource
from efface.models.world import World


class TwoWords(SuiteSource):
    """The first other concept of the target's group is near, the first of another group is far."""

    name = "two-words"
    summary = "an example: one near and one far concept"

    def suite(self, world: World | None, targets: Sequence[str]) -> Suite:
        if world is None:
            raise BadOption("the suite two-words needs a world: give --world NAME.")
        group = world.groups[targets[0]]
        near = next(n for n, g in world.groups.items() if g == group and n not in targets)
        far = next(n for n, g in world.groups.items() if g != group and n not in targets)
        kept = [(Neighbour(n, why, "test"),) for n, why in ((near, "same group"), (far, "another group"))]
        return Suite(tuple(targets), kept[0], (), kept[1], {}, {}, ("a {}", "{}"))
