"""Token merge against a plain one: history after history, group after group, counted from the newest of the older events."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attention.blocks import AttentionContext
from models.attention.traceable import last_tokens
from models.batches.jagged import layout_of
from models.batches.transfer import to_device
from models.config import NextItemConfig
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder, lay_out_parts
from models.histories import Histories, merged, newest
from models.ranking.config import RankingConfig
from tests.models.attention.forms import context_of
from tests.models.encoders.newest_events import (
    LENGTHS,
    alone,
    batch_of,
    check_equal_to,
    check_last_events,
    check_loss,
    check_recomputation,
    check_traceable,
    events,
    inputs_of_blocks,
    kept_places,
    model_of,
)
from tests.models.encoders.test_encoder import CASES, CAUSAL, MAX_HISTORY, WIDTH, make_encoder
from tests.support.random_models import looked_up

SIZE, RECENT = 3, 4
MERGED: dict[str, Any] = {"num_blocks": 2, "merge_size": SIZE, "merge_recent": RECENT}
INNER = {"merge_form": "transformer"}
MORE: dict[str, dict[str, Any]] = {
    "inner transformer": INNER,
    "HSTU over an inner transformer": {"kind": "hstu", **INNER},
    "inner transformer of several heads": {**INNER, "norm": "rms_norm", "attention": {"num_heads": 4, "bias": "both"}},
    "semi-local": {"attention": {"window": 2, "num_global": 1, "bias": "both"}},
    "pairs": {"merge_size": 2},
    "one event": {"merge_recent": 1},
    "a group longer than a history": {"merge_size": 64, **INNER},
    "penalty, several heads": {"attention": {"num_heads": 4, "num_key_value_heads": 2, "penalty": 0.1, "bias": "both"}},
    "the last block left out": {"heads_by_block": [2, 0]},
    "all blocks left out": {"heads_by_block": [0, 0]},
}
FORMS = {**{case: CASES[case] for case in CAUSAL if "two_tower" not in case}, **MORE}


def encoder_of(form: str) -> Encoder:
    return make_encoder({**MERGED, **FORMS[form]}).double().eval()


def encode_reference(encoder: Encoder, x_ND: Tensor, context: AttentionContext) -> Tensor:
    """Encode one history after another, in the order of the definition."""
    recent = encoder.config.merge_recent
    assert recent is not None
    outputs = [x_ND[:0]]
    for start, end in zip(context.layout.offsets[:-1].tolist(), context.layout.offsets[1:].tolist(), strict=True):
        if start == end:
            continue
        tokens, newest_event = tokens_reference(encoder, inputs_of_blocks(encoder, x_ND[start:end]))
        own = AttentionContext(
            layout_of(np.asarray([0, len(tokens)])),
            *(None if of is None else of[start + newest_event] for of in (context.times, context.request_times)),
        )
        for block in encoder.blocks:
            tokens, _ = block(tokens, own)
        x = encoder.final_norm(tokens[-min(recent, end - start) :])
        if encoder.output_head is not None:
            x = encoder.output_head(x)
        outputs.append(encoder.user_tower(x))
    return torch.cat(outputs)


def tokens_reference(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens of a history, and the place of the newest event of each."""
    merge = encoder.merge
    assert merge is not None
    first_recent = max(0, len(x) - merge.recent)
    tokens = list(x[first_recent:])
    places = list(range(first_recent, len(x)))
    stop = first_recent
    while stop > 0:
        group = x[max(0, stop - merge.size) : stop]
        if merge.inner is not None:
            group, _ = merge.inner(group, AttentionContext(layout_of(np.asarray([0, len(group)]))))
        whole = torch.cat((group.new_zeros((merge.size - len(group), WIDTH)), group))
        tokens.insert(0, merge.projection.weight @ whole.flatten())
        places.insert(0, stop - 1)
        stop -= len(group)
    return torch.stack(tokens), torch.tensor(places)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [LENGTHS, [3, 2, 4], [9], [0, 0]], ids=str)
def test_older_events_enter_as_groups(form: str, lengths: list[int]) -> None:
    """In values, and in gradients of inputs and of every weight."""
    check_equal_to(encode_reference, encoder_of(form), lengths)


@pytest.mark.parametrize("form", FORMS)
def test_no_output_changes_when_later_events_do(form: str) -> None:
    """Not a bit, for any number of later events that keep their number."""
    encoder, context = encoder_of(form), context_of([20])
    before = encoder(events(20), context)[0]
    assert context.times is not None
    assert context.request_times is not None
    for first in range(20 - before.shape[0] + 1, 20):
        x = events(20)
        x[first:] += 1.0
        later = torch.arange(20) >= first
        # The time of a later event is also that of the request after the event before it, so it is changed from the next one on.
        requests = torch.where(later, context.request_times + 99, context.request_times)
        changed = AttentionContext(context.layout, torch.where(later, context.times + 99, context.times), requests)
        unchanged = first - (20 - before.shape[0])
        after = encoder(x, changed)[0]
        assert torch.equal(after[:unchanged], before[:unchanged])
        assert not torch.equal(after[unchanged:], before[unchanged:])


