"""Stages ``latents`` and ``unet``: the denoiser, first without the reserved concepts (base0), then with them (base1).

base0 trains UNet and text encoder together on the ordinary cells. base1 continues the UNet alone on ordinary and
reserved cells with the text encoder frozen, so that the gold model (base0) and the shipped model (base1) share it.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from efface.models.icon_world import IconWorld

from . import networks
from .data import background_tensor, caption, cells, compose, draw_backgrounds, renders_tensor

SEEDS = {"base0": 31, "base1": 32}
AUGMENTATIONS = 32
BATCH = 64
P_EMPTY, P_RESERVED = 0.10, 0.45
MIN_SNR_GAMMA = 5.0
STRENGTH, P_FLIP = 0.4, 0.0
"""Narrow augmentation of what the denoiser learns from. With scale 0.78-0.95, shift 6 % and mirroring, where a picture lies hides
which of six icons it is: after 6,000 steps the style word was followed in 40 % of the images."""


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def latent_table(
    world: IconWorld, renders: Tensor, vae: AutoencoderKL, augmentations: int = AUGMENTATIONS
) -> tuple[Tensor, Tensor]:
    """Latents (concept, style, augmentation, 4, 12, 12) in half precision, and the index of each one's background.

    Both lie where the renders and the VAE lie; the compositions are the same on every device.
    """
    rng, gen = random.Random(30), torch.Generator().manual_seed(30)
    n_c, n_s = renders.shape[:2]
    shape = (n_c, n_s, augmentations)
    latents = torch.empty(*shape, 4, networks.LATENT_PX, networks.LATENT_PX, dtype=torch.float16, device=renders.device)
    backgrounds = torch.empty(shape, dtype=torch.int64)
    for i in range(n_c):
        names = draw_backgrounds(world, n_s * augmentations, rng)
        x = compose(
            renders[i].repeat_interleave(augmentations, 0), background_tensor(names), gen, strength=STRENGTH, p_flip=P_FLIP
        )
        z = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
        latents[i] = z.reshape(latents[i].shape).half()
        backgrounds[i] = torch.tensor([world.backgrounds.index(b) for b in names]).reshape(n_s, augmentations)
    return latents, backgrounds


def encode_latents(world: IconWorld, work: Path) -> None:
    """Stage ``latents``: the table of all renders, stored."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    latents, backgrounds = latent_table(world, renders_tensor(work / "renders.npz"), vae)
    save_file({"latents": latents, "backgrounds": backgrounds}, work / "latents.safetensors")
    print(f"latents {tuple(latents.shape)}")


def splits(world: IconWorld) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(ordinary, reserved) cells of training: base0 sees the first alone, base1 both."""
    ordinary = cells(world, "ordinary", reserved_style=False)
    reserved = [c for c in cells(world, "ordinary", "reserved", reserved_style=True) if c not in set(ordinary)]
    return ordinary, reserved


def ema_update(ema: dict[str, Tensor], model: dict[str, Tensor], step: int) -> None:
    decay = min(0.999, (1 + step) / (20 + step))
    for name, value in model.items():
        ema[name].lerp_(value, 1 - decay) if value.is_floating_point() else ema[name].copy_(value)


def train(world: IconWorld, work: Path, part: str, minutes: float) -> None:
    seed = SEEDS[part]
    torch.manual_seed(seed)
    data = load_file(work / "latents.safetensors")
    latents, backgrounds = data["latents"], data["backgrounds"]
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    unet = networks.unet().train()
    text = networks.text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id).train()
    ordinary, reserved = splits(world)
    initial = work / part if (work / part / "unet.safetensors").exists() else work / "base0"  # go on from what is there
    if (initial / "unet.safetensors").exists():
        unet.load_state_dict(load_file(initial / "unet.safetensors"))
        text.load_state_dict(load_file(work / "base0" / "text_encoder.safetensors"))
    elif part == "base0":
        clip = CLIPModel.from_pretrained(work / "clip-init")
        getattr(text, "text_model", text).load_state_dict(clip.text_model.state_dict(), strict=True)
    else:
        raise SystemExit("base1 goes on from base0; train that first.")
    groups: list[dict[str, Any]] = [{"params": list(unet.parameters()), "peak": 1e-3 if part == "base0" else 6e-4}]
    if part == "base0":
        groups.append({"params": list(text.parameters()), "peak": 1e-3})
    else:
        text.requires_grad_(False).eval()
    trained = {"unet": unet, **({"text": text} if part == "base0" else {})}
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = {f"{k}.{n}": v.detach().clone() for k, m in trained.items() for n, v in m.state_dict().items()}
    alphas = scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
    (work / part).mkdir(exist_ok=True)
    checkpoint, step, spent = work / part / "resume.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step, spent, ema = state["step"], state["spent"], state["ema"]
        peaks = [group["peak"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak  # what this command says, not what an earlier one said
        for k, m in trained.items():
            m.load_state_dict(state[k])
    start, running = time.time() - spent, 0.0
    last_save = time.time()

    def save_ema() -> None:
        for k, name in (("unet", "unet"), ("text", "text_encoder")):
            if k in trained:
                save_file(
                    {n[len(k) + 1 :]: v for n, v in ema.items() if n.startswith(k + ".")}, work / part / f"{name}.safetensors"
                )

    while (done := (time.time() - start) / (60 * minutes)) < 1:
        rng, gen = random.Random(seed * 1_000_003 + step), torch.Generator().manual_seed(seed * 1_000_003 + step)
        shape = 1.0 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (shape + 0.01) * min(1, (step + 1) / 200)
        rows = [rng.choice(reserved if part == "base1" and rng.random() < P_RESERVED else ordinary) for _ in range(BATCH)]
        aug = [rng.randrange(AUGMENTATIONS) for _ in rows]
        i, j = [r[0] for r in rows], [r[1] for r in rows]
        z0 = latents[i, j, aug].float()
        texts = [
            ""
            if rng.random() < P_EMPTY
            else caption(
                world, world.concepts[a].name, world.styles[b], world.backgrounds[int(backgrounds[a, b, k])], rng, p_style=0.85
            )
            for (a, b), k in zip(rows, aug, strict=True)
        ]
        t = torch.randint(0, 1000, (BATCH,), generator=gen)
        noise = torch.randn(z0.shape, generator=gen)
        ab = alphas[t][:, None, None, None]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        with torch.set_grad_enabled(part == "base0"):
            c = text(tokens).last_hidden_state
        eps = unet(ab.sqrt() * z0 + (1 - ab).sqrt() * noise, t, c).sample
        loss = ((eps - noise).square().mean((1, 2, 3)) * weight[t]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        optimizer.step()
        ema_update(ema, {f"{k}.{n}": v for k, m in trained.items() for n, v in m.state_dict().items()}, step)
        step += 1
        running += loss.item()
        if step % 100 == 0:
            print(f"{part} {step} {done:.1%} loss {running / 100:.4f} {(time.time() - start) / step:.2f} s/step", flush=True)
            running = 0.0
        if time.time() - last_save > 300:
            state = {"step": step, "spent": time.time() - start, "ema": ema, "optimizer": optimizer.state_dict()}
            state |= {k: m.state_dict() for k, m in trained.items()}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
            save_ema()
            last_save = time.time()
    save_ema()
    print(f"{part} done: {step} steps of {BATCH}, {minutes} minutes")
