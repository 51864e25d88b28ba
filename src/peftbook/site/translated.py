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

import ast
import functools
import importlib.util
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Unknown", "script"]

ROOT = "peftbook"
RESERVED = frozenset({
    "arguments", "await", "case", "catch", "const", "default", "delete", "do", "enum", "eval", "export", "extends",
    "function", "given", "let", "new", "null", "package", "private", "protected", "public", "py", "static", "super",
    "switch", "this", "throw", "try", "typeof", "undefined", "var", "void",
})  # fmt: skip
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
BUILT_IN = frozenset({
    "append", "count", "endswith", "extend", "format", "index", "is_integer", "items", "join", "keys", "lower",
    "partition", "pop", "removeprefix", "removesuffix", "replace", "rpartition", "rsplit", "split", "startswith",
    "strip", "upper", "values",
})  # fmt: skip
OF_OTHERS = frozenset({"add", "copy", "get", "setdefault"})  # methods of dictionaries and sets alone
Key = tuple[str, str]  # module, name


class Unknown(Exception):  # noqa: N818 — what the translation does not know
    """A construct that is not translated: the file, the line and what it is."""


@dataclass
class Module:
    """A module's syntax tree by name: what it defines, and what its names are imported from."""

    name: str
    path: Path
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, Key] = field(default_factory=dict)


@functools.cache
def module(name: str) -> Module:
    """A module of the package, read and not run."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, name
    found = Module(name, Path(spec.origin))
    for statement in ast.parse(found.path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.FunctionDef(name=known) | ast.ClassDef(name=known):
                found.defined[known] = [statement]
            case ast.Assign(targets=targets):
                for target in ast.walk(ast.Tuple(targets)):
                    if isinstance(target, ast.Name):
                        found.defined[target.id] = [statement]
            case ast.AnnAssign(target=ast.Name(id=known)):
                found.defined[known] = [statement]
            case ast.AugAssign(target=ast.Name(id=known)):
                found.defined[known].append(statement)
            case ast.Import() | ast.ImportFrom():
                found.imported |= imports(statement)
    return found


def imports(statement: ast.Import | ast.ImportFrom) -> dict[str, Key]:
    """Name → (module, name in it, or nothing where the module itself is meant)."""
    if isinstance(statement, ast.ImportFrom):
        return {one.asname or one.name: (statement.module or "", one.name) for one in statement.names}
    return {one.asname or one.name: (one.name, "") for one in statement.names}


def origin(where: str, name: str) -> Key:
    """Where a name of a module is defined: in a module of the package, or in one of Python's."""
    while where.split(".")[0] == ROOT:
        here = module(where)
        if name in here.defined or name not in here.imported:
            break
        where, name = here.imported[name]
    return where, name


def script(
    calls: Iterable[str], tables: Mapping[str, Mapping[str, Any]], given: Iterable[str] = (), unused: Iterable[str] = ()
) -> str:
    """JavaScript that returns an object with the functions of `calls`, each "module.name", by their last names.

    tables: functions of one text that are not translated, with all their values; they are None for another text.
    given: functions that the page has itself: `given.name`.  unused: methods, each "Class.name", that nothing calls and
    whose names others have too.
    Raises Unknown where the code that they reach is not of the language that is translated.
    """
    wanted = [key_of(call) for call in calls]
    kept = {key_of(name): f"py.table({literal(table)})" for name, table in tables.items()}
    kept |= {key_of(name): f"(...known) => given.{name.rpartition('.')[2]}(...known)" for name in given}
    units = reached(wanted, kept, frozenset(unused))
    modules = in_order([where for where, _ in wanted])
    order = sorted(units, key=lambda key: (modules.index(key[0]), line(key)) if key[0] in modules else (-1, 0))
    ends = ", ".join(f"{name}: {named((where, name))}" for where, name in wanted)
    return "\n".join([*(f"const {named(key)} = {units[key]};" for key in order), f"return {{{ends}}};"])


def key_of(call: str) -> Key:
    """Module and name."""
    where, _, name = call.rpartition(".")
    return where, name


def named(key: Key) -> str:
    """The JavaScript name of a definition."""
    return f"{key[0].removeprefix(f'{ROOT}.').replace('.', '$')}${key[1]}"


def literal(value: Any) -> str:
    """A value of Python as an expression: dictionaries as `Dict`, tuples as lists."""
    if isinstance(value, Mapping):
        return f"py.dict([{', '.join(f'[{literal(key)}, {literal(one)}]' for key, one in value.items())}])"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return json.dumps(value, ensure_ascii=False)


def line(key: Key) -> int:
    """Where in its module a definition stands."""
    return module(key[0]).defined[key[1]][-1].lineno


