"""Published rankers as settings: each can be built, and is where other settings start from."""

import pytest

from models.ranking.config import RankingConfig
from models.ranking.interest import interest_of
from models.ranking.presets import PRESETS


@pytest.mark.parametrize("kind", PRESETS)
def test_a_kind_is_where_the_other_settings_start_from(kind):
    config = RankingConfig.model_validate({"kind": kind})
    assert RankingConfig.model_validate(config.model_dump()) == config
    changed = RankingConfig.model_validate({"kind": kind, "experts": {"dropout": 0.5}})
    assert changed.experts.dropout == 0.5
    assert changed.experts.hidden == config.experts.hidden
    assert changed.interest == config.interest
    interest = interest_of(16, config.max_history, config.encoder, config.interest)
    assert (interest is None) == (kind == "logistic")


def test_a_setting_given_with_a_kind_replaces_that_part_only():
    config = RankingConfig.model_validate({"interest": {"attention": {"normalisation": "softmax"}}})
    assert config == RankingConfig.model_validate(
        {"kind": "din", "interest": {"attention": {"normalisation": "softmax"}}}
    )
    attention = config.interest.attention
    assert (attention.score, attention.projection, attention.normalisation) == ("activation_unit", False, "softmax")


def test_times_are_requested_only_by_parts_that_use_them():
    asks = {kind: RankingConfig.model_validate({"kind": kind}).uses_time for kind in PRESETS}
    assert asks == {"din": False, "bst": True, "hstu": True, "sim": True, "pooled": False, "logistic": False}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [({"positions": "learned"}, "differs between"), ({"attention": {"mask": "bidirectional"}}, "from later events")],
)
def test_an_encoder_that_would_tell_the_future_is_refused(encoder, message):
    with pytest.raises(ValueError, match=message):
        RankingConfig.model_validate({"encoder": encoder})
    assert RankingConfig.model_validate({"encoder": encoder, "interest": {"kind": "none"}})
