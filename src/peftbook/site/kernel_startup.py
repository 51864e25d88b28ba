"""Run by IPython (through PYTHONSTARTUP) when the book's build starts a kernel."""

import warnings as _warnings

from peftbook.site import tracing as _tracing

_warnings.filterwarnings("ignore", "IProgress not found")  # tqdm asks for widgets, which no page shows
# Of transformers' own attribute, which it asks of itself.
_warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
_tracing.start()
del _tracing, _warnings
