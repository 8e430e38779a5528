"""The verbs: what efface does, one file each. The command line and notebooks call only these."""

from .attack import attack
from .damage import damage
from .erase import erase
from .evaluate import evaluate
from .export import export, import_patch
from .report import report
from .sample import sample
from .study import study
from .verify import verify

__all__ = ["attack", "damage", "erase", "evaluate", "export", "import_patch", "report", "sample", "study", "verify"]
