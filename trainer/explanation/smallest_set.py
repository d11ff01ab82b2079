"""The smallest set of events to remove for another top item, a counterfactual explanation (Kaffes et al. 2021).

    sizes up to `exact_size`    all sets of that size are tried: the result is a smallest set
    larger sizes                greedy: the event is added that leaves the top item the smallest lead; the set is then
                                made irreducible: events without which the top item still changes are taken out again

A set that is one event larger than all sizes that were tried in full is a smallest set too. No set removes the whole history: a
model has no top item without events. All variants of all questions are scored in batches.

Shapes: B questions, N events of all of them, V variants.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np

from trainer.explanation.questions import Questions
from trainer.explanation.removal import Removal, remove
from trainer.explanation.top_items import TopItems, TopTwo

VARIANTS_AT_A_TIME = 65_536  # variants that are held in memory


@dataclass(frozen=True)
class SmallestSets:
    """A set of events for each question."""

    removed: np.ndarray
    """(N,) bool, the events of the set; none if none was found."""
    found: np.ndarray
    """(B,) bool, whether a set was found."""
    is_smallest: np.ndarray
    """(B,) bool, whether no smaller set exists. Other sets are irreducible: no event of them can stay."""
    top_before: np.ndarray
    """(B,) int64, the top item with all events."""
    top_after: np.ndarray
    """(B,) int64, the top item without the set; 0 if none was found."""

    def sizes(self, asked: Questions) -> np.ndarray:
        """Return the number of events of each set, (B,) int64; 0 if none was found."""
        sizes: np.ndarray = np.bincount(asked.owner, self.removed, minlength=asked.size).astype(np.int64)
        return sizes


@dataclass
class _Search:
    """The state of a search, over all questions of this worker."""

    top: TopItems
    asked: Questions
    how: Removal
    pool: Questions | None
    seed: int
    internal_batch_size: int | None
    before: TopTwo
    removed: np.ndarray  # (N,) bool, the set so far
    found: np.ndarray  # (B,) bool
    is_smallest: np.ndarray  # (B,) bool
    after: np.ndarray  # (B,) int64

    def variants(self, question: np.ndarray, events: np.ndarray) -> TopTwo:
        """Return the top items of variants. Collective.

        Args:
            question: (V,) question of each variant.
            events: (V, k) numbers of the events that it removes; -1 for fewer.
        """
        asked = self.asked
        items, scores = [np.zeros((0, 2), np.int64)], [np.zeros((0, 2), np.float32)]
        for part in range(self.top.model.most(-(-question.size // VARIANTS_AT_A_TIME))):
            rows = slice(part * VARIANTS_AT_A_TIME, (part + 1) * VARIANTS_AT_A_TIME)
            own, chosen = question[rows], events[rows]
            repeated = asked.take(own)
            removed = np.zeros(repeated.items.size, np.bool_)
            variant, column = np.nonzero(chosen >= 0)
            event = chosen[variant, column]
            removed[repeated.offsets[variant] + event - asked.offsets[own[variant]]] = True
            without = remove(repeated, removed, self.how, self.pool, self.seed)
            best = self.top.best_two(without, own, self.internal_batch_size)
            items.append(best.items)
            scores.append(best.scores)
        return TopTwo(np.concatenate(items), np.concatenate(scores))

    def accept(self, question: np.ndarray, events: np.ndarray, best: TopTwo, smallest: bool) -> None:
        """Keep for each question the changing variant with the largest lead of its new top item, the first one among equals."""
        changed = np.flatnonzero(best.items[:, 0] != self.before.items[question, 0])
        order = changed[np.lexsort((changed, -best.lead[changed], question[changed]))]
        questions, first = np.unique(question[order], return_index=True)
        chosen = order[first]
        self.found[questions] = True
        self.is_smallest[questions] = smallest
        self.after[questions] = best.items[chosen, 0]
        self.removed[np.isin(self.asked.owner, questions)] = False
        self.removed[events[chosen][events[chosen] >= 0]] = True


def smallest_sets(
    top: TopItems,
    asked: Questions,
    max_size: int = 10,
    exact_size: int = 1,
    how: Removal = "deleted",
    pool: Questions | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
) -> SmallestSets:
    """Return a smallest set of events for each question that changes the top item when it is removed. Collective.

    Args:
        top: the candidates and the model.
        asked: the questions; their targets are not used.
        max_size: size of the largest sets.
        exact_size: size up to which all sets are tried, 1 or more. The number of sets of size k grows as the k-th power.
        how: what removal means.
        pool: for "replaced", questions with the events to draw from.
        seed: for "replaced".
        internal_batch_size: number of events that are encoded at a time.
    """
    everyone = np.arange(asked.size)
    before = top.best_two(asked, everyone, internal_batch_size)
    nothing = np.zeros(asked.size, np.bool_)
    search = _Search(
        top, asked, how, pool, seed, internal_batch_size, before,
        np.zeros(asked.items.size, np.bool_), nothing.copy(), nothing.copy(), np.zeros(asked.size, np.int64),
    )  # fmt: skip
    greedy = np.zeros(asked.items.size, np.bool_)
    for size in range(1, max_size + 1):
        open_ones = np.flatnonzero(~search.found & (asked.lengths > size) & (before.items[:, 0] > 0))
        if not top.model.most(open_ones.size):
            break
        question, events = _one_more(asked, open_ones, greedy, size)
        best = search.variants(question, events)
        search.accept(question, events, best, size <= exact_size + 1)
        if 1 < size <= exact_size:
            _try_all(search, np.flatnonzero(~search.found & (asked.lengths > size) & (before.items[:, 0] > 0)), size)
        _extend(search, greedy, question, events, best)
    _make_irreducible(search)
    return SmallestSets(search.removed, search.found, search.is_smallest, before.items[:, 0], search.after)


def _one_more(asked: Questions, questions: np.ndarray, chosen: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return variants that remove the chosen events and one more, as (question (V,), events (V, size))."""
    is_open = np.zeros(asked.size, np.bool_)
    is_open[questions] = True
    more = np.flatnonzero(is_open[asked.owner] & ~chosen)
    question = asked.owner[more]
    events = np.full((more.size, size), -1, np.int64)
    events[:, 0] = more
    held = np.flatnonzero(chosen & is_open[asked.owner])
    if held.size:
        counts = np.bincount(asked.owner[held], minlength=asked.size)
        column = np.arange(held.size) - (np.cumsum(counts) - counts)[asked.owner[held]]
        table = np.full((asked.size, size - 1), -1, np.int64)
        table[asked.owner[held], column] = held
        events[:, 1:] = table[question]
    return question, events


