"""Icon sets -> one array of premultiplied RGBA renders, indexed by (concept, style)."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from efface.models.mini.world import IconWorld

RENDER_PX = 96


def fetch_icons(world: IconWorld, cache: Path) -> dict[str, dict]:
    """``npm pack`` every icon set once; returns style -> parsed icons.json."""
    sets = {}
    for style, meta in world.icon_sets.items():
        folder = cache / style
        if not (folder / "icons.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            name = subprocess.run(
                ["npm", "pack", "-s", meta["package"]], cwd=folder, check=True, capture_output=True, text=True
            ).stdout.split()[-1]
            with tarfile.open(folder / name) as tar:
                data = tar.extractfile("package/icons.json").read()
            (folder / "icons.json").write_bytes(data)
            (folder / name).unlink()
        sets[style] = json.loads((folder / "icons.json").read_text())
    return sets


def icon_svg(icons: dict, name: str) -> str | None:
    """The icon as a stand-alone SVG document, aliases resolved; None if the set lacks it."""
    seen = name
    while seen in icons.get("aliases", {}):
        seen = icons["aliases"][seen]["parent"]
    icon = icons["icons"].get(seen)
    if icon is None:
        return None
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    side = max(width, height)  # some sets are not square: centre the icon in a square view
    left, top = left - (side - width) / 2, top - (side - height) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
    )


def render_world(world: IconWorld, cache: Path) -> np.ndarray:
    """(concept, style, RENDER_PX, RENDER_PX, 4) uint8, premultiplied so that later compositing has no dark fringes."""
    sets = fetch_icons(world, cache)
    out = np.zeros((len(world.concepts), len(world.styles), RENDER_PX, RENDER_PX, 4), np.uint8)
    for i, concept in enumerate(world.concepts):
        for j, style in enumerate(world.styles):
            svg = icon_svg(sets[style], concept.icon)
            if svg is None:
                raise LookupError(f"icon set {style!r} has no icon {concept.icon!r} (concept {concept.name!r})")
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDER_PX, height=RENDER_PX))
            rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
            rgba[..., :3] *= rgba[..., 3:] / 255.0
            out[i, j] = np.round(rgba).astype(np.uint8)
    return out
