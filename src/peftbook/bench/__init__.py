"""Benchmarks: the training loop against TRL's and transformers' trainers, against itself and the page's engine, and how
long the book and commands take.
"""
