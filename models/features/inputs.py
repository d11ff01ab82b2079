"""What the encoder is given for an input event: the vector of its item, and all that is known beside it.

    x_i = v(item i) + what the features of event i say + what the features of its user say + vectors of its time

Features of a user are known before any of the user's events. Nothing of an event after i is in x_i.

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
class Inputs:
    """What a model is told of events besides their items. clock: how it reads times, none where it looks at none.

    candidates: features of impressions, of the same names as those of events; models of the next item have none.
    """

    events: tuple[InputFeature, ...] = ()
    users: tuple[InputFeature, ...] = ()
    clock: Clock | None = None
    candidates: tuple[InputFeature, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables in which features of events, users and candidates look up rows."""
        features = (*self.events, *self.users, *self.candidates)
        return tuple(dict.fromkeys(f.table for f in features if f.table is not None and not f.bagged))

    @property
    def tells_request(self) -> bool:
        """Whether the model is told the moment at which a recommendation is asked for."""
        return self.clock is not None and self.clock.tells_request

    @property
    def time_parts(self) -> tuple[TimePart, ...]:
        return self.clock.parts if self.clock is not None else ()


NO_INPUTS = Inputs()


class EventInputs(nn.Module):
    """Adds to the item vectors of input events what is known beside them."""

    def __init__(self, width: int, inputs: Inputs) -> None:
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
        """rows: by table, what was looked up; events, users: values of features of the N events and the B histories;
        offsets: (B + 1,) of the histories; time_rows: by part of the time (N,). Returns (N, D). Candidates of the
        histories may stand in the place of their events."""
        # Candidates are told what events are told, as far as they have it.
        told = tuple(feature for feature in self.inputs.events if feature.name in events)
        x_ND = add_features(items_ND, told, self.events, rows, events)
        if self.inputs.users:
            lengths_B = offsets.diff()
            nothing_BD = items_ND.new_zeros((lengths_B.numel(), items_ND.shape[1]))
            said_BD = add_features(nothing_BD, self.inputs.users, self.users, rows, users)
            x_ND = x_ND + said_BD.repeat_interleave(lengths_B, dim=0, output_size=items_ND.shape[0])
        told_ND: Tensor = self.time(x_ND, time_rows)
        return told_ND

    def initialize(self, generator: torch.Generator) -> None:
        """Draw everything from `generator` (CPU), in a fixed order."""
        draw_projections(self.inputs.events, self.events, generator)
        draw_projections(self.inputs.users, self.users, generator)
        self.time.initialize(generator)
