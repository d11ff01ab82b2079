"""Packages that only training needs: which are missing here, and how to install them. Imports none of them.

An installed wheel brings the light packages along, with which configs are checked, plans made and logs generated or converted.
The others are the extras of pyproject.toml; docs/installation.md has the commands.
"""

import importlib.util

from trainer.errors import UserError

RAY = ("ray",)
TRAINING = ("torch", "torchrec", "fbgemm_gpu", "tensorboard", "ray")  # as imported

# torchrec by itself: it requires the CUDA build of fbgemm, which a resolver would install over the CPU build.
INSTALL = (
    "pip install 'shoal[cpu]' && pip install --no-deps 'torchrec==1.8.*' (with NVIDIA GPUs: pip install 'shoal[cuda]')"
)


def check_installed(command: str, modules: tuple[str, ...]) -> None:
    """Raise UserError if a module that the command needs is not installed, with the way to install it.

    Asked before anything is imported or written. Otherwise a missing torch would end a worker, after minutes.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(missing_message(command, missing))


def missing_message(command: str, modules: list[str]) -> str:
    """Return one line that says what is missing and how to install it."""
    *others, last = modules
    names = f"{', '.join(others)} and {last}" if others else last
    verb = "are" if others else "is"
    return f"{command} needs {names}, which {verb} not installed; install with {INSTALL}, see docs/installation.md"


def is_optional(module: str | None) -> bool:
    """Return whether a module (dotted or not) belongs to a package that only training needs."""
    return (module or "").partition(".")[0] in TRAINING
