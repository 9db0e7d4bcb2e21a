"""Benchmarks end to end, behind ``effnet-fast bench`` and ``effnet-fast report``.

Every provider runs in a process of its own (:mod:`.worker`), the providers take turns (:mod:`.sweep`), and what
they measured is plain JSON (:mod:`.results`) that :mod:`.report` draws.
"""
