"""A script for Stable Diffusion WebUI (AUTOMATIC1111) and Forge: erasures of efface on the loaded model while pictures are drawn.

Copy the folder ``a1111`` to ``extensions/efface`` and patches to ``models/efface``. Before a job the chosen patches are put on,
after it every weight is as before. A patch of another base model, and a file with a changed byte, stop the job with the reason.
efface itself need not be installed.

The two programs keep the model in different ways. In AUTOMATIC1111 its weights are changed for the time of a job. Forge has a
patcher around the network, which merges changes when it draws and keeps the originals; the changes are given to a clone of it
before every sampling, as its own extensions do.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import inspect
import json
import os
import re
import struct

import gradio as gr
import torch
from modules import paths, scripts, shared
from safetensors.torch import load_file

PLACE = re.compile(rb'"efface_sha256":\s*"([0-9a-f]{64})"')
NARROW, SMALLEST = 2.0**-8 + 2.0**-11, 2.0**-24
"""How far an entry of the base may be from the recorded one: the rounding of both half precisions."""
FORGE = importlib.util.find_spec("modules_forge") is not None
PLAIN = (torch.float32, torch.float16, torch.bfloat16)
FOLDER = os.path.join(paths.models_path, "efface")
RESNET = {
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


def diffusers_names(modules: list[str]) -> dict[str, str]:
    """``{diffusers' name: name in this program}`` of the modules of a UNet, from the numbered names alone.

    A level going down ends with a downsampler (``op``), a level going up with an upsampler (``conv`` beside a ResNet); that is
    where a new level begins.
    """
    found, inner = {}, {v: k for k, v in RESNET.items()}
    outer = {v: k for k, v in AROUND.items()}

    def rest(kind: str, inside: str) -> str:
        if kind != "resnets":
            return inside
        for theirs, ours in inner.items():
            if inside == theirs:
                return ours
        return inside

    def blocks(side: str) -> dict[int, dict[int, set[str]]]:
        made: dict[int, dict[int, set[str]]] = {}
        for m in modules:
            if match := re.match(rf"{side}_blocks\.(\d+)\.(\d+)\.(.+)", m):
                made.setdefault(int(match[1]), {}).setdefault(int(match[2]), set()).add(match[3])
        return made

    for side, ours in (("input", "down"), ("output", "up")):
        level = layer = 0
        for i, members in sorted(blocks(side).items()):
            if side == "input" and i == 0:
                continue
            if side == "input" and "op" in members.get(0, ()):
                found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{i}.0.op"
                level, layer = level + 1, 0
                continue
            ends = False
            for j, insides in members.items():
                kind = "resnets" if "in_layers.0" in insides else "upsamplers" if insides == {"conv"} else "attentions"
                ends = ends or kind == "upsamplers"
                at = 0 if kind == "upsamplers" else layer
                for inside in insides:
                    found[f"{ours}_blocks.{level}.{kind}.{at}.{rest(kind, inside)}"] = f"{side}_blocks.{i}.{j}.{inside}"
            layer += 1
            if ends:
                level, layer = level + 1, 0
    for m in modules:
        if m in outer:
            found[outer[m]] = m
        elif match := re.match(r"middle_block\.(\d)\.(.+)", m):
            kind, at = ("attentions", 0) if match[1] == "1" else ("resnets", int(match[1]) // 2)
            found[f"mid_block.{kind}.{at}.{rest(kind, match[2])}"] = m
    return found


def read_patch(path: str) -> tuple[dict, dict[str, torch.Tensor], str]:
    """(card, changes by weight, sha256) of a patch whose every byte is as it was written. Raises ValueError for anything else."""
    with open(path, "rb") as f:
        data = f.read()
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        raise ValueError(f"{path} is truncated or no safetensors file.")
    places = [m.start(1) + 8 for m in PLACE.finditer(data[8 : 8 + length])]
    if len(places) != 1:
        raise ValueError(f"{path} is no sealed patch of efface; write it again with a current version.")
    (at,) = places
    if hashlib.sha256(data[:at] + b"0" * 64 + data[at + 64 :]).hexdigest() != data[at : at + 64].decode():
        raise ValueError(f"{path} is not as it was written: it is damaged, or somebody changed it.")
    facts = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if facts.get("format") != "efface-patch":
        raise ValueError(f"{path} is an export of efface; put it among the LoRAs.")
    changes = {n.removeprefix("delta."): d for n, d in load_file(path).items()}
    return json.loads(facts["card"]), changes, data[at : at + 64].decode()


def keys_of(network: torch.nn.Module) -> dict[str, str]:
    """``{our name: name in the UNet}`` of every weight; ours are diffusers' with ``unet.`` in front."""
    modules = {n: m for n, m in network.named_modules() if any(True for _ in m.parameters(recurse=False))}
    names = {theirs: ours for ours, theirs in diffusers_names(list(modules)).items()}
    return {
        f"unet.{names[module]}.{kind}": f"{module}.{kind}"
        for module, m in modules.items()
        if module in names
        for kind, _ in m.named_parameters(recurse=False)
    }


def combined(read: list[tuple], live: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sum of the changes of several patches. Raises ValueError for another base model, and for what is not in the UNet."""
    total: dict[str, torch.Tensor] = {}
    for card, deltas, _ in read:
        check_base(card, live)
        strange = [n for n in deltas if n not in live]
        if strange:
            raise ValueError(f"{strange[0]} is no weight of the UNet; export this patch as .diff and put it among the LoRAs.")
        for n, d in deltas.items():
            total[n] = total[n] + d if n in total else d
    return total


def check_base(card: dict, live: dict[str, torch.nn.Parameter]) -> None:
    """Compare one entry of every tensor of the UNet with those on the card. Raises ValueError for another base model."""
    raw = base64.b64decode(card["base"]["sketch"])
    entries = struct.unpack(f"<{len(raw) // 4}f", raw)[-len(live) :]
    name = card["base"].get("name")
    if len(entries) < len(live):
        raise ValueError(f"the patch was made for {name!r}, which is smaller than this model.")
    for weight, entry in zip(sorted(live), entries, strict=True):
        w = live[weight].detach().reshape(-1)
        x = float(w[int(0.618 * w.numel())].float())
        if abs(x - entry) > NARROW * max(abs(x), abs(entry)) + SMALLEST:
            raise ValueError(f"the patch was made for {name!r}, and this is another model: {weight} differs.")


class Applied:
    """What was put on, with the original tensors."""

    def __init__(self) -> None:
        self.originals: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def put(self, model: object, chosen: list[str], strength: float) -> list[str]:
        """Put patches on, all or none, and return their certificates. Raises ValueError with the reason."""
        network = model.model.diffusion_model
        parameters = dict(network.named_parameters())
        live = {ours: parameters[theirs] for ours, theirs in keys_of(network).items()}
        read = [read_patch(os.path.join(FOLDER, name)) for name in chosen]
        for n, d in combined(read, live).items():
            p = live[n]
            self.originals.append((p, p.data))
            p.data = (p.data.float() + strength * d.reshape(p.shape).to(p.device)).to(p.dtype)
        return [certificate(card, strength) for card, _, _ in read]

    def revert(self) -> None:
        """Every weight is as before, to the bit."""
        for p, data in reversed(self.originals):
            p.data = data
        self.originals = []


def put_on_forge(objects: object, chosen: list[str], strength: float) -> list[str]:
    """Give Forge's patcher of the UNet the changes, all or none, and return the certificates. Raises ValueError with the
    reason."""
    patcher = objects.unet
    network = patcher.model.diffusion_model
    # Weights may still hold the changes of the job before; the patcher keeps the originals of these.
    kept = {**getattr(patcher, "backup", {}), **getattr(getattr(patcher, "lora_loader", None), "backup", {})}
    parameters, keys = dict(network.named_parameters()), keys_of(network)
    live = {ours: kept.get(f"diffusion_model.{theirs}", parameters[theirs]) for ours, theirs in keys.items()}
    packed = [n for n, w in live.items() if w.dtype not in PLAIN]
    if packed:
        raise ValueError(f"{packed[0]} is stored as {live[packed[0]].dtype}; load the model in half precision or float32.")
    read = [read_patch(os.path.join(FOLDER, name)) for name in chosen]
    total = combined(read, live)
    patches = {f"diffusion_model.{keys[n]}": ("diff", (d.reshape(live[n].shape),)) for n, d in total.items()}
    made = patcher.clone()
    # Forge knows what is merged by this name alone, so that it has to say which files these are.
    name = "efface " + " ".join(seal for _, _, seal in read)
    named = {"filename": name} if "filename" in inspect.signature(made.add_patches).parameters else {}
    taken = made.add_patches(patches=patches, strength_patch=strength, **named)
    missed = sorted(set(patches) - set(taken))
    if missed:
        raise ValueError(f"Forge did not take {missed[0]} (and {len(missed) - 1} more); the erasure would be incomplete.")
    objects.unet = made
    return [certificate(card, strength) for card, _, _ in read]


def certificate(card: dict, strength: float = 1.0) -> str:
    """The card in one line. What was measured holds at strength 1."""
    text = f"{', '.join(card['request']['targets'])} erased by {card['method']} from {card['base'].get('name')}"
    rates = (card.get("measured", {}).get("evaluation") or {}).get("rates", {})
    if strength != 1.0:
        return f"{text}; nothing was measured at strength {strength:g}"
    said = [f"{a} {r['k']}/{r['n']} [{100 * r['low']:.0f}, {100 * r['high']:.0f}] %" for a, r in rates.items()]
    return f"{text}; {', '.join(said) if said else 'nothing was measured'}"


class Script(scripts.Script):
    """The accordion *Efface* below the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = Applied()

    def title(self) -> str:
        return "Efface"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list:
        names = sorted(n for n in os.listdir(FOLDER) if n.endswith(".safetensors")) if os.path.isdir(FOLDER) else []
        with gr.Accordion("Efface", open=False):
            chosen = gr.Dropdown(label="Erasures", choices=names, multiselect=True, value=[])
            strength = gr.Slider(label="Strength", minimum=0.0, maximum=2.0, step=0.01, value=1.0)
        return [chosen, strength]

    def before_process(self, p: object, chosen: list[str], strength: float) -> None:
        self.applied.revert()  # a job that was stopped did not come to its end
        if chosen and not FORGE:
            self.tell(p, lambda: self.applied.put(shared.sd_model, chosen, strength))

    def process_before_every_sampling(self, p: object, chosen: list[str], strength: float, **_: object) -> None:
        if chosen and FORGE:
            self.tell(p, lambda: put_on_forge(p.sd_model.forge_objects, chosen, strength))

    @staticmethod
    def tell(p: object, put: object) -> None:
        try:
            told = put()
        except Exception:
            shared.state.interrupt()  # the program reports a script's error and would draw on, without the erasure
            raise
        p.extra_generation_params["Efface"] = " | ".join(told)

    def postprocess(self, p: object, processed: object, chosen: list[str], strength: float) -> None:
        self.applied.revert()
