"""Imports of workers run without the garbage collector, and leave it as it was."""

import gc
import importlib

import pytest

from cluster.workers.quick_imports import quick_imports


def test_the_collector_is_paused_and_comes_back_also_after_an_error() -> None:
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), quick_imports():
        importlib.import_module("no_such_module")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
