"""Record of concurrent evaluations: what a training takes from it when it starts."""

import math
from pathlib import Path

import pytest

from trainer.config.train import EarlyStoppingConfig
from trainer.errors import UserError
from trainer.loop.early_stopping import after_validation
from trainer.loop.state import Best, State
from trainer.loop.validations import (
    FILE,
    Validation,
    read_validations,
    with_validations,
    without_line,
    write_validations,
)

STOPPING = EarlyStoppingConfig(metric="ndcg@10", patience=2)


def validation(step: int, value: float | None, dataset: str = "d", skipped_in_a_row: int = 0) -> Validation:
    metrics = None if value is None else {"ndcg@10": value}
    return Validation(step, f"files of {step}", dataset, metrics, 1.5, skipped_in_a_row)


def test_the_state_is_that_of_a_training_that_evaluates_itself() -> None:
    values = {1: 0.3, 2: 0.5, 3: 0.4, 4: math.nan, 5: 0.2}
    state = State()
    for step, value in values.items():
        state = after_validation(State(step, best=state.best), {"ndcg@10": value}, STOPPING)
    record = [validation(step, value) for step, value in values.items()]
    assert with_validations(State(5), record, "d", STOPPING) == state
    assert state.best == Best(0.5, 2, 3)


@pytest.mark.parametrize(
    ("other", "best"),
    [
        (validation(3, 0.9), Best(0.9, 3, 0)),
        (validation(2, 0.9), Best(0.5, 2, 0)),  # counted before
        (validation(5, 0.9), Best(0.5, 2, 0)),  # of a later step
        (validation(3, None), Best(0.5, 2, 0)),  # skipped
        (validation(3, 0.9, dataset="before"), Best(0.5, 2, 0)),
        (validation(3, 0.9, skipped_in_a_row=1), Best(0.5, 2, 1)),
    ],
)
def test_only_evaluations_that_compare_and_are_new_count(other: Validation, best: Best) -> None:
    assert with_validations(State(4, best=Best(0.5, 2, 0), counted=2), [other], "d", STOPPING).best == best


def test_without_early_stopping_no_checkpoint_is_the_best() -> None:
    assert with_validations(State(4), [validation(3, 0.9)], "d", None) == State(4)


def test_the_record_is_read_as_written_and_lines_that_are_missing_are_found(tmp_path: Path) -> None:
    assert read_validations(tmp_path) == []
    record = [validation(30, 0.3), validation(10, 0.1), validation(20, None), validation(40, 0.4)]
    write_validations(tmp_path, record)
    read = read_validations(tmp_path)
    assert read == sorted(record, key=lambda each: each.step)
    assert [each.step for each in without_line(read, {10}, 30)] == [30]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"step": 1}]')
    with pytest.raises(UserError, match=r"validations\.json: cannot be read .* Delete it"):
        read_validations(tmp_path)
