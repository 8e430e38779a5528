"""What AP's search looks at over a run: the discrete search ("gumbel") beside the continuous one ("pgd"), same target and seed.

    python benchmarks/search_films.py [--quick] [--json] [--out runs/films] [--targets NAME ...] [--picture FILE]

Each target's report (OUT/TARGET.html) holds both films. --picture puts them under each other: a pair of rows per search, the
frozen model's picture of the searched concept above that of the model being erased, from one start latent. "moved": how far the
continuous embedding has gone from the target, in units of its norm. "mapped": cosine of the two pictures' embeddings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from efface import verbs
from efface.evaluation.judges import MiniJudge
from efface.io.files import atomic_write
from efface.io.images import decoded_png
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.registry import build_method

SEARCHES: dict[str, dict[str, Any]] = {"ap": {}, "ap-pgd": {"search": "pgd", "search.ascents": 10, "lam": 0.01}}
SIZE, LINE = 96, 16


def films(model: DiffusionModel, target: str, frames: int, steps: int | None, profile: str, out: Path) -> list[dict[str, Any]]:
    """Erase with both searches, evaluate them side by side, write the report; what each film shows."""
    name = target.replace(" ", "-")
    more = {} if steps is None else {"steps": steps}
    patches = [
        verbs.erase(model, build_method("ap", preset="mini", settings={**s, **more, "frames": frames}), targets=[target])
        for s in SEARCHES.values()
    ]
    folder = out / name
    if not (folder / "summary.json").is_file():
        verbs.evaluate(model, patches[0], out=folder, profile=profile, others=[("ap-pgd", patches[1])])
    verbs.report(folder, out / f"{name}.html")
    judge, found = MiniJudge(), []
    for label, patch in zip(SEARCHES, patches, strict=True):
        log = {row["step"]: row for row in patch.card.log["adversarial"]}
        shots = patch.card.log["film"]
        pictures = [[decoded_png(shot[who]) for shot in shots] for who in ("frozen", "student")]
        embedded = [judge.embed_images(torch.stack([tensor(p) for p in row])) for row in pictures]
        found.append(
            {
                "target": target,
                "search": label,
                "steps": [shot["step"] for shot in shots],
                "concepts": [shot["concept"] for shot in shots],
                "moved": [log[shot["step"]].get("moved") for shot in shots],
                "mapped": (embedded[0] * embedded[1]).sum(-1).tolist(),
                "pictures": pictures,
            }
        )
    return found


def tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def sheet(found: list[dict[str, Any]]) -> Image.Image:
    """Two rows per film under a line that names target, search, steps and concepts."""
    frames = max(len(f["steps"]) for f in found)
    height = 3 * LINE + 2 * SIZE
    image = Image.new("RGB", (frames * SIZE, height * len(found)), "white")
    draw = ImageDraw.Draw(image)
    for i, film in enumerate(found):
        top = i * height
        what = "Gumbel-Softmax over names" if film["search"] == "ap" else "PGD in the embedding space"
        draw.text((4, top + 3), f"erasing {film['target']}, {what}: frozen model above, model being erased below", fill="black")
        for j, step in enumerate(film["steps"]):
            moved = film["moved"][j]
            label = film["concepts"][j] if moved is None else f"moved {moved:.2f}"
            draw.text((j * SIZE + 4, top + LINE + 2), f"{step}: {label}"[:16], fill="black")
            for row in (0, 1):
                image.paste(film["pictures"][row][j].resize((SIZE, SIZE)), (j * SIZE, top + 2 * LINE + row * SIZE))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one target, 3 steps, profile smoke")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/films"))
    parser.add_argument("--targets", nargs="+", default=["fire engine", "dog"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--picture", type=Path, help="write the films as one PNG")
    args = parser.parse_args()
    model, targets = load_model("mini"), args.targets[:1] if args.quick else args.targets
    how = (2, 3, "smoke", args.out / "quick") if args.quick else (args.frames, None, "mini-lite", args.out)
    found = [film for target in targets for film in films(model, target, *how)]
    if args.picture:
        atomic_write(args.picture, lambda p: sheet(found).save(p, format="PNG", optimize=True))
    told = [{k: v for k, v in film.items() if k != "pictures"} for film in found]
    if args.json:
        print(json.dumps(told))
        return
    for film in told:
        print(f"{film['target']}, {film['search']}")
        for step, concept, moved, mapped in zip(*(film[k] for k in ("steps", "concepts", "moved", "mapped")), strict=True):
            print(f"  step {step:>3}  {concept:<16} {'' if moved is None else f'moved {moved:.2f}  '}mapped {mapped:.2f}")


if __name__ == "__main__":
    main()
