"""Where z_t comes from: sources against each other and against the model's own sampler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efface.errors import BadOption
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.select import selection
from efface.models.tiny import tiny
from efface.training.latents import Group, Pool, Trajectories
from efface.training.loop import Step

S = 6


def step(model: DiffusionModel, index: int = 0, seed: int = 0) -> Step:
    return Step(index, seed, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), model)


def groups(model: DiffusionModel, *names: str) -> list[Group]:
    return [Group([n], model.encode([n])) for n in names]


def trajectories(model: DiffusionModel, official: bool = False) -> Trajectories:
    return Trajectories(model, steps=S, guidance=3.0, official=official, solver="ddim", batch=1)


def pool(model: DiffusionModel, **options: object) -> Pool:
    settings: dict[str, object] = {"steps": S, "trajectories": 2, "guidance": 3.0, "solver": "ddim", "seed": 0, "batch": 1}
    return Pool(model, **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["tiny", "tiny-v"])
@pytest.mark.parametrize("official", [False, True])
def test_one_batched_trajectory_equals_one_per_conditioning(source: str, official: bool) -> None:
    """Groups that share their start and its first unconditional pass end where each would end alone, for less."""
    model = load_model(source)
    for seed in range(4):
        model.evals.forward = 0
        (z_cat, z_dog), t = trajectories(model, official).draw(groups(model, "cat", "dog"), step(model, seed=seed))
        together = model.evals.forward
        for name, z in (("cat", z_cat), ("dog", z_dog)):
            (alone,), t_alone = trajectories(model, official).draw(groups(model, name), step(model, seed=seed))
            # Another batch size takes other kernels: float32 rounding, amplified by a few steps of guidance 3.
            torch.testing.assert_close(z, alone, rtol=1e-4, atol=1e-4)
            assert torch.equal(t, t_alone)
        separate = model.evals.forward - together
        assert together == (separate - 1 if separate else 0)


def test_a_pool_holds_the_states_of_the_frozen_trajectory() -> None:
    model = tiny()
    p = pool(model)
    p.fill(["cat", "dog"])
    assert model.evals.forward == 2 * (S - 1) * 2 * 2
    noise = model.noise(2, p._rng("cat", 0))
    for k in range(S):
        z, t = model.sample_until(model.encode(["cat"]).repeat(2), k, S, noise, 3.0)
        torch.testing.assert_close(p.latents["cat"][:, k], z, rtol=1e-4, atol=1e-4)  # other batch size, float32
        assert int(t[0]) == p.grid[k]
    alone = pool(model)
    alone.fill(["dog"])
    torch.testing.assert_close(alone.latents["dog"], p.latents["dog"], rtol=1e-4, atol=1e-4)


def test_drawing_from_a_full_pool_is_free_and_visits_every_level_and_trajectory() -> None:
    model = tiny()
    p = pool(model, batch=8)
    p.fill(["cat"])
    spent, seen = model.evals.forward, set()
    for i in range(40):
        (z,), t = p.draw([Group(["cat"] * 8, model.encode(["cat"] * 8))], step(model, i))
        seen |= {(int(t[j]), round(float(z[j].sum()), 4)) for j in range(8)}
    assert model.evals.forward == spent
    assert len(seen) == 2 * S


def test_a_harvested_trajectory_lives_for_its_updates_and_follows_the_student() -> None:
    model = tiny()
    student = model.student(selection("xattn"))
    p = pool(student, lifetime=3)
    costs = []
    for i in range(7):
        before = model.evals.forward
        p.draw(groups(model, "cat"), step(model, i))
        costs.append(model.evals.forward - before)
    one = 2 * (S - 1) * 2
    assert costs == [one, 0, 0, one, 0, 0, one]
    kept = pool(student, lifetime=3)
    kept.load_state_dict(p.state_dict())
    assert torch.equal(kept.latents["cat"], p.latents["cat"])
    assert kept.born == {"cat": 6}


def test_forward_noising_has_the_statistics_of_q() -> None:
    """z_t = sqrt(ab) x0 + sqrt(1 - ab) n: residuals are standard normal, at levels that no grid has."""
    model = tiny()
    p = pool(model, forward=True, trajectories=1, batch=64)
    p.fill(["cat"])
    x0 = p.latents["cat"][0, 0]
    (z,), t = p.draw([Group(["cat"] * 64, model.encode(["cat"] * 64))], step(model))
    ab = model.schedule.ab(t)
    residual = (z - ab.sqrt() * x0) / (1 - ab).sqrt()
    n = residual.numel()
    assert abs(float(residual.mean())) < 4 / n**0.5  # false alarm 6e-5
    assert abs(float(residual.var()) - 1) < 4 * (2 / n) ** 0.5
    assert len(set(t.tolist())) > 50


def test_candidates_are_compared_at_one_level() -> None:
    model = tiny()
    names = ["cat", "dog", "rose"]
    for source in (trajectories(model), pool(model), pool(model, forward=True)):
        z, t = source.common(names, model.encode(names), model.encode([""]), step(model))
        assert (len(z), len(set(t.tolist()))) == (3, 1)


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_the_constant_context_changes_nothing_and_saves_projections(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    c, noise, grid = model.encode(["cat"]), model.noise(1, torch.Generator().manual_seed(0)), model.schedule.timesteps(S)
    projections = [m for n, m in model.unet.named_modules() if n.endswith((".attn2.to_k", ".attn2.to_v"))]
    ran: list[int] = []
    linear = nn.functional.linear
    weights = {id(m.weight) for m in projections}
    monkeypatch.setattr(
        nn.functional, "linear", lambda x, w, b=None: (ran.append(1) if id(w) in weights else None, linear(x, w, b))[1]
    )

    def walked() -> tuple[torch.Tensor, int]:
        ran.clear()
        states = [z for _, z in model.walk(c, noise, grid, 3.0, solver=solver)]
        return states[-1], len(ran)

    kept, few = walked()
    import contextlib

    monkeypatch.setattr(model, "constant_context", contextlib.nullcontext)
    plain, many = walked()
    assert torch.equal(kept, plain), "keeping keys and values changed the trajectory"
    assert (few, many) == (len(projections), len(projections) * S)
    assert all("forward" not in vars(m) for m in projections), "something was left on the layers"


def test_few_steps_of_the_second_order_solver_come_closer() -> None:
    """Order, on the equation itself: against 200 DDIM steps on a field whose noise prediction is smooth in t."""
    from efface.equations.diffusion import ddim_step, dpm_step, x0_from_eps

    schedule = tiny().schedule
    z0 = torch.linspace(-1, 1, 7, dtype=torch.float64)

    def run(steps: int, solver: str) -> torch.Tensor:
        # The same levels at both ends, away from t = 0, where steps even in t are very uneven in log(signal / noise).
        grid = torch.linspace(901, 301, steps + 1).round().int().tolist()
        z, x0_last, ab_last = z0.clone(), None, torch.tensor(1.0)
        for i, t in enumerate(grid[:-1]):
            ab, ab_next = schedule.ab(t).double(), schedule.ab(grid[i + 1]).double()
            eps = torch.tanh(z) * (1 - ab).sqrt()
            x0 = x0_from_eps(eps, z, ab)
            z = ddim_step(eps, z, ab, ab_next) if solver == "ddim" else dpm_step(x0, x0_last, z, ab_last, ab, ab_next)
            x0_last, ab_last = x0, ab
        return z

    exact = run(300, "ddim")
    errors = {solver: float((run(10, solver) - exact).abs().max()) for solver in ("ddim", "dpm")}
    assert errors["dpm"] < 0.5 * errors["ddim"], errors


def test_first_order_dpm_is_ddim() -> None:
    from efface.equations.diffusion import ddim_step, dpm_step, x0_from_eps

    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 3, dtype=torch.float64, generator=g), torch.randn(2, 3, dtype=torch.float64, generator=g)
    for ab, ab_next in ((0.2, 0.5), (0.9, 1.0)):
        a, b = torch.tensor(ab, dtype=torch.float64), torch.tensor(ab_next, dtype=torch.float64)
        step_ = dpm_step(x0_from_eps(eps, z, a), None, z, a, a, b)
        torch.testing.assert_close(step_, ddim_step(eps, z, a, b), rtol=1e-12, atol=1e-12)


def test_network_options_change_the_running_and_not_the_result() -> None:
    from efface.concepts.request import EraseRequest
    from efface.methods import AP

    method = AP(steps=2, sampling_steps=4, nearest=4, lr=1e-3)
    plain = method.erase(tiny(), EraseRequest(("cat",)))
    again = tiny()
    again.configure(checkpointing=True)
    checkpointed = method.erase(again, EraseRequest(("cat",)))
    assert checkpointed.deltas.keys() == plain.deltas.keys()
    for name, d in plain.deltas.items():
        # Activations are computed a second time by the same kernels; only the order of gradient sums may differ.
        torch.testing.assert_close(checkpointed.deltas[name], d, rtol=1e-5, atol=1e-7)
    half = tiny()
    half.configure(autocast="bfloat16")
    assert half.digest() == tiny().digest(), "autocast must not touch the weights, else the patch fits no base"
    cast = method.erase(half, EraseRequest(("cat",)))
    assert all(d.dtype == torch.float32 for d in cast.deltas.values())
    assert any(not torch.equal(cast.deltas[n], d) for n, d in plain.deltas.items()), "autocast did nothing"
    with pytest.raises(BadOption, match="float33"):
        half.configure(autocast="float33")


def test_a_compiler_that_loses_gradients_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: torch.nn.Module) -> None:
        plain = self.forward
        self.forward = lambda *args, **more: tuple(out.detach() + 0.5 * (out - out.detach()) for out in plain(*args, **more))  # type: ignore[method-assign]

    model = tiny()
    monkeypatch.setattr(torch.nn.Module, "compile", wrong)
    model.compiled = True
    with pytest.raises(BadOption, match=r"wrong gradients .* off by 50 %"):
        model.student(selection("xattn"))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    spent = model.evals.snapshot()
    student = model.student(selection("xattn"))
    assert model.evals.snapshot() == spent, "the comparison is no part of a run's cost"
    assert not any(p.requires_grad for p in student.weights(selection("xattn")).values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every tensor it passes
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_a_compiled_network_predicts_and_learns_the_same_or_is_refused(name: str) -> None:
    """Outputs and gradients, not patches: Adam's first steps have the size lr whatever the gradient, so rounding flips the sign
    of entries whose gradient is 0. With torch 2.13 the compiled tiny network has no gradient in its mid block: refused."""
    model, fast = load_model(name), load_model(name)
    fast.configure(compiled=True)
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    t, c = torch.tensor([100, 700]), model.encode(["cat", "dog"])
    try:
        students = [model.student(selection("xattn")), fast.student(selection("xattn"))]
    except BadOption as refused:
        assert "wrong gradients" in str(refused)  # noqa: PT017 - either end is right, depending on the compiler
        return
    found = []
    for student in students:
        weights = student.weights(selection("xattn"))
        for p in weights.values():
            p.requires_grad_(True)
        out = student.predict(z, t, c)
        out.square().mean().backward()
        found.append((out.detach(), [p.grad for p in weights.values()]))
    (plain, gradients), (compiled, others) = found
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)
    for g, h in zip(gradients, others, strict=True):
        # Relative to the largest entry: sums over pixels are taken in another order in float32.
        assert float((h - g).abs().max()) < 1e-3 * float(g.abs().max())
