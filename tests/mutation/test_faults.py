"""The list of planted faults fits the sources; the faults themselves are tried by `make mutate`."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutation.__main__ import chosen, table_of
from tests.mutation.faults import Fault, read_faults, stale_reason
from tests.mutation.trial import Copy, Result, copy_tree, try_fault

ROOT = Path(__file__).resolve().parents[2]
FAULTS = read_faults()


def test_every_fault_fits_the_sources_and_names_tests_that_exist() -> None:
    reasons = {fault.name: stale_reason(fault, ROOT) for fault in FAULTS}
    assert {name: reason for name, reason in reasons.items() if reason is not None} == {}


def test_the_list_is_long_and_few_of_it_are_explained() -> None:
    assert len(FAULTS) >= 200
    assert sum(bool(fault.explained) for fault in FAULTS) <= len(FAULTS) / 10


SOURCE = "def double(number: int) -> int:\n    return 2 * number\n"
TESTS = """
import time
from double import double

def test_of_two():
    assert double(2) == 4

def test_of_zero():
    assert double(0) == 0

def test_that_waits():
    time.sleep(60.0 if double(1) != 2 else 0.0)
"""
ADDS = Fault("adds", "double.py", "2 * number", "2 + number", ("test_double.py::test_of_zero",))


@pytest.fixture
def project(tmp_path: Path) -> Copy:
    """Return a copy of a project with one function."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/double.py").write_text(SOURCE)
    (tmp_path / "project/test_double.py").write_text(TESTS)
    (tmp_path / "project/conftest.py").write_text(
        "def pytest_addoption(parser):\n"
        "    parser.addoption('--shared-data')\n"
        "    parser.addoption('--all-combinations', action='store_true')\n"
    )
    (tmp_path / "project/runs").mkdir()
    return copy_tree(tmp_path / "project", tmp_path / "copy", tmp_path / "no-data")


@pytest.mark.parametrize(
    ("fault", "outcome", "detail"),
    [
        (ADDS, "found", "test_double.py::test_of_zero"),
        (replace(ADDS, tests=("test_double.py::test_of_two",)), "survived", "no test failed"),
        (replace(ADDS, planted="2 *"), "broken", "pytest ended with"),
        (replace(ADDS, original="3 * number"), "stale", "occurs 0 times"),
        (replace(ADDS, tests=("test_double.py::test_of_three",)), "stale", "no such tests"),
        (replace(ADDS, planted="3 * number", tests=("test_double.py::test_that_waits",)), "hung", "no end within"),
    ],
)
def test_a_fault_is_planted_in_a_copy_judged_by_its_tests_and_removed(
    project: Copy, fault: Fault, outcome: str, detail: str
) -> None:
    result = try_fault(fault, project, deadline=3.0 if outcome == "hung" else 60.0)
    assert result.outcome == outcome
    assert detail in result.detail
    assert (project.root / "double.py").read_text() == SOURCE
    assert not (project.root / "runs").exists()


def test_a_fault_that_survives_without_a_reason_fails_the_command() -> None:
    def result(outcome: str, explained: str = "") -> Result:
        return Result("name", outcome, "", 1.0, explained)  # type: ignore[arg-type]

    assert not result("found").is_failure
    assert not result("survived", "no output shows it").is_failure
    for outcome in ("survived", "hung", "broken", "stale"):
        assert result(outcome).is_failure
    assert result("stale", "no output shows it").is_failure
    assert table_of([result("found"), result("survived")]).row_count == 2


def test_faults_are_chosen_by_name_or_file() -> None:
    other = replace(ADDS, name="subtracts", file="half.py")
    assert chosen([ADDS, other], "add") == [ADDS]
    assert chosen([ADDS, other], "half.*") == [other]
    assert chosen([ADDS, other], "") == [ADDS, other]
