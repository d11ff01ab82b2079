"""Checks of a dataset and its split, each with a verdict: leakage, overlap of training and test, uninformative rows.

Pure functions of the manifest's counts. A verdict is a hint to a person, never a reason to stop: a leak in one
experiment may be the subject of another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from trainer.data.dataset.grouping import DUPLICATE
from trainer.data.dataset.leakage import LeakyFeature
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.profile import SPLITS, Profile
from trainer.data.dataset.splits import time_as_text
from trainer.data.dataset.tied_order import TiedOrder

Verdict = Literal["ok", "look", "problem"]
LEAKY_AUC = 0.95
CROWDED_BINS = 2  # of profile.NUM_TIME_BINS: if nearly all events are in so few, the ends of the range are outliers
CROWDED_SHARE = 0.99
SIGNIFICANT = 3.0  # standard errors
_NOTHING: dict[str, Any] = {
    "items": dict.fromkeys(SPLITS, 0),
    "test_items_with_training": 0,
    "test_targets_without_training": 0,
    "unknown_targets": {"validation": 0, "test": 0},
}


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    # Name of the check in card.json.
    name: str
    # Title on the card.
    title: str
    # Result of the check.
    verdict: Verdict
    # The number that decides the verdict, or None.
    value: float | None
    # Observation, as text.
    found: str
    # Why it matters, as text.
    why: str


@dataclass(frozen=True)
class Limits:
    """Thresholds of a check."""

    # From this value on, the check is worth a look.
    look: float
    # From this value on, the check is a problem.
    problem: float

    def verdict(self, value: float) -> Verdict:
        """Return the verdict for a value."""
        return "problem" if value >= self.problem else "look" if value >= self.look else "ok"


LATER_TRAINING = Limits(0.01, np.inf)
REPEATS = Limits(0.05, 0.5)
STRANGERS = Limits(0.05, 0.5)  # test users without training
UNKNOWN = Limits(0.01, 0.2)
UNTRAINED_ITEMS = Limits(0.1, 0.5)
TIES = Limits(0.05, 0.9)
TIED_ORDER = Limits(0.6, 0.75)  # share of neighbours in one direction, if chance does not explain it
DUPLICATES = Limits(0.01, 0.2)
DRIFT = Limits(1.25, 2.0)  # how many times as large the one rate is as the other
LEAKY = Limits(LEAKY_AUC, LEAKY_AUC)


def profile_values(manifest: Manifest) -> dict[str, Any]:
    """Return the profile of the manifest, with zeros for values that it lacks."""
    return Profile.empty().as_values() | _NOTHING | manifest.profile


def checks_of(manifest: Manifest, leaky_features: Sequence[LeakyFeature]) -> tuple[Check, ...]:
    """Return all checks that apply to the dataset, in the order of the page.

    Args:
        manifest: the manifest.
        leaky_features: features that reveal a label, the strongest first.
    """
    values = profile_values(manifest)
    checks = [
        *_files(manifest),
        _held_out(manifest),
        *_time(manifest, values),
        *_overlap(manifest, values),
        _ties(manifest, values),
        _duplicates(manifest),
    ]
    if not manifest.has_impressions:
        checks.append(_tied_order(manifest.profile.get("tied_order")))
    if manifest.has_impressions:
        checks += [_outcomes(manifest), *_drift(manifest, values), _leakage(manifest, leaky_features)]
    return tuple(checks)


def split_sizes(values: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of events (ranking: impressions) of each split."""
    return {split: sum(values["events_over_time"][split]) for split in SPLITS}


def _files(manifest: Manifest) -> Iterator[Check]:
    broken = [file for file in manifest.source["files"] if "unreadable" in file]
    if broken:
        yield Check(
            "unreadable_files",
            "Files left out",
            "look",
            len(broken),
            f"{len(broken):,} of {len(manifest.source['files']):,} files could not be read and were left out",
            "Their events are missing from histories and targets, perhaps whole days of them.",
        )


