"""Paths on object storages: they behave as local ones, and refuse what only a local disk can do."""

import errno
import io
import os
import pickle
from pathlib import Path

import pytest

from tests.support.object_store import Store
from trainer.errors import UserError
from trainer.storage.files import hash_file, replace_durably, write_json_atomically
from trainer.storage.objects import paths
from trainer.storage.objects.paths import ObjectPath, copy_file, local_path, path_of, relative_link, remove_tree
from trainer.storage.objects.streams import RANGE_BYTES, number_of

RUN = "s3://bucket/runs/demo"


def test_a_local_text_is_a_plain_path() -> None:
    assert type(path_of("runs/demo")) is type(Path())
    assert path_of("file:///data/logs") == Path("/data/logs")


def test_names_and_parents_are_those_of_a_path() -> None:
    path = path_of(f"{RUN}?region=eu-central-1") / "checkpoints" / "step_1"
    assert str(path) == f"{RUN}/checkpoints/step_1?region=eu-central-1"
    assert (path.name, path.parent.name, path.with_name("x.json").name) == ("step_1", "checkpoints", "x.json")
    assert str(path.relative_to(path_of(f"{RUN}?region=eu-central-1"))) == "checkpoints/step_1"
    assert pickle.loads(pickle.dumps(path)) == path
    assert path.resolve() == path.absolute() == path
    assert isinstance(path.parent, ObjectPath)


def test_a_path_made_of_a_uri_is_recognised() -> None:
    assert path_of(Path(RUN)) == path_of(RUN)


def test_functions_of_the_operating_system_refuse_an_object() -> None:
    for function in (os.stat, os.listdir, open):
        with pytest.raises(TypeError, match="on an object storage"):
            function(path_of(RUN))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/path", "run.dir ftp://host: no filesystem is known"),
        ("s3://bucket/p?endpoint_override=http://host", "without a slash"),
        ("s3:///path", "SCHEME://BUCKET/PATH"),
        ("s3://key:secret@bucket/path", "set AWS_ACCESS_KEY_ID"),
        ("s3://bucket/path?secret_key=hush", "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_an_unusable_uri_is_one_message_without_secrets(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        path_of(uri, "run.dir")
    assert "secret@" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_outputs_that_must_be_local_are_refused() -> None:
    for text in (RUN, Path(RUN)):
        with pytest.raises(UserError, match=f"--out {RUN}: must be a local path"):
            local_path(text, "--out")


def test_an_object_is_written_read_and_deleted(store: Store) -> None:
    path = path_of(RUN) / "config.json"
    assert not path.exists()
    write_json_atomically(path, {"a": 1})
    assert store.names() == ["bucket/runs/demo/config.json"]
    assert path.is_file()
    assert path.parent.is_dir()
    assert path.stat().st_size == len(path.read_bytes())
    with path.open(encoding="utf-8") as file:
        assert file.readline() == "{\n"
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError) as caught:
        path.read_text()
    assert caught.value.filename == str(path)


def test_listings_and_patterns(store: Store) -> None:
    for name in ("b/x.json", "b/c/y.json", "a.txt", ".hidden"):
        (path_of(RUN) / name).write_text(name)
    run = path_of(RUN)
    assert sorted(path.name for path in run.iterdir()) == [".hidden", "a.txt", "b"]
    assert [path.name for path in run.glob("*.txt")] == ["a.txt"]
    assert [str(path.relative_to(run)) for path in run.glob("*/*.json")] == ["b/x.json"]
    assert sorted(str(path.relative_to(run)) for path in run.glob("**/*.json")) == ["b/c/y.json", "b/x.json"]
    assert list((run / "none").glob("*")) == []
    assert list((run / "none").iterdir()) == []


def test_nothing_is_renamed_or_appended_to(store: Store) -> None:
    path = path_of(RUN) / "a"
    path.write_text("a")
    for work in (
        lambda: path.rename(path.with_name("b")),
        lambda: path.replace(path.with_name("b")),
        lambda: path.open("a"),
    ):
        with pytest.raises(io.UnsupportedOperation):
            work()
    replace_durably(path, path.with_name("b"))
    assert store.names("bucket/runs/demo/") == ["b"]


def test_a_large_object_is_read_in_ranges_to_the_same_bytes(store: Store, tmp_path: Path) -> None:
    data = os.urandom(3 * RANGE_BYTES + 12345)
    local = tmp_path / "large"
    local.write_bytes(data)
    path = path_of(RUN) / "large"
    copy_file(local, path)
    assert hash_file(path) == hash_file(local)
    with path.open("rb") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.read() == data
        file.seek(RANGE_BYTES - 3)
        assert file.read(7) == data[RANGE_BYTES - 3 : RANGE_BYTES + 4]
        part = bytearray(2 * RANGE_BYTES + 1)
        file.seek(11)
        assert file.readinto(part) == len(part)
        assert part == data[11 : 11 + len(part)]
        file.seek(-2, os.SEEK_END)
        assert file.read(10) == data[-2:]


def test_a_tree_is_removed(store: Store) -> None:
    for name in ("a/x", "a/b/y", "ab"):
        (path_of(RUN) / name).write_text(name)
    remove_tree(path_of(RUN) / "a")
    assert store.names("bucket/runs/demo/") == ["ab"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("When uploading part: AWS Error NETWORK_CONNECTION during UploadPart operation: curlCode: 7", errno.EREMOTEIO),
        ("When reading: AWS Error SLOW_DOWN during GetObject operation: Please reduce", errno.EREMOTEIO),
        ("When writing: AWS Error ACCESS_DENIED during PutObject operation: Access Denied.", errno.EACCES),
        ("When writing: AWS Error NO_SUCH_BUCKET during PutObject operation", errno.ENOENT),
        ("Couldn't deserialize thrift: TProtocolException: Invalid data", None),
    ],
)
def test_errors_of_a_storage_have_the_number_of_a_disk(store: Store, text: str, number: int | None) -> None:
    assert number_of(OSError(text)) == number
    store.failures = [OSError(text)]
    with pytest.raises(OSError, match=text[:20]) as caught:
        path_of(RUN).exists()
    assert (caught.value.errno, caught.value.filename) == (number, None if number is None else RUN)


def test_a_page_links_to_another_on_the_same_storage() -> None:
    folder = path_of(RUN) / "evaluation/test"
    assert relative_link(path_of(RUN) / "dataset/card.html", folder) == "../../dataset/card.html"
    assert relative_link(path_of("s3://other/card.html"), folder) == "s3://other/card.html"
    assert relative_link(Path("/a/b/card.html"), Path("/a/c")) == "../b/card.html"


def test_a_filesystem_that_cannot_be_opened_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_uri(uri: str) -> object:
        raise OSError("cannot resolve host\nmore")

    monkeypatch.setattr(paths, "open_uri", open_uri)
    paths._filesystem.cache_clear()
    with pytest.raises(UserError, match=r"s3://bucket: cannot be opened \(cannot resolve host\)"):
        path_of(RUN).exists()
