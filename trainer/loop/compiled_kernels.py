"""The compiled kernels of a training (train.compiled_kernels) and of evaluations (evaluate.compiled_kernels)."""

from collections.abc import Callable

from models.compiled.build import KernelBuildError
from models.compiled.kernels import CompiledKernels, build_kernels
from sharding.world import World
from trainer.config.evaluate import EvaluateConfig
from trainer.errors import UserError
from trainer.loop.build import Built


def kernels_of_ranks(
    world: World, setting: str, build: Callable[[], CompiledKernels] = build_kernels
) -> CompiledKernels:
    """Return the kernels that all ranks can run. Collective.

    The ranks of a machine that has not compiled them yet wait for the first of them. AMX is left out if the machine
    of one rank lacks it, so that results do not depend on which rank runs where.

    Args:
        world: All ranks.
        setting: The name of the setting that asks for them.
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
                f"{setting} = true, and worker {rank} cannot use compiled kernels: {text}; install g++ there, or "
                "leave the setting out"
            )
    assert kernels is not None
    return kernels.without_amx() if any(lacks_amx) else kernels


def set_kernels_of_evaluation(built: Built, config: EvaluateConfig, world: World) -> None:
    """Give the model the kernels with which it encodes histories in evaluations, if the config asks for them. Collective.

    Args:
        built: Has the model.
        config: The settings of evaluations.
        world: All ranks.

    Raises:
        UserError: A rank cannot compile or run them. It is raised on all ranks.
    """
    if config.compiled_kernels:
        built.model.encoding_kernels = kernels_of_ranks(world, "evaluate.compiled_kernels")
