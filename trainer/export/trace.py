"""Tracing of programs by torch.export, with numbers of histories, events and impressions that may vary."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from models.features.values import InputFeature
from trainer.export.inputs import Form
from trainer.export.programs import Program

# Numbers of the example that is traced. All sizes differ, since torch.export takes equal sizes for one.
HISTORY_LENGTHS = (4, 6, 3)
NUM_SHOWN = (2, 5, 3)
NUM_VALUES = 2


def trace(program: Program, form: Form, is_ranker: bool) -> ExportedProgram:
    """Return the traced program, which no longer needs the code of the model."""
    inputs = example_inputs(form, is_ranker)
    with torch.no_grad():
        return torch.export.export(program, (inputs,), dynamic_shapes=({**dynamic_shapes(inputs, form)},))


def example_inputs(form: Form, is_ranker: bool) -> dict[str, Tensor]:
    """Return inputs of a program, of arbitrary values."""
    lengths = np.asarray(HISTORY_LENGTHS)
    shown = np.asarray(NUM_SHOWN)
    num_events, num_histories, num_shown = int(lengths.sum()), lengths.size, int(shown.sum())
    others = {num_events, num_histories, num_histories + 1, num_shown}
    longest = max(int(lengths.max()) + 1, form.least_places)
    while {longest, longest + 2} & others:
        longest += 1
    arrays: dict[str, Tensor] = {
        "items": torch.zeros(num_events, dtype=torch.int64),
        "offsets": torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)))),
        "places": torch.arange(longest),
    }
    clock = form.inputs.clock
    counts = {"event": num_events, "user": num_histories}
    if is_ranker:
        counts["candidate"] = num_shown
        arrays |= {
            "candidate_items": torch.zeros(num_shown, dtype=torch.int64),
            "candidate_offsets": torch.from_numpy(np.concatenate(([0], np.cumsum(shown)))),
            "candidate_places": torch.arange(longest + 2),
            "history_end": torch.from_numpy(np.repeat(lengths - 1, shown)),
        }
    if clock is not None:
        seconds = ("candidate_seconds", num_shown) if is_ranker else ("request_seconds", num_events)
        for name, size in (("seconds", num_events), seconds):
            arrays[name] = torch.zeros(size, dtype=torch.int64)
        for part in clock.parts:
            arrays[f"time.{part}"] = torch.zeros(num_events, dtype=torch.int64)
            if is_ranker:
                arrays[f"candidate_time.{part}"] = torch.zeros(num_shown, dtype=torch.int64)
    owned = {"event": form.inputs.events, "user": form.inputs.users, "candidate": form.inputs.candidates}
    for owner, number in counts.items():
        for feature in owned[owner]:
            arrays[f"{owner}.{feature.name}"] = _example(feature, number)
    return arrays


def _example(feature: InputFeature, number: int) -> Tensor:
    if feature.table is None:
        return torch.zeros((number, feature.width))
    return torch.zeros((number, NUM_VALUES), dtype=torch.int64)


def dynamic_shapes(inputs: Mapping[str, Tensor], form: Form) -> dict[str, dict[int, Dim]]:
    """Return the dimensions of each input that may vary, as torch.export takes them."""
    events, histories, shown = Dim("events"), Dim("histories"), Dim("impressions")
    sizes = {
        "offsets": histories + 1,
        "candidate_offsets": histories + 1,
        "places": Dim("places", min=form.least_places) if form.least_places > 1 else Dim("places"),
        "candidate_places": Dim("candidate_places"),
        "history_end": shown,
    }
    shapes = {}
    for name, tensor in inputs.items():
        owner = histories if name.startswith("user.") else shown if name.startswith("candidate") else events
        shapes[name] = {0: sizes.get(name, owner)}
        if tensor.dim() == 2 and not tensor.is_floating_point():
            shapes[name][1] = Dim(f"values_{len(shapes)}")
    return shapes
