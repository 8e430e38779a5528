"""Where in the spectrum of damage do the neutral concepts lie, and are the names that look worst really the worst?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..equations.statistics import spearman
from ..evaluation.scan import Probe
from .base import Study, Tree, nested, said
from .figures import COLOURS, figure
from .lab import Distances, Erasure, Lab, Want, mean_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEUTRAL = ("", "a photo", "a picture", "an icon")
WORST = 20
PROBE = Probe(trajectories=1)


class Spectrum(Study):
    """Measures the damage to every name of the concept space and looks up where the neutral concepts stand.

    Damage is the mean squared difference of the noise predictions of the erased and the unmodified model. A percentile of 0
    is the concept that is hurt least, 100 the one that is hurt most. The space is scanned twice, on latents of two disjoint
    sets of seeds. The names that are worst in the first scan are looked up in the second one, which shows how much of their
    damage was chance. Where ``images`` are asked for, the study also gives the rank correlation of this damage with the
    damage in images.
    """

    name = "spectrum"
    question = "where do neutral concepts lie in the spectrum of damage?"
    default_methods = ("naive",)

    def scans(self, e: Erasure) -> list[Distances]:
        return [Distances(e, (*self.names, *self.neutral), seed, PROBE) for seed in (0, 1)]

    @property
    def neutral(self) -> tuple[str, ...]:
        return tuple(n for n in NEUTRAL if n not in self.names)

    def wants(self, lab: Lab) -> Sequence[Want]:
        found: list[Want] = [self.scan(e) for e in self.erasures]
        return [*found, *(w for e in self.erasures for w in self.scans(e))]

    def conclude(self, lab: Lab) -> dict[str, Any]:
        found: dict[str, Any] = {}
        records = []
        for method in self.methods:
            spectra: dict[str, list[float]] = {}
            percentile = {n: Tree() for n in self.neutral}
            trees = {k: Tree() for k in ("neutral", "group", "kept", "a_b", "images")}
            for e in self.of(method):
                a, b = (lab.distances(w).mean(1).tolist() for w in self.scans(e))
                drop, t = mean_rows(lab.drops(self.scan(e))), e.target
                rest = [i for i, n in enumerate(self.names) if n != t]
                both = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
                spread = [both[i] for i in rest]
                for n, value in zip(self.neutral, both[len(self.names) :], strict=True):
                    percentile[n].put(e, [below(value, spread)])
                    trees["neutral"].put(e, [below(value, spread)])
                mates = [i for i in rest if lab.groups.get(t) and lab.groups.get(self.names[i]) == lab.groups[t]]
                if mates:
                    trees["group"].put(e, [below(both[i], spread) for i in mates])
                worst = sorted(rest, key=lambda i: -a[i])[:WORST]
                middle = [float(torch.tensor([x[i] for i in rest]).median()) for x in (a, b)]
                excess = sum(a[i] - middle[0] for i in worst)
                if excess > 0:
                    trees["kept"].put(e, [100 * sum(b[i] - middle[1] for i in worst) / excess])
                trees["a_b"].put(e, [spearman([a[i] for i in rest], [b[i] for i in rest])])
                trees["images"].put(e, [spearman(spread, [drop[i] for i in rest])])
                if e.seed == self.seeds[0]:
                    spectra[t] = both
                records += [
                    {"method": method, "target": t, "seed": e.seed, "concept": n, "a": x, "b": y}
                    for n, x, y in zip((*self.names, *self.neutral), a, b, strict=True)
                ]
            found[method] = {
                "percentile": {n: nested(tree) for n, tree in percentile.items()},
                **{k: nested(tree) for k, tree in trees.items()},
                "spectra": spectra,
            }
        first = found[self.methods[0]]
        where, group = first["neutral"], said(first["group"], 0) if trees["group"] else "none given"
        in_the_middle = where["low"] is not None and where["low"] < 50 < where["high"]
        sentence = (
            f"With {self.methods[0]}, the neutral concepts stand at percentile {said(where, 0)} of the damage over "
            f"{len(self.names)} names; 50, the exact middle, is {'inside' if in_the_middle else 'outside'} the interval. The "
            f"target's group stands at {group}. The {WORST} names that are worst on one set of latents keep "
            f"{said(first['kept'], 0)} % of their excess on another set. The rank correlation of damage in noise "
            "predictions with "
            f"damage in images is {said(first['images'], 2)}."
        )
        numbers = {"sentence": sentence, "methods": found, "concepts": list(self.names), "neutral": list(self.neutral)}
        return {**numbers, "records": records}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        from matplotlib.ticker import NullFormatter

        spectra = numbers["methods"][self.methods[0]]["spectra"]
        columns = min(2, len(spectra))
        rows = -(-len(spectra) // columns)
        fig, axes = figure(4.2 * columns, 2.3 * rows, rows, columns)
        for ax, (target, values) in zip(axes, spectra.items(), strict=False):
            n = len(numbers["concepts"])
            own = [v for v, name in zip(values[:n], numbers["concepts"], strict=True) if name != target]
            edges = torch.logspace(*(float(torch.tensor(f(own)).log10()) for f in (min, max)), 25).tolist()
            ax.hist(own, bins=edges, color="#b9c7dd")
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
            top = ax.get_ylim()[1]
            for k, name in enumerate(numbers["neutral"]):
                colour = COLOURS[(k + 1) % len(COLOURS)]
                ax.plot([values[n + k]] * 2, [0, top * (0.95 - 0.1 * k)], color=colour, label=name or "(empty)")
            ax.set_title(f"erased: {target}", fontsize=9)
            ax.set_xlabel("change of the noise prediction", fontsize=8)
        for ax in axes[len(spectra) :]:
            ax.set_axis_off()
        axes[0].legend(frameon=False, fontsize=7)
        return fig


def below(value: float, values: Sequence[float]) -> float:
    """Percentile of a value: 100 times the share of ``values`` below it, equal ones counting half."""
    return 100 * sum((v < value) + 0.5 * (v == value) for v in values) / len(values)
