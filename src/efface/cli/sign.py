"""``efface sign``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import json_option
from .output import emit


@command("sign", examples="efface sign no-engine.safetensors --key path/to/id_ed25519")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Private ed25519 key, OpenSSH or PEM; make one with: ssh-keygen -t ed25519 -f KEY",
)
@json_option
def sign(path: Path, key: Path, as_json: bool) -> None:
    """Sign a patch, an export or an exported folder with a key of your own: writes FILE.sig. Needs the extra efface[sign]."""
    from ..patches.signature import check_signature
    from ..patches.signature import sign as write_signature

    where = write_signature(path, key, lambda: str(click.prompt(f"Password of {key}", hide_input=True, err=True)))
    public = check_signature(path)
    facts = {"out": str(where), "public_key": public}
    emit(as_json, facts, f"Wrote {where}. Receivers check it with: efface verify {path} --key {public}")
