"""``python -m miniature.pack_flow --out DIR``: both trained flow networks -> ``src/efface/models/mini_flow/weights``.

In the layout of a Stable Diffusion 3 folder: ``transformer/``, ``gold/transformer/`` (the network that never saw the reserved
concepts) and ``scheduler/``, in half precision, each network with the facts of its training in the header of its file. Text
encoder, tokenizer and VAE are the miniature's and are not stored again; :mod:`miniature.flow` says how they are joined. What was
measured goes beside the folder as ``card.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib import resources
from pathlib import Path

from diffusers import SD3Transformer2DModel

from efface.io.files import write_text

from .flow import FILES, load_network, save_network, scheduler

LIMIT_MB = 30.0
FOLDERS = {"base0": "gold/transformer", "base1": "transformer"}
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # what diffusers looks for


def package_folder() -> Path:
    return Path(str(resources.files("efface.models"))) / "mini_flow"


def pack(trained: Path, package: Path) -> None:
    """Write the whole folder beside its place, check it, then swap it in: a failed pack changes nothing."""
    final = package / "weights"
    folder = final.with_name("weights.new")
    shutil.rmtree(folder, ignore_errors=True)
    card = json.loads((trained / "flow.json").read_text("utf-8"))
    for part, name in FOLDERS.items():
        network, facts = load_network(trained / FILES[part])
        if facts != card["training"].get(part):
            raise SystemExit(f"{trained / FILES[part]} is not the network that {trained / 'flow.json'} describes.")
        network.save_config(folder / name)
        save_network(network.state_dict(), folder / name / WEIGHTS_NAME, facts)
        stored = SD3Transformer2DModel.from_pretrained(folder / name)
        if any((a != b).any() for a, b in zip(stored.state_dict().values(), network.state_dict().values(), strict=True)):
            raise SystemExit(f"diffusers reads other weights from {folder / name} than were trained.")
    scheduler().save_pretrained(folder / "scheduler")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files that only their owner can read
    megabytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    print(f"{megabytes:.2f} MB in all (limit {LIMIT_MB:.0f})")
    if megabytes > LIMIT_MB:
        raise SystemExit(f"the weights need more than the {LIMIT_MB:.0f} MB that may be released; left in {folder}")
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)
    write_text(package / "card.json", json.dumps(card, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the trained flow miniature into the package.")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature/flow"), help="where stage flow wrote its files")
    parser.add_argument("--package", type=Path, default=package_folder())
    args = parser.parse_args()
    pack(args.out, args.package)


if __name__ == "__main__":
    main()
