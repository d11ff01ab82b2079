"""The moving average of dense weights: its formula, and that a model has its raw weights again after it was evaluated."""

import pytest
import torch

from models.config import NextItemConfig
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from trainer.optim.ema import WeightEma


def model_of(seed: int) -> NextItemModel:
    model = NextItemModel(NextItemConfig(), [TableSpec("item", 30, 8)], torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def shift(model: NextItemModel, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_an_average_decays_slower_and_slower(decay):
    model = model_of(1)
    averages = WeightEma(model, ["item"], decay)
    dense = {name: p for name, p in model.named_parameters() if "tables" not in name}
    expected = {name: p.detach().double() for name, p in dense.items()}
    for n in range(12):
        shift(model, n)
        averages.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * p.detach().double() for name, p in dense.items()}
    assert averages.values.keys() == dense.keys()
    assert int(averages.num_updates) == 12
    for name, value in averages.values.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5, msg=name)


def interrupted_evaluation(model: NextItemModel, averages: WeightEma, raw: dict[str, torch.Tensor]) -> None:
    with averages.swapped_in():
        for name, value in averages.values.items():
            assert torch.equal(dict(model.named_parameters())[name], value)
            assert not torch.equal(value, raw[name])
        raise KeyboardInterrupt


def test_the_raw_weights_come_back_bit_for_bit():
    model = model_of(1)
    averages = WeightEma(model, ["item"], 0.5)
    shift(model, 1)
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt):
        interrupted_evaluation(model, averages, raw)
    assert all(torch.equal(p, raw[name]) for name, p in model.named_parameters())
