"""Train RePlay's SASRec for some batches, and print the histories per second. Runs in the environment of the other tools.

The model, the transforms and the data module are those that RePlay documents for SASRec. `--buckets` encodes histories of similar
lengths together, as RePlay offers since 0.22; `--negatives 0` compares with all items.
"""

import argparse
import tempfile
from pathlib import Path

import lightning
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.data.nn.parquet import ParquetModule
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.loss import CE, CESampled
from replay.nn.sequential.length_bucket import LengthBucketedQueryEncoder
from replay.nn.sequential.sasrec import SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms

from benchmarks.peers.histories import read_events, write_lists
from benchmarks.peers.program import arguments, timed

BUCKET = 32  # histories encoded together, a quarter of a batch


def main() -> None:
    """Train, and print the speed."""
    given = arguments(__doc__, "buckets")
    torch.set_num_threads(given.threads)
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        events = read_events(given.logs)
        num_items = int(events["item_id"].to_numpy().max()) + 1
        write_lists(events, Path(folder) / "train.parquet")
        train(given, Path(folder), num_items)


def train(given: argparse.Namespace, folder: Path, num_items: int) -> None:
    """Train on the lists of the folder, and print the speed."""
    schema = TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=given.width,
            padding_value=num_items,
            cardinality=num_items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
        )
    )
    model = SasRec.from_params(
        schema,
        embedding_dim=given.width,
        num_heads=1,
        num_blocks=2,
        max_sequence_length=given.length,
        dropout=given.dropout,
    )
    transforms = make_default_sasrec_transforms(schema)["train"]
    loss = CE(ignore_index=num_items)
    if given.negatives:
        loss = CESampled(ignore_index=num_items)
        transforms.append(UniformNegativeSamplingTransform(num_items, given.negatives))
    loss.logits_callback = model.get_logits
    model.loss = loss
    if given.buckets:
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, BUCKET)
    data = ParquetModule(
        batch_size=given.batch,
        # One more than the length: the transform takes the last event as a target only.
        metadata={"train": {"item_id": {"shape": given.length + 1, "padding": num_items}}},
        transforms={"train": transforms},
        config={"train": {"generator": torch.default_generator, "partition_size": 20 * given.batch}},
        train_path=str(folder / "train.parquet"),
    )
    timing = timed(lightning.Callback, given.warm_up)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=given.warm_up + given.steps + 1,
        callbacks=[timing],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(LightningModule(model, OptimizerFactory("adam", 1e-3)), datamodule=data)
    timing.report(given.batch)


if __name__ == "__main__":
    main()
