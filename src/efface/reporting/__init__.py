"""One self-contained HTML page from an evaluation on disk.

Reads only what :mod:`efface.evaluation.records` describes, so a report can be made again years later, on a machine without
torch and without the model. The page needs no script and loads nothing: images are data URIs, plots are inline SVG.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import BadFile
from ..evaluation.records import RECORD_VERSION, RunFile, read_attack, read_damage, read_gold, read_run, read_summary
from ..io.files import write_text
from .measured import measured
from .model_card import Publication, copy_records, write_card
from .verdict import DEFAULTS, Limits
from .view import page

if TYPE_CHECKING:
    from ..patches import Patch

__all__ = ["DEFAULTS", "Limits", "Publication", "attack_on", "write_model_card", "write_report"]


def write_report(folder: Path, out: Path, attacks: Sequence[Path] = (), limits: Limits = DEFAULTS) -> Path:
    """Write the report of the evaluation in ``folder`` to the file ``out`` and return ``out``.

    attacks: folders of attacks on what was evaluated, which the verdict then rests on as well; limits: where the verdict changes.
    Raises BadFile when the folder is not an evaluation that this version of efface understands, or an attack is one on something
    else.
    """
    folder, out = Path(folder), Path(out)
    records = read_records(folder, attacks)
    with _of_an_evaluation(folder):
        context = page(*records[:3], folder / "images", records[3], limits)
    # Autoescape is a plain True: jinja's select_autoescape goes by suffix and would not recognise ".html.j2".
    loader = PackageLoader("efface.reporting", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("template.html.j2").render(page=context)
    # JSON can carry lone surrogates, UTF-8 cannot: a prompt must not be able to make the report fail.
    write_text(out, text.encode("utf-8", "replace").decode("utf-8"))
    return out


def write_model_card(
    folder: Path, out: Path, patch: Patch, facts: Publication, attacks: Sequence[Path] = (), limits: Limits = DEFAULTS
) -> Patch:
    """Write README.md, ``.eval_results``, the records and the picture into the folder ``out``, and return the patch with its
    measurements on its card; see :mod:`efface.reporting.model_card`. Raises BadFile as :func:`write_report`, and where the
    evaluation is of another patch."""
    folder, out = Path(folder), Path(out)
    run, summary, damage, tried = read_records(folder, attacks)
    with _of_an_evaluation(folder):
        numbers = measured(folder, run, summary, damage, tried, patch.digest())
        context = page(run, summary, damage, folder / "images", tried, limits)
        patch = replace(patch, card=replace(patch.card, measured=numbers))
        write_card(out, patch, run, context, facts, folder)
    copy_records(folder, [Path(a) for a in attacks], out / "records")
    return patch


Records = tuple[RunFile, dict[str, Any], dict[str, Any] | None, list[dict[str, Any]]]


def read_records(folder: Path, attacks: Sequence[Path] = ()) -> Records:
    """An evaluation: its run, its summary, with ``gold`` where there is a gold model, its search for damage, and summaries of the
    attacks. Raises BadFile for another
    version, and for an attack on something else."""
    run, summary = read_run(folder), read_summary(folder)
    for name, version in (("run.json", run.record_version), ("summary.json", _version(summary))):
        if version != RECORD_VERSION:
            problem = f"{folder / name} has record version {version}, this efface reads {RECORD_VERSION}"
            raise BadFile(f"{problem}; use the efface that wrote it.")
    with _of_an_evaluation(folder):
        return run, {**summary, "gold": read_gold(folder)}, read_damage(folder), [attack_on(run, Path(a)) for a in attacks]


@contextlib.contextmanager
def _of_an_evaluation(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{folder} does not hold the records of an efface evaluation ({error!r}).") from error


def attack_on(run: RunFile, folder: Path) -> dict[str, Any]:
    """The summary of an attack. Raises BadFile where it is not one on the patch, guard and model of the evaluation."""
    facts, summary = read_attack(folder)
    subject = next((e for e in run.entrants if e.kind in ("patch", "guard")), None)
    card = (subject.card or {}) if subject is not None else {}
    evaluated = {"model": run.model.get("digest"), "patch": card.get("digest")}
    attacked = {key: facts.get(key) for key in evaluated}
    guarded = subject is not None and str(facts.get("guard") or "") in ("", subject.id, subject.id.rpartition("+")[2])
    guarded = guarded and (facts.get("guard") is not None) == (
        subject is not None and ("+" in subject.id or subject.kind == "guard")
    )
    if attacked != evaluated or facts.get("target") not in run.targets or not guarded:
        raise BadFile(f"{folder} attacks another patch, guard, model or target than the evaluation measured.")
    return summary


def _version(summary: object) -> object:
    return summary.get("record_version") if isinstance(summary, dict) else None
