"""Features with dynamic ids: an item without events is recommended by its genre only if the genre may get a row."""

from pathlib import Path

from cluster.config.run_config import check_config, job_of
from cluster.data.prepare import prepare
from tests.contracts.test_item_features import train_and_test
from tests.contracts.test_item_features import write_logs as write_logs_of_genres
from tests.support.rank_pool import RankPool
from trainer.config.job import Job


def test_ids_that_got_rows_improve_the_prediction(tmp_path: Path, rank_pool: RankPool, ray_session: None) -> None:
    """Items without any event are recommended by their genre, which has a row of its own by then; not if none may get one."""
    write_logs_of_genres(tmp_path / "logs")

    def job_of_genres(run: str, admit_after: int) -> Job:
        ids = {"kind": "dynamic", "num_rows": 10, "admit_after": admit_after, "max_candidates": 20}
        adagrad = {"optimizer": "adagrad", "learning_rate": 0.05}
        items = {"path": str(tmp_path / "logs/items.parquet"), "features": {"genre": {"kind": "categorical"}}}
        values = {
            "run": {"dir": str(tmp_path / run), "dataset": str(tmp_path / "dataset")},
            "logs": {"path": str(tmp_path / "logs/events.parquet"), "items": items},
            "split": {"kind": "global_time", "validation_time": 100, "test_time": 200},
            "model": {"max_history": 8, "encoder": {"num_blocks": 1, "dropout": 0.0}},
            "tables": {"item": {"dim": 16, **adagrad}, "genre": {"ids": ids, **adagrad}},
            "train": {
                "epochs": 12, "evaluate_every_epochs": 4, "batch_size": 32, "optimizer": "adagrad", "learning_rate": 0.01,
                "early_stopping": None,
            },
            "evaluate": {"ks": [1, 11], "mask_seen": False},
            "plan": {"measure": False},
        }  # fmt: skip
        return job_of(check_config(values, "test"))

    prepare(check_config(job_of_genres("none", 2).config, "test"), lambda _: None)
    known, unknown = (
        rank_pool.run(2, train_and_test, job_of_genres(f"run-{after}", after))[0][1]["hr@11"] for after in (2, 10**9)
    )
    assert known > 0.9  # behind the ten trained items of the genre, and before the 55 others
    assert unknown < 0.4  # by chance in 17 %
