"""Input of a training step of a next-item model, for its cost model."""

import numpy as np

from models.config import NextItemConfig
from models.costs import Projected, Workload, costs_of
from models.histories import Histories
from trainer.config.run_config import RunConfig
from trainer.data.inputs import UsedFeatures
from trainer.data.stream.dealing import relative_costs
from trainer.data.stream.stochastic_length import shortened_length, whole_probabilities
from trainer.placement.loads import ITEM_TABLE

CHOSEN_LENGTHS = 512  # at most, of which `costs_by_length` computes the costs


def training_histories(train_ends: np.ndarray, config: RunConfig, model: NextItemConfig) -> Histories:
    """Count the input events of every training example: the last event of a history is only a target, unless events are masked."""
    return shortened_histories(whole_histories(train_ends, config, model), model)


def whole_histories(train_ends: np.ndarray, config: RunConfig, model: NextItemConfig) -> Histories:
    """Count the same before stochastic length shortens any."""
    longest = model.max_history
    inputs = np.maximum(train_ends.astype(np.int64) - (not model.masks_items), 0)
    if config.train.long_histories == "recent":
        return Histories.of(np.minimum(inputs, longest))
    whole = np.full(int((inputs // longest).sum()), longest)
    return Histories.of(np.concatenate((whole, inputs % longest)))


def shortened_histories(histories: Histories, model: NextItemConfig) -> Histories:
    """Return the histories as stochastic length leaves them, with counts that are means over epochs."""
    if model.stochastic_length is None:
        return histories
    shortened = shortened_length(model.max_history, model.stochastic_length)
    whole = whole_probabilities(histories.lengths, shortened)
    lengths = np.concatenate((histories.lengths, np.minimum(histories.lengths, shortened)))
    counts = np.concatenate((whole * histories.counts, (1.0 - whole) * histories.counts))
    different, place = np.unique(lengths[counts > 0], return_inverse=True)
    return Histories(different, np.bincount(place, counts[counts > 0], different.size))


def events_per_step(histories: Histories, train_ends: np.ndarray, config: RunConfig, model: NextItemConfig) -> float:
    """Return the input events of a global batch. Examples without events are counted too: they fill places of a batch."""
    if config.train.batch_tokens is not None:
        # The limit counts whole histories.
        whole = whole_histories(train_ends, config, model).num_events
        return config.train.batch_tokens * (histories.num_events / whole if whole else 1.0)
    empty = int((train_ends < (1 if model.masks_items else 2)).sum())
    return config.train.batch_size * histories.num_events / (float(histories.counts.sum()) + empty)


def projected_features(config: RunConfig, used: UsedFeatures) -> tuple[Projected, ...]:
    """Return the features that are not as wide as the model."""
    width = config.tables[ITEM_TABLE].dim
    features_of_width = []
    for features in (used.items, used.events, used.users):
        for feature in features:
            of_table = feature.table is not None
            own = config.tables[feature.table].dim if feature.table is not None else feature.dim or 1
            if not of_table or own != width:
                features_of_width.append(Projected(feature.owner, own, of_table))
    return tuple(features_of_width)


def costs_by_length(config: RunConfig, model: NextItemConfig, num_items: int) -> np.ndarray:
    """Return the FLOPs of a training example of each length from 0 to max_history, relative to each other, (n,) int64.

    For an encoder without a window, truncation and token merge they are a L + b L^2. They include the objective, unless workers
    divide the catalogue. Between CHOSEN_LENGTHS lengths they are interpolated. What a step computes once is left out.

    Args:
        config: the config.
        model: its model.
        num_items: number of items of the training part.
    """
    longest = model.max_history
    chosen = np.unique(np.linspace(1, longest, CHOSEN_LENGTHS).round().astype(np.int64))
    flops = np.asarray([0.0, *(_flops_of(config, model, num_items, length) for length in chosen.tolist())])
    costs = np.interp(np.arange(longest + 1), np.concatenate(([0], chosen)), flops)
    if model.stochastic_length is not None:
        shortened = shortened_length(longest, model.stochastic_length)
        lengths = np.arange(longest + 1)
        whole = whole_probabilities(lengths, shortened)
        costs = whole * costs + (1.0 - whole) * costs[np.minimum(lengths, shortened)]
    return relative_costs(costs)


def _flops_of(config: RunConfig, model: NextItemConfig, num_items: int, length: int) -> float:
    """Return the FLOPs of one example."""
    alone = Workload(Histories.of(np.asarray([length])), float(length), num_items, items_per_step=0.0)
    costs = costs_of(model, config.tables[ITEM_TABLE].dim, alone)
    divided = config.train.catalogue_workers > 1
    return length * sum(part.training for name, part in costs.parts.items() if not (divided and name == "objective"))
