"""Checks of a config that need the metrics of its task. Each raises ValueError that names the setting and the remedy.

The package trainer.config knows no task, so the class of the whole config applies them (cluster.config.run_config).
"""

from models.config import ModelConfig
from models.ranking.config import RankingConfig
from trainer.config.evaluate import EvaluateConfig
from trainer.config.train import TrainConfig
from trainer.data.logs.config import LogsConfig
from trainer.tasks.metrics import unusable_reason


def check_early_stopping(train: TrainConfig, evaluate: EvaluateConfig, model: ModelConfig, logs: LogsConfig) -> None:
    """Reject an early-stopping metric that the validation does not compute."""
    stopping = train.early_stopping
    if stopping is None:
        return
    labels = tuple(model.labels or logs.labels) if isinstance(model, RankingConfig) else ()
    reason = unusable_reason(stopping.metric, model.task, evaluate.ks, labels)
    if reason is not None:
        raise ValueError(f"train.early_stopping.metric = {stopping.metric!r}: {reason}")
