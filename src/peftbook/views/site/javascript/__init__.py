"""Python functions as JavaScript, so that a page computes with the package's own code and there is no second one.

    script(["peftbook.memory.question.answer_fields"], tables={…})

The byte model is control flow on names, no formula: branches on some forty settings, loops over layers, polynomials
as dictionaries. A table of its terms would need one entry for each combination of settings. So its syntax trees are
translated when the site is built: all that is reached from the functions that a page calls, and nothing else.
Operators, built-ins and the few functions of the standard library keep Python's meaning through
`book/assets/live/fit/python.js`, to which each of them becomes a call. What the translation does not know is an error
at that line, so that code which joins later cannot mean something else in a page.

This package is frozen: it grows only where the byte model needs it. An interpreter in the page is no replacement yet.
Pyodide weighs ten megabytes. Brython 3.15.0, tried on 30 November 2026 in a worker of a page from `file://`, answered
to the byte, but took 9.8 s of processor time for the first answer and .35 to 9.8 s for later ones; the translation
took .9 s, then .06 to .43 s on the same loaded machine. Brython also needed a numpy, dataclasses, contextlib and typing
of our own, a repair of its `tuple * int` (`() * 2` raises an error), and a script of 4.5 MB (1 MB compressed).

Not as in Python: a comprehension or generator expression is computed at once, tuples are lists, a float without a
fraction is a whole number (those of a config.json excepted), and beyond 2⁵³ numbers are not exact.
"""

from __future__ import annotations

from peftbook.views.site.javascript.modules import UntranslatedError
from peftbook.views.site.javascript.script import script

__all__ = ["UntranslatedError", "script"]
