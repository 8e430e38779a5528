"""Stage ``vae``: a fully convolutional f = 4 autoencoder on random crops, then on whole images."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from efface.models.icon_world import IconWorld

from . import networks
from .data import background_tensor, compose, draw_backgrounds, renders_tensor

SEED = 11


def gradient_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean() + (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()


def train(world: IconWorld, work: Path, minutes: float) -> None:
    rng, gen = random.Random(SEED), torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    renders = renders_tensor(work / "renders.npz").flatten(0, 1)
    vae = networks.vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        whole = done > 0.85
        n = 12 if whole else 24
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + torch.cos(torch.tensor(done * 3.1416)).item()) + 1e-5
        x = compose(
            renders[torch.randint(len(renders), (n,), generator=gen)],
            background_tensor(draw_backgrounds(world, n, rng)),
            gen,
        )
        if not whole:
            i, j = (int(torch.randint(17, (1,), generator=gen)) for _ in range(2))
            x = x[..., i : i + 32, j : j + 32]
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample(gen)).sample
        loss = (
            (out - x).abs().mean()
            + (out - x).square().mean()
            + gradient_l1(out, x)
            + 1e-3 * posterior.kl().mean() / x[0].numel() * 12
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"vae {step} {done:.0%} loss {loss.item():.4f} mse {F.mse_loss(out, x).item():.4f}", flush=True)
    vae.eval()
    with torch.no_grad():
        x = compose(renders[::3], background_tensor(draw_backgrounds(world, len(renders[::3]), rng)), gen)
        z = vae.encode(x).latent_dist.mean
        vae.register_to_config(scaling_factor=float(1 / z.std()))
        mse = F.mse_loss(vae.decode(z).sample, x)
    print(f"vae done: {step} steps, whole-image mse {mse:.5f}, channel std {z.std(dim=(0, 2, 3)).tolist()}")
    vae.save_pretrained(work / "vae")
