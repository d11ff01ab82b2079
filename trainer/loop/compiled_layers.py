"""Layers of the model that torch.compile compiles (train.torch_compile)."""

import torch
from torch import nn

from models.attention.triton_attention import has_triton
from models.encoders.block import FeedForward, OutputHead
from models.encoders.tower import Tower
from sharding.world import World
from trainer.errors import UserError

# Layers with elementwise operations between matrix products. They see no histories, ids or ranks.
LAYERS = (FeedForward, OutputHead, Tower)


def compile_layers(model: nn.Module, world: World) -> int:
    """Replace the calls of these layers by compiled ones, and return the number of layers. Collective.

    Nothing is compiled before the first call. Sizes of batches are symbols, so that a new size compiles nothing. Names of
    parameters stay as they are, and so do checkpoints.

    Args:
        model: the model.
        world: all ranks.

    Raises:
        UserError: the model has no such layer, or a rank has no compiler. It is raised on all ranks.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, LAYERS) and next(module.parameters(), None) is not None
    ]
    if not layers:
        raise UserError(
            "train.torch_compile = true, and the model has no layers to compile: it has neither feed-forward sub-layers nor "
            "towers (model.encoder.feed_forward); leave it out"
        )
    for rank, text in enumerate(world.gather_objects(no_compiler_reason(world.device))):
        if text is not None:
            raise UserError(
                f"train.torch_compile = true, and worker {rank} cannot compile: {text}; install it there, or leave the setting out"
            )
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def no_compiler_reason(device: torch.device) -> str | None:
    """Return the reason why this machine cannot compile layers for a device, or None."""
    if device.type == "cuda":
        return None if has_triton() else "Triton is missing"
    from torch._inductor.cpp_builder import get_cpp_compiler  # imports the whole compiler of torch
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler"
    return None
