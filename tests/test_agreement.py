"""People and the detector: counts that are known, a blind table, and tables that are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import SMALL, SUITE, Oracle

from efface import verbs
from efface.cli import main
from efface.concepts.request import EraseRequest
from efface.errors import BadFile
from efface.evaluation.driver import System, evaluate
from efface.evaluation.people import agreement, read_labels, sheet
from efface.evaluation.records import Entrant, Row, append_rows
from efface.methods import UCE
from efface.models.tiny import tiny


def row(case: int, detected: str | None, entrant: str = "ap", axis: str = "direct", concept: str = "cat") -> Row:
    """``detected`` None: an invalid image."""
    valid = detected is not None
    return Row(
        entrant, f"c{case}", axis, concept, f"a {concept}", case, valid, None if valid else "uniform", detected, 0.9, 20.0, 0.9
    )


ROWS = [row(0, "cat"), row(1, "cat"), row(2, "dog"), row(3, "dog"), row(4, None), row(5, "cat"), row(6, "cat", "none")]


def labelled(*labels: str) -> dict[tuple[str, str], str]:
    return {(r.entrant, r.case_id): label for r, label in zip(ROWS, labels, strict=False) if label}


def test_the_counts_are_those_of_the_four_cells() -> None:
    """Both see it in two images, people alone in one, the detector alone in one, neither in one: kappa by hand."""
    found = agreement(ROWS, labelled("Cat", "a dog", "cat", "dog", "broken", "cat"))
    assert (found["labelled"], found["unlabelled"]) == (6, 1)
    assert (found["agreement"]["k"], found["agreement"]["n"]) == (4, 6)
    assert (found["sensitivity"]["k"], found["sensitivity"]["n"]) == (2, 3)
    assert (found["specificity"]["k"], found["specificity"]["n"]) == (2, 3)
    assert found["kappa"] == pytest.approx((4 / 6 - 1 / 2) / (1 - 1 / 2))
    assert found["entrants"]["ap"]["direct"]["people"]["k"] == 3
    assert found["entrants"]["ap"]["direct"]["detector"]["k"] == 3
    assert [(d["people"], d["detector"]) for d in found["disagreements"]] == [("a dog", "cat"), ("cat", "dog")]
    (broken,) = agreement(ROWS, labelled("", "", "", "", "cat"))["disagreements"]
    assert broken["detector"] == "broken (uniform)"


def test_kappa_is_not_defined_where_nothing_varies() -> None:
    assert agreement(ROWS[:2], labelled("cat", "cat"))["kappa"] is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_perfect_agreement_has_kappa_1_and_kappa_never_exceeds_agreement(pairs: list[tuple[bool, bool]]) -> None:
    rows = [row(i, "cat" if seen else "dog") for i, (_, seen) in enumerate(pairs)]
    people = {("ap", f"c{i}"): "cat" if seen else "dog" for i, (seen, _) in enumerate(pairs)}
    found = agreement(rows, people)
    if found["kappa"] is not None:
        assert found["kappa"] <= found["agreement"]["value"] + 1e-12
        assert (found["kappa"] == pytest.approx(1.0)) == all(a == b for a, b in pairs)


def test_the_table_is_blind_and_holds_the_images_that_are_there(tmp_path: Path) -> None:
    for r in ROWS[:-1]:
        path = tmp_path / "images" / r.entrant / f"{r.case_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    text = sheet(tmp_path, ROWS)
    lines = list(csv.reader(text.splitlines()))
    assert lines[0] == ["image", "label"]
    assert sorted(line[0] for line in lines[1:]) == [f"images/ap/c{i}.png" for i in range(6)]
    assert [line[0] for line in lines[1:]] != [f"images/ap/c{i}.png" for i in range(6)], "in random order"
    assert {line[1] for line in lines[1:]} == {""}
    assert sheet(tmp_path, ROWS) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nimages/ap/c0.png,cat\n", "must begin with the line image,label"),
        ("", "must begin with the line image,label"),
        ("image,label\nimages/ap/c99.png,cat\n", "line 2: the evaluation has no image"),
        ("image,label\nimages/ap/c0.png,cat\nap/c0.png,dog\n", "line 3: the image 'ap/c0.png' stands there twice"),
        ("image,label\nimages/ap/c0.png\n", "1 columns instead of 2"),
        ("image,label\nimages/ap/c0.png,\n\n", "holds no label yet"),
    ],
)
def test_wrong_tables_are_refused_with_the_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(BadFile, match=said):
        read_labels(path, ROWS)


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    """A byte order mark, backslashes, carriage returns, a quoted comma, and empty lines."""
    path = tmp_path / "labels.csv"
    path.write_bytes('\ufeffImage,Label\r\nimages\\ap\\c0.png,"cat, black"\r\n\r\nap/c1.png,\r\nap/c2.png, cat \r\n'.encode())
    assert read_labels(path, ROWS) == {("ap", "c0"): "cat, black", ("ap", "c2"): "cat"}


def test_the_command_counts_and_names_what_is_wrong(tmp_path: Path) -> None:
    append_rows(tmp_path, ROWS)
    (tmp_path / "labels.csv").write_text("image,label\nimages/ap/c0.png,cat\nimages/ap/c1.png,dog\n", "utf-8")
    said = CliRunner().invoke(main, ["agreement", str(tmp_path), "--out", str(tmp_path / "a.json")])
    assert said.exit_code == 0, said.output
    assert "2 images have a label, 5 have none." in said.output
    assert "images/ap/c1.png should show 'cat': people say 'dog', the detector 'cat'." in said.output
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["agreement"]["k"] == 1
    assert CliRunner().invoke(main, ["agreement", str(tmp_path / "nothing")]).exit_code == 1
    with pytest.raises(BadFile, match="cannot read the labels"):
        verbs.agreement(tmp_path, tmp_path / "missing.csv")


def test_an_evaluation_keeps_every_image_and_never_overwrites_labels(tmp_path: Path) -> None:
    model = tiny()
    systems = [System(Entrant("uce", "uce", "patch"), UCE().erase(model, EraseRequest(("cat",), "dog")))]
    for _ in range(2):
        evaluate(model, systems, SUITE, SMALL, Oracle(), tmp_path, keep_images=True)
        lines = (tmp_path / "labels.csv").read_text("utf-8").splitlines()
        first = lines[1].removesuffix(",cat").rstrip(",") + ",cat"
        (tmp_path / "labels.csv").write_text("\n".join([lines[0], first, *lines[2:]]), "utf-8")
    rows = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    assert len(lines) - 1 == len(rows) == sum(1 for _ in (tmp_path / "images").rglob("*.png"))
    assert lines[1].endswith(",cat"), "of the first round"
    assert verbs.agreement(tmp_path)["labelled"] == 1
