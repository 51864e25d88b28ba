"""Run by IPython (through PYTHONSTARTUP) when the book's build starts a kernel."""

from peftbook.site import tracing as _tracing

_tracing.start()
del _tracing
