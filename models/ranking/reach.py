"""The number of events before an impression that its score depends on, computed from the settings. Imports no torch.

Through b layers in which each event attends to the r most recent events, itself included, a vector depends on 1 + b (r - 1)
events, as in attention within a sliding window. So a history can be cut to that many events before an impression without a
change of its score, for any other impressions of the user in the batch.
"""

from dataclasses import dataclass

from models.ranking.config import RankingConfig


@dataclass(frozen=True)
class Reach:
    """Numbers of events before an impression, the most recent ones."""

    attended: int  # that a candidate attends to in one layer: model.max_history
    receptive: int  # that its score depends on through all layers


def reach_of(config: RankingConfig) -> Reach:
    """Return the reach of a ranker's scores.

    Layers after which no candidate attends to an event do not count: a candidate passes through the encoder's blocks itself, so
    that the last block does not use its events.
    """
    attended = config.max_history
    encoder = config.encoder
    if config.interest.kind == "none":
        return Reach(attended, attended)
    window = encoder.attention.window
    layers = [attended if window is None else min(window, attended)] * len(encoder.heads_of_blocks)
    layers += [attended] * (encoder.pooling == "attention")
    if config.interest.kind == "encoder":
        layers = layers[:-1]
    return Reach(attended, attended + sum(layer - 1 for layer in layers))
