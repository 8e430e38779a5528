"""From what a user types to a DiffusionModel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BadFile, BadOption, UnknownName
from .base import DiffusionModel

if TYPE_CHECKING:
    from .sd import StableDiffusion

BUNDLED = {
    "mini": "the bundled miniature Stable Diffusion (icons, 48 px)",
    "mini-gold": "the miniature before it saw the reserved concepts: the gold model of their erasure",
    "mini-flow": "the miniature's world drawn by a Stable Diffusion 3 transformer (7.3 M parameters)",
    "mini-flow-gold": "the flow miniature before it saw the reserved concepts",
    "tiny": "random weights of the real classes, for tests",
    "tiny-v": "tiny with v-prediction",
    "tiny-xl": "tiny with the two text encoders of SDXL",
    "tiny-sd3": "tiny as Stable Diffusion 3.5: a flow transformer and three text encoders",
}
ACCEPTED = (
    "give a loaded StableDiffusionPipeline, StableDiffusionXLPipeline or StableDiffusion3Pipeline, a folder, a checkpoint file "
    "or a Hub id."
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


def load_model(source: Any, *, dtype: str = "float32", device: str = "auto") -> DiffusionModel:
    """A bundled name, a diffusers folder, a single checkpoint file, a Hub id ``owner/name``, or a loaded diffusers pipeline.

    Raises UnknownName for a word that is none of these, BadFile for files and objects of another kind.

    >>> import efface
    >>> efface.load_model("tiny").name
    'tiny'

    """
    from .plain import OFFLOADED
    from .sd import StableDiffusion
    from .sd3 import StableDiffusion3
    from .sdxl import StableDiffusionXL

    if isinstance(source, DiffusionModel):
        return source
    if not isinstance(source, (str, Path)):
        kind = type(source).__name__
        flow = hasattr(source, "transformer") and hasattr(source, "text_encoder_3")
        unet = hasattr(source, "unet") and hasattr(source, "text_encoder")
        if not (flow or unet) or not hasattr(source, "scheduler"):
            raise BadFile(f"a {kind} is no pipeline that efface erases from; {ACCEPTED}")
        family = StableDiffusion3 if flow else StableDiffusionXL if hasattr(source, "text_encoder_2") else StableDiffusion
        live = family.from_pipeline(source)
        if live.device.type == "meta":
            raise BadFile(f"the weights of this {kind} are not in memory (device meta). {OFFLOADED}")
        return live
    device = pick_device(device)
    source = str(source)
    if source in ("mini", "mini-gold"):
        from .mini import load_mini

        return load_mini(gold=source == "mini-gold", dtype=dtype, device=device)
    if source in ("mini-flow", "mini-flow-gold"):
        from .mini_flow import load_mini_flow

        return load_mini_flow(gold=source == "mini-flow-gold", dtype=dtype, device=device)
    if source in ("tiny", "tiny-v", "tiny-xl", "tiny-sd3"):
        from .tiny import tiny, tiny_sd3, tiny_xl

        if source == "tiny-sd3":
            return tiny_sd3(dtype=dtype, device=device)
        if source == "tiny-xl":
            return tiny_xl(dtype=dtype, device=device)
        return tiny("epsilon" if source == "tiny" else "v_prediction", dtype=dtype, device=device)
    path = Path(source)
    if path.is_file():
        return (StableDiffusionXL if _is_xl(path) else StableDiffusion).from_single_file(path, dtype=dtype, device=device)
    if path.is_dir() or (source.count("/") == 1 and not source.startswith((".", "/", "~"))):
        return _family(source).from_folder(source, dtype=dtype, device=device)
    raise UnknownName("model", source, BUNDLED)


def _family(source: str) -> type[StableDiffusion]:
    """The adapter of a folder or Hub id, by the pipeline it names; other families are refused before anything is loaded."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from .sd import StableDiffusion
    from .sd3 import StableDiffusion3
    from .sdxl import StableDiffusionXL

    index = Path(source) / "model_index.json"
    adapters: dict[str, type[StableDiffusion]] = {
        "StableDiffusionPipeline": StableDiffusion,
        "StableDiffusionXLPipeline": StableDiffusionXL,
        "StableDiffusion3Pipeline": StableDiffusion3,
    }
    try:
        named = json.loads(index.read_text("utf-8")) if index.parent.is_dir() else DiffusionPipeline.load_config(source)
    except OSError:
        return StableDiffusion  # no index: loading will tell
    family = named.get("_class_name", "?")
    if family not in adapters:
        raise BadFile(
            f"{source!r} is a {family}; this version reads {', '.join(adapters)} (SD 1.x, 2.x, SDXL base, SD 3 and 3.5)."
        )
    return adapters[family]


def _is_xl(path: Path) -> bool:
    """Whether a ``.safetensors`` checkpoint has SDXL's second text encoder."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith("conditioner.embedders.1.") for name in file.keys())  # noqa: SIM118  # no dict
    except SafetensorError:
        return False
