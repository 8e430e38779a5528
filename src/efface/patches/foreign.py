"""Other people's erasures as patches, so that they can be evaluated, attacked, compared and exported like ours.

Read are: LoRAs and ``.diff`` files under every name of :mod:`efface.patches.dialects`; state dicts of a UNet or a text encoder,
whole or in part, under diffusers' or CompVis' names (``.safetensors``; pickles with ``weights_only=True``); folders of a UNet or
a pipeline; and whole checkpoints that :func:`efface.models.load.load_model` takes. Every tensor of the file must be known to the
model: a name that matches nothing is an error, because a file of which nothing is loaded looks like a perfect preservation.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..concepts.request import EraseRequest, names_of
from ..errors import BadFile, BadRequest, MissingExtra, WrongBaseModel
from ..io.tensors import PICKLES, first_line, read_tensors
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..models.select import in_checkpoint
from ..versions import versions
from .card import PatchCard
from .dialects import NO_WEIGHTS, Names, kind_of, part_of, role_of
from .manifest import NAME as MANIFEST
from .manifest import changed_files, read_manifest
from .original import OPEN_CLIP, from_open_clip
from .patch import Patch
from .seal import check_seal

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "adapter_model.safetensors")
UNDERSTOOD = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "lora_bias", "bias", "init_lora_weights", "lora_dropout", "task_type", "inference_mode", "peft_type"),
    *("peft_version", "base_model_name_or_path", "revision", "auto_mapping", "megatron_config", "megatron_core"),
    *("qalora_group_size", "eva_config", "ensure_weight_tying"),
}
"""What a configuration of peft may say: what is read, and what concerns the training or the base's whereabouts alone. What is
not set says nothing."""
PLAIN_STARTS = ("gaussian", "orthogonal", "eva")
"""Starts of a LoRA that leave the base model as it is. Others (PiSSA, OLoRA, LoftQ, CorDA) take the start out of its weights."""
HALVES = (torch.float16, torch.bfloat16)


def import_patch(model: DiffusionModel, source: str | Path, *, targets: Sequence[str], name: str = "imported") -> Patch:
    """What the file or folder changes in ``model``, which must be the base it was made from.

    targets: the concepts it is said to erase; evaluation and attacks ask for them. name: what tables call it. A tensor that is
    the base's in the precision of either is unchanged; of every other the patch gives the file's values exactly.
    Raises BadRequest without targets, BadFile for a file of another kind, with names the model does not have, or without a
    change, WrongBaseModel for other shapes. Cost: 0 evaluations; it cannot be known what the erasure itself cost.
    """
    source = Path(source)
    targets = names_of(targets, "targets")
    if not targets:
        raise BadRequest("an imported erasure needs the concepts that it erases; give at least one target.")
    kind, deltas, told = read_changes(model, source)
    if not deltas:
        raise BadFile(f"{source} changes nothing in {model.name!r}: it is the base model itself, or a file of zeros.")
    broken = [n for n, d in deltas.items() if not bool(torch.isfinite(d).all())]
    if broken:
        raise BadFile(f"{source}: {broken[0]} holds non-finite values; the file is damaged.")
    card = PatchCard(
        method=name,
        config={"file": source.name, "sha256": _digest(source), "read as": kind, **({"notes": " ".join(told)} if told else {})},
        request=EraseRequest(targets),
        base={**model.info, **model.identity()},
        versions=versions(),
    )
    return Patch(deltas, card)


def read_changes(model: DiffusionModel, source: Path) -> tuple[str, dict[str, Tensor], list[str]]:
    """What the file or folder was read as, the changes by our names, and what a user should know about the reading."""
    if (source / MANIFEST).is_file():
        changed = changed_files(source, read_manifest(source)[1].get("efface_files", {}))
        if changed:
            raise BadFile(f"{source} is not as efface wrote it: {changed[0]}.")
    if (source / "model_index.json").is_file():
        return "pipeline", _against(model, _whole(source), source), []
    if source.is_dir():
        inside = [source / name for name in WEIGHTS if (source / name).is_file()]
        if not inside:
            raise BadFile(f"the folder {source} holds none of {', '.join(WEIGHTS)}; give the file itself.")
        source = inside[0]
    if source.suffix not in PICKLES and source.is_file() and not check_seal(source) and "efface_format" in _metadata(source):
        raise BadFile(f"{source} has lost the seal that efface gave it; it is damaged, or another program has written it again.")
    tensors = {_bare(key): t for key, t in _read(source).items()}
    if any(key.startswith("delta.") for key in tensors):
        raise BadFile(f"{source} is a patch of efface already; give it to --patch.")
    configs = _configs(source)
    strange = kind_of(tensors, model.part)
    if strange is not None:
        kind, key = strange
        raise BadFile(
            f"{source} is {_an(kind)} file ({key!r}), which efface does not read. "
            "Merge it into its base model with the tool that made it, and import the merged model's folder."
        )
    tensors = _without_open_clip(tensors, model, source)
    live, told = model.weights(in_checkpoint), []
    names, passed = Names(live), [key for key in tensors if NO_WEIGHTS.search(key)]
    if any(key.startswith(("first_stage_model.", "vae.")) for key in passed):
        told.append("The file also holds a VAE, which was not compared: no erasure changes it.")
    kept = {key: t for key, t in tensors.items() if not NO_WEIGHTS.search(key)}
    adapter = {key: role for key in kept if (role := role_of(key)) is not None}
    if adapter:
        unread = next((key for key in kept if key not in adapter), None)
        if unread is not None:
            raise BadFile(
                f"{source} holds {unread!r}, which efface does not read, and the rest alone would be another change. Merge "
                "the file into its base model with the tool that made it, and import the merged model's folder."
            )
        lora = _Lora(source, configs)
        found = lora.changes(kept, adapter, names, model.name)
        return (
            _dialect(adapter),
            {n: d.reshape(live[n].shape) for n, d in found.items() if bool((d != 0).any())},
            told + lora.told,
        )
    values = {}
    for key, t in kept.items():
        module, _, kind = key.rpartition(".")
        try:
            name = key if key in live else names.weight(module, t.shape, source, model.name, kind)
        except BadFile as error:
            raise BadFile(
                f"{source}: {key!r} names no weight of {model.name!r}; nothing that is not understood is passed over."
            ) from error
        same = tuple(n for n in t.shape if n > 1) == tuple(n for n in live[name].shape if n > 1)  # a 1 x 1 convolution is linear
        values[name] = t.reshape(live[name].shape) if same else t
    whole = any(key.startswith("model.diffusion_model.") for key in kept)
    return "checkpoint" if whole else "state dict", _against(model, values, source), told


def _without_open_clip(tensors: Mapping[str, Tensor], model: DiffusionModel, source: Path) -> dict[str, Tensor]:
    """The tensors, those of a text encoder under OpenCLIP's names by ours: it has other tensors there, not only other names."""
    kept, parts = dict(tensors), {name.partition(".")[0] for name in model.weights(in_checkpoint)}
    for part, prefix in OPEN_CLIP.items():
        own = [key for key in kept if key.startswith(prefix)]
        if own and part not in parts:
            raise BadFile(f"{source} holds a second text encoder ({own[0]!r}), which {model.name!r} does not have.")
        if own:
            read = from_open_clip(kept, part, vars(model)[part])
            kept = {key: t for key, t in kept.items() if not key.startswith(prefix)} | read
    return kept


