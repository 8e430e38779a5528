"""From what a user types to a DiffusionModel."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BadFile, BadOption, PluginError, UnknownName
from ..plugins import Plugins
from .base import DiffusionModel
from .placement import DEVICE, check_place
from .world import WorldSource

if TYPE_CHECKING:
    from .sd import StableDiffusion

WORLDS: Plugins[WorldSource] = Plugins("world", "efface.worlds", WorldSource)  # type: ignore[type-abstract]
TINY = {
    "tiny": "random weights of the real classes, for tests",
    "tiny-v": "tiny with v-prediction",
    "tiny-xl": "tiny with the two text encoders of SDXL",
    "tiny-sd3": "tiny as Stable Diffusion 3.5: a flow transformer and three text encoders",
    "tiny-flux": "tiny as FLUX.1 dev: embedded guidance, packed latents, T5 and the pooled text of CLIP",
    "tiny-pixart": "tiny as PixArt-Sigma: a transformer with cross-attention that T5 alone reads the text for",
    "tiny-sana": "tiny as Sana: a flow transformer with cross-attention whose text Gemma 2 reads behind an instruction",
    "tiny-z-image": "tiny as Z-Image: a flow transformer with one stream of text and picture, whose text Qwen3 reads in a chat",
    "tiny-wan": "tiny as Wan 2.1, of which one frame is drawn: a flow transformer of videos with cross-attention",
}
ACCEPTED = (
    "give a loaded pipeline of Stable Diffusion 1.x, 2.x, XL, 3 or 3.5, FLUX.1, PixArt, Sana, Z-Image or Wan 2.1, a folder, "
    "a file or a Hub id."
)


def pick_device(name: str) -> str:
    """``auto``: cuda, else mps, else cpu."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadOption(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadOption(f"device {name!r} was asked for, but this torch sees no GPU; use --device cpu or auto.")
    return name


def load_model(
    source: Any, *, dtype: str = "float32", device: str = "auto", encoders: str = DEVICE, storage: str | None = None
) -> DiffusionModel:
    """The name of a model of an installed world or of a tiny one, a diffusers folder, a single checkpoint file, a Hub id
    ``owner/name``, or a loaded diffusers pipeline.

    ``encoders``: where the text encoders and the VAE lie and compute while the network is on a GPU; see
    :meth:`DiffusionModel.place`. ``storage``: "fp8" stores the network in eight bits; see :meth:`DiffusionModel.store`. Both act
    on a loaded pipeline's own modules. ``dtype`` and ``device`` are those that a loaded pipeline has. Raises UnknownName for a
    word that is none of these, BadFile for files and objects of another kind.

    >>> import efface
    >>> efface.load_model("tiny").name
    'tiny'

    """
    from .parts import named_dtype
    from .plain import FP8, OFFLOADED, check_storage
    from .room import refuse_too_large

    check_place(encoders)
    check_storage(storage)
    if isinstance(source, DiffusionModel):
        return _placed(source, encoders if encoders != DEVICE else source.encoders_at, storage)
    if not isinstance(source, (str, Path)):
        kind, family = type(source).__name__, _of_pipeline(source)
        if family is None:
            raise BadFile(f"a {kind} is no pipeline that efface erases from; {ACCEPTED}")
        live = family.from_pipeline(source)
        if live.device.type == "meta":
            raise BadFile(f"the weights of this {kind} are not in memory (device meta). {OFFLOADED}")
        return _placed(live, encoders if encoders != DEVICE else live.encoders_at, storage)
    device = pick_device(device)
    if encoders != DEVICE or storage is not None:  # everything is read into the computer's memory first
        if Path(source).is_dir():
            held = FP8 if storage is not None else named_dtype(dtype)
            refuse_too_large(Path(source), held, device, family_of(str(source)).part)
        return _placed(load_model(source, dtype=dtype, device="cpu"), encoders, storage, device)
    source = str(source)
    if source in TINY:
        from .tiny import TINY as BUILD

        return BUILD[source](dtype=dtype, device=device)
    if (world := _world_of(source)) is not None:
        return world.load(source, dtype=dtype, device=device)
    path = Path(source)
    if path.exists():
        refuse_too_large(path, named_dtype(dtype), device)
    if path.is_file():
        return _of_file(path).from_single_file(path, dtype=dtype, device=device)
    if path.is_dir() or (source.count("/") == 1 and not source.startswith((".", "/", "~"))):
        return family_of(source).from_folder(source, dtype=dtype, device=device)
    raise UnknownName("model", source, known_models(), note=f" Installed worlds: {', '.join(WORLDS)}.")


