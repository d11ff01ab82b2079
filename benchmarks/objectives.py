"""Objectives compared with the bare matrix products that they cannot do without: targets per second, and memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Comparison, take_turns
from models.objectives import chunked_scores
from models.objectives.sampled import SampledTargets, binary_cross_entropy, sampled_softmax_cross_entropy
from models.objectives.softmax import TILE_ROWS, softmax_cross_entropy, softmax_cross_entropy_reference

NUM_TARGETS, WIDTH = 14_000, 64
CATALOGUE, NUM_NEGATIVES = 3_416, 512  # items of MovieLens-1M; the default number of negatives
LARGE_CATALOGUE, FEW_TARGETS = 1_000_000, 2_000


def compare(turns: int) -> list[Comparison]:
    """Measure forward and backward passes in this process, with torch's default number of threads."""
    torch.manual_seed(1)
    threads = f"{torch.get_num_threads()} threads"
    return [*_full(threads, turns), *_sampled(threads, turns), *_large(threads, turns)]


def _full(threads: str, turns: int) -> Iterator[Comparison]:
    user, item = torch.randn(NUM_TARGETS, WIDTH), 0.1 * torch.randn(CATALOGUE, WIDTH)
    target = torch.randint(0, CATALOGUE, (NUM_TARGETS,))
    name = f"{NUM_TARGETS:,} targets, {CATALOGUE:,} items, {threads}"
    rows = chunked_scores.CHUNK_ELEMENTS // CATALOGUE
    bare = _products(user, item, rows, CATALOGUE)
    for smoothing in (0.0, 0.1):
        ours = _trained(lambda u, i, s=smoothing: softmax_cross_entropy(u, i, target, 1.0, s), user, item)
        what = "full softmax" + (", smoothed labels" if smoothing else "")
        yield take_turns(f"{what}: {name}", "targets/s", NUM_TARGETS, ours, bare, "three matrix products", turns)
    ours = _trained(lambda u, i: softmax_cross_entropy(u, i, target, 1.0), user, item)
    plain = _trained(lambda u, i: softmax_cross_entropy_reference(u, i, target, 1.0), user, item)
    yield take_turns(f"full softmax: {name}", "targets/s", NUM_TARGETS, ours, plain, "all logits, autograd", turns)
    options = nn.LinearCrossEntropyOptions()
    other = _trained(lambda u, i: F.linear_cross_entropy(u, i, target, reduction="sum", options=options), user, item)
    yield take_turns(f"full softmax: {name}", "targets/s", NUM_TARGETS, ours, other, "F.linear_cross_entropy", turns)


def _sampled(threads: str, turns: int) -> Iterator[Comparison]:
    user, positive = torch.randn(NUM_TARGETS, WIDTH), torch.randn(NUM_TARGETS, WIDTH)
    negative = 0.1 * torch.randn(NUM_NEGATIVES, WIDTH)
    target_ids, negative_ids = (torch.randint(1, CATALOGUE, (n,)) for n in (NUM_TARGETS, NUM_NEGATIVES))
    corrections = torch.full((NUM_TARGETS,), -8.0), torch.full((NUM_NEGATIVES,), -8.0)
    objectives: dict[str, Callable[[SampledTargets], Tensor]] = {
        "sampled softmax": sampled_softmax_cross_entropy,
        "binary cross-entropy": lambda sample: binary_cross_entropy(sample, 1.0, 1.0 / NUM_NEGATIVES),
    }
    rows = chunked_scores.CHUNK_ELEMENTS // NUM_NEGATIVES
    for objective, function in objectives.items():
        for corrected in (False, True):
            given = corrections if corrected else (None, None)

            def loss(
                u: Tensor,
                p: Tensor,
                n: Tensor,
                given: tuple[Tensor | None, Tensor | None] = given,
                function: Callable[[SampledTargets], Tensor] = function,
            ) -> Tensor:
                return function(SampledTargets(u, p, n, target_ids, negative_ids, 1.0, *given))

            yield take_turns(
                f"{objective}{', logQ' if corrected else ''}: {NUM_TARGETS:,} targets, {NUM_NEGATIVES} negatives, {threads}",
                "targets/s",
                NUM_TARGETS,
                _trained(loss, user, positive, negative),
                _products(user, negative, rows, NUM_NEGATIVES),
                "three matrix products",
                turns,
            )


def _large(threads: str, turns: int) -> Iterator[Comparison]:
    user, item = torch.randn(FEW_TARGETS, WIDTH), 0.1 * torch.randn(LARGE_CATALOGUE, WIDTH)
    target = torch.randint(0, LARGE_CATALOGUE, (FEW_TARGETS,))
    yield take_turns(
        f"full softmax: {FEW_TARGETS:,} targets, {LARGE_CATALOGUE:,} items, {threads}",
        "targets/s",
        FEW_TARGETS,
        _trained(lambda u, i: softmax_cross_entropy(u, i, target, 1.0), user, item),
        _products(user, item, TILE_ROWS, chunked_scores.CHUNK_ELEMENTS // TILE_ROWS),
        "three matrix products",
        max(1, turns // 2),
    )


def _trained(loss: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """Compute the loss of the inputs and its gradient."""

    def work() -> None:
        loss(*(values.detach().requires_grad_() for values in inputs)).backward()

    return work


def _products(user: Tensor, item: Tensor, rows: int, items: int) -> Callable[[], object]:
    """Compute scores, and both gradients from them, tile by tile: the minimum of any exact objective."""

    def work() -> None:
        user_gradient, item_gradient = torch.zeros_like(user), torch.zeros_like(item)
        buffer = user.new_empty(rows * items)
        for users, gradients in zip(user.split(rows), user_gradient.split(rows), strict=True):
            for part, part_gradients in zip(item.split(items), item_gradient.split(items), strict=True):
                shape = users.shape[0], part.shape[0]
                scores = torch.mm(users, part.T, out=buffer[: shape[0] * shape[1]].view(shape))
                gradients.addmm_(scores, part)
                part_gradients.addmm_(scores.T, users)

    return work
