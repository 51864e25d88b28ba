"""Benchmarks: our training loop, TRL's and transformers' trainers, the page's engine, builds and commands.

`make bench WHAT=train` (or book, cli, live) runs one; the Makefile sets PYTHONPATH.
"""
