"""The bundled flow miniature: Stable Diffusion 3's transformer between the text encoder, tokenizer and VAE of the miniature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import BadFile
from ..mini import WEIGHTS as MINI
from ..mini import mini_world
from ..mini.world import load_world
from ..world import World, WorldSource

if TYPE_CHECKING:
    from ..sd3 import StableDiffusion3

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"


def load_mini_flow(*, gold: bool = False, dtype: str = "float32", device: str = "cpu") -> StableDiffusion3:
    """The shipped model, or with ``gold`` the transformer that never saw the reserved concepts (all else is shared).

    Both CLIP slots of Stable Diffusion 3 hold the miniature's one encoder, its projection the identity; there is no T5 and no row
    for it, so a stock pipeline of these parts is called with ``max_sequence_length=0``.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from ..parts import named_dtype
    from ..sd3 import StableDiffusion3

    network = WEIGHTS / "gold" if gold else WEIGHTS
    for folder in (network / "transformer", MINI / "text_encoder"):
        if not (folder / "config.json").is_file():
            raise BadFile(f"the bundled flow miniature is missing from {folder}; reinstall efface.")
    kind = named_dtype(dtype)
    plain = CLIPTextModel.from_pretrained(MINI, subfolder="text_encoder", dtype=kind)
    plain.config.projection_dim = plain.config.hidden_size

    def slot() -> Any:
        encoder = CLIPTextModelWithProjection(plain.config).to(kind)
        state = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in plain.state_dict().items()}
        encoder.load_state_dict({**state, "text_projection.weight": torch.eye(plain.config.hidden_size, dtype=kind)})
        return encoder.to(device)

    vae = AutoencoderKL.from_pretrained(MINI, subfolder="vae", torch_dtype=kind)
    vae.register_to_config(shift_factor=0.0)  # the stock pipeline wants a number
    transformer = SD3Transformer2DModel.from_pretrained(network, subfolder="transformer", torch_dtype=kind)
    tokenizers = [CLIPTokenizer.from_pretrained(MINI, subfolder="tokenizer") for _ in range(2)]
    model = StableDiffusion3(
        name="mini-flow-gold" if gold else "mini-flow",
        tokenizer=tokenizers[0],
        text_encoder=slot(),
        tokenizer_2=tokenizers[1],
        text_encoder_2=slot(),
        transformer=transformer.to(device),
        vae=vae.to(device),
        scheduler=json.loads((WEIGHTS / "scheduler" / "scheduler_config.json").read_text("utf-8")),
        t5_rows=0,
        preset="mini-flow",
        concept_names=load_world().names("ordinary", "reserved"),
    )
    model.world = mini_flow_world()
    return model


@cache
def mini_flow_world() -> World:
    """The miniature's world; the flow miniature draws the same concepts, and its gold model has not seen the same ones."""
    return replace(mini_world(), gold="mini-flow-gold")


class MiniFlowWorld(WorldSource):
    """The flow miniature's own world, which it brings along."""

    name = "mini-flow"
    summary = "the miniature's icons, for the flow miniature"
    models: ClassVar[Mapping[str, str]] = {
        "mini-flow": "the miniature's world drawn by a Stable Diffusion 3 transformer (7.3 M parameters)",
        "mini-flow-gold": "the flow miniature before it saw the reserved concepts",
    }

    def world(self) -> World:
        return mini_flow_world()

    def load(self, model: str, *, dtype: str, device: str) -> StableDiffusion3:
        return load_mini_flow(gold=model == "mini-flow-gold", dtype=dtype, device=device)


@cache
def card() -> dict[str, Any]:
    """How the two networks were trained and judged, and what they reached."""
    facts: dict[str, Any] = json.loads((HERE / "card.json").read_text("utf-8"))
    return facts
