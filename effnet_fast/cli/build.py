"""Compile the native libraries for the torch that is installed: in a checkout in place, else into the user's cache."""

from __future__ import annotations

import argparse
import contextlib
import sys

from .. import build
from ..errors import EffnetFastError
from ..system import writing
from .output import Output

HELP = "compile the native libraries"

add_arguments = build.add_arguments


def run(arguments: argparse.Namespace, output: Output) -> int:
    unknown = [name for name in arguments.products if name not in build.PRODUCTS]
    if unknown:
        raise EffnetFastError(f"build: unknown product {unknown[0]!r}, expected {', '.join(build.PRODUCTS)}")
    root = build.source_root()
    # Libraries and CMake's trees.
    folders = build.output_folders(root) if root else ()
    for folder in folders:
        writing.check_folder(folder, "build")
    if not output.as_json:
        return build.run(arguments)
    # Progress stays visible, but out of the JSON's way.
    with contextlib.redirect_stdout(sys.stderr):
        code = build.run(arguments)
    manifest = build.read_manifest(folders[0]) if folders else {"products": {}, "missing": {}}
    output.data({"exit_code": code, "folder": folders[0] if folders else None, **manifest})
    return code
