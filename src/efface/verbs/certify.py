"""Decide whether an erasure may be released."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..concepts.request import OBJECT
from ..errors import BadFile, BadOption, UnknownName
from ..evaluation.records import axes_of, read_run, read_summary
from ..registry import ATTACKS
from ..reporting import attack_on
from ..reporting.certificate import Certificate, decide
from ..reporting.policy import read_policy


def certify(folder: str | Path, *, policy: str, attacks: Sequence[str | Path] = (), entrant: str = "") -> Certificate:
    """Compare an evaluation, and attacks on the same system, with a policy; nothing is computed anew.

    ``folder``: what ``efface evaluate --out`` wrote. ``policy``: api, weights, or a TOML file. ``attacks``: folders that ``efface
    attack --out`` wrote. ``entrant``: another system of the evaluation than the patch or guard that it is about, such as ``gold``
    or a second patch, without attacks, because those are on the first.

    Every demand is judged by the bound of a 95 % interval: what is only probably so is undecided, and what was not measured is
    not tested; neither passes. Raises UnknownName, BadOption and BadFile for a policy, an entrant or a folder that is none, and
    for an attack on something else than the evaluation measured.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> summary = efface.evaluate("mini", patch, out="rabbit", profile="smoke", trivial=False)
    >>> certificate = efface.certify("rabbit", policy="weights")
    >>> certificate.passed
    False
    >>> sorted({finding.status for finding in certificate.findings})
    ['not tested', 'undecided']

    """
    chosen = read_policy(policy)
    run, summary = read_run(Path(folder)), read_summary(Path(folder))
    subject = next((e for e in run.entrants if e.kind in ("patch", "guard")), None)
    if entrant:
        known = {e.id: e for e in run.entrants}
        if entrant not in known:
            raise UnknownName("entrant of the evaluation", entrant, known)
        if attacks and subject is not None and entrant != subject.id:
            raise BadOption(f"the attacks are on {subject.id} and not on {entrant}; leave --attack or --entrant out.")
        subject = known[entrant]
    if subject is None:
        raise BadFile(f"{folder} measured no patch and no guard, so there is nothing to certify.")
    folders = [attacks] if isinstance(attacks, str | Path) else attacks
    tried = [attack_on(run, Path(a)) for a in folders]
    return decide(chosen, summary["entrants"][subject.id]["axes"], tried, list(ATTACKS), axes_of(run.suite.get("kind", OBJECT)))
