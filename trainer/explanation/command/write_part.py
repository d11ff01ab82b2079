"""One worker's part of a request: explanations are written as they are computed."""

import time
from collections.abc import Callable
from contextlib import ExitStack

import pyarrow as pa

from sharding.world import World
from trainer.explanation import occlusion
from trainer.explanation.attribution import Attribution
from trainer.explanation.command.folder import EVENTS, HEADS
from trainer.explanation.command.questions import Batch, Chooser
from trainer.explanation.command.request import ExplainRequest, PartResult
from trainer.explanation.command.rows import event_rows, head_rows
from trainer.explanation.explained import Explained, explained_model
from trainer.explanation.heads import head_effects
from trainer.inference.trained_model import TrainedModel
from trainer.recommend.folder import PartWriter

OnBatch = Callable[[int, int, int], None]
"""Called after each batch with the number of batches done, of all batches, and of users so far."""


def write_part(trained: TrainedModel, request: ExplainRequest, world: World, on_batch: OnBatch) -> PartResult:
    """Write this worker's files of explanations. Collective.

    Args:
        trained: the model, whose tables are sharded.
        request: what is asked for.
        world: the workers.
        on_batch: called after each batch.
    """
    started = time.monotonic()
    model = explained_model(trained, world, request.label)
    chooser = Chooser(model, request, world)
    users = without = questions = rows = 0
    with ExitStack() as stack:
        writers = {name: stack.enter_context(PartWriter(request.parts / name, world.rank)) for name in (EVENTS, HEADS)}
        for number, batch in enumerate(chooser.batches(), start=1):
            for name, table in _tables(model, batch, request).items():
                writers[name].write(table)
                rows += table.num_rows if name == EVENTS else 0
            users += batch.num_users
            without += batch.num_without
            questions += batch.asked.size
            on_batch(number, chooser.num_batches(), users)
    return PartResult(users, without, questions, rows, time.monotonic() - started, None, ())


def _tables(model: Explained, batch: Batch, request: ExplainRequest) -> dict[str, pa.Table]:
    """Return the rows of a batch by name of the table. Collective."""
    attributions = {method: _attributed(model, batch, method, request) for method in request.methods}
    effects = head_effects(model, batch.asked)
    return {
        EVENTS: event_rows(model.trained, batch, attributions),
        HEADS: head_rows(model.trained, batch, effects),
    }


def _attributed(model: Explained, batch: Batch, method: str, request: ExplainRequest) -> Attribution:
    return occlusion.attribute(model, batch.asked, request.removal)
