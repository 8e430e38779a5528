"""Layers that text and picture share, changed for the rows of the text alone: ``y = W x + m D x``, m = 1 at rows of the text.

In a transformer of one stream, every weight of a block multiplies text and picture, so a change of W acts on both. D acts on the
text alone: the picture's rows leave the layer bit for bit as they were. This is the idea of the adapters of Z-Erase
(arXiv:2603.25074), with three differences: D is a whole matrix and no product of two (what is trained is what a patch adds and
scales); it is offered for keys and values, which carry the content, where the paper changes queries and keys; and m comes from
the real lengths of picture and prompt, where the official code assumes 1,024 rows of picture, which is right at 512 pixels alone.

D is a weight of the model as every other, zero before something was trained or added, and is called
``<layer>.text_rows``. It is no weight of a checkpoint: no format of another tool has a place for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .select import FOR_TEXT, Select


def unchanged(layer: nn.Linear) -> nn.Parameter:
    """The D of a layer that nothing has changed. It takes no memory: all its entries are one and the same zero."""
    zero = torch.zeros((), dtype=layer.weight.dtype, device=layer.weight.device)
    return nn.Parameter(zero.expand(layer.weight.shape), requires_grad=False)


def is_unchanged(d: Tensor) -> bool:
    return d.stride() == (0, 0)


def text_rows_of(network: nn.Module, part: str, select: Select) -> dict[str, nn.Parameter]:
    """``{name of D: D}`` of the linear layers of the network whose weights are selected, all unchanged."""
    layers = [(f"{part}.{n}", m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    return {f"{n}{FOR_TEXT}": unchanged(m) for n, m in layers if select(f"{n}.weight")}


def owned(rows: Mapping[str, nn.Parameter], selected: set[int]) -> dict[str, nn.Parameter]:
    """The same D, copies of those whose ids are selected."""
    return {n: nn.Parameter(d.detach().clone(), requires_grad=False) if id(d) in selected else d for n, d in rows.items()}


def moved(rows: Mapping[str, nn.Parameter], device: torch.device) -> dict[str, nn.Parameter]:
    """The same D on another device, those that are there already as they are. What is unchanged stays one number."""

    def there(d: nn.Parameter) -> nn.Parameter:
        values = d.detach()[0, 0].to(device).expand(d.shape) if is_unchanged(d) else d.detach().to(device)
        return nn.Parameter(values, requires_grad=False)

    return {n: d if d.device == device else there(d) for n, d in rows.items()}


@contextmanager
def read_by(network: nn.Module, part: str, rows: Mapping[str, Tensor], start: int, counts: Sequence[int]) -> Iterator[None]:
    """Inside, the layers add ``D x`` at the rows from ``start`` on, at the first ``counts[i]`` of them in item i of the batch.

    Activations that are computed again for the gradient (checkpointing) may be so after the end of the context, when another
    batch has other lengths: so each block takes the lengths along.
    """
    layers = {
        network.get_submodule(n.removeprefix(f"{part}.").removesuffix(FOR_TEXT)): d
        for n, d in rows.items()
        if not is_unchanged(d)
    }

    lengths = torch.tensor(counts, device=next(iter(layers.values())).device)[:, None] if layers else None

    def changed(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        text = args[0][:, start:]
        m = torch.arange(text.shape[1], device=out.device) < lengths
        more = linear(text, layers[module]) * m[..., None]
        return torch.cat([out[:, :start], out[:, start:] + more.to(out.dtype)], dim=1)

    @contextmanager
    def hooked() -> Iterator[None]:
        with ExitStack() as stack:
            for layer in layers:
                stack.callback(layer.register_forward_hook(changed).remove)
            yield

    def once_more(layer: Callable[..., Any], *args: Any) -> Any:
        with hooked():
            return layer(*args)

    plain: Any = getattr(network, "_gradient_checkpointing_func", None)
    if not (layers and getattr(network, "gradient_checkpointing", False) and torch.is_grad_enabled()):
        with hooked():
            yield
        return
    vars(network)["_gradient_checkpointing_func"] = lambda layer, *args: plain(once_more, layer, *args)
    try:
        yield
    finally:
        vars(network)["_gradient_checkpointing_func"] = plain
