"""Observations of trackers and traces for the tests of settings: calls of libraries, recorded by a stand-in."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

from cluster.config.run_config import Config
from tests.settings.lab import Lab
from tests.settings.observations.training import trained


def module(name: str, **members: Any) -> ModuleType:
    """Return a module that counts as installed."""
    result = ModuleType(name)
    result.__spec__ = ModuleSpec(name, None)
    vars(result).update(members)
    return result


def calls_of(part: str) -> Callable[[Lab, Config], Any]:
    """Return the observation of one argument with which a tracker is opened; None if none is."""

    def observe(lab: Lab, config: Config) -> Any:
        opened: dict[str, Any] = {}

        def client(tracking_uri: str) -> Any:
            opened["mlflow"] = tracking_uri
            result = mock.MagicMock()
            result.get_experiment_by_name.side_effect = lambda name: opened.update(experiment=name)
            result.create_experiment.return_value = "1"
            result.create_run.return_value.info.run_id = "run"
            return result

        def init(**arguments: Any) -> Any:
            opened.update(wandb=(arguments["entity"], arguments["project"]), mode=arguments["mode"])
            return mock.MagicMock()

        modules = {
            "mlflow": module("mlflow", MlflowClient=client, entities=mock.MagicMock()),
            "wandb": module("wandb", init=init, Settings=dict),
        }
        with mock.patch.dict(sys.modules, modules):
            trained(lab, config)
        return opened.get(part)

    observe.__name__ = f"a tracker's {part}"
    return observe


def traces(lab: Lab, config: Config) -> list[str]:
    """Return the names of the traces of a training."""
    return sorted(path.name for path in (trained(lab, config).job.run_dir / "profile").glob("*.json"))