def _held_out(manifest: Manifest) -> Check:
    counts = manifest.counts
    missing = [
        name
        for name, number in (
            ("training", counts.train_events),
            ("validation", counts.validation_targets),
            ("test", counts.test_targets),
        )
        if not number
    ]
    observation = f"{' and '.join(missing)}: no targets" if missing else "every split has targets"
    return Check(
        "empty_splits",
        "Empty splits",
        "look" if missing else "ok",
        len(missing),
        observation,
        "Without validation targets no checkpoint can be chosen, and without test targets nothing can be reported.",
    )


# Time


def _time(manifest: Manifest, values: Mapping[str, Any]) -> Iterator[Check]:
    kind = manifest.source.get("time", {}).get("kind", "integer")
    if manifest.split["kind"] == "global_time":
        yield _time_order(values, kind)
    elif not manifest.derived:  # nothing is trained on a derived dataset
        yield _later_training(manifest, values, kind)
    yield _clocks(values)


def _time_order(values: Mapping[str, Any], kind: str) -> Check:
    ranges = [(split, values["time_range"][split]) for split in SPLITS if values["time_range"][split]]
    steps = [
        (f"{one} ends {time_as_text(mine[1], kind)}, {other} begins {time_as_text(its[0], kind)}", its[0] <= mine[1])
        for (one, mine), (other, its) in pairwise(ranges)
    ]
    bad = sum(wrong for _, wrong in steps)
    return Check(
        "time_order",
        "Training before validation before test",
        "problem" if bad else "ok",
        bad,
        "; ".join(text for text, _ in steps) or "a single split has events",
        "Training events after a tested event may reveal its outcome.",
    )


def _later_training(manifest: Manifest, values: Mapping[str, Any], kind: str) -> Check:
    name = "training_after_test"
    title = "Training events later than test events"
    why = (
        "Under this split a model learns from events of other users after the event it is tested on, for example which "
        'items became popular since; with split.kind = "global_time" it does not.'
    )
    span = manifest.source.get("time") or {}
    if span.get("first") is None or not values["time_range"]["test"]:
        return Check(name, title, "ok", None, "there are no test events", why)
    if kind == "integer" and span["last"] - span["first"] < values["longest_history"]:
        observation = "times look like positions in a history, not like a clock, so this is unknown"
        return Check(name, title, "look", None, observation, why)
    train, test = (np.asarray(values["events_over_time"][split], np.float64) for split in ("train", "test"))
    first_bin = int(np.flatnonzero(test)[0])
    share = float(train[first_bin + 1 :].sum() / max(1.0, train.sum()))
    later = np.cumsum(train[::-1])[::-1] - train / 2.0  # half of those in the same stretch of time
    typical = float((later * test).sum() / max(1.0, test.sum() * train.sum()))
    observation = (
        f"{share:.1%} of the training events are after the first test event "
        f"({time_as_text(values['time_range']['test'][0], kind)}), and {typical:.1%} after an average one"
    )
    return Check(name, title, LATER_TRAINING.verdict(share), share, observation, why)


def _clocks(values: Mapping[str, Any]) -> Check:
    """Check which share of the events is in the fullest stretches of the time range."""
    total = np.asarray([values["events_over_time"][split] for split in SPLITS], np.int64).sum(axis=0)
    share = float(np.sort(total)[-CROWDED_BINS:].sum() / max(1, total.sum()))
    crowded = int((total > 0).sum()) > CROWDED_BINS and share >= CROWDED_SHARE
    place = f"{CROWDED_BINS} of {total.size} equal stretches of time"
    return Check(
        "outlying_times",
        "Outlying times",
        "look" if crowded else "ok",
        share,
        f"the fullest {place} hold {share:.1%} of the events",
        "A few times far from all others come from wrong clocks or units, and come first or last in their histories; "
        "logs.earliest_time and logs.latest_time reject them.",
    )


