"""The compilation of the C++ sources into shared libraries.

The sources include no header of torch, so a library takes seconds to compile, and serves any version of torch. Libraries are
kept in torch's folder for extensions (TORCH_EXTENSIONS_DIR). torch's own builder is not used: its lock file stays after a
process that was killed while it compiled, and later processes would wait forever. The lock here ends with its process.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch.utils.cpp_extension import get_cxx_compiler, get_default_build_root

SOURCES = Path(__file__).parent
# No product and sum is joined unless the source does so, so that results do not depend on the compiler.
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=off")
COMPILER_SECONDS = 300.0
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")


class KernelBuildError(RuntimeError):
    """A machine that cannot compile or run the kernels. The message gives the reason."""


def build_library(source: str, features: Iterable[str]) -> Path:
    """Return the compiled library of a source, which is compiled if no process of this machine has done so before.

    Processes that ask at the same time wait for the first one. Of `features`, those in AVX512 are checked here.

    Args:
        source: the name of a file of this folder.
        features: the instruction sets of the processor that it uses, as the compiler names them: "avx512f".

    Raises:
        KernelBuildError: the processor has no AVX-512, or the compiler is missing or fails.
    """
    if missing := sorted({*AVX512} - processor_features()):
        raise KernelBuildError(f"the processor lacks {', '.join(missing)}")
    compiler = get_cxx_compiler()
    flags = (*FLAGS, *(f"-m{feature}" for feature in features))
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "shoal"
    digest = hashlib.sha256("\0".join((compiler, _version(compiler), *flags)).encode())
    for path in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        digest.update(path.read_bytes())
    library = folder / f"{Path(source).stem}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{library.stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile((compiler, *flags), SOURCES / source, library)
    except OSError as error:
        raise KernelBuildError(
            f"{folder}, where TORCH_EXTENSIONS_DIR may name another folder, cannot hold them ({error})"
        ) from error
    return library


@functools.cache
def load_library(library: Path) -> ctypes.CDLL:
    """Load a library, once per process. It shares the thread pool of torch, because torch loads OpenMP for all libraries.

    Raises:
        KernelBuildError: it cannot be loaded, such as from a file system that runs no programs.
    """
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelBuildError(f"{library} cannot be loaded ({error})") from error


@functools.cache
def processor_features() -> frozenset[str]:
    """Return the instruction sets of the processor, as Linux names them; none on other systems or processors."""
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _version(compiler: str) -> str:
    """Return the first line in which a compiler names itself."""
    return _run((compiler, "--version")).partition("\n")[0]


def _compile(command: tuple[str, ...], source: Path, library: Path) -> None:
    """Compile a source. The library appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        output = Path(folder) / library.name
        _run((*command, str(source), "-o", str(output)))
        os.replace(output, library)


def _run(command: tuple[str, ...]) -> str:
    """Return the output of a compiler."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILER_SECONDS)
    except OSError as error:
        raise KernelBuildError(f"there is no C++ compiler {command[0]!r} ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise KernelBuildError(f"the C++ compiler took more than {COMPILER_SECONDS:.0f} s: {command[0]}") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        reason = lines[0] if lines else f"exit code {error.returncode}"
        raise KernelBuildError(f"the C++ compiler {command[0]!r} fails: {reason}") from error
    return done.stdout
