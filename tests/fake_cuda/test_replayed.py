"""Programs of training launch natively what was recorded, with the memory of the call."""

from __future__ import annotations

from .process import Device


def test_native_launches_pass_what_triton_was_given(device: Device) -> None:
    """Address for address: two that were one are one, two that were two are two."""
    run = device.run("replayed.addresses")
    assert not run.log.violations
    assert [len(recorded) for recorded, _ in run.value] == [8, 8]
    for recorded, repeated in run.value:
        assert list(map(len, repeated)) == list(map(len, recorded))
        pairs = {
            pair
            for before, now in zip(recorded, repeated, strict=True)
            for pair in zip(before, now, strict=True)
        }
        assert len(pairs) == len({before for before, _ in pairs}) == len({now for _, now in pairs})
        # The parameters are where they were.
        assert sum(before == now for before, now in pairs) >= 3
