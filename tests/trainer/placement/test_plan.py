"""The plan of a run: computed from its tables and their use, kept while these are the same, recomputed when they change."""

from dataclasses import replace

import pytest

from sharding.errors import PlacementError
from tests.support.datasets import manifest_of_items
from tests.support.jobs import tiny_job
from trainer.placement.plan import PLAN_FILE, plan_tables, read_plan
from trainer.storage.files import write_json_atomically

MANIFEST = manifest_of_items(300)


def job_of(tmp_path, table=None, **sections):
    return tiny_job(tmp_path / "run", tmp_path / "dataset", tables={"item": {"dim": 8, **(table or {})}}, **sections)


def test_a_plan_is_kept_while_its_inputs_are_the_same(tmp_path):
    job = job_of(tmp_path)
    plan = plan_tables(job, MANIFEST, 2, "cpu").plan
    assert plan_tables(job, MANIFEST, 2, "cpu").plan == plan
    # What the run has written counts, whatever the planner would say today.
    kept = replace(plan, tables={"item": replace(plan.tables["item"], sharding="table_wise", places=(1,))})
    job.run_dir.mkdir()
    write_json_atomically(job.run_dir / PLAN_FILE, kept.values())
    assert read_plan(job.run_dir) == kept
    assert plan_tables(job, MANIFEST, 2, "cpu").plan == kept


@pytest.mark.parametrize(
    "changed",
    [
        lambda tmp_path: (job_of(tmp_path), MANIFEST, 3),
        lambda tmp_path: (job_of(tmp_path), manifest_of_items(301), 2),
        lambda tmp_path: (job_of(tmp_path, {"sharding": "table_wise"}), MANIFEST, 2),
        lambda tmp_path: (job_of(tmp_path, {"optimizer": "adagrad"}), MANIFEST, 2),
        lambda tmp_path: (job_of(tmp_path, plan={"device_memory": "1GiB"}), MANIFEST, 2),
        lambda tmp_path: (job_of(tmp_path, train={"batch_size": 64}, model={"objective": SAMPLED}), MANIFEST, 2),
    ],
    ids=["workers", "rows", "sharding", "optimizer", "memory", "batch"],
)
def test_a_plan_is_recomputed_when_an_input_changes(tmp_path, changed):
    job = job_of(tmp_path)
    before = plan_tables(job, MANIFEST, 2, "cpu").plan
    job.run_dir.mkdir()
    write_json_atomically(job.run_dir / PLAN_FILE, before.values())
    other_job, manifest, num_workers = changed(tmp_path)
    after = plan_tables(other_job, manifest, num_workers, "cpu").plan
    assert after.inputs != before.inputs
    assert after.world_size == num_workers


SAMPLED = {"kind": "sampled_softmax", "num_negatives": 16}


def test_a_damaged_plan_file_is_recomputed(tmp_path):
    job = job_of(tmp_path)
    plan = plan_tables(job, MANIFEST, 2, "cpu").plan
    job.run_dir.mkdir()
    (job.run_dir / PLAN_FILE).write_text('{"world_size": 2, "tab')
    assert read_plan(job.run_dir) is None
    assert plan_tables(job, MANIFEST, 2, "cpu").plan == plan


def test_tables_that_fit_no_plan_are_refused_by_name_before_any_worker_starts(tmp_path):
    job = job_of(tmp_path, {"sharding": "row_wise"})
    with pytest.raises(PlacementError, match=r"tables\.item: sharding = row_wise: .* 4 rows .* choose table_wise"):
        plan_tables(job, manifest_of_items(3), 3, "cpu")


def test_groups_of_replicas_are_refused_for_a_run(tmp_path):
    with pytest.raises(PlacementError, match=r"plan\.replica_groups = 2: replica groups can be planned"):
        plan_tables(job_of(tmp_path, plan={"replica_groups": 2}), MANIFEST, 2, "cpu")
