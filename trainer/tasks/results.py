"""Results of an evaluation of either task, as the driver and the terminal handle them. No torch, and no pages."""

from typing import Any

from trainer.evaluation.next_item.results import Results
from trainer.evaluation.ranking.results import RankingResults

Summary = Results | RankingResults


def summary_of(values: dict[str, Any]) -> Summary:
    """Return the content of a metrics.json as results."""
    return RankingResults(**values) if values["task"] == "ranking" else Results(**values)
