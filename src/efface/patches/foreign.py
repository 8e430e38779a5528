"""Other people's erasures as patches, so that they can be evaluated, attacked, compared and exported like ours.

Read are: LoRAs (diffusers, kohya) and ``.diff`` files; state dicts of a UNet or a text encoder under diffusers' names, whole or
in part (``.safetensors``; pickles with ``weights_only=True``); folders of a UNet or a pipeline; and whole checkpoints that
:func:`efface.models.load.load_model` takes. Every tensor of the file must be known to the model: a name that matches nothing
is an error, because a file of which nothing is loaded looks like a perfect preservation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..concepts.request import EraseRequest
from ..errors import BadFile, BadRequest, WrongBaseModel
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..versions import versions
from .export import DIFF, FACTORS, kohya_names, read_back
from .patch import Patch, PatchCard

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "adapter_model.safetensors")
READ = {
    "diff": tuple(DIFF),
    "kohya": (*FACTORS["kohya"], ".alpha"),
    "diffusers": (*FACTORS["diffusers"], ".lora_B.bias", ".alpha"),
}
"""How the names end that are read of a format."""
HALVES = (torch.float16, torch.bfloat16)
PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def import_patch(model: DiffusionModel, source: str | Path, *, targets: Sequence[str], name: str = "imported") -> Patch:
    """What the file or folder changes in ``model``, which must be the base it was made from.

    targets: the concepts it is said to erase; evaluation and attacks ask for them. name: what tables call it. A tensor that is
    the base's, or the base's rounded to half precision, is unchanged; of every other the patch gives the file's values exactly.
    Raises BadRequest without targets, BadFile for a file of another kind, with names the model does not have, or without a
    change, WrongBaseModel for other shapes. Cost: 0 evaluations; it cannot be known what the erasure itself cost.
    """
    source = Path(source)
    if not targets:
        raise BadRequest("an imported erasure needs the concepts that it erases; give at least one target.")
    kind, deltas = _changes(model, source)
    if not deltas:
        raise BadFile(f"{source} changes nothing in {model.name!r}: it is the base model itself, or a file of zeros.")
    broken = [n for n, d in deltas.items() if not bool(torch.isfinite(d).all())]
    if broken:
        raise BadFile(f"{source}: {broken[0]} holds non-finite values; the file is damaged.")
    card = PatchCard(
        method=name,
        config={"file": source.name, "sha256": _digest(source), "read as": kind},
        request=EraseRequest(tuple(targets)),
        base={**model.info, "digest": model.digest()},
        versions=versions(),
    )
    return Patch(deltas, card)


def _changes(model: DiffusionModel, source: Path) -> tuple[str, dict[str, Tensor]]:
    """What it was read as, and the changes by our names."""
    if (source / "model_index.json").is_file():
        return "pipeline", _against(model, _whole(source), source)
    if source.is_dir():
        inside = [source / name for name in WEIGHTS if (source / name).is_file()]
        if not inside:
            raise BadFile(f"the folder {source} holds none of {', '.join(WEIGHTS)}; give the file itself.")
        source = inside[0]
    tensors = _read(source)
    names = {key.removeprefix("base_model.model."): t for key, t in tensors.items()}
    if any(key.startswith("delta.") for key in names):
        raise BadFile(f"{source} is a patch of efface already; give it to --patch.")
    if any(key.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.")) for key in names):
        return "checkpoint", _against(model, _whole(source), source)
    for to, ends in READ.items():
        telling = ends if to == "diff" else FACTORS[to][:1]  # an .alpha alone could be either LoRA's
        if any(key.endswith(telling) for key in names):
            return to, _from_format(model, names, to, source, _config(source))
    known = model.weights(lambda _: True)
    return "state dict", _against(model, {_ours(known, model.name, key, source): t for key, t in names.items()}, source)


def _whole(source: Path) -> dict[str, Tensor]:
    """Weights of everything that :func:`load_model` takes, kept off the device that the base is on."""
    return load_model(source, device="cpu").weights(lambda _: True)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadFile(f"there is no file {str(path)!r}.")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True) if path.suffix in PICKLES else load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        raise BadFile(f"{str(path)!r} could not be read: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle's own errors, and whatever a hostile file provokes
        raise BadFile(f"{str(path)!r} is no file of plain tensors ({type(error).__name__}); it was not executed.") from error
    while isinstance(found, Mapping) and len(found) <= 3 and isinstance(found.get("state_dict", found.get("unet")), Mapping):
        found = found.get("state_dict", found.get("unet"))
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise BadFile(f"{str(path)!r} holds no tensors by name.")
    return {str(key): t for key, t in found.items()}


def _from_format(
    model: DiffusionModel, tensors: Mapping[str, Tensor], to: str, source: Path, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    known, live = kohya_names(model), model.weights(lambda _: True)
    if to == "diffusers":  # an adapter of the denoiser alone does not say so
        tensors = {k if k.startswith((f"{model.part}.", "text_encoder")) else f"{model.part}.{k}": t for k, t in tensors.items()}
    modules = set(known.values()) if to != "diffusers" else set(known)
    for key in tensors:
        end = next((e for e in READ[to] if key.endswith(e)), None)
        if end is None:
            raise BadFile(f"{source} holds {key!r}, which efface does not read; without it the rest would be another change.")
        if key.removesuffix(end) not in modules:
            raise BadFile(f"{source}: {key!r} names no layer of {model.name!r}; it was made for another family of models.")
    found = read_back({**_alphas(tensors, config, source), **tensors}, to, known)
    wrong = [n for n, d in found.items() if d.numel() != live[n].numel()]
    if wrong:
        n = wrong[0]
        raise WrongBaseModel(f"{source}: {n} is {tuple(found[n].shape)}, in {model.name!r} {tuple(live[n].shape)}.")
    return {n: d.reshape(live[n].shape) for n, d in found.items() if bool((d != 0).any())}


def _alphas(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    """Of every module of a LoRA: what the configuration says, else the rank, a scale of 1. The file's own alphas come first."""
    if config.get("use_rslora") or config.get("use_dora"):
        raise BadFile(f"{source} is a LoRA with rslora or dora, which efface does not read.")
    patterns, found = config.get("alpha_pattern") or {}, {}
    for up_end, _ in FACTORS.values():
        for key, up in tensors.items():
            if key.endswith(up_end):
                module = key.removesuffix(up_end)
                own = [v for name, v in patterns.items() if module == name or module.endswith("." + name)]
                found[f"{module}.alpha"] = torch.tensor(float(own[0] if own else config.get("lora_alpha", up.shape[1])))
    return found


