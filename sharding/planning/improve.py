"""Local search: improves a layout by small moves of the tables that other ranks wait for. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from sharding.planning.layout import Layout, Placed
from sharding.planning.options import Option

MAX_TRIALS = 4000
MIN_GAIN = 1e-6  # of the step; smaller gains could be rounding errors and repeat forever
MAX_PAIRED = 12  # with more tables, moves of two at once are not tried


def improve(layout: Layout, options: Mapping[str, Sequence[Option]], in_pairs: bool = False) -> Layout:
    """Change the layout until no move of one table or swap of two improves it, or MAX_TRIALS were made. Returns the layout.

    in_pairs: also try moves of two tables at once, if there are few tables.
    """
    search = _Search(layout, options)
    while search.has_trials and (search.move_one() or search.swap_two() or (in_pairs and search.move_two())):
        pass
    return layout


class _Search:
    def __init__(self, layout: Layout, options: Mapping[str, Sequence[Option]]) -> None:
        self.layout = layout
        self.options = options
        self.trials = 0

    @property
    def has_trials(self) -> bool:
        return self.trials < MAX_TRIALS

    def move_one(self) -> bool:
        """Try every option, at its best places, for each table that others wait for. Returns whether one was better."""
        return any(self._moved([name]) for name in self._bottlenecks())

    def move_two(self) -> bool:
        names = sorted(self.layout.tables)
        return len(names) <= MAX_PAIRED and any(self._moved(pair) for pair in combinations(names, 2))

    def swap_two(self) -> bool:
        """Try to swap the places of a table that others wait for with a cheaper table of the same kind of placement."""
        return any(self._swapped(name, other) for name in self._bottlenecks() for other in self._less_busy(name))

    def _bottlenecks(self) -> Iterator[str]:
        """Yield the tables on the busiest ranks, the most expensive first, and one of each set of identical tables."""
        layout = self.layout
        busiest = set(self.layout.busiest_ranks)
        seen = set()
        for name in sorted(layout.tables, key=lambda name: (-layout.tables[name].option.peak_seconds, name)):
            placed = layout.tables[name]
            sort = id(placed.option), tuple(placed.places.tolist())
            concerned = placed.option.where == "everywhere" or not busiest.isdisjoint(layout.ranks_of(placed).tolist())
            if concerned and sort not in seen:
                seen.add(sort)
                yield name

    def _less_busy(self, name: str) -> Iterator[str]:
        own = self.layout.tables[name]
        for other in sorted(self.layout.tables):
            rival = self.layout.tables[other]
            if (
                rival.option.peak_seconds < own.option.peak_seconds
                and rival.option.where == own.option.where
                and rival.option.ranks == own.option.ranks
                and rival.places.size == own.places.size
                and (rival.places != own.places).any()
            ):
                yield other

    def _moved(self, names: Sequence[str]) -> bool:
        """Take the best options of these tables if they make the step shorter. Returns whether they do."""
        if not self.has_trials:
            return False
        layout = self.layout
        best_seconds = layout.step_seconds * (1.0 - MIN_GAIN)
        before = [layout.take(name) for name in names]
        best = before
        for choice in product(*(self.options[name] for name in names)):
            placed = self._put_all(names, choice)
            if len(placed) == len(names) and layout.step_seconds < best_seconds:
                best_seconds = layout.step_seconds
                best = placed
            for name, _ in zip(names, placed, strict=False):
                layout.take(name)
        for name, one in zip(names, best, strict=True):
            layout.put(name, one)
        return best is not before

    def _put_all(self, names: Sequence[str], choice: Sequence[Option]) -> list[Placed]:
        """Place the tables by these options. The result is shorter than `names` if one does not fit."""
        self.trials += 1
        placed: list[Placed] = []
        for name, option in zip(names, choice, strict=True):
            places = self.layout.best_places(option)
            if places is None:
                break
            placed.append(Placed(option, places))
            self.layout.put(name, placed[-1])
        return placed

    def _swapped(self, one: str, other: str) -> bool:
        if not self.has_trials:
            return False
        self.trials += 1
        layout = self.layout
        names = (one, other)
        seconds = layout.step_seconds
        before = [layout.take(name) for name in names]
        for name, own, rival in zip(names, before, before[::-1], strict=True):
            layout.put(name, Placed(own.option, rival.places))
        if layout.fits and layout.step_seconds < seconds * (1.0 - MIN_GAIN):
            return True
        for name in names:
            layout.take(name)
        for name, placed in zip(names, before, strict=True):
            layout.put(name, placed)
        return False
