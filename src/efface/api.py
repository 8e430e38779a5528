"""The verbs. The command line and notebooks call only these."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .bench.evaluate import System, blocklist
from .bench.evaluate import evaluate as run_evaluation
from .bench.profiles import profile as find_profile
from .bench.suite import Neighbour, Suite, lexical_traps, world_suite
from .concepts.prompts import Case
from .concepts.request import EraseRequest
from .config import build_method
from .errors import BadOption, BadRequest, UnknownName
from .methods import Method
from .models.base import DiffusionModel
from .models.load import load_model
from .patches import Patch
from .patches.patch import empty_like, noise_like
from .records import Entrant
from .reporting import write_report
from .training import Run


def request_for(model: DiffusionModel, targets: Sequence[str], anchor: str = "", preserve: Sequence[str] = ()) -> EraseRequest:
    """A checked request: names exist where the world is closed, and nothing is longer than the tokenizer reads."""
    request = EraseRequest(tuple(targets), anchor, tuple(preserve))
    if model.concept_names:
        for name in (*request.targets, *request.preserve):
            if name.lower() not in model.concept_names:
                raise UnknownName(f"concept of {model.name}", name, model.concept_names)
    model.encode([*request.targets, request.anchor, *request.preserve])
    return request


def erase(
    model: Any,
    method: Method | str,
    *,
    targets: Sequence[str],
    anchor: str = "",
    preserve: Sequence[str] = (),
    run: Run | None = None,
) -> Patch:
    """Erase ``targets`` and return the change; the model itself stays as it is.

    ``model``: a DiffusionModel, a loaded diffusers pipeline, or anything :func:`load_model` takes. ``method``: an instance
    such as ``efface.AP(steps=300)``, or a name, which takes the preset that fits the model.
    """
    model = load_model(model)
    if isinstance(method, str):
        method = build_method(method, preset=model.preset)
    run = run or Run()
    request = request_for(model, targets, anchor, preserve)
    run.fingerprint = run_fingerprint(model, method, request)
    return method.erase(model, request, run)


def run_fingerprint(model: DiffusionModel, method: Method, request: EraseRequest) -> str:
    """What must be equal for a checkpoint to be continued."""
    facts = [method.name, dataclasses.asdict(method), dataclasses.asdict(request), model.digest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def seconds_per_eval(model: DiffusionModel, batch: int = 4) -> float:
    """A measured probe: the fastest of three forward calls after one to warm up, per evaluation."""
    z = torch.zeros((batch, *model.latent_shape), device=model.device)
    t, c = torch.full((batch,), 500, device=model.device), model.encode([""] * batch)
    before, fastest = dataclasses.replace(model.evals), float("inf")
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            model.predict(z, t, c)
            fastest = min(fastest, time.perf_counter() - start)
    model.evals.forward, model.evals.calls = before.forward, before.calls  # the probe is no part of any run's cost
    return fastest / batch


def sample(
    model: Any, prompts: Sequence[str], *, n: int = 1, seed: int = 0, steps: int = 16, guidance: float | None = None
) -> torch.Tensor:
    """``n`` images of every prompt, (len(prompts) * n, 3, H, W) in [0, 1]; seeds seed, seed + 1, ... for each prompt."""
    model = load_model(model)
    if n < 1 or steps < 1:
        raise BadOption(f"n and steps must be at least 1, got n={n}, steps={steps}.")
    guidance = model_guidance(model) if guidance is None else guidance
    cases = [Case("free", "", p, seed + i, guidance) for p in prompts for i in range(n)]
    return model.sample(cases, steps)


def model_guidance(model: DiffusionModel) -> float:
    """7.5 as in Stable Diffusion's pipelines; 4 on the miniature, which was calibrated there."""
    return 4.0 if model.preset == "mini" else 7.5


