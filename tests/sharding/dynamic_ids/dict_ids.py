"""Dynamic ids written the plain way, with dicts and loops: the reference that the arrays must equal."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sharding.config import DynamicIdsConfig


@dataclass
class Owner:
    row: int
    uses: int
    last_used: int


@dataclass
class Candidate:
    count: int
    last_seen: int


@dataclass
class DictIds:
    """rows: id to its row; candidates: id to its count; queue: ids due for eviction by use, as found at step `swept_at`."""

    config: DynamicIdsConfig
    step: int = 0
    rows: dict[int, Owner] = field(default_factory=dict)
    candidates: dict[int, Candidate] = field(default_factory=dict)
    generations: Counter[int] = field(default_factory=Counter)
    queue: list[int] = field(default_factory=list)
    swept_at: int = 0
    evicted: list[tuple[int, int]] = field(default_factory=list)  # of the last step, as are the following
    admitted: list[tuple[int, int]] = field(default_factory=list)
    num_waiting: int = 0
    num_forgotten: int = 0
    num_uncounted: int = 0

    def look_up(self, ids: Iterable[int]) -> list[int]:
        return [self.rows[id_].row if id_ in self.rows else 0 for id_ in ids]

    def observe(self, ids: Iterable[int]) -> None:
        self.step += 1
        self.evicted, self.admitted = [], []
        self.num_waiting = self.num_forgotten = self.num_uncounted = 0
        if self.step % self.config.half_life_steps == 0:
            for owner in self.rows.values():
                owner.uses //= 2
        seen = Counter(ids)
        new = {}
        for id_, count in seen.items():
            if id_ in self.rows:
                self.rows[id_].uses += count
                self.rows[id_].last_used = self.step
            elif id_ in self.candidates:
                self.candidates[id_].count += count
                self.candidates[id_].last_seen = self.step
            else:
                new[id_] = count
        rowless = {**new, **{id_: self.candidates[id_].count for id_ in seen if id_ in self.candidates}}
        wanting = [id_ for id_ in most_seen(rowless) if rowless[id_] >= self.config.admit_after]
        for place, id_ in enumerate(wanting):
            row = self._free_row()
            if row is None:
                self.num_waiting = len(wanting) - place
                break
            self.candidates.pop(id_, None)
            new.pop(id_, None)
            self.rows[id_] = Owner(row, rowless[id_], self.step)
            self.admitted.append((id_, row))
        for id_ in most_seen(new):
            self._become_candidate(id_, new[id_])

    def _free_row(self) -> int | None:
        if len(self.rows) < self.config.num_rows - 1:
            return len(self.rows) + 1
        victim = self._longest_unused() if self.config.evict == "age" else self._least_used()
        if victim is None:
            return None
        row = self.rows.pop(victim).row
        self.evicted.append((victim, row))
        self.generations[row] += 1
        return row

    def _longest_unused(self) -> int | None:
        old = [id_ for id_, o in self.rows.items() if o.last_used <= self.step - self.config.max_age_steps]
        return min(old, key=lambda id_: (self.rows[id_].last_used, id_), default=None)

    def _least_used(self) -> int | None:
        while True:
            if not self.queue:
                idle = [id_ for id_, owner in self.rows.items() if owner.last_used < self.step]
                idle.sort(key=lambda id_: (self.rows[id_].uses, self.rows[id_].last_used, id_))
                self.queue, self.swept_at = idle[: -(-(self.config.num_rows - 1) // 16)], self.step
                if not idle:
                    return None
            id_ = self.queue.pop(0)
            if id_ in self.rows and self.rows[id_].last_used < self.swept_at:
                return id_

    def _become_candidate(self, id_: int, count: int) -> None:
        if len(self.candidates) == self.config.max_candidates:
            old = [other for other, c in self.candidates.items() if c.last_seen < self.step]
            if not old:
                self.num_uncounted += 1
                return
            del self.candidates[min(old, key=lambda other: (self.candidates[other].last_seen, other))]
            self.num_forgotten += 1
        self.candidates[id_] = Candidate(count, self.step)


def most_seen(counts: dict[int, int]) -> list[int]:
    return sorted(counts, key=lambda id_: (-counts[id_], id_))
