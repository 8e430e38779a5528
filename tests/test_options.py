"""An option that does nothing beside the others is refused, and what is refused really does nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from efface.attacks import ATTACKS
from efface.concepts.request import EraseRequest
from efface.config import build_method, describe
from efface.errors import BadOption
from efface.guards import GUARDS
from efface.methods import METHODS, TRCE
from efface.testing import same

REQUEST = EraseRequest(("cat",), "", ("dog",))
IDLE: list[tuple[str, dict[str, Any], str]] = [
    # Method, what it is set to, and the options (with commas) that this leaves without effect.
    ("esd", {}, "pool, lifetime"),
    ("esd", {"sampler": "pool"}, "lifetime"),
    ("ap", {}, "pool, pool_kept, lifetime, refresh, pgd_rate, pgd_radius"),
    ("ap", {}, "attack_lr, attack_weight, attack_from, attack_near, attack_share, restart"),
    ("ap", {"search": "none"}, "lam, space, nearest, centres, metric, exclude_targets, hard, tau, pi_lr, ascents"),
    ("ap", {"search": "fixed"}, "space, nearest, centres, metric, exclude_targets, tau, pi_lr, refresh"),
    ("ap", {"search": "random"}, "tau, pi_lr, ascents, refresh, pgd_rate"),
    ("ap", {"search": "pgd"}, "space, nearest, metric, tau, pi_lr, refresh"),
    ("ap", {"update": "joint"}, "ascents"),
    ("age", {}, "topk, pool, pool_kept"),
    ("kpop", {"prompt_updates": 0}, "prompt_lr"),
    ("ablation", {"variant": "noise"}, "teacher"),
    ("forget-me-not", {"inversion_steps": 0}, "vectors, inversion_lr, norm, norm_rate"),
    ("forget-me-not", {"inversion_steps": 0, "images_from": "zero"}, "images, sampling_steps, guidance"),
    ("advunlearn", {"attack_steps": 0}, "warmup, tokens, place, attack, attack_lr, legacy_accumulate"),
    ("advunlearn", {"retain": 0}, "space, most, apart"),
    ("trce", {"stages": "textual"}, "steps, lr, batch, kept, scale, margin, lam_keep, early, pool, pool_kept, sampling_steps"),
    ("trce", {"stages": "textual"}, "guidance, legacy_accumulate, legacy_levels"),
    ("trce", {"stages": "visual"}, "start, end, padding, word, prior, mu, lam, pin, legacy_word_index"),
    ("rece", {}, "prior_scale"),
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
    """Without the check."""
    cls = METHODS[name]
    return cls(**{**cls.presets["tiny"], **settings})


@pytest.mark.parametrize(("name", "settings", "idle"), IDLE, ids=[f"{n}-{s}-{i.split(',')[0]}" for n, s, i in IDLE])
def test_refused_options_change_no_bit_and_no_cost(name: str, settings: dict[str, Any], idle: str, tiny_model: Any) -> None:
    plain, described = built(name, settings), {o["name"]: o for o in describe(METHODS[name])}
    changed = {n: other(described[n], getattr(plain, n)) for n in idle.split(", ")}
    for option, value in changed.items():
        with pytest.raises(BadOption, match=f"{option}=.* does nothing with .*Leave {option} out"):
            build_method(name, preset="tiny", settings={**settings, option: value})
    # MACE refuses a preserve set that has no weight.
    request = EraseRequest(("cat",)) if "prior_scale" in settings else REQUEST
    a, b = (m.erase(tiny_model, request) for m in (plain, built(name, {**settings, **changed})))
    assert same(a.deltas, b.deltas)
    assert a.card.cost == b.card.cost
    assert plain.expected_evals(tiny_model, request) == built(name, {**settings, **changed}).expected_evals(tiny_model, request)


@pytest.mark.parametrize("cls", [*METHODS.values(), *ATTACKS.values(), *GUARDS.values()], ids=lambda c: c.name)
def test_what_an_option_needs_is_an_option_and_its_values_exist(cls: Any) -> None:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for field in fields.values():
        for need in filter(None, field.metadata["needs"].split(" and ")):
            key, _, values = need.replace("!=", "=").partition("=")
            assert key in fields, field.name
            choices = fields[key].metadata["choices"]
            assert not choices or set(values.split("|")) <= set(choices), field.name


def test_every_option_with_needs_is_shown_idle() -> None:
    """But for what the methods refuse themselves, in whatever way it came: of UCE everything."""
    shown = {(name, option) for name, _, idle in IDLE for option in idle.split(", ")}
    inherited = {"pool", "pool_kept", "lifetime"}  # of Trained and Searching; shown once
    refused = {("esd", "erase_from"), ("ap", "update"), ("advunlearn", "legacy_stale")}
    missing = [
        (name, o["name"])
        for name, cls in METHODS.items()
        for o in describe(cls)
        if name != "uce" and o["needs"] and (name, o["name"]) not in shown | refused and o["name"] not in inherited
    ]
    assert not missing


def test_presets_may_hold_what_waits_for_another_choice() -> None:
    """The miniature's preset of TRCE runs the first stage and knows how the second would be run."""
    plain, both = (build_method("trce", preset="mini", settings=s) for s in ({}, {"stages": "both", "steps": 7}))
    assert isinstance(plain, TRCE)
    assert isinstance(both, TRCE)
    assert plain.stages == "textual"
    assert both.steps == 7
    with pytest.raises(BadOption, match=r"pi_lr=0\.1 does nothing with search=none; it belongs to search=gumbel"):
        build_method("rap-attack", preset="mini", settings={"pi_lr": 0.1})
