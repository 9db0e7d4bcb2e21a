"""Compile the native libraries for the torch that is installed: in a checkout in place, else into the user's cache."""

from __future__ import annotations

import argparse
import contextlib
import sys

from .. import build
from ..errors import EffnetFastError
from .output import Output

HELP = "compile the native libraries"

add_arguments = build.add_arguments


def run(arguments: argparse.Namespace, output: Output) -> int:
    unknown = [name for name in arguments.products if name not in build.PRODUCTS]
    if unknown:
        raise EffnetFastError(f"build: unknown product {unknown[0]!r}, expected {', '.join(build.PRODUCTS)}")
    if not output.as_json:
        return build.run(arguments)
    # Progress stays visible, but out of the JSON's way.
    with contextlib.redirect_stdout(sys.stderr):
        code = build.run(arguments)
    root = build.source_root()
    folder = build.output_folders(root)[0] if root else None
    manifest = build.read_manifest(folder) if folder else {"products": {}, "missing": {}}
    output.data({"exit_code": code, "folder": folder, **manifest})
    return code
