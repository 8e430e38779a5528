"""A run of ``efface erase`` as a file: ours (TOML), and the YAML of LECO, which trainers of LoRAs for erasing understand.

LECO trains ``eps(target)`` towards ``eps(neutral) - g (eps(positive) - eps(unconditional))``. With ``positive = target`` and
``neutral = unconditional`` that is ESD's loss, with the anchor ``neutral`` and ``eta = g``; another positive or unconditional
prompt is another loss, and is refused by name. The LoRA's rank is not a setting of the training here: it is chosen on export.

Source: the configuration and the prompts file of p1atdev/LECO.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..concepts.request import names_of
from ..errors import BadFile, BadOption
from ..registry import METHODS, build_method, read_toml

YAML = (".yaml", ".yml")
PROMPT = {"target", "positive", "unconditional", "neutral", "action", "guidance_scale", "resolution", "dynamic_resolution"}
PROMPT |= {"batch_size", "dynamic_crops", "multiplier", "weight"}
"""What an entry of LECO's prompts may say."""
OURS = ("method", "model", "request", "preset")
"""What a TOML file may say beside the options of the method."""


@dataclass(frozen=True)
class RunConfig:
    """What a file says of a run. Empty fields are left to the command line."""

    method: str = ""
    model: str = ""
    targets: tuple[str, ...] = ()
    anchor: str = ""
    preserve: tuple[str, ...] = ()
    preset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the file says and this run does not do, one sentence each."""


def read_config(path: str | Path) -> RunConfig:
    """A run from our TOML or LECO's YAML, by the ending. Raises BadFile for a file that is none, BadOption for a setting that
    this version cannot follow."""
    path = Path(path)
    return _leco(path) if path.suffix.lower() in YAML else _ours(path)


def _ours(path: Path) -> RunConfig:
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"cannot read the configuration {str(path)!r}: {error}.") from error
    request = raw.get("request", {})
    strange = [k for k in request if k not in ("targets", "anchor", "preserve")] if isinstance(request, dict) else ["request"]
    if strange:
        raise BadOption(f"{path}: [request] takes targets, anchor and preserve, got {strange[0]!r}.")
    return RunConfig(
        method=str(raw.get("method", "")),
        model=str(raw.get("model", "")),
        targets=names_of(request.get("targets", ()), "targets"),
        anchor=str(request.get("anchor", "")),
        preserve=names_of(request.get("preserve", ()), "preserve"),
        preset=str(raw.get("preset", "")),
        settings=read_toml(path, leave=OURS),
    )


def write_config(config: RunConfig, path: str | Path) -> str:
    """The text of a file that :func:`read_config` reads as the same run, in the dialect of the ending. Raises BadOption where
    LECO cannot say it."""
    return _as_leco(config) if Path(path).suffix.lower() in YAML else _as_ours(config)


def _as_ours(config: RunConfig) -> str:
    facts = {"method": config.method, "model": config.model, "preset": config.preset}
    lines = [f"# {note}" for note in config.notes] + [f"{k} = {json.dumps(v)}" for k, v in facts.items() if v]
    plain = {k: v for k, v in config.settings.items() if "." not in k}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in config.settings.items():
        if "." in key:
            parts.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = value
    lines += [f"{k} = {json.dumps(v)}" for k, v in plain.items() if k not in parts]
    for name, options in parts.items():
        kind = {"kind": plain[name]} if name in plain else {}
        lines += ["", f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in {**kind, **options}.items())]
    request = {"targets": list(config.targets), "anchor": config.anchor, "preserve": list(config.preserve)}
    return "\n".join([*lines, "", "[request]", *(f"{k} = {json.dumps(v)}" for k, v in request.items() if v)]) + "\n"


# -- LECO --------------------------------------------------------------------------------------------------------------


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadFile(f"cannot read the configuration {str(path)!r}: {' '.join(str(error).split())}.") from error


def _leco(path: Path) -> RunConfig:
    raw = _yaml(path)
    config: Mapping[str, Any] = {} if isinstance(raw, list) else raw if isinstance(raw, Mapping) else {"?": raw}
    if "job" in config or "process" in config:
        raise BadFile(
            f"{path} is a job of ai-toolkit. Give its prompts in LECO's form: a list of entries with target, neutral and "
            "action: erase."
        )
    if isinstance(raw, list):
        prompts = raw
    elif "prompts_file" in config:
        prompts = _yaml(path.parent / str(config["prompts_file"]))
    else:
        prompts = config.get("prompts", [config] if "target" in config else None)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, Mapping) and p.get("target") for p in prompts):
        raise BadFile(f"{path} has no prompts in LECO's form: a list of entries with target and action: erase.")
    train = _table(config, "train", path)
    network = _table(config, "network", path)
    entries = [_prompt(p, path) for p in prompts]
    first = entries[0]
    for name in ("anchor", "eta", "batch"):
        if any(e[name] != first[name] for e in entries):
            said = {"anchor": "neutral", "eta": "guidance_scale", "batch": "batch_size"}[name]
            raise BadOption(f"{path}: the entries have different {said}; efface has one for all targets. Run them one by one.")
    settings: dict[str, Any] = {"eta": first["eta"], "batch": first["batch"]}
    for theirs, ours in (("iterations", "steps"), ("lr", "lr"), ("seed", "seed")):
        if theirs in train:
            settings[ours] = _number(train[theirs], theirs, path)
    if network.get("training_method") is not None:
        settings["train"] = _train(str(network["training_method"]), path)
    return RunConfig(
        method="esd",
        model=str(_table(config, "pretrained_model", path).get("name_or_path", "")),
        targets=tuple(str(e["target"]) for e in entries),
        anchor=str(first["anchor"]),
        settings=settings,
        notes=tuple(_notes(config, train, network, prompts)),
    )


def _table(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise BadFile(f"{path}: {name} is no table.")
    return found


def _number(value: Any, name: str, path: Path) -> int | float:
    """YAML 1.1 reads ``1e-4`` as a text."""
    try:
        return value if isinstance(value, int | float) else float(value)
    except (TypeError, ValueError) as error:
        raise BadOption(f"{path}: {name}={value!r} is no number.") from error


def _prompt(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    strange = [k for k in raw if k not in PROMPT]
    if strange:
        raise BadOption(f"{path}: an entry has {strange[0]!r}, which is none of LECO's: {', '.join(sorted(PROMPT))}.")
    target, action = str(raw["target"]), str(raw.get("action", "erase"))
    unconditional = str(raw.get("unconditional") or "")
    positive, neutral = str(raw.get("positive") or target), str(raw.get("neutral") or unconditional)
    if action != "erase":
        raise BadOption(f"{path}: action {action!r} of {target!r}; efface erases, and nothing else.")
    if positive != target or unconditional != neutral:
        which = "positive" if positive != target else "unconditional"
        raise BadOption(
            f"{path}: the {which} prompt of {target!r} makes another loss than ESD's, which efface has: leave it out, so that "
            "positive is the target and unconditional the neutral prompt."
        )
    if any(_number(raw.get(k, 1), k, path) != 1 for k in ("weight", "multiplier")):
        raise BadOption(f"{path}: weight and multiplier of {target!r} must be 1; a patch is scaled with --scale afterwards.")
    eta = float(_number(raw.get("guidance_scale", 1.0), "guidance_scale", path))
    return {"target": target, "anchor": neutral, "eta": eta, "batch": int(_number(raw.get("batch_size", 1), "batch_size", path))}


def _train(method: str, path: Path) -> str:
    groups = {"full": "full", "selfattn": "selfattn", "xattn": "xattn", "noxattn": "noxattn"}
    if method not in groups:
        raise BadOption(f"{path}: training_method {method!r} is none of {', '.join(groups)}.")
    return groups[method]


def _notes(
    config: Mapping[str, Any], train: Mapping[str, Any], network: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What is not followed, and what to do instead."""
    told = []
    if "rank" in network:
        told.append(f"The whole weights are trained; the rank {network['rank']} is chosen on export: efface export --rank.")
    for name in ("optimizer", "lr_scheduler", "noise_scheduler", "precision", "max_denoising_steps"):
        if name in train:
            told.append(f"train.{name}={train[name]} is not followed: efface erase esd --help lists its own options.")
    if any("resolution" in p for p in prompts):
        told.append("The resolution is the model's own.")
    told += [f"{name} is not followed." for name in ("save", "logging", "other") if name in config]
    return told