@functools.cache
def imported_first(name: str) -> tuple[str, ...]:
    """Modules of the package in the order in which Python runs them, this one the last."""
    order: dict[str, None] = {}
    for where, _ in module(name).imported.values():
        if where.split(".")[0] == ROOT and where != name and importlib.util.find_spec(where):
            order |= dict.fromkeys(imported_first(where))
    return (*order, name)


def in_order(names: Iterable[str]) -> list[str]:
    """All modules that these need, each after those that it imports."""
    return list(dict.fromkeys(one for name in names for one in imported_first(name)))


@functools.cache
def methods_of(name: str) -> frozenset[str]:
    """The names of all methods of classes of a module and of those that it imports."""
    trees = [one for where in imported_first(name) for body in module(where).defined.values() for one in body]
    bodies = [one for tree in trees if isinstance(tree, ast.ClassDef) for one in tree.body]
    return frozenset(one.name for one in bodies if isinstance(one, ast.FunctionDef) and not one.decorator_list)


def reached(wanted: Iterable[Key], kept: Mapping[Key, str], unused: frozenset[str]) -> dict[Key, str]:
    """The translation of all definitions that are reached. Of a class the methods whose names occur anywhere."""
    units: dict[Key, str] = {}
    classes: set[Key] = set()
    attributes: set[str] = set()
    known = -1
    while known != len(units) + len(attributes):  # until nothing joins
        known = len(units) + len(attributes)
        queue = [*wanted, *classes]
        seen: set[Key] = set()
        while queue:
            key = queue.pop()
            if key in seen:
                continue
            seen.add(key)
            if key in kept:
                units[key] = kept[key]
                continue
            translation = Translation(module(key[0]), attributes, unused, kept)
            units[key] = translation.definition(key[1])
            attributes |= translation.attributes
            queue += sorted(translation.needs)
    return units


@dataclass
class Scope:
    """The names of a function: its own, and those that it imports. above: the function around it."""

    names: set[str]
    imported: dict[str, Key]
    above: Scope | None = None
    count: int = 0

    def owner(self, name: str) -> Scope | None:
        """The nearest function that has the name."""
        scope: Scope | None = self
        while scope and name not in scope.names and name not in scope.imported:
            scope = scope.above
        return scope


