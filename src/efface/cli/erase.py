"""``efface erase METHOD``."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import click

from ..reporting.answer import spread
from .options import (
    device_option,
    dtype_option,
    encoders_option,
    force_option,
    json_option,
    kind_option,
    model_option,
    out_option,
    preset_option,
    set_option,
    storage_option,
    target_option,
)
from .output import TrainingBar, emit, free, note, written
from .settings import group, settings_help


@click.command()
@model_option
@target_option("Concept to erase; repeat for several.")
@kind_option
@click.option("--anchor", default="", help="What the target becomes; default: the empty prompt.")
@click.option("--preserve", multiple=True, help="Concept that must not change; repeat for several.")
@click.option(
    "--split",
    default=None,
    metavar="SIGN",
    help="Read --target and --preserve as lists with this sign between names, as the scripts of UCE (;) and ESD (,) do.",
)
@preset_option
@set_option
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="File of a run: options and request in TOML, or LECO's YAML. Without METHOD, the file names the method.",
)
@click.option("--seed", type=int, default=None, help="Training seed.")
@device_option
@dtype_option
@encoders_option
@storage_option
@click.option("--compile", "compiled", is_flag=True, help="Compile the network: slow to start, faster per step.")
@click.option("--checkpointing", is_flag=True, help="Compute activations again instead of storing them: slower, less memory.")
@click.option("--autocast", default=None, help="Run the network in bfloat16 or float16; the weights stay as they were loaded.")
@click.option("--resume", is_flag=True, help="Continue a stopped run from its checkpoint; the result is the same to the bit.")
@click.option(
    "--checkpoint-every",
    "every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Steps between checkpoints, from which --resume continues.",
)
@out_option("Patch file to write (.safetensors).")
@force_option
@json_option
@click.pass_context
def _erase(
    ctx: click.Context,
    source: str,
    targets: tuple[str, ...],
    kind: str,
    anchor: str,
    preserve: tuple[str, ...],
    split: str | None,
    preset: str | None,
    pairs: tuple[str, ...],
    config: Path | None,
    seed: int | None,
    device: str,
    dtype: str,
    encoders: str,
    storage: str | None,
    compiled: bool,
    checkpointing: bool,
    autocast: str | None,
    resume: bool,
    every: int,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Body of every ``efface erase METHOD``; the method is the name of the command."""
    from ..errors import BadOption, MethodError
    from ..io.files import claimed
    from ..methods.trained import Trained
    from ..models.load import load_model, pick_device
    from ..registry import METHODS, build_method, parse_set, preset_for
    from ..training import Run, processes
    from ..training.loop import finished_steps
    from ..verbs.config import RunConfig, read_config, split_names
    from ..verbs.cost import predicted
    from ..verbs.erase import erase_request, request_for
    from ..verbs.memory import check_folder

    name = str(ctx.info_name)
    file = read_config(config) if config else RunConfig()
    if file.method not in ("", name):
        raise BadOption(f"{config} is a run of {file.method}, not of {name}; leave {name} out, or the file.")
    for sentence in file.notes:
        note(sentence)
    from_file, settings = file.preset or None, {**file.settings, **parse_set(pairs)}
    given = ctx.get_parameter_source("source") is not click.core.ParameterSource.DEFAULT
    source = source if given or not file.model else file.model
    targets, preserve = (split_names(names, split) for names in (targets, preserve))
    targets, anchor, preserve = targets or file.targets, anchor or file.anchor, preserve or file.preserve
    if not targets:
        raise BadOption("no target: name at least one concept to erase (--target NAME), or a file that does (--config).")
    if seed is not None:
        if "seed" not in METHODS.find(name).__dataclass_fields__:
            raise BadOption(f"{name} draws nothing at random and has no seed; leave --seed out.")
        settings["seed"] = seed
    free(out, force)
    device = pick_device(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.joined(device))
        first = processes.rank() == 0
        if first:
            stack.enter_context(claimed(out))
        cls = METHODS.find(name)
        check_folder(
            source, cls, {**cls.presets.get(preset or from_file or "paper", {}), **settings}, dtype, device, encoders, storage
        )
        model = load_model(source, dtype=dtype, device=processes.local_device(device), encoders=encoders, storage=storage)
        model.configure(compiled=compiled, checkpointing=checkpointing, autocast=autocast)
        preset = preset or from_file or preset_for(cls, model)
        method = build_method(name, preset=preset, settings=settings)
        if isinstance(method, Trained) and method.steps == 0:
            raise BadOption("steps=0 trains nothing, and the patch would change nothing; give at least 1.")
        request = request_for(model, targets, anchor, preserve, kind)
        planned = method.expected_evals(model, request)
        checkpoint = out.with_suffix(".checkpoint.safetensors")
        run = Run(checkpoint=checkpoint, resume=resume, overwrite=force, every=every)
        done, steps = finished_steps(run), int(getattr(method, "steps", 0))
        planned *= 1 - done / steps if 0 < done <= steps else 1
        if first:
            if resume and not done:
                note(f"There is no checkpoint {checkpoint} to continue from: the run starts at its beginning.")
            erased = ", ".join(repr(t) for t in request.asked)
            cost = predicted(model, planned, batch=4, processes=processes.size())
            left = f" for what is left after step {done} of {steps}" if done else ""
            shared = f" The work is shared by {processes.size()} processes." if processes.size() > 1 else ""
            bound = "at most" if method.at_most else "about"
            note(f"Erasing {erased} from {model.name} with {name} (preset {preset}) takes {bound} {cost}{left}.{shared}")
        with TrainingBar(name) as bar:
            run.on_step = bar.step if first else run.on_step
            patch = erase_request(model, method, request, run)
        if not first:
            return  # every process holds the same patch; one writes it
        if not patch.norm():
            raise MethodError(f"{name} changed nothing, so no patch was written: its options leave it nothing to do.")
        patch.save(out)
        if run.checkpoint is not None:
            run.checkpoint.unlink(missing_ok=True)
    facts = written(out, patch)
    text = f"Wrote {out} ({facts['bytes'] / 1e6:.1f} MB): {facts['tensors']} weight tensors change, "
    text += f"and the erasure spent {patch.card.cost['forward']:,} UNet evaluations."
    if edit := patch.card.log.get("edit"):
        facts["edit"] = edit
        text += f"\n{way_back(edit)}"
        text += f"\n{spread(edit)}" if edit["side_effect"] else ""
    emit(as_json, facts, text)


