"""Choice of the heads and blocks that are pruned, by their measured contributions. No torch.

Heads that share keys and values are one unit. A block keeps at least one unit: without heads it would still cost a feed-forward
sub-layer, so it is pruned as a whole instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.encoders.config import EncoderConfig
from trainer.errors import UserError

Kept = Mapping[int, Sequence[int]]
"""Heads that are kept, ascending, by number of the block. Blocks that are not named are pruned."""


@dataclass(frozen=True)
class Unit:
    """A part of an encoder that can be pruned."""

    kind: Literal["heads", "block"]
    """Heads of a block that share keys and values, usually one; or a whole block."""
    block: int
    """Number of the block, from 1."""
    heads: tuple[int, ...]
    """Its heads, from 0."""

    @property
    def name(self) -> str:
        """Return the name for tables. Heads count from 1."""
        if self.kind == "block":
            return f"block {self.block}"
        numbers = ", ".join(str(head + 1) for head in self.heads)
        return f"block {self.block}, {'head' if len(self.heads) == 1 else 'heads'} {numbers}"


@dataclass(frozen=True)
class Contribution:
    """The contribution of a unit: the loss of the validation metric without it."""

    unit: Unit
    """The unit."""
    value: float
    """The metric without it."""
    contribution: float
    """Deterioration of the metric without it. Negative if the model is better without it."""


@dataclass(frozen=True)
class Measured:
    """The contributions of all units of a model."""

    metric: str
    """Name of the validation metric."""
    whole: float
    """Its value for the whole model."""
    contributions: tuple[Contribution, ...]
    """The contributions."""


def measured_from(values: dict[str, Any]) -> Measured:
    """Return contributions from their plain values (dataclasses.asdict)."""
    contributions = []
    for one in values["contributions"]:
        unit = Unit(one["unit"]["kind"], one["unit"]["block"], tuple(one["unit"]["heads"]))
        contributions.append(Contribution(unit, one["value"], one["contribution"]))
    return Measured(values["metric"], values["whole"], tuple(contributions))


@dataclass(frozen=True)
class Level:
    """One pruned model."""

    name: str
    """Name of its run folder, such as "heads-2"."""
    title: str
    """What is pruned, in words."""
    kept: Kept
    """The heads that are kept, by number of the block."""


def levels_of(encoder: EncoderConfig, measured: Measured, heads: Sequence[int], blocks: Sequence[int]) -> list[Level]:
    """Return the pruned models that are asked for. Raises UserError if a number is too large.

    Args:
        encoder: the settings of the whole encoder.
        measured: the contributions.
        heads: numbers of units of heads that are pruned.
        blocks: numbers of blocks that are pruned.
    """
    numbers = [(count, "head", without_heads) for count in heads] + [
        (count, "block", without_blocks) for count in blocks
    ]
    return [
        Level(f"{what}s-{count}", f"without {count} {what}{'s' * (count > 1)}", choose(encoder, measured, count))
        for count, what, choose in numbers
    ]


def units_of(encoder: EncoderConfig) -> list[Unit]:
    """Return all units of an encoder, the blocks last."""
    shared = encoder.attention.num_heads // encoder.attention.key_value_heads
    blocks = encoder.heads_of_blocks
    heads = [
        Unit("heads", number, tuple(range(first, first + shared)))
        for number, count in blocks.items()
        for first in range(0, count, shared)
    ]
    return heads + [Unit("block", number, tuple(range(count))) for number, count in blocks.items()]


def all_kept(encoder: EncoderConfig) -> dict[int, list[int]]:
    """Return the heads of the whole model."""
    return {number: list(range(count)) for number, count in encoder.heads_of_blocks.items()}


def without_heads(encoder: EncoderConfig, measured: Measured, number: int) -> dict[int, list[int]]:
    """Return what is kept without the `number` units of heads that contribute least. Each block keeps one.

    Raises UserError if there are not as many.
    """
    kept = all_kept(encoder)
    left = number
    for one in _ascending(measured.contributions, "heads"):
        heads = kept[one.unit.block]
        if left and len(heads) > len(one.unit.heads):
            kept[one.unit.block] = [head for head in heads if head not in one.unit.heads]
            left -= 1
    if left:
        most = number - left
        raise UserError(
            f"--heads {number}: at most {most} can be pruned, since each block keeps one; use --blocks to prune whole blocks"
        )
    return kept


def without_blocks(encoder: EncoderConfig, measured: Measured, number: int) -> dict[int, list[int]]:
    """Return what is kept without the `number` blocks that contribute least. Raises UserError if there are not as many."""
    chosen = [one.unit.block for one in _ascending(measured.contributions, "block")][:number]
    if len(chosen) < number:
        raise UserError(f"--blocks {number}: the model has only {len(chosen)}")
    return {block: heads for block, heads in all_kept(encoder).items() if block not in chosen}


def pruned_encoder(encoder: EncoderConfig, kept: Kept) -> list[int]:
    """Return `heads_by_block` of the pruned encoder."""
    return [len(kept.get(number, ())) for number in range(1, encoder.num_blocks + 1)]


def _ascending(contributions: Sequence[Contribution], kind: str) -> list[Contribution]:
    """Return the contributions of one kind, the least first; of equal ones the last block's first."""
    of_kind = [one for one in contributions if one.unit.kind == kind]
    return sorted(of_kind, key=lambda one: (one.contribution, -one.unit.block, one.unit.heads))
