"""The vector of an input event: the vector of its item plus features and times.

    x_i = v(item i) + embeddings of the features of event i + embeddings of the features of its user + vectors of its time

Features of a user are known before any of the user's events. No event after i influences x_i.

Shapes: N input events, B histories, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.features.config import TimePart
from models.features.time import Clock, TimeVectors
from models.features.values import FeatureValues, InputFeature, add_features, draw_projections, projections_of


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a model for an event besides its item."""

    events: tuple[InputFeature, ...] = ()  # features of events
    users: tuple[InputFeature, ...] = ()  # features of users
    clock: Clock | None = None  # how the model reads times; None: it uses none
    # features of impressions, with the names of those of events; next-item models have none
    candidates: tuple[InputFeature, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """Return the tables in which features of events, users and candidates look up rows."""
        features = (*self.events, *self.users, *self.candidates)
        return tuple(dict.fromkeys(f.table for f in features if f.table is not None and not f.bagged))

    @property
    def has_request_time(self) -> bool:
        """Return whether the model receives the moment at which a recommendation is requested."""
        return self.clock is not None and self.clock.has_request_time

    @property
    def time_parts(self) -> tuple[TimePart, ...]:
        return self.clock.parts if self.clock is not None else ()


NO_INPUTS = ModelInputs()


class EventInputs(nn.Module):
    """Adds features and times to the item vectors of input events."""

    def __init__(self, width: int, inputs: ModelInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.events = projections_of(inputs.events, width)
        self.users = projections_of(inputs.users, width)
        self.time = TimeVectors(width, inputs.time_parts)

    def forward(
        self,
        items_ND: Tensor,
        rows: Mapping[str, Tensor],
        events: Mapping[str, FeatureValues],
        users: Mapping[str, FeatureValues],
        offsets: Tensor,
        time_rows: Mapping[str, Tensor],
    ) -> Tensor:
        """Add the features and times of events to the vectors of their items. Candidates can take the place of events.

        Args:
            items_ND: vectors of the items of the events.
            rows: looked-up rows by table.
            events: values of the features of the N events.
            users: values of the features of the B users.
            offsets: of the histories, (B + 1,).
            time_rows: rows of the time vectors (N,) by part of the time.

        Returns:
            The vectors of the events, (N, D).
        """
        # Candidates have the same inputs as events, except for features that only events have.
        present = tuple(feature for feature in self.inputs.events if feature.name in events)
        x_ND = add_features(items_ND, present, self.events, rows, events)
        if self.inputs.users:
            lengths_B = offsets.diff()
            nothing_BD = items_ND.new_zeros((lengths_B.numel(), items_ND.shape[1]))
            said_BD = add_features(nothing_BD, self.inputs.users, self.users, rows, users)
            x_ND = x_ND + said_BD.repeat_interleave(lengths_B, dim=0, output_size=items_ND.shape[0])
        told_ND: Tensor = self.time(x_ND, time_rows)
        return told_ND

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator` (CPU), in a fixed order."""
        draw_projections(self.inputs.events, self.events, generator)
        draw_projections(self.inputs.users, self.users, generator)
        self.time.initialize(generator)
