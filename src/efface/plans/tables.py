"""Records of a bench as flat rows: one per image, and one per cell. Plain Python, without torch and without a database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import BadFile
from ..evaluation.attacked import summarise_attacks
from ..evaluation.records import TARGET_AXES, AttemptRow
from .plan import BASE
from .records import FINISHED, Store

RECORD_COLUMNS = {
    "plan": "VARCHAR",
    "cell": "VARCHAR",
    "kind": "VARCHAR",
    "model": "VARCHAR",
    "model_digest": "VARCHAR",
    "entrant": "VARCHAR",
    "targets": "VARCHAR",
    "target": "VARCHAR",
    "train_seed": "INTEGER",
    "strength": "DOUBLE",
    "axis": "VARCHAR",
    "attack": "VARCHAR",
    "role": "VARCHAR",
    "tier": "VARCHAR",
    "stage": "VARCHAR",
    "case_id": "VARCHAR",
    "prompt": "VARCHAR",
    "seed": "BIGINT",
    "concept": "VARCHAR",
    "valid": "BOOLEAN",
    "invalid_reason": "VARCHAR",
    "detected": "VARCHAR",
    "p": "DOUBLE",
    "clip_t": "DOUBLE",
    "clip_i": "DOUBLE",
    "hit": "BOOLEAN",
    "base_hit": "BOOLEAN",
    "success": "BOOLEAN",
}
"""Columns of one image, with DuckDB's types. ``kind`` is evaluation or attack; ``hit``: the image is valid and shows ``concept``;
``base_hit``: the unmodified model shows it too, so that the row counts in rates; ``success``: the target is erased and the image
valid, the concept is preserved, or, of an attack, the target is back."""
CELL_COLUMNS = {
    "plan": "VARCHAR",
    "cell": "VARCHAR",
    "kind": "VARCHAR",
    "status": "VARCHAR",
    "error": "VARCHAR",
    "model": "VARCHAR",
    "entrant": "VARCHAR",
    "targets": "VARCHAR",
    "target": "VARCHAR",
    "train_seed": "INTEGER",
    "strength": "DOUBLE",
    "attack": "VARCHAR",
    "role": "VARCHAR",
    "evaluations": "BIGINT",
    "images": "INTEGER",
    "parameters": "BIGINT",
    "seconds": "DOUBLE",
    "host": "VARCHAR",
}
"""Columns of one cell. ``evaluations``: UNet evaluations that it spent; ``parameters``: numbers that a patch changes. A cell that
was not run yet has the status "open"."""


@dataclass(frozen=True)
class Placed:
    """A record at one of its places in a plan."""

    plan: str
    place: Mapping[str, Any]
    record: Mapping[str, Any] | None
    """None where the cell has not run."""

    @property
    def finished(self) -> bool:
        return self.record is not None and self.record["status"] == FINISHED

    @property
    def facts(self) -> dict[str, Any]:
        """Of an attack: what :func:`efface.evaluation.attacked.summarise_attacks` must know beside its rows."""
        return {**self.result["facts"], "role": self.place["role"]}

    @cached_property
    def broken(self) -> dict[str, bool]:
        """Of an attack: case -> whether it is broken, of the cases that count and are decided; see
        :func:`efface.evaluation.attacked.summarise_attacks`."""
        label = self.place["attack"]
        rows = {label: [AttemptRow(attack=label, **r) for r in self.result["attempts"]]}
        found: dict[str, bool] = summarise_attacks(rows, {label: self.facts}, {label: ()})["attacks"][label]["cases"]
        return found

    @property
    def result(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.record["result"] if self.record is not None and self.finished else {}
        return found


@dataclass(frozen=True)
class Bench:
    """A folder of a bench as it can be read: every plan with its places and their records."""

    plans: dict[str, dict[str, Any]]
    placed: list[Placed] = field(default_factory=list)

    @staticmethod
    def read(store: Store) -> Bench:
        """Raises BadFile where the folder holds no bench or a damaged one."""
        plans = {p["name"]: p for p in store.plans()}
        records = store.records()
        try:
            placed = [Placed(n, place, records.get(place["key"])) for n, p in plans.items() for place in p["places"]]
        except (KeyError, TypeError) as error:
            raise BadFile(f"a plan in {store.folder / 'plans'} is damaged: {error!r}.") from error
        return Bench(plans, placed)

    def of(self, kind: str, plan: str | None = None) -> list[Placed]:
        """Finished cells of a kind."""
        return [p for p in self.placed if p.finished and p.place["kind"] == kind and plan in (None, p.plan)]


def _spot(p: Placed) -> tuple[Any, ...]:
    return p.plan, p.place["model"], tuple(p.place["targets"])


def shows(row: Mapping[str, Any]) -> bool:
    """As :attr:`efface.evaluation.records.Row.hit`, of a row as it is kept."""
    return bool(row["valid"] and row["detected"] == row["concept"])


def base_hits(bench: Bench) -> dict[tuple[Any, ...], dict[str, bool]]:
    """(plan, model, targets) -> case -> whether the unmodified model shows what the case asks for."""
    return {
        _spot(p): {r["case_id"]: shows(r) for r in p.result["rows"]} for p in bench.of("evaluate") if p.place["entrant"] == BASE
    }


def record_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """One row per image of every finished evaluation and attack; see :data:`RECORD_COLUMNS`."""
    base = base_hits(bench)
    for p in bench.placed:
        if not p.finished or p.place["kind"] == "erase":
            continue
        assert p.record is not None
        place = p.place
        common = {
            "plan": p.plan,
            "cell": place["key"],
            "model": place["model"],
            "model_digest": p.record["inputs"]["model"],
            "entrant": place["entrant"],
            "targets": "; ".join(place["targets"]),
            "target": place["target"],
            "train_seed": place["seed"],
            "strength": place["strength"],
            "attack": place["attack"] or None,
            "role": place["role"] or None,
        }
        if place["kind"] == "evaluate":
            known = base.get(_spot(p), {})
            for r in p.result["rows"]:
                hit = shows(r)
                success = r["valid"] and not hit if r["axis"] in TARGET_AXES else hit
                told = {**r, "kind": "evaluation", "hit": hit, "base_hit": known.get(r["case_id"]), "success": bool(success)}
                yield {c: {**common, **told}.get(c) for c in RECORD_COLUMNS}
        else:
            facts = p.result["facts"]
            for r in p.result["attempts"]:
                hit = shows(r)
                success = hit and (r["base_hit"] or facts["gate"] != "own")
                told = {**r, "kind": "attack", "tier": facts["tier"], "hit": hit, "success": success}
                yield {c: {**common, **told}.get(c) for c in RECORD_COLUMNS}


def cell_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """One row per place of a cell; see :data:`CELL_COLUMNS`."""
    for p in bench.placed:
        place, record, result = p.place, p.record, p.result
        images = len(result.get("rows") or result.get("attempts") or ())
        cost = result.get("cost", {})
        spent = cost.get("forward", 0) + (cost.get("backward", 0) if place["kind"] == "attack" else 0)
        told = {
            "plan": p.plan,
            "cell": place["key"],
            "kind": place["kind"],
            "status": record["status"] if record is not None else "open",
            "error": record.get("error") if record is not None else None,
            **{k: place[k] for k in ("model", "entrant", "target", "strength", "attack", "role")},
            "targets": "; ".join(place["targets"]),
            "train_seed": place["seed"],
            "evaluations": images * result["evals_per_image"] if "evals_per_image" in result else spent,
            "images": images,
            "parameters": result.get("parameters"),
            "seconds": record["run"]["seconds"] if record is not None else None,
            "host": record["run"]["host"] if record is not None else None,
        }
        yield {c: told.get(c) for c in CELL_COLUMNS}
