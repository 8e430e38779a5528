"""Whom does an erasure hurt: is it the same concepts for every target, and are they the target's own group?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..equations.statistics import grouping_test, spearman
from ..errors import EvaluationError
from .base import Study, Tree, nested, said, sign
from .figures import figure
from .lab import GOLD, Erasure, Lab, Want, mean_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Profiles = Mapping[tuple[str, int], Sequence[float]]
"""(target, training seed) -> damage of every other concept."""


class Impact(Study):
    """Erases each of several targets and measures the damage to every other concept.

    The damage profile of an erasure is the mean fall of the image-text score of every concept that is no target. If it did
    not matter which target is erased, the profiles of one target (with other training seeds) would be no more alike than the
    profiles of two targets. A permutation test of the targets' labels decides this. The second comparison is the mean damage
    inside the target's group minus the mean damage outside it, resampled by target and training seed.
    """

    name = "impact"
    question = "do different targets hurt different concepts, and is it their own group?"
    default_methods = ("naive",)
    default_seeds = (0, 1)
    min_targets = 2
    min_seeds = 2

    def wants(self, lab: Lab) -> Sequence[Want]:
        return [self.scan(e) for e in (*self.erasures, *self.gold(lab))]

    def conclude(self, lab: Lab) -> dict[str, Any]:
        place = [self.names.index(n) for n in self.others]
        found: dict[str, Any] = {}
        for method in self.methods:
            profiles = {(e.target, e.seed): mean_rows(lab.drops(self.scan(e))[place]) for e in self.of(method)}
            found[method] = compare(profiles, self.others, lab.groups)
        for e in self.gold(lab):
            profile = {(e.target, e.seed): mean_rows(lab.drops(self.scan(e))[place])}
            found[GOLD] = {"target": e.target, **(contrast(profile, self.others, lab.groups) or {})}
        first = found[self.methods[0]]
        differ = first["p"] < 0.05
        sentence = (
            f"With {self.methods[0]}, which concepts are hurt "
            f"{'depends on the target' if differ else 'was not shown to depend on the target'}: the damage profiles of "
            "one target "
            f"have a rank correlation of {first['within']:.2f}, those of two targets {first['between']:.2f} (p = "
            f"{first['p']:.3f})."
        )
        if "group" in first:
            verdict = {1: "is hurt more", -1: "is hurt less", 0: "was not shown to be hurt more"}[sign(first["difference"])]
            sentence += (
                f" The target's own group {verdict} than the rest: {said(first['group'])} against {said(first['rest'])} "
                "points, a "
                f"difference of {said(first['difference'])}."
            )
        return {"sentence": sentence, "methods": found, "concepts": list(self.others), "records": records(found, self.others)}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        method = self.methods[0]
        profiles = numbers["methods"][method]["profiles"]
        order = numbers["methods"][method]["order"]
        fig, (ax,) = figure(max(8.0, 0.085 * len(order)), 1.4 + 0.28 * len(profiles))
        values = [[profiles[row][i] for i in order] for row in profiles]
        limit = max(1.0, max(abs(v) for row in values for v in row))
        drawn = ax.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_yticks(range(len(profiles)), [row.replace("|", ", seed ") for row in profiles], fontsize=8)
        names = [numbers["concepts"][i] for i in order]
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        fig.colorbar(drawn, ax=ax, label="fall of the image-text score", shrink=0.9)
        ax.set_title(f"What {method} does to every other concept, concepts in the order of their groups", fontsize=10)
        return fig


def compare(profiles: Profiles, names: Sequence[str], groups: Mapping[str, str]) -> dict[str, Any]:
    """Whether profiles of one target are more alike than profiles of two, and the contrast of groups where there are any."""
    keys = list(profiles)
    broken = [n for i, n in enumerate(names) if any(profiles[k][i] != profiles[k][i] for k in keys)]
    if broken:
        raise EvaluationError(f"no image of {broken[0]!r} could be scored after an erasure: the profiles cannot be compared.")
    alike = [[spearman(profiles[a], profiles[b]) for b in keys] for a in keys]
    within, between, p = grouping_test(alike, [t for t, _ in keys])
    order = sorted(range(len(names)), key=lambda i: (groups.get(names[i], ""), names[i]))
    return {
        "within": within,
        "between": between,
        "p": p,
        **(contrast(profiles, names, groups) or {}),
        "order": order,
        "profiles": {f"{t}|{s}": list(v) for (t, s), v in profiles.items()},
    }


def contrast(profiles: Profiles, names: Sequence[str], groups: Mapping[str, str]) -> dict[str, Any] | None:
    """Mean damage inside the target's group, outside, and the difference; None without groups."""
    trees = {key: Tree() for key in ("group", "rest", "difference")}
    for (target, seed), values in profiles.items():
        inside = [v for n, v in zip(names, values, strict=True) if n in groups and groups[n] == groups.get(target)]
        outside = [v for n, v in zip(names, values, strict=True) if n in groups and groups[n] != groups.get(target)]
        if not inside or not outside:
            continue
        mean = sum(outside) / len(outside)
        for key, got in (("group", inside), ("rest", outside), ("difference", [v - mean for v in inside])):
            trees[key].put(Erasure("", target, seed), got)
    return {key: nested(tree) for key, tree in trees.items()} if trees["group"] else None


def records(found: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"method": method, "target": row.partition("|")[0], "seed": int(row.partition("|")[2]), "concept": n, "drop": v}
        for method, numbers in found.items()
        for row, values in numbers.get("profiles", {}).items()
        for n, v in zip(names, values, strict=True)
    ]
