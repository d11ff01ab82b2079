"""The number of dense weights of the parts of a ranker, computed from their settings. Imports no torch.

The numbers equal the parameters of the modules exactly (tests/models/ranking/test_costs.py).
"""

import itertools
from collections.abc import Sequence

from models.attention.config import TargetAttentionConfig
from models.dense_parameters import bias_parameters
from models.ranking.config import CrossingConfig, ExpertsConfig


def attention_parameters(attention: TargetAttentionConfig, max_history: int, width: int) -> int:
    """Return the number of weights of target attention."""
    heads = attention.num_heads
    head_width = width // attention.num_heads
    seen = attention.num_channels * width
    total = bias_parameters(attention, heads, max_history + 1) + heads * (attention.temperature == "learned")
    total += seen * {"none": 0, "layer_norm": 2, "rms_norm": 1}[attention.output_norm]
    if attention.projection:
        total += width * (width + seen * attention.gate + 2 * attention.key_value_heads * head_width)
        total += seen * width + width * attention.output_bias
    if attention.score == "activation_unit":
        hidden = attention.unit_hidden
        total += heads * (4 * head_width * hidden[0] + hidden[0] + hidden[-1] + 1)
        total += heads * sum((a + 1) * b for a, b in itertools.pairwise(hidden))
        total += sum(hidden) * (attention.unit_activation != "relu")
    return total


def crossing_parameters(crossing: CrossingConfig, fields: Sequence[int]) -> int:
    """Return the number of weights of the crossing of fields of these widths."""
    whole = sum(fields)
    match crossing.kind:
        case "none":
            return 0
        case "dcn_v2":
            return crossing.num_layers * (2 * whole * min(crossing.rank, whole) + whole)
        case "fm":
            return whole * crossing.rank


def expert_parameters(config: ExpertsConfig, width: int, num_labels: int) -> int:
    """Return the number of weights of experts, gates and towers."""
    ends = config.hidden[-1] if config.hidden else width
    total = _network_parameters(num_labels, [ends, *config.tower, 1], config, linear_end=True)
    match config.kind:
        case "shared_bottom":
            return total + _network_parameters(1, [width, *config.hidden], config)
        case "mmoe":
            total += num_labels * width * config.num_experts
            return total + _network_parameters(config.num_experts, [width, *config.hidden], config)
        case "ple":
            for entry, is_last in levels(config, width):
                own = num_labels * config.num_label_experts
                total += _network_parameters(own + config.num_experts, [entry, *config.hidden], config)
                total += num_labels * entry * (config.num_label_experts + config.num_experts)
                total += 0 if is_last else entry * (own + config.num_experts)
            return total


def _network_parameters(count: int, widths: Sequence[int], config: ExpertsConfig, linear_end: bool = False) -> int:
    """Return the weights of networks side by side: matrices, biases, and weights of activations."""
    learned = config.activation != "relu"
    layers = list(itertools.pairwise(widths))
    units = sum(b for _, b in (layers[:-1] if linear_end else layers))
    return count * (sum((a + 1) * b for a, b in layers) + units * learned)


def levels(config: ExpertsConfig, width: int) -> list[tuple[int, bool]]:
    """Return (width of the input, whether it is the last) of every level."""
    entries = [width, *[config.hidden[-1]] * (config.num_levels - 1)]
    return [(entry, number == config.num_levels) for number, entry in enumerate(entries, start=1)]
