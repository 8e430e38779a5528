"""``efface convert``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import force_option, json_option
from .output import emit, note


@command("convert", examples="efface convert leco.yaml --out run.toml")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write: .toml is ours, .yaml is LECO's."
)
@force_option
@json_option
def convert(path: Path, out: Path, force: bool, as_json: bool) -> None:
    """Turn the configuration of a run into the other dialect: ours (TOML) or LECO's (YAML). Both run with erase --config."""
    from ..errors import BadOption
    from ..io.files import check_writable, write_text
    from ..verbs.config import YAML, read_config, write_config

    if out.suffix.lower() not in (".toml", *YAML):
        raise BadOption(f"--out {out} must end in .toml (ours) or .yaml (LECO's).")
    if out.exists() and not force:
        raise BadOption(f"--out {out} exists, and is only replaced with --force.")
    check_writable(out)
    config = read_config(path)
    write_text(out, write_config(config, out))
    for sentence in config.notes:
        note(sentence)
    facts = {"out": str(out), "method": config.method, "targets": list(config.targets), "notes": list(config.notes)}
    emit(as_json, facts, f"Wrote {out}. Run it with: efface erase --config {out} --out FILE.safetensors")
