"""Python functions as JavaScript, so that a page computes with the package's own code and there is no second one.

    script(["peftbook.memory.question.told"], tables={…})

The byte model is control flow on names, no formula: branches on some forty settings, loops over layers, polynomials
as dictionaries. A table of its terms would need one entry for each combination of settings; a Python in the page weighs
ten megabytes. So its syntax trees are translated when the site is built: all that is reached from the functions that a
page calls, and nothing else. Operators, built-ins and the few functions of the standard library keep Python's meaning
through `book/assets/live/fit/python.js`, to which each of them becomes a call. What the translation does not know is
an error at that line, so that code which joins later cannot mean something else in a page.

Not as in Python: a comprehension or generator expression is computed at once, tuples are lists, a float without a
fraction is a whole number (those of a config.json excepted), and beyond 2⁵³ numbers are not exact.
"""

from __future__ import annotations

from peftbook.site.javascript.modules import Unknown
from peftbook.site.javascript.script import script

__all__ = ["Unknown", "script"]
