"""Choice of pruned heads and blocks, by contributions."""

import pytest

from models.encoders.config import EncoderConfig
from trainer.errors import UserError
from trainer.pruning.choice import Contribution, Measured, levels_of, measured_from, pruned_encoder, units_of


def encoder(**attention: object) -> EncoderConfig:
    return EncoderConfig.model_validate({"num_blocks": 2, "attention": {"num_heads": 4, **attention}})


def measured(of: EncoderConfig, heads: list[float], blocks: list[float]) -> Measured:
    units = units_of(of)
    values = zip(units, [*heads, *blocks], strict=True)
    return Measured("ndcg@10", 1.0, tuple(Contribution(unit, 1.0 - value, value) for unit, value in values))


def kept(of: EncoderConfig, given: Measured, **numbers: tuple[int, ...]) -> list[dict[int, list[int]]]:
    levels = levels_of(of, given, numbers.get("heads", ()), numbers.get("blocks", ()))
    return [{number: list(heads) for number, heads in level.kept.items()} for level in levels]


def test_heads_that_contribute_least_go_first_and_each_block_keeps_one() -> None:
    of = encoder()
    given = measured(of, [0.1, 0.2, 0.3, 0.4, 0.01, 0.02, 0.03, 0.04], [0.5, 0.6])
    one, four, six = kept(of, given, heads=(1, 4, 6))
    assert one == {1: [0, 1, 2, 3], 2: [1, 2, 3]}
    assert four == {1: [1, 2, 3], 2: [3]}
    assert six == {1: [3], 2: [3]}
    assert pruned_encoder(of, four) == [3, 1]
    with pytest.raises(UserError, match="--heads 7: at most 6 can be pruned"):
        kept(of, given, heads=(7,))


def test_heads_that_share_keys_are_pruned_together() -> None:
    of = encoder(num_key_value_heads=2)
    assert [unit.heads for unit in units_of(of)] == [(0, 1), (2, 3), (0, 1), (2, 3), (0, 1, 2, 3), (0, 1, 2, 3)]
    given = measured(of, [0.2, -0.1, 0.4, 0.3], [0.5, 0.6])
    assert kept(of, given, heads=(1, 2)) == [{1: [0, 1], 2: [0, 1, 2, 3]}, {1: [0, 1], 2: [0, 1]}]


def test_blocks_that_contribute_least_are_left_out() -> None:
    of = encoder()
    given = measured(of, [0.0] * 8, [0.2, -0.1])
    (one, both) = kept(of, given, blocks=(1, 2))
    assert one == {1: [0, 1, 2, 3]}
    assert pruned_encoder(of, one) == [4, 0]
    assert both == {}
    with pytest.raises(UserError, match="--blocks 3: the model has only 2"):
        kept(of, given, blocks=(3,))


def test_a_pruned_encoder_has_the_units_that_are_left() -> None:
    values = encoder().model_dump() | {"heads_by_block": [0, 3]}
    of = EncoderConfig.model_validate(values)
    assert [unit.name for unit in units_of(of)] == [
        "block 2, head 1",
        "block 2, head 2",
        "block 2, head 3",
        "block 2",
    ]
    given = measured(of, [0.3, 0.1, 0.2], [0.5])
    assert pruned_encoder(of, kept(of, given, heads=(1,))[0]) == [0, 2]


def test_contributions_survive_a_round_trip() -> None:
    from dataclasses import asdict

    given = measured(encoder(), [0.1] * 8, [0.2, 0.3])
    assert measured_from(asdict(given)) == given


@pytest.mark.parametrize(
    ("heads", "message"),
    [([1], "must have 2 numbers"), ([1, 5], "from 0 to attention.num_heads = 4"), ([-1, 2], "from 0 to")],
)
def test_heads_by_block_that_do_not_fit_are_refused(heads: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate(encoder().model_dump() | {"heads_by_block": heads})
    shared = encoder(num_key_value_heads=2).model_dump()
    with pytest.raises(ValueError, match="in multiples of 2 that share keys"):
        EncoderConfig.model_validate(shared | {"heads_by_block": [1, 2]})
