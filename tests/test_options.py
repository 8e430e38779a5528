"""An option that does nothing beside the others is refused, and what is refused really does nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from efface.concepts.request import EraseRequest
from efface.errors import BadOption, UnknownName
from efface.methods import AP, TRCE
from efface.options import assembled, described
from efface.preservation.gumbel import Gumbel
from efface.preservation.pgd import PGD
from efface.preservation.uniform import Random
from efface.registry import ATTACKS, GUARDS, METHODS, build_method
from efface.testing import same
from efface.training.samplers import Harvest, Pool, Student

REQUEST = EraseRequest(("cat",), "", ("dog",))
IDLE: list[tuple[str, dict[str, Any], str]] = [
    # Method, what it is set to, and the options (with commas) that this leaves without effect.
    ("ap", {}, "per_candidate"),
    ("age", {}, "per_candidate"),
    ("rap", {}, "per_candidate"),
    ("fixed", {}, "per_candidate"),
    ("neutral", {}, "per_candidate"),
    ("kpop", {"prompt_updates": 0}, "prompt_lr"),
    ("ablation", {"variant": "noise"}, "teacher"),
    ("forget-me-not", {"inversion_steps": 0}, "vectors, inversion_lr, norm, norm_rate"),
    ("forget-me-not", {"inversion_steps": 0, "images_from": "zero"}, "images, sampling_steps, guidance"),
    ("advunlearn", {"attack_steps": 0}, "warmup, tokens, place, attack, attack_lr, legacy_accumulate"),
    ("advunlearn", {"retain": 0}, "space, most, apart"),
    ("trce", {"stages": "textual"}, "steps, lr, batch, kept, scale, margin, lam_keep, early, pool, pool_kept, sampling_steps"),
    ("trce", {"stages": "textual"}, "guidance, legacy_accumulate, legacy_levels"),
    ("trce", {"stages": "visual"}, "start, end, padding, word, prior, mu, lam, pin, legacy_word_index"),
    ("rece", {}, "prior_scale, prior_cost"),
    ("rece", {"prior": "auto", "prior_cost": 0.1}, "prior_scale"),
    ("rece", {"start": "none"}, "start_lam, start_preserve_scale"),
    ("rece", {"epochs": 0}, "ridge, regulariser, lam, preserve_scale, stop, null_per_target"),
    ("mace", {"prior_scale": 0.0}, "prior, domain_weight, scale_power"),
    ("mace", {"steps": 0}, "lr, importance, images, sampling_steps, guidance, mask"),
    ("realera", {"steps": 0}, "rank, lr, beta_n, gamma_n, images, sampling_steps, guidance"),
    ("realera", {"mode": "isotropic"}, "rounds, nearest, directions"),
    ("realera", {"mode": "subspace"}, "rounds"),
]


def other(option: dict[str, Any], value: Any) -> Any:
    """Another value that the option takes."""
    if option["choices"]:
        return next(c for c in option["choices"] if c != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "vocabulary"
    return value + 1 if isinstance(value, int) else 1.5 * value + 0.1


def built(name: str, settings: dict[str, Any]) -> Any:
    """Without the check of what somebody wrote down: all of it is a preset's."""
    cls = METHODS[name]
    return assembled(cls, {**cls.presets["tiny"], **settings}, {})


@pytest.mark.parametrize(("name", "settings", "idle"), IDLE, ids=[f"{n}-{s}-{i.split(',')[0]}" for n, s, i in IDLE])
def test_refused_options_change_no_bit_and_no_cost(name: str, settings: dict[str, Any], idle: str, tiny_model: Any) -> None:
    plain, options = built(name, settings), {o["name"]: o for o in described(METHODS[name])}
    changed = {n: other(options[n], getattr(plain, n)) for n in idle.split(", ")}
    for option, value in changed.items():
        with pytest.raises(BadOption, match=f"{option}=.* does nothing with .*Leave {option} out"):
            build_method(name, preset="tiny", settings={**settings, option: value})
        with pytest.raises(BadOption, match=f"{option}=.* does nothing with"):  # in Python no less than on a command line
            METHODS[name](**settings, **{option: value})
    request = EraseRequest(("cat",)) if "prior_scale" in settings else REQUEST  # MACE refuses a preserve set without a weight
    a, b = (m.erase(tiny_model, request) for m in (plain, built(name, {**settings, **changed})))
    assert same(a.deltas, b.deltas)
    assert a.card.cost == b.card.cost
    assert plain.expected_evals(tiny_model, REQUEST) == built(name, {**settings, **changed}).expected_evals(tiny_model, REQUEST)


PARTS = [
    # Method, the kind of a part, and options (with commas) of other kinds of that part.
    ("ap", "search", "random", "tau, lr, ascents, refresh, rate"),
    ("ap", "search", "exhaustive", "tau, lr, update, radius"),
    ("ap", "search", "pgd", "space, nearest, metric, tau, lr, refresh"),
    ("rap", "search", "gumbel", "refresh, rate, radius"),
    ("esd", "sampler", "pool", "alignment, lifetime"),
    ("kpop", "sampler", "student", "trajectories, lifetime"),
    ("naive", "sampler", "noised", "alignment, lifetime"),
]


