"""Files of a comparison: compare.json and compare.html."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.comparison import verdicts
from trainer.comparison.bootstrap import FEW_USERS
from trainer.comparison.comparison import Comparison, Pair
from trainer.comparison.differences import LEVEL, POWER, Difference
from trainer.comparison.sides import Side, changed_settings
from trainer.errors import UserError
from trainer.storage.files import digest_of, naming, write_json_atomically, write_text_atomically

VALUES, PAGE = "compare.json", "compare.html"
_LONGEST_NAME = 80  # characters of the default folder's name


def write(comparison: Comparison, folder: Path) -> Path:
    """Write both files into a folder, which is created if it is missing, and return the path of the page.

    Raises UserError if the folder cannot be written.
    """
    from trainer.comparison.report import render  # loads matplotlib

    try:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"compare: {folder}: cannot be written ({error}); choose another folder with --out") from None
    write_json_atomically(folder / VALUES, values_of(comparison))
    write_text_atomically(folder / PAGE, render(comparison))
    return folder / PAGE


def default_folder(comparison: Comparison) -> Path:
    """Return where the files are written by default: next to the second side's run, in a folder named after all sides."""
    second = comparison.sides[1].evaluations[0]
    place = (second.run_dir or second.folder).absolute()
    names = [side.name.replace("/", "-") for side in comparison.sides]
    name = "-".join(["compare", *names, *([] if comparison.split == "test" else [comparison.split])])
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{digest_of({'names': names, 'split': comparison.split})[:8]}"
    return place.parent / name


def values_of(comparison: Comparison) -> dict[str, Any]:
    """Return the content of compare.json: everything, as plain values."""
    return {
        "task": comparison.task,
        "split": comparison.split,
        "protocol": comparison.protocol,
        "num_users": comparison.num_users,
        "num_users_left_out": comparison.num_left_out,
        "sides": [_side_values(side) for side in comparison.sides],
        "pairs": [_pair_values(pair) for pair in comparison.pairs],
        "unpaired": [asdict(one) for one in comparison.unpaired],
        "repeated": comparison.repeated,
        "changed_settings": [
            {"setting": name, "values": values} for name, values in changed_settings(comparison.sides)
        ],
        "method": {
            "interval": "95 % percentile interval of the paired bootstrap over users",
            "resamples": comparison.num_resamples,
            "seed": comparison.seed,
            "interval_of_few_users": f"score interval where fewer than {FEW_USERS} users differ, and on slices",
            "test": "randomisation test of the mean difference; for hits the exact McNemar test",
            "test_of_counts": "exact sign test of users that are better and worse",
            "correction": "Holm, over all pairs and metrics; sign tests and slices each by themselves",
            "num_tests": comparison.num_tests,
            "level": round(LEVEL, 10),
            "power_of_detectable": POWER,
        },
        "notes": verdicts.notes(comparison),
    }


def _side_values(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "runs": [
            {**asdict(facts), "metrics": evaluation.metrics}
            for facts, evaluation in zip(side.runs, side.evaluations, strict=True)
        ],
    }


def _pair_values(pair: Pair) -> dict[str, Any]:
    reference, other = pair.reference, pair.other
    return {
        "reference": reference.name,
        "other": other.name,
        "verdict": verdicts.summary(pair),
        "verdict_on_slices": verdicts.slice_verdict(pair),
        "metrics": [
            {**difference_values(one), "verdict": verdicts.statement(one, reference.title, other.title)}
            for one in pair.differences
        ],
        "slices": [
            {"slice": part.column, "value": part.value, "num_users": part.num_users, **difference_values(part.of)}
            for part in pair.slices
        ],
    }


def difference_values(one: Difference) -> dict[str, Any]:
    """Return a difference as plain values."""
    return {**asdict(one), "relative": one.relative}
