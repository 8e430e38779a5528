"""The verbs. The command line and notebooks call only these."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .attacks import TIERS, Attack, Deployed, Direct, Goal
from .concepts.prompts import Case
from .concepts.request import EraseRequest
from .errors import BadFile, BadOption, BadRequest, OutOfMemory, UnknownName
from .evaluation.attack import Unit, run_attacks
from .evaluation.damage import damage as damaged
from .evaluation.damage import damage_cost
from .evaluation.driver import System, blocklist, judge_facts
from .evaluation.driver import evaluate as run_evaluation
from .evaluation.profiles import Profile
from .evaluation.profiles import profile as find_profile
from .evaluation.records import DAMAGE, Entrant, read_damage
from .evaluation.suite import Neighbour, Suite, lexical_traps, world_suite
from .guards import Guard
from .io.files import write_text
from .io.images import to_pixels, write_png
from .methods import Method
from .models.base import DiffusionModel
from .models.load import load_model
from .patches import Patch
from .patches.export import export as export_patch
from .patches.foreign import import_patch as read_foreign
from .patches.patch import empty_like, noise_like
from .preservation.candidates import concept_space
from .registry import build_attack, build_guard, build_method, method_class
from .reporting import write_report
from .studies import STUDIES, Erasure, Lab
from .studies.figures import write_figure
from .studies.lab import erasures
from .training.loop import Run
from .versions import versions


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
    try:
        return method.erase(model, request, run)
    except torch.OutOfMemoryError as error:
        told = str(error).splitlines()[0]
        # Without its traceback, whose frames hold the tensors of the run: memory must be free for the next one.
        raise OutOfMemory(f"no memory left on {model.device} ({told}). {less_memory(model, method)}") from error.with_traceback(
            None
        )


def less_memory(model: DiffusionModel, method: Method) -> str:
    """The next setting that makes a run smaller, in the order of what it costs: half-precision weights, recomputed activations,
    fewer rows, fewer trained tensors."""
    if model.info.get("dtype") == "float32":
        return "Load the weights in half precision (--dtype bfloat16); what is trained stays in float32."
    if not getattr(model.network, "is_gradient_checkpointing", False):
        return "Compute activations again instead of storing them (--checkpointing)."
    rows = getattr(method, "batch", 1)
    if rows > 1:
        return f"Take fewer rows per update than {rows} (--set batch=1)."
    narrower = "" if getattr(method, "train", "xattn-kv") == "xattn-kv" else "Train fewer tensors (--set train=xattn-kv), or u"
    return f"{narrower or 'U'}se a closed form (efface erase uce), which runs on the CPU."


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


def _announce(note: Callable[[str], None] | None, model: DiffusionModel, evals: float, before: str, after: str = "") -> None:
    """Say what a verb is about to spend. Nobody listens: no probe is run, which on a large model and a CPU takes minutes."""
    if note is not None:
        note(f"{before}{predicted(model, evals)}{after}.")


def predicted(model: DiffusionModel, evals: float, *, batch: int = 32, processes: int = 1) -> str:
    """ "N UNet evaluations, M min on DEVICE", from a measured probe: what is said before anything starts."""
    minutes = evals * seconds_per_eval(model, batch) / 60 / processes
    return f"{evals:,.0f} UNet evaluations, {minutes:.1f} min on {model.device}"


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


def export(
    model: Any, patch: Patch, path: str | Path, *, to: str, rank: int = 0, tolerance: float | None = None, half: bool = False
) -> dict[str, Any]:
    """Write the patch in a format that other tools read; see :func:`efface.patches.export.export`."""
    return export_patch(patch, load_model(model), path, to, rank=rank, tolerance=tolerance, half=half)


def import_patch(model: Any, source: str | Path, *, targets: Sequence[str], name: str = "imported") -> Patch:
    """Somebody else's erasure as a patch; see :func:`efface.patches.foreign.import_patch`."""
    model = load_model(model)
    return read_foreign(model, source, targets=request_for(model, targets).targets if targets else (), name=name)


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


