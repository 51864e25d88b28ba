"""Functions, classes and statements of Python in JavaScript."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator

from peftbook.views.site.javascript.expressions import OPERATORS, Expressions, Scope, local
from peftbook.views.site.javascript.modules import Key, UntranslatedError, imports


class Translation(Expressions):
    """The translation of a module's definition."""

    def definition(self, name: str) -> str:
        """The value of a module's name."""
        statements = self.module.defined.get(name)
        if statements is None:
            raise UntranslatedError(f"{self.module.name} defines no {name}")
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
        self.scope = self.scope.above
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

    def statements(self, body: Iterable[ast.stmt]) -> list[str]:
        """Statements."""
        return [text for statement in body if (text := self.statement(statement))]

    def block(self, body: Iterable[ast.stmt]) -> str:
        """Statements in braces."""
        return "{\n" + "\n".join(self.statements(body)) + "\n}"

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

    def value(self, node: ast.expr) -> str:
        """One expression; a lambda is a function."""
        return self.plain(node) if isinstance(node, ast.Lambda) else super().value(node)


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
