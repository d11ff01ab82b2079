"""Experts and towers against plain loops over labels and experts; each impression on its own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.layers.dropout import Dropout
from models.ranking.config import ExpertsConfig
from models.ranking.experts import Experts
from models.ranking.layers import SideBySide

WIDTH, LABELS, ROWS = 6, 3, 7
FORMS = {
    "linear": {"hidden": []},
    "shared bottom": {"hidden": [5, 4], "tower": [3]},
    "mmoe": {"kind": "mmoe", "hidden": [5, 4], "num_experts": 3, "tower": [3]},
    "ple": {"kind": "ple", "hidden": [5, 4], "num_experts": 2, "num_label_experts": 2},
    "ple of two levels": {"kind": "ple", "hidden": [5, 4], "num_experts": 3, "num_levels": 2, "tower": [3]},
    "ple of three levels": {"kind": "ple", "hidden": [4], "num_experts": 1, "num_levels": 3},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def experts_of(form: str, **more) -> tuple[Experts, ExpertsConfig]:
    config = ExpertsConfig.model_validate({**FORMS[form], **more})
    module = Experts(WIDTH, LABELS, config)
    module.initialize(torch.Generator().manual_seed(1))
    module = module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(0.2 * random(*parameter.shape, seed=number))
    return module, config


def network(module: SideBySide, number: int, x: Tensor, linear_end: bool = False) -> Tensor:
    """Return one of the networks, layer by layer."""
    for place, weight in enumerate(module.weights):
        x = x @ weight[number]
        if len(module.biases):
            x = x + module.biases[place][number]
        if not (linear_end and place == len(module.weights) - 1):
            x = F.relu(x)
    return x


def mixture(gate: Tensor, experts: list[Tensor]) -> Tensor:
    weights = gate.softmax(dim=1)
    return sum(weights[:, e : e + 1] * expert for e, expert in enumerate(experts))


def plainly(module: Experts, config: ExpertsConfig, x: Tensor) -> Tensor:
    labels, shared = [x] * LABELS, x
    for level in module.levels:
        if config.kind == "shared_bottom":
            labels = [network(level.network, 0, x)] * LABELS
        elif config.kind == "mmoe":
            experts = [network(level.experts, e, x) for e in range(config.num_experts)]
            labels = [mixture(network(level.gates, t, x, linear_end=True), experts) for t in range(LABELS)]
        else:
            num_own = config.num_label_experts
            own = [[network(level.own, t * num_own + e, labels[t]) for e in range(num_own)] for t in range(LABELS)]
            common = [network(level.shared, e, shared) for e in range(config.num_experts)]
            gates = [network(level.gates, t, labels[t], linear_end=True) for t in range(LABELS)]
            if level.shared_gate is not None:
                gate = network(level.shared_gate, 0, shared, linear_end=True)
                shared = mixture(gate, [*(e for value in own for e in value), *common])
            labels = [mixture(gates[t], [*own[t], *common]) for t in range(LABELS)]
    return torch.cat([network(module.towers, t, labels[t], linear_end=True) for t in range(LABELS)], dim=1)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_plain_loops(form):
    (module, config), x = experts_of(form), random(ROWS, WIDTH)
    logits = module(x)
    assert logits.shape == (ROWS, LABELS)
    torch.testing.assert_close(logits, plainly(module, config, x))


@pytest.mark.parametrize("form", ["linear", "mmoe", "ple of two levels"])
def test_gradients_reach_every_weight(form):
    module, _ = experts_of(form, activation="prelu")
    x = random(2, WIDTH).requires_grad_()
    names = [name for name, _ in module.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def logits(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, (x, *weights))
    module(random(40, WIDTH, seed=3)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
@pytest.mark.parametrize("form", FORMS)
def test_an_impressions_logits_do_not_depend_on_the_others(form, activation):
    (module, _), x = experts_of(form, activation=activation), random(ROWS, WIDTH)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(module(x[order]), module(x)[order])
    torch.testing.assert_close(module(x[:1]), module(x)[:1])
    assert module(x[:0]).shape == (0, LABELS)


def test_hidden_activations_are_dropped_and_logits_are_not():
    module, _ = experts_of("shared bottom", dropout=0.5)
    x = random(ROWS, WIDTH)
    torch.manual_seed(0)
    assert (module(x) != 0).all()
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    assert isinstance(module.towers.dropout, Dropout)


def test_the_same_seed_gives_the_same_weights():
    first, second = (Experts(WIDTH, LABELS, ExpertsConfig(kind="ple", activation="dice")) for _ in range(2))
    for module in (first, second):
        module.initialize(torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_experts_without_layers_are_refused():
    with pytest.raises(ValueError, match=r"hidden = \[\] leaves the experts of mmoe"):
        ExpertsConfig(kind="mmoe", hidden=[])
