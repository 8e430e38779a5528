"""KPOP, Concept Ablation and Forget-Me-Not: contract, cost, and what their equations promise, on the tiny model."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from chequered import chequered
from torch.nn.functional import mse_loss

from efface.concepts.request import EraseRequest
from efface.errors import BadOption, BadRequest
from efface.methods import KPOP, ConceptAblation, ForgetMeNot, Method
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.select import selection
from efface.testing import check_method, same, state
from efface.training.drawn import renoised, surrogate_evals, surrogate_latents
from efface.training.learned import Learned
from efface.training.loop import Run, Step


def tiny_kpop(**options: object) -> KPOP:
    return KPOP.preset("tiny", **options)


def tiny_ablation(**options: object) -> ConceptAblation:
    return ConceptAblation.preset("tiny", **options)


def tiny_forget(**options: object) -> ForgetMeNot:
    return ForgetMeNot.preset("tiny", **options)


VARIANTS: list[Method] = [
    tiny_kpop(),
    tiny_kpop(with_prompt_target="erase", place="inmidout", batch=2, train="noxattn"),
    tiny_kpop(prompt_updates=0),
    tiny_kpop(prompt_updates=3, place="midout"),
    tiny_ablation(),
    tiny_ablation(variant="noise"),
    tiny_ablation(variant="noise", prior=0.5, train="attn"),
    tiny_ablation(prior=0.5, detach_start=False),
    tiny_ablation(teacher="frozen", guidance=1.0),
    tiny_ablation(teacher="frozen", prior=0.5, train="full"),
    tiny_forget(),
    tiny_forget(inversion_steps=0, batch=2, normalize="rms", train="xattn"),
    tiny_forget(inversion_steps=0, images_from="zero", eos=False, train="attn"),
]
IDS = [f"{m.name}{i}" for i, m in enumerate(VARIANTS)]


@pytest.mark.parametrize("method", chequered(VARIANTS, ids=IDS))
@pytest.mark.parametrize("model", ["tiny", pytest.param("tiny-v", marks=pytest.mark.slow)])
def test_contract_and_cost(method: Method, model: str) -> None:
    loaded, request = load_model(model), EraseRequest(("cat", "rose"), "", ("dog",))
    patch = check_method(method, request, loaded)
    assert all(selection(method.train)(name) for name in patch.deltas)  # type: ignore[attr-defined]
    assert patch.card.config == method.plain()
    if not isinstance(method, KPOP):  # the cost of these two depends on no draw
        assert patch.card.cost["forward"] == method.expected_evals(loaded, request)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(VARIANTS[0], marks=pytest.mark.slow, id="kpop"),
        pytest.param(VARIANTS[7], marks=pytest.mark.slow, id="ablation"),
        pytest.param(VARIANTS[10], id="forget-me-not"),
    ],
)
def test_half_precision_trains_in_float32(method: Method) -> None:
    """Weights, prompts and maps are float32 around a network in bfloat16: its 8 bits would show in the attention's norm."""
    model, run = load_model("mini", dtype="bfloat16"), Run()
    patch = method.erase(model, EraseRequest(("dog",)), run)
    trained = [model.weights(lambda n, name=name: n == name)[name].float() + delta for name, delta in patch.deltas.items()]  # type: ignore[misc]
    assert any(not torch.equal(w, w.bfloat16().float()) for w in trained)
    if isinstance(method, ForgetMeNot):
        attention = torch.tensor(run.log[-1]["attention"])
        assert attention.bfloat16().float() != attention


@pytest.mark.parametrize("updates", [0, 1, 3])
def test_kpop_counts_what_its_docstring_says(updates: int, tiny_model: DiffusionModel) -> None:
    run, method = Run(), tiny_kpop(steps=6, batch=2, prompt_updates=updates)
    patch = method.erase(tiny_model, EraseRequest(("cat",)), run)
    assert patch.card.cost["forward"] == sum(2 * (2 * row["k"][0] + 4 + updates) for row in run.log)
    assert patch.card.cost["backward"] == 6
    assert KPOP(steps=1).expected_evals(tiny_model, EraseRequest(("cat",))) == 54


