"""What an erasure is measured on and what looks at the images: from the model's world, or from what the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..concepts.request import ATTRIBUTE, MIXED, OBJECT, STYLE, EraseRequest, names_of, normalised
from ..detectors.base import Detector
from ..detectors.clip_score import ClipScorer
from ..detectors.several import Several
from ..detectors.zero_shot import ZeroShot
from ..errors import BadOption, BadRequest, UnknownName
from ..evaluation.driver import Judge
from ..evaluation.judges import ClipJudge, DetectorJudge
from ..evaluation.profiles import Profile
from ..evaluation.profiles import profile as find_profile
from ..evaluation.proposed import proposed, read_suite
from ..evaluation.suite import Neighbour, Suite, lexical_traps
from ..evaluation.world_suite import world_suite
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..plugins import resolve
from ..registry import DETECTORS, SUITES, WORLDS
from .erase import AUTO, request_for


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
    """The suite of a registered protocol (``efface list suites``, or ``path/to/file.py:Name``), or of a TOML file that
    ``efface suite`` wrote. Raises UnknownName, PluginError, BadFile, and what the protocol raises."""
    if Path(name).suffix == ".toml":
        return read_suite(Path(name), names_of(targets, "targets"))
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
    asked = suite.asked()
    prompts = " and ".join(repr(a.prompt) for a in (asked[0], asked[-1]))
    return f"{profile.steps} sampler steps, guidance {profile.guidance:g}, prompts such as {prompts}"


STYLE_FORMS = ("a {} in the style of NAME", "a picture of a {} in the style of NAME", "a painting of a {} by NAME")
ATTRIBUTE_FORMS = ("a {} with NAME", "a picture of a {} with NAME")
"""Prompts for a style or an attribute of a model without a world."""


def suite_for(
    model: DiffusionModel,
    targets: Sequence[str],
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
    kind: str = OBJECT,
    known: Callable[[Sequence[str]], Sequence[str]] = lambda names: names,
) -> Suite:
    """The concepts that an evaluation looks at. A model's world knows the neighbours; for other models the user names them, or
    WordNet proposes them for objects.

    synonyms: other names of the targets, for models without a world. kind: what the targets of such a model are. For a style,
    ``near`` are other styles and ``far`` objects, on which all styles are shown; for an attribute likewise. known: keeps of
    proposed names those that a detector can name.

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
        return world_suite(world, targets)
    if kind == OBJECT and not near and not far:
        suite = proposed(targets, known)
        own = _synonyms(targets, suite.names[len(targets) :], synonyms or {})
        return replace(suite, synonyms={**suite.synonyms, **own})
    if not near or not far:
        what = {
            STYLE: "other styles to keep (--near NAME) and objects to show all styles on (--far NAME)",
            ATTRIBUTE: "other attributes to keep (--near NAME) and objects to show all of them on (--far NAME)",
        }.get(kind, "concepts to keep, at least one --near NAME and one --far NAME")
        raise BadOption(f"this model has no world of its own: name {what}.")
    _kept_apart(targets, near, far)
    names = [*near, *far]
    others = _synonyms(targets, names, synonyms or {})
    if kind in (STYLE, ATTRIBUTE):
        forms = STYLE_FORMS if kind == STYLE else ATTRIBUTE_FORMS
        near_given, far_given = (tuple(Neighbour(n, "given", "test") for n in group) for group in (near, far))
        written = {n: tuple(f.replace("NAME", n) for f in forms) for n in (*targets, *near)}
        reworded = {t: tuple(f.replace("NAME", w) for w in words for f in forms) for t, words in others.items()}
        words = {n: n for n in written}
        given = (tuple(targets), near_given, (), far_given)
        return Suite(*given, reworded, {}, kind=kind, subjects=tuple(far), forms=written, words=words)
    traps = [t for target in targets for t in lexical_traps(target, names)]
    kept = [tuple(Neighbour(n, "given", "test") for n in group if n not in traps) for group in (near, far)]
    shared = tuple(Neighbour(n, "shares a word", "test") for n in traps)
    return Suite(tuple(targets), kept[0], shared, kept[1], others, {})


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


