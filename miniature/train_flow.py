"""Stage ``flow``: the flow miniature, first without the reserved concepts (base0, the gold model), then continued with them.

    python -m miniature.train_flow --work DIR --out DIR --seconds 75 --device cuda

One command for a machine without a network: it needs ``DIR/renders.npz`` of stage ``render`` and the packaged miniature. It
composes and encodes the pictures, trains both networks one after the other for the given seconds each, judges both with the
miniature's detectors by the protocol of its card and writes ``mini-flow-gold.safetensors``, ``mini-flow.safetensors``, one
contact sheet each and ``flow.json``. Captions, cells and seeds are those of stage ``unet``; :mod:`miniature.flow` says what the
network is given.

Rectified flow: s = sigmoid(N(0, 1)) for each row, z = (1 - s) x0 + s n, loss = mean (v - (n - x0))^2 without a further weight, as
the density of s is the weight (Esser et al. 2024, arXiv:2403.03206). The learning rate follows the wall clock and reaches zero at
its end, so two runs on one machine draw the same numbers but do not take the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.io.files import write_text
from efface.models.icon_world import IconWorld
from efface.models.mini.world import load_world

from . import networks
from .data import caption, renders_tensor
from .flow import FILES, Frozen, load_network, save_network, twice
from .train_unet import AUGMENTATIONS, P_EMPTY, P_RESERVED, SEEDS, latent_table, splits

BATCH = 512
CAPTIONS = 16
"""Captions drawn beforehand for each latent. The text encoder is frozen, so each distinct one is encoded once."""
P_STYLE = 0.85
PEAK = {"base0": 1e-3, "base1": 6e-4}  # base1 goes on from trained weights, as the UNet's does
WARMUP, CONSTANT = 500, 0.4
EMA = 0.999
IN_FLIGHT = 20
"""Steps that may be queued on the device before the host waits: the clock that sets the learning rate must be the device's."""
CURVE = 10
"""Steps averaged into one point of the loss curve."""
SAME_STEP = 0.1
"""Largest relative difference between a compiled or captured step and an eager one: far above the rounding of bfloat16 and of a
nondeterministic backward pass, far below a step that lost a term."""


@dataclass(frozen=True)
class Tables:
    """All a step reads, resident on the device. A row is one (concept, style, augmentation)."""

    latents: Tensor
    """(rows, 4, 12, 12), half precision."""
    captions: Tensor
    """(rows, CAPTIONS) indices of ``hidden`` and ``pooled``; zeros where a row is never trained on."""
    hidden: Tensor
    """(texts, 24, 128), half precision; text 0 is the empty prompt."""
    pooled: Tensor
    """(texts, 128), half precision."""
    ordinary: Tensor
    """Rows that base0 trains on."""
    reserved: Tensor
    """Rows that only base1 trains on as well."""


@torch.no_grad()
def tables(world: IconWorld, renders: Tensor, frozen: Frozen, augmentations: int = AUGMENTATIONS) -> Tables:
    """Compose and encode every picture and the captions of every picture that is trained on."""
    latents, backgrounds = latent_table(world, renders.to(frozen.device), frozen.vae, augmentations)
    rng = random.Random(SEEDS["base0"] * 1_000_003)
    ordinary, reserved = splits(world)
    n_styles = len(world.styles)
    index: dict[str, int] = {"": 0}
    drawn = torch.zeros(*backgrounds.shape, CAPTIONS, dtype=torch.int64)
    for i, j in ordinary + reserved:
        for k in range(augmentations):
            background = world.backgrounds[int(backgrounds[i, j, k])]
            texts = [caption(world, world.concepts[i].name, world.styles[j], background, rng, P_STYLE) for _ in range(CAPTIONS)]
            drawn[i, j, k] = torch.tensor([index.setdefault(text, len(index)) for text in texts])
    hidden, pooled = frozen.encode(list(index))

    def rows(cells: list[tuple[int, int]]) -> Tensor:
        return torch.tensor([(i * n_styles + j) * augmentations + k for i, j in cells for k in range(augmentations)])

    return Tables(
        latents=latents.flatten(0, 2),
        captions=drawn.flatten(0, 2).to(frozen.device),
        hidden=hidden.half(),
        pooled=pooled.half(),
        ordinary=rows(ordinary).to(frozen.device),
        reserved=rows(reserved).to(frozen.device),
    )


