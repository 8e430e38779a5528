"""Which weights of a denoiser read the text, and where: what a closed-form edit multiplies. Families differ only here.

"tokens" is the sequence of hidden states (SD 1.x: CLIP, 768; SD 2.x: OpenCLIP, 1024; SDXL: both encoders side by side, 2048;
SD3: both, and T5 behind them, 4096; FLUX: T5, 4096; PixArt: T5 behind the caption projection, 1152; Sana: Gemma 2 behind that
and a norm, 2240; Z-Image: Qwen3 behind a norm, 2560), "pooled" the one vector per prompt that SDXL, SD3 and FLUX also receive. An
edit of the tokens alone leaves the concept a second way in.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import NothingSelected


@dataclass(frozen=True)
class Reader:
    """``W[:, :width]`` of the parameter ``name`` reads the text vector; the remaining columns read something else.

    A bias is no part of it: targets are ``W y``, and the layer adds its bias once, as ever. The official FLUX script takes
    ``module(y) = W y + b`` for the target, solves it into W and adds b a second time, preserved concepts included.
    """

    name: str
    width: int


def text_readers(network: nn.Module) -> dict[str, list[Reader]]:
    """Readers of "tokens" and, where the family has them, of "pooled". Raises NothingSelected for a network that reads no text
    in a way known here.

    Cross-attention keys and values of every UNet, of PixArt and of Sana; SDXL's ``add_embedding`` (pooled text first, then the
    time ids); the ``context_embedder`` and ``time_text_embed.text_embedder`` of SD3 and FLUX and the ``cap_embedder`` of Z-Image,
    behind which text and image are mixed.
    """
    parameters = dict(network.named_parameters())
    tokens = [n for n in ("context_embedder.weight", "cap_embedder.1.weight") if n in parameters]
    # Behind a context embedder, attn2 (Stable Diffusion 3.5) attends to the picture alone.
    tokens = tokens or [n for n in parameters if n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))]
    if not tokens:
        raise NothingSelected(f"{type(network).__name__} has neither cross-attention nor a context embedder: no text to edit.")
    found = {"tokens": [Reader(n, parameters[n].shape[1]) for n in tokens]}
    if "add_embedding.linear_1.weight" in parameters:
        times = 6 * network.config.addition_time_embed_dim  # original size, crop and target size, two numbers each
        width = parameters["add_embedding.linear_1.weight"].shape[1] - times
        found["pooled"] = [Reader("add_embedding.linear_1.weight", width)]
    pooled = "time_text_embed.text_embedder.linear_1.weight"
    if pooled in parameters:
        found["pooled"] = [Reader(pooled, parameters[pooled].shape[1])]
    return found


def read_part(weight: Tensor, reader: Reader) -> Tensor:
    """(out, width): the columns that read the text."""
    return weight[:, : reader.width]
