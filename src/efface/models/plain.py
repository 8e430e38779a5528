"""Whether a live module is the plain network that its configuration describes.

A pipeline that somebody has used may hold a wrapped, adapted, fused, offloaded or quantised network. Wrappers that only forward
to the network are taken off. Whatever else would make an edit miss the weights that compute the prediction, or put foreign
tensors into a patch, is refused by name before anything is spent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import BadFile, BadOption

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa: a weight moves by up to 1/16 of itself, and one below 2^-10 becomes 0."""
STORAGES = ("fp8",)
STORING_HOOK = "layerwise_casting"
"""The name under which diffusers looks for the precision that a network computes in."""
ADAPTED = ("base_layer", "lora_", "hada_", "lokr_", "ia3_", "oft_", "boft_", "vera_", "modules_to_save", "adapter")
"""Parts of parameter names that peft's adapters and their relatives give."""
FOREIGN = ("IPAdapter", "PAG", "CustomDiffusion", "Lora", "LoRA", "Fused")
"""Parts of the names of attention processors that compute something else than the layer's own projections do."""


def unwrapped(module: Any) -> Any:
    """The module below ``torch.compile`` and data-parallel wrappers; the very same parameters. A module that was compiled in
    place gives an eager twin of itself that shares every parameter and layer."""
    while isinstance(module, nn.Module):
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if inner is None:
            break
        module = inner
    if getattr(module, "_compiled_call_impl", None) is not None:
        return copy.copy(module)  # torch leaves the compiled call out of copies
    return module


def check_present(name: str, parts: Mapping[str, Any]) -> None:
    """Raises BadFile where a part of the pipeline is missing."""
    missing = [part for part, value in parts.items() if value is None]
    if missing:
        raise BadFile(
            f"{name!r} has no {', '.join(missing)}; an erasure needs the whole pipeline. Load it without {missing[0]}=None."
        )


def check_in_memory(name: str, part: str, module: nn.Module) -> None:
    """Raises BadFile for a module of ``name`` whose weights are not where they are computed with, or are no plain numbers."""
    where = f"the {part} of {name!r}"
    if type(module).__name__ == "FullyShardedDataParallel":
        raise BadFile(f"{where} is sharded (FSDP); gather its weights into a plain module first.")
    named = list(module.named_parameters())  # once: every walk through the tree takes as long as the checks themselves
    own = set[int]()
    for n, inner in module.named_modules():
        registry = getattr(getattr(inner, "_diffusers_hook", None), "hooks", {})
        if hasattr(inner, "_hf_hook") or (registry and not is_stored(inner)):
            kind = type(inner._hf_hook).__name__ if hasattr(inner, "_hf_hook") else ", ".join(registry)
            raise BadFile(f"{where} is under a hook that moves or casts its weights ({kind} at {n or 'the top'}). {OFFLOADED}")
        if registry:
            own |= {id(p) for p in inner.parameters(recurse=False)}
    bodiless = all(p.is_meta for _, p in named)  # a model that was asked for without numbers, to count and to measure
    for n, p in named:
        if p.is_meta and not bodiless:
            raise BadFile(f"{where} has weights that are not in memory ({n} is on the meta device). {OFFLOADED}")
        if (p.dtype not in FLOATS and id(p) not in own) or "Quant" in type(p).__name__ or hasattr(p, "quant_state"):
            raise BadFile(
                f"{where} holds {n} as {str(p.dtype).removeprefix('torch.')}; efface edits weights in float32, float16 and "
                "bfloat16. Load it without quantisation or layerwise casting, or cast it with .to(torch.float32)."
            )


def check_storage(storage: str | None) -> None:
    if storage is not None and storage not in STORAGES:
        raise BadOption(f"storage={storage!r} is no way to store frozen weights; use {', '.join(STORAGES)}, or leave it out.")


def is_stored(layer: nn.Module) -> bool:
    """Whether efface itself stores this layer in eight bits; see :mod:`efface.models.storage`."""
    hooks = getattr(getattr(layer, "_diffusers_hook", None), "hooks", {})
    return getattr(hooks.get(STORING_HOOK), "unrounded_is_kept", False)


def check_own(name: str, part: str, module: nn.Module, described: Mapping[str, Any] | None = None) -> None:
    """Raises BadFile for a module of ``name`` that computes with other weights than its own: adapters, fused projections, foreign
    attention. ``described``: the shapes of its parameters by name as the configuration has them; see :func:`shapes_of`."""
    where = f"the {part} of {name!r}"
    live = {n: p.shape for n, p in module.named_parameters()}
    names = list(live)
    wrapped = [n for n in names if "_orig_mod." in n]
    if wrapped:
        raise BadFile(
            f"{where} has compiled blocks inside ({wrapped[0].partition('._orig_mod')[0]}). Compile in place (module.compile()), "
            "or after the erasure."
        )
    adapters = _adapters(module, names)
    if adapters is not None:
        raise BadFile(
            f"{where} has an adapter loaded ({adapters}). To erase from the model without it: pipe.unfuse_lora() if it is fused, "
            "then pipe.unload_lora_weights(). To make it part of the model: pipe.fuse_lora(), then pipe.unload_lora_weights()."
        )
    if any(n.endswith(("weight_orig", "weight_g")) or ".parametrizations." in n for n in names):
        raise BadFile(f"{where} has reparametrised weights (pruning or a weight norm); make them permanent first.")
    _check_processors(where, module)
    if described is None:
        return
    odd = sorted(n for n in {*described, *live} if described.get(n) != live.get(n))
    if odd:
        raise BadFile(
            f"{where} is not the network of its configuration: {odd[0]} is {_shape(live.get(odd[0]))} instead of "
            f"{_shape(described.get(odd[0]))} ({len(odd)} such weights). Load the model anew, without adapters or changes."
        )


