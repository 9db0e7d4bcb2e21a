"""One small block of each kind, forward and backward, on both CUDA backends: to be run under compute-sanitizer."""

from __future__ import annotations

import torch

import effnet_fast
from effnet_fast.inference.check import cast
from effnet_fast.nn.mbconv import MBConv

BOTH, TRITON = ("cuda", "triton"), ("triton",)

#: Backends, kernel size, stride, dtype. Each of the CUDA C++ backend's stencils once and each kernel of Triton in both
#: families of arithmetic; every line costs seconds of compiling, so there is no product of everything.
KINDS = (
    (BOTH, 3, 1, torch.bfloat16),
    (BOTH, 3, 2, torch.float32),
    (BOTH, 5, 1, torch.float32),
    (BOTH, 5, 2, torch.bfloat16),
    (TRITON, 3, 2, torch.bfloat16),
    (TRITON, 5, 1, torch.float32),
)


def main() -> None:
    torch.manual_seed(0)
    for backends, kernel, stride, dtype in KINDS:
        # Odd sizes and channel counts that no tile divides.
        block = MBConv(9, 9, expand_ratio=3, kernel_size=kernel, stride=stride, squeeze_channels=2)
        block = effnet_fast.patch(cast(block.cuda(), dtype))
        x = torch.randn(3, 9, 13, 11, device="cuda").to(dtype, memory_format=torch.channels_last)
        with effnet_fast.use_backend(*backends):
            y = block.train()(x.requires_grad_())
            y.float().square().mean().backward()
            with torch.inference_mode():
                z = block.eval()(x)
        torch.cuda.synchronize()
        assert x.grad is not None and bool(x.grad.isfinite().all() and z.isfinite().all())
        print(f"{'+'.join(backends)} {kernel}x{kernel} stride {stride} {dtype}: ran")


if __name__ == "__main__":
    main()