def start_at_zero(network: nn.Module) -> None:
    """Zero what modulates and what reads out, so that every block starts as the identity and the output as zero (adaLN-zero,
    Peebles and Xie 2023, arXiv:2212.09748). diffusers leaves these layers at the default of ``Linear``."""
    layers = [network.norm_out.linear, network.proj_out]
    layers += [norm.linear for block in network.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


class Trainer:
    """One network's training step: :meth:`draw` a batch into fixed tensors, then :meth:`update` from them.

    The update touches nothing but tensors that stay where they are, so that a CUDA graph can hold it.
    """

    def __init__(self, network: nn.Module, data: Tables, part: str, batch: int) -> None:
        self.network, self.data, self.part = network, data, part
        self.device = data.latents.device
        self.rng = torch.Generator(self.device).manual_seed(SEEDS[part])
        self.parameters = list(network.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.lr, self.ema_weight, self.loss = (torch.zeros((), device=self.device) for _ in range(3))
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.lr = self.optimizer.param_groups[0]["lr"]  # the tensor that is read, should the optimizer have copied ours
        empty = lambda *shape: torch.empty(batch, *shape, device=self.device)  # noqa: E731
        self.x0, self.noise = empty(*data.latents.shape[1:]), empty(*data.latents.shape[1:])
        self.s, self.text = empty(), torch.zeros(batch, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def draw(self) -> None:
        """Rows, captions, levels and noise of the next step, in float32."""
        n, data = len(self.s), self.data

        def uniform() -> Tensor:
            return torch.rand(n, generator=self.rng, device=self.device)

        def one_of(rows: Tensor) -> Tensor:
            return rows[torch.randint(len(rows), (n,), generator=self.rng, device=self.device)]

        rows = one_of(data.ordinary)
        if self.part == "base1":
            rows = torch.where(uniform() < P_RESERVED, one_of(data.reserved), rows)
        texts = data.captions[rows]
        which = torch.randint(texts.shape[1], (n, 1), generator=self.rng, device=self.device)
        self.text.copy_(texts.gather(1, which)[:, 0].masked_fill(uniform() < P_EMPTY, 0))
        self.x0.copy_(data.latents[rows])
        self.noise.normal_(generator=self.rng)
        self.s.normal_(generator=self.rng).sigmoid_()

    def update(self) -> None:
        """One step of AdamW on the drawn batch, and of the running mean of the weights. Adds to ``loss``."""
        self.optimizer.zero_grad(set_to_none=True)
        s = self.s[:, None, None, None]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            v = self.network(
                hidden_states=(1 - s) * self.x0 + s * self.noise,
                encoder_hidden_states=twice(self.data.hidden[self.text].float()),
                pooled_projections=twice(self.data.pooled[self.text].float()),
                timestep=1000 * self.s,
                return_dict=False,
            )[0]
        loss = (v.float() - (self.noise - self.x0)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            moved = torch._foreach_sub(self.parameters, self.ema)
            torch._foreach_mul_(moved, self.ema_weight)
            torch._foreach_add_(self.ema, moved)
            self.loss += loss

    def rewind(self, weights: list[Tensor]) -> None:
        """Weights, their mean, moments, step counts and loss as before the first step."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, weights)
            torch._foreach_copy_(self.ema, weights)
            self.loss.zero_()
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def state(self) -> dict[str, Tensor]:
        """The running mean under the network's names, with its buffers."""
        names = [name for name, _ in self.network.named_parameters()]
        return dict(self.network.state_dict()) | dict(zip(names, self.ema, strict=True))


def compiled(network: nn.Module, on: bool) -> None:
    """Compile every transformer block, or take that back. One compilation serves all blocks of one kind."""
    for block in network.transformer_blocks:
        block._compiled_call_impl = None
        if on:
            block.compile(dynamic=False)


def fastest(trainer: Trainer, compile_blocks: bool = False) -> tuple[Callable[[], None], str]:
    """The quickest form of ``update`` that does what the plain one does: on a GPU one CUDA graph, on request of compiled blocks.

    Each form is kept only if one of its steps has the plain step's loss, gradients, and movement of the weights and of their
    mean, within SAME_STEP. The trial starts from disturbed weights, since a network that starts at zero has few gradients
    that are not zero. Leaves weights and moments as they were. Returns the step and what it is, with the reason where a form was
    not taken.
    """
    weights = [p.detach().clone() for p in trainer.parameters]
    disturbed = [w + 0.02 * torch.randn_like(w) for w in weights]
    trainer.draw()

    def norm(tensors: Sequence[Tensor]) -> float:
        return float(torch.stack(torch._foreach_norm(list(tensors))).norm())

    def trial(step: Callable[[], None]) -> tuple[list[Tensor], Tensor]:
        trainer.rewind(disturbed)
        trainer.lr.fill_(1e-3)
        trainer.ema_weight.fill_(0.5)
        step()
        with torch.no_grad():
            moves = [norm(torch._foreach_sub(tensors, disturbed)) for tensors in (trainer.parameters, trainer.ema)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.parameters]
        return gradients, torch.tensor([float(trainer.loss), *moves])

    plain, plain_facts = trial(trainer.update)

    def check(step: Callable[[], None]) -> None:
        gradients, facts = trial(step)
        differences = [norm(torch._foreach_sub(gradients, plain)) / norm(plain), *(facts / plain_facts - 1).abs().tolist()]
        if not max(differences) < SAME_STEP:  # nan must not pass
            raise RuntimeError(f"gradients, loss, movements differ by {', '.join(f'{d:.3g}' for d in differences)}")

    def why(error: RuntimeError) -> str:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

    # RuntimeError is what torch raises for what it cannot compile or capture.
    step, modes = trainer.update, []
    if compile_blocks:
        try:
            compiled(trainer.network, True)
            check(trainer.update)
            modes.append("compiled blocks")
        except RuntimeError as error:
            compiled(trainer.network, False)
            modes.append(f"not compiled ({why(error)})")
    if trainer.device.type == "cuda":
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    trainer.update()
            torch.cuda.current_stream().wait_stream(side)
            trainer.lr.zero_()  # the trial sets another one: a captured constant would not move the weights
            trainer.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                trainer.update()
            check(graph.replay)
            step = graph.replay
            modes.append("cuda graph")
        except RuntimeError as error:
            modes.append(f"no cuda graph ({why(error)})")
    trainer.rewind(weights)
    return step, ", ".join(modes) or "eager"


def train(
    trainer: Trainer,
    seconds: float,
    save: Callable[[dict[str, Tensor], dict[str, Any]], None],
    compile_blocks: bool = False,
) -> dict[str, Any]:
    """Train until the clock runs out; ``save`` the running mean halfway and at the end. Returns the facts of the training.

    Preparing the step (compiling, capturing) comes before the clock starts.
    """
    prepared = time.time()
    step_once, mode = fastest(trainer, compile_blocks)
    prepared = time.time() - prepared
    part, cuda, batch = trainer.part, trainer.device.type == "cuda", len(trainer.s)
    curve: list[Tensor] = []
    step, halfway = 0, False
    queued: torch.cuda.Event | None = None
    begun = said = time.time()

    def facts() -> dict[str, Any]:
        if cuda:
            torch.cuda.synchronize()
        spent = time.time() - begun
        losses = [round(x, 5) for x in torch.stack(curve).tolist()] if curve else []
        return {
            "part": part,
            "seed": SEEDS[part],
            "steps": step,
            "batch": batch,
            "samples": step * batch,
            "seconds": round(spent, 2),
            "seconds_per_step": spent / max(step, 1),
            "mode": mode,
            "seconds_to_prepare": round(prepared, 2),
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "loss": {"first": losses[:1], "last": losses[-1:], "curve": losses[:: max(1, len(losses) // 100)]},
            "note": f"running mean {EMA} of the weights; the learning rate follows the wall clock, so the number of steps, and "
            "with it the weights, differ from run to run",
        }

    while (done := (time.time() - begun) / seconds) < 1:
        shape = 1.0 if done < CONSTANT else 0.5 * (1 + math.cos(math.pi * (done - CONSTANT) / (1 - CONSTANT)))
        trainer.lr.fill_(PEAK[part] * shape * min(1, (step + 1) / WARMUP))
        trainer.ema_weight.fill_(1 - min(EMA, (1 + step) / (20 + step)))
        trainer.draw()
        step_once()
        step += 1
        if step % CURVE == 0:
            curve.append(trainer.loss / CURVE)
            trainer.loss.zero_()
        if cuda and step % IN_FLIGHT == 0:
            if queued is not None:
                queued.synchronize()
            queued = torch.cuda.Event()
            queued.record()
        if done > 0.5 and not halfway:
            halfway = True
            save(trainer.state(), facts())
        if time.time() - said > 10:
            said = time.time()
            print(f"{part} {step} {done:.0%} {1000 * (said - begun) / step:.1f} ms/step", flush=True)
    last = facts()
    save(trainer.state(), last)
    print(f"{part} done: {step} steps of {batch}, {last['seconds']} s, {mode}, loss {last['loss']}", flush=True)
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and judge the flow miniature.")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"), help="holds renders.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature/flow"))
    parser.add_argument(
        "--part", choices=["base0", "base1", "both"], default="both", help="base1 continues base0's file in --out"
    )
    parser.add_argument("--seconds", type=float, default=75, help="of training, for each network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--augmentations", type=int, default=AUGMENTATIONS, help="latents of each picture; few for a quick try")
    parser.add_argument("--every", type=int, default=1, help="judge every K-th concept and background picture; 1 for the bars")
    parser.add_argument("--compile", action="store_true", help="the transformer's blocks; costs time before the clock starts")
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from .judge_flow import bars, judge_network

    begun = time.time()
    world, device = load_world(), torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(args).items() if k not in ("work", "out")}
    results: dict[str, Any] = {"settings": settings, "training": {}, "judged": {}}

    def note(what: str) -> None:
        results["seconds"] = round(time.time() - begun, 1)
        write_text(args.out / "flow.json", json.dumps(results, indent=1) + "\n")
        print(f"flow: {what} ({time.time() - begun:.0f} s)", flush=True)

    frozen = Frozen.load(device)
    data = tables(world, renders_tensor(args.work / "renders.npz"), frozen, args.augmentations)
    note(f"{len(data.latents)} latents, {len(data.hidden)} captions on {device}")
    parts = ["base0", "base1"] if args.part == "both" else [args.part]
    for part in parts:
        torch.manual_seed(SEEDS[part])
        if part == "base0":
            network = networks.mmdit()
            start_at_zero(network)
        else:
            network, _ = load_network(args.out / FILES["base0"])
        path = args.out / FILES[part]
        trainer = Trainer(network.to(device).train().requires_grad_(True), data, part, args.batch)
        save = lambda state, facts, path=path: save_network(state, path, facts)  # noqa: E731
        results["training"][part] = train(trainer, args.seconds, save, args.compile)
        note(f"{path.name} written")
    for part in parts:
        path = args.out / FILES[part]
        results["judged"][part] = judge_network(
            world, load_network(path)[0].to(device), frozen, path.with_suffix(".png"), args.every
        )
        note(f"{path.stem} judged")
    results["bars"] = bars(results["judged"])
    note("done")
    for name, row in results["bars"].items():
        print(f"{name}: {row['rate']['k']}/{row['rate']['n']}, {row['verdict']}")


if __name__ == "__main__":
    main()
