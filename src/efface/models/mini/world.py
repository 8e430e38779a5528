"""The miniature's world as data: concepts, groups, styles, backgrounds, and the split decided before training."""

from __future__ import annotations

from functools import cache
from importlib import resources

from ..icon_world import IconWorld, parse_world


@cache
def load_world() -> IconWorld:
    """Parse the packaged ``world.toml``."""
    return parse_world(resources.files(__package__).joinpath("world.toml").read_text("utf-8"))
