"""``efface survive``: what is said of a condition, that conditions do what they say, and that they leave the model as it was."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import efface
from efface import conditions as package
from efface.attacks.resurge import Resurge
from efface.cli import main
from efface.concepts.prompts import Case
from efface.conditions import Plain, Setting, conditions
from efface.conditions.precision import int8
from efface.conditions.sampling import stepped
from efface.conditions.weights import Merged
from efface.errors import BadFile, BadOption, EffaceError, UnknownName
from efface.evaluation.survival import LEAST, MARGIN, Look, compared, needed
from efface.models.load import load_model
from efface.patches import Patch

# diffusers 0.42 hands a tensor to numpy in a way that numpy 2 deprecates, in the schedulers with sigmas.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PAGE = Path(__file__).parents[1] / "docs" / "survive.md"
HIT, MISS, BROKEN = Look(True, True), Look(True, False), Look(False, False)


def said(base: Sequence[Look], erased: Sequence[Look], base_under: Sequence[Look], under: Sequence[Look]) -> tuple[str, int]:
    found = compared(base, erased, base_under, under)
    return found["status"], found["n"]


# -- what is said ------------------------------------------------------------------------------------------------------


def test_what_may_be_said_of_a_condition() -> None:
    n = needed()
    assert compared([HIT] * n, [MISS] * n, [HIT] * n, [MISS] * n)["difference"]["high"] < MARGIN
    assert said([HIT] * n, [MISS] * n, [HIT] * n, [MISS] * n) == ("survives", n)
    assert said([HIT] * (n - 1), [MISS] * (n - 1), [HIT] * (n - 1), [MISS] * (n - 1)) == ("undecided", n - 1)
    assert said([HIT] * 20, [MISS] * 20, [HIT] * 20, [HIT] * 8 + [MISS] * 12) == ("comes back", 20)
    half = [HIT, MISS] * 30
    assert said([HIT] * 60, half, [HIT] * 60, half) == ("survives", 60), "it comes back no more often than it did"


@given(st.integers(1, 60), st.data())
def test_a_broken_condition_is_never_survived(n: int, data: st.DataObject) -> None:
    looks = st.sampled_from([HIT, MISS, BROKEN])
    base, erased = (data.draw(st.lists(looks, min_size=n, max_size=n)) for _ in range(2))
    other = data.draw(st.lists(st.sampled_from([MISS, BROKEN]), min_size=n, max_size=n))
    anything = data.draw(st.lists(looks, min_size=n, max_size=n))
    assert said(base, erased, other, anything) == ("not testable", 0), "the unmodified model draws the target no more"
    assert said(base, erased, base, [BROKEN] * n) == ("not testable", 0), "the erased model draws nothing"
    assert said([MISS] * n, erased, [MISS] * n, anything) == ("not testable", 0), "there was nothing to erase"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=LEAST, max_size=60))
def test_more_broken_images_never_help(pairs: list[tuple[bool, bool]]) -> None:
    """Turning an image of the erased model under the condition into a broken one can only make the answer less certain."""
    base = [HIT] * len(pairs)
    plain, under = ([HIT if p[i] else MISS for p in pairs] for i in (0, 1))
    order = ("comes back", "not testable", "undecided", "survives")
    before, _ = said(base, plain, base, under)
    misses = [i for i, look in enumerate(under) if look == MISS]
    for i in misses[:3]:
        broken = [BROKEN if j == i else look for j, look in enumerate(under)]
        after, _ = said(base, plain, base, broken)
        assert order.index(after) <= order.index(before)


# -- conditions --------------------------------------------------------------------------------------------------------


def setting_of(name: str, **more: Any) -> Setting:
    model = load_model(name)
    patch = efface.erase(model, "uce" if name != "tiny-flux" else "esd", targets="cat")
    cases = tuple(Case("direct", "cat", "a cat", seed, 4.0) for seed in range(2))
    return Setting(model, patch, "cat", cases, 3, tuning=Resurge.preset("tiny"), updates=1, **more)


@pytest.fixture(scope="module")
def tiny_setting() -> Setting:
    return setting_of("tiny")


@pytest.mark.parametrize("name", list(conditions()))
def test_a_condition_changes_the_pictures_and_leaves_the_model(tiny_setting: Setting, name: str) -> None:
    setting, condition = tiny_setting, conditions()[name]
    before = setting.model.digest()
    plain = Plain().draw(setting, setting.patch)
    images = condition.draw(setting, setting.patch)
    assert images.shape == plain.shape
    assert bool(torch.isfinite(images).all())
    assert not torch.equal(images, plain), "it does something"
    assert not torch.equal(condition.draw(setting, None), images), "and the erasure is in it"
    assert torch.equal(condition.draw(setting, setting.patch), images), "the same again"
    setting.model.weights_changed()
    assert setting.model.digest() == before


@pytest.mark.parametrize(
    "name",
    [
        "tiny-xl",
        "tiny-sd3",
        "tiny-pixart",
        "tiny-z-image",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("tiny-sana", "tiny-wan")),
    ],
)
def test_other_families_are_drawn_or_say_why_not(name: str) -> None:
    setting = setting_of(name)
    before = setting.model.digest()
    drawn, refused = set(), {}
    for key, condition in conditions().items():
        if key in ("lora", "merge-sibling", "fine-tuning"):
            continue  # the training has tests of its own
        try:
            assert bool(torch.isfinite(condition.draw(setting, setting.patch)).all())
            drawn.add(key)
        except (EffaceError, RuntimeError, ValueError) as error:
            refused[key] = str(error)
    assert drawn >= {"bfloat16", "float8", "int8", "fewer-steps", "more-guidance", "merge-base"}, refused
    flows = {"euler", "euler-ancestral", "dpm-solver++", "pndm", "unipc"}
    assert (flows <= set(refused)) == (name not in ("tiny-xl", "tiny-pixart")), refused
    assert setting.model.digest() == before


def test_the_loop_of_a_scheduler_is_that_of_the_sampler(tiny_setting: Setting) -> None:
    """With diffusers' DDIM, the loop for schedulers draws what efface's own sampler draws."""
    from diffusers import DDIMScheduler

    schedule = tiny_setting.model.schedule
    config = {k: v for k, v in schedule.config.items() if not k.startswith("_")}  # type: ignore[attr-defined]
    images = stepped(tiny_setting.model, DDIMScheduler.from_config(config), tiny_setting.cases, 3)
    torch.testing.assert_close(images, Plain().draw(tiny_setting, None), atol=2e-5, rtol=0)  # other order of float32 sums


def test_half_a_merge_with_the_base_is_the_patch_at_half_strength(tiny_setting: Setting) -> None:
    half = dataclasses.replace(tiny_setting, patch=tiny_setting.patch.scaled(0.5))
    images = Merged("", with_base=True).draw(tiny_setting, tiny_setting.patch)
    assert torch.equal(images, Plain().draw(half, half.patch))
    assert torch.equal(Merged("", with_base=True).draw(tiny_setting, None), Plain().draw(tiny_setting, None))


def test_a_given_lora_and_a_given_sibling_are_what_is_used(tiny_setting: Setting) -> None:
    other = efface.erase(tiny_setting.model, "uce", targets="rose")
    given = dataclasses.replace(tiny_setting, lora=other, sibling=other)
    both = dataclasses.replace(tiny_setting, patch=tiny_setting.patch + other)
    stacked = conditions(own_lora=True)["lora"].draw(given, tiny_setting.patch)
    torch.testing.assert_close(stacked, Plain().draw(both, both.patch), atol=1e-6, rtol=0)
    merged = conditions(sibling=True)["merge-sibling"].draw(given, None)
    half = dataclasses.replace(tiny_setting, patch=other.scaled(0.5))
    torch.testing.assert_close(merged, Plain().draw(half, half.patch), atol=1e-6, rtol=0)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
def test_int8_keeps_every_weight_within_half_a_level(rows: int, columns: int, seed: int) -> None:
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    level = w.abs().amax(1, keepdim=True) / 127
    assert bool(((int8(w) - w).abs() <= level / 2 + 1e-6).all())
    assert bool(((int8(w) / level).round().abs() <= 127).all())
    torch.testing.assert_close(int8(int8(w)), int8(w), rtol=1e-6, atol=1e-7)
    assert torch.equal(int8(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_weights_are_stored_in_what_the_condition_says(tiny_setting: Setting) -> None:
    model, found = tiny_setting.model, conditions()
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float8", torch.float8_e4m3fn)):
        twin = found[name].stored(model)  # type: ignore[attr-defined]
        kinds = {p.dtype for n, p in twin.network.named_parameters() if n.endswith("to_k.weight")}
        assert kinds == {dtype}
        assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_float8_is_still_float8_in_the_second_batch(tiny_setting: Setting) -> None:
    """diffusers casts the weights in hooks, which stand where efface keeps what it needs once per batch."""
    many = dataclasses.replace(tiny_setting, cases=tuple(Case("direct", "cat", "a cat", seed, 4.0) for seed in range(33)))
    images = conditions()["float8"].draw(many, None)
    few = dataclasses.replace(many, cases=many.cases[-1:])
    torch.testing.assert_close(images[-1:], conditions()["float8"].draw(few, None), atol=1e-5, rtol=0)


def test_every_condition_of_the_package_is_in_the_table() -> None:
    kinds = {c for c in vars(package).values() if isinstance(c, type) and issubclass(c, package.Condition)}
    assert {type(c) for c in conditions().values()} | {package.Condition, Plain} == kinds


# -- the verb ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rabbit() -> Patch:
    return efface.erase("mini", "uce", targets="rabbit")


def test_survive_writes_a_record_and_a_page_and_goes_on(rabbit: Patch, tmp_path: Path) -> None:
    file, out = tmp_path / "p.safetensors", tmp_path / "out"
    rabbit.save(file)
    line = ["survive", str(file), "--cases", "4", "--profile", "smoke", "--out", str(out), "--condition", "merge-base"]
    first = CliRunner().invoke(main, line)
    assert first.exit_code == 0, first.output
    assert "merged with the unmodified model, half and half" in first.stdout
    assert "1 conditions of 'rabbit' with uce, 4 cases each" in first.stderr
    record = json.loads((out / "survive.json").read_text())
    (row,) = record["conditions"]
    assert (row["base"]["k"], row["base"]["n"]) == (4, 4)
    assert row["status"] in ("comes back", "undecided")
    page = (out / "survive.html").read_text()
    assert "merge-base" in page
    assert "Content-Security-Policy" in page
    again = CliRunner().invoke(main, [*line, "--json"])
    assert json.loads(again.stdout)["conditions"] == [row], "nothing was drawn again"
    assert "0 conditions" in again.stderr
    other = CliRunner().invoke(main, [*line[:3], "3", *line[4:]])
    assert (other.exit_code, "holds the survival of another patch" in other.stderr) == (1, True)


def test_a_condition_that_cannot_be_drawn_is_not_testable(rabbit: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, setting: Setting, patch: Patch | None) -> None:
        raise RuntimeError("no such number format\nmore")

    monkeypatch.setattr(type(conditions()["int8"]), "draw", fails)
    found = efface.survive("mini", rabbit, out=tmp_path / "out", only=["int8"], cases=2, profile="smoke")
    (row,) = found["conditions"]
    assert (row["status"], row["why"]) == ("not testable", "this model cannot be used so: no such number format")
    assert "no such number format" in (tmp_path / "out" / "survive.html").read_text()


@pytest.mark.slow
def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, with fewer cases; and the page names every condition."""
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"^efface .*$", PAGE.read_text("utf-8"), re.M):
        result = CliRunner().invoke(main, shlex.split(line.replace("--cases 40", "--cases 4 --profile smoke"))[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert Path("runs/survive/survive.html").is_file()


def test_the_page_names_every_condition_and_the_least_number_of_cases() -> None:
    text = PAGE.read_text("utf-8")
    assert set(conditions()) <= set(re.findall(r"`([a-z0-9+-]+)`", text))
    assert f"this takes {needed()} cases" in text


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"only": ["float61"]}, UnknownName, "Did you mean 'float16'"),
        ({"cases": 25}, BadOption, "has 24 cases of the target"),
        ({"margin": 1.0}, BadOption, "no share between 0 and 1"),
        ({"updates": 0}, BadOption, "0 updates"),
        ({"target": "dog"}, UnknownName, "target of the patch"),
        ({"merge": "nothing.safetensors"}, BadFile, "nothing"),
        ({"lora": "nothing.safetensors"}, BadFile, "nothing"),
    ],
)
def test_a_wrong_call_draws_nothing(
    rabbit: Patch, tmp_path: Path, change: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        efface.survive("mini", rabbit, out=tmp_path / "out", profile="smoke", **change)
    assert not (tmp_path / "out").exists()