def _try_all(search: _Search, questions: np.ndarray, size: int) -> None:
    """Try all sets of a size. Collective."""
    question, events = _all_sets(search.asked, questions, size)
    search.accept(question, events, search.variants(question, events), True)


def _all_sets(asked: Questions, questions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all sets of `size` events of each question, as (question (V,), events (V, size))."""
    longest = int(asked.lengths[questions].max(initial=0))
    # Sets of places, in an order in which those of a shorter history come first.
    sets = np.zeros((1, 0), np.int64)
    for _ in range(size):
        following = np.arange(longest)
        low = sets[:, -1] + 1 if sets.shape[1] else np.zeros(sets.shape[0], np.int64)
        row, place = np.nonzero(following[None, :] >= low[:, None])
        sets = np.concatenate((sets[row], place[:, None]), axis=1)
    fits = sets[:, -1][None, :] < asked.lengths[questions][:, None]
    row, chosen = np.nonzero(fits)
    question = questions[row]
    return question, asked.offsets[question][:, None] + sets[chosen]


def _extend(search: _Search, greedy: np.ndarray, question: np.ndarray, events: np.ndarray, best: TopTwo) -> None:
    """Add to the greedy set of each open question the event that leaves its top item the smallest lead when it is removed."""
    stays = np.flatnonzero(~search.found[question])
    order = stays[np.lexsort((-events[stays, 0], best.lead[stays], question[stays]))]
    _, first = np.unique(question[order], return_index=True)
    greedy[events[order[first], 0]] = True


def _make_irreducible(search: _Search) -> None:
    """Take events out of sets that are not proved to be smallest, as long as the top item still changes. Collective."""
    asked = search.asked
    unproved = search.found & ~search.is_smallest
    for _ in count():
        sizes = np.bincount(asked.owner, search.removed, minlength=asked.size).astype(np.int64)
        questions = np.flatnonzero(unproved & (sizes > 1))
        if not search.top.model.most(questions.size):
            return
        question, events = _one_fewer(asked, questions, search.removed, sizes)
        best = search.variants(question, events)
        changed = best.items[:, 0] != search.before.items[question, 0]
        smaller = np.unique(question[changed])
        unproved[np.setdiff1d(questions, smaller)] = False  # irreducible
        search.accept(question, events, best, False)


def _one_fewer(
    asked: Questions, questions: np.ndarray, removed: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return variants that remove all but one event of a set, as (question (V,), events (V, largest size))."""
    is_open = np.zeros(asked.size, np.bool_)
    is_open[questions] = True
    held = np.flatnonzero(removed & is_open[asked.owner])
    owner = asked.owner[held]
    counts = np.bincount(owner, minlength=asked.size)
    column = np.arange(held.size) - (np.cumsum(counts) - counts)[owner]
    table = np.full((asked.size, int(sizes.max(initial=1))), -1, np.int64)
    table[owner, column] = held
    events = table[owner].copy()
    events[np.arange(held.size), column] = -1
    return owner, events
