#!/usr/bin/env python3
"""The native CPU code under sanitizers: ``make sanitize``, or ``python scripts/sanitize.py [address] [thread] [-- pytest arguments]``.

``address`` is AddressSanitizer with UndefinedBehaviorSanitizer, ``thread`` is ThreadSanitizer. The library ``_ops`` is
built with them beside the usual one, and tests of kernels, training ops, whole networks and several Python threads run
with it, the sanitizer's runtime preloaded into Python. Every tensor then has a guarded allocation of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZED = ROOT / "tests" / "sanitized"
sys.path.insert(0, str(ROOT))

from effnet_fast.build import driver, toolchain  # noqa: E402

#: flavour -> (compiler flags, runtime, its options, faults of tests/sanitized/parallel_for.cpp with what must be said).
FLAVOURS = {
    "address": (
        "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "libasan.so",
        {
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:detect_odr_violation=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        {0: "heap-buffer-overflow", 1: "runtime error: shift exponent"},
    ),
    "thread": (
        "-fsanitize=thread",
        "libtsan.so",
        {
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66:second_deadlock_stack=1"
        },
        {2: "data race"},
    ),
}
#: The other copies are the same sources with vectors of other widths. A set is there only with those that it implies.
ISAS = ("avx2", "avx512")
#: What runs: kernels, training ops, whole networks, several Python threads. Of what tests at many sizes, some.
TESTS = {
    "address": [
        *(
            "tests/sanitized",
            "tests/test_cpu_kernels.py",
            "tests/test_cpu_depthwise.py",
            "tests/test_cpu_training.py",
            "tests/test_cpu_convolution_training.py",
            "tests/test_cpu_norm_training.py",
            "tests/test_cpu_engine.py",
        ),
        *(
            "tests/test_cpu_block.py",
            "tests/test_cpu_threads.py",
            "tests/test_fuzz_ops.py",
            "tests/test_fuzz_blocks.py",
        ),
    ],
    "thread": [
        *("tests/sanitized", "tests/test_cpu_engine.py", "tests/test_cpu_block.py"),
        *("tests/test_fuzz_ops.py", "tests/test_fuzz_blocks.py"),
    ],
}
#: Not about the native code, or about the speed, memory or machine code of the usual build.
LEFT_OUT = "not reference and not environment_variable and not avx2"
#: Of each property-based test: what memory an op touches depends on its shape, and 8 shapes an op are many.
CASES = 8


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def build(flavour: str, folder: Path) -> None:
    """The instrumented library and the preloaded threads, in ``folder``."""
    flags = f"{FLAVOURS[flavour][0]} -g1 -fno-omit-frame-pointer"
    configure, _ = driver.configuration("_ops", ROOT)
    tree, compiler = folder / "work", str(toolchain.find_compiler())
    # Lightly optimized: what is looked for is in the source, and that compiles in a fifth of the time.
    configure += ["-DCMAKE_BUILD_TYPE=Sanitize", "-DCMAKE_CXX_FLAGS_SANITIZE=-O1 -DNDEBUG"]
    configure += [f"-DCMAKE_CXX_FLAGS={flags}", f"-DCMAKE_MODULE_LINKER_FLAGS={flags}"]
    configure += [
        f"-DEFFNET_COMPILES_{isa}=OFF" for isa in ("avx2", "avx512", "avx512bf16") if isa not in ISAS
    ]
    jobs = str(toolchain.parallel_jobs())
    torch = toolchain.find_torch()
    shim = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", *flags.split(), f"-I{torch.include}"]
    for command in (
        [*configure, "-B", str(tree)],
        [configure[0], "--build", str(tree), "--parallel", jobs],
        [*shim, str(SANITIZED / "parallel_for.cpp"), "-o", str(folder / "parallel_for.so")],
    ):
        done = run(command)
        if done.returncode:
            raise SystemExit((done.stdout + done.stderr)[-4000:])
    shutil.copyfile(tree / "_ops.so", folder / "_ops.so")
    built = {"file": "_ops.so", "sources": driver.source_hash(ROOT, "_ops"), "torch": torch.version}
    (folder / driver.MANIFEST).write_text(json.dumps({"products": {"_ops": built}, "missing": {}}))


def runtime(name: str) -> str:
    found = run([str(toolchain.find_compiler()), f"-print-file-name={name}"]).stdout.strip()
    if not Path(found).is_file():
        raise SystemExit(f"sanitize: the compiler has no {name}")
    return found


def main() -> int:
    own, _, rest = " ".join(sys.argv[1:]).partition("--")
    status = 0
    for flavour in own.split() or list(FLAVOURS):
        folder = ROOT / "build" / f"sanitize-{flavour}"
        build(flavour, folder)
        _, library, options, faults = FLAVOURS[flavour]
        preload = [runtime(library), runtime("libstdc++.so"), str(folder / "parallel_for.so")]
        environment = {
            **options,
            "LD_PRELOAD": " ".join(preload),
            "SANITIZED_LIBRARY": str(folder),
            "SANITIZED_ISA": ISAS[-1],
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": os.pathsep.join([str(SANITIZED), str(ROOT)]),
        }
        shim = folder / "parallel_for.so"
        for kind, message in faults.items():
            call = f"import ctypes; ctypes.CDLL({str(shim)!r}).effnet_sanitized_fault({kind})"
            done = run([sys.executable, "-c", call], **environment)
            if done.returncode == 0 or message not in done.stderr:
                raise SystemExit(
                    f"sanitize: the {flavour} sanitizer did not find fault {kind}: {done.stderr[-2000:]}"
                )
        print(f"{flavour}: {len(faults)} planted faults found", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "sanitized_library", "-p", "no:cacheprovider"]
        command += [
            "--timeout=0",
            *(rest.split() or [*TESTS[flavour], "-k", LEFT_OUT, f"--fuzz-cases={CASES}"]),
        ]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
        if done.returncode:
            print(f"sanitize: {flavour}: pytest ended with {done.returncode}", file=sys.stderr)
        status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
