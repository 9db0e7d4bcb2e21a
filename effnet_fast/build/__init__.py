"""Compiling the native libraries: while the package is installed, or later with ``effnet-fast build``.

A plain ``pip install`` builds in isolation, without torch, and therefore installs Python and the sources
only; ``effnet-fast build`` compiles them afterwards into the user's cache. In a checkout it builds in place.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from .driver import (
    LIBRARY_FOLDER,
    MANIFEST,
    PRODUCTS,
    BuildError,
    build,
    cache_folder,
    cache_root,
    configuration,
    output_folders,
    read_manifest,
    source_files,
    source_hash,
    source_root,
    version,
    work_folder,
)
from .toolchain import MissingTool, is_set

__all__ = [
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
    "is_set",
    "main",
    "output_folders",
    "read_manifest",
    "run",
    "source_files",
    "source_hash",
    "source_root",
    "version",
    "work_folder",
]


def diagnose(product: str) -> MissingTool | None:
    """What stands in the way of building a product now; ``None``: nothing known."""
    root = source_root()
    if root is None:
        return MissingTool("the sources are not installed", "pip install --force-reinstall effnet-fast")
    try:
        configuration(product, root)
    except MissingTool as missing:
        return missing
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``effnet-fast build``."""
    parser.add_argument(
        "products", nargs="*", metavar="PRODUCT", help=f"what to build (all): {' '.join(PRODUCTS)}"
    )
    parser.add_argument("--archs", help="CUDA architectures, such as '80;90' (EFFNET_FAST_CUDA_ARCHS)")
    parser.add_argument("--jobs", type=int, help="parallel compiler processes (MAX_JOBS)")
    parser.add_argument("--verbose", action="store_true", help="show the compilers' output")


def run(arguments: argparse.Namespace) -> int:
    """``effnet-fast build``: 0 when all that was asked for is built, 1 when a part is missing, 2 for bad input."""
    unknown = [name for name in arguments.products if name not in PRODUCTS]
    if unknown:
        print(f"effnet-fast build: unknown product {unknown[0]!r}, expected {', '.join(PRODUCTS)}")
        return 2
    if arguments.archs:
        os.environ["EFFNET_FAST_CUDA_ARCHS"] = arguments.archs
    if arguments.jobs:
        os.environ["MAX_JOBS"] = str(arguments.jobs)
    products = tuple(arguments.products) or PRODUCTS
    root = source_root()
    if root is None:
        print("effnet-fast build: the sources are not installed; pip install --force-reinstall effnet-fast")
        return 1
    out, work = output_folders(root)
    print(f"building {', '.join(products)} from {root} into {out}", flush=True)
    try:
        manifest = build(root, out, work, products, arguments.verbose)
    except BuildError as error:
        print(f"effnet-fast build: {error}")
        return 1
    for product in products:
        missing = manifest["missing"].get(product)
        print(
            f"  {product}: "
            + (f"missing: {missing['reason']}\n    -> {missing['fix']}" if missing else "built")
        )
    return 1 if any(product in manifest["missing"] for product in products) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry, also ``python -m effnet_fast.build``."""
    parser = argparse.ArgumentParser(prog="effnet-fast build", description=main.__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))
