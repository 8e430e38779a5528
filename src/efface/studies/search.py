"""Does the search find the concept that is really hurt most, and how long does it stay the worst?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..concepts.prompts import Case
from ..concepts.sensitive import sensitive
from ..concepts.spaces import distances
from ..equations.statistics import spearman
from ..errors import BadOption
from ..evaluation.scan import Probe
from ..io.images import decoded_png, encoded_png
from ..methods import AP
from .base import Study, Tree, nested, said, sign
from .figures import COLOURS
from .lab import Climb, Distances, Erasure, Lab, Want

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SNAPSHOTS = (0.1, 0.25, 0.5, 1.0)
"""Shares of the updates at which the model being erased is looked at."""
WINDOW = 0.1
"""Choices within this share of the updates before and after a snapshot are ranked there."""
PROBE = Probe(trajectories=1)
ASCENTS, RATE = 10, 0.05
PICTURE_SEED, PIXELS = 4242, 96


class SearchStudy(Study):
    """Compares what a search chooses with the candidate that is really damaged most.

    AP is run to 10, 25, 50 and 100 % of its updates, as one run that is cut off at four lengths. At each point the damage of
    every candidate is measured and ranked (percentile 100: the worst candidate). The study looks up where in this ranking
    stand what the Gumbel search chooses in the next updates, what it chose in the last updates (which is repaired by then),
    and the candidate nearest in the text encoder; a random choice stands at 50. The continuous search climbs from the
    target's embedding on the same models. Its damage is given as a multiple of the worst candidate's, together with the
    percentile of the candidate nearest to where it ends.

    How long a concept stays the worst is measured by the rank correlation of the damage at neighbouring points, and by how
    often the worst candidate stays the worst.
    """

    name = "search"
    question = "does the search find the most damaged concept, and does it stay the worst?"
    default_methods = ("ap",)
    default_targets = 2

    def _steps(self, lab: Lab) -> list[int]:
        method = lab.make(Erasure(self.methods[0], self.targets[0], self.seeds[0]))
        if not isinstance(method, AP) or method.search.name != "gumbel":
            raise BadOption(f"study search follows the Gumbel search of AP; {self.methods[0]!r} has none. Use --method ap.")
        return sorted({max(1, round(share * method.steps)) for share in SNAPSHOTS})

    def _runs(self, lab: Lab) -> list[list[Erasure]]:
        """Per target and seed: the run cut off at each snapshot; the whole run is the row's own patch."""
        steps, row = self._steps(lab), self.methods[0]
        return [
            [*(Erasure(f"{row}@{k}", t, s, row, (("steps", k),)) for k in steps[:-1]), Erasure(row, t, s)]
            for t in self.targets
            for s in self.seeds
        ]

    def _candidates(self, lab: Lab, e: Erasure) -> tuple[str, ...]:
        method = lab.make(e)
        assert isinstance(method, AP)
        return method.search.candidates(lab.model, lab.request(e))[0]

    def wants(self, lab: Lab) -> Sequence[Want]:
        found: list[Want] = []
        for run in self._runs(lab):
            names = self._candidates(lab, run[-1])
            found += [Distances(e, names, 0, PROBE) for e in run]
            found += [Climb(e, 0, PROBE, ASCENTS, RATE) for e in run]
        return found

    def conclude(self, lab: Lab) -> dict[str, Any]:
        steps = self._steps(lab)
        ways = (
            "gumbel, next",
            "gumbel, just preserved",
            "nearest in text",
            "continuous, nearest candidate",
            "continuous, times the worst",
        )
        trees = {w: {k: Tree() for k in steps} for w in ways}
        stable, stays = Tree(), Tree()
        records, films = [], []
        for run in self._runs(lab):
            whole, t = run[-1], run[-1].target
            names = self._candidates(lab, whole)
            log = lab.patch(whole).card.log["adversarial"]
            rows = lab.model.encode([t, *names]).tokens
            nearest = names[int(distances(rows[0], rows[1:], "cosine").argmin())]
            spectra = [lab.distances(Distances(e, names, 0, PROBE)).mean(1).tolist() for e in run]
            for k, e, damage in zip(steps, run, spectra, strict=True):
                percentile = {n: 100 * sum(d < damage[i] for d in damage) / (len(names) - 1) for i, n in enumerate(names)}
                reach = max(1, WINDOW * steps[-1])
                recent = [entry["concept"] for entry in log if k - reach <= entry["step"] < k]
                coming = [entry["concept"] for entry in log if k <= entry["step"] < k + reach]
                climb = lab.climbed(Climb(e, 0, PROBE, ASCENTS, RATE))
                end = names[int(distances(climb["embedding"].to(rows), rows[1:], "cosine").argmin())]
                got = {
                    ways[0]: [percentile[n] for n in coming],
                    ways[1]: [percentile[n] for n in recent],
                    ways[2]: [percentile[nearest]],
                    ways[3]: [percentile[end]],
                    ways[4]: [float(climb["damage"][-1]) / max(damage)],
                }
                for way, values in got.items():
                    trees[way][k].put(e, values)
                worst = max(percentile, key=percentile.__getitem__)
                records.append(
                    {
                        "target": t,
                        "seed": e.seed,
                        "step": k,
                        "worst": worst,
                        "preserved": recent,
                        "next": coming,
                        "nearest": nearest,
                        "climbed_to": end,
                        "damage": dict(zip(names, damage, strict=True)),
                    }
                )
                if e.seed == self.seeds[0]:
                    films.append({"target": t, "step": k, "concept": worst, **self._pictures(lab, e, worst)})
            pairs = list(pairwise(spectra))
            stable.put(whole, [spearman(a, b) for a, b in pairs])
            stays.put(whole, [100.0 * (a.index(max(a)) == b.index(max(b))) for a, b in pairs])
        ranks = {way: {str(k): nested(tree) for k, tree in by_step.items()} for way, by_step in trees.items()}
        last = {way: found[str(steps[-1])] for way, found in ranks.items()}
        at = str(steps[-2]) if len(steps) > 1 else str(steps[-1])
        chosen = ranks["gumbel, next"][at]
        over = {k: chosen[k] - 50 if chosen[k] is not None else None for k in ("value", "low", "high")}
        verdict = {1: "better than chance", -1: "worse than chance", 0: "not shown to be better than chance"}[sign(over)]
        before = ranks["gumbel, just preserved"][at]
        sentence = (
            f"What the Gumbel search chooses next after update {at} stands at percentile {said(chosen, 0)} of the candidates' "
            f"damage there, which is {verdict} (50). What it has just preserved stands at {said(before, 0)}, the "
            "candidate nearest "
            f"in the text encoder at {said(ranks['nearest in text'][at], 0)}. The worst candidate is still the worst at the next "
            f"point in {said(nested(stays), 0)} % of cases (rank correlation {said(nested(stable), 2)}). At the end the "
            "continuous "
            f"search reaches {said(last[ways[4]], 1)} times the worst candidate's damage, at an embedding whose nearest "
            "candidate "
            f"stands at percentile {said(last[ways[3]], 0)}."
        )
        numbers = {"sentence": sentence, "steps": steps, "ranks": ranks, "stable": nested(stable), "stays": nested(stays)}
        return {**numbers, "films": films, "records": records}

    def _pictures(self, lab: Lab, e: Erasure, concept: str) -> dict[str, str]:
        """The concept by the base model and by the model being erased, from one start latent, as base64 PNG."""
        case = [Case("film", concept, concept, PICTURE_SEED, lab.profile.guidance)]
        before = lab.model.sample(case, lab.profile.steps)
        with lab.patch(e).applied(lab.model):
            after = lab.model.sample(case, lab.profile.steps)
        hidden = sensitive([concept])
        return {who: encoded_png(i, PIXELS, hidden=hidden) for who, i in (("before", before), ("after", after))}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        from matplotlib.figure import Figure

        films = numbers["films"]
        targets = list(dict.fromkeys(f["target"] for f in films))
        fig = Figure(figsize=(8.5, 2.6 + 1.5 * len(targets)), layout="constrained")
        parts = fig.add_gridspec(2, 1, height_ratios=[2.6, 1.5 * len(targets)])
        above, below = fig.add_subfigure(parts[0]), fig.add_subfigure(parts[1])
        ax = above.add_subplot()
        ax.spines[["top", "right"]].set_visible(False)
        for i, way in enumerate(("gumbel, next", "gumbel, just preserved", "nearest in text", "continuous, nearest candidate")):
            x = [k * (1 + 0.02 * i) for k in numbers["steps"]]
            found = list(numbers["ranks"][way].values())
            known = [(at, v["value"]) for at, v in zip(x, found, strict=True) if v["value"] is not None]
            ax.plot(*zip(*known, strict=True), "o-", color=COLOURS[i], label=way)
            for at, v in zip(x, found, strict=True):
                if v["low"] is not None:
                    ax.plot([at, at], [v["low"], v["high"]], color=COLOURS[i])
        ax.axhline(50, color="#999999", linewidth=0.8, label="random")
        ax.set(ylim=(-3, 103), xlabel="updates", ylabel="percentile of damage")
        ax.legend(frameon=False, fontsize=8, ncols=4)
        for i, film in enumerate(films):
            cell = below.add_subplot(len(targets), len(numbers["steps"]), i + 1)
            cell.imshow(np.concatenate([np.asarray(decoded_png(film[w])) for w in ("before", "after")], axis=1))
            cell.set_axis_off()
            cell.set_title(f"{film['target']}, {film['step']}: {film['concept']}", fontsize=7)
        below.suptitle("the worst candidate, before and after", fontsize=8)
        return fig
