"""Fewer bytes between ranks: looked-up rows and their gradients as 16-bit numbers on their way, fp32 before and after.

TorchRec's codecs do it. What they do otherwise than asked on some backends is refused by name (sharding.support).
"""

from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import QuantizedCommCodec, QuantizedCommCodecs

from sharding.config import CommunicationConfig

# Gradients are those of a mean over a global batch, so most are far below 1, and fp16 knows nothing below 6e-8: they travel
# multiplied by this. What exceeds 65,504 even so is clamped by the codec, not infinite.
GRADIENT_SCALE = 1024.0


class _Scaled:
    """A codec for numbers that are multiplied on their way. fbgemm takes its own scale back in fp16, which loses them after all."""

    def __init__(self, codec: QuantizedCommCodec[Any]) -> None:
        self._codec = codec

    def encode(self, tensor: Tensor, context: Any = None) -> Tensor:
        encoded: Tensor = self._codec.encode(tensor * GRADIENT_SCALE, context)
        return encoded

    def decode(self, tensor: Tensor, context: Any = None) -> Tensor:
        decoded: Tensor = self._codec.decode(tensor, context)
        return decoded / GRADIENT_SCALE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


def codecs_of(config: CommunicationConfig, device: torch.device) -> dict[str, QuantizedCommCodecs] | None:
    """The codecs that a sharder takes; none if all is sent as it is."""
    if config.forward == config.backward == "fp32":
        return None
    registry: dict[str, QuantizedCommCodecs] = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=CommType(config.forward), backward_precision=CommType(config.backward)),
        device=device,
    )
    if config.backward == "fp16":
        for codecs in registry.values():
            codecs.backward = _Scaled(codecs.backward)
    return registry
