"""The config as a user sees it: names, nearest names, overrides, and the identity of a run."""

import pytest

from cluster.config.run_config import check_config, load_config
from trainer.config.identity import at_default, identity
from trainer.errors import UserError
from trainer.settings import flatten

LOGS = {"logs": {"path": "x.parquet"}}


def message(values: dict, origin: str = "test.toml") -> str:
    with pytest.raises(UserError) as caught:
        check_config(values, origin)
    return str(caught.value)


def test_defaults_are_complete():
    config = check_config(LOGS, "test")
    assert config.tables["item"].sharding == "auto"
    assert config.cluster.num_workers == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({**LOGS, "train": {"batchsize": 3}}, "train.batchsize: no such setting; did you mean train.batch_size?"),
        ({**LOGS, "tables": {"item": {"dimm": 8}}}, "tables.item.dimm: no such setting; did you mean tables.item.dim?"),
        ({**LOGS, "trian": {}}, "trian: no such setting; did you mean train?"),
        (
            {**LOGS, "tables": {"item": {"ids": {"kind": "dynamic", "num_rows": 9}}}},
            'tables.item.ids.kind = "dynamic" is for tables of features: the items of the catalogue',
        ),
        ({**LOGS, "tables": {"item": {"kernel": "key_value"}}}, "tables.item: kernel = key_value: its rows cannot be init"),
        (
            {**LOGS, "model": {"encoder": {"blocks": 1}}},
            "model.encoder.blocks: no such setting; did you mean model.encoder.num_blocks?",
        ),
        (
            {**LOGS, "model": {"objective": {"kind": "sampled_softmax", "num_negative": 1}}},
            "model.objective.num_negative: no such setting; did you mean model.objective.num_negatives?",
        ),
        (
            {**LOGS, "model": {"objective": {"kind": "bce", "negatives": {"kind": "batch"}}}},
            "model.objective.negatives.kind: no such kind 'batch'; choose one of",
        ),
        (
            {**LOGS, "model": {"objective": {"kind": "bce", "negatives": {"power": 0.5}}}},
            "model.objective.negatives.power: no such setting",
        ),
        (
            {**LOGS, "model": {"objective": {"kind": "gbce", "logq": "streaming"}}},
            'model.objective: logq = "streaming" estimates how often an item is a target, and uniform negatives are not drawn',
        ),
        ({**LOGS, "model": {"encoder": {"kind": "sasrek"}}}, "model.encoder.kind: no such choice 'sasrek'; choose 'sasrec'"),
        ({**LOGS, "model": {"objective": {"kind": "bpr"}}}, "model.objective.kind: no such kind 'bpr'; choose one of"),
        ({**LOGS, "split": {"kind": "random"}}, "split.kind: no such kind 'random'"),
        ({**LOGS, "train": 5}, "train: must be a table of settings (got 5)"),
        ({**LOGS, "tables": {"item": 5}}, "tables.item: must be a table of settings (got 5)"),
        ({"logs": {"path": "x", "latest_time": {}}}, "\n  logs.latest_time: must be a valid integer"),
        ({}, "logs: is missing"),
        ({"logs": {}}, "logs.path: is missing; add it to the config or pass --set logs.path=..."),
        ({**LOGS, "train": {"epochs": "ten"}}, "train.epochs: must be a valid integer (got 'ten')"),
        ({**LOGS, "train": {"epochs": 0}}, "train.epochs: must be greater than or equal to 1 (got 0)"),
        ({**LOGS, "tables": {"user": {}}}, 'tables.user: no such table; there are item (a feature names its table with `table`)'),
        (
            {**LOGS, "tables": {"item": {"optimizer": "lamb"}}},
            "tables.item: optimizer = lamb with kernel = fused: needs a GPU; choose rowwise_adagrad, adagrad or sgd",
        ),
        (
            {**LOGS, "tables": {"item": {"sharding": "grid_shard", "optimizer": "sgd"}}},
            "tables.item: sharding = grid_shard: not for tables that are looked up per event; choose one of data_parallel,",
        ),
        ({**LOGS, "communication": {"backward": "bf16"}}, "communication.backward = bf16: TorchRec sends fp16 in its place"),
        (
            {**LOGS, "plan": {"device_memory": "80GiX"}},
            "plan.device_memory: could not interpret byte unit: GiX (got '80GiX')",
        ),
        (
            {**LOGS, "tables": {"item": {"sharding": ["row_wise", "column_wise"]}}},
            "tables.item: rowwise_adagrad has one number per row, which a column_wise table would split",
        ),
        ({**LOGS, "model": {"encoder": {"attention": {"num_heads": 5}}}}, "num_heads = 5 must divide tables.item.dim = 64"),
        (
            {**LOGS, "tables": {"item": {"sharding": "rowwise"}}},
            "tables.item.sharding: no such choice 'rowwise'; choose 'auto', 'data_parallel', 'table_wise', 'row_wise'",
        ),
        (
            {**LOGS, "tables": {"item": {"sharding": ["row_wise", "rowwise"]}}},
            "config test.toml:\n  tables.item.sharding.1: no such choice 'rowwise'; choose 'data_parallel'",
        ),
        ({**LOGS, "evaluate": {"ks": [5]}}, "needs 10 among evaluate.ks = [5]"),
        (
            {**LOGS, "tables": {"item": {"sharding": "column_wise"}}},
            "rowwise_adagrad has one number per row, which a column_wise table would split",
        ),
        (
            {**LOGS, "split": {"kind": "global_time", "validation_time": 5, "test_time": 3}},
            "validation_time must be earlier than test_time",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_with_the_key_and_the_remedy(values, expected):
    text = message(values)
    assert "config test.toml" in text
    assert expected in text


def test_overrides_are_toml_values_or_bare_strings(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[logs]\npath = "x"\n[train]\nepochs = 3\n')
    config = load_config(
        path,
        [
            "train.epochs=7",
            "run.dir=runs/a",
            "evaluate.ks=[5, 10]",
            "train.early_stopping=none",
            "train.sample_log=true",
        ],
    )
    assert (config.train.epochs, config.run.dir, config.evaluate.ks) == (7, "runs/a", [5, 10])
    assert config.train.early_stopping is None
    assert config.train.sample_log
    split = ["split.kind=global_time", "split.validation_time=2024-05-01", "split.test_time=2024-05-02T12:00"]
    assert load_config(path, split).split.test_time == "2024-05-02T12:00"  # dates are text, quoted or not


@pytest.mark.parametrize(
    ("override", "expected"),
    [("train.epochs", "write it as section.key=value"), ("logs.path.deep=1", "is a value, not a section")],
)
def test_a_broken_override_is_named(tmp_path, override, expected):
    path = tmp_path / "c.toml"
    path.write_text('[logs]\npath = "x"\n')
    with pytest.raises(UserError, match=expected):
        load_config(path, [override])


def test_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "c.toml").write_text("[logs\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_config(tmp_path / "c.toml")


def test_the_resolved_config_of_a_run_is_a_config(tmp_path):
    config = check_config(LOGS, "test")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_config(tmp_path / "config.json") == config


def test_settings_that_may_change_between_starts_are_not_part_of_the_identity():
    before = check_config(LOGS, "test")
    free = {
        **LOGS,
        "train": {"epochs": 99},
        "cluster": {"num_workers": 5},
        "checkpoint": {"keep": 9},
        "run": {"dir": "other"},
    }
    assert identity(check_config(free, "test")) == identity(before)
    assert identity(check_config({**LOGS, "run": {"seed": 2}}, "test")) != identity(before)
    assert identity(check_config({**LOGS, "tables": {"item": {"dim": 32}}}, "test")) != identity(before)


def test_defaults_are_known_by_their_flat_names():
    config = check_config(
        {**LOGS, "model": {"encoder": {"kind": "ligr", "num_blocks": 3}}, "tables": {"item": {"dim": 32}}}, "test"
    )
    flat, unset = flatten(config.model_dump(mode="json")), at_default(config)
    assert unset <= flat.keys()
    assert {"run.seed", "model.encoder.scale_inputs", "model.encoder.attention.bias", "tables.item.optimizer"} <= unset
    assert not unset & {"logs.path", "model.encoder.num_blocks", "model.encoder.attention.num_heads", "tables.item.dim"}


def test_under_a_falling_schedule_the_end_may_not_move():
    short = check_config({**LOGS, "train": {"schedule": "linear", "epochs": 3}}, "test")
    long = check_config({**LOGS, "train": {"schedule": "linear", "epochs": 4}}, "test")
    assert identity(short) != identity(long)
