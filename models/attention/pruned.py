"""Pruned heads: attention without some of its heads, as a smaller layer with a part of the weights.

The invariant: the smaller layer equals the whole one in which the attended values of the pruned heads are zero, and so are their
parts of the input of the output projection. A head is one of the queries. Heads that share keys and values are pruned together.

Shapes: N events, S attended values of all heads that are left and all channels, H heads, K head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.config import AttentionConfig
from models.layers.norms import GroupNorm


def norm_with_zeros(norm: nn.Module, seen_NS: Tensor, num_pruned: int, num_events: int) -> Tensor:
    """Return the norm of attended values in which the pruned heads count as zeros.

    Args:
        norm: the norm of the values that are left.
        seen_NS: these values.
        num_pruned: number of values of the pruned heads.
        num_events: number of rows of events. Rows of candidates follow them.
    """
    if isinstance(norm, GroupNorm):
        return norm.by_group(
            seen_NS, num_events, lambda own, part: norm_with_zeros(own, part, num_pruned, part.shape[0])
        )
    if not num_pruned:
        normed: Tensor = norm(seen_NS)
        return normed
    width = seen_NS.shape[-1]
    whole = (width + num_pruned,)
    padded = F.pad(seen_NS, (0, num_pruned))
    match norm:
        case nn.LayerNorm():
            padded = F.layer_norm(padded, whole, eps=norm.eps)[..., :width] * norm.weight + norm.bias
        case nn.RMSNorm():
            padded = F.rms_norm(padded, whole, eps=norm.eps)[..., :width] * norm.weight
    return padded.to(seen_NS.dtype)


def kept_indices(
    config: AttentionConfig, num_heads: int, head_width: int, kept: Sequence[int]
) -> dict[str, tuple[int, Tensor]]:
    """Return which part of each weight of a layer a smaller one has, as (dimension, indices) by name.

    Weights that are not named stay as they are.

    Args:
        config: the settings of attention.
        num_heads: number of heads of the layer, H or fewer.
        head_width: K.
        kept: the heads that are kept, ascending. With shared keys, all or none of the heads that share them.
    """
    shared = config.num_heads // config.key_value_heads
    heads = torch.tensor(kept, dtype=torch.int64)
    query_width = num_heads * head_width
    key_width = query_width // shared
    query = _columns(heads, head_width)
    key = _columns(heads[::shared] // shared, head_width)
    seen = torch.cat([channel * query_width + query for channel in range(config.num_channels)])
    projected = [query, query_width + key, query_width + key_width + key]
    if config.gate:
        projected.append(query_width + 2 * key_width + seen)
    of_maps = torch.cat([number * num_heads + heads for number in range(2 if config.differential else 1)])
    by_map = ("position_bias.weight", "position_bias.slope", "time_bias.weight", "time_bias.slope", "log_temperature")
    return {
        "query_key_value.weight": (0, torch.cat(projected)),
        "attention_output.weight": (1, seen),
        **{
            f"output_norm.{group}{name}": (0, seen)
            for group in ("", "events.", "candidates.")
            for name in ("weight", "bias")
        },
        **dict.fromkeys(by_map, (0, of_maps)),
    }


def _columns(heads: Tensor, head_width: int) -> Tensor:
    """Return the columns of heads."""
    return (heads[:, None] * head_width + torch.arange(head_width)).flatten()