def suite_for(model: DiffusionModel, targets: Sequence[str], near: Sequence[str] = (), far: Sequence[str] = ()) -> Suite:
    """What to look at. The miniature knows its neighbours; for other models the user names them."""
    if model.preset == "mini":
        if near or far:
            raise BadOption("the miniature's neighbours are fixed in its suite; --near and --far are for other models.")
        from .models.mini import card, similar
        from .models.mini.world import load_world

        world = load_world()
        usable = [n for n in world.names("ordinary", "reserved") if card()["concepts"][n]["sensitivity"] >= 0.8]
        for target in targets:
            if target not in world.names("ordinary", "reserved"):
                raise UnknownName("concept of mini", target, world.names("ordinary", "reserved"))
            if target not in usable:
                raise BadRequest(
                    f"the report detector recognises {target!r} too rarely (below 0.8) to measure its erasure; choose another."
                )
        return world_suite(
            targets,
            {c.name: c.group for c in world.concepts if world.kind(c.name) != "novel"},
            similar(),
            usable,
            {c.name: c.synonyms for c in world.concepts},
            {c.name: c.implicit for c in world.concepts},
        )
    if not near or not far:
        raise BadOption("this model has no world of its own: name concepts to keep, at least one --near NAME and one --far NAME.")
    names = [*near, *far]
    traps = [t for target in targets for t in lexical_traps(target, names)]
    kept = [tuple(Neighbour(n, "given", "test") for n in group if n not in traps) for group in (near, far)]
    shared = tuple(Neighbour(n, "shares a word", "test") for n in traps)
    return Suite(tuple(targets), kept[0], shared, kept[1], {}, {})


def evaluate(
    model: Any,
    patch: Patch,
    *,
    out: str | Path,
    profile: str = "mini-lite",
    clip: str | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    others: Sequence[tuple[str, Patch]] = (),
    trivial: bool = True,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    command: str = "",
) -> dict[str, Any]:
    """Measure an erasure on paired cases; writes rows, pictures and summary to ``out`` and returns the summary.

    Beside the patch stand the base model ``none``, and with ``trivial`` also ``noise`` (same norm on the same tensors) and
    ``blocklist`` (prompts that contain the name become the anchor). ``others``: further (label, patch) entrants.
    ``clip``: a CLIP checkpoint that names images of models other than the miniature.
    Cost: 2 x steps UNet evaluations per image and entrant; the base model's images are cached.
    """
    from .bench.judges import ClipJudge, MiniJudge

    model = load_model(model)
    chosen = find_profile(profile)
    patch.check_base(model)
    targets = list(patch.card.request["targets"])
    suite = suite_for(model, targets, near, far)
    judge: Any
    if model.preset == "mini":
        judge = MiniJudge()
    elif clip is None:
        raise BadOption(
            "this model has no detectors of its own: give --clip FOLDER_OR_HUB_ID of a CLIP checkpoint to name its images."
        )
    else:
        judge = ClipJudge(clip, [*targets, *(n.name for group in (suite.near, suite.trap, suite.far) for n in group)])
    systems = [System(Entrant(label, label, "patch", p.json()), p) for label, p in [(patch.card.method, patch), *others]]
    if trivial:
        noise = noise_like(patch, torch.Generator().manual_seed(0))
        anchor = str(patch.card.request.get("anchor", ""))
        systems.append(System(Entrant("noise", "noise of the same norm", "trivial"), noise))
        systems.append(
            System(Entrant("blocklist", "blocklist", "trivial"), empty_like(patch, "blocklist"), blocklist(targets, anchor))
        )
    if model.name == "mini":
        from .models.mini.world import load_world

        if set(targets) <= set(load_world().reserved):
            gold = load_model("mini-gold", device=str(model.device))
            systems.append(System(Entrant("gold", "gold model (never saw it)", "gold"), None, model=gold))
    ids = [s.entrant.id for s in systems]
    if len(set(ids)) < len(ids) or "none" in ids:
        raise BadOption(f"entrants need distinct names other than 'none', got {ids}.")
    return run_evaluation(model, systems, suite, chosen, judge, Path(out), on_image=on_image, command=command)


def report(folder: str | Path, out: str | Path) -> Path:
    """One self-contained HTML page from an evaluation folder."""
    return write_report(Path(folder), Path(out))
