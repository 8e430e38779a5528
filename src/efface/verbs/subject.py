"""What an erasure is measured on and what looks at the images: from the model's world, or from what the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..concepts.prompts import filled
from ..concepts.request import names_of, normalised
from ..detectors.clip_score import ClipScorer
from ..errors import BadOption, BadRequest, UnknownName
from ..evaluation.driver import Judge
from ..evaluation.judges import ClipJudge, DetectorJudge
from ..evaluation.profiles import Profile
from ..evaluation.profiles import profile as find_profile
from ..evaluation.suite import Neighbour, Suite, lexical_traps, world_suite
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..plugins import resolve
from ..registry import DETECTORS, SUITES, WORLDS
from .erase import request_for


def with_world(model: DiffusionModel, name: str | None) -> DiffusionModel:
    """The model, measured from now on in a registered world (``efface list worlds``, or ``path/to/file.py:Name``): its concepts,
    their neighbours and wordings, its judge; without a name as it is. Raises BadOption for a model that has a world, UnknownName,
    PluginError."""
    if name is None:
        return model
    if model.world is not None:
        raise BadOption(f"{model.name} brings its own world {model.world.name!r} along; leave --world {name} out.")
    model.world = WORLDS.find(name)().world()
    model.concept_names = tuple(model.world.groups)
    return model


def named_suite(model: DiffusionModel, name: str, targets: Sequence[str]) -> Suite:
    """The suite of a registered protocol (``efface list suites``, or ``path/to/file.py:Name``). Raises UnknownName, PluginError,
    and what the protocol raises."""
    return SUITES.find(name)().suite(model.world, names_of(targets, "targets"))


def model_guidance(model: DiffusionModel) -> float:
    """The guidance scale of the model's world where it has one; else the default of its family's pipeline in diffusers."""
    return model.usual_guidance if model.world is None else model.world.guidance


def profile_for(model: DiffusionModel, profile: str | Profile) -> Profile:
    """The profile of a name with the steps and the guidance that fit the model. Raises UnknownName."""
    if not isinstance(profile, str):
        return profile
    found = find_profile(profile)
    if model.world is not None:
        return found
    steps = min(found.open_steps, model.usual_steps)  # a network of few steps draws nothing better with more
    return replace(found, steps=steps, guidance=model_guidance(model))


def drawn_with(suite: Suite, profile: Profile) -> str:
    """How the images of an evaluation are drawn, in words."""
    prompts = " and ".join(repr(filled(t, suite.targets[0])) for t in (suite.templates[0], suite.templates[-1]))
    return f"{profile.steps} sampler steps, guidance {profile.guidance:g}, prompts such as {prompts}"


def suite_for(
    model: DiffusionModel,
    targets: Sequence[str],
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> Suite:
    """The concepts that an evaluation looks at. A model's world knows the neighbours; for other models the user names them.

    synonyms: other names of the targets, for models without a world.

    Raises BadOption where names are missing or have no effect, UnknownName and BadRequest for a target that cannot be measured.
    """
    targets, near, far = names_of(targets, "targets"), names_of(near, "near"), names_of(far, "far")
    world = model.world
    if world is not None:
        if near or far or synonyms:
            raise BadOption(
                f"the neighbours and synonyms of {world.name} are fixed in its suite; "
                "--near, --far and --synonym are for other models."
            )
        usable = world.usable()
        for target in targets:
            if target not in world.groups:
                raise UnknownName(f"concept of {world.name}", target, world.groups)
            if target not in usable:
                raise BadRequest(
                    f"the report detector recognises {target!r} too rarely (below {world.RECOGNISED}) to measure its erasure; "
                    "choose another."
                )
        return world_suite(world, targets)
    if not near or not far:
        raise BadOption("this model has no world of its own: name concepts to keep, at least one --near NAME and one --far NAME.")
    _kept_apart(targets, near, far)
    names = [*near, *far]
    traps = [t for target in targets for t in lexical_traps(target, names)]
    kept = [tuple(Neighbour(n, "given", "test") for n in group if n not in traps) for group in (near, far)]
    shared = tuple(Neighbour(n, "shares a word", "test") for n in traps)
    return Suite(tuple(targets), kept[0], shared, kept[1], _synonyms(targets, names, synonyms or {}), {})


def _synonyms(targets: Sequence[str], kept: Sequence[str], given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Other names of the targets, by target. Raises UnknownName and BadRequest for names that are none."""
    mine, found = {normalised(t): t for t in targets}, {}
    for target, words in given.items():
        if normalised(target) not in mine:
            raise UnknownName("target", target, targets)
        found[mine[normalised(target)]] = words = names_of(words, f"the synonyms of {target!r}")
        taken = [w for w in words if normalised(w) in {*mine, *map(normalised, kept), ""}]
        if taken:
            raise BadRequest(f"the synonym {taken[0]!r} of {target!r} is a target, a concept to keep, or empty.")
    return found


def _kept_apart(targets: Sequence[str], near: Sequence[str], far: Sequence[str]) -> None:
    """Raises BadRequest for a concept to keep that is a target, that is named twice, or that is empty."""
    seen = {normalised(t): "a target" for t in targets}
    for group, names in (("--near", near), ("--far", far)):
        for name in names:
            key = normalised(name)
            if not key:
                raise BadRequest(f"{group} {name!r} names nothing.")
            if key in seen:
                raise BadRequest(f"{group} {name!r} is {seen[key]} as well; every concept is measured on one axis.")
            seen[key] = f"named with {group}"


def targets_of(model: DiffusionModel, patch: Patch | None, targets: Sequence[str]) -> list[str]:
    """The patch's targets, or those given for a system without one. Raises BadOption when that is contradictory or nothing."""
    targets = names_of(targets, "targets")
    if patch is None:
        if not targets:
            raise BadOption("without a patch there is no target: name one with --target.")
        return list(request_for(model, targets).targets)
    patch.check_base(model)
    mine = list(patch.card.request.targets)
    if targets and sorted(map(normalised, targets)) != sorted(map(normalised, mine)):
        raise BadOption(f"the patch erases {', '.join(mine)}, not {', '.join(targets)}; leave --target out.")
    return mine


def judge_for(model: DiffusionModel, names: Sequence[str], clip: str | None = None, detector: str | None = None) -> Judge:
    """What looks at the images: a detector by name beside the scores of a CLIP checkpoint, the judge of the model's world, or a
    CLIP checkpoint that tells ``names`` apart. Raises BadOption without any of them."""
    if detector is not None:
        scorer = ClipScorer(clip) if clip is not None else None
        return DetectorJudge(DETECTORS.find(detector)(names), scorer, clip or "")
    if model.world is not None:
        judge: Judge = resolve(model.world.judge)()
        return judge
    if clip is None:
        raise BadOption(
            "this model has no detectors of its own: give --clip FOLDER_OR_HUB_ID of a CLIP checkpoint, or --detector NAME, to "
            "name its images."
        )
    return ClipJudge(clip, names)


def gold_for(model: DiffusionModel) -> DiffusionModel | None:
    """The gold model of the model's world, on the same device; None without one, and for the gold model itself."""
    world = model.world
    if world is None or not world.gold or model.name == world.gold:
        return None
    return load_model(world.gold, device=str(model.device))
