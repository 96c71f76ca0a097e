"""Compile the Triton kernels that a training will launch, in parallel and without launching them."""

from __future__ import annotations

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fastcifar.kernels.augment import augment
from fastcifar.kernels.cross_entropy import cross_entropy
from fastcifar.kernels.flat_muon import muon_direction, muon_update
from fastcifar.kernels.flat_optimizer import flat_ema, flat_sgd
from fastcifar.kernels.launch import compile_only, use_triton
from fastcifar.kernels.norm_act_pool import norm_act_pool, norm_act_pool_inference


def compile_all(
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.float16,
    *,
    activation: str = "celu",
    scale: bool = False,
    cutout: bool = False,
    jitter: bool = False,
    classes: int = 10,
    size: int = 32,
    form: str = "source",
    muon: bool = False,
) -> bool:
    """Compile every kernel of a training in `dtype` with these choices; a first launch then finds it compiled.

    dtype: of the batches, the network and its gradients, the master weights being float32. size: side of the images.
    muon: whether the filters go by Muon.
    False, and nothing done, where the operations do not take their Triton path (see FASTCIFAR_KERNELS). What is
    compiled fits numbers of channels, and lengths of flat buffers, that are multiples of 16; others compile at their
    first launch.
    Compiled kernels stay in Triton's cache on disk, so a second process spends milliseconds here.
    """
    if not use_triton(torch.empty(0, device=device)):
        return False
    from triton.runtime._async_compile import AsyncCompileMode

    device = torch.device(device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        with AsyncCompileMode(pool), compile_only() as compiled:
            _every_launch(device, dtype, activation, scale, cutout, jitter, classes, size, form, muon)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            list(pool.map(functools.partial(_load, index), {id(kernel): kernel for kernel in compiled}.values()))
    return True


def _load(device: int, kernel: Any) -> None:
    """Load a compiled kernel and make what launches it, for which Triton 3.6 and older call a C compiler: at first
    launches all would follow one another."""
    with contextlib.suppress(Exception):  # what fails here fails again, and is told, at the first launch
        torch.cuda.set_device(device)  # of this thread
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        _ = kernel.run  # made when it is first asked for


def _every_launch(device, dtype, activation, scaled, cutout, jitter, classes, size, form, muon) -> None:
    """Call every operation once for each kernel that it could launch, on small tensors; results are not read."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    images = (empty(2, size, size, 3, dtype=torch.uint8), empty(2, dtype=torch.int64), empty(2, 2, dtype=torch.int32))
    flips = empty(2, dtype=torch.bool)
    cutouts = empty(2, 4, dtype=torch.int32) if cutout else None
    augment(*images, flips, cutouts, empty(2, 2) if jitter else None, out_dtype=dtype)  # training
    for view in (None, flips):  # evaluation
        augment(*images, view, out_dtype=dtype)
    augment(*images, out_dtype=torch.float32)  # whitening
    cross_entropy(empty(2, classes, dtype=dtype), empty(2, dtype=torch.int64))

    channels = 64
    vector = empty(channels)
    scale = vector if scaled else None
    constants = {"activation": activation, "alpha": 1.0}
    for pool in (False, True):
        x = empty(2, channels, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
        side = 2 if pool else 4
        for residual in (None, empty(2, channels, side, side, dtype=dtype)):
            norm_act_pool(x, vector, scale, pool=pool, residual=residual, **constants)
            norm_act_pool_inference(x, vector, vector, vector, scale, pool=pool, residual=residual, **constants)
        inputs = empty(2, channels, side, side, dtype=dtype)
        argmax = torch.empty_like(inputs, dtype=torch.uint8) if pool else None
        saved = (inputs, inputs, argmax, None, vector[None], vector[None], vector, scale)
        for edge in (4, 5) if pool else (4,):
            torch.ops.fastcifar.norm_act_pool_backward(*saved, activation, 1.0, 1e-5, edge, edge)

    step = empty(1, dtype=torch.int64)
    for compute_dtype in {dtype, torch.float32}:  # weights in the compute dtype, vectors in the master's
        compute = None if compute_dtype == torch.float32 else empty(64, dtype=compute_dtype)
        buffers = (empty(64), empty(64, dtype=compute_dtype), empty(64), compute)
        for ema in (None, empty(64)):
            flat_sgd(*buffers, ema, empty(4), step, momentum=0.9, weight_decay=0.1, form=form)
    flat_ema(empty(64), empty(64), step, ema_decay=0.9, ema_every=5)
    if muon:
        layout, flags = [0, 8, 8, 0, 8], empty(4, dtype=torch.bool)
        weights, grads, velocity, compute = empty(64), empty(64, dtype=dtype), empty(64), empty(64, dtype=dtype)
        norms = muon_direction(weights, grads, velocity, compute, layout, momentum=0.6)
        for ema in (None, empty(64)):
            compute = None if dtype == torch.float32 else compute
            muon_update(weights, grads, compute, ema, norms, empty(4), flags, step, layout)
