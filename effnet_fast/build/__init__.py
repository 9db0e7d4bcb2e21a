"""Compiling the native libraries: while the package is installed, or later with ``effnet-fast build``.

A plain ``pip install`` builds in isolation, without torch, and therefore installs Python and the sources
only; ``effnet-fast build`` compiles them afterwards into the user's cache. In a checkout it builds in place.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from .driver import (
    LIBRARY_FOLDER,
    MANIFEST,
    PRODUCTS,
    BuildError,
    build,
    cache_folder,
    cache_root,
    came_with_the_package,
    configuration,
    installed_packages,
    library_folders,
    output_folders,
    read_manifest,
    source_files,
    source_hash,
    source_root,
    unwanted,
    version,
    work_folder,
)
from .gpu import driver_present
from .toolchain import MissingTool, is_set, merged

__all__ = [
    "COMMAND",
    "LIBRARY_FOLDER",
    "MANIFEST",
    "PRODUCTS",
    "BuildError",
    "MissingTool",
    "add_arguments",
    "build",
    "cache_folder",
    "cache_root",
    "diagnose",
    "driver_present",
    "installed_packages",
    "is_set",
    "library_folders",
    "main",
    "output_folders",
    "read_manifest",
    "run",
    "source_files",
    "source_hash",
    "source_root",
    "unwanted",
    "version",
    "why_missing",
    "work_folder",
]

#: Builds what can be built, and says which command adds the tools that are missing.
COMMAND = "effnet-fast build"


def diagnose(product: str) -> MissingTool | None:
    """What stands in the way of building a product now; ``None``: nothing known."""
    root = source_root()
    if root is None:
        return MissingTool("the sources are not installed", "pip install --force-reinstall effnet-fast")
    skipped = unwanted(product)
    if skipped is not None:
        return skipped
    try:
        configuration(product, root)
    except MissingTool as missing:
        return missing
    return None


def why_missing(product: str, recorded: str) -> tuple[str, str]:
    """Why a product that was left out is missing now, and the command that adds it.

    Args:
        recorded: the reason of that time, which stays true where a compiler failed; a tool may be here since.
    """
    skipped = unwanted(product)
    if skipped is not None:
        return f"not built: {skipped.reason}", skipped.fix or COMMAND
    if recorded.startswith("build failed"):
        return recorded, COMMAND
    obstacle = diagnose(product)
    return f"not built: {obstacle.reason}" if obstacle else "not built yet, every tool is here", COMMAND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``effnet-fast build``."""
    parser.add_argument(
        "products", nargs="*", metavar="PRODUCT", help=f"what to build (all): {' '.join(PRODUCTS)}"
    )
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="build CUDA kernels or not (default: where there is an NVIDIA driver)",
    )
    parser.add_argument(
        "--archs",
        help="CUDA architectures: '80;90', or all (default: those of the GPUs here, else all)",
    )
    parser.add_argument("--jobs", type=int, help="parallel compiler processes (MAX_JOBS)")
    parser.add_argument("--verbose", action="store_true", help="show the compilers' output")


def _obey(arguments: argparse.Namespace) -> None:
    """Options become the variables that installing reads too."""
    if arguments.archs:
        os.environ["EFFNET_FAST_CUDA_ARCHS"] = arguments.archs
    if arguments.jobs:
        os.environ["MAX_JOBS"] = str(arguments.jobs)
    if arguments.cuda is None and "_cuda" in arguments.products:
        arguments.cuda = True
    if arguments.cuda is not None:
        os.environ["EFFNET_FAST_CUDA"] = str(int(arguments.cuda))


def run(arguments: argparse.Namespace) -> int:
    """``effnet-fast build``: 0 when all that is wanted here is built, 1 when a part is missing, 2 for bad input."""
    unknown = [name for name in arguments.products if name not in PRODUCTS]
    if unknown:
        print(f"effnet-fast build: unknown product {unknown[0]!r}, expected {', '.join(PRODUCTS)}")
        return 2
    _obey(arguments)
    root = source_root()
    if root is None:
        print("effnet-fast build: the sources are not installed; pip install --force-reinstall effnet-fast")
        return 1
    out, work = output_folders(root)
    products, there = tuple(arguments.products), []
    if not products:
        # Minutes of compiling would give the same again; architectures that are named may be others.
        there = [] if arguments.archs else came_with_the_package(root)
        products = tuple(product for product in PRODUCTS if product not in there)
    wanted = [product for product in products if unwanted(product) is None]
    obstacles = [missing for product in wanted if (missing := diagnose(product)) is not None]
    remedy = f"what is missing comes with: {merged(obstacles).fix} && {COMMAND}"
    print(f"building {', '.join(wanted)} from {root} into {out}" if wanted else "nothing to build", flush=True)
    if obstacles:
        # Now, not after the minutes that the others take.
        print(f"missing: {merged(obstacles).reason}\n{remedy}", flush=True)
    try:
        manifest = build(root, out, work, products, arguments.verbose)
    except BuildError as error:
        print(f"effnet-fast build: {error}")
        return 1
    failed = [product for product in products if manifest["missing"].get(product, {}).get("failed")]
    for product in there:
        print(f"  {product}: came with the package (to build it anew: {COMMAND} {product})")
    for product in products:
        print(f"  {product}: {_outcome(product, manifest)}")
    if obstacles:
        print(remedy)
    return 1 if failed else 0


def _outcome(product: str, manifest: dict[str, Any]) -> str:
    missing, built = manifest["missing"].get(product), manifest["products"].get(product)
    if missing is None:
        assert built is not None
        archs = f" for {', '.join(built['archs'])}" if "archs" in built else ""
        return f"built{archs}, {built.get('seconds', 0)} s"
    if missing.get("failed"):
        return f"missing: {missing['reason']}"
    return f"left out: {missing['reason']}" + (f" ({missing['fix']})" if missing["fix"] else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry, also ``python -m effnet_fast.build``."""
    parser = argparse.ArgumentParser(prog="effnet-fast build", description=main.__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))
