"""One name, however it is written, is one name everywhere; a string is one name wherever names are taken."""

from __future__ import annotations

import inspect
import json
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from efface import verbs
from efface.cli import main
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest, names_of, normalised
from efface.concepts.spaces import ConceptSpace
from efface.errors import BadOption, BadRequest, EffaceError, UnknownName
from efface.evaluation.driver import blocklist
from efface.evaluation.suite import Suite, lexical_traps
from efface.guards import SAFREE, SLD, Negative
from efface.methods import ESD, UCE
from efface.models.load import load_model
from efface.testing import same
from efface.verbs.erase import request_for
from efface.verbs.subject import asked_of, suite_for

NFC, NFD = (unicodedata.normalize(form, "Salvador Dalí") for form in ("NFC", "NFD"))
ALIKE = [
    ("Dalí", unicodedata.normalize("NFD", "Dalí")),
    ("Ångström", unicodedata.normalize("NFD", "ångström")),
    ("fire engine", "ﬁre engine"),  # a ligature
    ("cat", "ｃａｔ"),  # full width
    ("cat", "c\u00adat"),  # a soft hyphen
    ("fire engine", " Fire\u00a0 ENGINE\t"),
    ("ice-cream", "ice - cream"),
    ("t-shirt", "T- shirt"),
    ("Mickey's hat", "mickey 's hat"),
    ("number 12", "number 1 2"),
    ("dr. no", "Dr . No"),
]
UNLIKE = [("Dali", "Dalí"), ("cat", "cats"), ("fire engine", "fireengine"), ("ice cream", "ice-cream"), ("a b", "b a")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    with pytest.raises(BadRequest, match="both a target and to be preserved"):
        EraseRequest((one,), "", (other,))
    with pytest.raises(BadRequest, match="named twice"):
        EraseRequest((one, other))
    with pytest.raises(BadRequest, match="target and anchor"):
        EraseRequest((one,), other)
    assert ConceptSpace.of("s", [one, "house", other]).without([other]).candidates == ("house",)
    assert blocklist([one], "x")(f"a photo of {other}, at night") == "x"


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_names_that_are_two(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    EraseRequest((one, other))
    assert blocklist([one], "x")(f"a photo of {other}") == f"a photo of {other}"


@pytest.mark.parametrize(("one", "other"), [*ALIKE, *UNLIKE])
def test_what_clips_tokenizer_reads_as_one_is_one(one: str, other: str, tiny_model: Any) -> None:
    """The tokenizer itself is the reference; the look-alikes of NFKC and characters without width are ours."""
    alike = tiny_model.token_ids([one]) == tiny_model.token_ids([other])
    assert (normalised(one) == normalised(other)) or not alike


def test_the_models_own_tokenizer_decides_too(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.concept_names = ()
    monkeypatch.setattr(type(tiny_model), "token_ids", lambda self, prompts: [[1, len(p)] for p in prompts])
    for names in ({"targets": ["cat", "dog"]}, {"targets": ["cat"], "preserve": ["dog"]}, {"targets": ["cat"], "anchor": "dog"}):
        with pytest.raises(BadRequest, match="reads 'cat' and 'dog' as one"):
            request_for(tiny_model, **names)
    request_for(tiny_model, ["cat"], preserve=["house", "tulip"])


def test_a_closed_world_spells_its_names(tiny_model: Any) -> None:
    request = request_for(tiny_model, [" CAT"], "Dog", ["Rose "])
    assert (request.targets, request.anchor, request.preserve) == (("cat",), "dog", ("rose",))


def open_model() -> Any:
    model: Any = load_model("tiny")
    model.concept_names = ()
    return model


@pytest.mark.parametrize(
    ("near", "far", "message"),
    [
        (["cat"], ["car"], "is a target as well"),
        (["dog"], [" CAT "], "is a target as well"),
        ([unicodedata.normalize("NFD", "Dalí")], ["car"], "is a target as well"),
        (["dog"], ["DOG"], "is named with --near as well"),
        (["dog", "Dog"], ["car"], "is named with --near as well"),
        (["dog"], [""], "names nothing"),
    ],
)
def test_concepts_to_keep_are_no_targets_and_stand_once(near: list[str], far: list[str], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        suite_for(open_model(), ["cat", "Dalí"], near, far)


def test_targets_of_a_patch_may_be_named_in_another_spelling() -> None:
    model = open_model()
    patch = UCE().erase(model, EraseRequest((NFC, "cat"), "dog"))
    assert asked_of(model, patch, ["CAT", NFD]).asked == (NFC, "cat")
    with pytest.raises(BadOption, match="the patch erases"):
        asked_of(model, patch, ["cat"])


def test_words_that_traps_share_are_words() -> None:
    assert lexical_traps("t-shirt", ["t-rex", "shirt collar", "jack-o-lantern", "T - Shirt"]) == ["shirt collar"]


# -- commas, steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rose, tulip, cat", "rose;tulip", "rose | tulip"])
def test_a_target_that_reads_like_a_list_gets_a_hint(name: str) -> None:
    with pytest.warns(UserWarning, match="does not separate targets"):
        assert request_for(open_model(), [name]).targets == (name,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request_for(open_model(), ["rose of tulip"])


def run(*args: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_the_command_line_shows_the_hint_as_one_line(tmp_path: Path) -> None:
    model = open_model()
    model.save_folder(tmp_path / "m")
    args = (
        "erase",
        "uce",
        "--model",
        tmp_path / "m",
        "--target",
        "rose, cat",
        "--anchor",
        "house",
        "--out",
        tmp_path / "p.safetensors",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as for a user; here every warning is an error
        result, silent = run(*args), run("--quiet", *args, "--force")
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "does not separate targets" in line]
    assert len(said) == 1
    assert said[0].startswith("efface: note:")
    assert silent.exit_code == 0
    assert "note" not in silent.stderr


@pytest.mark.parametrize("steps", [1001, 5000])
def test_more_steps_than_the_schedule_has_are_refused(steps: int, tmp_path: Path) -> None:
    model: Any = load_model("tiny")
    before = model.evals.forward
    with pytest.raises(BadOption, match=f"{steps} sampling steps: the schedule has 1000 levels"):
        verbs.sample(model, "cat", steps=steps)
    for sampler in ("student", "frozen", "pool", "harvest", "noised"):
        with pytest.raises(BadOption, match="the schedule has 1000 levels"):
            verbs.erase(model, ESD(steps=1, sampling_steps=steps, sampler=sampler), targets=["cat"])
    assert model.evals.forward == before, "refused before anything is spent"
    assert len(model.schedule.timesteps(1000)) == 1000


def test_no_command_writes_an_empty_patch(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    args = ("--model", "tiny", "--target", "cat", "--out", out)
    for method in ("esd", "ap", "age"):
        result = run("erase", method, "--set", "steps=0", *args)
        assert (result.exit_code, "steps=0 trains nothing" in result.stderr) == (2, True), result.output
    result = run("erase", "esd", "--set", "lr=0", "--set", "steps=1", "--set", "sampling_steps=2", *args)
    assert (result.exit_code, "changed nothing" in result.stderr) == (1, True), result.output
    assert not out.exists()


# -- a string where a list is meant ------------------------------------------------------------------------------------


def test_names_of() -> None:
    assert names_of("rose", "targets") == ("rose",)
    assert names_of(["rose", "cat"], "targets") == ("rose", "cat")
    assert names_of((), "targets") == ()
    for wrong in ([1], 3, [None], [["cat"]]):
        with pytest.raises(BadRequest, match="targets takes names"):
            names_of(wrong, "targets")  # type: ignore[arg-type]


def outcome(call: Any, shared: Path) -> Any:
    """What a call gives, or the error it ends with: two spellings of one request must agree in it."""
    try:
        found = call()
    except EffaceError as error:
        return type(error).__name__, str(error).replace(str(shared), "")
    if isinstance(found, torch.Tensor):
        return found.tolist()
    if hasattr(found, "deltas"):
        return found.digest()
    return json.dumps(found, sort_keys=True, default=str)


def arguments(verb: str, folder: Path) -> dict[str, Any]:
    model = load_model("tiny")
    patch = UCE().erase(model, EraseRequest(("cat",)))
    folder.mkdir(parents=True, exist_ok=True)
    if verb == "import_patch":
        verbs.export(model, patch, folder / "f.safetensors", to="kohya")
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "erase": lambda: {"model": model, "method": "uce", "targets": ["cat"], "preserve": ["dog"]},
        "sample": lambda: {"model": model, "prompts": ["a dog"], "steps": 1},
        "import_patch": lambda: {"model": model, "source": folder / "f.safetensors", "targets": ["cat"]},
        "card": lambda: {"patch": patch, "evaluation": folder / "e", "out": folder / "r", "exports": ["none"], "model": model},
        # These end in an error that names what was given: no detector knows the tiny model.
        "evaluate": lambda: {
            "model": open_model(),
            "patch": None,
            "guard": "negative",
            "targets": ["cat"],
            "out": folder / "e",
            "near": ["dog"],
            "far": ["bus"],
            "synonyms": {"cat": ["kitty"]},
        },
        "attack": lambda: {
            "model": open_model(),
            "attack": "direct",
            "budget": 200,
            "target": "cat",
            "near": ["dog"],
            "far": ["bus"],
            "wordings": {"synonym": ["kitty"]},
        },
        "study": lambda: {
            "model": model,
            "name": "locality",
            "out": folder / "s",
            "targets": ["cat"],
            "methods": ["uce"],
            "seeds": [1],
        },
        "damage": lambda: {"model": model, "patch": patch, "out": folder / "d"},
        "distance": lambda: {"model": model, "patch": patch},
        "bench": lambda: {"plan": plan(folder), "out": folder / "b", "only": ["no-such-cell"]},
        "survive": lambda: {
            "model": open_model(),
            "patch": UCE().erase(open_model(), EraseRequest(("cat",))),
            "out": folder / "v",
            "only": ["euler"],
            "near": ["dog"],
            "far": ["bus"],
        },
        "suite": lambda: {"targets": ["church"], "out": folder / "s.toml"},
    }
    return made[verb]()


def plan(folder: Path) -> Path:
    """A plan of one erasure."""
    path = folder / "plan.toml"
    text = 'models = ["tiny"]\ntargets = ["cat"]\nnear = ["dog"]\nfar = ["bus"]\n[entrants.uce]\nmethod = "uce"\n'
    path.write_text(text, "utf-8")
    return path


def listed() -> list[tuple[str, str]]:
    """Every argument of a verb that takes a sequence of names or numbers."""
    found = []
    for verb in verbs.__all__:
        for name, p in inspect.signature(getattr(verbs, verb)).parameters.items():
            if "Sequence[str]" in str(p.annotation) or "Sequence[int]" in str(p.annotation):
                found.append((verb, name))
    return found


def test_the_arguments_are_found() -> None:
    assert {("erase", "targets"), ("sample", "prompts"), ("study", "methods"), ("study", "seeds"), ("attack", "wordings")} <= set(
        listed()
    )
    assert len(listed()) >= 13


@pytest.mark.parametrize(("verb", "argument"), listed())
def test_one_name_needs_no_list(verb: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    results = []
    for i, bare in enumerate((False, True)):
        given = arguments(verb, tmp_path / str(i))
        if argument == "detector":  # ends in an error that names it
            given["detector"] = ["no-such-detector"]
        value = given[argument]
        if bare:
            given[argument] = {k: v[0] for k, v in value.items()} if isinstance(value, dict) else value[0]
        if verb in ("evaluate", "attack", "survive") and argument != "detector":
            monkeypatch.setattr(
                sys.modules[f"efface.verbs.{verb}"],
                "judge_for",
                lambda model, names, clip=None, detector=None, heads=(): (_ for _ in ()).throw(BadOption(f"names {names}")),
            )
        if verb == "evaluate":  # other names end in the suite

            def suites(*args: Any) -> Any:
                seen.append(suite_for(*args))
                return seen[-1]

            monkeypatch.setattr(sys.modules["efface.verbs.evaluate"], "suite_for", suites)
        if verb == "attack":  # the wordings end in the goals of the runs
            from efface.verbs.attack import attack_units

            def units(*args: Any, **more: Any) -> Any:
                made = attack_units(*args, **more)
                seen.append([u.goal.wordings for u in made])
                return made

            monkeypatch.setattr(sys.modules["efface.verbs.attack"], "attack_units", units)
        if verb == "study":
            from efface.studies import STUDIES

            original = STUDIES["locality"].__init__

            def init(self: Any, *args: Any, original: Any = original, **more: Any) -> None:
                seen.append((more["targets"], more["methods"], more["seeds"]))
                raise BadOption(f"{seen[-1]}")

            monkeypatch.setattr(STUDIES["locality"], "__init__", init)
        results.append(outcome(lambda given=given: getattr(verbs, verb)(**given), tmp_path / str(i)))
        monkeypatch.undo()
    assert results[0] == results[1]
    assert len(seen) in (0, 2)
    assert not seen or seen[0] == seen[1]
    assert "'c', 'a', 't'" not in str(results)


def test_guards_and_requests_take_one_name() -> None:
    assert EraseRequest("rose", "", "cat") == EraseRequest(("rose",), "", ("cat",))  # type: ignore[arg-type]
    assert ConceptSpace.of("s", "rose").candidates == ("rose",)
    assert Negative().negative("rose") == "rose"  # type: ignore[arg-type]
    model: Any = load_model("tiny")
    for guard in (Negative(), SLD(), SAFREE()):
        pictures = []
        for targets in ("cat", ("cat",)):
            with guard.active(model, targets):  # type: ignore[arg-type]
                pictures.append(model.sample([Case("x", "cat", "a cat", 0, 4.0)], 2))
        assert torch.equal(*pictures)


def test_strings_as_targets_of_a_suite(tiny_model: Any) -> None:
    made: Suite = suite_for(open_model(), "cat", "dog", "bus")  # type: ignore[arg-type]
    assert made.names == ("cat", "dog", "bus")
    with pytest.raises(UnknownName, match="'zeppelin'"):
        request_for(tiny_model, "zeppelin")
    assert same(verbs.erase(tiny_model, "uce", targets="cat").deltas, verbs.erase(tiny_model, "uce", targets=["cat"]).deltas)
