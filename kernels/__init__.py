"""Fused operations on the hot paths of training, each with its torch reference; needs torch and, to launch, Triton.

For an operation `name`, `name.py` holds the reference and the operator, `name_triton.py` the Triton kernels, their
launches and block sizes; the largest, `norm_act_pool`, is a folder. Files of kernels, and Triton with them, are
imported when the first operation takes its Triton path. Some have a C++ kernel for CPUs (cpp.py).

`FASTCIFAR_KERNELS=reference|cpp|triton` forces a path; unset, CUDA tensors take Triton and others plain torch, on a CPU
with a compiler C++ where there is a kernel.
"""

if __name__ != "fastcifar.kernels":
    raise ImportError(
        f"the kernels were imported as {__name__!r}; allowed: fastcifar.kernels (a second copy would register every "
        "operator twice)"
    )

from fastcifar.kernels.augment import augment, augment_reference, plain_batch
from fastcifar.kernels.compile_ahead import compile_ahead, compile_cpp
from fastcifar.kernels.conv3x3 import (
    conv3x3,
    conv3x3_reference,
    conv_input_gradient,
    conv_input_gradient_reference,
)
from fastcifar.kernels.conv_pool import conv_pool, conv_pool_reference
from fastcifar.kernels.conv_weight_gradient import conv_weight_gradient, conv_weight_gradient_reference
from fastcifar.kernels.cpu_memory import give_back_freed_memory, keep_freed_memory
from fastcifar.kernels.cross_entropy import (
    cross_entropy,
    cross_entropy_by_image,
    cross_entropy_by_image_reference,
    cross_entropy_reference,
    cross_entropy_step,
)
from fastcifar.kernels.flat_muon import (
    muon_direction,
    muon_direction_reference,
    muon_update,
    muon_update_reference,
)
from fastcifar.kernels.flat_optimizer import flat_ema, flat_ema_reference, flat_sgd, flat_sgd_reference
from fastcifar.kernels.newton_schulz import newton_schulz, newton_schulz_reference
from fastcifar.kernels.norm_act_pool import norm_act_pool, norm_act_pool_inference, norm_act_pool_reference
from fastcifar.kernels.operators import wants_gradient
from fastcifar.kernels.whiten import whiten, whiten_reference

__all__ = [
    "augment",
    "augment_reference",
    "compile_ahead",
    "compile_cpp",
    "conv3x3",
    "conv3x3_reference",
    "conv_input_gradient",
    "conv_input_gradient_reference",
    "conv_pool",
    "conv_pool_reference",
    "conv_weight_gradient",
    "conv_weight_gradient_reference",
    "cross_entropy",
    "cross_entropy_by_image",
    "cross_entropy_by_image_reference",
    "cross_entropy_reference",
    "cross_entropy_step",
    "flat_ema",
    "flat_ema_reference",
    "flat_sgd",
    "flat_sgd_reference",
    "give_back_freed_memory",
    "keep_freed_memory",
    "muon_direction",
    "muon_direction_reference",
    "muon_update",
    "muon_update_reference",
    "newton_schulz",
    "newton_schulz_reference",
    "norm_act_pool",
    "norm_act_pool_inference",
    "norm_act_pool_reference",
    "plain_batch",
    "wants_gradient",
    "whiten",
    "whiten_reference",
]
