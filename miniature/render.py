"""Icon sets -> one array of premultiplied RGBA renders, indexed by (concept, style)."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from efface.models.icon_world import IconWorld

RENDER_PX = 96


def fetch_package(package: str, folder: Path, members: Mapping[str, str]) -> None:
    """``npm pack`` a package once and keep some of its files: ``members`` maps paths in the package to names in ``folder``."""
    if all((folder / name).exists() for name in members.values()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(["npm", "pack", "-s", package], cwd=folder, check=True, capture_output=True, text=True)
    archive = folder / packed.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        for member, name in members.items():
            file = tar.extractfile(f"package/{member}")
            if file is None:
                raise LookupError(f"{package} has no file {member}")
            (folder / name).write_bytes(file.read())
    archive.unlink()


def fetch_icons(icon_sets: Mapping[str, Mapping[str, str]], cache: Path) -> dict[str, dict]:
    """Every icon set, fetched once; returns style -> parsed icons.json."""
    renderer()
    for style, meta in icon_sets.items():
        fetch_package(meta["package"], cache / style, {"icons.json": "icons.json"})
    return {style: json.loads((cache / style / "icons.json").read_text("utf-8")) for style in icon_sets}


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


def renderer() -> ModuleType:
    """What draws SVG. It is needed for building only; asked for first, it says what is missing before anything is fetched."""
    try:
        import resvg_py
    except ImportError as error:
        raise SystemExit(
            f"the build draws icons with resvg-py, which is missing ({error}): pip install 'efface[build]'."
        ) from error
    return resvg_py


def render(svg: str, side: int = RENDER_PX) -> np.ndarray:
    """(side, side, 4) uint8, premultiplied so that later compositing has no dark fringes."""
    png = bytes(renderer().svg_to_bytes(svg_string=svg, width=side, height=side))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32).copy()
    rgba[..., :3] *= rgba[..., 3:] / 255.0
    return np.round(rgba).astype(np.uint8)


def render_world(world: IconWorld, cache: Path) -> np.ndarray:
    """(concept, style, RENDER_PX, RENDER_PX, 4) uint8; the cells that the world calls absent are empty."""
    sets = fetch_icons(world.icon_sets, cache)
    out = np.zeros((len(world.concepts), len(world.styles), RENDER_PX, RENDER_PX, 4), np.uint8)
    for i, concept in enumerate(world.concepts):
        for j, style in enumerate(world.styles):
            if not world.has(concept.name, style):
                continue
            svg = icon_svg(sets[style], concept.icon)
            if svg is None:
                raise LookupError(f"icon set {style!r} has no icon {concept.icon!r} (concept {concept.name!r})")
            out[i, j] = render(svg)
    return out
