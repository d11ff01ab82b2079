"""Progressive evaluation: the model is evaluated on the impressions of the next day, before it is trained on them.

So every impression from the second day on is a test impression once, and then trains (test-then-train, or prequential, evaluation:
Dawid 1984, doi:10.2307/2981683). The baseline is the popularity of items on all days before. After the last training day the next
one is the first of the validation period; nothing later is read.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from trainer.data.stream.columns import stretches
from trainer.data.stream.days import Days
from trainer.data.stream.impressions import shown_on
from trainer.evaluation.ranking.baselines import Counted
from trainer.evaluation.ranking.evaluate import RankingEvaluator, ScoresImpressions, Tally

POPULARITY = "popularity"


class ProgressiveEvaluator:
    """Evaluates one day after another, and counts how often items were shown and chosen on the days before.

    Memory: two numbers per item and label on every worker.
    """

    def __init__(self, evaluator: RankingEvaluator, days: Days) -> None:
        """Start before the first day. evaluator: of the dataset, for any split."""
        self._evaluator, self._days = evaluator, days
        num_ids = evaluator.held_out.catalogue.num_ids
        self._items = {
            label: Counted.nothing(num_ids) for label in evaluator.rules.labels
        }  # of this worker's row groups
        self._counted_to = days.first

    def metrics(
        self, model: ScoresImpressions, day: int, on_batch: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Any] | None:
        """Evaluate the first day from `day` on that has impressions; return None if there is none. Collective.

        The values are "day" and "begins" (its number and first moment), "impressions" (by label, on how many it is defined),
        "metrics" of the model, and "popularity" (the same metrics of the baseline).

        Args:
            model: the model.
            day: number of the day that is trained next.
            on_batch: called after each batch with the number of batches done and of all batches.
        """
        next_day = self._days.next_with_impressions(day)
        if next_day is None:
            return None
        self._count_up_to(next_day)
        groups, world = tuple(self._days.groups(next_day).tolist()), self._evaluator.world
        held_out = self._evaluator.held_out
        held_out = replace(
            held_out, deal=replace(held_out.deal, groups=groups), shown=self._days.calendar.bounds(next_day)
        )
        evaluator = replace(self._evaluator, held_out=held_out)
        rates = {label: counted.over(world) for label, counted in self._items.items()}
        of_model, of_popularity = Tally(evaluator.rules), Tally(evaluator.rules)
        num_batches = held_out.num_batches()
        for number, (held, logits) in enumerate(evaluator.score_all(model), start=1):
            of_model.add(held, logits)
            items = held.batch.candidate_ids.numpy()
            of_popularity.add(held, np.stack([rate.logits(items, rate.overall) for rate in rates.values()], axis=1))
            on_batch(number, num_batches)
        metrics, impressions = of_model.metrics(world)
        return {
            "day": next_day,
            "begins": self._days.calendar.name_of(next_day),
            "impressions": impressions,
            "metrics": metrics,
            POPULARITY: of_popularity.metrics(world)[0],
        }

    def _count_up_to(self, day: int) -> None:
        """Count the impressions of all days before this one that were not counted yet, in this worker's row groups."""
        reader, world, days = self._evaluator.held_out.deal.reader, self._evaluator.world, self._days
        wanted = days.rows[self._counted_to - days.first : day - days.first]
        begin, end = (int(days.calendar.bounds(number)[0]) for number in (self._counted_to, day))
        self._counted_to = day
        for group in np.flatnonzero(wanted.any(axis=0))[world.rank :: world.world_size].tolist():
            packed = reader.read([group])[group]
            shown = packed.impressions
            assert shown is not None
            low, high = shown_on(packed, np.arange(packed.starts.size), begin, end)
            places, _ = stretches(shown.starts + low, shown.starts + high)
            columns = {name: column[places] for name, column in shown.labels.items()}
            weight, rules = self._evaluator.rules.weights(columns), self._evaluator.rules
            for label, counted in self._items.items():
                defined, positive = rules.defined(label, columns), rules.positive(label, columns)
                counted.add(shown.items[places][defined], weight[defined], positive[defined])
