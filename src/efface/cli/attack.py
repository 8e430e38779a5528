"""``efface attack ATTACK``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    clip_option,
    detector_option,
    device_option,
    dtype_option,
    encoders_option,
    far_option,
    guard_option,
    json_option,
    kind_option,
    model_option,
    near_option,
    out_option,
    patch_option,
    preset_option,
    profile_option,
    prompts_option,
    sensitive_option,
    set_option,
    world_option,
)
from .output import Bars, command_line, emit, note, rate
from .settings import group, settings_help


@click.command()
@model_option
@world_option
@patch_option()
@guard_option
@click.option("--target", default=None, help="Concept to bring back; default: the patch's only target.")
@kind_option
@click.option("--budget", type=int, required=True, help="UNet evaluations per case: forwards, backwards and images.")
@click.option("--cases", type=int, default=10, show_default=True, help="Prompts, each with a seed, that are attacked.")
@profile_option
@click.option("--no-controls", is_flag=True, help="Run the attack and the plain prompts only.")
@preset_option
@set_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the attack.")
@clip_option
@detector_option
@near_option
@far_option
@prompts_option
@sensitive_option
@out_option("Folder for attempts and summary, in which a stopped attack is continued.", folder=True, required=False)
@device_option
@dtype_option
@encoders_option
@json_option
@click.pass_context
def _attack(
    ctx: click.Context,
    source: str,
    world: str | None,
    patch_path: str | None,
    guard: str | None,
    target: str | None,
    kind: str,
    budget: int,
    cases: int,
    profile: str,
    no_controls: bool,
    preset: str | None,
    pairs: tuple[str, ...],
    seed: int,
    clip: str | None,
    detector: tuple[str, ...],
    near: tuple[str, ...],
    far: tuple[str, ...],
    prompts: tuple[str, ...],
    sensitive: bool,
    out: Path | None,
    device: str,
    dtype: str,
    encoders: str,
    as_json: bool,
) -> None:
    """Body of every ``efface attack ATTACK``; the attack is the name of the command."""
    from .. import verbs
    from ..errors import BadOption
    from ..io.files import check_writable
    from ..models.load import load_model
    from ..registry import ATTACKS, build_attack, build_guard, parse_set, preset_for
    from ..verbs.hub import load_patch
    from ..verbs.listed import lists_of
    from ..verbs.subject import with_world

    name = str(ctx.info_name)
    settings: dict[str, Any] = {**parse_set(pairs), "seed": seed}
    guarded = build_guard(guard) if guard is not None else None
    lists = lists_of(prompts)
    patch = load_patch(patch_path) if patch_path is not None else None
    if out is not None:
        check_writable(out)
    model = with_world(load_model(source, dtype=dtype, device=device, encoders=encoders), world)
    if name == verbs.ALL:
        attack: Any = name
        if preset or pairs or seed:
            raise BadOption("all attacks together take their presets; --preset, --set and --seed belong to one attack.")
    else:
        attack = build_attack(name, preset=preset or preset_for(ATTACKS.find(name), model), settings=settings)
    with Bars() as bars:
        summary = verbs.attack(
            model,
            attack,
            budget=budget,
            target=target,
            kind=kind,
            patch=patch,
            guard=guarded,
            out=out,
            cases=cases,
            profile=profile,
            controls=not no_controls,
            clip=clip,
            detector=detector,
            near=near,
            far=far,
            prompts=lists,
            sensitive=sensitive,
            on_image=bars.images,
            note=note,
            command=command_line(),
        )
    emit(as_json, {"out": str(out) if out is not None else None, **summary}, attack_table(summary))


def attack_table(summary: dict[str, Any]) -> str:
    """Attacks and controls as rows of text."""
    wide = max(19, *(len(label) + 2 for label in summary["attacks"]))
    head = f"{'attack':<{wide}}{'role':<10}{'tier':<6}{'broken':>7}  {'95 % interval':<16}{'k / n':>7}{'undecided':>11}"
    lines = [f"{head}{'invalid':>9}{'images':>8}{'forward':>9}{'backward':>9}"]
    for label, a in summary["attacks"].items():
        cost, (value, interval, counts) = a["cost"], rate(a["rate"])
        row = f"{label:<{wide}}{a['role']:<10}{a['tier']:<6}{value:>7}  {interval:<16}{counts:>7}"
        row += f"{a['undecided']:>11}{a['invalid']:>9}"
        lines.append(f"{row}{a['images']:>8}{cost['forward']:>9,}{cost['backward']:>9,}")
    unions = [("union", summary["union"])]
    if len(summary["tiers"]) > 2:
        unions = [(f"union up to {tier}", found) for tier, found in summary["tiers"].items()]
    for title, union in unions:
        value, interval, counts = rate(union)
        lines.append(f"{title:<{wide}}{'':<16}{value:>7}  {interval:<16}{counts:>7}{union['undecided']:>11}")
    for label, a in summary["attacks"].items():
        if "stages" in a:
            points = "; ".join(f"{stage}: {r['k']} of {r['n']}" for stage, r in a["stages"].items())
            ratio = a.get("relearning_ratio")
            told = f" The relearning ratio is {ratio:.2g}." if ratio is not None else ""
            lines.append(f"{label}: cases that show the target at {points}.{told}")
    for label, reason in summary["left_out"].items():
        lines.append(f"{label} was left out: {reason}")
    union = summary["union"]
    lines.append(
        f"The union is over {', '.join(union['over'])}: a case counts as broken when any of them breaks it, the controls too.\n"
        "A case without a valid image is undecided: it counts neither as broken nor as resisted."
    )
    return "\n".join(lines)


def _table() -> Any:
    from ..registry import ATTACKS
    from ..verbs import ALL

    return [ALL, *ATTACKS]


def _find(name: str) -> Any:
    from ..registry import ATTACKS
    from ..verbs import ALL

    return name if name == ALL else ATTACKS.find(name)


def _describe(cls: Any) -> tuple[str, str]:
    from ..attacks import TIERS
    from ..verbs import ALL

    if cls == ALL:
        text = (
            "Run every attack that the system and the budget allow, the cheapest first, each with its controls and the same "
            "budget per case, and count the cases that any of them breaks, tier by tier.\n\nA stopped run is continued by the "
            "same command with the same --out. Attacks that cannot be made are named with the reason.\n\n\b\nExample:\n"
            "  efface attack all --model mini --patch no-engine.safetensors --budget 300 --cases 4 --profile smoke --out runs/all"
        )
        return "every attack that is possible, the cheapest first", text
    summary = f"{cls.summary[0].upper()}{cls.summary[1:]}"
    example = f"efface attack {cls.name} --model mini --patch no-engine.safetensors --budget 150 --cases 4 --profile smoke"
    text = (
        f"{summary}.\n\nTier {cls.tier}: the attacker has {TIERS[cls.tier]}.\n\n\b\nExample:\n  {example}\n\n{settings_help(cls)}"
    )
    return cls.summary, text


group(
    "attack",
    "Try to bring an erased concept back and count in how many cases that succeeds (the attack success rate): "
    "efface attack ATTACK --patch FILE --budget N.\n\n"
    "ATTACK is one of those below, or a class in a file of your own (path/to/file.py:Name).",
    """
    efface attack unlearndiff --model mini --patch no-engine.safetensors --budget 150 --cases 4 --profile smoke
    """,
    table=_table,
    find=_find,
    describe=_describe,
    body=_attack,
)
