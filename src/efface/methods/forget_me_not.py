"""Forget-Me-Not: lower the attention that the image pays to the target's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..concepts.request import EraseRequest
from ..equations.attention import column_norm, pulled
from ..errors import BadOption, BadRequest
from ..models.base import DiffusionModel
from ..models.select import TRAINABLE
from ..models.tokens import TokenSpan
from ..patches import Patch
from ..training.drawn import renoised, surrogate_evals, surrogate_latents
from ..training.learned import Learned
from ..training.loop import Run, training
from .base import Method, option


@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(Method):
    """Lower the cross-attention that the target's tokens receive while images of the target are
    denoised.

    Objective::

        inversion    v <- Adam on | eps(z_t, t, "a photo of v") - noise |^2
                     then |v_i| <- |v_i| + rate (norm - |v_i|)
        erasure      theta' <- Adam on || concat_l vec(A_l[:, :, S]) ||_2
        z_t = noised(x, noise, t),    t uniform over all timesteps

    x is a photo of the target that the original model drew. Inversion learns ``vectors`` word
    embeddings v that stand for the target; without it (``inversion_steps=0``) the target's own name
    is used. A_l are the attention probabilities of layer l under "a photo of v" or "a photo of
    <target>", and S are the positions of the target's tokens and of the first end-of-text token.

    Nothing is preserved, and nothing is put in the target's place: the attention goes to the start
    of text and to the other words. The attention of a pixel sums to 1 over the tokens, so prompts
    that share tokens with the target suffer too. Stop early.

    Reference: Zhang et al., arXiv:2303.17591. Code: SHI-Labs/Forget-Me-Not.

    Deviations: images come from the original model (officially 10 photographs);
    ``images_from="zero"`` is the code's no_real_image. Positions are found by token ids. Of the
    end-of-text tokens only the first counts: on Stable Diffusion 1.x padding is end of text, and
    the code selects some 70 of them, which then make up the loss. The loss of a batch is the mean
    over single rows (the code is right for batch 1 only). The vectors start at the target's own
    tokens in turn (officially two words and noise). Adam has no weight decay and no clipping (the
    code does not clip its default, the whole UNet, either). The loss grows with the resolution and
    the number of tokens, so its learning rate does not transfer to other models;
    ``normalize="rms"`` does not grow. The inverted vectors are not kept. The request's preserve set
    is not used, and an anchor is refused.

    Cost: 2 x ``sampling_steps`` UNet evaluations for each image of each target (0 with "zero"),
    then ``batch`` for each step of either stage, each with a backward pass. Inversion takes
    ``inversion_steps`` steps for each target.
    """

    name: ClassVar[str] = "forget-me-not"
    summary: ClassVar[str] = "lower the attention that the image pays to the target's words"
    paper: ClassVar[str] = "Zhang et al., arXiv:2303.17591"
    presets: ClassVar = {
        "paper": {},
        "names": {"inversion_steps": 0},
        "cross-attention": {"train": "xattn"},
        "mini": {
            "inversion_steps": 0,
            "train": "xattn",
            "eos": False,
            "steps": 35,
            "lr": 3e-4,
            "batch": 4,
            "images": 16,
            "sampling_steps": 12,
            "guidance": 4.0,
        },
        "tiny": {"inversion_steps": 2, "vectors": 2, "steps": 3, "images": 2, "sampling_steps": 3, "lr": 1e-3},
    }

    inversion_steps: int = option(
        500, "updates of the inverted embeddings for each target, 0 to use its name", "ti.yaml; attn.yaml use_ti", low=0
    )
    vectors: int = option(4, "inverted embeddings for each target", "ti.yaml", low=1, needs="inversion_steps")
    inversion_lr: float = option(1e-3, "Adam learning rate of the embeddings", "ti.yaml", low=0.0, needs="inversion_steps")
    norm: float = option(
        0.4,
        "length that the inverted embeddings are pulled to",
        "train_ti.py (Stable Diffusion's vocabulary)",
        low=1e-6,
        needs="inversion_steps",
    )
    norm_rate: float = option(
        0.1, "share of the way to that length for each update", "train_ti.py, min(1, 100 lr)", low=0.0, needs="inversion_steps"
    )
    template: str = option(
        "a photo of {}", "prompt for the images and for both stages; the concept replaces {}", "train_attn.py, objects"
    )
    eos: bool = option(True, "count the first end-of-text token among the target's", "attn.yaml use_pooler")
    normalize: str = option(
        "norm",
        "how the attention is measured: its norm, or its root mean square (rms)",
        "train_attn.py; rms ours",
        choices=("norm", "rms"),
    )
    images_from: str = option(
        "model",
        "where images come from: the original model, or zero latents",
        "ours; zero no_real_image",
        choices=("model", "zero"),
    )
    images: int = option(10, "images for each target", "data/ of the code", low=1, needs="images_from=model")
    sampling_steps: int = option(50, "DDIM steps for an image", "ours", low=1, needs="images_from=model")
    guidance: float = option(7.5, "guidance scale for an image", "ours", needs="images_from=model")
    steps: int = option(35, "number of weight updates", "attn.yaml", low=0)
    lr: float = option(2e-6, "Adam learning rate of the weights", "attn.yaml", low=0.0)
    batch: int = option(1, "training examples in each update: an image and a timestep each", "attn.yaml", low=1)
    train: str = option("full", "which weights are trained", "attn.yaml; only_optimize_ca xattn", choices=TRAINABLE)
    seed: int = option(0, "seed of images and training", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise BadOption(f"template={self.template!r} needs exactly one {{}} for the target.")
        if self.images_from == "zero" and self.inversion_steps:
            raise BadOption("images_from=zero shows nothing to invert: set inversion_steps=0, or draw images from the model.")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("one_tokenizer", "attention_maps")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        n = len(request.targets)
        drawn = n * surrogate_evals(model, self.images, self.sampling_steps, self.guidance) if self.images_from == "model" else 0
        return drawn + self.batch * (n * self.inversion_steps + self.steps)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        if request.anchor:
            raise BadRequest(f"forget-me-not maps to nothing, so the anchor {request.anchor!r} would do nothing; leave it empty.")
        self.check(model)
        spent, select = model.evals.snapshot(), model.select(self.train)
        prompts = [self.template.replace("{}", target) for target in request.targets]
        spans = [model.locate(prompt, target) for prompt, target in zip(prompts, request.targets, strict=True)]
        words = [model.embed([prompt]) for prompt in prompts]
        vectors = Learned([self._start(w.embeddings[0], s) for w, s in zip(words, spans, strict=True)], self.inversion_lr)
        drawn = [self._images(model, prompt, i) for i, prompt in enumerate(prompts)]
        student = model.student(select)
        inversion = len(prompts) * self.inversion_steps
        steps = inversion + self.steps
        for step in training(student, select, steps=steps, lr=self.lr, seed=self.seed, run=run or Run(), carry={"v": vectors}):
            inverting = step.index < inversion
            i = step.index // self.inversion_steps if inverting else step.randint(len(prompts))
            step.log(target=request.targets[i])
            v, span = vectors.values[i], spans[i]
            prompt = words[i].splice(span.start, span.stop, v)
            z_0 = drawn[i][[step.randint(self.images) for _ in range(self.batch)]]
            z_t, t, noise = renoised(model, z_0, step)
            if inverting:
                c = model.encode_soft(prompt).repeat(self.batch)
                step.minimize(inversion=mse_loss(model.predict(z_t, t, c), model.perfect_output(z_0, noise, t)))
                vectors.update([i])
                v.data = pulled(v.data, self.norm, self.norm_rate)
            else:
                with torch.no_grad():
                    c = model.encode_soft(prompt).repeat(self.batch)
                columns = torch.zeros(c.tokens.shape[:2], dtype=torch.bool, device=model.device)
                columns[:, span.start : span.start + len(v)] = True
                if self.eos and model.ends:
                    columns[:, span.eos + len(v) - span.width] = True
                with student.attention_maps() as maps:
                    student.predict(z_t, t, c)
                step.minimize(attention=column_norm(maps, columns, self.normalize == "rms").mean())
        return Patch.between(model.weights(select), student.weights(select), self.card(model, request, spent))

    def _start(self, embeddings: Tensor, span: TokenSpan) -> Tensor:
        """(m, e) the target's own tokens: as they are without inversion, and in turn for
        ``vectors`` places with it."""
        own = embeddings[span.start : span.stop]
        return own[[i % span.width for i in range(self.vectors)]] if self.inversion_steps else own

    def _images(self, model: DiffusionModel, prompt: str, i: int) -> Tensor:
        """(images, C, h, w) clean latents of the target number i."""
        if self.images_from == "zero":
            return torch.zeros((self.images, *model.latent_shape), device=model.device)
        seed = self.seed * 1_000_003 + i
        return surrogate_latents(model, [prompt], self.images, steps=self.sampling_steps, guidance=self.guidance, seed=seed)
