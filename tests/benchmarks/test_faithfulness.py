"""Questions about planted effects, and the rounding of stored results."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from benchmarks.faithfulness import Settings, effects_of, rounded
from trainer.explanation.faithfulness.planted import is_cause
from trainer.explanation.questions import Questions

SETTINGS = Settings(10, 1, 20, 40, 2, "deleted", ("occlusion",))


def test_effects_are_questions_with_their_cause_in_the_history() -> None:
    """User 5 has an effect after its cause, user 6 one with a cause that was cut off, and user 7 none."""
    asked = Questions(
        keys=np.asarray([0, 1, 2]),
        users=pa.array([5, 6, 7]),
        offsets=np.asarray([0, 3, 5, 7]),
        items=np.asarray([1, 2, 3, 4, 5, 2, 3], np.int32),
        targets=np.asarray([6, 7, 6]),
    )
    values = pa.array([10, 20, 30, 40, 50, 60, 70])
    trained: Any = SimpleNamespace(
        item_values=values,
        item_ids=lambda given: np.asarray([values.to_pylist().index(one) + 1 for one in given.to_pylist()]),
    )
    causes = pa.table({"user_id": [6, 5], "effect_item": [70, 60], "cause_item": [10, 20]})
    effects, cause = effects_of(cast(Any, trained), asked, causes, SETTINGS)
    assert effects.users.to_pylist() == [5]
    assert cause.tolist() == [2]
    assert is_cause(effects, cause).tolist() == [False, True, False]


def test_small_p_values_keep_their_digits() -> None:
    assert rounded({"p": 1.23456789e-12, "n": (3, 0.1234567)}) == {"p": 1.23457e-12, "n": [3, 0.123457]}