# Overlap of training and test


def _overlap(manifest: Manifest, values: Mapping[str, Any]) -> Iterator[Check]:
    targets = manifest.counts.test_targets
    num_users = values["users"]["test"]
    shown = "impressions" if manifest.has_impressions else "targets"
    sampled = values["sampled_test_targets"]
    repeated = values["repeated_test_targets"]
    masked = (
        "With evaluate.mask_seen (the default) they cannot be hit; without it, recommending past items is hard to beat."
        if not manifest.has_impressions
        else "A model may remember the outcome of an earlier impression of the same item."
    )
    of_sample = "" if sampled == targets else "sampled "
    yield _share(
        ("repeated_test_targets", f"Test {shown} of items that the user had before"),
        REPEATS,
        (repeated, sampled),
        f"{of_sample}test {shown}",
        masked,
    )
    yield _share(
        ("test_users_without_training", "Test users without training events"),
        STRANGERS,
        (values["test_users_without_training"], num_users),
        "test users",
        "The model was trained on none of their events; a metric over all users mixes them with known users.",
    )
    yield _share(
        ("unknown_test_targets", f"Test {shown} of unknown items"),
        UNKNOWN,
        (values["unknown_targets"]["test"], targets),
        f"test {shown}",
        "Items without (enough) training events share one row, and count as missed when the catalogue is ranked."
        if not manifest.has_impressions
        else "Items without (enough) training events share one row, so the model cannot distinguish them by their ids.",
    )
    yield _trained_items(values, targets)


def _share(names: tuple[str, str], limits: Limits, count: tuple[int, int], of: str, why: str) -> Check:
    part, total = count
    if not total:
        return Check(*names, "ok", None, f"there are no {of}", why)
    share = part / total
    return Check(*names, limits.verdict(share), share, f"{part:,} of {total:,} {of} ({share:.2%})", why)


def _trained_items(values: Mapping[str, Any], targets: int) -> Check:
    names = ("test_items_with_training", "Test items seen in training")
    why = "Only features can inform the score of an item that was never trained on."
    tested = values["items"]["test"]
    if not tested:
        return Check(*names, "ok", None, "there are no test items", why)
    share = values["test_items_with_training"] / tested
    untrained = values["test_targets_without_training"]
    observation = (
        f"{values['test_items_with_training']:,} of {tested:,} items ({share:.2%}); the others have "
        f"{untrained:,} of {targets:,} targets ({untrained / max(1, targets):.2%})"
    )
    return Check(*names, UNTRAINED_ITEMS.verdict(1.0 - share), share, observation, why)


def _ties(manifest: Manifest, values: Mapping[str, Any]) -> Check:
    return _share(
        ("tied_times", "Ties in time"),
        TIES,
        (manifest.counts.tied_times, sum(split_sizes(values).values())),
        "events share user and time with the one before",
        "The order of the log decides between them, and thus which are held out; another export may order them differently.",
    )


def _tied_order(counted: Mapping[str, int] | None) -> Check:
    """Check whether events with equal times are in the order of their items. counted: of the profile; None if it has none."""
    names = ("tied_order", "Ties in time in the order of item ids")
    why = (
        "In such a log a model can guess the next item from the last id alone, and its figures are too good. Use the log in its "
        "original order or with finer times, or shuffle the rows of equal times before prepare."
    )
    if counted is None:
        return Check(*names, "ok", None, "not counted by the version that prepared this dataset", why)
    ties = TiedOrder(**counted)
    if not ties.neighbours:
        return Check(*names, "ok", None, "no user has two events with equal times", why)
    direction = "ascending" if ties.ascending >= ties.descending else "descending"
    share = max(ties.ascending, ties.descending) / ties.neighbours
    certain = ties.errors_from_half >= SIGNIFICANT
    observation = (
        f"{share:.2%} of {ties.neighbours:,} tied neighbours of {ties.users:,} users are in {direction} order of item ids; "
        "without a pattern it is one half" + ("" if certain else ", and chance explains the difference")
    )
    return Check(*names, TIED_ORDER.verdict(share) if certain else "ok", share, observation, why)


