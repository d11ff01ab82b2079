"""Entries of synthetic logs: of events, and of impressions."""

from collections.abc import Iterator
from typing import Any

from tests.settings.entry import DIFFERS, Entry, Observation, Settings
from tests.settings.observations.synth import (
    categories,
    category_changes,
    causes_without_effect,
    click_logit,
    conversion_logit,
    devices,
    effects,
    files,
    items,
    lags,
    latent_width,
    led_click_logit,
    likings,
    many_rows_per_user,
    many_successors,
    num_patterns,
    popularity,
    probabilities,
    qualities,
    rows,
    second_click_logit,
    segments,
    shown_lately_clicked,
    slates,
    span,
    successors,
    users,
)

NOTHING: Settings = {}


def of(world: str, name: str, value: Any, observe: Observation, becomes: Any = DIFFERS, **base: Any) -> Entry:
    """Return an entry of a setting of a synthetic log; its other settings are named without their prefix."""
    prefix = world.replace(" ", "_")
    beside = {f"{prefix}.{key}": other for key, other in base.items()}
    return Entry(f"{prefix}.{name}", value, observe, becomes, base=beside, world=world)


def events() -> Iterator[Entry]:
    """Yield the settings of a log of events."""
    world = "synth"
    yield of(world, "num_users", 30, users, 30)
    yield of(world, "num_items", 150, items, 150)
    yield of(world, "mean_events_per_user", 30.0, many_rows_per_user, True)
    yield of(world, "num_categories", 7, categories, 7)
    yield of(world, "latent_width", 5, latent_width, 5)
    yield of(world, "taste_strength", 0.0, rows)
    # Without transitions and patterns all events are of a taste, which moves on now and then.
    yield of(
        world, "taste_drift", 1.0, category_changes, True, transition_share=0.0, pattern_share=0.0, taste_drift=0.0
    )
    # Items are equally popular then; those of patterns have no popularity.
    yield of(world, "popularity_skew", 0.0, popularity, [0.01, 0.0])
    yield of(world, "transition_share", 0.9, many_successors, True, pattern_share=0.0)
    yield of(world, "num_successors", 2, successors, 2)
    yield of(world, "pattern_share", 0.0, effects, 0)
    yield of(world, "num_patterns", 4, num_patterns, 4)
    yield of(world, "pattern_probability", 0.25, causes_without_effect, True)
    yield of(world, "pattern_min_lag", 5, lags, {5})
    yield of(world, "pattern_max_lag", 1, lags, {1})
    yield of(world, "seed", 2, rows)
    yield of(world, "users_per_file", 20, files, 2)
    yield of(world, "start_time", 1_710_000_000, span, (False, True))
    yield of(world, "time_span_seconds", 5 * 86_400, span, (True, False))


def impressions() -> Iterator[Entry]:
    """Yield the settings of a log of impressions. Two of the last ten clicks are of the candidate's category."""
    world = "synth impressions"
    yield of(world, "num_users", 30, users, 30)
    yield of(world, "num_items", 70, items, 70)
    yield of(world, "mean_impressions_per_user", 100.0, many_rows_per_user, True)
    yield of(world, "slate_size", 3, slates, 3)
    yield of(world, "num_categories", 7, categories, 7)
    yield of(world, "num_segments", 6, segments, 6)
    yield of(world, "num_devices", 2, lambda lab, config: len(devices(lab, config)), 2)
    yield of(world, "window", 20, click_logit, lambda logit: logit - 3.0 * 0.1)
    yield of(world, "click_offset", -1.0, click_logit, lambda logit: logit + 0.9)
    yield of(world, "quality_spread", 1.2, qualities, lambda before: [2.0 * quality for quality in before])
    yield of(world, "same_weight", 4.0, click_logit, lambda logit: logit + 0.2)
    yield of(world, "leading_weight", 3.0, led_click_logit, lambda logit: logit + 0.2)
    yield of(world, "segment_spread", 1.0, likings, lambda before: [[2.0 * number for number in row] for row in before])
    yield of(world, "device_spread", 0.6, devices, lambda before: [2.0 * weight for weight in before])
    yield of(world, "position_weight", -0.25, second_click_logit, lambda logit: logit - 0.1)
    yield of(world, "conversion_offset", -0.2, conversion_logit, lambda logit: logit + 1.0)
    yield of(world, "price_weight", 0.0, conversion_logit)
    yield of(world, "conversion_same_weight", 3.0, conversion_logit, lambda logit: logit + 0.2)
    yield of(world, "popularity_skew", 3.0, shown_lately_clicked)
    yield of(world, "follow_share", 1.0, shown_lately_clicked)
    yield of(world, "seed", 2, rows)
    yield of(world, "users_per_file", 20, files, 3)
    yield of(world, "start_time", 1_710_000_000, span, (False, True))
    yield of(world, "time_span_seconds", 5 * 86_400, span, (True, False))
    for name, value in (("click_offset", -1.0), ("same_weight", 4.0), ("position_weight", 0.5)):
        yield of(world, name, value, probabilities)


ENTRIES = (*events(), *impressions())