def test_documented_costs_of_the_defaults(tiny_model: DiffusionModel) -> None:
    one, two = EraseRequest(("cat",)), EraseRequest(("cat", "dog"))
    assert ConceptAblation().expected_evals(tiny_model, one) == 200 * 25 * 2 + 100 * 8 * 2 == 11_600  # images, then updates
    assert ConceptAblation().expected_evals(tiny_model, two) == 11_600, "all targets share the images"
    assert ConceptAblation(prior=0.2).expected_evals(tiny_model, one) == 11_600, "the prior's prediction is the goal as well"
    assert ConceptAblation(variant="noise").expected_evals(tiny_model, one) == 10_800
    assert ForgetMeNot().expected_evals(tiny_model, one) == 10 * 50 * 2 + 535
    assert ForgetMeNot().expected_evals(tiny_model, two) == 2 * 10 * 50 * 2 + 1035


@pytest.mark.parametrize("method", [tiny_kpop(steps=0), tiny_ablation(steps=0), tiny_forget(steps=0)], ids=lambda m: m.name)
def test_zero_weight_updates_change_nothing(method: Method, tiny_model: DiffusionModel) -> None:
    """For Forget-Me-Not the inversion runs all the same, and must not reach a weight."""
    run = Run()
    assert not method.erase(tiny_model, EraseRequest(("cat", "dog")), run).deltas
    assert len(run.log) == (4 if isinstance(method, ForgetMeNot) else 0)


# -- learned tensors and surrogate images ----------------------------------------------------------------------------


def test_learned_tensors_move_alone_and_come_back() -> None:
    start = [torch.ones(3), torch.full((3,), 2.0)]
    learned = Learned(start, lr=0.1)
    for _ in range(2):
        learned.rows([0, 0]).square().sum().backward()
        learned.update([0, 0])
    assert torch.equal(learned.values[1], start[1]), "what was not drawn does not move"
    assert learned.values[0].detach() == pytest.approx(torch.full((3,), 0.8).numpy(), abs=1e-3)  # two Adam steps of lr
    assert all(v.grad is None for v in learned.values)
    assert torch.equal(start[0], torch.ones(3)), "the caller's tensors are copies"
    again = Learned(start, lr=0.1)
    again.load_state_dict(copy.deepcopy(learned.state_dict()))  # as from a file: no shared tensors
    for one in (learned, again):
        one.rows([0, 1]).square().sum().backward()
        one.update([0, 1])
    assert all(torch.equal(a, b) for a, b in zip(learned.values, again.values, strict=True))


