"""Suites for models without a world: listed ones with a version, proposals from WordNet, files of the user's."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from efface import verbs
from efface.cli import main
from efface.concepts.request import EraseRequest, normalised
from efface.concepts.wordnet import alike, entries, entry, unlike
from efface.detectors.imagenet import ImageNet
from efface.errors import BadFile, BadOption, BadRequest, UnknownName
from efface.evaluation import listed
from efface.evaluation.listed import Characters, Listed, Objects, Spiders, Styles
from efface.evaluation.profiles import PROFILES
from efface.evaluation.proposed import proposed, read_suite, write_suite
from efface.evaluation.suite import Neighbour, suite_from
from efface.methods import UCE
from efface.models.load import load_model
from efface.testing import check_suite
from efface.verbs.subject import judge_for, known_to, named_suite, suite_for

LISTED: tuple[type[Listed], ...] = (Objects, Styles, Characters, Spiders)
VERSIONS = {
    "objects-v1": "9645350ad08da2fb",
    "styles-v1": "f21130ac9e36d1ce",
    "characters-v1": "202948b587094098",
    "spiders-v1": "7cd535052dc2f003",
}


def open_model() -> Any:
    model: Any = load_model("tiny")
    model.concept_names = ()
    return model


@pytest.mark.parametrize("cls", LISTED)
def test_a_version_is_never_changed(cls: type[Listed]) -> None:
    """Numbers that carry a suite's name can only be compared when it says the same. Another text is another version."""
    data = resources.files("efface.evaluation").joinpath("suites", f"{cls.name}.toml").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == VERSIONS[cls.name]