def _targets(model: DiffusionModel, patch: Patch | None, targets: Sequence[str]) -> list[str]:
    """The patch's targets, or those given for a system without one. Raises BadOption when that is contradictory or nothing."""
    if patch is None:
        if not targets:
            raise BadOption("without a patch there is no target: name one with --target.")
        return list(request_for(model, targets).targets)
    patch.check_base(model)
    mine = list(patch.card.request["targets"])
    if targets and list(targets) != mine:
        raise BadOption(f"the patch erases {', '.join(mine)}, not {', '.join(targets)}; leave --target out.")
    return mine


def judge_for(model: DiffusionModel, suite: Suite, clip: str | None = None) -> Any:
    """The miniature's own detectors, or a CLIP checkpoint that names the suite's concepts. Raises BadOption without either."""
    from .evaluation.judges import ClipJudge, MiniJudge

    if model.preset == "mini":
        return MiniJudge()
    if clip is None:
        raise BadOption(
            "this model has no detectors of its own: give --clip FOLDER_OR_HUB_ID of a CLIP checkpoint to name its images."
        )
    return ClipJudge(clip, [*suite.targets, *(n.name for group in (suite.near, suite.trap, suite.far) for n in group)])


def evaluate(
    model: Any,
    patch: Patch | None,
    *,
    out: str | Path,
    targets: Sequence[str] = (),
    guard: Guard | str | None = None,
    profile: str = "mini-lite",
    clip: str | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    others: Sequence[tuple[str, Patch]] = (),
    trivial: bool = True,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure an erasure on paired cases; writes rows, pictures and summary to ``out`` and returns the summary.

    Beside the patch stand the base model ``none``, and with ``trivial`` also ``noise`` (same norm on the same tensors) and
    ``blocklist`` (prompts that contain the name become the anchor). ``others``: further (label, patch) entrants.
    ``clip``: a CLIP checkpoint that names images of models other than the miniature. ``guard``: stands on the patch, or on the
    bare model when ``patch`` is None and ``targets`` says against what; an instance, a name, or ``NAME:option=value``.
    Profiles that look for damage (all but smoke) add :func:`damage`, found by noise predictions, to the summary of a patch.
    Cost: 2 x steps (a guard: its branches x steps) UNet evaluations per image and entrant, and
    :func:`efface.evaluation.damage.damage_cost`; the base model's images are cached.
    """
    model = load_model(model)
    chosen = find_profile(profile)
    targets = _targets(model, patch, targets)
    suite = suite_for(model, targets, near, far)
    judge = judge_for(model, suite, clip)
    guard = build_guard(guard) if isinstance(guard, str) else guard
    entrants = [(patch.card.method, patch)] if patch is not None else []
    systems = [System(Entrant(label, label, "patch", p.json()), p) for label, p in [*entrants, *others]]
    if guard is not None:
        label = f"{patch.card.method}+{guard.name}" if patch is not None else guard.name
        kind = "patch" if patch is not None else "guard"
        card = patch.json() if patch is not None else None
        guarded = System(Entrant(label, label, kind, card), patch, guard=guard, targets=tuple(targets))
        systems = [guarded, *systems[len(entrants) :]]
    if trivial and patch is not None:
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
    images = len(suite.cases(chosen))
    drawn = [chosen.evals_per_image, *(chosen.steps * s.guard.branches if s.guard else chosen.evals_per_image for s in systems)]
    searched = patch if chosen.damaged else None
    names = _damage_space(model, "auto", targets) if model.concept_names else [n for n in [*near, *far] if n not in targets]
    evals = images * sum(drawn) + (damage_cost(len(names), chosen.damaged, chosen) if searched is not None else 0)
    _announce(note, model, evals, f"profile {profile}: {images} images of each of {len(systems) + 1} entrants, ", " at most")
    summary = run_evaluation(model, systems, suite, chosen, judge, Path(out), on_image=on_image, command=command)
    if searched is not None:
        summary = {**summary, "damage": _keep_damage(model, searched, names, chosen, judge, Path(out), chosen.damaged)}
    return summary


def _damage_space(model: DiffusionModel, space: str, targets: Sequence[str]) -> list[str]:
    return list(concept_space(space, model).without(targets).require(1).candidates)


def _keep_damage(
    model: DiffusionModel,
    patch: Patch,
    names: Sequence[str],
    profile: Profile,
    judge: Any,
    folder: Path,
    count: int,
    by: str = "noise",
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The damage of a patch, found in the folder or measured and written to it."""
    key = [
        patch.digest(),
        model.digest(),
        dataclasses.asdict(profile),
        hashlib.sha256("\n".join(names).encode()).hexdigest(),
        count,
        by,
        judge_facts(judge),
    ]
    kept = read_damage(folder)
    if kept is not None and kept.get("key") == key:
        return kept
    if kept is not None:
        raise BadFile(
            f"{folder} holds the damage of another patch, model, profile, space or detector; give another --out, or delete it."
        )
    record, pictures = damaged(model, patch, names, profile, judge, count=count, by=by, on_image=on_image)
    for i, row in enumerate(record["rows"]):
        for which, image in zip(("before", "after"), pictures[row["name"]], strict=True):
            if bool(torch.isfinite(image).all()):
                write_png(to_pixels(image[None])[0], folder / "images" / "damage" / f"{i}-{which}.png")
    record = {**record, "key": key, "versions": versions()}
    write_text(folder / DAMAGE, json.dumps(record, indent=1, allow_nan=False))
    return record


def damage(
    model: Any,
    patch: Patch,
    *,
    out: str | Path,
    count: int = 20,
    space: str = "auto",
    by: str | None = None,
    profile: str = "mini-lite",
    clip: str | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What else a patch broke: the ``count`` names of a concept space it hurts most, confirmed on held-out seeds.

    ``space``: auto (the model's own names where it has some, else common English words), world, english, vocabulary, or a file.
    ``by``: noise or images, see :func:`efface.evaluation.damage.damage`; by default images for up to 200 names. Writes
    damage.json and pictures before and after to ``out`` and returns the record.
    """
    model = load_model(model)
    chosen = find_profile(profile)
    patch.check_base(model)
    names = _damage_space(model, space, patch.card.request["targets"])
    by = by or ("images" if len(names) <= 200 else "noise")
    judge = _plain_judge(model, clip, names)
    planned = damage_cost(len(names), count, chosen, by)
    _announce(note, model, planned, f"{len(names)} names of {space}, searched by {by}: ")
    return _keep_damage(model, patch, names, chosen, judge, Path(out), count, by, on_image)


def _plain_judge(model: DiffusionModel, clip: str | None, names: Sequence[str]) -> Any:
    """As :func:`judge_for`, without a suite."""
    return judge_for(model, Suite(tuple(names), (), (), (), {}, {}), clip)


def study(
    model: Any,
    name: str,
    *,
    out: str | Path,
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    images: int | None = None,
    space: str = "auto",
    profile: str = "mini-lite",
    store: str | Path | None = None,
    clip: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a study of what erasing does to the rest; see :mod:`efface.studies`. Writes records.jsonl, result.json and figure.svg
    to ``out`` and returns the result.

    What is left out takes the study's own default (targets: two or four of the miniature). ``store``: where erasures and scans
    are kept and found again, by this study after a stop and by the others; default ``out``/store. Raises UsageError before
    anything is computed.
    """
    if name not in STUDIES:
        raise UnknownName("study", name, STUDIES)
    cls, model = STUDIES[name], load_model(model)
    chosen = dataclasses.replace(find_profile(profile), cases={}, damaged=0)
    if not targets and model.preset != "mini":
        raise BadOption("this model has no world of its own: name what is erased with --target.")
    targets = tuple(targets) or STUDY_TARGETS[: cls.default_targets]
    request_for(model, targets)
    names = tuple(dict.fromkeys([*concept_space(space, model).require(2).candidates, *targets]))
    built = cls(
        targets=targets,
        names=names,
        methods=tuple(methods) or cls.default_methods,
        seeds=tuple(seeds) or cls.default_seeds,
        images=cls.default_images if images is None else images,
    )
    groups, gold, unseen = _world_of(model, targets)
    lab = Lab(
        model,
        _plain_judge(model, clip, names),
        names,
        chosen,
        Path(store) if store is not None else Path(out) / "store",
        lambda e: _row_method(model, e),
        lambda method, request, run: erase(
            model, method, targets=request.targets, anchor=request.anchor, preserve=request.preserve, run=run
        ),
        on_progress,
        groups,
        gold,
        unseen,
    )
    wants = built.wants(lab)
    planned = lab.cost(wants)
    before = f"study {name} on {model.name}, {len(names)} names: {len(erasures(wants))} erasures; missing are "
    _announce(note, model, planned, before, " plus gradients")
    lab.fulfil(wants)
    numbers = built.conclude(lab)
    records = numbers.pop("records")
    facts = {
        "study": name,
        "question": cls.question,
        "targets": list(targets),
        "methods": list(built.methods),
        "seeds": list(built.seeds),
        "images": built.images,
        "names": len(names),
        "space": space,
        "profile": profile,
        "model": {**model.info, "digest": model.digest()},
        "versions": versions(),
    }
    result = {**facts, **numbers}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "records.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in records))
    write_figure(built.draw(numbers), folder / "figure.svg")
    write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False))
    return result


STUDY_TARGETS = ("fire engine", "dog", "palm tree", "castle")
"""Of the miniature: four groups."""


def _row_method(model: DiffusionModel, e: Erasure) -> Method:
    """The method of a study's row with the preset that fits the model, and its training seed where it has one."""
    name = e.method or e.row
    seed = {"seed": e.seed} if "seed" in method_class(name).__dataclass_fields__ else {}
    return build_method(name, preset=model.preset, settings={**dict(e.settings), **seed})


def _world_of(model: DiffusionModel, targets: Sequence[str]) -> tuple[dict[str, str], DiffusionModel | None, tuple[str, ...]]:
    """Groups of names, the gold model where it never saw one of the targets, and what it never saw, of the miniature; nothing
    for other models."""
    if model.name != "mini":
        return {}, None, ()
    from .models.mini.world import load_world

    world = load_world()
    unseen = tuple(world.reserved)
    gold = load_model("mini-gold", device=str(model.device)) if set(targets) & set(unseen) else None
    return {c.name: c.group for c in world.concepts}, gold, unseen


def attack(
    model: Any,
    attack: Attack | str,
    *,
    budget: int,
    target: str | None = None,
    patch: Patch | None = None,
    guard: Guard | str | None = None,
    out: str | Path | None = None,
    cases: int = 10,
    profile: str = "mini-lite",
    controls: bool = True,
    wordings: Mapping[str, Sequence[str]] | None = None,
    clip: str | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Attack an erased model and count the cases in which the target comes back; returns the summary.

    ``budget``: UNet evaluations per case (forwards, backwards and images), of the attack and of each control alike. A system of
    neither patch nor guard is the model itself. ``target``: needed when the patch has none or several. ``wordings``: family ->
    other words for the target, for models other than the miniature. ``out``: a folder for run.json, attempts and summary, which
    a stopped attack is continued in; without it nothing is kept. Beside the attack stand ``direct`` (the plain prompts) and, with
    ``controls``, the attack's controls at the same budget; for concept_inversion on the miniature also the same attack on the
    gold model with a concept it never saw.
    Raises UsageError for what cannot be run before anything is computed, EvaluationError where nothing true can be said.
    """
    model = load_model(model)
    built = build_attack(attack, preset=model.preset) if isinstance(attack, str) else attack
    guard = build_guard(guard) if isinstance(guard, str) else guard
    target, targets = _one_target(model, patch, target)
    units = attack_units(model, [built], target, targets, patch, guard, cases, profile, wordings, near, far, controls=controls)
    planned = sum(u.cost(budget) for u in units)
    runs = f"{len(units)} runs of {len(units[0].goal.cases)} cases"
    before = f"{built.name} ({built.tier}: {TIERS[built.tier]}) on {model.name}: {runs}, "
    _announce(note, model, planned, before)
    suite = suite_for(model, [target], near, far)
    judge, folder = judge_for(model, suite, clip), Path(out) if out is not None else None
    chosen = find_profile(profile)
    with tempfile.TemporaryDirectory() as nowhere:
        return run_attacks(
            units,
            chosen,
            judge,
            folder or Path(nowhere),
            budget,
            calibration=suite.cases(chosen),
            on_image=on_image,
            command=command,
        )


def _one_target(model: DiffusionModel, patch: Patch | None, target: str | None) -> tuple[str, tuple[str, ...]]:
    """The attacked target, and everything the guard holds back."""
    if patch is None:
        (only,) = _targets(model, None, [target] if target is not None else [])
        return only, (only,)
    mine = tuple(_targets(model, patch, ()))
    if target is None and len(mine) > 1:
        raise BadOption(f"the patch erases {', '.join(mine)}; say which is attacked with --target.")
    if target is not None and target not in mine:
        raise UnknownName("target of the patch", target, mine)
    return target or mine[0], mine


def attack_units(
    model: DiffusionModel,
    attacks: Sequence[Attack],
    target: str,
    targets: tuple[str, ...],
    patch: Patch | None,
    guard: Guard | None,
    cases: int,
    profile: str,
    wordings: Mapping[str, Sequence[str]] | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    *,
    controls: bool = True,
    deployed: DiffusionModel | None = None,
) -> list[Unit]:
    """The runs that belong to attacks on one system: ``direct``, the attacks, and each control once.

    ``deployed``: another model in the place of the patched one, such as the gold model.
    """
    chosen = find_profile(profile)
    suite = suite_for(model, [target], near, far)
    direct = [c for c in suite.cases(chosen) if c.axis == "direct"]
    if not 1 <= cases <= len(direct):
        raise BadOption(f"profile {profile} has {len(direct)} cases of the target, {cases} were asked for.")
    words = {**known_wordings(model, target), **{k: tuple(v) for k, v in (wordings or {}).items()}}
    system = Deployed(model, chosen.steps, targets, patch, guard, deployed)
    goal = Goal(target, tuple(direct[:cases]), words)
    units = [Unit("direct", Direct(), system, goal, "baseline")]
    units += [Unit(a.name, a, system, goal) for a in attacks if a.name != "direct"]
    for a in attacks:
        for name in a.controls if controls else ():
            if name not in {u.label for u in units}:
                units.append(
                    Unit(name, build_attack(name, preset=model.preset, settings={"seed": a.seed}), system, goal, "control")
                )
    novel = [a for a in attacks if a.name == "concept_inversion"]
    if novel and controls and model.name == "mini" and deployed is None:
        unseen = unseen_concept(target)
        gold = load_model("mini-gold", device=str(model.device))
        plain = [c for c in suite_for(model, [unseen]).cases(chosen) if c.axis == "direct"][:cases]
        taught = Deployed(model, chosen.steps, (), model=gold)
        units.append(Unit("never_learned", novel[0], taught, Goal(unseen, tuple(plain)), "novel"))
    return units


def unseen_concept(target: str) -> str:
    """A concept the gold model never saw: the target itself, one of its group, or the first."""
    from .models.mini.world import load_world

    world = load_world()
    return min(world.reserved, key=lambda n: (n != target, world[n].group != world[target].group))


def known_wordings(model: DiffusionModel, target: str) -> dict[str, tuple[str, ...]]:
    """Other words for a target of the miniature by family; nothing for other models."""
    if model.preset != "mini":
        return {}
    from .models.mini.world import load_world

    world = load_world()
    concept = world[target]
    return {"synonym": concept.synonyms, "implicit": concept.implicit, "group": (world.group_words[concept.group],)}


def report(folder: str | Path, out: str | Path) -> Path:
    """One self-contained HTML page from an evaluation folder."""
    return write_report(Path(folder), Path(out))