def test_surrogate_latents_are_what_sampling_gives_whatever_the_batch(tiny_model: DiffusionModel) -> None:
    draw = lambda prompts, n, batch: surrogate_latents(  # noqa: E731
        tiny_model, prompts, n, steps=4, guidance=3.0, seed=7, batch=batch
    )
    before = tiny_model.evals.forward
    z = draw(["cat", "a dog"], 5, 2)
    assert tiny_model.evals.forward - before == surrogate_evals(tiny_model, 5, 4, 3.0) == 40
    assert surrogate_evals(tiny_model, 5, 4, 1.0) == 20
    torch.testing.assert_close(z, draw(["cat", "a dog"], 5, 16), rtol=0, atol=1e-5)  # batches of another size round otherwise
    noise = tiny_model.noise(5, torch.Generator().manual_seed(7))
    *_, (_, alone) = tiny_model.walk(tiny_model.encode(["a dog"]), noise[3:4], tiny_model.schedule.timesteps(4), 3.0)
    torch.testing.assert_close(z[3:4], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(z[3], draw(["cat"], 5, 16)[3]), "number 3 shows the second prompt"


def test_renoised_latents_follow_the_forward_process(tiny_model: DiffusionModel) -> None:
    """1,000 draws of t: the mean of a uniform law on 0 .. 999 has a standard error of 9.1; five of them are allowed."""
    z_0 = torch.full((1000, *tiny_model.latent_shape), 2.0)
    z_t, t, noise = renoised(tiny_model, z_0, Step(0, 0, None, tiny_model))  # type: ignore[arg-type]
    ab = tiny_model.schedule.ab(t)
    torch.testing.assert_close(z_t, ab.sqrt() * z_0 + (1 - ab).sqrt() * noise)
    assert t.min() >= 0
    assert t.max() <= 999
    assert abs(t.double().mean().item() - 499.5) < 5 * 9.13


# -- KPOP ------------------------------------------------------------------------------------------------------------


def test_kpop_transfer_keeps_the_weights_and_removal_keeps_the_prompts(
    tiny_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, student_of, students, moved = Learned.update, tiny_model.student, [], []
    monkeypatch.setattr(tiny_model, "student", lambda select: students.append(student_of(select)) or students[-1])
    prompts: list[list[torch.Tensor]] = []
    learned: list[Learned] = []

    def watched(self: Learned, used: list[int]) -> None:
        weights, before = state(students[-1]), [v.detach().clone() for v in self.values]
        if not prompts:
            assert all(p.grad is None for p in students[-1].weights(lambda _: True).values()), (
                "transfer made gradients of weights"
            )
        if prompts:
            assert all(torch.equal(a, b) for a, b in zip(prompts[-1], before, strict=True)), "removal moved a prompt"
        update(self, used)
        assert same(weights, state(students[-1])), "transfer moved a weight"
        changed = {i for i, (a, b) in enumerate(zip(before, self.values, strict=True)) if not torch.equal(a, b)}
        assert changed == set(used), "exactly the drawn targets' prompts move"
        prompts.append([v.detach().clone() for v in self.values])
        moved.append(changed)
        learned[:] = [self]

    minimize = Step.minimize

    def removal(self: Step, **terms: torch.Tensor) -> None:
        minimize(self, **terms)
        assert all(v.grad is None for v in learned[0].values), "removal left gradients for the next transfer"

    monkeypatch.setattr(Learned, "update", watched)
    monkeypatch.setattr(Step, "minimize", removal)
    tiny_kpop(steps=5, prompt_updates=2).erase(tiny_model, EraseRequest(("cat", "rose")))
    assert len(moved) == 10
    assert {0} in moved
    assert {1} in moved


def test_kpop_prompt_becomes_the_memory_of_the_concept(tiny_model: DiffusionModel) -> None:
    """While the weights lose the concept, a trained prompt restores it better than the prompt it started from."""

    def late(**options: object) -> float:
        run = Run()
        method = tiny_kpop(steps=24, lr=5e-3, batch=2, lam=0.0, place="inmidout", prompt_updates=2, **options)
        method.erase(tiny_model, EraseRequest(("cat",)), run)
        assert run.log[-1]["erase"] < run.log[0]["erase"], "the weights learned nothing, so there is nothing to restore"
        return math.fsum(row["transfer"] for row in run.log[12:])

    # lam = 0: the prompt does not act on the weights, so both runs meet the same weights on the same draws.
    assert late(prompt_lr=3e-2) < 0.9 * late(prompt_lr=0.0)


def test_kpop_aims_with_prompt_at_the_concept_or_at_its_erasure(tiny_model: DiffusionModel) -> None:
    """The terms of step 0, when weights are those of the model and the prompt is small noise."""
    first = {}
    for aim in ("recover", "erase"):
        run = Run()
        tiny_kpop(steps=1, lam=1.0, with_prompt_target=aim, prompt_updates=0).erase(tiny_model, EraseRequest(("cat",)), run)
        first[aim] = run.log[0]
    assert first["recover"]["erase"] == first["erase"]["erase"] > 0
    assert first["recover"]["prompted"] < first["erase"]["prompted"], "before training the model is nearer to itself"


# -- Concept Ablation ------------------------------------------------------------------------------------------------


def first_terms(method: Method, model: DiffusionModel, request: EraseRequest) -> dict[str, float]:
    run = Run()
    method.erase(model, request, run)
    return run.log[0]


@pytest.mark.parametrize("name", ["tiny", "tiny-v"])
@pytest.mark.parametrize("variant", ["model", "noise"])
def test_ablation_loss_is_its_equation(name: str, variant: str) -> None:
    """Step 0 by hand: same draws, plain formula, the prior beside it."""
    model, request = load_model(name), EraseRequest(("cat",), "dog")
    method = tiny_ablation(steps=1, variant=variant, prior=0.5)
    terms = first_terms(method, model, request)
    anchors, ((*rewritten,),) = method.captions(request)
    drawn = surrogate_latents(model, anchors, 3, steps=3, guidance=6.0, seed=0)
    step = Step(0, 0, None, model)  # type: ignore[arg-type]
    j = [step.randint(3) for _ in range(2)]
    for _ in j:
        assert (step.randint(1), step.randint(1)) == (0, 0)  # which target, which form: one of each here
    z_t, t, noise = renoised(model, drawn[j], step)
    c_star, c = model.encode([rewritten[i][0] for i in j]), model.encode([anchors[i] for i in j])
    truth = model.perfect_output(drawn[j], noise, t)
    with torch.no_grad():
        of_target, of_anchor = model.predict(z_t, t, c_star), model.predict(z_t, t, c)
    assert terms["ablate"] == pytest.approx(mse_loss(of_target, of_anchor if variant == "model" else truth).item(), rel=1e-5)
    assert terms["prior"] == pytest.approx(0.5 * mse_loss(of_anchor, truth).item(), rel=1e-5)
    if variant == "model":
        assert terms["ablate"] > 0


def test_teachers_agree_until_the_student_moves(tiny_model: DiffusionModel) -> None:
    request, logs = EraseRequest(("cat",), "dog"), {}
    for teacher in ("self", "frozen"):
        run = Run()
        tiny_ablation(steps=3, lr=1e-2, teacher=teacher).erase(tiny_model, request, run)
        logs[teacher] = [row["ablate"] for row in run.log]
    assert logs["self"][0] == logs["frozen"][0]
    assert logs["self"][2] != logs["frozen"][2]


def test_a_prior_without_weight_is_no_prior(tiny_model: DiffusionModel) -> None:
    """The prior's prediction is also the goal; no gradient may pass through the goal. 1e-30 vanishes beside any gradient."""
    request, deltas = EraseRequest(("cat",), "dog"), []
    for prior in (0.0, 1e-30):
        deltas.append(tiny_ablation(prior=prior, lr=1e-3).erase(tiny_model, request).deltas)
    for name, delta in deltas[0].items():
        torch.testing.assert_close(delta, deltas[1][name], rtol=0, atol=1e-6)  # of updates that are 3e-3 at most


def test_detached_start_tokens_teach_nothing(tiny_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt is made of start tokens only: detached, nothing is left to learn from, so nothing changes."""
    encode = type(tiny_model).encode
    start = encode(tiny_model, [""]).tokens[:, :1]

    def only_start(prompts):  # type: ignore[no-untyped-def]
        c = encode(tiny_model, prompts)
        return type(c)(start.expand(len(c), -1, -1), torch.zeros(len(c), dtype=torch.int64))

    monkeypatch.setattr(tiny_model, "encode", only_start)
    request = EraseRequest(("cat",), "dog")
    assert not tiny_ablation(variant="noise", detach_start=True).erase(tiny_model, request).deltas
    assert tiny_ablation(variant="noise", detach_start=False).erase(tiny_model, request).deltas


def test_captions_of_objects_and_styles() -> None:
    anchors, rewritten = ConceptAblation().captions(EraseRequest(("grumpy cat", "dog"), "cat"))
    assert anchors[1] == "photo of cat"
    assert [target[1] for target in rewritten] == [("photo of grumpy cat",), ("photo of dog",)]
    assert set(ConceptAblation().captions(EraseRequest(("cat",)))[0]) == {""}, "an empty anchor is the empty prompt"
    captions, ((first, *_),) = ConceptAblation(kind="style").captions(EraseRequest(("Van Gogh",)))
    assert len(set(captions)) == 200
    assert first == (f"{captions[0]}, in the style of Van Gogh", f"in Van Gogh's style, {captions[0]}")
    with pytest.raises(BadRequest, match="the anchor 'art' would do nothing"):
        ConceptAblation(kind="style").captions(EraseRequest(("Van Gogh",), "art"))


# -- Forget-Me-Not ---------------------------------------------------------------------------------------------------


def attention_to(model: DiffusionModel, prompt: str, positions: list[int], z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(B,) by loops over the maps of single rows."""
    out = []
    for row in range(len(z)):
        with torch.no_grad(), model.attention_maps() as maps:
            model.predict(z[row : row + 1], t[row : row + 1], model.encode([prompt]))
        out.append(math.sqrt(sum(a[0, :, :, p].square().sum().item() for a in maps for p in positions)))
    return torch.tensor(out)


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize(("target", "width"), [("cat", 1), ("tab", 3)])
def test_forget_me_not_loss_counts_the_name_and_one_end_token(
    target: str, width: int, eos: bool, tiny_model: DiffusionModel
) -> None:
    """Step 0 by hand. Padding is the end token here too: more than a dozen positions that must not count."""
    method = tiny_forget(inversion_steps=0, steps=1, batch=2, eos=eos, template="a car of {}")
    terms = first_terms(method, tiny_model, EraseRequest((target,)))
    prompt, name = f"a car of {target}", list(range(4, 4 + width))
    drawn = surrogate_latents(tiny_model, [prompt], 2, steps=3, guidance=7.5, seed=0)
    step = Step(0, 0, None, tiny_model)  # type: ignore[arg-type]
    assert step.randint(1) == 0
    z_t, t, _ = renoised(tiny_model, drawn[[step.randint(2) for _ in range(2)]], step)
    expected = attention_to(tiny_model, prompt, [*name, *([4 + width] if eos else [])], z_t, t).mean()
    assert terms["attention"] == pytest.approx(expected.item(), rel=1e-4)
    padded = attention_to(tiny_model, prompt, [*name, *range(4 + width, 24)], z_t, t).mean()
    assert padded > 1.2 * expected, "with the padding the loss would be another one"


def test_forget_me_not_lowers_the_attention_it_trains_on(tiny_model: DiffusionModel) -> None:
    method = tiny_forget(inversion_steps=0, steps=30, lr=1e-2, train="xattn", template="a car of {}")
    patch = method.erase(tiny_model, EraseRequest(("cat",)))
    z, t = tiny_model.noise(4, torch.Generator().manual_seed(99)), torch.tensor([900, 500, 300, 100])  # not trained on
    before = attention_to(tiny_model, "a car of cat", [4, 5], z, t)
    with patch.applied(tiny_model):
        after = attention_to(tiny_model, "a car of cat", [4, 5], z, t)
    assert (after < 0.8 * before).all()


def test_inversion_learns_on_the_same_draws(tiny_model: DiffusionModel) -> None:
    """Weights are frozen and draws depend on the step alone, so lr = 0 is the paired control."""
    late = {}
    for lr in (0.0, 3e-2):
        run = Run()
        method = tiny_forget(inversion_steps=60, steps=0, inversion_lr=lr, norm_rate=0.0, batch=2)
        method.erase(tiny_model, EraseRequest(("cat",)), run)
        late[lr] = math.fsum(row["inversion"] for row in run.log[30:])
    assert late[3e-2] < late[0.0]


def test_resteering_uses_the_inverted_vectors(tiny_model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Learned] = []
    init = Learned.__init__
    monkeypatch.setattr(Learned, "__init__", lambda self, *a: init(self, *a) or kept.append(self))
    method = tiny_forget(inversion_steps=30, inversion_lr=0.1, norm=2.0, norm_rate=1.0, vectors=3)
    assert method.erase(tiny_model, EraseRequest(("cat",))).deltas
    (learned,) = kept
    assert learned.values[0].shape == (3, 16)
    torch.testing.assert_close(learned.values[0].detach().norm(dim=1), torch.full((3,), 2.0))
    without = tiny_forget(inversion_steps=0)
    assert not same(
        method.erase(tiny_model, EraseRequest(("cat",))).deltas, without.erase(tiny_model, EraseRequest(("cat",))).deltas
    )


def test_options_that_would_do_nothing_are_refused(tiny_model: DiffusionModel) -> None:
    with pytest.raises(BadOption, match=r"exactly one \{\}"):
        ForgetMeNot(template="a photo")
    with pytest.raises(BadOption, match="nothing to invert"):
        ForgetMeNot(images_from="zero")
    with pytest.raises(BadRequest, match="the anchor 'dog' would do nothing"):
        ForgetMeNot().erase(tiny_model, EraseRequest(("cat",), "dog"))