def _config(path: Path) -> dict[str, Any]:
    """What peft says of an adapter: in the folder beside it, or in its header."""
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        return dict(json.loads(beside.read_text("utf-8")))
    if path.suffix in PICKLES:
        return {}
    with safe_open(path, framework="pt") as f:
        header = json.loads((f.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return {key.removeprefix("unet."): value for key, value in header.items()}


def _ours(live: Mapping[str, Tensor], model: str, key: str, source: Path) -> str:
    """The name of a state dict's tensor among the model's."""
    text = f"text_encoder.{key.removeprefix('text_encoder.').removeprefix('text_model.')}"
    for name in (key, f"unet.{key}", text):
        if name in live:
            return name
    raise BadFile(f"{source}: {key!r} names no weight of {model!r}; nothing that is not understood is passed over.")


def _against(model: DiffusionModel, values: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    live = model.weights(lambda _: True)
    deltas = {}
    for name, value in values.items():
        if name not in live:
            raise BadFile(f"{source}: {model.name!r} has no weight {name!r}; it is a model of another family.")
        base = live[name].detach().cpu()
        if value.shape != base.shape:
            raise WrongBaseModel(f"{source}: {name} is {tuple(value.shape)}, in {model.name!r} {tuple(base.shape)}.")
        value = value.detach().cpu()
        if not any(torch.equal(value, base.to(rounded).to(value.dtype)) for rounded in (value.dtype, *HALVES)):
            deltas[name] = value.float() - base.float()
    return deltas


def _digest(source: Path) -> str:
    """sha256 of a file, or of a folder's weight files in order."""
    files = sorted(f for f in source.rglob("*.safetensors")) if source.is_dir() else [source]
    h = hashlib.sha256()
    for file in files:
        with open(file, "rb") as f:
            for part in iter(lambda: f.read(1 << 20), b""):
                h.update(part)
    return h.hexdigest()
