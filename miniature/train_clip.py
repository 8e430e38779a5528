"""Stage ``clip``: contrastive image-text encoders on renders.

Part ``init`` only initialises the miniature's own text encoder and is thrown away; part ``score`` (other seed, other
data order) is shipped for CLIP-type scores. The scorer shares no weights with the model it judges.
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from efface.models.mini.world import IconWorld

from . import networks
from .data import article, background_tensor, caption, compose, draw_backgrounds, renders_tensor

BATCH = 96


@dataclass(frozen=True)
class Recipe:
    seed: int
    text_layers: int
    """``init`` must match the miniature's text encoder."""
    lr: float
    warmup: int
    p_style: float
    weight_decay: float
    p_bare: float
    """Share of captions that are just "a <name>". Without them the batch is mostly told apart by its backgrounds."""


RECIPES = {
    "init": Recipe(seed=21, text_layers=4, lr=1e-3, warmup=100, p_style=0.5, weight_decay=0.05, p_bare=0.0),
    # A scorer is asked for names first, so its captions name the style less often.
    "score": Recipe(seed=22, text_layers=3, lr=2e-3, warmup=150, p_style=0.3, weight_decay=0.02, p_bare=0.5),
}


def train(world: IconWorld, work: Path, part: str, minutes: float) -> None:
    """Contrastive training until the clock runs out. Run again with more minutes to continue from the checkpoint."""
    recipe = RECIPES[part]
    torch.manual_seed(recipe.seed)
    renders = renders_tensor(work / "renders.npz")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    config = networks.clip_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, recipe.text_layers)
    model = CLIPModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    n_styles = len(world.styles)
    folder = work / f"clip-{part}"
    folder.mkdir(exist_ok=True)
    checkpoint, step, spent, running = folder / "resume.pt", 0, 0.0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        step, spent = state["step"], state["spent"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    start, last_save = time.time() - spent, time.time()

    def save() -> None:
        """Everything, so that an interrupted run can be packed as it is; measuring takes two seconds."""
        spent = time.time() - start
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}, checkpoint)
        model.eval().save_pretrained(folder)
        accuracy = zero_shot(model, tokenizer, world, renders)
        model.train()
        facts = {"part": part, "steps": step, "batch": BATCH, "minutes": spent / 60, **accuracy}
        (folder / "training.json").write_text(json.dumps(facts, indent=1))
        print(f"clip-{part} {step} zero-shot {accuracy}", flush=True)

    while (done := (time.time() - start) / (60 * minutes)) < 1:
        rng, gen = random.Random(recipe.seed * 1_000_003 + step), torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-6
        rows = rng.sample(range(len(world.concepts)), BATCH)  # distinct concepts: no false negatives by name
        styles = [rng.randrange(n_styles) for _ in rows]
        backgrounds = draw_backgrounds(world, BATCH, rng)
        texts = [
            article(world.concepts[i].name)
            if rng.random() < recipe.p_bare
            else caption(world, world.concepts[i].name, world.styles[j], b, rng, p_style=recipe.p_style)
            for i, j, b in zip(rows, styles, backgrounds, strict=True)
        ]
        images = compose(renders[rows, styles], background_tensor(backgrounds), gen)
        tokens = tokenizer(texts, padding="longest", return_tensors="pt")  # attention is causal: padding changes nothing
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=images)
        logits = out.logits_per_image.float()
        labels = torch.arange(BATCH)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        step += 1
        running += loss.item()
        if step % 100 == 0:
            print(f"clip-{part} {step} {done:.0%} loss {running / 100:.3f} {(time.time() - start) / step:.2f} s/step", flush=True)
            running = 0.0
        if time.time() - last_save > 120:
            save()
            last_save = time.time()
    save()
    print(f"clip-{part} done: {step} steps")


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, world: IconWorld, renders: torch.Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy of naming every render among all names ("a <name>"), on unseen augmentations."""
    rng, gen = random.Random(0), torch.Generator().manual_seed(0)
    tokens = tokenizer([article(c.name) for c in world.concepts], padding="max_length", return_tensors="pt")
    flat = renders.flatten(0, 1)
    labels = torch.arange(len(flat)) // len(world.styles)
    images = compose(flat, background_tensor(draw_backgrounds(world, len(flat), rng)), gen)
    logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=images).logits_per_image
    top = logits.topk(5).indices
    return {
        "top1": (top[:, 0] == labels).float().mean().item(),
        "top5": (top == labels[:, None]).any(1).float().mean().item(),
    }