def _placed(model: DiffusionModel, encoders: str, storage: str | None, device: str | None = None) -> DiffusionModel:
    if storage is not None:
        model.store(storage)
    if device is not None or encoders != model.encoders_at:
        model.place(encoders, device)
    return model


def _world_of(model: str) -> WorldSource | None:
    """The world that brings a model of this name. A world's models are called after it, so no other package is imported."""
    for name in WORLDS:
        if (model == name or model.startswith(f"{name}-")) and model in WORLDS[name].models:
            return WORLDS[name]()
    return None


def known_models() -> dict[str, str]:
    """Name -> what it is, of every model that needs no files of the user. Worlds that cannot be imported are passed over: only
    what asks for one of them by name fails."""
    found: dict[str, str] = {}
    for name in WORLDS:
        with suppress(PluginError):
            found |= WORLDS[name].models
    return found | TINY


def _adapters() -> dict[str, type[StableDiffusion]]:
    """The adapters by the pipeline they are made of."""
    from .flux import Flux
    from .pixart import PixArt, PixArtAlpha
    from .sana import Sana
    from .sd import StableDiffusion
    from .sd3 import StableDiffusion3
    from .sdxl import StableDiffusionXL
    from .wan import Wan
    from .z_image import ZImage

    return {
        "StableDiffusionPipeline": StableDiffusion,
        "LatentConsistencyModelPipeline": StableDiffusion,
        "StableDiffusionXLPipeline": StableDiffusionXL,
        "StableDiffusion3Pipeline": StableDiffusion3,
        "FluxPipeline": Flux,
        "PixArtSigmaPipeline": PixArt,
        "PixArtAlphaPipeline": PixArtAlpha,
        "SanaPipeline": Sana,
        "ZImagePipeline": ZImage,
        "WanPipeline": Wan,
    }


def _of_pipeline(source: Any) -> type[StableDiffusion] | None:
    """The adapter of a loaded pipeline: by its class or one that it is derived from, else by its parts."""
    if not hasattr(source, "scheduler"):
        return None
    adapters = _adapters()
    for kind in type(source).__mro__:
        if kind.__name__ in adapters:
            return adapters[kind.__name__]
    if hasattr(source, "transformer") and hasattr(source, "text_encoder_3"):
        return adapters["StableDiffusion3Pipeline"]
    if hasattr(source, "unet") and hasattr(source, "text_encoder"):
        return adapters["StableDiffusionXLPipeline" if hasattr(source, "text_encoder_2") else "StableDiffusionPipeline"]
    return None


def family_of(source: str) -> type[StableDiffusion]:
    """The adapter of a folder or Hub id, by the pipeline it names; other families are refused before anything is loaded."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from .plain import FROM_BASE

    index, adapters = Path(source) / "model_index.json", _adapters()
    try:
        named = json.loads(index.read_text("utf-8")) if index.parent.is_dir() else DiffusionPipeline.load_config(source)
    except OSError:
        return adapters["StableDiffusionPipeline"]  # no index: loading will tell
    family = named.get("_class_name", "?")
    if family not in adapters:
        edits = any(word in family for word in ("Inpaint", "Img2Img", "Fill", "Kontext", "Control", "Pix2Pix", "Upscale", "PAG"))
        remedy = f" {FROM_BASE}" if edits else ""
        raise BadFile(f"{source!r} is a {family}; this version reads {', '.join(adapters)}.{remedy}")
    return adapters[family]


IN_FILES = {
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
}
"""How names begin in a single file, behind ``model.diffusion_model.``, that tell the family."""


def _of_file(path: Path) -> type[StableDiffusion]:
    """The adapter of a single file, by names of tensors in a ``.safetensors`` file; else Stable Diffusion's."""
    from safetensors import SafetensorError, safe_open

    found = "StableDiffusionPipeline"
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                inside = name.removeprefix("model.diffusion_model.")
                found = next((pipeline for start, pipeline in IN_FILES.items() if inside.startswith(start)), found)
    except SafetensorError:
        pass
    return _adapters()[found]
