"""A batch in one copy: the same bits, dtypes and shapes, and tensors that are one object stay one."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.batches.micro_batches import with_cuts
from models.batches.transfer import ALIGNMENT, places_of, tensors_in, to_device, with_tensors
from models.features.bags import Bags
from models.ranking.micro_batches import with_cuts as with_ranking_cuts
from tests.models.features import test_inputs
from tests.models.ranking.test_micro_batches import COUNTS
from tests.models.ranking.test_model import batch_of, random_users

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Nothing:
    """An object without tensors."""

    number: int


def batches() -> list[Any]:
    """Return batches with all kinds of inputs, whole and in pieces."""
    histories = [test_inputs.batch_of(test_inputs.random_users(1), objective) for objective in test_inputs.OBJECTIVES]
    ranking = batch_of(random_users(4, COUNTS))
    return [*histories, *(with_cuts(batch, 4) for batch in histories), ranking, with_ranking_cuts(ranking, 7)]


@pytest.mark.parametrize("number", range(6))
def test_every_tensor_arrives_bit_for_bit(number):
    batch = batches()[number]
    moved = to_device(batch, CPU)
    assert type(moved) is type(batch)
    before, after = tensors_in(batch), tensors_in(moved)
    assert len(before) == len(after) > 10
    for sent, arrived in zip(before, after, strict=True):
        assert (arrived.dtype, arrived.shape) == (sent.dtype, sent.shape)
        assert arrived.equal(sent)
    assert len({tensor.untyped_storage().data_ptr() for tensor in after if tensor.numel()}) == 1


@pytest.mark.parametrize("number", range(6))
def test_nothing_but_tensors_changes(number):
    batch = batches()[number]

    def described(content: Any) -> str:
        return repr(with_tensors(content, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype)))

    assert described(to_device(batch, CPU)) == described(batch)


def test_one_tensor_is_sent_once_and_stays_one():
    rows = torch.arange(3)
    bags = Bags("item", rows, rows)
    moved = to_device({"a": bags, "b": (rows, None, "text")}, CPU)
    assert moved["a"].rows is moved["a"].lengths is moved["b"][0]
    assert moved["b"][1:] == (None, "text")
    assert places_of(tensors_in(bags))[1] == 2 * ALIGNMENT  # 24 bytes


def test_views_scalars_and_empty_tensors_are_sent():
    tensors = (
        torch.arange(12).view(3, 4)[:, 1::2],
        torch.tensor(2.5, dtype=torch.float64),
        torch.zeros((0, 3)),
        torch.tensor([True, False, True]),
        torch.tensor([1.5], dtype=torch.bfloat16),
    )
    for sent, arrived in zip(tensors, to_device(tensors, CPU), strict=True):
        assert (arrived.dtype, arrived.shape) == (sent.dtype, sent.shape)
        assert arrived.equal(sent)


def test_an_object_without_tensors_is_the_same_object():
    batch = test_inputs.batch_of(test_inputs.random_users(1), test_inputs.OBJECTIVES[0])
    plain = Nothing(3)
    shared = replace(batch, share=plain)  # type: ignore[arg-type]
    assert to_device(shared, CPU).share is plain


def test_tensors_of_the_device_are_not_sent_again():
    device = torch.device("meta")
    there = torch.zeros(5, device=device)
    moved: tuple[Tensor, ...] = to_device((torch.arange(4), there), device)
    assert moved[1] is there
    assert (moved[0].device, moved[0].shape, moved[0].dtype) == (device, torch.Size([4]), torch.int64)
