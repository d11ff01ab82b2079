"""The compiled kernels of a training (train.compiled_kernels)."""

from collections.abc import Callable

from models.compiled.build import KernelBuildError
from models.compiled.kernels import CompiledKernels, build_kernels
from sharding.world import World
from trainer.errors import UserError


def kernels_of_ranks(world: World, build: Callable[[], CompiledKernels] = build_kernels) -> CompiledKernels:
    """Return the kernels that all ranks can run. Collective.

    The ranks of a machine that has not compiled them yet wait for the first of them. AMX is left out if the machine
    of one rank lacks it, so that results do not depend on which rank runs where.

    Args:
        world: All ranks.
        build: Compiles the kernels.

    Raises:
        UserError: A rank cannot compile or run them. It is raised on all ranks.
    """
    kernels = None
    complaint = None
    try:
        kernels = build()
    except KernelBuildError as error:
        complaint = str(error)
    lacks_amx = world.gather_objects(kernels is None or not kernels.has_amx)
    for rank, text in enumerate(world.gather_objects(complaint)):
        if text is not None:
            raise UserError(
                f"train.compiled_kernels = true, and worker {rank} cannot use compiled kernels: {text}; install g++ there, or "
                "leave the setting out"
            )
    assert kernels is not None
    return kernels.without_amx() if any(lacks_amx) else kernels
