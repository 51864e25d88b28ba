"""Run by IPython (through PYTHONSTARTUP) when the book's build starts a kernel."""

from peftbook.core import quiet as _quiet
from peftbook.views.site import tracing as _tracing

_quiet.filter_messages()
_tracing.start()
del _quiet, _tracing
