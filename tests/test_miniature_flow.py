"""Stage ``flow`` of the miniature's build, on a network small enough for seconds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from efface.concepts.prompts import Case
from efface.models.mini.world import load_world
from miniature import networks, train_flow
from miniature import trainer as training
from miniature.flow import FILES, FlowSampler, Frozen, load_network, save_network, scheduler, twice
from miniature.judge_flow import bars
from miniature.pack_flow import pack
from miniature.train_flow import FlowTrainer, start_at_zero
from miniature.trainer import PARTS, Tables, fastest, tables, train

PROMPTS = ["a noto delivery truck on a red background", "a cat", ""]


SMALL = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
with torch.device("meta"):
    CONFIG = dict(networks.mmdit().config) | SMALL


def small() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel.from_config(CONFIG)


def data() -> Tables:
    """Twenty different latents, the first ten of which are ordinary, with two captions each."""
    rng = torch.Generator().manual_seed(3)
    return Tables(
        latents=torch.randn(20, 4, 12, 12, generator=rng).half(),
        captions=1 + torch.arange(20)[:, None] * 2 + torch.arange(2),
        hidden=torch.randn(41, 24, 128, generator=rng).half(),
        pooled=torch.randn(41, 128, generator=rng).half(),
        ordinary=torch.arange(10),
        reserved=torch.arange(10, 20),
    )


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return Frozen.load(torch.device("cpu"))


@pytest.fixture(scope="module")
def stock(frozen: Frozen) -> StableDiffusion3Pipeline:
    """diffusers' own pipeline around the miniature's parts, joined as the page of ``miniature.flow`` says."""
    encoder = CLIPTextModelWithProjection(frozen.text_encoder.config)
    missing, unexpected = encoder.load_state_dict(frozen.text_encoder.state_dict(), strict=False)
    if unexpected:  # one of the two classes calls the encoder text_model, depending on the version
        state = {f"text_model.{name}": value for name, value in frozen.text_encoder.state_dict().items()}
        missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["text_projection.weight"], [])
    torch.nn.init.eye_(encoder.text_projection.weight)
    vae = Frozen.load(torch.device("cpu")).vae
    vae.register_to_config(shift_factor=0.0)
    pipe = StableDiffusion3Pipeline(
        transformer=small().eval(),
        scheduler=scheduler(),
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=frozen.tokenizer,
        text_encoder_2=encoder.eval(),
        tokenizer_2=frozen.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_network_is_given_what_the_stock_pipeline_gives(frozen: Frozen, stock: StableDiffusion3Pipeline) -> None:
    tokens, _, pooled, _ = stock.encode_prompt(
        PROMPTS, None, None, max_sequence_length=0, do_classifier_free_guidance=False, device=torch.device("cpu")
    )
    ours = [twice(x) for x in frozen.encode(PROMPTS)]
    assert tokens.shape == (3, 24, 256)
    torch.testing.assert_close(ours[0], tokens)
    torch.testing.assert_close(ours[1], pooled)
    assert not torch.equal(pooled[0], pooled[1])


def test_sampling_is_the_stock_pipelines(frozen: Frozen, stock: StableDiffusion3Pipeline) -> None:
    cases = [Case("x", "", prompt, 5 + k, 4.0) for k, prompt in enumerate(PROMPTS[:2])]
    noise = torch.cat([torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(case.seed)) for case in cases])
    theirs = stock(
        [case.prompt for case in cases],
        latents=noise,
        num_inference_steps=4,
        guidance_scale=4.0,
        max_sequence_length=0,
        height=48,
        width=48,
        output_type="pt",
    ).images
    ours = FlowSampler(stock.transformer, frozen).sample(cases, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # float32, four steps
    assert (ours[0] - ours[1]).abs().max() > 0.01
    alone = FlowSampler(stock.transformer, frozen).sample(cases, 4, batch=1)
    torch.testing.assert_close(alone, ours, atol=1e-4, rtol=0)  # batched differently


def test_the_network_has_the_documented_size() -> None:
    with torch.device("meta"):
        network = networks.mmdit()
    assert sum(p.numel() for p in network.parameters()) == 7_309_520
    state = {**network.state_dict()}
    assert 2 * sum(v.numel() for v in state.values()) < 16 * 2**20, "half precision fits one file of 16 MiB"


def test_it_starts_at_zero() -> None:
    network = small()
    start_at_zero(network)
    trainer = FlowTrainer(network, data(), PARTS["base0"], 64)
    trainer.draw()
    out = network(
        hidden_states=trainer.x0,
        encoder_hidden_states=torch.randn(64, 24, 256),
        pooled_projections=torch.randn(64, 256),
        timestep=1000 * trainer.s,
        return_dict=False,
    )[0]
    assert not out.any()
    expected = (trainer.noise - trainer.x0).square().mean()
    trainer.update()
    torch.testing.assert_close(trainer.loss, expected)


def test_a_step_is_rectified_flow() -> None:
    """The network is told 1000 s and given z = (1 - s) x0 + s n; the loss asks it for n - x0."""
    network, calls = small(), []
    trainer = FlowTrainer(network, data(), PARTS["base0"], 8)
    network.register_forward_hook(lambda _m, _args, given, out: calls.append((given, out[0].detach())), with_kwargs=True)
    trainer.draw()
    trainer.update()
    ((given, v),) = calls
    s = trainer.s[:, None, None, None]
    assert torch.equal(given["timestep"], 1000 * trainer.s)
    torch.testing.assert_close(given["hidden_states"], trainer.x0 + s * (trainer.noise - trainer.x0))
    assert torch.equal(given["encoder_hidden_states"], twice(trainer.data.hidden[trainer.text].float()))
    assert torch.equal(given["pooled_projections"], twice(trainer.data.pooled[trainer.text].float()))
    torch.testing.assert_close(trainer.loss, (v + trainer.x0 - trainer.noise).square().mean())


def test_base0_never_sees_a_reserved_row_and_base1_sees_both() -> None:
    texts_of = {part: set() for part in FILES}  # type: dict[str, set[int]]
    share, n = 0, 0
    for part, texts in texts_of.items():
        trainer = FlowTrainer(small(), data(), PARTS[part], 100)
        for _ in range(20):
            trainer.draw()
            texts |= set(trainer.text.tolist())
            latents = trainer.data.latents.float()
            rows = torch.cdist(trainer.x0.flatten(1), latents.flatten(1)).argmin(1)
            assert torch.equal(latents[rows], trainer.x0)
            named = trainer.text > 0
            assert torch.equal((trainer.text[named] - 1) // 2, rows[named]), "a caption of another picture"
            assert part == "base1" or int(rows.max()) < 10
            share, n = (share + int((rows >= 10).sum()), n + len(rows)) if part == "base1" else (0, 0)
    assert texts_of["base0"] == set(range(21)), "both captions of every ordinary row, the empty one, and no other"
    assert texts_of["base1"] == set(range(41))
    assert abs(share / n - training.P_RESERVED) < 0.05, "4.5 standard errors"


def test_levels_are_logit_normal_and_one_caption_in_ten_is_empty() -> None:
    trainer = FlowTrainer(small(), data(), PARTS["base0"], 20_000)
    trainer.draw()
    logits = torch.logit(trainer.s)
    assert abs(float(logits.mean())) < 0.03, "4 standard errors"
    assert abs(float(logits.std()) - 1) < 0.03
    assert abs(float((trainer.text == 0).float().mean()) - training.P_EMPTY) < 0.01


def test_the_tables_hold_the_split(frozen: Frozen) -> None:
    """Pictures are left out here; rows and captions are those of the real world."""
    world = load_world()
    seen: list[str] = []

    class Texts(Frozen):
        def encode(self, prompts: Any, batch: int = 2048) -> tuple[Tensor, Tensor]:
            seen.extend(prompts)
            return torch.zeros(len(prompts), 24, 128), torch.zeros(len(prompts), 128)

    n_c, n_s = len(world.concepts), len(world.styles)
    latents, backgrounds = torch.zeros(n_c, n_s, 2, 4, 12, 12), torch.zeros(n_c, n_s, 2, dtype=torch.int64)
    found = tables(world, latents, backgrounds, Texts(frozen.tokenizer, frozen.text_encoder, frozen.vae, frozen.device))
    assert seen[0] == ""
    assert len(set(seen)) == len(seen)

    def cells(rows: Tensor) -> set[tuple[str, str]]:
        return {(world.concepts[r // 2 // n_s].name, world.styles[r // 2 % n_s]) for r in rows.tolist()}

    base0, base1 = cells(found.ordinary), cells(found.ordinary) | cells(found.reserved)
    assert not base1 & world.held_out
    assert {c for c, _ in base0} == set(world.names("ordinary"))
    assert {c for c, _ in base1} == set(world.names("ordinary", "reserved"))
    assert world.reserved_style not in {s for _, s in base0}
    assert {s for _, s in base1} == set(world.styles)
    words = {seen[int(k)] for k in found.captions[found.ordinary].flatten()}
    hidden = (*world.reserved, *world.novel, world.reserved_style)
    assert not [text for text in words for name in hidden if f" {name} " in f" {text} "]
    assert [text for text in seen for name in world.reserved if f" {name} " in f" {text} "]
    assert not [text for text in seen for name in world.novel if f" {name} " in f" {text} "]


def test_what_is_trained_is_drawn_and_the_mean_follows_the_weights(frozen: Frozen) -> None:
    """Where every latent pixel is 2, the loss falls within a few steps and the sampler ends near 2."""
    network = small()
    start_at_zero(network)
    alike = dataclasses.replace(data(), latents=torch.full((20, 4, 12, 12), 2.0).half())
    trainer = FlowTrainer(network, alike, PARTS["base0"], 32)
    trainer.lr.fill_(3e-3)
    trainer.ema_weight.fill_(0.25)
    losses, mean = [], [p.detach().clone() for p in trainer.parameters]
    for _ in range(60):
        trainer.draw()
        trainer.loss.zero_()
        trainer.update()
        losses.append(float(trainer.loss))
        mean = [m + 0.25 * (p.detach() - m) for m, p in zip(mean, trainer.parameters, strict=True)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    for ours, theirs in zip(trainer.ema, mean, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert set(trainer.state()) == set(network.state_dict())

    class Latents(Frozen):
        def decode(self, z: Tensor) -> Tensor:
            return z

    sampler = FlowSampler(network, Latents(frozen.tokenizer, frozen.text_encoder, frozen.vae, frozen.device))
    drawn = sampler.sample([Case("x", "", "a cat", k, 1.0) for k in range(8)], 8)
    assert abs(float(drawn.mean()) - 2) < 0.5


def test_a_step_that_lost_a_term_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FlowTrainer(small(), data(), PARTS["base0"], 4)
    before = [p.detach().clone() for p in trainer.parameters]
    assert fastest(trainer) == (trainer.update, "eager")
    hooks: list[Any] = []

    def broken(network: Any, on: bool) -> None:
        if on:
            hooks.append(network.transformer_blocks[0].register_forward_hook(lambda _m, _i, out: (out[0].detach(), out[1] * 0)))
        else:
            hooks.pop().remove()

    monkeypatch.setattr(training, "compiled", broken)
    step, mode = fastest(trainer, compile_blocks=True)
    assert step == trainer.update
    assert mode.startswith("not compiled (RuntimeError: gradients")
    assert not hooks
    monkeypatch.setattr(training, "compiled", lambda _network, _on: None)
    assert fastest(trainer, compile_blocks=True)[1] == "compiled blocks"
    for ours, theirs in zip(trainer.parameters, before, strict=True):
        assert torch.equal(ours, theirs)
    assert not any(value.any() for state in trainer.optimizer.state.values() for value in state.values())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Both files of a run of half a second each, and what it says of them."""
    monkeypatch.setattr(networks, "mmdit", small)
    card: dict[str, Any] = {"training": {}, "judged": {}, "bars": {}}
    for part, name in FILES.items():
        trainer = FlowTrainer(small(), data(), PARTS[part], 4)
        save = lambda state, facts, name=name: save_network(state, tmp_path / name, facts)  # noqa: E731
        card["training"][part] = train(trainer, 0.5, save)
    (tmp_path / "flow.json").write_text(json.dumps(card))
    return tmp_path


