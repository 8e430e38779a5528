"""Training: the loop that methods call, several processes as one run, latents to train on, and
learned embeddings."""

from .loop import Run, Stateful, Step, training

__all__ = ["Run", "Stateful", "Step", "training"]
