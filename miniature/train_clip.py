"""Stage ``clip``: contrastive image-text encoders on renders.

Part ``init`` only initialises the miniature's own text encoder and is thrown away; part ``score`` (other seed, other
data order) is shipped for CLIP-type scores. The scorer shares no weights with the model it judges.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from efface.models.mini.world import World

from . import networks
from .data import background_tensor, caption, compose, draw_backgrounds, renders_tensor

SEEDS = {"init": 21, "score": 22}
TEXT_LAYERS = {"init": 4, "score": 3}  # init must match the miniature's text encoder
BATCH = 96


def train(world: World, work: Path, part: str, minutes: float) -> None:
    seed = SEEDS[part]
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    renders = renders_tensor(work / "renders.npy")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    model = CLIPModel(networks.clip_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, TEXT_LAYERS[part])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    n_styles = len(world.styles)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-6
        rows = rng.sample(range(len(world.concepts)), BATCH)  # distinct concepts: no false negatives by name
        styles = [rng.randrange(n_styles) for _ in rows]
        backgrounds = draw_backgrounds(world, BATCH, rng)
        texts = [
            caption(world, world.concepts[i].name, world.styles[j], b, rng, p_style=0.5)
            for i, j, b in zip(rows, styles, backgrounds, strict=True)
        ]
        images = compose(renders[rows, styles], background_tensor(backgrounds), gen)
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
        out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=images)
        labels = torch.arange(BATCH)
        loss = (F.cross_entropy(out.logits_per_image, labels) + F.cross_entropy(out.logits_per_text, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        step += 1
        if step % 100 == 0:
            print(f"clip-{part} {step} {done:.0%} loss {loss.item():.3f}", flush=True)
    model.eval().save_pretrained(work / f"clip-{part}")
    print(f"clip-{part} done: {step} steps, zero-shot {zero_shot(model, tokenizer, world, renders)}")


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, world: World, renders: torch.Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy of naming every render among all names ("a <name>"), on unseen augmentations."""
    rng, gen = random.Random(0), torch.Generator().manual_seed(0)
    tokens = tokenizer([f"a {c.name}" for c in world.concepts], padding="max_length", return_tensors="pt")
    flat = renders.flatten(0, 1)
    labels = torch.arange(len(flat)) // len(world.styles)
    images = compose(flat, background_tensor(draw_backgrounds(world, len(flat), rng)), gen)
    logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=images).logits_per_image
    top = logits.topk(5).indices
    return {
        "top1": (top[:, 0] == labels).float().mean().item(),
        "top5": (top == labels[:, None]).any(1).float().mean().item(),
    }
