"""``efface``: the command line. Every command calls the Python verbs; torch is imported inside commands only.

Exit codes: 0 ok, 1 error, 2 usage. ``--json`` prints one JSON object on standard output; progress goes to standard error.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from .errors import EffaceError, UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Efface(click.Group):
    """Turns errors of ours into one line and an exit code; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EffaceError as error:
            click.echo(f"efface: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("efface: stopped.", err=True)
            ctx.exit(1)


@click.group(cls=Efface, context_settings=CONTEXT)
@click.version_option(package_name="efface", prog_name="efface")
def main() -> None:
    """Erase concepts from text-to-image diffusion models, measure the erasure, and ship it as a small file."""


def _emit(as_json: bool, data: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(data) if as_json else text)


def _note(text: str) -> None:
    click.echo(text, err=True)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
model_option = click.option(
    "--model", "source", default="mini", show_default=True, help="mini, a diffusers folder, a checkpoint file or a Hub id."
)
guard_option = click.option(
    "--guard", default=None, metavar="NAME[:OPTION=VALUE,...]", help="Guard at sampling time: efface list guards."
)
space_option = click.option(
    "--space", default="auto", show_default=True, help="world, english, vocabulary, or a text file with one name per line."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
sampler_option = click.option("--profile", default="mini-lite", show_default=True, help="smoke, mini-lite or mini: sampler.")
clip_option = click.option(
    "--clip", default=None, help="CLIP checkpoint that names and scores images of models other than the miniature."
)
dtype_option = click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16.")


def _options(cls: Any, described: list[dict[str, Any]]) -> str:
    """Paper, options and presets of a method or an attack, from its dataclass."""
    rows = []
    for o in described:
        takes = " | ".join(o["choices"]) if o["choices"] else o["type"]
        only = f" Only with {o['needs']}." if o["needs"] else ""
        rows.append(f"  {o['name']} = {o['default']!r}\n      {o['help']} ({takes}).{only} Source: {o['source']}.")
    presets = "\n".join(
        f"  {p}: " + (", ".join(f"{k}={v}" for k, v in s.items()) or "the defaults") for p, s in cls.presets.items()
    )
    text = f"\b\nPaper: {cls.paper}\n\n\b\nOptions, given as --set name=value:\n" + "\n".join(rows)
    return text + f"\n\n\b\nPresets (without --preset: mini on the miniature, else paper):\n{presets}"


class Methods(click.Group):
    """One subcommand per method; its help lists the method's own options from its dataclass."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from .methods import METHODS, ROWS

        return [*METHODS, *ROWS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from .registry import describe, method_class, summary

        cls = method_class(name)
        text = f"{summary(name)}.\n\n{_options(cls, describe(cls))}"
        return click.Command(name, callback=_erase.callback, params=_erase.params, help=text, short_help=summary(name))


@main.command("erase", cls=Methods, context_settings=CONTEXT)
def erase_group() -> None:
    """Erase concepts: efface erase METHOD --target NAME --out FILE."""


@click.command()
@model_option
@click.option("--target", "targets", multiple=True, required=True, help="Concept to erase; repeat for several.")
@click.option("--anchor", default="", help="What the target becomes; default: the empty prompt.")
@click.option("--preserve", multiple=True, help="Concept to keep; repeat for several.")
@click.option("--preset", default=None, help="Named set of options.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="One option of the method; repeat.")
@click.option("--config", type=click.Path(path_type=Path), default=None, help="TOML file of options.")
@click.option("--seed", type=int, default=None, help="Training seed.")
@device_option
@dtype_option
@click.option("--compile", "compiled", is_flag=True, help="Compile the network: slow to start, faster per step.")
@click.option("--checkpointing", is_flag=True, help="Compute activations again instead of storing them: less memory.")
@click.option("--autocast", default=None, help="Run the network in bfloat16 or float16; weights stay as loaded.")
@click.option("--resume", is_flag=True, help="Continue a stopped run bit-exactly from its checkpoint.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Patch file to write (.safetensors).")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
@click.pass_context
def _erase(
    ctx: click.Context,
    source: str,
    targets: tuple[str, ...],
    anchor: str,
    preserve: tuple[str, ...],
    preset: str | None,
    pairs: tuple[str, ...],
    config: Path | None,
    seed: int | None,
    device: str,
    dtype: str,
    compiled: bool,
    checkpointing: bool,
    autocast: str | None,
    resume: bool,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Body of every ``efface erase METHOD``; the method is the name of the command."""
    from . import api
    from .errors import BadOption
    from .models.load import load_model, pick_device
    from .registry import build_method, method_class, parse_set, read_toml
    from .training import processes as parallel
    from .training.loop import Run

    name = str(ctx.info_name)
    settings: dict[str, Any] = read_toml(config) if config else {}
    from_file = settings.pop("preset", None)
    settings |= parse_set(pairs)
    if seed is not None:
        if "seed" not in method_class(name).__dataclass_fields__:
            raise BadOption(f"{name} draws nothing at random and has no seed; leave --seed out.")
        settings["seed"] = seed
    _free(out, force)
    device = pick_device(device)
    with parallel.joined(device):
        model = load_model(source, dtype=dtype, device=parallel.local_device(device))
        model.configure(compiled=compiled, checkpointing=checkpointing, autocast=autocast)
        preset = preset or from_file or model.preset
        method = build_method(name, preset=preset, settings=settings)
        request = api.request_for(model, targets, anchor, preserve)
        planned = method.expected_evals(model, request)
        first = parallel.rank() == 0
        if first:
            predicted = api.predicted(model, planned, batch=4, processes=parallel.size())
            more = f" and {parallel.size() - 1} more processes" if parallel.size() > 1 else ""
            _note(f"{name} (preset {preset}) on {model.name}: about {predicted}{more}, plus gradients.")
        run = Run(checkpoint=out.with_suffix(".checkpoint.safetensors"), resume=resume)
        with _training_bar(name) as bar:
            run.on_step = bar.step if first else run.on_step
            patch = api.erase(model, method, targets=targets, anchor=anchor, preserve=preserve, run=run)
        if not first:
            return  # every process holds the same patch; one writes it
        patch.save(out)
        if run.checkpoint is not None:
            run.checkpoint.unlink(missing_ok=True)
    facts = _written(out, patch)
    cost = patch.card.cost["forward"]
    text = f"wrote {out} ({facts['bytes'] / 1e6:.1f} MB, {facts['tensors']} tensors, {cost:,} UNet evaluations)"
    if edit := patch.card.log.get("edit"):
        facts["edit"], back = edit, edit["bring_back"]
        condition = "has no inverse" if edit["condition"] is None else f"has condition number {edit['condition']:.3g}"
        text += f"\nclosed form: T {condition}; an embedding {back['length']:.3g} times as long as {back['target']!r} brings "
        text += "it back" if back["missed"] < 1e-3 else f"all but {100 * back['missed']:.0f} % of it back"
    _emit(as_json, facts, text)


class _bars:
    """One tqdm bar after the other, each with its own name."""

    def __enter__(self) -> _bars:
        self.bar: Any = None
        self.what = ""
        return self

    def update(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if what != self.what:
            self.__exit__()
            self.bar, self.what = tqdm(total=total, desc=what, file=sys.stderr, mininterval=1.0), what
        self.bar.update(max(0, done - self.bar.n))

    def images(self, done: int, total: int) -> None:
        self.update("images", done, total)

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class _training_bar:
    """tqdm with the loss terms by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None

    def __enter__(self) -> _training_bar:
        return self

    def step(self, step: Any, total: int) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, initial=step.index, desc=self.name, unit="step", file=sys.stderr, mininterval=1.0)
        self.bar.set_postfix({k: f"{v:.4f}" for k, v in step.terms.items()}, refresh=False)
        self.bar.update(1)
        if step.index + 1 == total:
            self.bar.close()

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


@main.command()
@model_option
@click.option("--patch", "patch_path", type=click.Path(path_type=Path), default=None, help="Patch file to apply.")
@click.option("--scale", default=1.0, show_default=True, help="Strength of the patch.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Prompt; repeat for several.")
@click.option("--n", default=4, show_default=True, help="Images per prompt.")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=16, show_default=True, help="DDIM steps.")
@click.option("--guidance", type=float, default=None, help="Default: 4 on the miniature, else 7.5.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="PNG grid: one row per prompt.")
@device_option
@dtype_option
@json_option
def sample(
    source: str,
    patch_path: Path | None,
    scale: float,
    prompts: tuple[str, ...],
    n: int,
    seed: int,
    steps: int,
    guidance: float | None,
    out: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Draw images, with or without a patch, as one PNG grid."""
    import contextlib

    from . import api
    from .io.images import write_grid
    from .models.load import load_model
    from .patches import Patch

    model = load_model(source, dtype=dtype, device=device)
    active: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if patch_path is not None:
        active = Patch.load(patch_path).scaled(scale).applied(model)
    with active:
        images = api.sample(model, prompts, n=n, seed=seed, steps=steps, guidance=guidance)
    write_grid(images, columns=n, path=out)
    _emit(as_json, {"out": str(out), "images": len(images), "evals": model.evals.forward}, f"wrote {out} ({len(images)} images)")


@main.command("import")
@click.argument("foreign", metavar="FILE", type=click.Path(path_type=Path))
@model_option
@click.option("--target", "targets", multiple=True, required=True, help="Concept it is said to erase; repeat for several.")
@click.option("--name", default="imported", show_default=True, help="What tables call it.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Patch file to write (.safetensors).")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@device_option
@dtype_option
@json_option
def import_(
    foreign: Path,
    source: str,
    targets: tuple[str, ...],
    name: str,
    out: Path,
    force: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Make a patch of somebody else's erasure: a LoRA, a state dict, a folder, a checkpoint."""
    from . import api
    from .models.load import load_model

    _free(out, force)
    patch = api.import_patch(load_model(source, dtype=dtype, device=device), foreign, targets=targets, name=name)
    patch.save(out)
    facts = _written(out, patch)
    kind = patch.card.config["read as"]
    _emit(
        as_json,
        facts,
        f"wrote {out} ({facts['bytes'] / 1e6:.1f} MB): {foreign} read as {kind}, {facts['tensors']} tensors change",
    )


def _written(out: Path, patch: Any) -> dict[str, Any]:
    """What --json says of a patch file."""
    return {"out": str(out), "bytes": out.stat().st_size, **{k: v for k, v in patch.json().items() if k != "log"}}


def _free(out: Path, force: bool) -> None:
    """Raises BadOption where a safetensors file must not be written."""
    from .errors import BadOption

    if out.suffix != ".safetensors":
        raise BadOption(f"--out {out} must end in .safetensors: that is what is written.")
    if out.exists() and not force:
        raise BadOption(f"--out {out} exists; it can have cost hours, so it is only replaced with --force.")


@main.command()
@click.argument("patch_path", metavar="PATCH", type=click.Path(path_type=Path))
@model_option
@click.option("--to", "kind", required=True, metavar="FORMAT", help="diffusers, kohya, diff or folder: efface list formats.")
@click.option("--rank", type=int, default=0, help="Rank of a LoRA; default: the smallest that --tolerance allows.")
@click.option("--tolerance", type=float, default=None, help="Share of the patch that a LoRA without --rank may leave out; 0.001.")
@click.option("--half", is_flag=True, help="Store half-precision numbers.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File (.safetensors) or new folder to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@device_option
@dtype_option
@json_option
def export(
    patch_path: Path,
    source: str,
    kind: str,
    rank: int,
    tolerance: float | None,
    half: bool,
    out: Path,
    force: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Write a patch as a file that other tools load, and compare what was written with the patch."""
    from . import api
    from .models.load import load_model
    from .patches import Patch

    if kind != "folder":
        _free(out, force)
    patch = Patch.load(patch_path)
    facts = api.export(
        load_model(source, dtype=dtype, device=device), patch, out, to=kind, rank=rank, tolerance=tolerance, half=half
    )
    ranked = f", rank {facts['rank']}" if facts["rank"] else ""
    text = f"wrote {out} ({kind}, {facts['bytes'] / 1e6:.2f} MB, {facts['tensors']} tensors{ranked}); "
    _emit(as_json, facts, text + f"read again, it differs from the patch by {facts['residual']:.1g} of the patch's norm")


@main.command()
@model_option
@click.option("--patch", "patch_path", type=click.Path(path_type=Path), default=None, help="Patch file to measure.")
@guard_option
@click.option("--target", "targets", multiple=True, help="What the guard holds back, without a patch; repeat for several.")
@click.option("--profile", default="mini-lite", show_default=True, help="smoke, mini-lite or mini.")
@clip_option
@click.option("--near", multiple=True, help="Related concept to keep (other models than the miniature).")
@click.option("--far", multiple=True, help="Unrelated concept to keep (other models than the miniature).")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for rows, pictures and summary."
)
@device_option
@dtype_option
@json_option
def evaluate(
    source: str,
    patch_path: Path | None,
    guard: str | None,
    targets: tuple[str, ...],
    profile: str,
    clip: str | None,
    near: tuple[str, ...],
    far: tuple[str, ...],
    out: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Measure a patch, a guard or both on paired cases beside the base model, noise and a blocklist."""
    from . import api
    from .errors import BadOption
    from .evaluation.profiles import profile as find_profile
    from .models.load import load_model
    from .patches import Patch
    from .registry import build_guard

    find_profile(profile)  # an unknown name is said before a model is loaded
    guarded = build_guard(guard) if guard is not None else None
    if patch_path is None and guarded is None:
        raise BadOption("nothing to measure: give --patch FILE, or --guard NAME with --target NAME.")
    patch = Patch.load(patch_path) if patch_path is not None else None
    model = load_model(source, dtype=dtype, device=device)
    with _bars() as bars:
        summary = api.evaluate(
            model,
            patch,
            out=out,
            targets=targets,
            guard=guarded,
            profile=profile,
            clip=clip,
            near=near,
            far=far,
            on_image=bars.images,
            note=_note,
            command=shlex.join(["efface", *sys.argv[1:]]),
        )
    _emit(as_json, {"out": str(out), **summary}, _table(summary))


def _table(summary: dict[str, Any]) -> str:
    lines = [f"{'entrant':<12}{'axis':<10}{'measure':<16}{'rate':>7}  {'95 % interval':<16}{'k / n':>9}{'invalid':>9}"]
    for entrant, found in summary["entrants"].items():
        for axis, s in found["axes"].items():
            measure = "erased_valid" if s["erased_valid"] else "preserved"
            r = s[measure]
            rate = f"{100 * r['value']:.1f}%" if r["value"] is not None else "n/a"
            interval, counts = f"[{100 * r['low']:.1f}, {100 * r['high']:.1f}]", f"{r['k']}/{r['n']}"
            lines.append(
                f"{entrant:<12}{axis:<10}{measure:<16}{rate:>7}  {interval:<16}{counts:>9}{s['detection']['invalid']:>9}"
            )
    return "\n".join(lines)


class Attacks(click.Group):
    """One subcommand per attack; its help lists the attack's own options from its dataclass."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from .attacks import ATTACKS

        return list(ATTACKS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from .attacks import TIERS
        from .registry import attack_class, describe

        cls = attack_class(name)
        text = f"{cls.summary}.\n\nTier {cls.tier}: {TIERS[cls.tier]}.\n\n{_options(cls, describe(cls))}"
        return click.Command(name, callback=_attack.callback, params=_attack.params, help=text, short_help=cls.summary)


@main.command("attack", cls=Attacks, context_settings=CONTEXT)
def attack_group() -> None:
    """Attack an erased model: efface attack ATTACK --patch FILE --budget N."""


@click.command()
@model_option
@click.option("--patch", "patch_path", type=click.Path(path_type=Path), default=None, help="Patch file under attack.")
@guard_option
@click.option("--target", default=None, help="Concept to bring back; default: the patch's only target.")
@click.option("--budget", type=int, required=True, help="UNet evaluations per case: forwards, backwards and images.")
@click.option("--cases", type=int, default=10, show_default=True, help="Prompts and seeds under attack.")
@click.option("--profile", default="mini-lite", show_default=True, help="smoke, mini-lite or mini: sampler and cases.")
@click.option("--no-controls", is_flag=True, help="The attack and the plain prompts only.")
@click.option("--preset", default=None, help="Named set of options.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="One option of the attack; repeat.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the attack.")
@clip_option
@click.option("--near", multiple=True, help="Related concept (other models than the miniature).")
@click.option("--far", multiple=True, help="Unrelated concept (other models than the miniature).")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=None, help="Folder for attempts and summary; resumable."
)
@device_option
@dtype_option
@json_option
@click.pass_context
def _attack(
    ctx: click.Context,
    source: str,
    patch_path: Path | None,
    guard: str | None,
    target: str | None,
    budget: int,
    cases: int,
    profile: str,
    no_controls: bool,
    preset: str | None,
    pairs: tuple[str, ...],
    seed: int,
    clip: str | None,
    near: tuple[str, ...],
    far: tuple[str, ...],
    out: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Body of every ``efface attack ATTACK``; the attack is the name of the command."""
    from . import api
    from .models.load import load_model
    from .patches import Patch
    from .registry import build_attack, build_guard, parse_set

    settings: dict[str, Any] = {**parse_set(pairs), "seed": seed}
    guarded = build_guard(guard) if guard is not None else None
    patch = Patch.load(patch_path) if patch_path is not None else None
    model = load_model(source, dtype=dtype, device=device)
    attack = build_attack(str(ctx.info_name), preset=preset or model.preset, settings=settings)
    with _bars() as bars:
        summary = api.attack(
            model,
            attack,
            budget=budget,
            target=target,
            patch=patch,
            guard=guarded,
            out=out,
            cases=cases,
            profile=profile,
            controls=not no_controls,
            clip=clip,
            near=near,
            far=far,
            on_image=bars.images,
            note=_note,
            command=shlex.join(["efface", *sys.argv[1:]]),
        )
    _emit(as_json, {"out": str(out) if out is not None else None, **summary}, _attack_table(summary))


def _attack_table(summary: dict[str, Any]) -> str:
    lines = [
        f"{'attack':<19}{'role':<10}{'tier':<6}{'broken':>7}  {'95 % interval':<16}{'k / n':>7}{'invalid':>9}{'images':>8}"
        f"{'forward':>9}{'backward':>9}"
    ]

    def rate(r: dict[str, Any]) -> str:
        value = f"{100 * r['value']:.1f}%" if r["value"] is not None else "n/a"
        interval, counts = f"[{100 * r['low']:.1f}, {100 * r['high']:.1f}]", f"{r['k']}/{r['n']}"
        return f"{value:>7}  {interval:<16}{counts:>7}"

    for label, a in summary["attacks"].items():
        cost = a["cost"]
        lines.append(
            f"{label:<19}{a['role']:<10}{a['tier']:<6}{rate(a['rate'])}{a['invalid']:>9}{a['images']:>8}"
            f"{cost['forward']:>9,}{cost['backward']:>9,}"
        )
    lines.append(f"{'union':<19}{'':<16}{rate(summary['union'])}   over {', '.join(summary['union']['over'])}")
    return "\n".join(lines)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HTML file to write.")
@json_option
def report(folder: Path, out: Path, as_json: bool) -> None:
    """Turn an evaluation FOLDER into one self-contained HTML page."""
    from .reporting import write_report

    path = write_report(folder, out)
    _emit(as_json, {"out": str(path), "bytes": path.stat().st_size}, f"wrote {path}")


@main.command()
@model_option
@click.option("--patch", "patch_path", type=click.Path(path_type=Path), required=True, help="Patch file to look at.")
@click.option("--count", default=20, show_default=True, help="Names in the list.")
@space_option
@click.option("--by", default=None, help="Find names by images or by noise; default: images up to 200 names.")
@sampler_option
@clip_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for record and pictures.")
@device_option
@dtype_option
@json_option
def damage(
    source: str,
    patch_path: Path,
    count: int,
    space: str,
    by: str | None,
    profile: str,
    clip: str | None,
    out: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """What else a patch broke: the names it hurts most, confirmed on held-out seeds, with pictures before and after."""
    from . import api
    from .io.images import join_pictures
    from .models.load import load_model
    from .patches import Patch

    patch = Patch.load(patch_path)
    model = load_model(source, dtype=dtype, device=device)
    with _bars() as bars:
        found = api.damage(
            model,
            patch,
            out=out,
            count=count,
            space=space,
            by=by,
            profile=profile,
            clip=clip,
            on_image=bars.images,
            note=_note,
        )
    join_pictures(out / "images" / "damage", len(found["rows"]), out / "before-after.png")
    _emit(as_json, {"out": str(out), **found}, _damage_table(found))


def _damage_table(found: dict[str, Any]) -> str:
    lines = [
        f"{'name':<22}{'fall of the score':>18}  {'95 % interval':<18}{'p':>8}{'named before':>14}{'after':>7}{'invalid':>9}"
    ]
    for r in found["rows"]:
        before, after = ("-" if r[k] is None else f"{r[k]}/{found['seeds']}" for k in ("before", "after"))
        interval = "too few images" if r["low"] is None else f"[{r['low']:.1f}, {r['high']:.1f}]"
        mark, drop = "*" if r["damaged"] else " ", "not scored" if r["drop"] is None else f"{r['drop']:.1f}"
        lines.append(f"{r['name'][:21]:<22}{drop:>17}{mark}  {interval:<18}{r['p']:>8.4f}{before:>14}{after:>7}{r['invalid']:>9}")
    worst = f"{found['damaged']} of the {len(found['rows'])} names that looked worst of {found['names']} are damaged (*)"
    return "\n".join([*lines, f"{worst}: false discovery rate 5 %, on {found['seeds']} images each that did not choose them."])


class Studies(click.Group):
    """One subcommand per study; its help is the study's own description."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from .studies import STUDIES

        return list(STUDIES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from .errors import UnknownName
        from .studies import STUDIES

        if name not in STUDIES:
            raise UnknownName("study", name, STUDIES)
        cls = STUDIES[name]
        defaults = [
            *(f"--method {m}" for m in cls.default_methods),
            *(f"--seed {s}" for s in cls.default_seeds),
            f"--images {cls.default_images}",
        ]
        text = f"{cls.question.capitalize()}\n\n{cls.__doc__}\n\nDefaults: {' '.join(defaults)}."
        return click.Command(name, callback=_study.callback, params=_study.params, help=text, short_help=cls.question)


@main.command("study", cls=Studies, context_settings=CONTEXT)
def study_group() -> None:
    """What erasing does to the rest: efface study STUDY --out DIR."""


@click.command()
@model_option
@click.option("--target", "targets", multiple=True, help="Concept to erase; repeat. Default: two or four of the miniature.")
@click.option("--method", "methods", multiple=True, help="Row to study; repeat.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Training seed; repeat.")
@click.option("--images", type=int, default=None, help="Images per name.")
@space_option
@sampler_option
@clip_option
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where erasures and scans are kept, for several studies to share; default: OUT/store.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for records and figure.")
@device_option
@dtype_option
@json_option
@click.pass_context
def _study(
    ctx: click.Context,
    source: str,
    targets: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    images: int | None,
    space: str,
    profile: str,
    clip: str | None,
    store: Path | None,
    out: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Body of every ``efface study STUDY``; the study is the name of the command."""
    from . import api
    from .models.load import load_model

    model = load_model(source, dtype=dtype, device=device)
    with _bars() as bars:
        result = api.study(
            model,
            str(ctx.info_name),
            out=out,
            targets=targets,
            methods=methods,
            seeds=seeds,
            images=images,
            space=space,
            profile=profile,
            store=store,
            clip=clip,
            on_progress=bars.update,
            note=_note,
        )
    _emit(as_json, {"out": str(out), **result}, f"{result['sentence']}\nwrote {out}: result.json, records.jsonl, figure.svg")


@main.command("list")
@click.argument("kind", type=click.Choice(["methods", "attacks", "guards", "models", "formats", "concepts", "metrics"]))
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List what there is: methods, attacks, guards, models, formats of export, concepts (of the miniature) or metrics."""
    if kind == "methods":
        from .methods import METHODS, ROWS
        from .registry import summary

        rows = {name: f"{summary(name)} ({cls.paper})" for name, cls in METHODS.items()} | {name: summary(name) for name in ROWS}
    elif kind == "attacks":
        from .attacks import ATTACKS

        rows = {name: f"{attack.tier}, {attack.summary} ({attack.paper})" for name, attack in ATTACKS.items()}
    elif kind == "guards":
        from .guards import GUARDS

        rows = {name: f"{guard.summary} ({guard.paper})" for name, guard in GUARDS.items()}
    elif kind == "models":
        from .models.load import BUNDLED

        rows = {
            **BUNDLED,
            "FOLDER": "a diffusers folder of Stable Diffusion 1.x, 2.x or XL",
            "FILE": "a single checkpoint file",
            "OWNER/NAME": "a Hub id",
        }
    elif kind == "formats":
        from .patches.export import FORMATS

        rows = dict(FORMATS)
    elif kind == "concepts":
        from .models.mini.world import load_world

        world = load_world()
        rows = {c.name: f"{c.group}, {world.kind(c.name)}" for c in world.concepts}
    else:
        rows = METRICS
    _emit(as_json, rows, "\n".join(f"{name:<20}{text}" for name, text in rows.items()))


METRICS = {
    "erased_valid": "target axes: share of images that are valid and do not show the target, of cases the base model gets right",
    "preserved": "keep axes: share of images that still show their concept, of cases the base model gets right",
    "detection": "share of valid images in which the report detector names the concept",
    "difference": "detection minus the base model's, paired, Newcombe interval, McNemar mid-p",
    "clip_t": "100 max(cos, 0) of image and prompt, paired difference against the base model",
    "clip_i": "cosine of image embeddings of this and the base model's image of the same case",
    "invalid": "images that are non-finite, uniform, or nothing by the detector: never a success",
}


@main.command()
@json_option
def env(as_json: bool) -> None:
    """Versions, threads and devices: paste this into a bug report."""
    import os

    import torch

    from .evaluation.driver import cache_folder
    from .versions import versions

    facts: dict[str, Any] = {
        **versions(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.is_available(),
        "cache": str(cache_folder()),
    }
    _emit(as_json, facts, "\n".join(f"{k:<14}{v}" for k, v in facts.items()))


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/demo"), show_default=True)
@click.option("--target", default=None, help="Concept of the miniature to erase.  [default: fire engine]")
@json_option
def demo(out: Path, target: str | None, as_json: bool) -> None:
    """Erase a concept from the miniature with AP, measure it, write the report. Minutes on two cores."""
    from .demo import run_demo

    with _training_bar("ap") as bar, _bars() as bars:
        facts = run_demo(out, target, on_step=bar.step, on_image=bars.images, note=_note)
    _emit(as_json, facts, f"report: {facts['report']}")
