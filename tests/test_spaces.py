"""Requests, concept spaces and options."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from efface.concepts.request import EraseRequest, normalised
from efface.concepts.spaces import ConceptSpace, distances, smallest
from efface.errors import BadFile, BadOption, BadRequest, UnknownName
from efface.preservation.candidates import concept_space
from efface.registry import build_method, parse_set

names = st.lists(st.text("abC -", max_size=6), max_size=12)


@given(names, names)
def test_a_space_is_distinct_ordered_and_excludes_every_spelling(candidates: list[str], gone: list[str]) -> None:
    space = ConceptSpace.of("s", candidates)
    keys = [normalised(c) for c in space.candidates]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {normalised(c) for c in candidates if c.strip()}
    assert [k for k in dict.fromkeys(normalised(c) for c in candidates) if k] == keys, "the order of first mention"
    left = space.without(gone)
    assert {normalised(c) for c in left.candidates} == set(keys) - {normalised(g) for g in gone}


def test_an_empty_space_names_itself() -> None:
    with pytest.raises(BadRequest, match="'s' has 0 candidates"):
        ConceptSpace.of("s", ["Cat"]).without(["cat"]).require(1)


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(["cosine", "l2"]))
def test_nearest_is_the_brute_force_order(seed: int, k: int, metric: str) -> None:
    g = torch.Generator().manual_seed(seed)
    x, m = torch.randn((3, 4), generator=g), torch.randn((9, 3, 4), generator=g)

    def distance(row: torch.Tensor) -> float:
        a, b = x.flatten().double(), row.flatten().double()
        return float(1 - a @ b / (a.norm() * b.norm())) if metric == "cosine" else float((a - b).norm())

    exact = sorted(range(9), key=lambda i: distance(m[i]))
    order = [distance(m[i]) for i in exact]
    assume(all(b - a > 1e-5 for a, b in pairwise(order)))  # float32 does not resolve distances that are closer
    assert smallest(distances(x, m, metric), k).tolist() == exact[:k]


def test_a_target_in_the_space_is_its_own_nearest() -> None:
    m = torch.randn((5, 2, 3), generator=torch.Generator().manual_seed(0))
    assert all(int(smallest(distances(m[3], m, metric), 1)) == 3 for metric in ("cosine", "l2"))


def test_files_of_concepts(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("# mine\ncat\n\nDog\ncat\n")
    assert ConceptSpace.from_file(path).candidates == ("cat", "Dog")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="one concept per line"):
        ConceptSpace.from_file(path)
    with pytest.raises(BadFile, match="cannot read"):
        ConceptSpace.from_file(tmp_path / "none.txt")


def test_auto_is_the_world_or_the_vocabulary(tiny_model) -> None:  # type: ignore[no-untyped-def]
    assert concept_space("auto", tiny_model).candidates == tiny_model.concept_names
    tiny_model.concept_names = ()
    assert set(concept_space("auto", tiny_model).candidates) >= {"cat", "photo"}


def test_requests_are_immutable_and_checked() -> None:
    request = EraseRequest(["cat"], preserve=["dog"])  # type: ignore[arg-type]
    assert (request.targets, request.preserve) == (("cat",), ("dog",))
    with pytest.raises(BadRequest, match="at least one"):
        EraseRequest(())


def test_values_are_coerced_by_type_and_refused_by_name() -> None:
    m = build_method("ap", preset="paper", settings={"search.hard": "no", "steps": "12", "lr": "1e-4", "sampler": "student"})
    assert (m.search.hard, m.steps, m.lr) == (False, 12, 1e-4)  # type: ignore[attr-defined]
    for bad in ({"search.hard": "maybe"}, {"steps": "1.5"}, {"steps": True}, {"lr": "inf"}, {"search.space": 3}):
        with pytest.raises(BadOption, match=f"option {next(iter(bad)).removeprefix('search.')}="):
            build_method("ap", preset="paper", settings=bad)
    with pytest.raises(UnknownName, match="Did you mean 'cosine'"):
        build_method("ap", preset="paper", settings={"search.metric": "cosin"})
    assert parse_set(("a=b=c",)) == {"a": "b=c"}
