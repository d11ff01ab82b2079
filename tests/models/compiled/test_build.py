"""Compilation: once for all processes, never half a library, and one sentence if it fails."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.compiled import build, softmax
from models.compiled.build import AVX512, KernelBuildError, build_library, processor_features
from models.compiled.kernels import build_kernels
from models.compiled.softmax import build_softmax_kernels

COMPILER = """#!/bin/sh
case "$1" in --version) echo "compiler 1"; exit 0;; esac
echo called >> "{calls}"
sleep 0.2
{command}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Keep libraries in a folder of the test, on a machine with AVX-512."""
    monkeypatch.setattr(build, "processor_features", lambda: frozenset(AVX512))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path


def use_compiler(folder: Path, monkeypatch, command: str) -> Path:
    """Make a shell script the compiler, and return the file in which it notes its calls."""
    calls, compiler = folder / "calls", folder / "compiler"
    compiler.write_text(COMPILER.format(calls=calls, command=command), encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return calls


WRITE_LAST = 'for last; do :; done; echo library > "$last"'


def test_processes_that_ask_at_once_compile_once(folder, monkeypatch):
    calls = use_compiler(folder, monkeypatch, WRITE_LAST)
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: build_library("softmax_float32.cpp", AVX512), range(4)))
    assert len({*libraries}) == 1
    assert libraries[0].read_text(encoding="utf-8") == "library\n"
    assert calls.read_text(encoding="utf-8").splitlines() == ["called"]


def test_other_sources_flags_and_compilers_have_libraries_of_their_own(folder, monkeypatch):
    use_compiler(folder, monkeypatch, WRITE_LAST)
    library = build_library("softmax_float32.cpp", AVX512)
    assert build_library("softmax_float32.cpp", (*AVX512, "avx")) != library
    sources = folder / "sources"
    sources.mkdir()
    for path in (*build.SOURCES.glob("*.h"), *build.SOURCES.glob("*.cpp")):
        sources.joinpath(path.name).write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build_library("softmax_float32.cpp", AVX512) != library


def test_a_process_killed_while_it_compiles_holds_up_nobody(folder, monkeypatch):
    use_compiler(folder, monkeypatch, "sleep 60")
    program = (
        "from models.compiled import build\n"
        "build.processor_features = lambda: frozenset(build.AVX512)\n"
        "build.build_library('softmax_float32.cpp', build.AVX512)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(build.__file__).parents[2])
    calls = folder / "calls"
    while not calls.exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    use_compiler(folder, monkeypatch, WRITE_LAST)
    assert build_library("softmax_float32.cpp", AVX512).read_text(encoding="utf-8") == "library\n"


def test_a_compiler_that_fails_or_is_missing_is_one_sentence(folder, monkeypatch):
    use_compiler(folder, monkeypatch, 'echo "x.cpp:1: error: no such thing" >&2; exit 1')
    with pytest.raises(KernelBuildError, match=r"compiler' fails: x.cpp:1: error: no such thing"):
        build_library("softmax_float32.cpp", AVX512)
    assert not list((folder / "extensions").rglob("*.so"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelBuildError, match=r"there is no C\+\+ compiler 'no-such-compiler'"):
        build_library("softmax_float32.cpp", AVX512)


def test_a_folder_that_cannot_be_written_is_named(folder, monkeypatch):
    use_compiler(folder, monkeypatch, WRITE_LAST)
    (folder / "extensions").write_text("a file", encoding="utf-8")
    with pytest.raises(KernelBuildError, match="extensions"):
        build_library("softmax_float32.cpp", AVX512)


def test_a_processor_without_avx512_is_named(monkeypatch):
    monkeypatch.setattr(build, "processor_features", lambda: frozenset({"avx512f", "fma"}))
    with pytest.raises(KernelBuildError, match="the processor lacks avx512bw, avx512dq, avx512vl"):
        build_kernels()


def test_a_library_that_cannot_be_loaded_is_named(folder, monkeypatch):
    use_compiler(folder, monkeypatch, WRITE_LAST)
    with pytest.raises(KernelBuildError, match=r"softmax_float32-[0-9a-f]*.so cannot be loaded"):
        build_kernels()


def test_without_amx_there_is_no_library_in_bfloat16(folder, monkeypatch):
    calls = use_compiler(folder, monkeypatch, WRITE_LAST)
    monkeypatch.setattr(softmax, "load_library", lambda library: None)
    monkeypatch.setattr(softmax, "processor_features", lambda: frozenset(AVX512))
    assert build_softmax_kernels().bfloat16 is None
    assert calls.read_text(encoding="utf-8").splitlines() == ["called"]


def test_other_systems_have_no_features(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    processor_features.cache_clear()
    assert processor_features() == frozenset()
    processor_features.cache_clear()
