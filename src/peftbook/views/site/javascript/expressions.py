"""Expressions of Python in JavaScript, by `book/assets/live/fit/python.js`, and what their names mean."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from peftbook.views.site.javascript import modules
from peftbook.views.site.javascript.modules import Key, Module, UntranslatedError, methods_of, origin, ours

RESERVED = frozenset(
    {
        "arguments",
        "await",
        "case",
        "catch",
        "const",
        "default",
        "delete",
        "do",
        "enum",
        "eval",
        "export",
        "extends",
        "function",
        "given",
        "let",
        "new",
        "null",
        "package",
        "private",
        "protected",
        "public",
        "py",
        "static",
        "super",
        "switch",
        "this",
        "throw",
        "try",
        "typeof",
        "undefined",
        "var",
        "void",
    }
)
OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.BitOr: "or_", ast.LShift: "lshift",
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "py.eq({}, {})", ast.NotEq: "!py.eq({}, {})", ast.Lt: "py.lt({}, {})", ast.LtE: "py.le({}, {})",
    ast.Gt: "py.lt({1}, {0})", ast.GtE: "py.le({1}, {0})", ast.Is: "py.is({}, {})", ast.IsNot: "!py.is({}, {})",
    ast.In: "py.has({1}, {0})", ast.NotIn: "!py.has({1}, {0})",
}  # fmt: skip
# Methods that strings and lists have, which JavaScript has by other names or in another sense
BUILT_IN = frozenset(
    {
        "append",
        "count",
        "endswith",
        "extend",
        "format",
        "index",
        "is_integer",
        "items",
        "join",
        "keys",
        "lower",
        "partition",
        "pop",
        "removeprefix",
        "removesuffix",
        "replace",
        "rpartition",
        "rsplit",
        "split",
        "startswith",
        "strip",
        "upper",
        "values",
    }
)
OF_OTHERS = frozenset({"add", "copy", "get", "setdefault"})  # methods of dictionaries and sets alone


@dataclass
class Scope:
    """The names of a function: its own, and those that it imports. above: the function around it."""

    names: set[str]
    imported: dict[str, Key]
    above: Scope | None = None

    def owner(self, name: str) -> Scope | None:
        """The nearest function that has the name."""
        scope: Scope | None = self
        while scope and name not in scope.names and name not in scope.imported:
            scope = scope.above
        return scope


class Expressions:
    """The translation of expressions. needs: definitions that they use.  attributes: names after a dot.

    live, unused: names of methods that are translated, and those that are not for all that; kept: names that have a
    translation already.
    """

    def __init__(self, where: Module, live: set[str], unused: frozenset[str], kept: Collection[Key]):
        self.module, self.live, self.unused, self.kept = where, live, unused, kept
        self.needs: set[Key] = set()
        self.attributes: set[str] = set()
        self.scope: Scope | None = None
        self.temporary = 0

    def unknown(self, node: ast.AST) -> UntranslatedError:
        """The error for a construct."""
        text = ast.unparse(node).splitlines()[0]
        return UntranslatedError(
            f"{self.module.path}:{getattr(node, 'lineno', '?')}: {type(node).__name__} is not translated: {text}"
        )

    def new(self) -> str:
        """A name of its own."""
        self.temporary += 1
        return f"${self.temporary}"

    def condition(self, node: ast.expr) -> str:
        """An expression that is asked whether it is true."""
        match node:
            case ast.Compare() | ast.UnaryOp(op=ast.Not()):
                return self.value(node)
            case ast.BoolOp(op=ast.And() | ast.Or() as operator, values=values):
                return f"({(' && ' if isinstance(operator, ast.And) else ' || ').join(map(self.condition, values))})"
        return f"py.bool({self.value(node)})"

    def value(self, node: ast.expr) -> str:
        """One expression."""
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return json.dumps(value, ensure_ascii=False)
            case ast.Name(id=name):
                return self.name(name, node)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return self.listed(parts)
            case ast.Set(elts=parts):
                return f"py.set_({self.listed(parts)})"
            case ast.Dict(keys=keys, values=values):
                return f"py.dict([{', '.join(self.entry(*pair) for pair in zip(keys, values, strict=True))}])"
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
                return f"py.{OPERATORS[type(operator)]}({self.value(left)}, {self.value(right)})"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(-{self.value(operand)})"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return f"!{self.condition(operand)}"
            case ast.BoolOp(op=operator, values=[first, *others]):
                name = "and" if isinstance(operator, ast.And) else "or"
                return f"py.{name}({', '.join([self.value(first), *(f'() => {self.value(one)}' for one in others)])})"
            case ast.Compare():
                return self.compared(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return f"({self.condition(test)} ? {self.value(body)} : {self.value(orelse)})"
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                return f"({local(name)} = {self.value(value)})"
            case ast.JoinedStr(values=parts):
                return "(" + " + ".join(['""', *map(self.in_text, parts)]) + ")"
            case ast.Subscript(value=owner, slice=ast.Slice(lower=low, upper=high, step=None)):
                ends = (self.value(one) if one else "null" for one in (low, high))
                return f"py.slice({self.value(owner)}, {', '.join(ends)})"
            case ast.Subscript(value=owner, slice=key):
                return f"py.item({self.value(owner)}, {self.value(key)})"
            case ast.ListComp(elt=item, generators=generators) | ast.GeneratorExp(elt=item, generators=generators):
                return self.comprehension(generators, item)
            case ast.SetComp(elt=item, generators=generators):
                return f"py.set_({self.comprehension(generators, item)})"
            case ast.DictComp(key=key, value=value, generators=generators):
                return f"py.dict({self.comprehension(generators, ast.List([key, value]))})"
            case ast.Call():
                return self.call(node)
        raise self.unknown(node)

    def name(self, name: str, node: ast.AST) -> str:
        """A name: of a function, of the module, of another one, or of Python."""
        scope = self.scope.owner(name) if self.scope else None
        if scope and name in scope.names:
            return local(name)
        key = scope.imported[name] if scope else None
        if key is None and (name in self.module.defined or name in self.module.imported):
            key = (self.module.name, name)
        if key is None:
            return f"py.{name}_" if name in RESERVED | {"float", "int", "set", "class", "is"} else f"py.{name}"
        where, what = origin(*key)
        if ours(where) or (where, what) in self.kept:
            self.needs.add((where, what))
            return js_name((where, what))
        return f"py.{where.replace('.', '_')}" + (f".{what}" if what else "")

    def attribute(self, node: ast.Attribute) -> str:
        """owner.name; a method that is not called at once is bound to its owner."""
        owner, name = self.value(node.value), node.attr
        if self.is_module(node.value):
            return f"{owner}.{name}"
        self.attributes.add(name)
        bound = name in BUILT_IN | OF_OTHERS or name in methods_of(self.module.name)
        return f'py.attribute({owner}, "{name}")' if bound else f"{owner}.{name}"

    def listed(self, parts: Iterable[ast.expr]) -> str:
        """A list, with others in it."""
        return f"[{', '.join(map(self.argument, parts))}]"

    def argument(self, node: ast.expr) -> str:
        """A part of a list or an argument of a call."""
        return f"...py.iter({self.value(node.value)})" if isinstance(node, ast.Starred) else self.value(node)

    def entry(self, key: ast.expr | None, value: ast.expr) -> str:
        """A pair of a dictionary, or another dictionary in it."""
        return f"[{self.value(key)}, {self.value(value)}]" if key else f"...py.items({self.value(value)})"

    def compared(self, node: ast.Compare) -> str:
        """a < b <= c: each side is computed once, and not if one before it decides."""
        (operator, *others), (right, *rest) = node.ops, node.comparators
        if not others:
            return COMPARISONS[type(operator)].format(self.value(node.left), self.value(right))
        a, b = self.new(), self.new()
        self.scope = Scope({b}, {}, self.scope)
        more = self.compared(ast.Compare(ast.Name(b), others, rest))
        self.scope = self.scope.above
        first = COMPARISONS[type(operator)].format(a, b)
        return f"(({a}, {b}) => {first} && {more})({self.value(node.left)}, {self.value(right)})"

    def in_text(self, node: ast.expr) -> str:
        """A part of an f-string."""
        match node:
            case ast.Constant(value=value):
                return json.dumps(value, ensure_ascii=False)
            case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
                text = f"py.repr({self.value(value)})" if conversion == ord("r") else self.value(value)
                return f"py.format({text}{f', {self.value(spec)}' if spec else ''})"
        raise self.unknown(node)

    def comprehension(self, generators: list[ast.comprehension], item: ast.expr) -> str:
        """A list of items. The first list is computed outside, where names mean what they mean there."""
        first = self.value(generators[0].iter)
        if any(part.is_async for part in generators):
            raise self.unknown(generators[0].target)
        own = {one.id for part in generators for one in ast.walk(part.target) if isinstance(one, ast.Name)}
        self.scope = Scope(own, {}, self.scope)
        text = f"$out.push({self.argument(item)});"
        for index, part in reversed(list(enumerate(generators))):
            for test in reversed(part.ifs):
                text = f"if ({self.condition(test)}) {text}"
            source = f"py.iter({self.value(part.iter)})" if index else "$in"
            text = f"for (const {self.pattern(part.target)} of {source}) {{ {text} }}"
        self.scope = self.scope.above
        return f"(($in, $out) => {{ {text} return $out; }})(py.iter({first}), [])"

    def call(self, node: ast.Call) -> str:
        """A call; with keywords by the names that the function has."""
        listed = ", ".join(map(self.argument, node.args))
        owner = ""
        match node.func:
            case ast.Attribute(value=value, attr=name) if not self.is_module(value):
                self.attributes.add(name)
                owner = self.value(value)
                if name in BUILT_IN:
                    if node.keywords:
                        raise self.unknown(node)
                    return f"py.call({', '.join(filter(None, [owner, json.dumps(name), listed]))})"
                if node.keywords:
                    return f'py.method({owner}, "{name}", [{listed}], {self.keywords(node.keywords)})'
                return f"{owner}.{name}({listed})"
        function = self.value(node.func)
        if node.keywords:
            return f"py.kw({function}, [{listed}], {self.keywords(node.keywords)})"
        return f"{function}({listed})"

    def is_module(self, node: ast.expr) -> bool:
        """Whether an expression names a module."""
        if not isinstance(node, ast.Name):
            return False
        scope = self.scope.owner(node.id) if self.scope else None
        if scope and node.id in scope.names:
            return False
        return (scope.imported if scope else self.module.imported).get(node.id, ("", "x"))[1] == ""

    def keywords(self, keywords: Iterable[ast.keyword]) -> str:
        """Arguments by name."""
        parts = (
            f"{one.arg}: {self.value(one.value)}" if one.arg else f"...py.spread({self.value(one.value)})"
            for one in keywords
        )
        return f"{{{', '.join(parts)}}}"

    def pattern(self, target: ast.expr) -> str:
        """A target as JavaScript takes apart a list."""
        match target:
            case ast.Name(id=name):
                return local(name)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                unread = [isinstance(one, ast.Name) and one.id == "_" for one in parts]  # there may be several
                texts = ("" if skip else self.pattern(one) for one, skip in zip(parts, unread, strict=True))
                return f"[{', '.join(texts)}]"
            case ast.Starred(value=ast.Name(id=name)):
                return f"...{local(name)}"
            case ast.Attribute(value=owner, attr=name):
                return f"{self.value(owner)}.{name}"
        raise self.unknown(target)


def local(name: str) -> str:
    """A variable's name in JavaScript."""
    return f"{name}_" if name in RESERVED else name


def js_name(key: Key) -> str:
    """The JavaScript name of a definition."""
    return f"{key[0].removeprefix(f'{modules.ROOT}.').replace('.', '$')}${key[1]}"
