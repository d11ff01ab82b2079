"""The compiled softmax attention equals the plain formula in value and gradients, one history at a time."""

import copy

import pytest
import torch
from torch import Tensor

from models.attention.attend import attend
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.terms import AttentionTerms
from models.compiled.attention import AttentionKernel
from models.compiled.softmax import SoftmaxKernels
from tests.models.compiled.compiler import kernels_or_skip
from tests.models.encoders.test_encoder import context_of
from tests.models.next_item.test_model import OBJECTIVES, make_model, training_batch

# Shorter than a step of rows, as long as a block and a panel, one more and less, empty, longer than several panels.
LENGTHS = ([1], [5, 0, 3], [48, 49, 47], [64, 63, 65, 130, 1, 0], [300, 2])
# Heads of queries, of keys and values, width of keys, of values.
SHAPES = ((1, 1, 1, 1), (2, 2, 16, 16), (4, 2, 7, 20), (2, 1, 64, 52))
SCALE = 0.3


@pytest.fixture
def kernel() -> AttentionKernel:
    return kernels_or_skip().attention


def heads_of(joint_NS: Tensor, shape: tuple[int, int, int, int]) -> list[Tensor]:
    """Return queries, keys and values of the columns of a tensor."""
    num_heads, num_key_heads, key_width, value_width = shape
    sizes = [num_heads * key_width, num_key_heads * key_width, num_key_heads * value_width]
    return [
        part.unflatten(1, (-1, width))
        for part, width in zip(joint_NS.split(sizes, dim=1), (key_width, key_width, value_width), strict=True)
    ]


def reference(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
    """Compute each history by the formula."""
    shared = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v in zip(*(t.split(lengths) for t in (query, key, value)), strict=True):
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        scores = torch.einsum("qhk,chk->hqc", q, k) * scale
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        outputs.append(torch.einsum("hqc,chv->qhv", weights, v))
    return torch.cat(outputs)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_equals_the_formula(kernel, lengths, shape, dtype, joint, threads):
    generator = torch.Generator().manual_seed(1)
    num_heads, num_key_heads, key_width, value_width = shape
    width = (num_heads + num_key_heads) * key_width + num_key_heads * value_width
    values = torch.randn(sum(lengths), width, generator=generator)
    scale = key_width**-0.5
    factor = torch.randn(sum(lengths), num_heads, value_width, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    joint_NS = values.to(dtype).clone().requires_grad_()
    output = kernel.attend(*heads_of(joint_NS, shape), offsets_of(lengths), scale, joint_NS if joint else None)
    (output * factor).sum().backward()
    torch.set_num_threads(before)
    exact_NS = values.to(dtype).double().requires_grad_()
    expected = reference(*heads_of(exact_NS, shape), lengths, scale)
    (expected * factor).sum().backward()
    assert output.dtype == torch.float32
    assert (output - expected).norm() <= 1e-6 * expected.norm()
    # The gradient has the precision of the input.
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    assert joint_NS.grad.dtype == dtype
    assert (joint_NS.grad - exact_NS.grad).norm() <= rounding * exact_NS.grad.norm() + 1e-6


def test_large_scores_do_not_overflow(kernel):
    joint_NS = torch.tensor([[1e4, 1e4, 1.0], [-1e4, 2e4, 2.0], [1e4, -1e4, 3.0]], requires_grad=True)
    output = kernel.attend(*heads_of(joint_NS, (1, 1, 1, 1)), torch.tensor([0, 3]), 1.0, joint_NS)
    output.sum().backward()
    assert output.flatten().tolist() == [1.0, 1.0, 2.0]
    assert joint_NS.grad.isfinite().all()


def test_no_event_sees_a_later_one_or_another_history(kernel):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(150, 12, generator=generator)
    changed = values.clone()
    changed[70:80] += 5.0
    offsets = torch.tensor([0, 20, 80, 150])
    before, after = (kernel.attend(*heads_of(x, (2, 2, 2, 2)), offsets, 1.0, x) for x in (values, changed))
    kept = torch.cat((torch.arange(70), torch.arange(80, 150)))
    assert torch.equal(before[kept], after[kept])
    assert not torch.isclose(before[70:80], after[70:80]).any()


def terms(**settings) -> AttentionTerms:
    return AttentionTerms(AttentionConfig.model_validate({"num_heads": 2, **settings}), SCALE, 8)


def context_with(kernel, lengths) -> AttentionContext:
    context = context_of(lengths)
    context.kernel = kernel
    return context


def test_attention_uses_it_for_causal_weights_without_a_window(kernel, monkeypatch):
    asked: list[object] = []
    run = AttentionKernel.run
    monkeypatch.setattr(
        AttentionKernel, "run", lambda self, problem, form: asked.append(problem) or run(self, problem, form)
    )
    lengths = [7, 9]
    joint_NS = torch.randn(16, 24, generator=torch.Generator().manual_seed(3))
    heads = heads_of(joint_NS, (2, 2, 4, 4))
    silu = {"normalisation": "silu"}
    for settings, uses in (
        *(({}, 1), ({"window": 3}, 0), ({"mask": "bidirectional"}, 0)),
        *(({"normalisation": "entmax15"}, 1), ({"normalisation": "none"}, 0)),
        *((silu, 1), ({**silu, "window": 3}, 0), ({**silu, "mask": "bidirectional"}, 0)),
    ):
        asked.clear()
        compiled = attend(*heads, context_with(kernel, lengths), terms(**settings), joint_NS).output
        assert len(asked) == uses
        torch.testing.assert_close(compiled, attend(*heads, context_of(lengths), terms(**settings), joint_NS).output)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_model_trains_with_kernels_as_without_and_encodes_without(monkeypatch, objective):
    """Scores of evaluations and exports do not depend on a compiler."""
    compiled = make_model(objective)
    compiled.kernels = kernels_or_skip()
    batch = training_batch([[1, 2, 3, 4], [5, 6], [7, 8, 9]], objective)
    results = []
    for model in (make_model(objective), copy.deepcopy(compiled)):
        rows = {"item": model.look_up(batch.items)["item"].detach().requires_grad_()}
        loss = model.loss(rows, batch)
        loss.backward()
        results.append((loss.detach(), rows["item"].grad, *(p.grad for p in model.encoder.parameters())))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(AttentionKernel, "run", None)
    monkeypatch.setattr(SoftmaxKernels, "terms", None)
    rows = compiled.look_up(batch.items)
    assert compiled.user_vectors(rows, batch).isfinite().all()
    with pytest.raises(TypeError):
        compiled.loss(rows, batch)
