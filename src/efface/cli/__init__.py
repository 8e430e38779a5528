"""``efface``: the command line. Every command calls the Python verbs; torch is imported inside commands only.

Exit codes: 0 ok, 1 error, 2 usage, 3 a policy that is not kept (``certify``).
``--json`` prints one JSON object on standard output; progress goes to standard error.
"""

from . import (  # noqa: F401  # registers
    agreement,
    attack,
    bench,
    card,
    certify,
    convert,
    damage,
    demo,
    distance,
    env,
    erase,
    estimate,
    evaluate,
    export,
    import_,
    leaderboard,
    list_,
    query,
    report,
    sample,
    sign,
    study,
    suite,
    survive,
    verify,
)
from .main import main

__all__ = ["main"]
