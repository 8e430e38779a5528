"""What other tools call the weights of a model, and what the tensors of their adapters are.

One weight has many names: diffusers writes ``unet.down_blocks.0...``, transformers before 5 put ``text_model.`` in front of a
text encoder's layers, CompVis and Stability number the blocks of the UNet (``input_blocks.1.1...``), and kohya writes either
with underscores after ``lora_unet_``. :class:`Names` knows all of them for the layers of one model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..errors import BadFile, WrongBaseModel

PARTS = ("text_encoder_2", "text_encoder", "unet", "transformer")
"""Parts of a model whose weights a patch can change; a name that starts with another one's comes first."""

ROLES = (
    ("down", re.compile(r"(?:\.lora_A(?:\.\w+)?|\.lora[._]down|\.lora_linear_layer\.down|_lora\.down)\.weight$")),
    ("up", re.compile(r"(?:\.lora_B(?:\.\w+)?|\.lora[._]up|\.lora_linear_layer\.up|_lora\.up)\.weight$")),
    ("up bias", re.compile(r"\.lora_B(?:\.\w+)?\.bias$")),
    ("alpha", re.compile(r"\.alpha$")),
    ("weight", re.compile(r"\.(?:diff|w_norm)$")),
    ("bias", re.compile(r"\.(?:diff_b|b_norm)$")),
)
"""What a tensor of an adapter is, by the end of its name: a factor of a LoRA, its alpha, or the change of a whole tensor."""
KINDS = (
    ("LoHa", re.compile(r"\.hada_[wt]\d")),
    ("LoKr", re.compile(r"\.lokr_[wt]\d")),
    ("DoRA", re.compile(r"\.(?:dora_scale|lora_magnitude_vector)")),
    ("LoCon with a middle factor (Tucker)", re.compile(r"\.lora_mid\.")),
    ("IA3", re.compile(r"\.(?:on_input|ia3_l)\b")),
    ("OFT", re.compile(r"\.(?:oft|boft)_\w+")),
    ("VeRA", re.compile(r"\.vera_lambda")),
    ("AdaLoRA", re.compile(r"\.(?:lora_E|ranknum)\b")),
    ("GLoRA", re.compile(r"\.[ab][12]\.weight$")),
    ("LoRA of a token embedding", re.compile(r"\.lora_embedding_")),
    ("textual inversion", re.compile(r"^(?:emb_params|clip_[gl]|string_to_param)\b")),
    ("ControlNet", re.compile(r"^(?:control_model\.|controlnet|lora_controlnet|input_hint_block\.)")),
    (
        "SD3 or FLUX",
        re.compile(r"^(?:lora_|lora_unet_|model\.diffusion_model\.)?(?:double_blocks|single_blocks|joint_blocks)[._]"),
    ),
    ("SD3 or FLUX", re.compile(r"^lora_transformer_")),
)
"""Kinds of files that efface does not read, by a name in them."""
OTHER_DENOISER = (
    "SD3 or FLUX (or another transformer's)",
    re.compile(
        r"^(?:transformer\.|cap_embedder\."
        r"|(?:transformer_blocks|single_transformer_blocks|blocks|layers|context_refiner|noise_refiner)\.\d)"
    ),
)
"""Of a model with a UNet, a further kind."""
NO_WEIGHTS = re.compile(
    r"(?:^|\.)(?:position_ids|num_batches_tracked)$"
    r"|^(?:first_stage_model|vae|model_ema)\."
    r"|^(?:denoiser\.)?(?:betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights|scale_factor"
    r"|sigmas|log_sigmas)$"
)
"""Names of buffers, and of parts that no erasure changes: the VAE and the moving average of a training."""


def kind_of(names: Iterable[str], denoiser: str = "unet") -> tuple[str, str] | None:
    """(kind, telling name) of a file that efface does not read for a model whose denoiser is so called; None for every other."""
    kinds = (*KINDS, OTHER_DENOISER) if denoiser == "unet" else KINDS
    return next(((kind, n) for n in names for kind, pattern in kinds if pattern.search(n)), None)


def role_of(name: str) -> tuple[str, str] | None:
    """(module as the file calls it, role) of a tensor of an adapter; None for a tensor of a state dict."""
    for role, pattern in ROLES:
        match = pattern.search(name)
        if match:
            return name[: match.start()], role
    return None


