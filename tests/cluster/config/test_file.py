"""A config file is merged over its base, section by section. A missing, wrong or circular base is named."""

from pathlib import Path

import pytest

from cluster.config.file import read_values
from cluster.config.run_config import load_config
from trainer.errors import UserError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_values_are_merged_over_the_base_and_its_base(tmp_path: Path) -> None:
    write(
        tmp_path,
        "deep/one.toml",
        "[train]\nepochs = 1\nbatch_size = 8\n[model.encoder]\nkind = 'sasrec'\ndropout = 0.1\n",
    )
    write(tmp_path, "two.toml", "base = 'deep/one.toml'\n[train]\nepochs = 2\n[model.encoder]\ndropout = 0.2\n")
    three = write(
        tmp_path, "three.toml", "base = 'two.toml'\n[train]\nbetas = [0.5, 0.9]\n[model.encoder]\ndropout = 0.3\n"
    )
    assert read_values(three) == {
        "train": {"epochs": 2, "batch_size": 8, "betas": [0.5, 0.9]},
        "model": {"encoder": {"kind": "sasrec", "dropout": 0.3}},
    }


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.toml: no such file, which is the base of .*own\.toml"):
        read_values(write(tmp_path, "own.toml", "base = 'gone.toml'"))
    with pytest.raises(UserError, match=r"own\.toml: base = 3 must be the path of a config"):
        read_values(write(tmp_path, "own.toml", "base = 3"))


def test_a_circular_base_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", "base = 'b.toml'")
    write(tmp_path, "b.toml", "base = 'a.toml'")
    with pytest.raises(
        UserError, match=r"a\.toml: base leads back to a file that names it: .*a\.toml -> .*b\.toml -> "
    ):
        read_values(tmp_path / "a.toml")


SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    "override",
    [
        "logs.path=s3://AKIA:SECRET@bucket/logs",
        'logs.path=["a.csv", "s3://AKIA:SECRET@bucket/logs"]',
        "logs.path=s3://bucket/logs?secret_key=SECRET",
        "logs.items.path=s3://AKIA:SECRET@bucket/items",
        "run.dataset=s3://AKIA:SECRET@bucket/data",
        "run.seed=s3://AKIA:SECRET@bucket/data",
        "run.dir.deeper=s3://AKIA:SECRET@bucket/data",
        "nosuch.path=s3://AKIA:SECRET@bucket/data",
    ],
)
def test_credentials_of_an_override_are_refused_and_never_repeated(tmp_path, override):
    file = tmp_path / "run.toml"
    file.write_text('[run]\ndir = "x"\n[logs]\npath = "a.parquet"\n')
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID") as caught:
        load_config(file, [override.replace("SECRET", SECRET)])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["run.toml", "config.json"])
def test_credentials_in_a_file_are_refused_and_never_repeated(tmp_path, name):
    file, uri = tmp_path / name, f"s3://AKIA:{SECRET}@bucket/logs"
    file.write_text(f'logs.path = "{uri}"' if name.endswith("toml") else f'{{"logs": {{"path": "{uri}"}}}}')
    with pytest.raises(UserError, match=r"logs\.path: this s3:// URI holds credentials before") as caught:
        load_config(file, [])
    assert SECRET not in str(caught.value)