def asked_of(model: DiffusionModel, patch: Patch | None, targets: Sequence[str], kind: str = AUTO) -> EraseRequest:
    """The patch's request, or that of the targets that are given for a system without one.

    Raises BadOption when that is contradictory or nothing.
    """
    targets = names_of(targets, "targets")
    if patch is None:
        if not targets:
            raise BadOption("without a patch there is no target: name one with --target.")
        return request_for(model, targets, kind=kind)
    patch.check_base(model)
    request = patch.card.request
    if request.kind == MIXED:
        kinds = f"the patch erases {', '.join(request.asked)}, which are of several kinds"
        raise BadOption(f"{kinds} and are measured one kind at a time: give one of the patches that it was made of.")
    if targets and sorted(map(normalised, targets)) != sorted(map(normalised, request.asked)):
        raise BadOption(f"the patch erases {', '.join(request.asked)}, not {', '.join(targets)}; leave --target out.")
    if kind not in (AUTO, request.kind):
        raise BadOption(f"the patch erases the {request.kind} {', '.join(request.asked)}; leave --kind {kind} out.")
    return request


def known_to(detector: str | Sequence[str] | None, clip: str | None) -> Callable[[Sequence[str]], Sequence[str]]:
    """Keeps of names those that one of the detectors can name; all where a CLIP checkpoint stands beside them."""
    if not detector or clip is not None:
        return lambda names: names
    classes = [_detector(d)[0] for d in ((detector,) if isinstance(detector, str) else detector)]
    return lambda names: [n for n in names if any(n in cls.known([n]) for cls in classes)]


def judge_for(
    model: DiffusionModel,
    names: Sequence[str],
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    heads: Sequence[Sequence[str]] = (),
) -> Judge:
    """What looks at the images: detectors by name beside the scores of a CLIP checkpoint, the judge of the model's world, or a
    CLIP checkpoint that tells ``names`` apart. Of several detectors each has the names that it knows and the ones before it do
    not; what is left is for the CLIP checkpoint. ``heads``: the names in groups that exclude each other, such as styles and
    objects; () for one group. Raises BadOption without any of them, and for a registered detector that has one group where
    several are needed."""
    if detector:
        scorer = ClipScorer(clip) if clip is not None else None
        built = _detectors((detector,) if isinstance(detector, str) else tuple(detector), names, heads, scorer, clip)
        return DetectorJudge(built, scorer, clip or "")
    if model.world is not None:
        judge: Judge = resolve(model.world.judge)()
        return judge
    if clip is None:
        raise BadOption(
            "this model has no detectors of its own: give --clip FOLDER_OR_HUB_ID of a CLIP checkpoint, or --detector NAME, to "
            "name its images."
        )
    return ClipJudge(clip, names, heads)


def _detectors(
    wanted: Sequence[str], names: Sequence[str], heads: Sequence[Sequence[str]], scorer: ClipScorer | None, clip: str | None
) -> Detector:
    """One detector that can name everything. Raises BadOption where the given ones cannot, or cannot tell two things apart that
    one image shows together."""
    left, built = list(dict.fromkeys(names)), []
    for name in wanted:
        cls, argument = _detector(name)
        mine = cls.known(left)
        if not mine:
            raise BadOption(
                f"the detector {name} knows none of {', '.join(left[:5]) or 'the names, which others know'}; leave it out."
            )
        built.append(cls(mine, argument) if cls.takes else cls(mine))  # type: ignore[call-arg]  # those that take something
        left = [n for n in left if n not in mine]
    if left and scorer is None:
        raise BadOption(
            f"{' and '.join(wanted)} cannot name {', '.join(left[:5])}: choose concepts that are known, add another --detector, "
            "or --clip FOLDER_OR_HUB_ID, which names anything."
        )
    if left:
        rest = [[n for n in head if n in left] for head in heads or (left,)]
        built.append(ZeroShot((), scorer, str(clip), [head for head in rest if head]))
    one = built[0] if len(built) == 1 else Several(built)
    if any(sum(bool(set(h) & set(head)) for head in heads) > 1 for h in one.heads):
        raise BadOption(
            f"the detector {wanted[0]} gives an image one name, and here it must name two things, the object and its style or "
            "attribute. Leave --detector out, or give one whose `heads` keep them apart."
        )
    return one


def _detector(text: str) -> tuple[type[Detector], str]:
    """The class of ``NAME``, ``NAME:ARGUMENT`` or ``path/to/file.py:Name``, and the argument. Raises UnknownName, BadFile,
    PluginError."""
    name, colon, argument = text.partition(":")
    if colon and name in DETECTORS and DETECTORS[name].takes:
        return DETECTORS[name], argument
    return DETECTORS.find(text), ""


def gold_for(model: DiffusionModel) -> DiffusionModel | None:
    """The gold model of the model's world, on the same device; None without one, and for the gold model itself."""
    world = model.world
    if world is None or not world.gold or model.name == world.gold:
        return None
    return load_model(world.gold, device=str(model.device))
