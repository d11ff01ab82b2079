"""Forms of the cross-entropy over a catalogue, compared with ours in torch: time, memory, and errors of value and gradients.

`python -m benchmarks.softmax` measures them by processor time of one thread, and writes docs/results/benchmark_softmax.json.
benchmarks/kernels_page.py writes the table.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Comparison, take_turns
from models.compiled.softmax import SoftmaxKernels, build_softmax_kernels
from models.objectives.softmax import softmax_cross_entropy, softmax_cross_entropy_reference

RESULTS = Path("docs/results/benchmark_softmax.json")
# Targets, candidates, width: a SASRec step on MovieLens-1M (128 histories, of 165 events on average), and a larger catalogue.
SHAPES = ((21_120, 3_416, 52), (21_120, 3_416, 64), (2_560, 50_000, 64))
NUM_CHECKED = 500  # targets of which the errors are measured, because the reference holds all logits in float64
OURS, TORCH, COMPILED = "chunks of torch's operations", "F.linear_cross_entropy", "compiled kernel"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def forms(kernels: SoftmaxKernels) -> dict[str, Loss]:
    """Return the forms that are compared, by name."""
    options = nn.LinearCrossEntropyOptions()
    return {
        OURS: lambda user, item, target: softmax_cross_entropy(user, item, target, 1.0),
        TORCH: lambda user, item, target: F.linear_cross_entropy(user, item, target, reduction="sum", options=options),
        COMPILED: lambda user, item, target: softmax_cross_entropy(user, item, target, 1.0, 0.0, kernels),
    }


def compare(turns: int, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> Iterator[dict[str, Any]]:
    """Measure all forms with torch's number of threads, and yield rows of figures."""
    losses = forms(build_softmax_kernels())
    for num_targets, num_candidates, width in shapes:
        generator = torch.Generator().manual_seed(1)
        user = torch.randn(num_targets, width, generator=generator)
        item = 0.3 * torch.randn(num_candidates, width, generator=generator)
        target = torch.randint(0, num_candidates, (num_targets,), generator=generator)
        for precision in (torch.float32, torch.bfloat16):
            ours = _trained(losses[OURS], user, item, target, precision)
            for name, loss in losses.items():
                work = _trained(loss, user, item, target, precision)
                what = f"{name}: {num_targets:,} targets, {num_candidates:,} items, width {width}, {_name(precision)}"
                figures = take_turns(what, "targets/s", num_targets, work, ours, OURS, turns, clock=time.process_time)
                yield _row(figures, name, (num_targets, num_candidates, width), precision) | _errors(
                    loss, user[:NUM_CHECKED], item, target[:NUM_CHECKED], precision
                )


def _row(figures: Comparison, form: str, shape: tuple[int, int, int], precision: torch.dtype) -> dict[str, Any]:
    return figures.values() | {"form": form, "shape": list(shape), "precision": _name(precision)}


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _trained(
    loss: Loss, user: Tensor, item: Tensor, target: Tensor, precision: torch.dtype
) -> Callable[[], list[Tensor]]:
    """Return a function that computes the loss and both gradients."""

    def work() -> list[Tensor]:
        users, items = leaves = [vectors.detach().requires_grad_() for vectors in (user, item)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            value = loss(users, items, target)
        value.backward()
        return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    return work


def _errors(loss: Loss, user: Tensor, item: Tensor, target: Tensor, precision: torch.dtype) -> dict[str, float]:
    """Return the relative errors of the value and of the gradients, by the reference in float64."""
    reference = _trained(
        lambda u, i, t: softmax_cross_entropy_reference(u, i, t, 1.0),
        user.double(),
        item.double(),
        target,
        torch.float32,
    )()
    actual = _trained(loss, user, item, target, precision)()
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(actual, reference, strict=True)]
    return dict(zip(("value_error", "user_error", "item_error"), errors, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Forms of the cross-entropy over a catalogue, on one thread.")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each form")
    torch.set_num_threads(1)
    rows = list(compare(parser.parse_args().turns))
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
