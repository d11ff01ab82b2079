"""Metrics of recommended lists, whatever the targets are: novelty, popularity, diversity, and coverage with its error. Pure numpy.

With i_1 .. i_n the items of the first K places of a user's list (n < K if fewer items are left), n_i the training events of item i,
and N = sum n_i:

novelty@K  the mean of -log2(n_i / N), in bits: the mean self-information of the listed items (Castells, Vargas & Wang 2011,
           "Novelty and diversity metrics for recommender systems"; Zhou et al. 2010, arXiv 0808.2670). An item without training
           events counts as one with a single event, as in RecTools, though MeanInvUserFreq counts users instead of events.
arp@K      the mean of n_i: average recommendation popularity (Yin et al. 2012, arXiv 1205.6700), as RecTools has it
ild@K      the mean of 1 - similarity over all pairs of listed items: intra-list diversity (Ziegler et al. 2005; Smyth & McClave
           2001), with the similarity of similarity.py, for K >= 2

Each is a mean over users. A user has no value and is left out if the list has no item, or for ild no two.

coverage@K is the share of the catalogue that is in the top K of some user. It is no mean over users. Its interval is about the
coverage that another sample of as many users would have on average. With s_u the number of items that only user u is recommended,
and f_k the number of items that k users are recommended, its squared error is estimated by

    sum over u of (s_u - mean)^2 - f_1 + sum over k of (-1)^(k + 1) c_k f_k

The first sum is the jackknife's (Efron & Stein 1981), which is too large by about f_2 - f_3 + ...: the last sum estimates how many
new items as many further users would be recommended (Good & Toulmin 1956), for independent items the exact squared error. c_k
smooths it: the probability of at least k heads in 8 throws of a coin (Efron & Thisted 1976). Bootstrap samples of users are no
way: they repeat users, so that their coverage is too low, on average by the share 1 / e of the items recommended once.
"""

import math
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.confidence import SHARE, score_interval
from trainer.evaluation.next_item.similarity import Similarity
from trainer.evaluation.spooled import blocks, spooled, total

_THROWS = 8  # of the coin that smooths the estimate of new items
_LEAST_SHARE = 0.25  # of the jackknife's squared error: a smaller corrected one is noise


@dataclass(frozen=True)
class RankedLists:
    """The recommended lists of U users, and what metrics need to know of the items."""

    top_items: np.ndarray
    """(U, k) ids, the best first; 0 for an empty place."""
    train_events: np.ndarray
    """(num_items,) training events of each item of the catalogue, by id from 1 on."""
    similarity: Similarity | None
    """The similarity of items; None leaves out metrics of diversity."""

    def take(self, k: int) -> np.ndarray:
        """Return the ids of the first k places, (U, k)."""
        return self.top_items[:, :k]


@dataclass(frozen=True)
class CatalogueValue:
    """A metric of all lists together."""

    value: float
    """The metric."""
    interval: tuple[float, float]
    """Its 95 % confidence interval over users."""


def novelty(lists: RankedLists, k: int) -> np.ndarray:
    """Return the mean self-information of each user's list in bits, (U,); NaN for an empty list."""
    events = np.maximum(lists.train_events, 1)
    return _mean_of_items(lists.take(k), math.log2(max(1, lists.train_events.sum())) - np.log2(events))


def recommendation_popularity(lists: RankedLists, k: int) -> np.ndarray:
    """Return the mean number of training events of the items of each user's list, (U,); NaN for an empty list."""
    return _mean_of_items(lists.take(k), lists.train_events)


def diversity(lists: RankedLists, k: int) -> np.ndarray:
    """Return the mean distance of the pairs of items of each user's list, (U,); NaN without pairs."""
    assert lists.similarity is not None
    top = lists.take(k)
    length = (top > 0).sum(axis=1)
    pairs = length * (length - 1.0)
    similar = np.divide(lists.similarity.sums(top), pairs, out=np.full(pairs.size, np.nan), where=pairs > 0)
    distance: np.ndarray = np.clip(1.0 - similar, 0.0, 1.0)  # an estimated similarity may be below 0
    return distance


def coverage(lists: RankedLists, k: int) -> CatalogueValue:
    """Return the share of the catalogue that is in the top K of some user."""
    top, num_items = lists.take(k), lists.train_events.size
    num_users = top.shape[0]
    users_of_item = np.zeros(num_items + 1, dtype=np.int64)
    for users in blocks(num_users):
        users_of_item += np.bincount(top[users].reshape(-1), minlength=num_items + 1)
    users_of_item[0] = 0
    covered = int((users_of_item > 0).sum())
    if not covered:
        return CatalogueValue(0.0, (0.0, 0.0))
    only_here = spooled(num_users, np.int64)
    for users in blocks(num_users):
        only_here[users] = (users_of_item == 1)[top[users]].sum(axis=1)
    error = math.sqrt(_squared_error(users_of_item, only_here))
    value = covered / num_items
    return CatalogueValue(value, score_interval(value, error / num_items, SHARE, num_users))


def _squared_error(users_of_item: np.ndarray, only_here: np.ndarray) -> float:
    """Return the squared error of the number of covered items.

    Args:
        users_of_item: (num_items + 1,) how many users are recommended each item.
        only_here: (U,) the number of items that only this user is recommended.
    """
    mean = total(only_here.size, lambda users: float(only_here[users].sum())) / only_here.size
    jackknife = total(only_here.size, lambda users: float(np.square(only_here[users] - mean).sum()))
    by_count = np.bincount(np.minimum(users_of_item, _THROWS + 1), minlength=_THROWS + 2)[1 : _THROWS + 1]
    chance = np.asarray([math.comb(_THROWS, heads) for heads in range(1, _THROWS + 1)]) / 2**_THROWS
    at_least = np.cumsum(chance[::-1])[::-1]
    signs = np.where(np.arange(_THROWS) % 2, -1.0, 1.0)
    new = float((signs * at_least * by_count).sum())
    return max(jackknife - float(by_count[0]) + new, _LEAST_SHARE * jackknife)


def _mean_of_items(top_items: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean value of the items of each list, (U,) float64; values: (num_items,) by id from 1 on."""
    of_ids = np.concatenate(([0.0], values))
    length = (top_items > 0).sum(axis=1)
    # Column by column: the memory is that of one column, and sums do not depend on the number of users.
    summed = np.zeros(top_items.shape[0])
    for column in top_items.T:
        summed += of_ids[column]
    mean: np.ndarray = np.divide(summed, length, out=np.full(length.size, np.nan), where=length > 0)
    return mean
