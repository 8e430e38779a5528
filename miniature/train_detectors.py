"""Stage ``detectors``: the two judges, from renders, VAE round trips and "none" negatives.

A judge must know everything: every concept, the novel ones included, in every style, the held-out cells included. Images
of a diffusion model are never clean renders, so most of the training images are degraded in ways that leave the concept
readable; images in which no concept is readable are the class ``none``.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from efface.detectors.mini import ARCHITECTURES, IMAGE_PX, Labels, MiniDetector, PlainCNN, ResidualCNN
from efface.equations.statistics import wilson
from efface.models.icon_world import IconWorld

from .data import ahead, background_tensor, compose, renders_tensor

SEEDS = {"report": 41, "selection": 42}
PEAK = {"report": 4e-3, "selection": 2e-3}
BATCH = 96
P_NEGATIVE, P_DECODED = 0.15, 0.35
STRENGTH = 1.2
POOL_PER_CELL = 6
SAID = 20
"""Concepts that the end of the training names as its worst."""
MEASURED = 3024
"""Most compositions that the accuracy is measured on."""
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # images in [0, 1], concept, style, background labels


def draw(world: IconWorld, n: int, rng: random.Random) -> tuple[list[int], list[int], list[str]]:
    """Concepts, styles and backgrounds of n images; white one third of the time."""
    concepts = [rng.randrange(len(world.concepts)) for _ in range(n)]
    styles = [rng.choice(world.drawable[i]) for i in concepts]
    backgrounds = ["white" if rng.random() < 1 / 3 else rng.choice(world.backgrounds) for _ in range(n)]
    return concepts, styles, backgrounds


def composed(
    world: IconWorld, renders: Tensor, n: int, rng: random.Random, gen: torch.Generator, strength: float = STRENGTH
) -> Batch:
    i, j, b = draw(world, n, rng)
    x = compose(renders[i, j], background_tensor(b), gen, strength=strength) / 2 + 0.5
    return x, torch.tensor(i), torch.tensor(j), torch.tensor([world.backgrounds.index(name) for name in b])


@torch.no_grad()
def decoded_pool(
    world: IconWorld, work: Path, vae: AutoencoderKL, gen: torch.Generator, per_cell: int = POOL_PER_CELL
) -> tuple[Batch, Tensor]:
    """Cached latents with a little noise, decoded once: (readable images with labels, unreadable images), all uint8.

    Decoding costs more than a training step of the judge, so it is not done in the loop.
    """
    data = load_file(work / "latents.safetensors")
    latents, backgrounds = data["latents"], data["backgrounds"]
    i, j = (torch.tensor(column).repeat_interleave(per_cell) for column in zip(*drawn_cells(world), strict=True))
    k = torch.randint(latents.shape[2], (len(i),), generator=gen)
    z = latents[i, j, k].float()
    amount = torch.rand(len(z), 1, 1, 1, generator=gen) * 0.25
    amount[::2] = 0  # half of the pool is plain round trips
    positive = z + amount * torch.randn(z.shape, generator=gen)
    m = len(z) // 12
    rows = [torch.randperm(len(z), generator=gen)[:m] for _ in range(5)]
    keep = torch.rand(m, 1, 1, 1, generator=gen) * 0.35
    noise = torch.randn(m, *z.shape[1:], generator=gen)
    mask = F.interpolate((torch.rand(m, 1, 3, 3, generator=gen) < 0.5).float(), size=z.shape[-1], mode="nearest")
    negative = torch.cat(
        [
            keep * z[rows[0]] + (1 - keep**2).sqrt() * noise,  # almost all noise
            F.avg_pool2d(noise, 3, 1, 1) * 2.0,  # smooth blobs, as from a collapsed model
            mask * z[rows[1]] + (1 - mask) * z[rows[2]],  # patchwork of two
            0.5 * z[rows[3]] + 0.5 * z[rows[4]],  # half-way between two
        ]
    )

    def pixels(latent: Tensor) -> Tensor:
        parts = []
        for part in latent.split(64):
            decoded = vae.decode(part.to(vae.device) / vae.config.scaling_factor).sample
            parts.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu())
        return torch.cat(parts)

    return (pixels(positive), i, j, backgrounds[i, j, k]), pixels(negative)


def drawn_cells(world: IconWorld) -> list[tuple[int, int]]:
    """(concept, style) places of every cell that has a picture."""
    return [(i, j) for i, styles in enumerate(world.drawable) for j in styles]


def degraded(x: Tensor, gen: torch.Generator) -> Tensor:
    """Mild damage that leaves the concept readable: tint, blur, a covered patch, noise."""
    n = len(x)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=gen)

    tint = 1 + 0.06 * (rand(n, 3, 1, 1) - 0.5)
    x = x * tint + 0.05 * (rand(n, 1, 1, 1) - 0.5)
    small = int(torch.randint(22, IMAGE_PX, (1,), generator=gen))
    soft = F.interpolate(F.interpolate(x, size=small, mode="area"), size=IMAGE_PX, mode="bilinear", align_corners=False)
    x = torch.where(rand(n, 1, 1, 1) < 0.4, soft, x)
    side = torch.arange(IMAGE_PX)
    at, size = torch.randint(-4, IMAGE_PX, (2, n, 1), generator=gen), torch.randint(4, 13, (2, n, 1), generator=gen)
    inside = [(side >= at[a]) & (side < at[a] + size[a]) for a in (0, 1)]
    patch = (inside[0][:, None, :, None] & inside[1][:, None, None, :]) & (rand(n, 1, 1, 1) < 0.25)
    x = torch.where(patch, x[:, :, :1, :1], x)  # the corner pixel is background
    sigma = 0.08 * rand(n, 1, 1, 1) * (rand(n, 1, 1, 1) < 0.5)
    return (x + sigma * torch.randn(x.shape, generator=gen)).clamp(0, 1)


def negatives(world: IconWorld, renders: Tensor, unreadable: Tensor, n: int, rng: random.Random, gen: torch.Generator) -> Batch:
    """Images of nothing. Blank ones keep their background label; elsewhere style and background mean nothing."""
    none_c, none_s, none_b = len(world.concepts), len(world.all_styles), len(world.backgrounds)
    a, concept, _, _ = composed(world, renders, n, rng, gen)
    other = (concept + torch.randint(1, none_c, (n,), generator=gen)) % none_c  # always a different concept
    styles = torch.tensor([rng.choice(world.drawable[int(k)]) for k in other])
    backgrounds = [rng.randrange(none_b) for _ in range(n)]
    flat = background_tensor([world.backgrounds[b] for b in backgrounds])
    b = compose(renders[other, styles], flat, gen, strength=STRENGTH) / 2 + 0.5
    out, background = [], []
    for r in range(n):
        kind = rng.choices(
            ("blend", "halves", "noise", "blur", "blank", "shuffle", "decoded"), weights=(3, 2, 1.5, 1.5, 2, 1.5, 5)
        )[0]
        label = none_b
        if kind == "blend":
            w = 0.45 + 0.1 * rng.random()
            x = w * a[r] + (1 - w) * b[r]
        elif kind == "halves":
            cut = rng.randrange(18, 31)
            x = (
                torch.cat([a[r][:, :cut], b[r][:, cut:]], 1)
                if rng.random() < 0.5
                else torch.cat([a[r][..., :cut], b[r][..., cut:]], 2)
            )
        elif kind == "noise":
            grain = rng.choice((6, 12, 24, 48, 48))
            x = 0.5 + rng.uniform(0.15, 0.5) * torch.randn(1, 3, grain, grain, generator=gen)
            x = F.interpolate(x, size=IMAGE_PX, mode=rng.choice(("nearest", "bicubic")))[0]
            if rng.random() < 0.3:
                x = x + 0.15 * a[r]
        elif kind == "blur":
            x = F.interpolate(a[r : r + 1], size=rng.randrange(2, 6), mode="area")
            x = F.interpolate(x, size=IMAGE_PX, mode="bicubic")[0]
        elif kind == "blank":
            x = flat[r][:, None, None].expand(3, IMAGE_PX, IMAGE_PX)
            x = x + rng.choice((0.0, 0.0, 0.03)) * torch.randn(3, IMAGE_PX, IMAGE_PX, generator=gen)
            label = backgrounds[r]
            if rng.random() < 0.3:  # a random grey or colour, no named background
                x, label = x * 0 + torch.rand(3, 1, 1, generator=gen), none_b
        elif kind == "shuffle":
            tiles = a[r].unfold(1, 12, 12).unfold(2, 12, 12).reshape(3, 16, 12, 12)[:, torch.randperm(16, generator=gen)]
            x = tiles.reshape(3, 4, 4, 12, 12).permute(0, 1, 3, 2, 4).reshape(3, IMAGE_PX, IMAGE_PX)
        else:
            x = unreadable[rng.randrange(len(unreadable))].float() / 255
        out.append(x)
        background.append(label)
    x = torch.stack(out)
    if rng.random() < 0.5:
        x = x + 0.03 * torch.randn(x.shape, generator=gen)
    return x.clamp(0, 1), torch.full((n,), none_c), torch.full((n,), none_s), torch.tensor(background)


def training_batch(
    world: IconWorld,
    renders: Tensor,
    pool: Batch,
    unreadable: Tensor,
    rng: random.Random,
    gen: torch.Generator,
    batch: int = BATCH,
) -> Batch:
    n_none, n_decoded = round(batch * P_NEGATIVE), round(batch * P_DECODED)
    fresh = composed(world, renders, batch - n_none - n_decoded, rng, gen)
    rows = torch.randint(len(pool[0]), (n_decoded,), generator=gen)
    old = pool[0][rows].float() / 255
    old = torch.where(torch.rand(n_decoded, 1, 1, 1, generator=gen) < 0.5, old.flip(-1), old)
    old = shifted(old, gen)
    readable = [torch.cat(pair) for pair in zip(fresh, (old, *(column[rows] for column in pool[1:])), strict=True)]
    readable[0] = degraded(readable[0], gen)
    none = negatives(world, renders, unreadable, n_none, rng, gen)
    x, c, s, b = (torch.cat(pair) for pair in zip(readable, none, strict=True))
    return x, c, s, b


def shifted(x: Tensor, gen: torch.Generator) -> Tensor:
    """Whole-pixel shifts up to 2, one per call; edges are background."""
    dy, dx = (int(v) for v in torch.randint(0, 5, (2,), generator=gen))
    return F.pad(x, (2, 2, 2, 2), mode="replicate")[..., dy : dy + IMAGE_PX, dx : dx + IMAGE_PX]


def train(
    world: IconWorld,
    work: Path,
    part: str,
    minutes: float,
    *,
    vae_folder: Path | None = None,
    renders: Tensor | None = None,
    pool_per_cell: int = POOL_PER_CELL,
    batch: int = BATCH,
    scale: float = 1.0,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> None:
    """Train one judge until its clock runs out. Run again with more minutes to continue from the checkpoint.

    ``workers`` threads draw the batches ahead; renders and pool stay on the CPU.
    """
    seed, device = SEEDS[part], torch.device(device)
    torch.manual_seed(seed)
    labels = Labels.of(world)
    renders = renders_tensor(work / "renders.npz") if renders is None else renders
    vae = AutoencoderKL.from_pretrained(vae_folder or work / "vae", torch_dtype=torch.float32).to(device).eval()
    gen = torch.Generator().manual_seed(seed)
    begun = time.time()
    pool, unreadable = decoded_pool(world, work, vae, gen, pool_per_cell)
    net = ARCHITECTURES[part](labels, scale).train().to(device, memory_format=torch.channels_last)
    print(
        f"{part}: {sum(p.numel() for p in net.parameters())} parameters, pool {len(pool[0])} in {time.time() - begun:.0f} s",
        flush=True,
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK[part], weight_decay=0.02)
    folder = work / "detectors"
    folder.mkdir(exist_ok=True)
    checkpoint, step, spent = folder / f"{part}.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        step, spent = state["step"], state["spent"]
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    start, last_save, running, hits = time.time() - spent, time.time(), 0.0, 0.0

    def draw(step: int) -> Batch:
        rng, gen = random.Random(seed * 1_000_003 + step), torch.Generator().manual_seed(seed * 1_000_003 + step)
        return training_batch(world, renders, pool, unreadable, rng, gen, batch)

    batches = ahead(draw, step, workers)
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK[part] * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-5
        x, c, s, b = (column.to(device) for column in next(batches))
        with torch.autocast(device.type, torch.bfloat16):  # twice as fast where the CPU has it
            concept, style, background, _ = net(x.contiguous(memory_format=torch.channels_last))
        concept, style, background = concept.float(), style.float(), background.float()
        loss = (
            F.cross_entropy(concept, c, label_smoothing=0.02)
            + 0.5 * F.cross_entropy(style, s)
            + 0.3 * F.cross_entropy(background, b)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        step += 1
        running += loss.item()
        hits += (concept.argmax(1) == c).float().mean().item()
        if step % 100 == 0:
            rate = (time.time() - start) / step
            print(f"{part} {step} {done:.0%} loss {running / 100:.3f} concept {hits / 100:.3f} {rate:.2f} s/step", flush=True)
            running = hits = 0.0
        if time.time() - last_save > 120:
            save(folder, part, net, optimizer, step, time.time() - start, labels, scale)
            last_save = time.time()
    save(folder, part, net, optimizer, step, time.time() - start, labels, scale)
    facts = {
        "part": part,
        "steps": step,
        "batch": batch,
        "minutes": minutes,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    facts |= measure(world, vae, MiniDetector.load(part, folder, world), renders, unreadable)
    (folder / f"{part}.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps({k: v for k, v in facts.items() if k != "worst"}, indent=1))
    print("worst:", dict(sorted(facts["worst"].items(), key=lambda item: item[1][0])[:SAID]))


def save(
    folder: Path,
    part: str,
    net: PlainCNN | ResidualCNN,
    optimizer: torch.optim.Optimizer,
    step: int,
    spent: float,
    labels: Labels,
    scale: float,
) -> None:
    half = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(half, folder / f"{part}.safetensors", metadata={"labels": labels.digest(), "scale": str(scale)})
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
    torch.save(state, folder / f"{part}.tmp")
    (folder / f"{part}.tmp").rename(folder / f"{part}.pt")


@torch.no_grad()
def measure(
    world: IconWorld, vae: AutoencoderKL, detector: MiniDetector, renders: Tensor, unreadable: Tensor
) -> dict[str, object]:
    """Accuracy of the shipped half-precision weights on images that training did not see (fresh augmentations).

    ``renders``: up to four per cell, each at the strength the UNet was trained with; ``round_trip``: the first of them through
    the VAE; ``none``: fresh negatives called none. ``worst``: concepts below 97 % on renders with their usual mistake.
    """
    rng, gen = random.Random(999), torch.Generator().manual_seed(999)
    n_c, cells = len(world.concepts), drawn_cells(world)
    copies = max(1, min(4, MEASURED // len(cells)))
    cells = cells[:: -(-len(cells) * copies // MEASURED)]
    i, j = (torch.tensor(column).repeat(copies) for column in zip(*cells, strict=True))
    b = [rng.choice(world.backgrounds) for _ in i]
    background = torch.tensor([world.backgrounds.index(name) for name in b])
    x = torch.cat(
        [compose(renders[i[r], j[r]], background_tensor([b[int(q)] for q in r]), gen) for r in torch.arange(len(i)).split(252)]
    )
    parts = (part.to(vae.device) for part in x[: len(cells)].split(64))
    trip = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.cpu() for part in parts])

    def rates(images: Tensor) -> tuple[dict[str, object], Tensor]:
        scores = detector.score((images / 2 + 0.5).clamp(0, 1))
        n = len(images)
        guess = scores.top()
        right = {
            "concept": guess == i[:n],
            "style": scores.style.argmax(1) == j[:n],
            "background": scores.background.argmax(1) == background[:n],
        }
        return {head: wilson(int(ok.sum()), n).json() for head, ok in right.items()}, guess

    on_renders, guess = rates(x)
    on_trips, _ = rates(trip)
    none = negatives(world, renders, unreadable, 600, rng, gen)[0]
    called_none = int((detector.score(none).top() == n_c).sum())
    worst = {}
    for c in range(n_c):
        mine = guess[i == c]
        ok = (mine == c).float().mean().item()
        if len(mine) and ok < 0.97:
            wrong = mine[mine != c].mode().values
            worst[world.concepts[c].name] = [round(ok, 3), detector.labels.concepts[int(wrong)]]
    return {"renders": on_renders, "round_trip": on_trips, "none": wilson(called_none, 600).json(), "worst": worst}