def test_every_older_event_reaches_every_output() -> None:
    encoder, context = encoder_of("sasrec"), context_of([20])
    for place in range(RECENT):
        x = events(20).requires_grad_()
        encoder(x, context)[0][place].sum().backward()
        reached = x.grad.abs().sum(dim=1) > 0
        assert reached.tolist() == [number <= 20 - RECENT + place for number in range(20)]


@pytest.mark.parametrize("form", FORMS)
def test_a_history_is_encoded_as_alone(form: str) -> None:
    encoder, context = encoder_of(form), context_of(LENGTHS)
    x, together = events(sum(LENGTHS)), []
    ends = np.cumsum(LENGTHS)
    for end, length in zip(ends, LENGTHS, strict=True):
        together.append(encoder(x[end - length : end], alone(context, int(end - length), int(end)))[0])
    torch.testing.assert_close(encoder(x, context)[0], torch.cat(together), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_events_are_encoded_as_among_all(form: str) -> None:
    check_last_events(encoder_of(form))


@pytest.mark.parametrize("form", FORMS)
def test_a_traceable_layout_gives_the_same_last_events(form: str) -> None:
    """Also for histories without groups, and with a group that has fewer events."""
    encoder = encoder_of(form)
    merge = encoder.merge
    assert merge is not None
    check_traceable(encoder, lambda layout: last_tokens(layout, merge.size, merge.recent, MAX_HISTORY))


@pytest.mark.parametrize("form", ["sasrec", "inner transformer", "HSTU over an inner transformer"])
def test_recomputation_changes_nothing(form: str) -> None:
    check_recomputation({**MERGED, **FORMS[form]})


@pytest.mark.parametrize("lengths", [LENGTHS, [3, 2, 0, 4]], ids=str)
def test_the_loss_is_that_of_the_newest_events(lengths: list[int]) -> None:
    check_loss(encode_reference, MERGED, lengths, RECENT)


def test_targets_of_merged_events_are_refused() -> None:
    model, batch = model_of(**MERGED), batch_of(LENGTHS, None)
    with pytest.raises(AssertionError, match="older events are no targets"):
        model.loss(looked_up(model, batch), batch)


def test_the_layout_of_the_tokens_moves_with_that_of_all_events() -> None:
    layout = layout_of(np.concatenate(([0], np.cumsum(LENGTHS))) + 5)  # offsets of a part of a batch
    lay_out_parts(layout, EncoderConfig.model_validate(MERGED))
    tokens = layout.merged(SIZE, RECENT)
    assert layout.merged(SIZE, RECENT) is tokens
    moved = to_device(layout, torch.device("meta"))
    assert moved.merged(SIZE, RECENT).rows.is_meta
    assert moved.merged(SIZE, RECENT).layout.newest(RECENT).index.is_meta


def test_tokens_and_kept_events_are_counted() -> None:
    config = EncoderConfig.model_validate(MERGED)
    layout = layout_of(np.concatenate(([0], np.cumsum(LENGTHS))))
    histories = Histories.of(np.asarray(LENGTHS))
    assert merged(config, histories).num_events == layout.merged(SIZE, RECENT).layout.num_events
    assert newest(config, histories).num_events == len(kept_places(LENGTHS, RECENT))
    assert merged(EncoderConfig(), histories) is histories


def test_a_model_with_merged_events_does_not_continue() -> None:
    assert not model_of(**MERGED).can_continue
    assert model_of(num_blocks=2).can_continue


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"merge_size": 4}, "merge_recent is not set"),
        ({"merge_recent": 4}, "merge_size is not set"),
        (INNER, 'merge_form = "transformer" needs merge_size and merge_recent'),
        ({**MERGED, "kind": "bert4rec"}, "a masked event in a group would not be restored"),
        ({**MERGED, "kind": "two_tower"}, "an average would count a group as one event"),
        ({**MERGED, "truncate_after": 1, "truncate_to": 2}, "both decide which events are encoded to the end"),
        ({**MERGED, "num_blocks": 0}, "no output would depend on the merged events"),
    ],
    ids=["no newest events", "no size", "a form alone", "bidirectional", "pooled", "truncated", "no blocks"],
)
def test_a_merge_that_cannot_be_is_refused(encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate(encoder)


def test_a_merge_of_no_events_and_of_rankers_is_refused() -> None:
    with pytest.raises(ValueError, match="merge_recent = 24 must be below max_history = 24"):
        NextItemConfig.model_validate({"max_history": 24, "encoder": {**MERGED, "merge_recent": 24}})
    with pytest.raises(ValueError, match="an impression in between would receive later events"):
        RankingConfig.model_validate({"kind": "hstu", "encoder": MERGED})
