"""Entries of [guards] and [storage]: loss spikes, and attempts after storage errors."""

from tests.settings.entry import Entry, Settings
from tests.settings.observations.guards import after_a_spike, waits_in_reading, waits_in_writing

# Nine epochs are 27 steps, of which the twelfth has a loss that is far too large.
LONG: Settings = {"train.epochs": 9, "train.early_stopping": None}
WATCHED: Settings = {**LONG, "guards.loss_spikes": {"window": 8}}
SKIPPED: Settings = {**LONG, "guards.loss_spikes": {"window": 8, "action": "skip"}}
ON_REQUEST = "off by default; a run under way may set it when it meets a spike"
ERRORS = "decides how often a failed read or write is tried again, which changes no result"

ENTRIES = (
    Entry("guards.loss_spikes", {"window": 8}, after_a_spike, (1, 0, "finished"), base=LONG, free=ON_REQUEST),
    Entry("guards.loss_spikes.action", "skip", after_a_spike, (1, 1, "finished"), base=WATCHED, free=ON_REQUEST),
    Entry("guards.loss_spikes.deviations", 1e9, after_a_spike, (0, 0, "finished"), base=WATCHED, free=ON_REQUEST),
    Entry("guards.loss_spikes.window", 16, after_a_spike, (0, 0, "finished"), base=WATCHED, free=ON_REQUEST),
    Entry("guards.loss_spikes.max_skipped", 0, after_a_spike, (1, 1, "LossSpikeError"), base=SKIPPED, free=ON_REQUEST),
    Entry("storage.retries", 2, waits_in_writing, [0.5, 1.0], free=ERRORS),
    Entry("storage.retries", 2, waits_in_reading, [0.5, 1.0], free=ERRORS),
    Entry("storage.retry_wait_seconds", 2.0, waits_in_writing, [2.0, 4.0, 8.0, 16.0], free=ERRORS),
    Entry("storage.retry_wait_seconds", 2.0, waits_in_reading, [2.0, 4.0, 8.0, 16.0], free=ERRORS),
)
