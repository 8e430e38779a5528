"""Every option that more than one command has, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FILE, FOLDER = click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path, file_okay=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
model_option = click.option(
    "--model",
    "source",
    default="mini",
    show_default=True,
    help="The model: mini, a diffusers folder, a checkpoint file or a Hub id.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
dtype_option = click.option(
    "--dtype", default="float32", show_default=True, help="Precision of the loaded weights: float32, bfloat16 or float16."
)
encoders_option = click.option(
    "--encoders",
    default="device",
    show_default=True,
    help="Where text encoders and VAE lie while the network is on a GPU: device (beside it), offload (in the computer's memory, "
    "and on the GPU only while one of them computes) or cpu (in the computer's memory, where they also compute).",
)
storage_option = click.option(
    "--storage",
    default=None,
    metavar="fp8",
    help="Store the network's frozen weights in eight bits on the GPU; a layer's are cast to --dtype while it computes.",
)
guard_option = click.option(
    "--guard",
    default=None,
    metavar="NAME[:OPTION=VALUE,...]",
    help="A guard that holds the targets back while images are sampled; see: efface list guards.",
)
space_option = click.option(
    "--space",
    default="auto",
    show_default=True,
    help="Concept space whose names are looked at: world, english, vocabulary, or a text file with one name per line.",
)
profile_option = click.option(
    "--profile",
    default="mini-lite",
    show_default=True,
    help="How much is measured: smoke (least), mini-lite or mini (most). It fixes images, sampler steps and guidance.",
)
clip_option = click.option(
    "--clip",
    default=None,
    help="CLIP checkpoint (folder or Hub id) that names the images; models without a world need this or --detector.",
)
detector_option = click.option(
    "--detector",
    multiple=True,
    metavar="NAME",
    help="What names the images: a registered detector (efface list detectors), vlm:FOLDER, or path/to/file.py:Name. Repeat "
    "for several, each of which names what it knows.",
)
world_option = click.option(
    "--world",
    default=None,
    metavar="NAME",
    help="World of a model that brings none along: a registered one (efface list worlds), or path/to/file.py:Name.",
)
kind_option = click.option(
    "--kind",
    default="auto",
    show_default=True,
    metavar="KIND",
    help="What the targets are: object, style, category or attribute. auto is what the model's world says, else object.",
)
near_option = click.option(
    "--near",
    multiple=True,
    help="Related concept that must stay, on a model without a world; repeat. Without both lists, WordNet proposes some.",
)
far_option = click.option(
    "--far",
    multiple=True,
    help="Unrelated concept that must stay, on a model without a world; repeat. For a style, an object to show styles on.",
)
set_option = click.option(
    "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="An option of the method or attack, as listed below; repeat."
)
preset_option = click.option("--preset", default=None, help="Named set of options, as listed below.")
force_option = click.option("--force", is_flag=True, help="Replace a file that exists.")


prompts_option = click.option(
    "--prompts",
    multiple=True,
    metavar="SOURCE",
    help="A published prompt list: file:PATH, repo:CLONE#NAME, or hub:OWNER/NAME@REVISION; repeat for several. Rows that "
    "speak of minors are always removed.",
)
sensitive_option = click.option(
    "--sensitive",
    is_flag=True,
    help="You say that the list or the target is sensitive. Images are blurred before they are written, prompts in no record.",
)


def patch_option(required: bool = False) -> Any:
    """``--patch``."""
    return click.option(
        "--patch",
        "patch_path",
        required=required,
        default=None,
        help="Patch file of an erasure, or a Hub repository OWNER/NAME that holds one.",
    )


def target_option(help: str, *, required: bool = False) -> Any:
    """``--target``, repeatable."""
    return click.option("--target", "targets", multiple=True, required=required, help=help)


def out_option(help: str, *, folder: bool = False, required: bool = True, **facts: Any) -> Any:
    """``--out``: a file or a folder."""
    return click.option("--out", type=FOLDER if folder else FILE, required=required, help=help, **facts)
