"""Verdicts of a comparison in words, and the notes that a reader needs with them."""

from collections.abc import Sequence

from trainer.comparison.bootstrap import FEW_USERS
from trainer.comparison.comparison import Comparison, Pair
from trainer.comparison.differences import LEVEL, POWER, Difference
from trainer.comparison.protocols import other_entries
from trainer.comparison.sides import dataset_digest, differ_only_in_seed

WORDS = {
    "better": "better",
    "worse": "worse",
    "differs": "differs",
    "unclear": "not clear over seeds",
    "none": "no difference found",
}


def summary(pair: Pair) -> str:
    """Return the overall verdict about a pair in one or two sentences."""
    reference, other = pair.reference.title, pair.other.title
    of = {word: [one for one in pair.differences if one.outcome == word] for word in WORDS}
    number = len(pair.differences)
    if len(of["none"]) == number:
        if number == 1:
            return f"No difference found between {other} and {reference} in {pair.differences[0].metric}."
        return f"No difference found between {other} and {reference} in any of {number} metrics."
    parts = [f"{word} in {_names(of[word], number)}" for word in ("better", "worse") if of[word]]
    text = f"Compared with {reference}, {other} is {' and '.join(parts)}." if parts else ""
    if of["differs"]:
        text += f" {other} differs from {reference} in {_names(of['differs'])}, where neither direction is better."
    if of["unclear"]:
        text += f" {other} differs over users in {_names(of['unclear'], number)}, but not clearly over training seeds."
    if of["none"]:
        text += f" No difference found in {_names(of['none'])}."
    return text.strip()


def statement(one: Difference, reference: str, other: str) -> str:
    """Return the verdict about one metric in a sentence with its figures.

    Args:
        one: the difference.
        reference: the name of the reference.
        other: the name of the other side.
    """
    if one.outcome in ("better", "worse"):
        sign = 1.0 if one.difference > 0.0 else -1.0
        return (
            f"{other} is {one.outcome} than {reference} in {one.metric} by {sign * one.difference:.4f}"
            f"{_bounds(one, sign)}{_relative(one)}, {p_text(one.p_corrected)}."
        )
    figures = f"{one.difference:+.4f}{_bounds(one, 1.0, signed=True)}{_relative(one)}, {p_text(one.p_corrected)}"
    if one.outcome == "differs":
        return f"{other} differs from {reference} in {one.metric}: {figures}. Neither direction is better."
    if one.outcome == "unclear":
        seeds = f"the interval over training seeds includes 0 ({signed_interval(one.over_seeds)})"
        return f"Not clear in {one.metric}: {figures}; {seeds}."
    return f"No difference found in {one.metric}: {figures}. {_doubt(one)}".strip()


def slice_verdict(pair: Pair) -> str:
    """Return in which slices the verdict is another one than overall, by headline metric; nothing if in none.

    Slices without a difference are not among them: they have fewer users.
    """
    overall = {one.metric: one.outcome for one in pair.differences}
    by_metric: dict[str, list[str]] = {}
    for part in pair.slices:
        outcome = part.of.outcome
        if outcome in ("better", "worse") and outcome != overall[part.of.metric]:
            figures = f"{part.of.difference:+.4f}, {p_text(part.of.p_corrected)}"
            by_metric.setdefault(part.of.metric, []).append(f"{outcome} for {part.title} ({figures})")
    if not by_metric:
        return ""
    listed = "; ".join(f"in {metric} {', '.join(texts)}" for metric, texts in by_metric.items())
    return f"On some slices the verdict is another one: {pair.other.title} is {listed}."


def notes(comparison: Comparison) -> list[str]:
    """Return what limits the verdicts, in sentences."""
    sides, number = comparison.sides, comparison.num_tests
    few = any(one.interval_by == "score" for pair in comparison.pairs for one in pair.differences)
    lines = [
        f"p-values are corrected by Holm's method for {number} test{'s' * (number > 1)} ({len(comparison.pairs)} "
        f"pair{'s' * (len(comparison.pairs) > 1)} x metrics); a difference counts if the corrected p is below {LEVEL:.2f}. "
        "Intervals are not corrected, so one may exclude 0 where no difference was found.",
        f"Intervals are 95 % paired bootstrap intervals over users ({comparison.num_resamples:,} draws, seed {comparison.seed})"
        + (f"; score intervals where fewer than {FEW_USERS} users differ." if few else "."),
    ]
    if any(side.num_seeds > 1 for side in sides):
        lines.append(
            "Sides of several seeds: users are compared by their mean over the seeds. Where both sides have several, a difference "
            "counts only if the 95 % interval over seeds (Welch's) excludes 0 too."
        )
    if any(side.num_seeds == 1 for side in sides):
        lines.append(
            "Intervals and p-values are over users. They do not include the spread over training seeds: another seed of the same "
            "model may differ by more. Compare several seeds of each to include it."
        )
    if differ_only_in_seed(sides):
        seeds = {facts.seed for side in sides for facts in side.runs}
        lines.append(
            "The runs differ only in run.seed: differences between them are the spread over seeds, not of models."
            if len(seeds) > 1
            else "The runs have the same settings and the same seed."
        )
    digests = {digest for side in sides for one in side.evaluations if (digest := dataset_digest(one)) is not None}
    if len(digests) > 1:
        lines.append(
            "The runs were trained on different datasets (other digests), with the same users and held-out events."
        )
    every = [one for side in sides for one in side.evaluations]
    lines += [f"The runs differ in {line}." for line in other_entries(every)]
    if comparison.num_left_out:
        lines.append(
            f"{comparison.num_left_out:,} users that not all evaluations have are left out; figures are those of the others."
        )
    if not comparison.has_slices:
        lines.append("There are no slices, because the files of the evaluations have no columns for them.")
    if comparison.repeated:
        equal = ", ".join(f"{name} = {twin}" for name, twin in comparison.repeated.items())
        lines.append(f"Not repeated, because they are equal for every user: {equal}.")
    return lines


def p_text(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.2f}"


def signed_interval(bounds: tuple[float, float] | None) -> str:
    """Return an interval of a difference as text; nothing where there is none."""
    return "" if bounds is None else f"{bounds[0]:+.4f} to {bounds[1]:+.4f}"


def percent_text(share: float | None) -> str:
    """Return a relative difference as text; nothing where the reference is 0."""
    return "" if share is None else f"{100.0 * share:+.1f} %"


def _names(differences: Sequence[Difference], number: int = 0) -> str:
    """Return the names of metrics, or that it is all of their number."""
    if len(differences) == number > 1:
        return f"all {number} metrics"
    return ", ".join(one.metric for one in differences)


def _bounds(one: Difference, sign: float, signed: bool = False) -> str:
    if one.interval is None:
        return ""
    low, high = sorted(sign * bound for bound in one.interval)
    return f" [{low:+.4f}, {high:+.4f}]" if signed else f" [{low:.4f}, {high:.4f}]"


def _relative(one: Difference) -> str:
    return f" ({percent_text(one.relative)})" if one.relative is not None else ""


def _doubt(one: Difference) -> str:
    """Return why a difference was not found, and which one would have been."""
    if one.p < LEVEL:
        return f"Before the correction {p_text(one.p)}."
    if one.detectable is None:
        return "Every user has the same value in both."
    relative = f" ({100.0 * one.detectable / one.reference:.1f} %)" if one.reference else ""
    return f"A difference of {one.detectable:.4f}{relative} would be found in {100 * POWER:.0f} % of cases."
