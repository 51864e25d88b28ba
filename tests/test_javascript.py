"""Python as JavaScript: what is translated means the same in Node.js, and what is not is an error at its line."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from py_mini_racer import MiniRacer

from peftbook.views.site import byte_model
from peftbook.views.site.byte_model import ENGINE
from peftbook.views.site.javascript import UntranslatedError, modules, script
from peftbook.views.site.javascript.statements import Translation

EXPRESSIONS = (
    # arithmetic, and what booleans are in it
    "7 // 2, -7 // 2, -7 % 3, 7 / 2, 2 ** 10, 1 << 40, True + 1, 3 * True, -0.5 * 4",
    "round(0.5), round(1.5), round(2.5), round(2.6), int(7.9), int(-7.9), float(' 2.5 ')",
    "(1, 2) + (3,), (1, 2) * 2, ('a',) * False, 'ab' * 2, 'ab' * (1 > 2), [0] * 3, (True, False)[True]",
    # truth
    "list(filter(None, (0, 1))), [] or 'other', {} or 0, '' or None, 0 or 'x', [0] and 'yes', not [], not set()",
    "bool(''), bool([]), bool({}), bool(0.0), bool('0'), 3 if {'a': 1} else 4",
    # comparisons: of parts, chains that stop early, order of tuples, sets
    "(1, [2]) == (1, [2]), {'a': (1,)} == {'a': (1,)}, 1 == True, 'a' == 1, None == 0, {1, 2} == {2, 1}",
    "0 < 1 <= 1 < 3, 3 < 2 < len(None), 1 == 1 != 2, None is None, 1 in (2, 1), (1, 2) in {(1, 2): 0}, 'b' in 'abc'",
    "(1, 'b') < (1, 'c'), (1,) < (1, 0), [2] <= [2], set('ab') <= set('abc'), 'Z' < 'a', 2 not in [1]",
    # dictionaries: keys by value, in order, merged
    "{(1, 'a'): 2}[1, 'a'], list({'b': 1, 'a': 2}), {'a': 1} | {'a': 2}, {**{'a': 1}, 'c': 0}, dict([('x', 1)])",
    "{'a': 1}.get('b'), {'a': 1}.get('b', 5), list({'a': 1}.items()), dict.fromkeys(('a', 'b', 'a'), 0)",
    "sorted({'b', 'a'} - {'a'}), len({1, 1, 2}), sorted({'a': 1, 'b': 2}.keys() - {'a': 0}.keys())",
    # loops in one expression
    "[a * b for a, (b, _) in [(2, (3, 0)), (4, (5, 0))] if b > 3], [(x, y) for x in (1, 2) for y in 'ab']",
    "{str(n): [m for m in range(n)] for n in range(3)}, sum(n for n in range(4)), {n % 2 for n in (2, 4)} == {0}",
    "max((1, 2), (1, 3)), max([3, 9]), min(4, 2), max((), default=7), any(n > 2 for n in (1, 3)), all([])",
    "sorted([(2, 'a'), (1, 'b')]), sorted((3, 1, 2), key=lambda n: -n), next((n for n in ()), 8)",
    "list(reversed([1, 2])), list(zip('ab', (1, 2), strict=True)), list(enumerate('ab')), list(map(len, ('a', 'b')))",
    "(lambda a, b=2, *rest: [a, b, list(rest)])(1), (lambda a, b=2: a - b)(b=3, a=1), [*range(2), 9][1:], 'abc'[:-1]",
    # text
    "f'{3.14159:.3f}|{1234567:,}|{7:>4}|{7:4}|{\"ab\":5}|{0.0625:.3f}|{2.5:.0f}|{\"a\"!r}|{None}|{True}|{1e9:,.0f}'",
    "f'{2:+.1f}', 'a_b'.replace('_', '-'), 'a.b.c'.split('.', 1), 'a.b.c'.rsplit('.', 1), 'a.b'.partition('.')",
    "'a.b'.rpartition('-'), 'abc'.removeprefix('a'), 'abc'.removesuffix('c'), 'x'.join(['a', 'b']), ' a '.strip()",
    "'aXb'.lower(), 'ab'.endswith('b'), repr('it\\'s'), repr(['a', 1, None, True]), repr('q\"'), str(1)",
    "'aba'.count('a'), [1, 2, 1].count(1), isinstance(True, int), isinstance(1.5, int | float), type(True) is int",
)  # fmt: skip
EXAMPLES = '''
import contextlib, functools, itertools, math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, fields, replace

UNITS = {"a": 1}
UNITS |= {name + name: size + 1 for name, size in UNITS.items()}
LOW, HIGH = 1, 9


class Wrong(ValueError):
    """Told in a sentence."""


@dataclass(frozen=True)
class Pair:
    left: int
    right: int = 2
    names: tuple = field(default_factory=lambda: ("x",))

    def __post_init__(self):
        if self.left < 0:
            raise Wrong(f"left is {self.left!r}: give more.")
        object.__setattr__(self, "names", (*self.names, "y"))

    @property
    def total(self):
        return self.left + self.right

    @functools.cached_property
    def new(self):
        return [self.total]

    def scaled(self, by=1, *more, plus=0):
        return replace(self, left=by * self.left + plus + sum(more), names=())


class Size(dict):
    def add(self, other, factor=1):
        for key, each in other.items():
            self[key] = self.get(key, 0) + factor * each

    def __add__(self, other):
        total = Size(self)
        total.add(other)
        return total


class Path:
    def __init__(self, first):
        self.parts = [first]
        self.numbers = itertools.count()

    @contextlib.contextmanager
    def at(self, part):
        self.parts.append(part)
        yield
        self.parts.pop()


@functools.lru_cache(maxsize=8)
def counted(pair, *rest):
    SEEN.append(pair.left)
    return len(SEEN)


SEEN = []


def classes():
    pair = Pair(1)
    size = Size({("a", "b"): 2}) + {("a", "b"): 1, (): 4}
    return [
        pair.total, pair.new is pair.new, list(pair.names), pair == Pair(1), pair == Pair(1, 3), pair in (Pair(1),),
        pair.scaled(3, 4, plus=5).left, list(pair.scaled().names), [one.name for one in fields(Pair)],
        list(size.items()), isinstance(size, dict), list(UNITS.items()), LOW, HIGH, {pair: 1}[Pair(1)],
        counted(pair, 2), counted(Pair(1), 2), counted(Pair(4)), dict(Counter("abca") + Counter({"a": -9, "z": 1})),
    ]


def statements(new=3, **others):
    lines, missing, late = [], defaultdict(float), []
    for index, (name, value) in enumerate(others.items()):
        if value == 2:
            continue
        missing[name] += value
        late.append(lambda: index)
    else:
        lines.append("else")
    for value in (1, 2, 3):
        if value == 2:
            break
    else:
        lines.append("never")
    while new > 0:
        new -= 1
        if new == 1:
            break
    try:
        Pair(-new)
    except (Wrong, ValueError) as error:
        lines += [str(error)]
    path = Path("root")
    with path.at("inner"):
        inside = ".".join(path.parts)
    first, *rest = path.parts * 2
    again = own = next(path.numbers), next(path.numbers)
    partly = functools.partial(missing.get, "a")
    return [lines, dict(missing), [one() for one in late], new, inside, path.parts, first, rest, again, own, partly(),
            math.prod((2, 3), start=2), math.ceil(1.2), (found := [1]) and found, [*itertools.chain((1,), "a")]]
'''
UNTRANSLATED = ("return a @ a", "del a", "global b", "return [one async for one in a]", "return a[::2]", "assert a")


@functools.cache
def shared() -> MiniRacer:
    """A JavaScript engine with Python's built-ins."""
    made = MiniRacer()
    made.eval((ENGINE / "python.js").read_text(encoding="utf-8") + "; null")
    return made


