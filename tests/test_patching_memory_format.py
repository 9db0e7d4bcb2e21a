"""Fused blocks return channels_last memory, as docs/patching.md says, in the order that stock features have."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import make_network

import effnet_fast


def test_flattened_features() -> None:
    stock = effnet_fast.unpatch(make_network("torchvision"))
    patched, x = effnet_fast.patch(copy.deepcopy(stock)), torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        wanted, features = stock.features(x), patched.features(x)
        assert wanted.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
        for flat in (features.flatten(1), features.reshape(2, -1), features.contiguous().view(2, -1)):
            torch.testing.assert_close(flat, wanted.view(2, -1), rtol=1e-3, atol=1e-3)
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            features.view(2, -1)
        # Joining height and width is a view of either.
        torch.testing.assert_close(features.view(2, 1280, -1), wanted.view(2, 1280, -1), rtol=1e-3, atol=1e-3)