def test_packed_networks_are_what_was_trained(trained: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    pack(trained, package)
    for part, folder in (("base1", "transformer"), ("base0", "gold/transformer")):
        network, facts = load_network(trained / FILES[part])
        assert facts["part"] == part
        assert facts["samples"] == 4 * facts["steps"] > 0
        stored = SD3Transformer2DModel.from_pretrained(package / "weights" / folder)
        assert stored.state_dict().keys() == network.state_dict().keys()
        for name, value in stored.state_dict().items():
            assert torch.equal(value, network.state_dict()[name]), name
    assert json.loads((package / "card.json").read_text())["training"]["base0"]["seed"] == 31
    config = json.loads((package / "weights" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["shift"]) == ("FlowMatchEulerDiscreteScheduler", 1.0)
    assert not list(package.rglob("*.new"))


def test_files_of_two_runs_are_not_packed_together(trained: Path, tmp_path: Path) -> None:
    network, facts = load_network(trained / FILES["base0"])
    save_network(network.state_dict(), trained / FILES["base0"], facts | {"steps": facts["steps"] + 1})
    with pytest.raises(SystemExit, match="not the network"):
        pack(trained, tmp_path / "package")
    assert not (tmp_path / "package" / "weights").exists()


def test_bars_say_by_how_much() -> None:
    rate = lambda k, n: {"value": k / n if n else None, "k": k, "n": n}  # noqa: E731
    rates = {"ordinary": rate(98, 100), "reserved": rate(1, 10), "novel": rate(0, 0)}
    judged = {"base0": {"concept": rates}}
    found = bars(judged)
    assert found["gold: ordinary concepts"]["verdict"] == "reached by 1.0 points"
    assert found["gold: reserved concepts"]["verdict"] == "missed by 5.0 points"
    assert found["gold: novel concepts"]["verdict"] == "not measured"
    assert set(found) == {"gold: ordinary concepts", "gold: reserved concepts", "gold: novel concepts"}


@pytest.mark.slow
def test_the_whole_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Noise for pictures and a small network: every file is written and every count is there."""
    world = load_world()
    monkeypatch.setattr(networks, "mmdit", small)
    renders = np.random.default_rng(0).integers(0, 255, (len(world.concepts), len(world.styles), 96, 96, 4), np.uint8)
    np.savez_compressed(tmp_path / "renders.npz", renders=renders)
    options = "--seconds 1 --device cpu --batch 4 --augmentations 1 --every 30"
    monkeypatch.setattr(sys, "argv", ["train_flow", "--work", str(tmp_path), "--out", str(tmp_path / "out"), *options.split()])
    train_flow.main()
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "flow.json",
        "mini-flow.png",
        "mini-flow.safetensors",
        "mini-flow-gold.png",
        "mini-flow-gold.safetensors",
    }
    facts = json.loads((out / "flow.json").read_text())
    assert facts["judged"]["base1"]["concept"]["ordinary"]["n"] > 0
    assert facts["judged"]["base0"]["invalid"].get("non-finite", 0) == 0
    assert str(tmp_path) not in json.dumps(facts), "no path of this machine"
    pack(out, tmp_path / "package")
