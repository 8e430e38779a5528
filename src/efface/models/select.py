"""Named groups of parameters, as predicates over checkpoint names (``unet.``, ``transformer.`` or ``text_encoder.`` prefixed).

A family has its own groups; ``xattn`` and ``xattn-kv``, what reads the text, mean the nearest thing in each. The counts for
Stable Diffusion 1.4 and 3.5 medium are asserted in the tests on meta-device models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import BadOption, UnknownName

Select = Callable[[str], bool]
ENCODERS = ("text_encoder.", "text_encoder_2.")
FOR_TEXT = ".text_rows"
"""How changes of a shared layer for the rows of the text alone are called; see :mod:`efface.models.text_rows`."""


def in_checkpoint(name: str) -> bool:
    """Whether files of the model hold a weight of this name."""
    return not name.endswith(FOR_TEXT)


def _legacy_notime(name: str) -> bool:
    # In LDM names: everything except the prefix ``out.`` and ``time_embed``; a substring test would also hit to_out.0.
    return name.startswith("unet.") and not name.startswith(("unet.conv_norm_out.", "unet.conv_out.", "unet.time_embedding."))


def _linear(name: str) -> bool:
    # Every layer of the UNet that is not linear or a convolution is a norm and is called one.
    return name.startswith("unet.") and "norm" not in name


SELECTIONS: dict[str, Select] = {
    # 80 tensors, 43,962,560 parameters: to_q, to_k, to_v, to_out of cross-attention; not its norm.
    "xattn": lambda n: n.startswith("unet.") and ".attn2." in n,
    # 48 tensors, 31,559,680 parameters.
    "xattn-qkv": lambda n: n.startswith("unet.") and n.endswith(tuple(f".attn2.to_{x}.weight" for x in "qkv")),
    # 32 tensors, 19,169,280 parameters: esd-x-strict of the newer ESD code.
    "xattn-kv": lambda n: n.startswith("unet.") and n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")),
    # 10 tensors, 3,605,760 parameters: xlayer of the legacy code.
    "xattn-two": lambda n: n.startswith(("unet.up_blocks.2.attentions.0.", "unet.up_blocks.2.attentions.2.")) and ".attn2." in n,
    # 10 tensors, 8,193,920 parameters: selflayer of the legacy code.
    "selfattn-two": lambda n: (
        n.startswith(("unet.down_blocks.1.attentions.0.", "unet.down_blocks.2.attentions.0.")) and ".attn1." in n
    ),
    # 598 tensors, 813,495,680 parameters: ESD-u of the legacy code.
    "noxattn": lambda n: _legacy_notime(n) and ".attn2." not in n,
    # 388 tensors, 815,358,084 parameters: esd-u of the newer code, every linear and convolution outside cross-attention.
    "linear-noxattn": lambda n: _linear(n) and ".attn2." not in n,
    # 468 tensors, 859,320,644 parameters: esd-all of the newer code.
    "linear": lambda n: _linear(n),
    # 80 tensors, 49,574,080 parameters.
    "selfattn": lambda n: n.startswith("unet.") and ".attn1." in n,
    # 160 tensors, 93,536,640 parameters: to_q, to_k, to_v, to_out of self- and cross-attention.
    "attn": lambda n: n.startswith("unet.") and (".attn1." in n or ".attn2." in n),
    # 96 tensors, 61,964,480 parameters: self-attention and the queries of cross-attention, what TRCE steers with.
    "visual": lambda n: n.startswith("unet.") and (".attn1." in n or n.endswith(".attn2.to_q.weight")),
    # 678 tensors, 857,458,240 parameters.
    "notime": _legacy_notime,
    # 686 tensors, 859,520,964 parameters.
    "full": lambda n: n.startswith("unet."),
    # SD 1.4: 196 tensors; SDXL has two encoders.
    "text-encoder": lambda n: n.startswith(ENCODERS),
}


def text_layers(layers: str) -> Select:
    """The transformer layers of the text encoder: ``all`` with the final norm, or their numbers, ``0,1,11``. Numbers are matched
    whole: layer 1 is not layer 10. Embeddings are never among them. Raises BadOption for anything else."""
    if layers == "all":
        return lambda n: n.startswith(ENCODERS) and not any(part in n for part in (".embeddings.", ".shared.", ".embed_tokens."))
    try:
        wanted = {int(part) for part in layers.split(",")}
    except ValueError as error:
        raise BadOption(f"layers={layers!r} is neither all nor numbers with commas, such as 0,1,11.") from error
    kinds = ("encoder.layers", "encoder.block", "layers")  # of CLIP, of T5, and of a language model
    starts = tuple(f"{part}{kind}.{i}." for part in ENCODERS for kind in kinds for i in wanted)
    return lambda n: n.startswith(starts)


def _block(name: str, *layers: str) -> bool:
    """Whether a name is that of such a layer of an SD3 block's joint attention. ``attn2`` of SD 3.5 attends to the picture
    alone."""
    return name.startswith("transformer.transformer_blocks.") and any(f".attn.{layer}" in name for layer in layers)


def _text_attn(name: str) -> bool:
    return _block(name, "add_q_proj.", "add_k_proj.", "add_v_proj.", "to_add_out.")


def _text_kv(name: str) -> bool:
    return _block(name, "add_k_proj.", "add_v_proj.") and name.endswith(".weight")


def _image_attn(name: str) -> bool:
    return _block(name, "to_q.", "to_k.", "to_v.", "to_out.")


def _context(name: str) -> bool:
    return name.startswith("transformer.context_embedder.")


def _pooled(name: str) -> bool:
    return name.startswith("transformer.time_text_embed.text_embedder.")


def _text(name: str) -> bool:
    return _text_attn(name) or _context(name) or _pooled(name)


MMDIT_SELECTIONS: dict[str, Select] = {
    # Stable Diffusion 3.5 medium: 48 tensors, 113,246,208 parameters: keys and values of the text, without biases.
    "text-kv": _text_kv,
    "xattn-kv": _text_kv,
    # 190 tensors, 224,279,040 parameters: everything of joint attention that multiplies the text's stream; not its norms.
    "text-attn": _text_attn,
    # 196 tensors, 236,080,128 parameters: these and the two places where the encoders' output enters, "context" and "pooled".
    # What cross-attention is to a UNet: all ways by which the text reaches the picture.
    "text": _text,
    "xattn": _text,
    # 192 tensors, 226,639,872 parameters: the same of the picture's stream.
    "image-attn": _image_attn,
    "visual": _image_attn,
    # 382 tensors, 450,918,912 parameters: both.
    "joint": lambda n: _text_attn(n) or _image_attn(n),
    "attn": lambda n: _text_attn(n) or _image_attn(n),
    # 2 tensors, 6,292,992 parameters: the one matrix between text encoders and blocks, and its bias.
    "context": _context,
    # 4 tensors, 5,508,096 parameters: what reads the pooled text.
    "pooled": _pooled,
    # Everything else than "text".
    "noxattn": lambda n: n.startswith("transformer.") and not _text(n),
    "full": lambda n: n.startswith("transformer."),
    "text-encoder": lambda n: n.startswith(ENCODERS),
}


def _single_attn(name: str) -> bool:
    return name.startswith("transformer.single_transformer_blocks.") and any(f".attn.to_{x}." in name for x in "qkv")


def _flux_image_attn(name: str) -> bool:
    return _image_attn(name) or _single_attn(name)


FLUX_SELECTIONS: dict[str, Select] = {
    # FLUX.1 dev: text-kv 38 tensors, 358,612,992 parameters; text-attn 152, 717,459,456; text 158, 741,848,064; context 2,
    # 12,585,984; pooled 4, 11,802,624.
    **MMDIT_SELECTIONS,
    # 228 tensors, 1,076,189,184 parameters: attention of the single blocks, which text and picture share.
    "single-attn": _single_attn,
    # 380 tensors, 1,793,648,640 parameters: what multiplies the picture's stream, the single blocks included.
    "image-attn": _flux_image_attn,
    "visual": _flux_image_attn,
    # 532 tensors, 2,511,108,096 parameters: all attention.
    "joint": lambda n: _text_attn(n) or _flux_image_attn(n),
    "attn": lambda n: _text_attn(n) or _flux_image_attn(n),
}


def _z_block(name: str, stack: str, *layers: str) -> bool:
    return in_checkpoint(name) and name.startswith(f"transformer.{stack}.") and any(f".{layer}" in name for layer in layers)


def _z_text_kv(name: str) -> bool:
    return _z_block(name, "context_refiner", "attention.to_k.", "attention.to_v.")


def _z_text_attn(name: str) -> bool:
    return _z_block(name, "context_refiner", "attention.to_")


def _z_text(name: str) -> bool:
    # Without the bias of cap_embedder: the refiner's layers have none, and a LoRA has biases everywhere or nowhere.
    return _z_block(name, "context_refiner", "attention.to_", "feed_forward.") or name == "transformer.cap_embedder.1.weight"


def _z_single(name: str) -> bool:
    return _z_block(name, "layers", "attention.to_")


def _z_image(name: str) -> bool:
    return _z_single(name) or _z_block(name, "noise_refiner", "attention.to_")


def _z_whole(name: str) -> bool:
    # The norm in front of cap_embedder's linear layer is part of how text is read.
    return in_checkpoint(name) and name.startswith("transformer.") and not name.startswith("transformer.cap_embedder.0.")


def z_shared(name: str) -> bool:
    """Projections of attention that text and picture share."""
    return _z_single(name) and name.endswith(".weight")


Z_IMAGE_SELECTIONS: dict[str, Select] = {
    # 4 tensors, 58,982,400 parameters: keys and values of the blocks that see the text alone.
    "text-kv": _z_text_kv,
    "xattn-kv": _z_text_kv,
    # 8 tensors, 117,964,800 parameters: all projections of attention there.
    "text-attn": _z_text_attn,
    # 15 tensors, 363,724,800 parameters: these, the feed-forward layers there, and the matrix at which the text enters. All that
    # acts on the text alone; behind it, 30 blocks share every weight between text and picture.
    "text": _z_text,
    "xattn": _z_text,
    # 2 tensors, 9,834,240 parameters: where the text enters, with its bias.
    "context": lambda n: n.startswith("transformer.cap_embedder.1."),
    # 120 tensors, 1,769,472,000 parameters: attention that text and picture share.
    "single-attn": _z_single,
    # 60 tensors, 884,736,000 parameters: a change of its keys and values for the rows of the text alone.
    "joint-text-kv": lambda n: n.endswith((f".to_k{FOR_TEXT}", f".to_v{FOR_TEXT}")),
    # 120 tensors, 1,769,472,000 parameters: of all its projections.
    "joint-text-attn": lambda n: n.endswith(FOR_TEXT),
    # 128 tensors, 1,887,436,800 parameters: those of single-attn, and the attention of the blocks that see the picture alone.
    "image-attn": _z_image,
    "visual": _z_image,
    # 136 tensors, 2,005,401,600 parameters: all attention.
    "joint": lambda n: _z_text_attn(n) or _z_image(n),
    "attn": lambda n: _z_text_attn(n) or _z_image(n),
    "noxattn": lambda n: _z_whole(n) and not _z_text(n) and not n.startswith("transformer.cap_embedder."),
    "full": _z_whole,
    "text-encoder": lambda n: n.startswith(ENCODERS),
}

PROJECTIONS = (
    "transformer.caption_projection.",
    "transformer.caption_norm.",
    "transformer.condition_embedder.text_embedder.",
)
"""What stands between the text encoder and cross-attention: a part of how text is read."""


def _cross(name: str) -> bool:
    return name.startswith("transformer.") and not name.startswith(PROJECTIONS)


def _projects(name: str, *attention: str) -> bool:
    # Not the norms of queries and keys, which Sana 1.5 and Wan have.
    return name.startswith("transformer.") and any(f".{layer}.to_" in name for layer in attention)


CROSS_SELECTIONS: dict[str, Select] = {
    # PixArt-Sigma: 224 tensors, 148,764,672 parameters: to_q, to_k, to_v, to_out of cross-attention, with biases. Sana: 160,
    # 401,587,200. Wan 2.1 of 1.3 billion parameters: 240, 283,299,840; of 14: 320, 4,195,123,200.
    "xattn": lambda n: _projects(n, "attn2"),
    # 84 tensors, 111,476,736 parameters.
    "xattn-qkv": lambda n: _cross(n) and n.endswith(tuple(f".attn2.to_{x}.weight" for x in "qkv")),
    # 56 tensors, 74,317,824 parameters. Sana: 40, 200,704,000.
    "xattn-kv": lambda n: _cross(n) and n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")),
    # 224 tensors, 148,764,672 parameters.
    "selfattn": lambda n: _projects(n, "attn1"),
    # 448 tensors, 297,529,344 parameters.
    "attn": lambda n: _projects(n, "attn1", "attn2"),
    # Self-attention and the queries of cross-attention.
    "visual": lambda n: _projects(n, "attn1") or (_cross(n) and ".attn2.to_q." in n),
    # Everything but cross-attention and the projections in front of it.
    "noxattn": lambda n: _cross(n) and ".attn2." not in n,
    "full": _cross,
    "text-encoder": lambda n: n.startswith(ENCODERS),
}

TRAINABLE = tuple(name for name in dict.fromkeys((*SELECTIONS, *FLUX_SELECTIONS, *Z_IMAGE_SELECTIONS)) if name != "text-encoder")
"""For methods whose conditionings are constants: training the text encoder would reach nothing. Not every family has all of
them; the model says which."""


def selection(name: str, selections: Mapping[str, Select] = SELECTIONS) -> Select:
    """The predicate called ``name`` among those of a family (by default of UNets); :class:`UnknownName` otherwise."""
    if name not in selections:
        raise UnknownName("parameter selection", name, selections)
    return selections[name]
