"""The training loop of networks whose text encoder and VAE are frozen: everything that a step reads is computed beforehand.

Captions are drawn and encoded once, pictures composed and encoded once, and both lie where the network lies; a step on a GPU is
one CUDA graph. What is learned (noise, velocity) is a subclass of :class:`Trainer`. The learning rate follows the clock and
reaches zero at its end, so two runs on one machine draw the same numbers but do not take the same number of steps.
"""

from __future__ import annotations

import abc
import math
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from efface.models.icon_world import IconWorld

from .data import caption
from .train_unet import P_EMPTY, P_RESERVED, SEEDS, splits

CAPTIONS = 16
"""Captions drawn beforehand for each latent. The text encoder is frozen, so each distinct one is encoded once."""
P_STYLE = 0.85
WARMUP, CONSTANT = 500, 0.4
EMA = 0.999
IN_FLIGHT = 20
"""Steps that may be queued on the device before the host waits: the clock that sets the learning rate must be the device's."""
CURVE = 10
"""Steps averaged into one point of the loss curve."""
SAME_STEP = 0.1
"""Largest relative difference between a compiled or captured step and an eager one: far above the rounding of bfloat16 and of a
nondeterministic backward pass, far below a step that lost a term."""
LONGEST_STEP = 30.0
"""Seconds that one step may count: a process that was stopped and goes on keeps its schedule."""
SAVE_EVERY = 240.0


@dataclass(frozen=True)
class Part:
    """One training: its seed, its peak learning rate, and how often it sees what only it may see."""

    name: str
    seed: int
    peak: float
    p_reserved: float = 0.0
    constant: float = CONSTANT
    """Share of the time before the learning rate begins to fall; 1 for weights that others go on from."""


PARTS = {
    "base0": Part("base0", SEEDS["base0"], 1e-3),
    "base1": Part("base1", SEEDS["base1"], 6e-4, P_RESERVED),  # goes on from trained weights, as the miniature's UNet does
}


class Frozen(Protocol):
    """What is not trained: ``encode`` gives (B, tokens, width) and pooled (B, width) of prompts."""

    device: torch.device

    def encode(self, prompts: Sequence[str], batch: int = 2048) -> tuple[Tensor, Tensor]: ...


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
def tables(world: IconWorld, latents: Tensor, backgrounds: Tensor, frozen: Frozen) -> Tables:
    """What ``latent_table`` gave, and the encoded captions of every picture that is trained on."""
    n_styles, augmentations = latents.shape[1:3]
    ordinary, reserved = splits(world)
    texts, drawn = drawn_captions(world, backgrounds, CAPTIONS, P_STYLE)
    hidden, pooled = frozen.encode(texts)
    return Tables(
        latents=latents.flatten(0, 2).to(frozen.device),
        captions=drawn.flatten(0, 2).to(frozen.device),
        hidden=hidden.half(),
        pooled=pooled.half(),
        ordinary=rows_of(ordinary, n_styles, augmentations).to(frozen.device),
        reserved=rows_of(reserved, n_styles, augmentations).to(frozen.device),
    )


def drawn_captions(world: IconWorld, backgrounds: Tensor, captions: int, p_style: float) -> tuple[list[str], Tensor]:
    """The distinct captions, the empty one first, and for every picture that is trained on the places of its own (concept, style,
    augmentation, captions)."""
    rng = random.Random(SEEDS["base0"] * 1_000_003)
    index: dict[str, int] = {"": 0}
    drawn = torch.zeros(*backgrounds.shape, captions, dtype=torch.int64)
    for i, j in (cell for cells in splits(world) for cell in cells):
        for k, background in enumerate(world.backgrounds[b] for b in backgrounds[i, j].tolist()):
            texts = [caption(world, world.concepts[i].name, world.styles[j], background, rng, p_style) for _ in range(captions)]
            drawn[i, j, k] = torch.tensor([index.setdefault(text, len(index)) for text in texts])
    return list(index), drawn


def rows_of(cells: list[tuple[int, int]], n_styles: int, augmentations: int) -> Tensor:
    """The rows of these (concept, style) cells in flattened tables."""
    return torch.tensor([(i * n_styles + j) * augmentations + k for i, j in cells for k in range(augmentations)])


