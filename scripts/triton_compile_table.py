"""Writes docs/kernels/triton.md: what the compiler makes of every Triton kernel.

    python scripts/triton_compile_table.py

Needs no GPU; takes ten minutes. The page carries a digest of what was compiled, by which a test knows that it is stale.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import sys
import tokenize
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from triton_offline import coverage  # noqa: E402
from triton_offline.matrix import ARCHITECTURES, Result, jobs, run  # noqa: E402

PAGE = ROOT / "docs" / "kernels" / "triton.md"

#: What compiles, how, and with which arguments.
SOURCES = (
    *("kernels/*_kernels.py", "kernels/fragments.py", "kernels/configs.py"),
    "tests/support/triton_offline/coverage.py",
)

HEAD = """\
# Triton kernels as compiled

Written by `python scripts/triton_compile_table.py` with Triton {version}; do not edit. Every kernel of `kernels/` in
every configuration of `kernels/configs.py`, every variant of `tests/support/triton_offline/coverage.py` and every dtype
(bfloat16 not on sm_75), compiled offline from the arguments that a launch on EfficientNet-B0's shapes passes: {compiled}
compilations, {failed} with a problem (a spill is one).

A cell: largest shared memory of a block in KiB / most registers of a thread / most bytes spilled by a thread, over
configurations and dtypes, and in the GEMMs the tensor-core instructions of float16 and bfloat16. Triton (3.6 and 3.9)
emits none for sm_75: dots run on its FMA units there, with the tiles of float32.

Sources {digest}.

"""


def digest() -> str:
    """Of the sources' tokens: comments and blank lines do not matter."""
    ignored = (tokenize.COMMENT, tokenize.NL)
    found = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            # f-strings are one token before Python 3.12 and several after, so joints between tokens do not count.
            if token.type not in ignored:
                found.update(token.string.encode())
    return found.hexdigest()[:12]


def cell(results: list[Result]) -> str:
    reports = [result.report for result in results if result.report is not None]
    if not reports:
        return "-"
    text = " / ".join(
        [
            f"{max(r.shared for r in reports) / 1024:.0f}",
            str(max(r.registers for r in reports)),
            str(max(r.spills for r in reports)),
        ]
    )
    found = sorted({r.tensor_core.removesuffix(".mma") for r in reports if r.tensor_core})
    return f"{text} {', '.join(found)}".strip()


def main() -> None:
    todo = [job for kernel in coverage.CASES for job in jobs(kernel, everything=True)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as workers:
        results = [result for batch in workers.map(run, todo) for result in batch]
    table: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in results:
        table[result.job.kernel, result.job.capability].append(result)
    failed = [result for result in results if result.problem]
    lines = [
        HEAD.format(
            version=triton.__version__,
            compiled=len(results),
            failed=len(failed),
            digest=digest(),
        )
        + "| kernel | "
        + " | ".join(f"sm_{a}" for a in ARCHITECTURES)
        + " |",
        "|---" * (len(ARCHITECTURES) + 1) + "|",
    ]
    for kernel in coverage.CASES:
        lines.append(f"| `{kernel}` | " + " | ".join(cell(table[kernel, a]) for a in ARCHITECTURES) + " |")
    for result in failed:
        job = result.job
        lines.append(f"\n- sm_{job.capability} {job.dtype} {job.kernel} {result.config}: {result.problem}")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"{PAGE}: {len(results)} compilations, {len(failed)} with a problem")


if __name__ == "__main__":
    main()