@pytest.mark.parametrize("cls", LISTED)
def test_listed_suites_are_complete(cls: type[Listed]) -> None:
    for target in listed._file(cls.name)[0]["rows"]:
        suite = check_suite(cls(), None, (target,))
        assert suite.source.startswith(f"{cls.name}, sha256 ")
        assert len(suite.near) + len(suite.trap) >= 5
        assert len(suite.far) >= 5
        assert len(suite.synonyms[target]) >= 2
        assert len(suite.implicit[target]) >= 3
        for axis in (suite.near, suite.trap, suite.far):
            assert [n.split for n in axis] == ["test", "dev"] * (len(axis) // 2) + ["test"] * (len(axis) % 2)
        for text in suite.implicit[target]:
            assert normalised(target) not in normalised(text), (target, text)
        counts = {axis: sum(c.axis == axis for c in suite.cases(PROFILES["mini"])) for axis in ("direct", "synonym", "implicit")}
        assert all(counts.values())
    with pytest.raises(UnknownName, match=f"target of the suite {cls.name}"):
        cls().suite(None, ("no such thing",))


@pytest.mark.parametrize("cls", [Objects, Spiders])
def test_an_imagenet_classifier_knows_every_name(cls: type[Listed]) -> None:
    for target in listed._file(cls.name)[0]["rows"]:
        names = cls().suite(None, (target,)).names
        assert ImageNet.known(names) == list(names)


def test_one_imagenet_detector_judges_a_broad_target_and_what_must_stay() -> None:
    """A kind of classes is a head of its own, beside the thousand classes."""
    suite = Spiders().suite(None, ["spider"])
    assert set(suite.names) <= set(judge_for(open_model(), suite.names, detector="imagenet", heads=suite.heads).names)


def test_a_broad_target_is_asked_for_without_its_word() -> None:
    suite = Spiders().suite(None, ("spider",))
    assert suite.kind == "category"
    direct = {c.prompt for c in suite.cases(PROFILES["mini"]) if c.axis == "direct"}
    assert any("tarantula" in p for p in direct)
    assert len(suite.implicit["spider"]) >= 20
    assert not [t for t in suite.implicit["spider"] if "spider" in t]


def test_the_spelling_of_the_request_is_that_of_the_records() -> None:
    suite = Styles().suite(None, ("van gogh",))
    assert suite.targets == ("van gogh",)
    assert suite.kind == "style"
    assert {c.concept for c in suite.cases(PROFILES["smoke"]) if c.axis == "direct"} == {"van gogh"}
    both = Objects().suite(None, ("church", "castle"))
    assert "castle" not in {n.name for n in (*both.near, *both.far, *both.trap)}


# -- WordNet -----------------------------------------------------------------------------------------------------


def test_wordnet_says_what_is_alike() -> None:
    found = entry("church")
    assert found is not None
    assert found.synonyms == ("church building",)
    assert found.kinds[:2] == ("place of worship", "building")
    assert set(alike("church")[:5]) == {"mosque", "stupa", "temple", "chapel", "synagogue"}
    assert entry("fiddle") == entry("violin"), "found by another name too"
    assert entry("no such thing") is None
    assert len(entries()) > 4000


@pytest.mark.parametrize("name", ["church", "dog", "spider", "bus", "violin"])
def test_what_is_unlike_shares_no_kind(name: str) -> None:
    own = entry(name)
    assert own is not None
    for other in unlike(name):
        found = entries()[normalised(other)]
        assert not set(own.kinds) & set(found.kinds)
        assert found.classified
    assert name not in alike(name)


def test_the_list_is_made_by_its_tool_without_insults_and_without_what_is_sexual(tmp_path: Path) -> None:
    from tools.wordnet_names import UNFIT, row, thing
    from worlds.icons.build.wordnet import WordNet

    assert not [e.name for e in entries().values() if UNFIT.search(e.definition) and not e.classified]
    synsets = (
        "00000001 03 n 01 physical_entity 0 000 | that which has physical existence",
        "00000002 03 n 01 cop 0 001 @ 00000001 n 0000 | an uncomplimentary term for a policeman",
        '00000003 03 n 02 cop 0 yarn_roll 0 001 @ 00000004 n 0000 | a roll of yarn; "a full cop"',
        "00000004 03 n 01 thing 0 001 @ 00000001 n 0000 | a separate object",
        "00000005 03 n 01 justice 0 000 | being just",
    )
    (tmp_path / "data.noun").write_text("".join(f"{line}\n" for line in synsets), "utf-8")
    index = ("physical_entity n 1 1 @ 1 0 00000001", "cop n 2 1 @ 2 0 00000002 00000003", "justice n 1 0 1 0 00000005")
    (tmp_path / "index.noun").write_text("".join(f"{line}\n" for line in index), "utf-8")
    net = WordNet(tmp_path)
    found = thing(net, "cop")
    assert found is not None
    assert row(net, "cop", found, classifier=True) == "cop | yarn roll | a roll of yarn | thing | class"
    assert thing(net, "justice") is None


def test_a_proposal_is_a_whole_suite_of_what_the_detector_knows() -> None:
    suite = proposed(["church"])
    assert len(suite.names) == len(set(map(normalised, suite.names)))
    assert suite.source == "proposed from WordNet 3.1"
    assert suite.implicit["church"] == ("a place for public (especially Christian) worship",)
    narrow = proposed(["church"], known_to("imagenet", None))
    assert ImageNet.known(narrow.names) == list(narrow.names)
    assert "synagogue" in suite.names
    assert "synagogue" not in narrow.names
    with pytest.raises(BadRequest, match=r"no noun 'Elsa'.*--near"):
        proposed(["Elsa"])
    with pytest.raises(BadRequest, match="--clip"):
        proposed(["church"], lambda names: [])


def test_without_names_an_evaluation_of_any_model_proposes_them_and_says_so(tmp_path: Path) -> None:
    model, told = open_model(), []
    assert suite_for(model, ["church"], synonyms={"church": ["kirk"]}).synonyms["church"] == ("kirk",)
    patch = UCE().erase(model, EraseRequest(("church",)))

    class Stop(Exception):
        pass

    def note(text: str) -> None:
        told.append(text)
        if "draws" in text:
            raise Stop

    with pytest.raises(Stop):
        verbs.evaluate(model, patch, out=tmp_path / "e", profile="smoke", detector="imagenet", trivial=False, note=note)
    assert "proposed from WordNet 3.1: near mosque" in told[0]
    with pytest.raises(BadOption, match="--near NAME"):
        suite_for(model, ["church"], ["mosque"])


# -- files -------------------------------------------------------------------------------------------------------


def test_a_written_suite_is_read_back_and_can_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    made = verbs.suite(["church", "dog"], path)
    again = named_suite(open_model(), str(path), ["Church", "dog"])
    assert again.targets == ("Church", "dog")
    assert {n.name for n in again.near} == {n.name for n in made.near}
    assert again.synonyms == {"Church": made.synonyms["church"], "dog": made.synonyms["dog"]}
    assert suite_from(again.json()) == again
    accents = replace(
        made, targets=("café",), far=(*made.far, Neighbour("crêpe", "listed", "test")), synonyms={"café": ("bistro",)}
    )
    write_suite(accents, tmp_path / "accents.toml")
    written = (tmp_path / "accents.toml").read_text("utf-8")
    assert '"crêpe"' in written, "people read the file, and edit it"
    assert '"café" = ["bistro"]' in written
    path.write_text(path.read_text("utf-8").replace('"mosque"', '"pagoda"'), "utf-8")
    assert "pagoda" in {n.name for n in read_suite(path, ["church", "dog"]).near}
    with pytest.raises(BadFile, match="you may have edited it"):
        verbs.suite(["church"], path)
    assert "pagoda" in path.read_text("utf-8")
    with pytest.raises(BadOption, match=r"\.toml"):
        verbs.suite(["church"], tmp_path / "s.json")


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("near = [", "nearby = [", "no 'nearby'"),
        ('targets = ["church"]', 'targets = ["dog"]', "is a suite for dog"),
        ('far = ["', 'far = [1, "', "far is a list of names"),
        ('trap = ["church bell"]', 'trap = ["mosque"]', "near as well|trap"),
        ("[synonyms]", "[synonyms]\ndog = []", "a list of words for each"),
        ("templates = [", 'templates = ["a church", ', "no {} for the concept"),
        ("[implicit]", "[implicit", "cannot read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_entry(was: str, becomes: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    write_suite(proposed(["church"]), path)
    text = path.read_text("utf-8").replace("trap = []", 'trap = ["church bell"]')
    path.write_text(text, "utf-8")
    read_suite(path, ["church"])
    assert was in text
    path.write_text(text.replace(was, becomes, 1), "utf-8")
    with pytest.raises(BadFile, match=said):
        read_suite(path, ["church"])


def test_the_command_writes_what_evaluate_reads(tmp_path: Path) -> None:
    path = tmp_path / "church.toml"
    done = CliRunner().invoke(main, ["suite", "--target", "church", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert "near mosque" in done.output
    assert read_suite(path, ["church"]).near
    listed = CliRunner().invoke(main, ["list", "suites"])
    assert all(name in listed.output for name in VERSIONS)