class Names:
    """Every name that the modules of a model go by."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        modules = dict.fromkeys(n.rpartition(".")[0] for n in weights)
        numbered = ldm_names({m.removeprefix("unet.") for m in modules if m.startswith("unet.")})
        two = any(m.startswith("text_encoder_2.") for m in modules)
        self.aliases: dict[str, list[str]] = {}
        for module in modules:
            part, _, inside = module.partition(".")
            for alias in _aliases(part, inside, numbered, two):
                self.aliases.setdefault(alias, []).append(module)

    def weight(self, module: str, shape: Sequence[int], source: object, model: str, kind: str = "weight") -> str:
        """Our name of a tensor of the module that a file calls so. Two text encoders can have a module of one name; the number of
        values says which is meant. Raises BadFile for a module that the model does not have, WrongBaseModel for one of
        another size."""
        found = [f"{m}.{kind}" for m in self.aliases.get(_plain(module), ()) if f"{m}.{kind}" in self.weights]
        if not found:
            raise BadFile(f"{source}: {module!r} names no layer of {model!r}; it was made for another family of models.")
        fitting = [n for n in found if self.weights[n].numel() == math.prod(shape)]
        if not fitting:
            live = tuple(self.weights[found[0]].shape)
            raise WrongBaseModel(f"{source}: {found[0]} is {tuple(shape)}, in {model!r} {live}.")
        if len(fitting) > 1:
            raise BadFile(f"{source}: {module!r} could be {' or '.join(fitting)}; name the part in front of it.")
        return fitting[0]


def _plain(module: str) -> str:
    """A module's name without the attention processors in which diffusers before 0.26 kept a LoRA."""
    text = ".processor." not in module and re.search(r"self_attn\.to_(?:q|k|v|out)$", module)
    if text:
        return re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", module)
    return re.sub(r"\.processor\.(to_[qkv]|to_out)$", lambda m: f".{m[1]}.0" if m[1] == "to_out" else f".{m[1]}", module)


def _aliases(part: str, inside: str, numbered: Mapping[str, str], two: bool) -> list[str]:
    if part == "transformer":
        return [inside, f"transformer.{inside}"]
    return _unet_aliases(inside, numbered) if part == "unet" else _text_aliases(part, inside, two)


def _unet_aliases(inside: str, numbered: Mapping[str, str]) -> list[str]:
    spellings = dict.fromkeys((inside, numbered.get(inside, inside)))
    return [
        alias
        for name in spellings
        for alias in (
            name,
            f"unet.{name}",
            f"model.diffusion_model.{name}",
            f"diffusion_model.{name}",
            f"lora_unet_{_flat(name)}",
        )
    ]


def _text_aliases(part: str, inside: str, two: bool) -> list[str]:
    prefixed = inside if inside == "text_projection" else f"text_model.{inside}"
    aliases = [inside, prefixed, f"{part}.{inside}", f"{part}.{prefixed}"]
    if part == "text_encoder":
        aliases += [f"cond_stage_model.transformer.{prefixed}", f"conditioner.embedders.0.transformer.{prefixed}"]
        aliases += [f"{te}_{_flat(prefixed)}" for te in (("lora_te1",) if two else ("lora_te", "lora_te1"))]
    else:
        aliases.append(f"lora_te2_{_flat(prefixed)}")
    return list(dict.fromkeys(aliases))


def _flat(name: str) -> str:
    return name.replace(".", "_")


IN_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_names(modules: Iterable[str]) -> dict[str, str]:
    """``{module of diffusers' UNet: its name in CompVis' and Stability's code}``, where blocks are numbered one after the other.

    A down block gives one input block per ResNet and one for its downsampler; an up block gives one output block per ResNet, and
    its upsampler is the last member of its last one.
    """
    modules = list(modules)
    resnets: dict[tuple[str, int], int] = {}
    attended: set[tuple[str, int]] = set()
    for m in modules:
        match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", m)
        if match:
            block = match[1], int(match[2])
            resnets[block] = max(resnets.get(block, 0), int(match[4]) + 1)
            attended |= {block} if match[3] == "attentions" else set()

    def first(side: str, i: int) -> int:
        """Number of the first block of down or up block i."""
        extra = 1 if side == "down" else 0
        return extra + sum(n + extra for (s, j), n in resnets.items() if s == side and j < i)

    found = {}
    for m in modules:
        match = re.match(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", m)
        if match is None:
            if m in AROUND:
                found[m] = AROUND[m]
            continue
        side, i, kind, j, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        inner = IN_RESNETS.get(rest, rest) if kind == "resnets" else rest
        if side is None:
            found[m] = f"middle_block.{1 if kind == 'attentions' else 2 * j}.{inner}"
        elif kind == "downsamplers":
            found[m] = f"input_blocks.{first('down', i) + resnets[side, i]}.0.op"
        elif kind == "upsamplers":
            last = first("up", i) + resnets[side, i] - 1
            found[m] = f"output_blocks.{last}.{2 if (side, i) in attended else 1}.{inner}"
        else:
            blocks = "input_blocks" if side == "down" else "output_blocks"
            found[m] = f"{blocks}.{first(side, i) + j}.{0 if kind == 'resnets' else 1}.{inner}"
    return found


def part_of(name: str) -> str | None:
    """The part of a model that a name says it belongs to."""
    return next((p for p in PARTS if name.startswith(f"{p}.")), None)
