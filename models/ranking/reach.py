"""How far back scores of impressions look: a number of events that follows from the settings alone. Imports no torch.

Through b layers in which each event attends to the r most recent events, itself included, a vector depends on 1 + b (r - 1)
events, as in attention within a sliding window. So a history may be cut to that many events before an impression and nothing of
the impression's score changes, whichever other impressions of its user are scored with it.
"""

from dataclasses import dataclass

from models.ranking.config import RankingConfig


@dataclass(frozen=True)
class Reach:
    """Numbers of events before an impression, the most recent ones."""

    attended: int  # those that a candidate attends to in one layer: model.max_history
    receptive: int  # those that its score depends on through all layers


def reach_of(config: RankingConfig) -> Reach:
    """Return the reach of a ranker's scores.

    Layers after which no candidate looks at an event do not count: through the encoder's blocks a candidate goes itself, so that
    the last one makes nothing of events.
    """
    attended, encoder = config.max_history, config.encoder
    if config.interest.kind == "none":
        return Reach(attended, attended)
    window = encoder.attention.window
    layers = [attended if window is None else min(window, attended)] * encoder.num_blocks
    layers += [attended] * (encoder.pooling == "attention")
    if config.interest.kind == "encoder":
        layers = layers[:-1]
    return Reach(attended, attended + sum(layer - 1 for layer in layers))
