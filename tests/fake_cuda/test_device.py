"""The fake device itself: it finds out what it is there to find out, and knows nothing it should not."""

from __future__ import annotations

import pytest

from .process import Device, JobError


def test_stream_of_another_gpu(device: Device) -> None:
    (found,) = device.run("misuse.launch_on_another_gpus_stream").log.violations
    assert found.startswith("a stream of another device") and found.endswith("lost")


def test_tensor_of_another_gpu(device: Device) -> None:
    (found,) = device.run("misuse.triton_on_the_wrong_gpu").log.violations
    assert found == "a tensor of device 1 in a launch on device 0"


def test_shared_memory_has_to_be_asked_for(device: Device) -> None:
    (found,) = device.run("misuse.much_shared_memory", 0).log.violations
    assert found.startswith("shared memory that was not opted in") and found.endswith("store_kernel")
    assert not device.run("misuse.much_shared_memory", 64 << 10).log.violations
    more, found = device.run("misuse.much_shared_memory", 1 << 20).log.violations
    assert more.startswith("1048576 bytes of shared memory asked for, the device has 232448")
    assert found.startswith("shared memory that was not opted in")


def test_synchronization_is_logged(device: Device) -> None:
    assert device.run("misuse.wait_for_the_device").parts["item"].syncs == ["cudaStreamSynchronize"]


def test_memory_is_counted(device: Device) -> None:
    assert device.run("misuse.leave_memory").value >= 64 << 20


def test_zeros_take_no_memory(device: Device) -> None:
    taken, values = device.run("misuse.zeros_and_a_copy").value
    assert taken < 256 << 10
    assert values == [0, 1, 1, 1, 0] + [0] * 5


def test_errors_come_back(device: Device) -> None:
    with pytest.raises(JobError, match="no_such_job"):
        device.run("misuse.no_such_job")
