"""The process on the fake device: reads jobs from its input, answers on its output (process.py)."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
from pathlib import Path


def main() -> None:
    # Answers have the output to themselves: what a job prints goes to the errors.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Programs that jobs start (compilers) need no fake device.
    os.environ.pop("LD_PRELOAD")
    sys.path[:0] = [
        str(Path(__file__).resolve().parents[1]),
        str(Path(__file__).resolve().parents[1] / "support"),
    ]

    from fake_cuda import steering

    while True:
        try:
            module, name, arguments, named = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            job = getattr(importlib.import_module(f"fake_cuda.{module}"), name)
            answer = (False, job(*arguments, **named))
        except BaseException:
            answer = (True, traceback.format_exc())
        steering.flush()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
