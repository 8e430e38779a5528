"""The page of a published erasure: README.md as the Hub and diffusers know it, evaluation results as data, records, a picture.

Everything in it comes from the records, in the words of the report; nothing that was not measured appears as a number.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..concepts.request import OBJECT
from ..errors import BadOption
from ..evaluation.records import AXES, RunFile, axes_of
from ..io.files import write_text
from .wording import RateText

if TYPE_CHECKING:
    from ..patches import Patch

LICENCES = {
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    **dict.fromkeys(("mini", "mini-gold", "mini-flow", "mini-flow-gold", "tiny", "tiny-v", "tiny-xl", "tiny-sd3"), "apache-2.0"),
}
"""Licences of base models, which what is made of them inherits; of others the publisher names it."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICTURE = "before-after.png"
SHOWN = {"direct": 4, "near": 4}
"""Cases of the picture by axis."""
PATCH = "efface_patch.safetensors"
"""The name under which :func:`efface.load_patch` finds the patch of a repository."""
FILES = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "kohya.safetensors",
    "diff": "diff.safetensors",
    "folder": "pipeline",
    "single-file": "checkpoint.safetensors",
}
"""What exports are called there; the first is the name that ``load_lora_weights`` of diffusers looks for."""


@dataclass(frozen=True)
class Publication:
    """What the publisher says and no record knows."""

    base_model: str = ""
    """Hub id of the base model; "" where its name is one, or where there is none."""
    licence: str = ""
    """Hub name of the licence; "" for that of the base model, where it is known."""
    exports: tuple[str, ...] = ()
    pictures: bool = True
    """Whether the page shows images before and after; leave them out where the target must not be shown."""

    def of(self, patch: Patch) -> tuple[str, str]:
        """(Hub id of the base or "", licence). Raises BadOption for an id that is none, and for a licence that is not known."""
        name = str(patch.card.base.get("name"))
        base = self.base_model or (name if HUB_ID.fullmatch(name) and not Path(name).exists() else "")
        if base and not HUB_ID.fullmatch(base):
            raise BadOption(f"--base-model {base!r} is no Hub id of the form OWNER/NAME.")
        licence = self.licence or LICENCES.get(base or name, "")
        if not licence:
            raise BadOption(
                f"the licence of {base or name} is not known here, and what is made of it inherits it: name it with --license, "
                "such as creativeml-openrail-m, openrail++ or apache-2.0."
            )
        return base, licence