class Translation:
    """The translation of a definition. needs: definitions that it uses.  attributes: names after a dot."""

    def __init__(self, where: Module, live: set[str], unused: frozenset[str], kept: Collection[Key]):
        self.module, self.live, self.unused, self.kept = where, live, unused, kept
        self.needs: set[Key] = set()
        self.attributes: set[str] = set()
        self.scope: Scope | None = None
        self.temporary = 0

    def unknown(self, node: ast.AST) -> Unknown:
        """The error for a construct."""
        text = ast.unparse(node).splitlines()[0]
        return Unknown(
            f"{self.module.path}:{getattr(node, 'lineno', '?')}: {type(node).__name__} is not translated: {text}"
        )

    def definition(self, name: str) -> str:
        """The value of a module's name."""
        statements = self.module.defined.get(name)
        if statements is None:
            raise Unknown(f"{self.module.name} defines no {name}")
        first, *more = statements
        match first:
            case ast.FunctionDef():
                return self.function(first)
            case ast.ClassDef():
                return self.class_of(first)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                names = [one.id for one in targets if isinstance(one, ast.Name)]
                return self.value(values[names.index(name)])
            case ast.Assign(value=value) | ast.AnnAssign(value=value) if value is not None:
                text = self.value(value)
        for statement in more:  # X |= …
            assert isinstance(statement, ast.AugAssign)
            own = f"(({name}) => {self.in_own(name, statement.value)})"
            text = f"((old) => py.or_(old, {own}(old)))({text})"
        return text

    def in_own(self, name: str, node: ast.expr) -> str:
        """An expression in which a module's name stands for its value so far."""
        self.scope = Scope({name}, {}, self.scope)
        text = self.value(node)
        self.scope = self.scope.above
        return text

    # ---- definitions

    def function(self, node: ast.FunctionDef, method: bool = False) -> str:
        """A function with what a call with keywords has to know of it; decorators that keep results stay."""
        made = self.plain(node, method)
        for decorator in reversed(node.decorator_list):
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            match ast.unparse(called):
                case "functools.lru_cache" | "functools.cache" if not method:
                    made = f"py.cached({made})"
                case "contextlib.contextmanager":
                    made = f"py.contextmanager({made})"
                case "property" | "functools.cached_property" if method:
                    pass
                case _:
                    raise self.unknown(decorator)
        return made

    def plain(self, node: ast.FunctionDef | ast.Lambda, method: bool = False) -> str:
        """A function without its decorators."""
        arguments = node.args
        named_ones = [*arguments.posonlyargs, *arguments.args]
        own = {one.arg for one in (*named_ones, *arguments.kwonlyargs)}
        own |= {one.arg for one in (arguments.vararg, arguments.kwarg) if one}
        bodies = node.body if isinstance(node.body, list) else [ast.Return(node.body)]
        assigned, imported = names_assigned(bodies)
        self.scope = Scope(own | assigned, imported, self.scope)
        body = "\n".join(self.statements(bodies))
        defaults = dict(zip([one.arg for one in reversed(named_ones)], reversed(arguments.defaults), strict=False))
        defaults |= {
            one.arg: value for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value
        }
        self.scope, scope = self.scope.above, self.scope
        texts = {name: f"{local(name)} = {self.value(value)}" for name, value in defaults.items()}

        def parameter(one: ast.arg) -> str:
            return texts.get(one.arg, local(one.arg))

        names = [one.arg for one in named_ones][method:]
        listed = [parameter(one) for one in named_ones[method:]]
        listed += [f"...{local(arguments.vararg.arg)}"] if arguments.vararg else []
        first = f"const {local(named_ones[0].arg)} = this;\n" if method else ""
        local_names = sorted(local(name) for name in assigned - own)
        declared = f"let {', '.join(local_names)};\n" if local_names else ""
        star = "*" if any(isinstance(one, ast.Yield) for one in own_nodes(bodies)) else ""
        only = [one.arg for one in arguments.kwonlyargs]
        if only or arguments.kwarg:
            taken_ones = [parameter(one) for one in arguments.kwonlyargs]
            taken_ones += [f"...{local(arguments.kwarg.arg)}"] if arguments.kwarg else []
            taken = f"{{{', '.join(taken_ones)}}}"
            listed = [taken, *listed]
            if arguments.kwarg:
                first += f"{local(arguments.kwarg.arg)} = py.kwargs({local(arguments.kwarg.arg)});\n"
        del scope
        text = f"function{star} ({', '.join(listed)}) {{\n{first}{declared}{body}\n}}"
        return f"py.fn({text}, {json.dumps(names)}{', true' * bool(only or arguments.kwarg)})"

    def class_of(self, node: ast.ClassDef) -> str:
        """A class: its fields if it is a data class, its methods and properties."""
        bases = [self.value(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
        fields, methods = [], []
        for statement in node.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), value=None):
                    fields.append(f'["{name}"]')
                case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                    fields.append(f'["{name}", () => {self.default(value)}]')
                case ast.FunctionDef(name=name):
                    called = name in self.live and f"{node.name}.{name}" not in self.unused
                    if called or (name.startswith("__") and name.endswith("__")):
                        words = {ast.unparse(one) for one in statement.decorator_list}
                        kinds = {"property": "getter", "functools.cached_property": "cached"}
                        kind = next((kinds[word] for word in words if word in kinds), "method")
                        methods.append(f'["{name}", "{kind}", {self.function(statement, method=True)}]')
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case _:
                    raise self.unknown(statement)
        known = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
        if known - {"dataclass"}:
            raise self.unknown(node.decorator_list[0])
        of_data = f"[{', '.join(fields)}]" if known else "null"
        return f'py.class_("{node.name}", [{", ".join(bases)}], {of_data}, [{", ".join(methods)}])'

    def default(self, node: ast.expr) -> str:
        """The default of a data class's field."""
        match node:
            case ast.Call(func=ast.Name(id="field"), keywords=[ast.keyword(arg="default_factory", value=factory)]):
                return f"({self.value(factory)})()"
        return self.value(node)

    # ---- statements

    def statements(self, body: Iterable[ast.stmt]) -> list[str]:
        """Statements."""
        return [text for statement in body if (text := self.statement(statement))]

    def block(self, body: Iterable[ast.stmt]) -> str:
        """Statements in braces."""
        return "{\n" + "\n".join(self.statements(body)) + "\n}"

    def new(self) -> str:
        """A name of its own."""
        self.temporary += 1
        return f"${self.temporary}"

    def statement(self, node: ast.stmt) -> str:
        """One statement."""
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Import() | ast.ImportFrom():
                return ""
            case ast.Expr(value=ast.Yield(value=None)):
                return "yield;"
            case ast.Expr(value=value):
                return f"{self.value(value)};"
            case ast.Return(value=value):
                return f"return {self.value(value) if value else 'null'};"
            case ast.Assign(targets=targets, value=value):
                return self.assigned(targets, value)
            case ast.AnnAssign(target=target, value=value):
                return self.assign(target, self.value(value)) if value else ""
            case ast.AugAssign():
                return self.augmented(node)
            case ast.If(test=test, body=body, orelse=orelse):
                other = f" else {self.block(orelse)}" if orelse else ""
                return f"if ({self.condition(test)}) {self.block(body)}{other}"
            case ast.While(test=test, body=body, orelse=[]):
                return f"while ({self.condition(test)}) {self.block(body)}"
            case ast.For():
                return self.loop(node)
            case ast.With(items=[ast.withitem(context_expr=context, optional_vars=None)], body=body):
                name = self.new()
                return (
                    f"const {name} = py.enter({self.value(context)});\n"
                    f"try {self.block(body)} finally {{ py.leave({name}); }}"
                )
            case ast.Try(body=body, handlers=handlers, orelse=[], finalbody=[]):
                return f"try {self.block(body)} {self.handlers(handlers)}"
            case ast.Raise(exc=None):
                return "throw $error;"
            case ast.Raise(exc=error) if error is not None:
                return f"throw {self.value(error)};"
            case ast.Break():
                return "break;"
            case ast.Continue():
                return "continue;"
            case ast.FunctionDef(name=name):
                return f"{local(name)} = {self.function(node)};"
        raise self.unknown(node)

    def assigned(self, targets: list[ast.expr], value: ast.expr) -> str:
        """a = b = value."""
        if len(targets) == 1:
            return self.assign(targets[0], self.value(value))
        name = self.new()
        return f"const {name} = {self.value(value)};\n" + "\n".join(self.assign(one, name) for one in targets)

    def assign(self, target: ast.expr, value: str) -> str:
        """One target gets a value."""
        match target:
            case ast.Name() | ast.Tuple() | ast.List():
                return f"{self.pattern(target)} = {value if isinstance(target, ast.Name) else f'py.iter({value})'};"
            case ast.Attribute(value=owner, attr=name):
                return f"{self.value(owner)}.{name} = {value};"
            case ast.Subscript(value=owner, slice=key):
                return f"py.set({self.value(owner)}, {self.value(key)}, {value});"
        raise self.unknown(target)

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

    def augmented(self, node: ast.AugAssign) -> str:
        """target op= value, in place where Python does it so."""
        if type(node.op) not in OPERATORS:
            raise self.unknown(node)
        operation, value = f"py.i{OPERATORS[type(node.op)]}", self.value(node.value)
        match node.target:
            case ast.Subscript(value=owner, slice=key):
                return f"py.update({self.value(owner)}, {self.value(key)}, ($old) => {operation}($old, {value}));"
            case ast.Name() | ast.Attribute():
                target = self.pattern(node.target)
                return f"{target} = {operation}({target}, {value});"
        raise self.unknown(node)

    def loop(self, node: ast.For) -> str:
        """for, with its else."""
        head = f"for ({self.pattern(node.target)} of py.iter({self.value(node.iter)}))"
        if not node.orelse:
            return f"{head} {self.block(node.body)}"
        if any(isinstance(one, ast.For | ast.While) for one in own_nodes(node.body)):
            raise self.unknown(node)
        name = self.new()
        body = self.block(node.body).replace("break;", f"break {name};")
        return f"{name}: {{\n{head} {body}\n{self.block(node.orelse)}\n}}"

    def handlers(self, handlers: list[ast.ExceptHandler]) -> str:
        """except, for errors of Python alone."""
        text = ""
        for one in handlers:
            if one.type is None:
                raise self.unknown(one)
            bound = f"{local(one.name)} = $error;\n" if one.name else ""
            text += f"if (py.isinstance($error, {self.value(one.type)})) {{\n{bound}{self.block(one.body)}\n}} else "
        return f"catch ($error) {{ {text}throw $error; }}"

    # ---- expressions

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
            case ast.Lambda():
                return self.plain(node)
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
        if where.split(".")[0] == ROOT or (where, what) in self.kept:
            self.needs.add((where, what))
            return named((where, what))
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


def local(name: str) -> str:
    """A variable's name in JavaScript."""
    return f"{name}_" if name in RESERVED else name


def own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a function's body without those of functions within it."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield from own_nodes(ast.iter_child_nodes(node))


def names_assigned(body: Iterable[ast.AST]) -> tuple[set[str], dict[str, Key]]:
    """Names that a function assigns, and what it imports. Those of comprehensions are their own."""
    names: set[str] = set()
    imported: dict[str, Key] = {}
    for node in body:
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.FunctionDef(name=name):
                names.add(name)
                continue
            case ast.ExceptHandler(name=str() as name):
                names.add(name)
            case ast.Import() | ast.ImportFrom():
                imported |= imports(node)
            case ast.Lambda():
                continue
        inside = ast.iter_child_nodes(node)
        if isinstance(node, ast.comprehension):  # its target belongs to it
            inside = iter([node.iter, *node.ifs])
        more, others = names_assigned(inside)
        names |= more
        imported |= others
    return names, imported