def _bare(key: str) -> str:
    """A tensor's name without the wrappers it was saved in: peft's, torch's for several devices, the compiler's."""
    for wrapper in ("base_model.model.", "module.", "_orig_mod."):
        key = key.removeprefix(wrapper)
    return key


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "IOAS" else f"a {kind}"


def _dialect(adapter: Mapping[str, tuple[str, str]]) -> str:
    if all(role in ("weight", "bias") for _, role in adapter.values()):
        return "diff"
    return "kohya" if all(module.startswith("lora_") for module, _ in adapter.values()) else "diffusers"


def _whole(source: Path) -> dict[str, Tensor]:
    """Weights of everything that :func:`load_model` takes, kept off the device that the base is on."""
    return load_model(source, device="cpu").weights(in_checkpoint)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadFile(f"there is no file {str(path)!r}.")
    found = read_tensors(path)
    if isinstance(found, Mapping) and "string_to_param" in found:
        raise BadFile(
            f"{str(path)!r} is a textual inversion file, which changes no weight of the model; efface does not read it."
        )
    while isinstance(found, Mapping) and len(found) <= 3 and isinstance(found.get("state_dict", found.get("unet")), Mapping):
        found = found.get("state_dict", found.get("unet"))
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise BadFile(f"{str(path)!r} holds no tensors by name.")
    return {str(key): t for key, t in found.items()}


