"""Stage ``clip``: contrastive image-text encoders on renders.

Part ``init`` only initialises the miniature's own text encoder and is thrown away; part ``score`` (other seed, other
data order) is shipped for CLIP-type scores. The scorer shares no weights with the model it judges. Another world hands in its own
recipe and sizes; its text encoder may be frozen from here on.
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPModel, CLIPTokenizer

from efface.models.icon_world import IconWorld

from . import networks
from .data import ahead, article, background_tensor, caption, compose, draw_backgrounds, renders_tensor

BATCH = 96
NAMED = 1500
"""Most renders that the accuracy is measured on."""
Batch = tuple[list[int], list[int], Tensor, torch.Generator, Tensor, Tensor]
"""Concepts and styles of the pictures, their backgrounds, what draws their places, token ids and mask."""


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
    bfloat16: bool = True
    """On a CPU too, where it pays for some widths and costs for others."""
    batch: int = BATCH
    twins: bool = False
    """Whether half of the batch is a second picture of the other half's concepts, in another style that both captions name. The
    concept then tells a picture from its twin no longer, so that the text has to carry the style."""
    patch: int = 8
    """Pixels along a patch of the picture's encoder: 16 costs a quarter and serves where that encoder is thrown away."""
    p_words: float = 0.0
    """Weight of a second contrastive loss, without pictures: names against their synonyms and descriptions."""


RECIPES = {
    "init": Recipe(seed=21, text_layers=4, lr=1e-3, warmup=100, p_style=0.5, weight_decay=0.05, p_bare=0.0),
    # A scorer is asked for names first, so its captions name the style less often.
    "score": Recipe(seed=22, text_layers=3, lr=2e-3, warmup=150, p_style=0.3, weight_decay=0.02, p_bare=0.5),
}


def train(
    world: IconWorld,
    work: Path,
    part: str,
    minutes: float,
    recipe: Recipe | None = None,
    sizes: networks.Sizes = networks.MINI,
    renders: Tensor | None = None,
    device: str = "cpu",
    workers: int = 0,
) -> None:
    """Contrastive training until the clock runs out. Run again with more minutes to continue from the checkpoint.

    ``workers`` threads draw the batches ahead; pictures are composed where the network lies.
    """
    recipe = recipe or RECIPES[part]
    torch.manual_seed(recipe.seed)
    renders = (renders_tensor(work / "renders.npz") if renders is None else renders).to(device)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    config = networks.clip_config(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, recipe.text_layers, sizes, recipe.patch
    )
    model = CLIPModel(config).train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )
    folder = work / f"clip-{part}"
    folder.mkdir(exist_ok=True)
    checkpoint, step, spent, running = folder / "resume.pt", 0, 0.0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
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
        facts = {"part": part, "steps": step, "batch": recipe.batch, "minutes": spent / 60, **accuracy}
        (folder / "training.json").write_text(json.dumps(facts, indent=1))
        print(f"clip-{part} {step} zero-shot {accuracy}", flush=True)

    def draw(step: int) -> Batch:
        return batch_of(world, recipe, tokenizer, recipe.seed * 1_000_003 + step)

    batches = ahead(draw, step, workers)
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-6
        rows, styles, backgrounds, gen, tokens, mask = next(batches)
        images, n = compose(renders[rows, styles], backgrounds, gen), len(rows)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.bfloat16 or device != "cpu"):
            seen, said, scale = look(model, images), read(model, tokens.to(device), mask.to(device)), model.logit_scale.exp()
            loss = contrast((scale * seen @ said[:n].T).float())
            if recipe.p_words:
                names, words = said[n:].chunk(2)
                loss = loss + recipe.p_words * contrast((scale * names @ words.T).float())
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


def batch_of(world: IconWorld, recipe: Recipe, tokenizer: CLIPTokenizer, seed: int) -> Batch:
    """n pictures, and their n captions; with ``p_words``, also m names and what else each of them is called."""
    rng = random.Random(seed)
    rows, styles, backgrounds, texts = pairs(world, recipe, rng)
    if recipe.p_words:
        names, words = said_otherwise(world, len(rows) // 2, rng)
        texts = texts + names + words
    return rows, styles, background_tensor(backgrounds), torch.Generator().manual_seed(seed), *tokens_of(tokenizer, texts)


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, longest). Padded here: the tokenizer's own padding is a state that threads may not share."""
    rows = [torch.tensor(ids) for ids in tokenizer(texts).input_ids]
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)  # causal: padding changes nothing
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def look(model: CLIPModel, images: Tensor) -> Tensor:
    """(n, width) unit vectors of pictures."""
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=images).pooler_output), dim=-1)


def read(model: CLIPModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """(n, width) unit vectors of texts."""
    pooled = model.text_model(input_ids=tokens, attention_mask=mask).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def pairs(world: IconWorld, recipe: Recipe, rng: random.Random) -> tuple[list[int], list[int], list[str], list[str]]:
    """One batch: concept and style indices, backgrounds and captions. No concept occurs twice except as a twin."""
    n = recipe.batch // 2 if recipe.twins else recipe.batch
    rows = rng.sample(range(len(world.concepts)), n)  # distinct concepts: no false negatives by name
    if recipe.twins:
        both = [rng.sample(world.drawable[i], 2) for i in rows]
        rows, styles = rows * 2, [one for one, _ in both] + [other for _, other in both]
    else:
        styles = [rng.choice(world.drawable[i]) for i in rows]
    backgrounds = draw_backgrounds(world, recipe.batch, rng)
    p_style = 1.0 if recipe.twins else recipe.p_style
    texts = [
        article(world.concepts[i].name)
        if not recipe.twins and rng.random() < recipe.p_bare
        else caption(world, world.concepts[i].name, world.all_styles[j], b, rng, p_style=p_style)
        for i, j, b in zip(rows, styles, backgrounds, strict=True)
    ]
    return rows, styles, backgrounds, texts


def said_otherwise(world: IconWorld, n: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """n names, and a synonym or a description of each. Synonyms that captions may not use are among them: they are known as
    words."""
    known = [c for c in world.concepts if c.synonyms or c.implicit]
    chosen = rng.sample(known, min(n, len(known)))
    words = [rng.choice((*map(article, c.synonyms), *c.implicit)) for c in chosen]
    return [article(c.name) for c in chosen], words


def contrast(logits: Tensor) -> Tensor:
    """Cross-entropy of each row and each column with its own partner, on the diagonal."""
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, world: IconWorld, renders: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy of naming renders among all names ("a <name>"), on unseen augmentations."""
    rng, gen = random.Random(0), torch.Generator().manual_seed(0)
    cells = [(i, j) for i, styles in enumerate(world.drawable) for j in styles]
    cells = cells[:: -(-len(cells) // NAMED)]
    labels, styles = (torch.tensor(column) for column in zip(*cells, strict=True))
    images = compose(renders[labels, styles], background_tensor(draw_backgrounds(world, len(cells), rng)), gen)
    names = read(model, *(part.to(model.device) for part in tokens_of(tokenizer, [article(c.name) for c in world.concepts])))
    top = (look(model, images) @ names.T).topk(5).indices.cpu()
    return {
        "top1": (top[:, 0] == labels).float().mean().item(),
        "top5": (top == labels[:, None]).any(1).float().mean().item(),
    }
