"""One small block of each kind, forward and backward, on both CUDA backends: to be run under compute-sanitizer."""

from __future__ import annotations

import itertools

import torch

import effnet_fast
from effnet_fast.inference.check import cast
from effnet_fast.nn.mbconv import MBConv


def main() -> None:
    torch.manual_seed(0)
    kinds = itertools.product(
        (("cuda", "triton"), ("triton",)), (3, 5), (1, 2), (torch.float32, torch.bfloat16)
    )
    for backends, kernel, stride, dtype in kinds:
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
