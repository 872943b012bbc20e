"""What the package's code compares with strings."""

import ast
from collections.abc import Iterator

from tests.helpers.launch import ROOT


def find_comparisons(strings: set[str], at_home: str) -> Iterator[str]:
    """Places that compare something with one of the strings, also within a tuple, list or set, but not `at_home`."""
    for path in sorted((ROOT / "miwv_trainer").rglob("*.py")):
        if path != ROOT / "miwv_trainer" / at_home:
            for line, node in find_in(path.read_text(encoding="utf-8"), strings):
                yield f"{path.relative_to(ROOT)}:{line}: {node}"


def find_in(source: str, strings: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        operands: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            operands = [node.value]
        constants = [part for operand in operands for part in ast.walk(operand) if isinstance(part, ast.Constant)]
        if any(constant.value in strings for constant in constants if isinstance(constant.value, str)):
            yield node.lineno, ast.unparse(node)
