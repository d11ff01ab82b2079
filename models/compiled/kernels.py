"""All compiled kernels of a model."""

from dataclasses import dataclass, replace

from models.compiled.attention import AttentionKernel, build_attention_kernel
from models.compiled.layers import LayerKernels, build_layer_kernels
from models.compiled.softmax import SoftmaxKernels, build_softmax_kernels


@dataclass(frozen=True)
class CompiledKernels:
    """Kernels that a model uses where they fit. It computes everything else by torch."""

    softmax: SoftmaxKernels
    """The kernels of the objectives."""
    attention: AttentionKernel
    """The kernel of attention."""
    layers: LayerKernels
    """The kernels of an encoder's layers between matrix products."""

    @property
    def has_amx(self) -> bool:
        """Return whether products in bfloat16 use AMX."""
        return self.softmax.bfloat16 is not None

    def without_amx(self) -> "CompiledKernels":
        """Return the kernels without AMX, which compute these products in float32."""
        return replace(self, softmax=replace(self.softmax, bfloat16=None))


def build_kernels() -> CompiledKernels:
    """Compile the kernels that this machine can run.

    Raises:
        KernelBuildError: the processor has no AVX-512, the compiler is missing or fails, or a library cannot be loaded.
    """
    return CompiledKernels(build_softmax_kernels(), build_attention_kernel(), build_layer_kernels())