class _Lora:
    """A LoRA, whatever its dialect, as changes of weights."""

    def __init__(self, source: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self.source, self.configs = source, configs
        self.told: list[str] = []

    def changes(
        self, tensors: Mapping[str, Tensor], roles: Mapping[str, tuple[str, str]], names: Names, model: str
    ) -> dict[str, Tensor]:
        """``{weight name: scale up down}``, and the changes of whole tensors as they are. Raises BadFile for half a LoRA."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, (module, role) in roles.items():
            if role in groups.setdefault(module, {}):
                raise BadFile(f"{self.source} holds two adapters for {module!r} ({key!r}); save one of them by itself.")
            groups[module][role] = tensors[key]
        found: dict[str, Tensor] = {}

        def add(name: str, change: Tensor) -> None:
            found[name] = found[name] + change if name in found else change

        for module, group in groups.items():
            for kind in ("weight", "bias"):
                if kind in group:
                    add(names.weight(module, group[kind].shape, self.source, model, kind), group[kind].float().flatten())
            if not {"up", "down"} & group.keys():
                if "alpha" in group and not {"weight", "bias"} & group.keys():
                    raise BadFile(f"{self.source}: {module!r} has an alpha and no factors; the file is incomplete.")
                continue
            if not {"up", "down"} <= group.keys():
                raise BadFile(f"{self.source}: {module!r} has one factor of a LoRA and not the other; the file is incomplete.")
            if min(group["up"].ndim, group["down"].ndim) < 2 or not len(group["down"]):
                raise BadFile(f"{self.source}: the factors of {module!r} are no matrices.")
            up, down = group["up"].float().flatten(1), group["down"].float().flatten(1)
            if up.shape[1] != len(down):
                raise BadFile(f"{self.source}: the factors of {module!r} have ranks {up.shape[1]} and {len(down)}.")
            name = names.weight(module, (len(up), *group["down"].shape[1:]), self.source, model)
            scale = self._alpha(module, name, len(down), group.get("alpha")) / len(down)
            add(name, scale * (up @ down).flatten())
            bias = group.get("up bias", torch.zeros(1)).float()
            if bool(bias.any()):  # zeros fill up a file whose other layers have one
                add(names.weight(module, bias.shape, self.source, model, "bias"), scale * bias)
        if all(len(g.get("down", ())) == 1 and float(g.get("alpha", torch.tensor(1.0))) == 1 for g in groups.values()):
            self.told.append(
                "Every layer has rank 1 and alpha 1, as in an SPM. An SPM has a gate that depends on the prompt and is not in "
                "its file; this is the plain LoRA at strength 1, as every other reader loads it."
            )
        return found

    def _alpha(self, module: str, name: str, rank: int, own: Tensor | None) -> float:
        """The file's own alpha; else what the configuration of this part says; else the rank, a scale of 1."""
        config = self.configs.get(name.partition(".")[0], self.configs.get("", {}))
        inside = module.removeprefix(f"{part_of(module)}.")
        said = self._number(
            _matched(config.get("rank_pattern"), inside, config.get("r", rank), self.source), f"rank of {module!r}"
        )
        if said != rank:
            raise BadFile(
                f"{self.source}: {module!r} has rank {rank}, its configuration says {said:g}; they do not belong together."
            )
        alpha = _matched(config.get("alpha_pattern"), inside, config.get("lora_alpha", rank), self.source) if own is None else own
        return self._number(alpha, f"alpha of {module!r}")

    def _number(self, value: Any, what: str) -> float:
        try:
            found = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise BadFile(f"{self.source}: the {what} is no number ({first_line(error)}).") from error
        if not math.isfinite(found):
            raise BadFile(f"{self.source}: the {what} is {found}.")
        return found


def _matched(patterns: Mapping[str, Any] | None, module: str, default: Any, source: Path) -> Any:
    """The value of a module in a pattern of peft, by peft's own matching: the keys are regular expressions."""
    if not patterns:
        return default
    try:
        from peft.utils.other import get_pattern_key
    except ImportError as error:
        raise MissingExtra(f"{source} has rank or alpha patterns, which peft reads: pip install peft") from error
    if not isinstance(patterns, Mapping):
        raise BadFile(f"{source}: its configuration has patterns that are a {type(patterns).__name__} and no table.")
    try:
        return patterns.get(get_pattern_key(list(patterns), module), default)
    except (re.error, TypeError, RecursionError) as error:
        raise BadFile(f"{source}: its configuration has a pattern that is no regular expression ({error}).") from error


def _configs(path: Path) -> dict[str, dict[str, Any]]:
    """What peft says of an adapter, by part ("" for all): in the folder beside it, or in the header that diffusers writes.

    Raises BadFile for a configuration that is no plain LoRA's.
    """
    beside = path.with_name("adapter_config.json")
    found: dict[str, dict[str, Any]] = {}
    try:
        if beside.is_file() and path.name.startswith("adapter_model"):
            found[""] = dict(json.loads(beside.read_text("utf-8")))
        elif path.suffix not in PICKLES:
            header = json.loads(_metadata(path).get("lora_adapter_metadata", "{}"))
            for key, value in header.items():
                part = part_of(key)
                if part is None:
                    raise BadFile(f"{path}: its header has a configuration {key!r} of no part of a Stable Diffusion.")
                found.setdefault(part, {})[key.removeprefix(f"{part}.")] = value
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadFile(f"the configuration of {path} is damaged ({error}).") from error
    for config in found.values():
        kind = str(config.get("peft_type") or "LORA").rpartition(".")[2]
        if kind.upper() != "LORA":
            raise BadFile(f"{path} is {_an(kind)} adapter of peft, which efface does not read; merge it with peft first.")
        other = [k for k, v in config.items() if v and k not in UNDERSTOOD]
        if config.get("bias", "none") != "none":
            other.append("bias")
        if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] not in PLAIN_STARTS:
            other.append(f"init_lora_weights={config['init_lora_weights']}")
        if other:
            names = ", ".join({"use_dora": "DoRA (use_dora)", "use_rslora": "rsLoRA (use_rslora)"}.get(k, k) for k in other)
            raise BadFile(f"{path} is a LoRA with {names}, which efface does not read; merge it with peft first.")
    return found


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{str(path)!r} could not be read: {error}") from error


