"""Benchmarks: the training loop against TRL's and transformers' trainers, and how long the book builds."""
