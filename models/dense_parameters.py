"""The number of dense weights of encoders, computed from their settings. Imports no torch.

The numbers equal the parameters of the modules exactly (tests/models/test_costs.py).
"""

import itertools

from models.attention.config import NUM_POSITION_BUCKETS as POSITION_BUCKETS
from models.attention.config import NUM_TIME_BUCKETS as TIME_BUCKETS
from models.attention.config import AttentionConfig, with_heads
from models.encoders.config import EncoderConfig, inner_encoder


def encoder_parameters(encoder: EncoderConfig, max_history: int, width: int) -> int:
    """Return the number of weights of an encoder."""
    norm = width * (2 if encoder.norm == "layer_norm" else 1)
    blocks = encoder.heads_of_blocks.values()
    total = sum(_block_parameters(encoder, max_history, width, norm, heads) for heads in blocks)
    total += max_history * width * (encoder.positions == "learned") + norm * encoder.final_norm
    total += norm * encoder.input_norm + ((width + 1) * width + norm) * (encoder.output_head != "none")
    total += _merge_parameters(encoder, width, norm)
    if encoder.pooling == "attention":
        total += width + 2 * width * width + (width + 1) * width
    return total + tower_parameters(encoder.user_tower, width)


def _merge_parameters(encoder: EncoderConfig, width: int, norm: int) -> int:
    if encoder.merge_size is None:
        return 0
    total = encoder.merge_size * width * width
    if encoder.merge_form == "transformer":
        inner = inner_encoder(encoder)
        total += _block_parameters(inner, encoder.merge_size, width, norm, inner.attention.num_heads)
    return total


def tower_parameters(hidden: list[int], width: int) -> int:
    """Return the number of weights of a tower, 0 for a tower without layers."""
    widths = [width, *(width * multiple for multiple in hidden), width] if hidden else []
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def bias_parameters(attention: AttentionConfig, heads: int, places: int, sides: int = 1) -> int:
    """Return the number of weights of the biases by position and time.

    Args:
        attention: the settings of the attention.
        heads: number of heads times the number of maps.
        places: number of distances to each side with a weight of their own.
        sides: 2 if events attend to later events too, else 1.
    """
    positions = {"exact": sides * places, "bucketed": sides * min(POSITION_BUCKETS, places), "functional": 1}
    total = heads * positions[attention.position_bias] * attention.uses_position
    return total + heads * (TIME_BUCKETS if attention.time_bias == "bucketed" else 1) * attention.uses_time


def _block_parameters(encoder: EncoderConfig, max_history: int, width: int, norm: int, num_heads: int) -> int:
    head_width = width // encoder.attention.num_heads
    attention = with_heads(encoder.attention, num_heads)
    maps = 2 if attention.differential else 1
    heads = maps * num_heads
    sides = 2 if attention.mask == "bidirectional" else 1
    seen = attention.num_channels * num_heads * head_width
    projected = num_heads * head_width + 2 * attention.key_value_heads * head_width + seen * attention.gate
    groups = 1 + encoder.candidate_norms
    norm *= groups
    total = norm + width * projected + seen * width + width * attention.output_bias
    total += bias_parameters(attention, heads, max_history, sides)
    total += heads * (attention.temperature == "learned")
    total += (4 * (head_width // maps) + head_width) * attention.differential
    total += groups * seen * {"none": 0, "layer_norm": 2, "rms_norm": 1}[attention.output_norm]
    gate = (width + 1) * width * encoder.residual_gate
    total += gate
    hidden = width * encoder.feed_forward_multiple
    match encoder.feed_forward:
        case "none":
            return total
        case "swiglu":
            return total + norm + gate + 3 * width * hidden
        case _:
            return total + norm + gate + 2 * width * hidden + hidden + width
