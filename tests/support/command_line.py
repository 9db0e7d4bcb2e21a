"""What a call of the command line gives, and how a refusal looks."""

from __future__ import annotations

Result = tuple[int, str, str]


def assert_refused(result: Result, *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("effnet-fast: error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err
