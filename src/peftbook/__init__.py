"""Parameter-efficient fine-tuning, measured: the package behind the book, the deck and the command line."""

__version__ = "0.1.0"
