"""The protocol of an evaluation, as metrics.json and the report state it: which data, and one paragraph in words. No torch."""

from pathlib import Path
from typing import Any

from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.run_header import moment_of, split_text

_TARGETS = {
    "all": "All held-out events of a user together are one set of targets, ranked once from the history before the split.",
    "first": "The first held-out event of a user is the target, ranked from the history before it.",
    "each": "Each held-out event is a target of its own, ranked from all events before it, held-out ones included. A user's "
    "metric is the mean over the user's targets.",
}
_REPEATS = {
    "keep": "Items that the user has consumed before may be targets.",
    "drop": "Targets that the user has consumed before are dropped, so only first consumptions count.",
}


def data_of(manifest: Manifest) -> dict[str, Any]:
    """Return the entries of a protocol that describe later logs; none for a run's own dataset.

    Returns:
        logs: names of their files.
        dataset: start of the digest of the dataset.
        base_dataset: start of the digest of the dataset that the model was trained on.
        period: first and last time of the events.
        num_events: events (ranking: impressions) that were kept.
        num_rejected: rows that were rejected.
        num_unknown_items, num_unknown_item_events: items that the model does not know, and their events.
        num_new_users: users that the base dataset does not have.
    """
    new = manifest.derived
    if not new:
        return {}
    names = [Path(file["path"]).name for file in manifest.source["files"] if file["source"] == "logs"]
    return {
        "logs": ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        "dataset": manifest.digest[:12],
        "base_dataset": new["base"][:12],
        "period": " to ".join(moment_of(time, manifest) for time in (new["first"], new["last"]) if time is not None),
        "num_events": new["events"],
        "num_rejected": sum(new["rejected"].values()),
        "num_unknown_items": new["unknown_items"],
        "num_unknown_item_events": new["unknown_item_events"],
        "num_new_users": new["new_users"],
    }


def statement_of(split: str, config: EvaluateConfig, manifest: Manifest, candidates: str) -> str:
    """Return the protocol of a next-item model as one paragraph.

    Args:
        split: the evaluated split.
        config: the settings of evaluation.
        manifest: the dataset's.
        candidates: the candidates in words.
    """
    seen = "are excluded from the ranked list" if config.mask_seen else "stay in the ranked list"
    return " ".join(
        (
            f"Split {split}, {split_text(manifest.split, manifest)}.",
            _TARGETS[config.targets],
            f"Candidates: {candidates}.",
            f"Items of the user's own history {seen}.",
            _REPEATS[config.repeats],
            "Equal scores are ordered by item id.",
            _untrained(manifest),
        )
    )


def statement_of_ranking(split: str, manifest: Manifest) -> str:
    """Return the protocol of a ranking model as one paragraph."""
    return " ".join(
        (
            f"Split {split}, {split_text(manifest.split, manifest)}.",
            "Every impression of the split is scored from the events of its user strictly before it.",
            "Candidates, seen items and repeats do not apply, because the impressions are given.",
            _untrained(manifest),
        )
    )


def _untrained(manifest: Manifest) -> str:
    if manifest.derived:
        return "Nothing of these logs was trained on; vocabularies and encoders are those of the training data."
    return "Nothing of the held-out parts was trained on."
