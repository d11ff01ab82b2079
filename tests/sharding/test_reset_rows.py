"""Rows reset under every plan equal rows reset by hand in a plain table: in weights, and in what the optimizer does next."""

import pytest
import torch
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from models.tables import lookup_request
from sharding.config import TableConfig
from sharding.initialize import initial_weights, initialize_tables
from sharding.optimizers import Optimizers
from sharding.place import place, tables_device
from sharding.ranks import Ranks
from sharding.reset_rows import reset_rows
from tests.sharding.test_place import SPEC, Lookup, full_table, ids_of, loss_of

SEED, STEPS = 7, 6
RATE = 0.07  # not 0.1: a first step of Adagrad would take the dense weights to 0, and gradients to rounding noise
EVERY_PLAN = [
    ("row_wise", "sgd"),
    ("row_wise", "adagrad"),
    ("row_wise", "rowwise_adagrad"),
    ("table_wise", "adagrad"),
    ("table_wise", "rowwise_adagrad"),
    ("column_wise", "sgd"),
    ("column_wise", "adagrad"),
    ("replicated", "adagrad"),
    ("replicated", "sgd"),
    ("replicated", "adamw"),
]


def resets(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to reset before a step, in no order, with the generation that each enters: some once, some again and again."""
    rows = torch.tensor([[36, 5, 20], [], [0, 5], [19, 18, 12, 36], [], [5]][step], dtype=torch.int64)
    earlier = torch.cat([torch.empty(0, dtype=torch.int64), *(resets(s)[0] for s in range(step))])
    return rows, (earlier[None, :] == rows[:, None]).sum(dim=1)


def dense_optimizer(name: str, parameters: object) -> torch.optim.Optimizer:
    match name:
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=RATE)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=RATE)
        case _:
            return torch.optim.SGD(parameters, lr=RATE)


def start(device: torch.device) -> Lookup:
    module = Lookup(device)
    with torch.no_grad():
        module.dense.weight.fill_(0.1)
        module.dense.bias.zero_()
    return module


def train_placed(ranks: Ranks, sharding: str, optimizer: str) -> list[torch.Tensor | None]:
    """The whole table after every reset and after every step, on the first rank."""
    fused = {} if sharding == "replicated" else {"optimizer": optimizer}
    tables = {"item": TableConfig(dim=SPEC.dim, sharding=sharding, learning_rate=RATE, **fused)}
    module = start(tables_device(tables, ranks.device))
    placed = place(module, tables, ranks, seed=SEED).module
    optimizers = Optimizers(placed, lambda parameters: dense_optimizer(optimizer, parameters))
    seen = []
    for step in range(STEPS):
        reset_rows(placed, optimizers, "item", *resets(step), seed=SEED, std=tables["item"].init_std)
        seen.append(full_table(placed))
        ids = ids_of(step, ranks.rank, ranks.world_size)
        rows = module.tables(lookup_request({"item": ids}))["item"].values()
        loss_of(rows, module.dense).backward()
        for parameter in optimizers.dense_parameters:
            if parameter.grad is not None:
                ranks.sum(parameter.grad)
        optimizers.step_dense()
        seen.append(full_table(placed))
    return seen


def train_plain(optimizer: str) -> list[torch.Tensor]:
    """The same with a plain table, a plain optimizer, and resets by hand."""
    module = start(torch.device("cpu"))
    config = TableConfig(dim=SPEC.dim)
    initialize_tables(module, SEED, {"item": config.init_std})
    table = module.tables.embeddings["item"].weight
    first = table.detach().clone()
    sparse = (
        RowWiseAdagrad([table], lr=RATE, eps=config.eps)
        if optimizer == "rowwise_adagrad"
        else dense_optimizer(optimizer, [table])
    )
    dense = dense_optimizer(optimizer, module.dense.parameters())
    seen = []
    for step in range(STEPS):
        rows, generations = resets(step)
        with torch.no_grad():
            for row, generation in zip(rows.tolist(), generations.tolist(), strict=True):
                one = [torch.tensor([row]), torch.tensor([generation])]
                values = initial_weights(SEED, "item", *one, range(SPEC.dim), SPEC.dim, config.init_std)
                table[row] = first[row] if generation == 0 else values[0].float()
                for value in sparse.state[table].values():
                    if isinstance(value, torch.Tensor) and value.dim() > 0:
                        value[row] = 0
        seen.append(table.detach().clone())
        loss_of(module.tables(lookup_request({"item": ids_of(step, 0, 1)}))["item"].values(), module.dense).backward()
        for each in (sparse, dense):
            each.step()
            each.zero_grad()
        seen.append(table.detach().clone())
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("sharding", "optimizer"), EVERY_PLAN)
def test_reset_rows_equal_those_of_a_plain_table(rank_pool, sharding, optimizer, world_size):
    placed = rank_pool.run(world_size, train_placed, sharding, optimizer)[0]
    plain = train_plain(optimizer)
    # Adam turns the rounding of gradients near zero into full steps; its rows agree less closely.
    tolerance = 1e-3 if optimizer == "adamw" else 1e-5
    for step in range(STEPS):
        rows, _ = resets(step)
        assert torch.equal(placed[2 * step][rows], plain[2 * step][rows])
        torch.testing.assert_close(placed[2 * step], plain[2 * step], rtol=tolerance, atol=1e-6)
        torch.testing.assert_close(placed[2 * step + 1], plain[2 * step + 1], rtol=tolerance, atol=1e-6)


def test_every_generation_of_a_row_has_other_weights_like_normal_numbers():
    rows, generations = torch.arange(40).repeat_interleave(500), torch.arange(500).repeat(40)
    weights = initial_weights(3, "item", rows, generations, range(16), 16, 0.5)
    assert weights.unique().numel() > 0.999 * weights.numel()
    assert abs(weights.mean().item()) < 0.01
    assert abs(weights.std().item() - 0.5) < 0.01
    by_row = weights.view(40, 500, 16)
    correlation = torch.corrcoef(by_row[:, :, 0])  # between rows, over generations
    assert (correlation - torch.eye(40)).abs().max() < 0.2


def test_columns_of_a_row_are_those_of_the_whole_row():
    rows, generations = torch.tensor([3, 9]), torch.tensor([0, 4])
    whole = initial_weights(3, "item", rows, generations, range(8), 8, 0.5)
    assert torch.equal(whole[:, 4:], initial_weights(3, "item", rows, generations, range(4, 8), 8, 0.5))


def reset_another_table(ranks: Ranks) -> None:
    tables = {"item": TableConfig(dim=SPEC.dim)}
    placed = place(Lookup(tables_device(tables, ranks.device)), tables, ranks, seed=1).module
    optimizers = Optimizers(placed, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    reset_rows(placed, optimizers, "user", torch.tensor([1]), torch.tensor([1]), seed=1, std=1.0)


def test_a_table_that_does_not_exist_is_refused(rank_pool):
    with pytest.raises(KeyError, match="no table user"):
        rank_pool.run(1, reset_another_table)