def way_back(edit: dict[str, Any]) -> str:
    """What a closed-form edit's card says about undoing it, as a sentence for the user."""
    back = edit["bring_back"]
    if edit["condition"] is None:
        can = "This edit has no exact inverse"
    else:
        can = f"Anyone who has both weight files can undo this edit (its matrix has condition number {edit['condition']:.3g})"
    how = f"an embedding {back['length']:.3g} times as long as that of {back['target']!r}"
    if back["missed"] < 1e-3:
        return f"{can}: {how} brings the concept back."
    return f"{can}: {how} brings back all but {100 * back['missed']:.0f} % of the concept's keys and values."


def _method_of(args: list[str]) -> str:
    """The method that the file of ``efface erase --config FILE`` names; "" where there is none."""
    from ..verbs.config import read_config

    files = [b for a, b in itertools.pairwise(args) if a == "--config"]
    files += [a.removeprefix("--config=") for a in args if a.startswith("--config=")]
    return read_config(files[0]).method if files else ""


def _table() -> Any:
    from ..registry import METHODS

    return METHODS


def _find(name: str) -> Any:
    from ..registry import METHODS

    return METHODS.find(name)


def _describe(cls: Any) -> tuple[str, str]:
    summary = f"{cls.summary[0].upper()}{cls.summary[1:]}"
    example = f"efface erase {cls.name} --model mini --target rabbit --out no-rabbit.safetensors"
    return cls.summary, f"{summary}.\n\n\b\nExample:\n  {example}\n\n{settings_help(cls)}"


group(
    "erase",
    "Erase concepts and write the change as a patch file: efface erase METHOD --target NAME --out FILE.\n\n"
    "METHOD is one of those below, or a class in a file of your own (path/to/file.py:Name). Each method has options of its own: "
    "efface erase METHOD --help lists them, --set NAME=VALUE sets one.",
    """
    efface erase ap --model mini --target "fire engine" --out no-engine.safetensors
    efface erase uce --model mini --target rabbit --preserve dog --out no-rabbit.safetensors
    """,
    table=_table,
    find=_find,
    describe=_describe,
    body=_erase,
    otherwise=_method_of,
)