@pytest.mark.parametrize(("name", "part", "kind", "foreign"), PARTS)
def test_an_option_of_another_kind_of_part_cannot_be_written_down(name: str, part: str, kind: str, foreign: str) -> None:
    for option in foreign.split(", "):
        with pytest.raises(BadOption, match=rf"{part}\.{option} has no effect with {part}={kind}; it belongs to "):
            build_method(name, preset="tiny", settings={part: kind, f"{part}.{option}": "1"})
    with pytest.raises(UnknownName, match=rf"{part}\.nothing"):
        build_method(name, preset="tiny", settings={f"{part}.nothing": "1"})


def test_another_kind_keeps_what_the_preset_says_about_options_that_it_has() -> None:
    method = build_method("ap", preset="mini", settings={"search": "random"})
    assert method == AP.preset("mini", search=Random(nearest=48))
    assert method.plain()["search.nearest"] == 48
    assert "search.lr" not in method.plain()


def test_spellings_of_python_and_of_the_command_line_give_the_same_object() -> None:
    written = AP(search=Gumbel(nearest=7, tau=0.5), sampler=Pool(trajectories=3), lr=1e-4)
    settings = {"search.nearest": "7", "search.tau": "0.5", "sampler": "pool", "sampler.trajectories": "3", "lr": "1e-4"}
    assert build_method("ap", settings=settings) == written == AP(**settings)
    assert dataclasses.replace(written, seed=1).plain() == {**written.plain(), "seed": 1}


OLD = [
    ("ap", {"nearest": 7, "tau": 0.5, "pi_lr": 0.2}, "ap", {"search": Gumbel(nearest=7, tau=0.5, lr=0.2)}),
    ("ap", {"search": "pgd", "pgd_rate": 0.1, "ascents": 3}, "ap", {"search": PGD(rate=0.1, ascents=3)}),
    ("esd", {"sampler": "harvest", "pool": 2, "lifetime": 5}, "esd", {"sampler": Harvest(trajectories=2, lifetime=5)}),
    ("esd", {"alignment": "official"}, "esd", {"sampler": Student(alignment="official")}),
    ("ap", {"sampler": "pool", "pool_kept": 2}, "ap", {"sampler": Pool(), "per_candidate": 2}),
    ("ap", {"search": "none"}, "naive", {}),
    ("ap", {"search": "none", "shrink": 0.1}, "l2", {"shrink": 0.1}),
    ("ap", {"search": "neutral"}, "neutral", {}),
    ("ap", {"search": "fixed:bus"}, "fixed", {"concept": "bus"}),
    ("ap", {"attacks": 3}, "rap", {"attacks": 3}),
    ("ap", {"attacks": 3, "search": "none"}, "rap-attack", {"attacks": 3}),
]


@pytest.mark.parametrize(("name", "settings", "now", "today"), OLD)
def test_names_of_the_last_release_are_accepted_with_a_warning_that_says_the_new_one(
    name: str, settings: dict[str, Any], now: str, today: dict[str, Any]
) -> None:
    with pytest.warns(FutureWarning, match=" now"):
        assert build_method(name, preset="paper", settings=settings) == METHODS[now](**today)


@pytest.mark.parametrize("cls", [*METHODS.values(), *ATTACKS.values(), *GUARDS.values()], ids=lambda c: c.name)
def test_what_an_option_needs_is_an_option_and_its_values_exist(cls: Any) -> None:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for field in fields.values():
        for need in filter(None, field.metadata["needs"].split(" and ")):
            key, _, values = need.replace("!=", "=").partition("=")
            assert key in fields, field.name
            choices = fields[key].metadata.get("kinds") or fields[key].metadata["choices"]
            assert not choices or set(values.split("|")) <= set(choices), field.name


def test_every_option_with_needs_is_shown_idle() -> None:
    """But for what the methods refuse themselves, in whatever way it came: of UCE everything."""
    shown = {(name, option) for name, _, idle in IDLE for option in idle.split(", ")}
    refused = {("esd", "erase_from"), ("advunlearn", "legacy_stale")}
    missing = [
        (name, field.name)
        for name, cls in METHODS.items()
        for field in dataclasses.fields(cls)
        if name != "uce" and field.metadata["needs"] and (name, field.name) not in shown | refused
    ]
    assert not missing


def test_presets_may_hold_what_waits_for_another_choice() -> None:
    """The miniature's preset of TRCE runs the first stage and knows how the second would be run."""
    plain, both = (build_method("trce", preset="mini", settings=s) for s in ({}, {"stages": "both", "steps": 7}))
    assert isinstance(plain, TRCE)
    assert isinstance(both, TRCE)
    assert plain.stages == "textual"
    assert both.steps == 7
