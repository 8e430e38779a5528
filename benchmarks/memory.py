"""What one step of an output-based method keeps in memory on a network of Stable Diffusion 1.4's size.

    python benchmarks/memory.py [--quick] [--json] [--latent 8] [--method ap] [--checkpointing] [--storage fp8]
        [--optimizer adam8bit]

Random weights, float32, CPU, a reduced latent size. "live" is the storage of every tensor that is alive at the end of a step,
each storage counted once: the network, the student's own copies, their gradients, Adam's two moments, latents and encodings.
"peak" is the process's highest resident memory during the run above what it had before it, so activations are in it. The promise:
live is at most the model plus four times the trained tensors (copy, gradient, two moments) plus the pool. "counted" is what
`efface estimate` says of the run beside the model's weights, to be compared with the peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
from typing import Any

import torch

from efface.concepts.request import EraseRequest
from efface.models.sd import StableDiffusion
from efface.models.select import selection
from efface.models.tiny import tiny
from efface.registry import build_method
from efface.training.loop import Run, Step
from efface.verbs.memory import Needs

SETTINGS = {"steps": 2, "sampling_steps": 5, "search.nearest": 4, "sampler": "pool", "eta": 1.0}


def full_size(latent: int) -> StableDiffusion:
    """The UNet of Stable Diffusion 1.4 and a text encoder of its width, random; vocabulary and VAE are the tiny model's."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    small = tiny()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=latent, cross_attention_dim=768, attention_head_dim=8)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(small.tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=small.tokenizer.model_max_length,
            bos_token_id=small.tokenizer.bos_token_id,
            eos_token_id=small.tokenizer.eos_token_id,
            pad_token_id=small.tokenizer.eos_token_id,
        )
    )
    return StableDiffusion(
        name="sd-1.4-size",
        tokenizer=small.tokenizer,
        text_encoder=text,
        unet=unet.eval(),
        vae=small.vae,
        schedule=small.schedule,
        concept_names=small.concept_names,
    )


def live() -> int:
    """Bytes of all tensor storages that are alive, each counted once."""
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":  # isinstance would wake lazy objects of torch
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            if thing.is_leaf and thing.grad is not None:
                grad = thing.grad.untyped_storage()
                sizes[grad.data_ptr()] = grad.nbytes()
    return sum(sizes.values())


def measure(model: StableDiffusion, method: str, checkpointing: bool, storage: str | None, optimizer: str) -> dict[str, Any]:
    model.configure(checkpointing=checkpointing)
    if storage is not None:
        model.store(storage)
    chosen = build_method(method, preset="paper", settings={**SETTINGS, "optimizer": optimizer})
    counted = sum(n for part, n in Needs(model, chosen).parts().items() if "weights" not in part)
    trained = sum(p.nbytes for p in model.weights(selection(chosen.train)).values())
    before, peak_before, seen = live(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []

    def on_step(step: Step, total: int) -> None:
        seen.append(live())

    patch = chosen.erase(model, EraseRequest(("cat",)), Run(on_step=on_step))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gb = 1e9
    return {
        "method": method,
        "checkpointing": checkpointing,
        "storage": storage,
        "optimizer": optimizer,
        "counted_gb": counted / gb,
        "model_gb": before / gb,
        "unet_gb": sum(p.nbytes for p in model.unet.parameters()) / gb,
        "trained_gb": trained / gb,
        "live_gb": max(seen) / gb,
        "above_model_in_trained": (max(seen) - before) / trained,
        "peak_above_model_gb": (peak - peak_before) * 1024 / gb,
        "evals": patch.card.cost["forward"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model instead of the full size")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--latent", type=int, default=8, help="latent side")
    parser.add_argument("--method", default="ap")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--storage", default=None, help="fp8")
    parser.add_argument("--optimizer", default="adam", help="adam or adam8bit")
    args = parser.parse_args()
    model = tiny() if args.quick else full_size(args.latent)
    result = measure(model, args.method, args.checkpointing, args.storage, args.optimizer)
    if args.json:
        print(json.dumps(result))
        return
    r = result
    print(f"{r['method']}: UNet {r['unet_gb']:.3g} GB, model {r['model_gb']:.3g} GB, trained {r['trained_gb']:.3g} GB")
    print(f"  live at the end of a step {r['live_gb']:.3g} GB = model + {r['above_model_in_trained']:.2f} x trained")
    print(f"  peak during the run {r['peak_above_model_gb']:.3g} GB above the loaded model ({r['evals']} UNet evaluations)")
    print(f"  counted beforehand {r['counted_gb']:.3g} GB above the loaded model")


if __name__ == "__main__":
    main()
