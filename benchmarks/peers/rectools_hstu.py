"""Train RecTools' HSTU for some batches, and print the histories per second. Runs in the environment of the other tools."""

import tempfile
from typing import Any

import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel

from benchmarks.peers.histories import ORDER, read_events
from benchmarks.peers.program import arguments, timed


def main() -> None:
    """Train, and print the speed."""
    given = arguments(__doc__)
    torch.set_num_threads(given.threads)
    torch.manual_seed(1)
    events = read_events(given.logs).to_pandas()
    # RecTools orders events by a time, and the logs have places. The position bias alone is compared.
    events[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(events.pop(ORDER), unit="s")
    events[Columns.Weight] = 1.0
    timing = timed(pytorch_lightning.Callback, given.warm_up)

    def trainer(**_: Any) -> pytorch_lightning.Trainer:
        return pytorch_lightning.Trainer(
            accelerator="cpu",
            max_steps=given.warm_up + given.steps + 1,
            callbacks=[timing],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tempfile.gettempdir(),
        )

    model = HSTUModel(
        n_blocks=2,
        n_heads=1,
        n_factors=given.width,
        session_max_len=given.length,
        dropout_rate=given.dropout,
        loss="sampled_softmax",
        n_negatives=given.negatives,
        batch_size=given.batch,
        relative_time_attention=False,
        relative_pos_attention=True,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(events))
    fitted = [one for one in model.fit_trainer.callbacks if hasattr(one, "report")]  # the trainer was copied
    fitted[0].report(given.batch)


if __name__ == "__main__":
    main()
