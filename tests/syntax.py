"""What a module of the product calls and changes, by full names, under whatever names it imports them."""

import ast
from collections.abc import Iterator


def imported(tree: ast.AST) -> dict[str, str]:
    """The full name of each name that a module imports: `{"np": "numpy", "load": "numpy.load"}`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import a.b` makes `a`, which is called what it is.
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


class Names:
    """Expressions of a module as text, with full names for what it imports."""

    def __init__(self, tree: ast.AST) -> None:
        self._imported = imported(tree)

    def __call__(self, node: ast.AST) -> str:
        text = ast.unparse(node)
        first, dot, rest = text.partition(".")
        return f"{self._imported.get(first, first)}{dot}{rest}"


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Each call, with what is called."""
    name = Names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, name(node.func)


def changes(tree: ast.AST) -> Iterator[str]:
    """What is called, and, as `NAME=` and `NAME[]`, what is assigned to or deleted."""
    yield from (what for _, what in calls(tree))
    name = Names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield f"{name(node)}="
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield f"{name(node.value)}[]"
