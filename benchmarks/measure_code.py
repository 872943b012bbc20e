"""Sizes of the package's code, a line per wing, and the limits that no file and no function may exceed.

    python -m benchmarks.measure_code                        # prints the table; exit status 1 where a limit is exceeded
    python -m benchmarks.measure_code --write docs/code.md   # and writes the table between that page's markers

Only the standard library is used and the package is parsed, not imported, so it also runs on a checkout of an earlier
commit (`--package PATH`) and where nothing is installed.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "miwv_trainer"
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
LONGEST_FILE = 400
# The wings in the order in which data flows. Files beside the folders come first.
WINGS = (
    *("config", "data", "distributed", "embeddings", "selection", "storage", "scoring"),
    *("rounds", "training", "report", "export", "cli", "metrics"),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class FunctionSize:
    """One function: its name with the class around it, lines without the docstring, and parameters without `self`."""

    name: str
    line: int
    lines: int
    parameters: int
    is_public: bool
    has_docstring: bool

    @property
    def is_constructor(self) -> bool:
        return self.name.endswith("__init__")


@dataclass(frozen=True)
class FileSize:
    """One file: physical lines, uses of `Any` in annotations, lines with a comment, and its functions."""

    path: Path
    lines: int
    anys: int
    comments: int
    functions: tuple[FunctionSize, ...]


def measure_file(path: Path) -> FileSize:
    """Counts one file. Directives for tools (`noqa`, `type:`, `fmt:`) are no comments."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return FileSize(
        path=path,
        lines=len(text.splitlines()),
        anys=sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree)),
        comments=_count_comments(text),
        functions=tuple(_functions_in(tree, "")),
    )


def _count_comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(not re.match(r"#\s*(noqa|type:|fmt:)", comment) for comment in comments)


def _functions_in(node: ast.AST, prefix: str) -> Iterator[FunctionSize]:
    """Functions of a module and of its classes; those inside a function too, which also count as its lines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions_in(child, f"{prefix}{child.name}.")
        elif isinstance(child, Function):
            yield _measure_function(child, prefix)
            for inner in ast.walk(child):
                if isinstance(inner, Function) and inner is not child:
                    yield replace(_measure_function(inner, f"{prefix}{child.name}."), is_public=False)
        elif not isinstance(child, ast.expr):
            yield from _functions_in(child, prefix)


def _measure_function(function: Function, prefix: str) -> FunctionSize:
    assert function.end_lineno is not None
    docstring = function.body[0] if ast.get_docstring(function) else None
    lines = function.end_lineno - function.lineno + 1
    if docstring is not None and docstring.end_lineno is not None:
        lines -= docstring.end_lineno - docstring.lineno + 1
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [one.arg for one in (given.vararg, given.kwarg) if one is not None]
    name = prefix + function.name
    return FunctionSize(
        name=name,
        line=function.lineno,
        lines=lines,
        parameters=len(names) - (names[:1] in (["self"], ["cls"])),
        is_public=not any(part.startswith("_") for part in name.split(".")),
        has_docstring=docstring is not None,
    )


def measure_wings(package: Path = PACKAGE) -> dict[str, list[FileSize]]:
    """The files of each wing, in the wings' order. A file beside the folders belongs to `config`."""
    found: dict[str, list[FileSize]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        found[parts[0] if len(parts) > 1 else "config"].append(measure_file(path))
    return {wing: found[wing] for wing in (*WINGS, *sorted(set(found) - set(WINGS))) if wing in found}


def find_faults(wings: dict[str, list[FileSize]], root: Path = ROOT) -> list[str]:
    """One line for each file or function that exceeds a limit. Constructors may have any number of parameters."""
    faults = []
    for file in (file for files in wings.values() for file in files):
        name = file.path.relative_to(root)
        if file.lines > LONGEST_FILE:
            faults.append(f"{name}: {file.lines} lines, at most {LONGEST_FILE}. Split it by what it does.")
        for one in file.functions:
            where = f"{name}:{one.line}: {one.name}"
            if one.lines > LONGEST_FUNCTION:
                faults.append(f"{where} has {one.lines} lines without its docstring, at most {LONGEST_FUNCTION}.")
            if one.parameters > MOST_PARAMETERS and not one.is_constructor:
                faults.append(f"{where} has {one.parameters} parameters, at most {MOST_PARAMETERS}. Pass a record.")
    return faults


def render_table(wings: dict[str, list[FileSize]]) -> str:
    """The table as Markdown: a line per wing and one for the whole package."""
    heads = ("wing", "files", "lines", "longest function", "most parameters", "`Any`", "comments", "docstrings")
    rows = [_row(f"`{wing}`", files) for wing, files in wings.items()]
    rows.append(_row("all", [file for files in wings.values() for file in files]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ("---",) * len(heads), *rows))


def _row(name: str, files: list[FileSize]) -> tuple[str, ...]:
    lines = sum(file.lines for file in files)
    functions = [one for file in files for one in file.functions]
    public = [one for one in functions if one.is_public]
    return (
        name,
        str(len(files)),
        f"{lines:,}",
        str(max((one.lines for one in functions), default=0)),
        str(max((one.parameters for one in functions if not one.is_constructor), default=0)),
        f"{100 * sum(file.anys for file in files) / lines:.1f}",
        f"{100 * sum(file.comments for file in files) / lines:.1f}",
        f"{sum(one.has_docstring for one in public) / max(1, len(public)):.0%}",
    )


def write_between_markers(page: Path, name: str, text: str) -> None:
    """
    Puts the text between the lines `<!-- NAME: written by ... -->` and `<!-- end of NAME -->` of a Markdown page.

    Raises:
        ValueError: The page does not hold both lines.
    """
    pattern = rf"(<!-- {name}: written by [^\n]*-->\n).*?(<!-- end of {name} -->)"
    written, count = re.subn(
        pattern, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(
            f"{page} holds {count} places for {name!r}, needs one: put the lines `<!-- {name}: written by SCRIPT -->` "
            f"and `<!-- end of {name} -->` where it belongs."
        )
    page.write_text(written, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the folder whose files are counted")
    parser.add_argument("--write", type=Path, help="a Markdown page that receives the table between its markers")
    given = parser.parse_args(arguments)
    package = given.package.resolve()
    wings = measure_wings(package)
    table = render_table(wings)
    print(table)
    if given.write is not None:
        write_between_markers(given.write, "sizes", table)
    faults = find_faults(wings, package.parent)
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