@pytest.fixture
def engine() -> MiniRacer:
    """The engine."""
    return shared()


@pytest.fixture
def examples(tmp_path, monkeypatch) -> Callable[[str], str]:
    """Write a module of examples, which can then be imported and translated."""

    def write(source: str) -> str:
        name = f"examples_{abs(hash((tmp_path, source)))}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setattr(modules, "ROOT", name)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    return write


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=list))


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_mean_the_same(engine, text):
    """Operators, built-ins, and the methods of texts, lists and dictionaries, by Python and by a browser's engine."""
    tree = ast.parse(f"[{text}]", mode="eval").body
    said = Translation(modules.Module("nowhere", Path()), set(), frozenset(), ()).value(tree)
    expected = plain(eval(f"[{text}]"))
    assert json.loads(engine.eval(f"JSON.stringify(py.plain({said}))")) == expected


@given(st.floats(-1e12, 1e12) | st.integers(-(10**6), 10**6).map(lambda n: n / 16), st.integers(0, 4))
def test_numbers_are_written_alike(value, digits):
    """Rounded to digits, half-way cases to the even one; and to whole numbers."""
    engine = shared()
    said = json.loads(engine.eval(f"JSON.stringify([py.format({value!r}, ',.{digits}f'), py.round({value!r}) + 0])"))
    assert said == [f"{value:,.{digits}f}", round(value)]


@pytest.mark.parametrize(("call", "keywords"), [("classes", {}), ("statements", {"a": 1, "b": 2, "new": 4, "c": 0.5})])
def test_statements_and_classes_mean_the_same(engine, examples, call, keywords):
    """Data classes and their copies, dictionaries of one's own, caches, contexts, errors, loops with an else."""
    name = examples(EXAMPLES)
    source = script([f"{name}.{call}"], {})
    said = engine.eval(f"JSON.stringify(py.plain(py.kw((() => {{ {source} }})().{call}, [], {json.dumps(keywords)})))")
    assert json.loads(said) == plain(getattr(importlib.import_module(name), call)(**keywords))


@pytest.mark.parametrize("line", UNTRANSLATED)
def test_what_is_not_translated_is_named(examples, line):
    """A construct that joins the byte model and that a page could read otherwise fails the build, at its line."""
    name = examples(f"def call(a):\n    b = a\n    {line}\n")
    with pytest.raises(UntranslatedError, match=rf"{name}.py:3: \w+ is not translated: "):
        script([f"{name}.call"], {})


def test_all_that_the_byte_model_needs_of_python_is_there(engine):
    """Every operator, built-in and function of the standard library to which something was translated."""
    needed = sorted(set(re.findall(r"\bpy((?:\.[A-Za-z_]\w*)+)", byte_model.engine_source())))
    lacks = "(path) => path.slice(1).split('.').reduce((one, name) => one?.[name], py) == null"
    lacking = engine.eval(f"{json.dumps(needed)}.filter({lacks})")
    assert list(lacking) == [] and len(needed) > 50


def test_only_what_is_reached_is_translated(engine, examples):
    """Of a class the methods whose names are used; functions that are given, and tables, are not read."""
    name = examples(
        "class A:\n    def used(self): return 1\n    def other(self): del self\n"
        "def read(path): del path\ndef known(text): del text\n"
        "def call(): return A().used(), read('x'), known('k'), known('unknown')\n"
    )
    source = script([f"{name}.call"], {f"{name}.known": {"k": [1]}}, [f"{name}.read"])
    given_ones = "const given = { read: (path) => path + '!' };"
    said = engine.eval(f"{given_ones} JSON.stringify((() => {{ {source} }})().call())")
    assert json.loads(said) == [1, "x!", [1], None]
