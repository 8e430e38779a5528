"""How does damage decay with the distance from the target in a graph of the concepts?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..equations.statistics import spearman
from .base import Study, Tree, nested, said, sign
from .figures import COLOURS, figure
from .lab import Lab, Want, mean_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBOURS, FARTHEST = 4, 4


class Locality(Study):
    """Measures damage by the distance from the target in a graph of concepts, after AGE's NetFive.

    Every concept is linked with the 4 concepts whose images by the unmodified model are most alike, according to the judge's
    image encoder. Damage is read by the number of links from the target; 4 stands for 4 and more. The study also gives the
    asymmetry ``|D - D^T| / |D|`` of the damage among the targets, and the rank correlation of damage and image similarity.
    """

    name = "locality"
    question = "does damage decay with the distance from the target?"
    default_methods = ("naive", "ap")

    def wants(self, lab: Lab) -> Sequence[Want]:
        return [self.scan(e) for e in self.erasures]

    def conclude(self, lab: Lab) -> dict[str, Any]:
        alike = similarity(lab.images(self.scan(None)).embedded)
        hops, place = links(alike, NEIGHBOURS), {n: i for i, n in enumerate(self.names)}
        found: dict[str, Any] = {}
        records = []
        for method in self.methods:
            by_hop: dict[int, Tree] = defaultdict(Tree)
            decay, slope = Tree(), Tree()
            among = torch.zeros(len(self.targets), len(self.targets))
            for e in self.of(method):
                drop, t = mean_rows(lab.drops(self.scan(e))), place[e.target]
                for n in self.names:
                    hop = min(int(hops[t, place[n]]), FARTHEST)
                    by_hop[hop].put(e, [drop[place[n]]])
                    records.append(
                        {"method": method, "target": e.target, "seed": e.seed, "concept": n, "links": hop, "drop": drop[place[n]]}
                    )
                rest = [place[n] for n in self.names if n != e.target]
                slope.put(e, [spearman([float(alike[t, i]) for i in rest], [drop[i] for i in rest])])
                near = [drop[i] for i in rest if hops[t, i] == 1]
                far = [drop[i] for i in rest if hops[t, i] >= FARTHEST]
                if near and far:
                    decay.put(e, [v - sum(far) / len(far) for v in near])
                among[self.targets.index(e.target)] += torch.tensor([drop[place[x]] for x in self.targets]) / len(self.seeds)
            size = float(among.norm())
            found[method] = {
                "hops": {str(h): nested(by_hop[h]) for h in sorted(by_hop)},
                "decay": nested(decay),
                "rank_correlation": nested(slope),
                "asymmetry": float((among - among.T).norm()) / size if len(self.targets) > 1 and size > 0 else None,
            }
        first = found[self.methods[0]]
        verdict = {1: "decays", -1: "grows", 0: "was not shown to decay"}[sign(first["decay"])]
        one = first["hops"].get("1")
        sentence = (
            f"With {self.methods[0]}, damage {verdict} with the distance from the target: a concept one link away loses "
            f"{said(one) if one else 'an unknown number of'} points, which is {said(first['decay'])} more than a concept "
            f"{FARTHEST} or more links away. The rank correlation of damage and image similarity is "
            f"{said(first['rank_correlation'], 2)}."
        )
        return {"sentence": sentence, "methods": found, "records": records}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        fig, (ax,) = figure(6.5, 3.6)
        for k, (method, found) in enumerate(numbers["methods"].items()):
            hops = {h: v for h, v in found["hops"].items() if v["value"] is not None}
            x = [int(h) + 0.08 * (k - len(numbers["methods"]) / 2) for h in hops]
            ax.plot(x, [v["value"] for v in hops.values()], "o-", color=COLOURS[k % len(COLOURS)], label=method)
            for at, v in zip(x, hops.values(), strict=True):
                if v["low"] is not None:
                    ax.plot([at, at], [v["low"], v["high"]], color=COLOURS[k % len(COLOURS)], linewidth=2)
        ax.axhline(0, color="#999999", linewidth=0.8)
        ax.set_xticks(range(FARTHEST + 1), ["target", *map(str, range(1, FARTHEST)), f"{FARTHEST}+"])
        ax.set_xlabel("links from the target in the graph of base images")
        ax.set_ylabel("fall of the image-text score")
        ax.legend(frameon=False)
        return fig


def similarity(embedded: Tensor) -> Tensor:
    """(n, n) cosine of the concepts' mean image embeddings; embedded: (n, s, d)."""
    mean = torch.nn.functional.normalize(embedded.double().mean(1), dim=-1)
    return mean @ mean.T


def links(alike: Tensor, neighbours: int) -> Tensor:
    """(n, n) least number of links between concepts, each linked with its most similar ones; n where there is no way."""
    n = len(alike)
    nearest = (alike - 2 * torch.eye(n, dtype=alike.dtype)).topk(min(neighbours, n - 1), dim=1).indices
    linked = torch.zeros(n, n, dtype=torch.bool).scatter(1, nearest, True)
    linked = linked | linked.T
    hops = torch.full((n, n), n)
    reached = torch.eye(n, dtype=torch.bool)
    for step in range(n):
        hops[reached & (hops == n)] = step
        reached = reached | (reached.float() @ linked.float() > 0)
    return hops
