"""Fewer bytes between ranks: looked-up rows and their gradients are sent as 16-bit numbers, and are fp32 before and after.

TorchRec's codecs convert them. Codecs that behave differently on some backends are rejected by name (sharding.support).
"""

from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import QuantizedCommCodec, QuantizedCommCodecs

from sharding.config import CommunicationConfig

# Gradients are of a mean over a global batch, so most are far below 1, and fp16 has no numbers below 6e-8. So they are multiplied
# by this before they are sent. The codec clamps results above 65,504, so they do not become infinite.
GRADIENT_SCALE = 1024.0


class _Scaled:
    """A codec that scales numbers before encoding. fbgemm's own scale is undone in fp16, which loses small numbers."""

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
    """Return the codecs of a sharder, or None if everything is sent as fp32."""
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