class Trainer(abc.ABC):
    """Abstract. One network's training step: :meth:`draw` a batch into fixed tensors, then :meth:`update` from them.

    The update touches nothing but tensors that stay where they are, so that a CUDA graph can hold it.
    """

    def __init__(self, network: nn.Module, data: Tables, part: Part, batch: int) -> None:
        self.network, self.data, self.part = network, data, part
        self.device = data.latents.device
        self.rng = torch.Generator(self.device).manual_seed(part.seed)
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
        self.x0, self.noise = (torch.empty(batch, *data.latents.shape[1:], device=self.device) for _ in range(2))
        self.s = torch.empty(batch, device=self.device)
        self.text = torch.zeros(batch, dtype=torch.int64, device=self.device)

    @abc.abstractmethod
    def draw_levels(self) -> None:
        """Fill ``s`` (B,) from ``rng``."""

    @abc.abstractmethod
    def error(self, s: Tensor, text: Tensor) -> Tensor:
        """The loss of the drawn batch. s: (B, 1, 1, 1); text: (B,) rows of the encoded captions."""

    @torch.no_grad()
    def draw(self) -> None:
        """Rows, captions, levels and noise of the next step, in float32."""
        n, data = len(self.s), self.data

        def uniform() -> Tensor:
            return torch.rand(n, generator=self.rng, device=self.device)

        def one_of(rows: Tensor) -> Tensor:
            return rows[torch.randint(len(rows), (n,), generator=self.rng, device=self.device)]

        rows = one_of(data.ordinary)
        if self.part.p_reserved:
            rows = torch.where(uniform() < self.part.p_reserved, one_of(data.reserved), rows)
        texts = data.captions[rows]
        which = torch.randint(texts.shape[1], (n, 1), generator=self.rng, device=self.device)
        self.text.copy_(texts.gather(1, which)[:, 0].masked_fill(uniform() < P_EMPTY, 0))
        self.x0.copy_(data.latents[rows])
        self.noise.normal_(generator=self.rng)
        self.draw_levels()

    def update(self) -> None:
        """One step of AdamW on the drawn batch, and of the running mean of the weights. Adds to ``loss``."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.error(self.s[:, None, None, None], self.text)
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

    def store(self, path: Path, step: int, spent: float, losses: list[float]) -> None:
        """Everything that :meth:`restore` needs, in one file that is complete or absent."""
        state = {
            "step": step,
            "spent": spent,
            "losses": losses,
            "network": self.network.state_dict(),
            "ema": self.ema,
            "optimizer": [self.optimizer.state[p] for p in self.parameters],
            "rng": self.rng.get_state(),
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    @torch.no_grad()
    def restore(self, path: Path) -> tuple[int, float, list[float]]:
        """Step, seconds and losses so far. Copies into the tensors that a captured step reads."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.network.load_state_dict(state["network"])
        torch._foreach_copy_(self.ema, state["ema"])
        for p, kept in zip(self.parameters, state["optimizer"], strict=True):
            for name, value in kept.items():
                self.optimizer.state[p][name].copy_(value)
        self.rng.set_state(state["rng"].cpu())
        return state["step"], state["spent"], state["losses"]

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
    checkpoint: Path | None = None,
    until: float | None = None,
) -> dict[str, Any]:
    """Train until the clock runs out; ``save`` the running mean halfway and at the end. Returns the facts of the training.

    Preparing the step (compiling, capturing) comes before the clock starts. ``until`` is the time of day at which to end, in
    place of ``seconds``, where several trainings must end together. With a ``checkpoint``, the state is stored there every few
    minutes, with the running mean saved too, and a file found there is continued.
    """
    prepared = time.time()
    step_once, mode = fastest(trainer, compile_blocks)
    prepared = time.time() - prepared
    part, cuda, batch = trainer.part, trainer.device.type == "cuda", len(trainer.s)
    curve: list[Tensor] = []
    step, spent, halfway = 0, 0.0, False
    if checkpoint is not None and checkpoint.exists():
        step, spent, losses = trainer.restore(checkpoint)
        curve, halfway = [torch.tensor(x, device=trainer.device) for x in losses], spent > seconds / 2
        print(f"{part.name} goes on from step {step}", flush=True)
    if until is not None:
        seconds = spent + max(until - time.time(), 1.0)
    queued: torch.cuda.Event | None = None
    last = said = stored = time.time()
    begun_at = spent, step

    def facts() -> dict[str, Any]:
        if cuda:
            torch.cuda.synchronize()
        losses = [round(x, 5) for x in torch.stack(curve).tolist()] if curve else []
        return {
            "part": part.name,
            "seed": part.seed,
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

    while (done := spent / seconds) < 1:
        shape = 1.0 if done < part.constant else 0.5 * (1 + math.cos(math.pi * (done - part.constant) / (1 - part.constant)))
        trainer.lr.fill_(part.peak * shape * min(1, (step + 1) / WARMUP))
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
        now = time.time()
        spent, last = spent + min(now - last, LONGEST_STEP), now
        if done > 0.5 and not halfway:
            halfway = True
            save(trainer.state(), facts())
        if checkpoint is not None and now - stored > SAVE_EVERY:
            trainer.store(checkpoint, step, spent, [float(x) for x in curve])
            save(trainer.state(), facts())
            stored = time.time()
        if now - said > 10:
            said = now
            recent = f" loss {float(torch.stack(curve[-10:]).mean()):.4f}" if curve else ""
            pace = 1000 * (spent - begun_at[0]) / (step - begun_at[1])
            print(f"{part.name} {step} {done:.0%} {pace:.1f} ms/step{recent}", flush=True)
    if checkpoint is not None:
        trainer.store(checkpoint, step, spent, [float(x) for x in curve])
    final = facts()
    save(trainer.state(), final)
    print(f"{part.name} done: {step} steps of {batch}, {final['seconds']} s, {mode}, loss {final['loss']['last']}", flush=True)
    return final
