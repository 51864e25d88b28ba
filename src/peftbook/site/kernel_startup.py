"""Run by IPython (through PYTHONSTARTUP) when the book's build starts a kernel."""

import warnings as _warnings

from peftbook.site import tracing as _tracing

_warnings.filterwarnings("ignore", "IProgress not found")  # tqdm asks for widgets, which no page shows
_tracing.start()
del _tracing, _warnings