def _as_leco(config: RunConfig) -> str:
    import yaml

    if config.method != "esd" or config.preserve:
        what = "the method " + repr(config.method or "?") if config.method != "esd" else "concepts to preserve"
        raise BadOption(f"LECO has one loss, ESD's without a preserve set; it cannot say {what}.")
    cls = METHODS.find("esd")
    method = build_method("esd", preset=config.preset or "paper", settings=config.settings)
    kept = {"steps": "iterations", "lr": "lr", "seed": "seed"}
    followed = {"eta", "batch", "train", *kept}
    default = cls.preset("paper").plain()
    other = [k for k, v in method.plain().items() if k not in followed and v != default.get(k)]
    if other:
        raise BadOption(f"LECO has no setting for {', '.join(other)} of ESD; leave it out to convert.")
    values = method.plain()
    groups = {"full": "full", "selfattn": "selfattn", "xattn": "xattn", "noxattn": "noxattn"}
    if values["train"] not in groups:
        raise BadOption(f"LECO cannot train {values['train']!r}; it knows {', '.join(groups)}.")
    prompts = [
        {"target": t, "positive": t, "unconditional": config.anchor, "neutral": config.anchor, "action": "erase"}
        | {"guidance_scale": values["eta"], "batch_size": values["batch"]}
        for t in config.targets
    ]
    data: dict[str, Any] = {"prompts": prompts}
    if config.model:
        data["pretrained_model"] = {"name_or_path": config.model}
    data |= {"network": {"training_method": groups[values["train"]]}, "train": {t: values[o] for o, t in kept.items()}}
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def split_names(names: Sequence[str], sign: str | None) -> tuple[str, ...]:
    """The names, each taken apart at ``sign`` where one is given: ``"Van Gogh; Monet"`` is two with ``;``. Without a sign nothing
    is taken apart, because names may hold commas."""
    if sign is None:
        return tuple(names)
    if not sign.strip():
        raise BadOption("--split needs a sign, such as ';'.")
    return tuple(part.strip() for name in names for part in name.split(sign) if part.strip())