def _duplicates(manifest: Manifest) -> Check:
    why = "Many of them suggest that logs were exported twice, or that times are too coarse to distinguish events."
    if manifest.source["settings"].get("logs", {}).get("duplicates") == "keep":
        kept = 'kept and not counted, because logs.duplicates = "keep"'
        return Check("duplicates", "Duplicates", "ok", None, kept, why)
    count = (manifest.counts.rejected.get(DUPLICATE, 0), manifest.counts.rows_read)
    return _share(
        ("duplicates", "Duplicates"), DUPLICATES, count, "rows read repeat user, item and time of another", why
    )


# Labels


def _outcomes(manifest: Manifest) -> Check:
    """Check that no feature reads a label or an outcome.

    Settings refuse such features. This check covers the dataset itself, wherever its settings came from.
    """
    after = [*manifest.labels["names"], *manifest.labels.get("outcomes", ())]
    sources = {
        column["column"]
        for columns in manifest.source["columns"].values()
        for key, column in columns.items()
        if key.partition(".")[0] in ("event", "item", "user") and "." in key
    }
    taken = sorted(sources & set(after))
    observation = f"features read them: {', '.join(taken)}" if taken else f"no feature reads {', '.join(after)}"
    return Check(
        "outcomes_apart",
        "Labels and outcomes apart from features",
        "problem" if taken else "ok",
        len(taken),
        observation,
        "A column that is known only after an impression must not be an input; list further such columns in logs.outcomes.",
    )


def _drift(manifest: Manifest, values: Mapping[str, Any]) -> Iterator[Check]:
    sizes = split_sizes(values)
    for label, positives in manifest.labels["positives"].items():
        names = (f"drift.{label}", f"Positive rate of {label}, training and test")
        why = (
            "A model learns the training rate, so predicted probabilities will be wrong by about as much at test time."
        )
        if not sizes["train"] or not sizes["test"]:
            yield Check(*names, "ok", None, "one of the two has no impressions", why)
            continue
        train, test = (positives[split] / sizes[split] for split in ("train", "test"))
        low = min(train, test)
        high = max(train, test)
        ratio = high / low if low else (np.inf if high else 1.0)
        pooled = (positives["train"] + positives["test"]) / (sizes["train"] + sizes["test"])
        error = (max(0.0, pooled * (1.0 - pooled)) * (1.0 / sizes["train"] + 1.0 / sizes["test"])) ** 0.5
        certain = high - low > SIGNIFICANT * error
        observation = f"{train:.4f} in training, {test:.4f} in test" + (
            "" if certain else ", a difference that chance explains"
        )
        yield Check(*names, DRIFT.verdict(ratio) if certain else "ok", test - train, observation, why)


def _leakage(manifest: Manifest, leaky_features: Sequence[LeakyFeature]) -> Check:
    names = ("features_give_label_away", "Features that reveal the label")
    why = (
        "A single feature that separates positives from negatives almost perfectly was probably known only after the impression; "
        "list its column in logs.outcomes."
    )
    if not leaky_features:
        return Check(*names, "ok", None, "no feature of impressions to check, or labels without both outcomes", why)
    strongest = leaky_features[0]
    flagged = [feature for feature in leaky_features if feature.auc >= LEAKY_AUC]
    observation = (
        "; ".join(f"{leaky.feature} reveals {leaky.label} (AUC {leaky.auc:.3f} alone)" for leaky in flagged)
        or f"none; the strongest is {strongest.feature} for {strongest.label}, AUC {strongest.auc:.3f} alone"
    )
    return Check(*names, LEAKY.verdict(strongest.auc), strongest.auc, observation, why)
