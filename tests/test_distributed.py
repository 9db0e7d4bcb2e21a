"""Two gloo processes on the CPU: synchronised BatchNorm in fused blocks, data parallelism, FSDP2."""

from typing import Any

import distributed_jobs as jobs
import processes
import pytest
import torch
from torch import Tensor, nn

from effnet_fast.tolerance import allowed, error

JOBS = [
    *("data_parallel", "variants", "groups", "compiled", "checkpointed"),
    *("one_process_eager", "fully_sharded", "layouts"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every job's results, of one pair of processes: starting them costs more than the jobs."""
    return processes.run(tmp_path_factory.mktemp("ranks"), "distributed_jobs", JOBS)


def results(ranks: list[dict[str, Any]], job: str) -> list[dict[str, Any]]:
    for rank, found in enumerate(ranks):
        assert not isinstance(found[job], str), f"rank {rank}: {found[job]}"
    return [found[job] for found in ranks]


def joint(dtype: torch.dtype = torch.float64, variant: str = "plain") -> dict[str, Tensor]:
    """One process, PyTorch's own modules and plain BatchNorm, on the images of all."""
    change, split, size = jobs.VARIANTS[variant]
    model = jobs.blocks(dtype)
    change(model)
    return jobs.outcome(model, torch.cat(jobs.images(dtype, split, size)), 1 if variant == "plain" else 2)


def merged(ranks: list[dict[str, Tensor]], scale: float = 1.0) -> dict[str, Tensor]:
    """Two processes' results as one's: images in a row, gradients summed, the first one's buffers."""
    first, second = ranks
    for name in first:
        if name.startswith("buffer"):
            torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-6)
    whole = {name: torch.cat([first[name], second[name]]) for name in ("y", "dx")}
    grads = {n: (first[n] + second[n]) * scale for n in first if n.startswith("grad")}
    return whole | grads | {n: t for n, t in first.items() if n.startswith("buffer")}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        torch.testing.assert_close(
            got[name], want, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("backend", jobs.BACKENDS)
def test_data_parallel_is_one_process_on_the_joint_batch(ranks, backend: str) -> None:
    dtype = jobs.BACKENDS[backend]
    found = [rank[backend] for rank in results(ranks, "data_parallel")]
    for name in found[0]:
        if name.startswith("grad"):
            assert torch.equal(found[0][name], found[1][name]), f"{name} was not averaged"
    # DistributedDataParallel averages over processes what the joint loss sums over images.
    got = merged(found)
    truth, baseline = joint(), joint(dtype)
    for name, value in got.items():
        if dtype == torch.float64:
            torch.testing.assert_close(value, truth[name], rtol=1e-9, atol=1e-9)
        elif value.dtype == dtype:
            # Not the rule for one op: errors of three blocks in a row, sometimes in tensors of two elements.
            limit = max(allowed(baseline[name], truth[name], dtype), 1e-4 * truth[name].abs().max().item())
            assert error(value, truth[name]) <= limit, f"{name}: {error(value, truth[name])} > {limit}"
        else:
            assert torch.equal(value, truth[name]), name
    report = results(ranks, "data_parallel")[0][f"{backend} report"]
    assert [row["state"] for row in report] == ["fused"] * 3


@pytest.mark.parametrize("variant", jobs.VARIANTS)
def test_synchronised_batch_norm(ranks, variant: str) -> None:
    found = [rank[variant] for rank in results(ranks, "variants")]
    if variant == "plain":
        found = [{n: t for n, t in rank.items() if not n.startswith("buffer")} for rank in found]
        for rank in found:
            for name in rank:
                if name.startswith("grad"):
                    rank[name] = rank[name] / 2
    expected = joint(variant=variant)
    assert_equal(merged(found), {n: t for n, t in expected.items() if n in merged(found)})


def test_process_group(ranks) -> None:
    found = results(ranks, "groups")
    assert_equal(merged([rank["everyone"] for rank in found]), joint())
    for rank, x in zip(found, jobs.images(), strict=True):
        assert_equal(rank["alone"], jobs.outcome(jobs.blocks(), x))


@pytest.mark.parametrize("job", ["compiled", "checkpointed", "one_process_eager"])
def test_synchronised_batch_norm_under(ranks, job: str) -> None:
    assert_equal(merged(results(ranks, job)), joint())


@pytest.mark.parametrize("pieces", ["blocks", "model"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_fully_sharded(ranks, order: str, pieces: str) -> None:
    found = [rank[f"{order} {pieces}"] for rank in results(ranks, "fully_sharded")]
    alone = [jobs.outcome(jobs.blocks(), x) for x in jobs.images()]
    for rank, own in zip(found, alone, strict=True):
        # Statistics stay each process's own; gradients are averaged, as data parallelism does.
        expected = {n: (alone[0][n] + alone[1][n]) / 2 if n.startswith("grad") else t for n, t in own.items()}
        assert_equal(rank["result"], expected)
        assert rank["in forward"] == ["fused"] * 3
        assert rank["outside"] == ["sharded"] * 3
        kept, reasons, name = rank["unpatched"]
        assert kept == [pieces == "blocks"] * 3 and reasons == ["not patched"] * 3
        assert name == ("FSDPMBConv" if pieces == "blocks" else "MBConv")


def test_data_parallel_in_channels_last_warns_of_no_strides(ranks) -> None:
    for rank in results(ranks, "layouts"):
        assert rank["fused warnings"] == rank["stock warnings"] == []
        assert_equal(rank["fused"], rank["stock"])


def test_without_a_process_group_it_is_plain_batch_norm() -> None:
    x = jobs.images()[0]
    assert_equal(jobs.outcome(jobs.synchronised(jobs.blocks()), x), jobs.outcome(jobs.blocks(), x))
    assert isinstance(jobs.synchronised(jobs.blocks())[0].block[0][1], nn.SyncBatchNorm)
