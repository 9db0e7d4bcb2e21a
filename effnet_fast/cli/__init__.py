"""The command ``effnet-fast``: one file per subcommand.

A subcommand's module has ``HELP``, ``add_arguments(parser)`` and ``run(arguments, output) -> int`` (the exit code).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from ..build import version
from ..errors import EffnetFastError
from ..system import ctrl_c
from . import bench, build, classify, demo, info, models, optimize, report, tune
from .output import Output, error_line

COMMANDS = {
    "demo": demo,
    "classify": classify,
    "optimize": optimize,
    "info": info,
    "models": models,
    "build": build,
    "bench": bench,
    "report": report,
    "tune": tune,
}


class _Help(argparse.HelpFormatter):
    """Names with hyphens stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        raise EffnetFastError(f"{message} (see {self.prog} --help)")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(prog="effnet-fast", description="Fused MBConv (EfficientNet) kernels for PyTorch.")
    parser.add_argument("--version", action="version", version=f"effnet-fast {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        # bench replaces --json by one that also takes a file.
        sub = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, conflict_handler="resolve"
        )
        sub.add_argument("--json", action="store_true", help="print JSON and nothing else")
        module.add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, without the program's name; ``None``: this process's.

    Returns:
        The exit code: 0, what the subcommand says, 2 for bad input (one line on stderr), 130 after Ctrl-C.
    """
    # A name that the terminal's encoding lacks is shown with escapes; it must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = make_parser()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(parser, argv)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as one line, without the place in the code, which is nobody's here."""
    text = str(message)
    if not text.startswith("effnet_fast: "):
        text = warnings.formatwarning(message, category, filename, lineno, line).rstrip()
    else:
        text = f"effnet-fast: warning: {text.removeprefix('effnet_fast: ')}"
    print(text, file=sys.stderr)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    try:
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return 2
        code = COMMANDS[arguments.command].run(arguments, Output(arguments.json is True))
        sys.stdout.flush()
        return code
    except EffnetFastError as error:
        print(error_line(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(ctrl_c.MESSAGE, file=sys.stderr)
        return ctrl_c.EXIT_CODE
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:
        # argparse leaves this way after --help and --version.
        return leaving.code if isinstance(leaving.code, int) else 0