def shapes_of(unet: nn.Module) -> dict[str, Any]:
    """Shapes of the parameters of a network of this configuration, by name. Nothing is allocated."""
    with torch.device("meta"):
        return {n: p.shape for n, p in type(unet).from_config(dict(unet.config)).named_parameters()}


FROM_BASE = (
    "Erase from the text-to-image model that it was made from, export a LoRA (--to diffusers) and load that into its pipeline."
)
OFFLOADED = "Load the pipeline without offloading or device_map, or call pipe.remove_all_hooks() and pipe.to(device)."


def _adapters(module: nn.Module, names: Iterable[str]) -> str | None:
    """Names of the adapters that are loaded, or of a tensor of theirs; None without one."""
    for inner in module.modules():
        if hasattr(inner, "base_layer") or hasattr(inner, "peft_config"):
            found = getattr(inner, "active_adapters", None) or getattr(inner, "active_adapter", None)
            found = found() if callable(found) else found
            if hasattr(inner, "base_layer"):
                merged = ", fused" if getattr(inner, "merged_adapters", None) else ""
                return f"{', '.join(map(str, [found] if isinstance(found, str) else found or ['unnamed']))}{merged}"
    return next((n for n in names if any(part in n for part in ADAPTED)), None)


def _check_processors(where: str, module: nn.Module) -> None:
    for n, inner in module.named_modules():
        if getattr(inner, "fused_projections", False) or hasattr(inner, "to_kv") or hasattr(inner, "to_qkv"):
            raise BadFile(
                f"{where} has fused projections ({n}): its attention would not see an edit of to_k and to_v. "
                "Call pipe.unfuse_qkv_projections() first."
            )
        processor = getattr(inner, "processor", None)
        kind = type(processor).__name__
        if processor is not None and (any(part in kind for part in FOREIGN) or _has_weights(processor)):
            raise BadFile(
                f"{where} attends through {kind} ({n}), not by its own projections alone. Unload what set it "
                "(pipe.unload_ip_adapter(), or unet.set_default_attn_processor())."
            )


def _has_weights(processor: Any) -> bool:
    return isinstance(processor, nn.Module) and any(True for _ in processor.parameters())


def check_network(name: str, unet: nn.Module, latent_channels: int, width: int, pooled: bool) -> None:
    """Raises BadFile for a denoiser that is called with more than latents, timestep and text, or is not as configured.

    width: of the text encoders' tokens; pooled: whether it also gets pooled text and the picture's size, as SDXL's.
    """
    config = unet.config
    if hasattr(unet, "peft_config") and hasattr(unet, "merge_and_unload"):
        raise BadFile(
            f"the unet of {name!r} has an adapter loaded around it ({type(unet).__name__}): take its .unload(), or its "
            ".merge_and_unload() to make the adapter part of the model."
        )
    if type(unet).__name__ != "UNet2DConditionModel":
        raise BadFile(
            f"{name!r} has a {type(unet).__name__}; efface erases from the UNet2DConditionModel of SD 1.x, 2.x and SDXL."
        )
    if not config.in_channels == config.out_channels == latent_channels:
        raise BadFile(
            f"the UNet of {name!r} reads {config.in_channels} and gives {config.out_channels} channels where latents have "
            f"{latent_channels}: it is made for inpainting, depth, editing or upscaling. {FROM_BASE}"
        )
    wanted = "text_time" if pooled else None
    more = {
        "addition_embed_type": config.addition_embed_type if config.addition_embed_type != wanted else None,
        "class_embed_type": config.class_embed_type,
        "num_class_embeds": config.num_class_embeds,
        "encoder_hid_dim": config.encoder_hid_dim,
        "encoder_hid_dim_type": config.encoder_hid_dim_type,
    }
    extra = [f"{key}={value}" for key, value in more.items() if value is not None]
    if extra or (pooled and config.addition_embed_type != wanted):
        raise BadFile(
            f"the UNet of {name!r} is conditioned on something else than its text ({extra[0] if extra else 'no pooled text'}); "
            "efface does not know what to give it. Unload an IP-Adapter, or use SD 1.x, 2.x or SDXL base."
        )
    if config.cross_attention_dim != width:
        raise BadFile(
            f"the UNet of {name!r} reads text of width {config.cross_attention_dim}, its encoders give {width}; they do not "
            "belong together. Load both from one model."
        )


def _shape(shape: Any) -> str:
    return "missing" if shape is None else str(tuple(shape))


def latent_side(name: str, unet: nn.Module) -> tuple[int, int]:
    """Height and width of the latents the network was made for. Raises BadFile where its configuration does not say."""
    size = unet.config.sample_size
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    raise BadFile(
        f"the UNet of {name!r} does not say how large its latents are (sample_size={size!r}). Say so: "
        "pipe.unet.register_to_config(sample_size=64), or in unet/config.json."
    )
