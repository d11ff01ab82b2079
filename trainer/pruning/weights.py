"""Weights of a pruned model: those of the whole model without the parts of pruned heads and blocks.

The same holds for everything that has the shape of a weight: slots of the dense optimizer, and moving averages.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.attention.pruned import kept_indices
from models.encoders.config import EncoderConfig
from trainer.pruning.choice import Kept

BLOCK = re.compile(r"(?P<before>(?:^|.*\.)encoder\.blocks\.)(?P<number>\d+)\.(?P<rest>.*)$")
ATTENTION = "attention."


def pruned_tensors(tensors: Mapping[str, Tensor], encoder: EncoderConfig, width: int, kept: Kept) -> dict[str, Tensor]:
    """Return the tensors of the pruned model by name, which share no memory with the given ones where they differ.

    Args:
        tensors: of the whole model by name, in which the names of the encoder's blocks begin with "encoder.blocks.", after any
            prefix. A slot is named after its parameter: its name and that of the slot.
        encoder: the settings of the whole encoder.
        width: of the model.
        kept: the heads that are kept, by number of the block.
    """
    places = {number: place for place, number in enumerate(encoder.heads_of_blocks)}  # in the whole model
    numbers = list(places)
    new_places = {number: place for place, number in enumerate(sorted(kept))}
    pruned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = BLOCK.match(name)
        if match is None:
            pruned[name] = tensor
            continue
        number = numbers[int(match["number"])]
        if number in kept:
            new_name = f"{match['before']}{new_places[number]}.{match['rest']}"
            pruned[new_name] = _part(match["rest"], tensor, encoder, width, number, kept)
    return pruned


def _part(name: str, tensor: Tensor, encoder: EncoderConfig, width: int, number: int, kept: Kept) -> Tensor:
    """Return the kept part of a tensor of a block; the tensor itself if heads do not matter to it."""
    heads = encoder.heads_of_blocks[number]
    if not name.startswith(ATTENTION) or len(kept[number]) == heads or not tensor.dim():
        return tensor
    head_width = width // encoder.attention.num_heads
    for weight, (dimension, indices) in kept_indices(encoder.attention, heads, head_width, kept[number]).items():
        if name == ATTENTION + weight or name.startswith(f"{ATTENTION}{weight}."):
            return tensor.index_select(dimension, indices)
    return tensor
