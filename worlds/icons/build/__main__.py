"""``python -m worlds.icons.build STAGE [--work DIR]``: builds the world of icons, one resumable stage at a time.

``all`` runs every stage from the renders on, one after the other. ``sitting`` runs what lies between the renders and the pack
side by side, on a machine with a GPU that needs no network; ``--seconds`` is then the time of all of it together. With
``--smoke`` the world is a small part of itself and the networks are tiny, to test the build.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from .sitting import sit
from .steps import STEPS, Step, run

PARTS: dict[str, list[str]] = {}
for _step in STEPS:
    PARTS.setdefault(_step.stage, []).extend([_step.part] if _step.part else [])
ALL = (Step("render"), *STEPS, Step("pack"), Step("card"))
STAGES = ("table", *dict.fromkeys(step.stage for step in ALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all", "sitting"])
    parser.add_argument("--part", choices=sorted(p for parts in PARTS.values() for p in parts), help="of clip, unet or detectors")
    parser.add_argument("--work", type=Path, default=Path("runs/icons"), help="holds everything that the stages hand on")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--minutes", type=float, help="wall-clock limit of a training")
    limit.add_argument("--seconds", type=float, help="the same in seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--batch", type=int, help="of the UNet's training: 64 on a CPU, 512 on a GPU")
    parser.add_argument("--out", type=Path, help="pack, card: the folder of the weights, in place of the package's own")
    parser.add_argument("--every", type=int, help="card: draw every K-th concept with one seed, where all would take too long")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few pictures and a second of training each")
    args = parser.parse_args()
    parts = PARTS.get(args.stage, [])
    if parts and args.part not in parts:
        parser.error(f"stage {args.stage} needs --part, one of {', '.join(parts)}.")
    seconds = args.seconds or (60 * args.minutes if args.minutes else None)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "sitting":
        if seconds is None:
            parser.error("a sitting needs --seconds.")
        raise SystemExit(0 if sit(args, seconds) else 1)
    for step in [Step("table")] if args.stage == "table" else ALL:
        if args.stage not in ("all", step.stage) or (args.part and args.part != step.part):
            continue
        begun = time.time()
        run(step, args, seconds or (1.0 if args.smoke else 60 * step.minutes))
        print(f"stage {step.stage} {step.part} took {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
