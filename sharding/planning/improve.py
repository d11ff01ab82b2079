"""A layout made better by small moves of the tables that others wait for. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from sharding.planning.layout import Layout, Placed
from sharding.planning.options import Option

MAX_TRIALS = 4000
MIN_GAIN = 1e-6  # of the step; below it, rounding could lead round in circles
MAX_PAIRED = 12  # tables up to which two are moved at once


def improve(layout: Layout, options: Mapping[str, Sequence[Option]], in_pairs: bool = False) -> Layout:
    """The layout itself, changed until no move of one table or swap of two makes it better, or MAX_TRIALS were made.

    in_pairs: nor a move of two at once, where tables are few.
    """
    search = _Search(layout, options)
    while search.goes_on and (search.move_one() or search.swap_two() or (in_pairs and search.move_two())):
        pass
    return layout


class _Search:
    def __init__(self, layout: Layout, options: Mapping[str, Sequence[Option]]) -> None:
        self.layout, self.options, self.trials = layout, options, 0

    @property
    def goes_on(self) -> bool:
        return self.trials < MAX_TRIALS

    def move_one(self) -> bool:
        """Any option, at its best places, for a table that others wait for."""
        return any(self._moved([name]) for name in self._waited_for())

    def move_two(self) -> bool:
        names = sorted(self.layout.tables)
        return len(names) <= MAX_PAIRED and any(self._moved(pair) for pair in combinations(names, 2))

    def swap_two(self) -> bool:
        """A table that others wait for exchanges its places with one that lies alike and has less to do."""
        return any(self._swapped(name, other) for name in self._waited_for() for other in self._less_busy(name))

    def _waited_for(self) -> Iterator[str]:
        """Tables on the busiest ranks, the busiest first, one of those that are the same in everything."""
        layout, busiest = self.layout, set(self.layout.busiest_ranks)
        seen = set()
        for name in sorted(layout.tables, key=lambda name: (-layout.tables[name].option.peak_seconds, name)):
            placed = layout.tables[name]
            sort = id(placed.option), tuple(placed.places.tolist())
            concerned = placed.option.where == "everywhere" or not busiest.isdisjoint(layout.ranks_of(placed).tolist())
            if concerned and sort not in seen:
                seen.add(sort)
                yield name

    def _less_busy(self, name: str) -> Iterator[str]:
        mine = self.layout.tables[name]
        for other in sorted(self.layout.tables):
            yours = self.layout.tables[other]
            if (
                yours.option.peak_seconds < mine.option.peak_seconds
                and yours.option.where == mine.option.where
                and yours.option.ranks == mine.option.ranks
                and yours.places.size == mine.places.size
                and (yours.places != mine.places).any()
            ):
                yield other

    def _moved(self, names: Sequence[str]) -> bool:
        """Whether other options for these tables make the step shorter; then the best ones are taken."""
        if not self.goes_on:
            return False
        layout = self.layout
        best_seconds = layout.step_seconds * (1.0 - MIN_GAIN)
        before = [layout.take(name) for name in names]
        best = before
        for choice in product(*(self.options[name] for name in names)):
            placed = self._put_all(names, choice)
            if len(placed) == len(names) and layout.step_seconds < best_seconds:
                best_seconds, best = layout.step_seconds, placed
            for name, _ in zip(names, placed, strict=False):
                layout.take(name)
        for name, one in zip(names, best, strict=True):
            layout.put(name, one)
        return best is not before

    def _put_all(self, names: Sequence[str], choice: Sequence[Option]) -> list[Placed]:
        """Fewer than asked for if one finds no room."""
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
        if not self.goes_on:
            return False
        self.trials += 1
        layout, names = self.layout, (one, other)
        seconds = layout.step_seconds
        before = [layout.take(name) for name in names]
        for name, mine, yours in zip(names, before, before[::-1], strict=True):
            layout.put(name, Placed(mine.option, yours.places))
        if layout.fits and layout.step_seconds < seconds * (1.0 - MIN_GAIN):
            return True
        for name in names:
            layout.take(name)
        for name, placed in zip(names, before, strict=True):
            layout.put(name, placed)
        return False
