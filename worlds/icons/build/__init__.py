"""The build of the world of icons. It runs in a source checkout, whether or not the package ``efface-icons`` is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
