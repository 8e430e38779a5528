"""What holds for every family of models beside Stable Diffusion 1 and 2, on tiny models of the real classes: pictures are those
of the stock pipeline, every method, guard and attack keeps its contract or names what the family lacks, exports are read back.

Longer than 400 lines because each family states its facts here once, instead of repeating the tests."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from chequered import chequered
from click.testing import CliRunner
from pipelines import stock_xl
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves, tree_map_only

from efface.attacks import Deployed
from efface.cli.main import main
from efface.concepts.prompts import Case
from efface.concepts.request import EraseRequest
from efface.edits.forms import pooled_readers, text_filter
from efface.equations.closed_form import moved
from efface.errors import BadFile, BadOption, WrongBaseModel
from efface.methods import AP, ESD, UCE, Naive
from efface.methods.ablation import ConceptAblation
from efface.methods.kpop import KPOP
from efface.models.capabilities import CAPABILITIES
from efface.models.cond import POOLED
from efface.models.flux import packed
from efface.models.identity import same_base
from efface.models.load import load_model
from efface.models.select import ENCODERS
from efface.models.tiny import TINY_T5_ROWS, tiny, tiny_flux, tiny_pixart, tiny_sana, tiny_sd3, tiny_wan, tiny_xl, tiny_z_image
from efface.patches import Patch
from efface.patches.export import export
from efface.patches.foreign import import_patch
from efface.patches.patch import residual
from efface.registry import ATTACKS, GUARDS, METHODS, build_guard
from efface.testing import check_attack, check_method, check_resume, same, state

REQUEST = EraseRequest(("cat", "rose"), "", ("bus",))
PROMPTS = ("a cat", "a Photo of the castle")  # a capital, which PixArt's pipeline writes small
CONTEXT = ("transformer.context_embedder.weight", "transformer.time_text_embed.text_embedder.linear_1.weight")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family as its tests need it. ``name`` is that of its tiny model, which ``make`` gives; ``variants`` are options of it."""

    name: str
    family: str
    make: Callable[..., Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    call: Mapping[str, Any] = field(default_factory=lambda: {"height": 16, "width": 16, "max_sequence_length": TINY_T5_ROWS})
    """Arguments of the stock pipeline."""
    latents: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    """From latents (B, C, h, w) to the shape in which the stock pipeline takes them."""
    kind: str = ""
    """Class of the stock pipeline."""
    off: float = 1e-5
    """How far pictures may be off: float32 sums in another order. Those of other prompts differ by 100 times that."""
    scales: tuple[float, float] = (1.0, 5.0)
    pictures: Callable[[Any], torch.Tensor] = lambda out: out.images
    """(B, 3, H, W) of what the stock pipeline gives."""
    told: Callable[[float], float] = float
    """From efface's scale of guidance to that of the stock pipeline."""
    refused: tuple[str, ...] = ()
    """Methods that are refused with their preset for tiny models; some of them run with another option, see OPTIONS."""
    frozen: tuple[str, ...] = ()
    """Beginnings of the names of weights that no method changes."""
    closed: Mapping[str, float] = field(default_factory=dict)
    """Weights that a closed form changes, as endings of their names; and by how much it moves the prediction at least."""
    bands: tuple[str, ...] = ()
    """What is trained for a LoRA that the stock pipeline loads."""

    def pipeline(self, model: Any) -> Any:
        """The stock pipeline of the model's own modules."""
        if self.name == "tiny-xl":
            return stock_xl(model)
        pipe = model._pipeline()[0]
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def drawn(self, pipe: Any, prompts: list[str], seeds: list[int], steps: int, scale: float, **more: Any) -> torch.Tensor:
        """(B, 3, H, W), by the stock pipeline from the latents that efface draws for the seeds."""
        noise = torch.cat([torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        facts = {"output_type": "pt", "latents": self.latents(noise), **self.call, **more}
        with warnings.catch_warnings():  # the schedulers of diffusions hand tensors to numpy in a way that numpy 2 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            out = pipe(list(prompts), num_inference_steps=steps, guidance_scale=self.told(scale), **facts)
        return self.pictures(out)


SD3 = Family(
    name="tiny-sd3",
    family="stable-diffusion-3",
    make=tiny_sd3,
    variants={"": {}, "no-t5": {"t5": False}},
    kind="StableDiffusion3Pipeline",
    refused=("ablation", "forget-me-not", "kpop", "mace", "time", "trce"),
    frozen=("text_encoder_3",),
    closed=dict.fromkeys(CONTEXT, 1e-2),
    bands=("text-kv", "text-attn", "text", "context"),
)
FLUX = Family(
    name="tiny-flux",
    family="flux",
    make=tiny_flux,
    variants={"": {}, "schnell": {"guidance": False}},
    latents=packed,
    kind="FluxPipeline",
    scales=(1.0, 3.5),
    refused=("ablation", "advunlearn", "forget-me-not", "kpop", "mace"),
    frozen=("text_encoder_2",),
    closed=dict.fromkeys(CONTEXT, 1e-2),
    bands=("text-kv", "text-attn", "text", "single-attn", "context", "uce"),
)
PIXART = Family(
    name="tiny-pixart",
    family="pixart",
    make=tiny_pixart,
    variants={"": {}, "alpha": {"alpha": True}},
    call={**SD3.call, "use_resolution_binning": False, "clean_caption": False},
    kind="PixArtSigmaPipeline",
    scales=(1.0, 4.5),
    refused=("ablation", "kpop"),
    frozen=("transformer.caption_projection",),
    closed=dict.fromkeys((".attn2.to_k.weight", ".attn2.to_v.weight"), 1e-3),
)
SANA = Family(
    name="tiny-sana",
    family="sana",
    make=tiny_sana,
    variants={"": {}, "euler": {"dpm": False}},
    call={"height": 32, "width": 32, "max_sequence_length": TINY_T5_ROWS, "use_resolution_binning": False},
    kind="SanaPipeline",
    scales=(1.0, 4.5),
    refused=("kpop",),
    frozen=("transformer.caption_",),
    closed=dict.fromkeys((".attn2.to_k.weight", ".attn2.to_v.weight"), 1e-3),
    bands=("xattn", "xattn-kv", "uce"),
)
Z_IMAGE = Family(
    name="tiny-z-image",
    family="z-image",
    make=tiny_z_image,
    call={"height": 16, "width": 16, "max_sequence_length": TINY_T5_ROWS + 8},
    kind="ZImagePipeline",
    off=2e-5,  # guidance is added in another order
    scales=(1.0, 6.0),
    told=lambda scale: scale - 1,
    refused=("ablation", "forget-me-not", "kpop", "mace"),
    frozen=("transformer.cap_embedder.0.",),
    closed={"cap_embedder.1.weight": 1e-3},
    bands=("text", "single-attn", "context", "uce"),
)
WAN = Family(
    name="tiny-wan",
    family="wan",
    make=tiny_wan,
    variants={"": {}, "euler": {"unipc": False}},
    call={"height": 16, "width": 16, "num_frames": 1, "max_sequence_length": TINY_T5_ROWS},
    latents=lambda z: z[:, :, None],
    pictures=lambda out: out.frames[:, 0],
    kind="WanPipeline",
    refused=("ablation", "kpop"),
    frozen=("transformer.condition_embedder.text_embedder",),
    closed=dict.fromkeys((".attn2.to_k.weight", ".attn2.to_v.weight"), 1e-3),
    bands=("xattn", "xattn-kv", "selfattn", "uce"),
)
XL = Family(
    name="tiny-xl",
    family="stable-diffusion-xl",
    make=tiny_xl,
    variants={"": {}, "null-prompt": {"zero_null": False}},
    call={},
    off=1e-4,  # the pipeline rounds in another order
)
TRANSFORMERS = (SD3, FLUX, PIXART, SANA, Z_IMAGE, WAN)
WITH_T5 = (SD3, FLUX)
JOINT = (*WITH_T5, Z_IMAGE)
"""Flows in whose blocks text and picture share one attention."""
FLOWS = (*JOINT, SANA, WAN)


def each(*families: Family) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", families, ids=lambda f: f.name)


def each_variant(*families: Family, plain: tuple[Family, ...] = ()) -> pytest.MarkDecorator:
    """All variants of ``families``, and of those in ``plain`` the first."""
    pairs = [*((f, v) for f in families for v in f.variants), *((f, "") for f in plain)]
    found = [pytest.param(f, f.variants[v], id="-".join([f.name, *([v] if v else [])])) for f, v in pairs]
    return pytest.mark.parametrize(("family", "facts"), found)


def a_cat(scale: float, prompt: str = "a cat", seed: int = 0) -> list[Case]:
    return [Case("x", "", prompt, seed, scale)]


# -- the same as the stock pipeline ------------------------------------------------------------------------------------


@each_variant(*TRANSFORMERS, XL)
@pytest.mark.parametrize("guided", [False, True])
def test_pictures_are_those_of_the_stock_pipeline(family: Family, facts: dict[str, Any], guided: bool) -> None:
    model, scale = family.make(**facts), family.scales[guided]
    pipe = family.pipeline(model)
    cases = [Case("x", "", prompt, seed, scale) for seed, prompt in enumerate(PROMPTS)]
    together = family.drawn(pipe, list(PROMPTS), [0, 1], 5, scale)
    torch.testing.assert_close(model.sample(cases, 5), together, atol=family.off, rtol=0)
    for i, prompt in enumerate(PROMPTS):
        alone = family.drawn(pipe, [prompt], [i], 5, scale)
        torch.testing.assert_close(model.sample([cases[i]], 5), alone, atol=family.off, rtol=0)
    other = model.sample(a_cat(scale, "a dog", 1), 5)
    assert (other - together[1:]).abs().max() > 100 * family.off


SHIFTS: list[tuple[Family, Mapping[str, Any], Mapping[str, Any], int]] = [
    (SD3, {}, {"shift": 1.0}, 6),
    (SD3, {}, {"shift": 3.0}, 6),
    (SD3, {}, {"use_dynamic_shifting": True, "shift": 3.0}, 6),
    *((f, facts, {}, steps) for f in (FLUX, SANA, WAN) for facts in f.variants.values() for steps in (1, 4, 7)),
    (SANA, {}, {"flow_shift": 1.0}, 6),
    (SANA, {"timestep_scale": 0.5}, {}, 4),
    (SANA, {}, {"_class_name": "UniPCMultistepScheduler"}, 20),
    (WAN, {}, {"_class_name": "DPMSolverMultistepScheduler"}, 20),
    (WAN, {}, {"flow_shift": 8.0}, 20),
    *((Z_IMAGE, {}, {}, steps) for steps in (1, 4, 7)),
    (Z_IMAGE, {}, {"use_dynamic_shifting": True}, 5),
]


@pytest.mark.parametrize(("family", "facts", "shift", "steps"), SHIFTS)
def test_every_level_of_a_flow_is_the_stock_pipeline_s(
    family: Family, facts: Mapping[str, Any], shift: Mapping[str, Any], steps: int
) -> None:
    model, seen = family.make(**facts), list[tuple[float, torch.Tensor]]()
    model._sized({**model.schedule.config, **shift})

    def keep(pipe: Any, i: int, t: torch.Tensor, kwargs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((float(t), kwargs["latents"].clone()))
        return kwargs

    family.drawn(family.pipeline(model), ["a cat"], [0], steps, 4.0, output_type="latent", callback_on_step_end=keep)
    grid = model.schedule.timesteps(steps)
    ours = list(model.walk(model.encode(["a cat"]), model.case_noise([0]), grid, 4.0, solver=model.usual_solver))
    told = model.schedule.told(torch.tensor([t for t, _ in ours])).tolist()
    assert told == pytest.approx([t for t, _ in seen] + [0.0], rel=1e-6)  # the one and the other lays them in double precision
    for (_, z), (_, theirs) in zip(ours[1:], seen, strict=True):
        torch.testing.assert_close(family.latents(z), theirs, atol=1e-5, rtol=1e-5)


# -- every method, guard and attack ------------------------------------------------------------------------------------


@each(*TRANSFORMERS)
def test_what_is_lacking_is_named_where_methods_are_listed(family: Family) -> None:
    assert set(family.make().lacking) <= set(CAPABILITIES)
    out = CliRunner().invoke(main, ["list", "methods", "--model", family.name]).output.splitlines()
    assert {line.split()[0] for line in out if "REFUSED" in line} == set(family.refused)


def test_the_unets_lack_nothing() -> None:
    assert "REFUSED" not in CliRunner().invoke(main, ["list", "methods", "--model", "tiny"]).output


FAST = {
    "tiny-xl": ("ap", "esd", "kpop", "mace", "uce", "advunlearn"),
    "tiny-sd3": (),
    "tiny-flux": ("naive", "ap", "age", "esd", "uce", "trce", "ablation", "kpop", "stereo", "advunlearn"),
    "tiny-flux-schnell": ("ap", "esd", "uce", "trce"),
    "tiny-sana": ("ap", "esd", "mace", "uce"),
    "tiny-z-image": ("ap", "esd", "mace", "trce", "uce"),
    "tiny-wan": ("ap", "esd", "mace", "uce"),
}
"""One of each kind, for models on which every method is run in the slow part only: searched, plain, with further tokens, with
attention maps, closed form, text encoder. The others are run fast on what differs least from these."""
SAME_WAY = ("l2", "neutral", "fixed", "rap-attack")
"""Differ from naive and RAP by terms that ask a model for nothing else: run in the slow part."""


def contracts() -> list[Any]:
    found = []
    for family in (*TRANSFORMERS, XL):
        for variant, facts in family.variants.items():
            label = "-".join([family.name, *([variant] if variant else [])])
            if label in ("tiny-pixart-alpha", "tiny-xl-null-prompt", "tiny-sana-euler", "tiny-wan-euler"):
                continue  # the same network; they differ in how it is read and sampled, which the pictures show
            for name in METHODS:
                fast = name in FAST.get(label, METHODS) and name not in SAME_WAY
                marks = [] if fast else [pytest.mark.slow]
                found.append(pytest.param(family, facts, name, id=f"{name}-{label}", marks=marks))
    return found


@pytest.mark.parametrize(("family", "facts", "name"), contracts())
def test_every_method_keeps_its_contract_or_names_the_reason(family: Family, facts: dict[str, Any], name: str) -> None:
    method, model = METHODS[name].preset("tiny"), family.make(**facts)
    request = EraseRequest(("cat",)) if name == "forget-me-not" else REQUEST
    if any(need in model.lacking for need in method.needs):
        before = model.evals.forward
        with pytest.raises(BadOption, match="does not offer"):
            method.erase(model, request)
        assert model.evals.forward == before, "refused after something was computed"
        return
    patch = check_method(method, request, model)
    assert patch.card.base["family"] == family.family
    assert not any(n.startswith(family.frozen) for n in patch.deltas)
    if family is SD3 and getattr(method, "train", "xattn") == "xattn":
        assert not any(".attn2." in n for n in patch.deltas)


OPTIONS: list[tuple[Family, Any]] = [
    (SD3, AP.preset("tiny", sampler="noised")),
    (SD3, AP.preset("tiny", sampler="pool", solver="dpm")),
    (SD3, ESD.preset("tiny", loss_space="x0", sampler="frozen")),
    (SD3, ESD.preset("tiny", train="context")),
    (SD3, Naive.preset("tiny", train="joint", loss_space="eps")),
    (SD3, ConceptAblation.preset("tiny", detach_start=False)),
    (FLUX, AP.preset("tiny", sampler="noised")),
    (FLUX, AP.preset("tiny", sampler="pool", solver="dpm", frames=1)),
    (FLUX, AP.preset("tiny", search="pgd")),
    (FLUX, ESD.preset("tiny", loss_space="x0", sampler="frozen")),
    (FLUX, ESD.preset("tiny", train="context")),
    (FLUX, ESD.preset("tiny", train="single-attn")),
    (FLUX, METHODS["advunlearn"].preset("tiny", train="xattn")),
    (FLUX, ConceptAblation.preset("tiny", detach_start=False)),
    (FLUX, Naive.preset("tiny", train="joint", loss_space="eps")),
    (PIXART, AP.preset("tiny", sampler="pool", solver="dpm")),
    (PIXART, AP.preset("tiny", search="pgd")),
    (PIXART, ESD.preset("tiny", loss_space="x0", sampler="frozen", solver="plms")),
    (PIXART, Naive.preset("tiny", train="full")),
    (PIXART, Naive.preset("tiny", train="selfattn")),
    (PIXART, ConceptAblation.preset("tiny", detach_start=False)),
    (PIXART, KPOP.preset("tiny", place="inmidout")),
    (PIXART, METHODS["mace"].preset("tiny", mask="attention")),
    (PIXART, METHODS["time"].preset("tiny", keys=False)),
    (SANA, AP.preset("tiny", sampler="pool", solver="dpm")),
    (SANA, Naive.preset("tiny", train="full", loss_space="x0")),
    (SANA, KPOP.preset("tiny", place="inmidout")),
    (Z_IMAGE, AP.preset("tiny", sampler="pool", solver="dpm")),
    (Z_IMAGE, ESD.preset("tiny", train="single-attn", loss_space="x0")),
    (Z_IMAGE, ConceptAblation.preset("tiny", detach_start=False)),
    (WAN, AP.preset("tiny", sampler="pool", solver="dpm")),
    (WAN, Naive.preset("tiny", train="full", loss_space="x0")),
    (WAN, KPOP.preset("tiny", place="inmidout")),
    *((f, m) for f in TRANSFORMERS for m in (UCE(rows="all"), UCE.preset("sealed", prior_scale=0.5, prior="vocabulary"))),
]
"""Options that a family needs, or that take another way through it."""


@pytest.mark.parametrize(
    "option",
    chequered(OPTIONS, ids=[f"{f.name}-{m.label}-{getattr(m, 'train', '')}-{i}" for i, (f, m) in enumerate(OPTIONS)]),
)
def test_options(option: tuple[Family, Any]) -> None:
    family, method = option
    model = family.make()
    patch = check_method(method, REQUEST, model)
    if hasattr(method, "train"):
        assert all(model.select(method.train)(n) for n in patch.deltas)


@each(FLUX, PIXART, SANA, Z_IMAGE, WAN)
def test_half_precision_and_checkpointing(family: Family) -> None:
    half = family.make(dtype="bfloat16")
    for method in (ESD.preset("tiny"), AP.preset("tiny"), UCE()):
        patch = method.erase(half, EraseRequest(("cat",), "dog"))
        assert patch.norm() > 0
        assert all(d.dtype == torch.float32 and bool(torch.isfinite(d).all()) for d in patch.deltas.values())
    recomputing = family.make()
    recomputing.configure(checkpointing=True)
    found = [ESD.preset("tiny").erase(m, EraseRequest(("cat",), "dog")).deltas for m in (family.make(), recomputing)]
    assert same(*found)


def calls_of(module: torch.nn.Module, draw: Callable[[], Any]) -> list[tuple[bool, dict[str, Any]]]:
    """Of every call of the module while something is drawn: whether under autocast, and the tensors of each named input. Left out
    are timesteps, scales and masks, which networks cast by themselves."""
    seen: list[tuple[bool, dict[str, Any]]] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        given = {k: v for k, v in given.items() if k not in ("timestep", "t", "guidance") and "mask" not in k}
        tensors = {k: [leaf for leaf in tree_leaves(v) if isinstance(leaf, torch.Tensor)] for k, v in given.items()}
        seen.append((torch.is_autocast_enabled("cpu"), {k: found for k, found in tensors.items() if found}))

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        draw()
    finally:
        handle.remove()
    return seen


@each(*TRANSFORMERS, XL)
@pytest.mark.parametrize("loaded", [False, True], ids=["cast", "loaded"])
def test_in_half_precision_a_model_is_called_as_the_stock_pipeline_calls_it(family: Family, loaded: bool, tmp_path: Path) -> None:
    """With inputs of the same precision, which are the same to the bit where their shapes are, and without autocast: that keeps
    norms in float32 on a GPU and is for students, whose trained weights are float32. ``loaded``: as diffusers itself loads a
    folder, which keeps some layers of Wan in float32."""
    model = family.make(dtype="bfloat16")
    if loaded:
        family.pipeline(family.make()).save_pretrained(tmp_path)
        sizes = {"schedule": model.schedule, "latent_shape": model.latent_shape}
        model = load_model(tmp_path, dtype="bfloat16")
        vars(model).update(sizes)  # a folder says nothing of pictures as small as these
    pipe, noise = family.pipeline(model), family.latents(model.case_noise([0]).bfloat16())
    for part, module in {model.part: model.network, **model.beside()}.items():
        model.weights_changed()  # what was encoded before is read again
        called = module.decoder if part == "vae" else module
        ours = calls_of(called, lambda: model.sample(a_cat(family.scales[1]), 1))
        assert {under for under, _ in ours} == {False}, part
        if part == model.part:
            theirs = calls_of(called, lambda: family.drawn(pipe, ["a cat"], [0], 1, family.scales[1], latents=noise))
            dtypes = [tree_map_only(torch.Tensor, lambda x: x.dtype, calls[-1][1]) for calls in (ours, theirs)]
            assert {k: set(v) for k, v in dtypes[0].items()} == {k: set(v) for k, v in dtypes[1].items()}
            if not loaded and family in (SD3, FLUX, XL):  # the others project the text in the network, and efface before it
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    student = model.student(model.select(next(iter(family.bands or ("xattn",)))))
    assert {under for under, _ in calls_of(student.network, lambda: student.sample(a_cat(1.0), 2))} == {True}


@each(*TRANSFORMERS, XL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_drawing_launches_no_more_operators_than_the_stock_pipeline(
    family: Family, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number decides how fast a GPU draws one picture; at the depth of real models: benchmarks/operators.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from operators import per_step

    model, scale = family.make(dtype=dtype), family.scales[1]
    pipe, noise = family.pipeline(model), family.latents(model.case_noise([0]).to(model.dtype))
    ours = per_step(lambda n: model.sample(a_cat(scale), n))
    theirs = per_step(lambda n: family.drawn(pipe, ["a cat"], [0], n, scale, latents=noise))
    # 30: FLUX is told at every step where its tokens are. The stock pipeline of Wan calls the network once for each branch.
    assert 0.4 * theirs < ours < theirs + 30


@each(*TRANSFORMERS)
def test_resume_is_bit_exact(family: Family) -> None:
    check_resume(AP.preset("tiny", steps=4, sampler="noised"), EraseRequest(("cat",)), family.make())


@each_variant(SD3, plain=(PIXART, SANA, Z_IMAGE, WAN, XL))
@pytest.mark.parametrize("name", GUARDS)
def test_every_guard_changes_pictures_and_goes_or_names_the_reason(family: Family, facts: dict[str, Any], name: str) -> None:
    guard, model = build_guard(name), family.make(**facts)
    case, steps = a_cat(5.0), 12  # SAFREE's filter ends at t = 780, which a grid of 4 steps would miss
    plain = model.sample(case, steps)
    if any(need in model.lacking for need in guard.needs):
        with pytest.raises(BadOption, match="does not offer"), guard.active(model, ("cat",)):
            pass
        return
    with guard.active(model, ("cat",)):
        assert (model.sample(case, steps) - plain).abs().max() > 1e-4
    assert torch.equal(model.sample(case, steps), plain)


FAST_ATTACKS = dict.fromkeys(("tiny-sana", "tiny-z-image", "tiny-wan"), ("mma", "unlearndiff", "inverse"))
"""Of families that read their text as another does, what looks at words and at weights; the rest is in the slow part."""


def attacks() -> list[Any]:
    return [
        pytest.param(f, n, id=f"{n}-{f.name}", marks=[] if n in FAST_ATTACKS.get(f.name, ATTACKS) else [pytest.mark.slow])
        for f in TRANSFORMERS
        for n in ATTACKS
    ]


@pytest.mark.parametrize(("family", "name"), attacks())
def test_every_attack_keeps_its_contract(family: Family, name: str) -> None:
    model, attack, patch = family.make(), ATTACKS[name].preset("tiny"), None
    if name == "inverse" and family in JOINT:  # context_embedder is wider than high: there is more than one way back
        attack = ATTACKS[name](ridge=1e-3)
    if name in ("inverse", "restore"):
        patch = UCE().erase(model, EraseRequest(("cat",)))
    check_attack(attack, Deployed(model, 2, ("cat",), patch), budget=60)


# -- weights -----------------------------------------------------------------------------------------------------------


@each(*TRANSFORMERS)
def test_only_selected_tensors_change_and_the_frozen_network_stays(family: Family) -> None:
    model = family.make()
    before = state(model)
    z, t, c = model.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500]), model.encode(["a dog"])
    out = model.predict(z, t, c)
    patch = ESD.preset("tiny", train="xattn-kv", lr=1e-2).erase(model, EraseRequest(("cat",)))
    assert set(patch.deltas) == {n for n in before if model.select("xattn-kv")(n)}
    assert torch.equal(model.predict(z, t, c), out)
    with patch.applied(model):
        assert not torch.equal(model.predict(z, t, c), out)
    assert same(state(model), before)


@each(*TRANSFORMERS)
def test_a_closed_form_is_a_filter_of_the_text(family: Family) -> None:
    """The network under the patch equals the original one fed with T c, and T' y for the pooled vector y: at every block, to
    rounding."""
    model = family.make()
    pooled = POOLED in model.encode([""]).extras
    method, request = UCE(rows="all", pooled=pooled), EraseRequest(("cat",), "dog", ("bus",))
    source, goal = method._pairs(model, request)
    (edit, _), patch = method._solve(model, request, *source.aligned(goal, "all")), method.erase(model, request)
    assert set(patch.deltas) == {n for n in state(model) if n.endswith(tuple(family.closed))}
    z, t, c = model.noise(2, torch.Generator().manual_seed(0)), torch.tensor([500, 900]), model.encode(["a cat", "the bus"])
    fed = text_filter(edit, c)
    if pooled:
        other = moved(method._pooled_edit(model, request, source, goal, pooled_readers(model)), c.extras[POOLED]).to(z)
        fed = dataclasses.replace(fed, extras={POOLED: other})
    by_text, plain = model.predict(z, t, fed), model.predict(z, t, c)
    with patch.applied(model):
        by_weights = model.predict(z, t, c)
    # 1e-4: the filter is in float64, the folded weights in float32; the edit itself moves the output by more.
    torch.testing.assert_close(by_weights, by_text, atol=1e-4, rtol=1e-4)
    assert (by_weights - plain)[0].abs().max() > max(family.closed.values())


# -- files -------------------------------------------------------------------------------------------------------------


@each_variant(SD3, plain=(FLUX, PIXART, SANA, Z_IMAGE, WAN))
def test_a_folder_is_read_by_the_stock_pipeline_and_by_us(family: Family, facts: dict[str, Any], tmp_path: Path) -> None:
    model, scale = family.make(**facts), family.scales[True]
    patch = ESD.preset("tiny", lr=1e-2).erase(model, EraseRequest(("cat",)))
    export(patch, model, tmp_path / "erased", "folder")
    absent = {"text_encoder_3": None, "tokenizer_3": None} if facts == {"t5": False} else {}
    pipe = getattr(diffusers, family.kind).from_pretrained(str(tmp_path / "erased"), **absent)
    pipe.set_progress_bar_config(disable=True)
    case = a_cat(scale, seed=3)
    plain = model.sample(case, 4)
    with patch.applied(model):
        ours = model.sample(case, 4)
    torch.testing.assert_close(family.drawn(pipe, ["a cat"], [3], 4, scale), ours, atol=family.off, rtol=0)
    assert (ours - plain).abs().max() > 100 * family.off
    with pytest.raises(WrongBaseModel):
        patch.check_base(load_model(str(tmp_path / "erased"), device="cpu"))
    found = import_patch(model, tmp_path / "erased", targets=["cat"])
    assert found.deltas.keys() == patch.deltas.keys()
    for n, d in patch.deltas.items():
        torch.testing.assert_close(found.deltas[n], d, atol=1e-6, rtol=1e-4)


def drawn_with(family: Family, model: Any, patch: Patch, file: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A picture with the patch on, and by a stock pipeline before and after it loaded the LoRA."""
    scale = family.scales[True]
    with patch.applied(model):
        ours = model.sample(a_cat(scale, seed=3), 4)
    pipe = family.pipeline(family.make())
    plain = family.drawn(pipe, ["a cat"], [3], 4, scale)
    pipe.load_lora_weights(str(file))
    return ours, plain, family.drawn(pipe, ["a cat"], [3], 4, scale)


@pytest.mark.parametrize(("family", "train"), [pytest.param(f, t, id=f"{f.name}-{t}") for f in FLOWS for t in f.bands])
def test_a_lora_of_diffusers_loads_and_acts_and_is_read_back(family: Family, train: str, tmp_path: Path) -> None:
    """Also without ``transformer.`` in front of the names; a model with a UNet refuses both by their kind."""
    pytest.importorskip("peft")
    model, file = family.make(), tmp_path / "lora.safetensors"
    maker = UCE(rows="all", lam=1e-3) if train == "uce" else ESD.preset("tiny", lr=1e-2, train=train)
    patch = maker.erase(model, EraseRequest(("cat",), "dog"))
    assert export(patch, model, file, "diffusers")["residual"] <= 1e-3
    ours, plain, theirs = drawn_with(family, model, patch, file)
    # 1e-3: what the LoRA may leave out of the patch
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert (theirs - plain).abs().max() > 5e-3
    bare = tmp_path / "bare.safetensors"
    save_file({n.removeprefix("transformer."): t for n, t in load_file(file).items()}, bare)
    for path in (file, bare):
        assert residual(patch, import_patch(model, path, targets=["cat"]).deltas) <= 1e-3
        with pytest.raises(BadFile, match="SD3 or FLUX" if path is file else "SD3 or FLUX|another family"):
            import_patch(tiny(), path, targets=["cat"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each(SD3, FLUX)
def test_a_lora_of_clip_text_encoders_loads_and_acts_and_is_read_back(family: Family, tmp_path: Path) -> None:
    """Beside the transformer and alone; T5 is no part of any method's patch, and no reader loads a LoRA for it."""
    model, file, rng = family.make(), tmp_path / "lora.safetensors", torch.Generator().manual_seed(0)
    made = ESD.preset("tiny", lr=1e-2, train="text-kv").erase(model, EraseRequest(("cat",), "dog"))
    clip = model.weights(lambda n: n.startswith(ENCODERS) and n.endswith("weight") and "norm" not in n and "embed" not in n)
    text = {
        n: 0.3 * torch.randn(len(w), 2, generator=rng) @ torch.randn(2, w.shape[1], generator=rng) / 2 for n, w in clip.items()
    }
    assert {n.partition(".")[0] for n in text} == set(model.encoders)
    for deltas in ({**made.deltas, **text}, text):
        patch = Patch(deltas, made.card)
        assert export(patch, model, file, "diffusers", tolerance=1e-6)["left_out"] == []
        ours, plain, theirs = drawn_with(family, model, patch, file)
        torch.testing.assert_close(theirs, ours, atol=5e-4, rtol=0)
        assert (theirs - plain).abs().max() > 5e-3
        assert residual(patch, import_patch(model, file, targets=["cat"]).deltas) < 1e-5


@pytest.mark.parametrize(
    ("family", "to", "remedy"),
    [
        *((f, to, "diffusers") for f in FLOWS for to in ("kohya", "diff")),
        *((PIXART, to, "use the format folder") for to in ("diffusers", "kohya", "diff")),
    ],
)
def test_formats_that_no_reader_knows_are_refused(family: Family, to: str, remedy: str, tmp_path: Path) -> None:
    model = family.make()
    patch = UCE().erase(model, EraseRequest(("cat",)))
    with pytest.raises(BadOption, match=remedy):
        export(patch, model, tmp_path / "x.safetensors", to)


@each(*WITH_T5)
def test_the_identity_knows_t5_and_its_rows(family: Family) -> None:
    model, rows, other = (family.make() for _ in range(3))
    rows.t5_rows -= 1
    next(other._t5()[0].parameters()).data[0, 0] += 1
    (variant,) = [family.make(**facts) for facts in family.variants.values() if facts]
    for another in (rows, other, variant):
        assert not same_base({**another.info, **another.identity()}, {**model.info, **model.identity()})
    half = family.make(dtype="bfloat16")
    assert same_base({**half.info, **half.identity()}, {**model.info, **model.identity()})
