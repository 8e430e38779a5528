"""A LoRA file as the readers of diffusers and peft understand it: what it changes, in which strength."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def denoiser_changes(state: Mapping[str, Tensor], alphas: Mapping[str, float], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{weight: change}`` of a UNet or transformer. state, alphas: as a stock pipeline's ``lora_state_dict`` gives them, without
    the part's name; live: the weights of the part. What the reader passes over is not there."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    lora = convert_unet_state_dict_to_peft(dict(state))
    # The reader renames alphas with the keys of the factors they belong to.
    scales = convert_unet_state_dict_to_peft({k.removesuffix(".alpha"): a for k, a in alphas.items()})
    return _changes(lora, {m: scales.get(f"{m}.lora_A.weight", scales.get(m)) for m in _modules(lora)}, live)


def encoder_changes(state: Mapping[str, Tensor], alphas: Mapping[str, float], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of a CLIP text encoder, whose layers may be called with ``text_model.`` in front of them or without."""
    from diffusers.utils.peft_utils import get_peft_kwargs
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

    lora = convert_state_dict_to_peft(convert_state_dict_to_diffusers(dict(state)))
    lora = {k.removeprefix("text_model."): t for k, t in lora.items()}
    modules = _modules(lora)
    said = get_peft_kwargs({m: lora[f"{m}.lora_B.weight"].shape[1] for m in modules}, dict(alphas), lora, is_unet=False)
    return _changes(lora, {m: said["alpha_pattern"].get(m, said["lora_alpha"]) for m in modules}, live)


def _modules(lora: Mapping[str, Tensor]) -> list[str]:
    """The layers that a LoRA under peft's names changes."""
    return [key.removesuffix(".lora_B.weight") for key in lora if key.endswith(".lora_B.weight")]


def _changes(lora: Mapping[str, Tensor], alphas: Mapping[str, float | None], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``alpha / rank up down`` by weight, and the biases; an alpha of None is the rank."""
    found = {}
    for module in _modules(lora):
        up, down = lora[f"{module}.lora_B.weight"], lora[f"{module}.lora_A.weight"]
        alpha = alphas[module]
        if f"{module}.weight" in live:
            scale = 1.0 if alpha is None else alpha / len(down)
            found[f"{module}.weight"] = (scale * (up.flatten(1) @ down.flatten(1))).reshape(live[f"{module}.weight"].shape)
        bias = lora.get(f"{module}.lora_B.bias")
        if bias is not None and bool(bias.any()) and f"{module}.bias" in live:  # zeros fill up a part whose other layers have one
            found[f"{module}.bias"] = bias
    return found