def write_card(out: Path, patch: Patch, run: RunFile, page: Mapping[str, Any], facts: Publication, folder: Path) -> None:
    """README.md, ``.eval_results/efface.yaml`` and the picture of a folder that is published. ``page``: the report's context."""
    from huggingface_hub import ModelCardData

    base, licence = facts.of(patch)
    out.mkdir(parents=True, exist_ok=True)
    shown = facts.pictures and _picture(folder, run, page["subject"].id, out / PICTURE)
    lora = [to for to in facts.exports if to in ("diffusers", "kohya")]
    data = ModelCardData(
        base_model=base or None,
        library_name="diffusers",
        license=licence,
        pipeline_tag="text-to-image",
        tags=["concept-erasure", "efface", "safetensors", *(["lora"] if lora else []), patch.card.method],
        model_name=str(page["title"]),
        eval_results=_results(run, patch),
    )
    environment = Environment(
        loader=PackageLoader("efface.reporting", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["md"] = md
    text = environment.get_template("model_card.md.j2").render(
        page=page,
        patch=patch,
        base=base or published(str(patch.card.base.get("name"))),
        on_hub=bool(base),
        files={to: FILES[to] for to in facts.exports},
        patch_file=PATCH,
        picture=PICTURE if shown else "",
        untested=untested(run, page),
        axes=[a for a in AXES if a in dict.fromkeys(name for name, _, _ in page["axes"])],
        about=AXES,
        cell=_cell,
        attacked=[{**a, **_lost(a)} for a in page["attacks"]],
    )
    body = f"---\n{data.to_yaml().strip()}\n---\n\n{text}"
    write_text(out / "README.md", body.encode("utf-8", "replace").decode("utf-8"))
    _write_results(out / ".eval_results" / "efface.yaml", run, patch)


def md(text: object) -> str:
    """A name or a prompt inside a line of Markdown: no markup, no table border, no HTML, no line break of its own."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", plain).replace("<", "&lt;").replace(">", "&gt;")


def _cell(r: RateText) -> str:
    """A rate with its interval and its counts."""
    if r.measured is None:
        return "not measured"
    value, low, high = (f"{100 * x:.0f}" for x in r.measured)
    return f"{value}% [{low}, {high}] ({r.k}/{r.n}{f', {r.invalid} invalid' if r.invalid else ''})"


def _lost(attack: Mapping[str, Any]) -> dict[str, str]:
    """Whether the attack itself brought the target back, in a word and by its counts."""
    row = next(r for r in attack["rows"] if r["role"] == "attack")
    verdict = "undecided" if not row["rate"].n else "lost" if row["rate"].k else "survived"
    return {"verdict": verdict, "broken": _cell(row["rate"])}


def untested(run: RunFile, page: Mapping[str, Any]) -> list[str]:
    """What the numbers say nothing about, one sentence each."""
    axes = {name for name, _, _ in page["axes"]}
    lacking = [f"{axis} ({AXES[axis]})" for axis in axes_of(run.suite.get("kind", OBJECT)) if axis not in axes]
    steps, guidance = run.profile["steps"], run.profile["guidance"]
    told = [f"No case of these kinds was drawn: {'; '.join(lacking)}."] if lacking else []
    if not page["attacks"]:
        told.append("No attack was tried. Whether somebody who tries can bring the target back is not known.")
    if page["damage"] is None:
        told.append("Nobody searched for what else the erasure broke.")
    return [
        *told,
        f"Everything was drawn with {steps} DDIM steps at guidance {guidance:g}, and with no other sampler, steps or scale.",
        "Fine-tuning, other LoRAs beside it, merging and quantisation were not tried.",
        "Other base models, fine-tunes of this one included, were not measured.",
    ]


def _results(run: RunFile, patch: Patch) -> list[Any]:
    """Results in the older form, which the Hub keeps in the head of README.md."""
    from huggingface_hub import EvalResult

    kept = patch.card.measured["evaluation"]
    return [
        EvalResult(
            task_type="text-to-image",
            task_name="Concept erasure",
            dataset_type="efface",
            dataset_name=f"efface cases, profile {kept['profile']['name']}",
            metric_type=f"{axis}_{r['measure']}",
            metric_name=f"{axis}: {r['measure']} ({r['k']} of {r['n']}, 95 % interval {r['low']:.3f} to {r['high']:.3f})",
            metric_value=r["k"] / r["n"],
            verified=False,
        )
        for axis, r in kept["rates"].items()
        if r["n"]
    ]


def _write_results(path: Path, run: RunFile, patch: Patch) -> None:
    """Results in the current form, one entry per axis. They belong to no data set of the Hub; the notes say so."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from yaml import safe_dump

    kept = patch.card.measured["evaluation"]
    entries = [
        EvalResultEntry(
            dataset_id=f"efface/cases-{kept['profile']['name']}",
            task_id=f"{axis}_{r['measure']}",
            value=r["k"] / r["n"],
            date=run.created,
            notes=f"{r['k']} of {r['n']}, 95 % interval {r['low']:.4f} to {r['high']:.4f}; efface's own cases, which are no data "
            "set of the Hub: prompts and seeds are in records/evaluation/rows.jsonl",
        )
        for axis, r in kept["rates"].items()
        if r["n"]
    ]
    write_text(path, safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))


def copy_records(folder: Path, attacks: Sequence[Path], out: Path) -> None:
    """The records without their images, so that every number can be computed again."""
    for source, target in [(folder, out / "evaluation"), *((a, out / f"attack-{i}") for i, a in enumerate(attacks, 1))]:
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir()):
            if file.name == "run.json":
                _without_paths(file, target / file.name)
            elif file.suffix in (".json", ".jsonl"):
                shutil.copyfile(file, target / file.name)


def published(name: str) -> str:
    """What the world may know of a model's name: the last part of a path of the publisher's machine."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _without_paths(file: Path, target: Path) -> None:
    """run.json without the command line that was typed, and with the model's name as the world may know it."""
    facts = json.loads(file.read_text("utf-8"))
    facts.get("profile", facts).pop("command", None)
    if isinstance(facts.get("model"), dict):
        facts["model"]["name"] = published(str(facts["model"].get("name")))
    for entrant in facts.get("entrants", ()):
        if entrant.get("card"):
            base = entrant["card"]["base"]
            base["name"] = published(str(base.get("name")))
    facts["detectors"] = _named(facts.get("detectors", {}))
    write_text(target, json.dumps(facts, indent=1))


def _named(value: Any) -> Any:
    """The same data, in which every absolute path is its last part."""
    if isinstance(value, dict):
        return {k: _named(v) for k, v in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _picture(folder: Path, run: RunFile, entrant: str, path: Path) -> bool:
    """Cases before (upper row) and after (lower row) as one picture; False where no image was kept."""
    import io

    from PIL import Image

    from ..io.files import atomic_write

    root = (folder / "images").resolve()
    pairs = []
    for axis, count in SHOWN.items():
        for case in [c for c in run.grid if c["axis"] == axis][:count]:
            files = [(root / who / f"{case['case_id']}.png").resolve() for who in ("none", entrant)]
            if all(f.is_relative_to(root) and f.is_file() for f in files):
                pairs.append([Image.open(f).convert("RGB") for f in files])
    if not pairs:
        return False
    side = min(256, max(96, *(image.width for pair in pairs for image in pair)))
    sheet = Image.new("RGB", (side * len(pairs), 2 * side), "white")
    for i, pair in enumerate(pairs):
        for j, image in enumerate(pair):
            sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), (side * i, side * j))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)

    def write(temporary: Path) -> None:
        temporary.write_bytes(buffer.getvalue())

    atomic_write(path, write)
    return True