def _against(model: DiffusionModel, values: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    live = model.weights(in_checkpoint)
    deltas = {}
    for name, value in values.items():
        if name not in live:
            raise BadFile(f"{source}: {model.name!r} has no weight {name!r}; it is a model of another family.")
        base = live[name].detach().cpu()
        if value.shape != base.shape:
            raise WrongBaseModel(f"{source}: {name} is {tuple(value.shape)}, in {model.name!r} {tuple(base.shape)}.")
        value = value.detach().cpu()
        if not _same(value, base):
            deltas[name] = value.float() - base.float()
    return deltas


def _same(value: Tensor, base: Tensor) -> bool:
    """Whether one is the other, or the other rounded: the file or the loaded base may be the one in half precision."""
    return any(
        torch.equal(a, b.to(rounded).to(a.dtype)) for a, b in ((value, base), (base, value)) for rounded in (a.dtype, *HALVES)
    )


def _digest(source: Path) -> str:
    """sha256 of a file, or of a folder's weight files in order."""
    files = sorted(f for f in source.rglob("*.safetensors")) if source.is_dir() else [source]
    h = hashlib.sha256()
    for file in files:
        with open(file, "rb") as f:
            for part in iter(lambda: f.read(1 << 20), b""):
                h.update(part)
    return h.hexdigest()
