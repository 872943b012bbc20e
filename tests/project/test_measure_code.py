"""The script that counts the code: its numbers against a file counted by hand, its limits, and the page it writes."""

from pathlib import Path

import pytest

from benchmarks.measure_code import (
    LONGEST_FILE,
    LONGEST_FUNCTION,
    PACKAGE,
    find_faults,
    main,
    measure_file,
    measure_wings,
    render_table,
    write_between_markers,
)
from tests.helpers.launch import ROOT

COUNTED = '''"""A file."""

from typing import Any  # not a use

# A reason.
LIMIT = 3  # another
SKIPPED = 4  # noqa: F841


class Record:
    def __init__(self, a, b, c, d, e, f, g):
        self.a = a

    def sum_up(self, first: Any, *rest: Any, **named: int) -> int:
        """
        Three lines of docstring.
        """

        def add(x):
            return x

        return add(1)

    @classmethod
    def _hidden(cls, x):
        return x


def join(
    a,
    b=(),
):
    return a
'''


def counted(folder: Path, text: str = COUNTED) -> Path:
    path = folder / "package" / "wing" / "file.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_a_file_is_counted_as_by_hand(tmp_path: Path) -> None:
    size = measure_file(counted(tmp_path))
    assert (size.lines, size.anys, size.comments) == (33, 2, 3)
    functions = {one.name: (one.lines, one.parameters, one.is_public, one.has_docstring) for one in size.functions}
    assert functions == {
        "Record.__init__": (2, 7, False, False),
        "Record.sum_up": (6, 3, True, True),
        "Record.sum_up.add": (2, 1, False, False),
        "Record._hidden": (2, 1, False, False),
        "join": (5, 2, True, False),
    }


def test_a_row_is_the_sum_of_its_files(tmp_path: Path) -> None:
    folder = counted(tmp_path).parent
    (folder / "other.py").write_text("\n" * 67)
    (folder.parent / "beside.py").write_text("def f(a, b, c): ...\n")
    rows = render_table(measure_wings(folder.parent)).splitlines()[2:]
    assert rows == [
        "| `config` | 1 | 1 | 1 | 3 | 0.0 | 0.0 | 0% |",
        "| `wing` | 2 | 100 | 6 | 3 | 2.0 | 3.0 | 50% |",
        "| all | 3 | 101 | 6 | 3 | 2.0 | 3.0 | 33% |",
    ]


def test_what_exceeds_a_limit_is_named_and_what_reaches_it_is_not(tmp_path: Path) -> None:
    body = "    pass\n"
    text = (
        f"def reaches(a, b, c, d, e, f):\n{body * (LONGEST_FUNCTION - 1)}"
        f"def exceeds(a, b, c, d, e, *f, g):\n{body * LONGEST_FUNCTION}"
        "class Record:\n    def __init__(self, a, b, c, d, e, f, g): ...\n    def take(self, a, b, c, d, e, f): ...\n"
    )
    text += "\n" * (LONGEST_FILE - text.count("\n"))
    path = counted(tmp_path, text)
    named = f"package/wing/file.py:{LONGEST_FUNCTION + 1}: exceeds"
    faults = [
        f"{named} has {LONGEST_FUNCTION + 1} lines without its docstring, at most {LONGEST_FUNCTION}.",
        f"{named} has 7 parameters, at most 6. Pass a record.",
    ]
    assert find_faults(measure_wings(tmp_path / "package"), tmp_path) == faults
    path.write_text(text + "\n")
    longer = "package/wing/file.py: 401 lines, at most 400. Split it by what it does."
    assert find_faults(measure_wings(tmp_path / "package"), tmp_path) == [longer, *faults]


def test_the_command_fails_where_a_limit_is_exceeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = counted(tmp_path)
    assert main(["--package", str(tmp_path / "package")]) == 0
    path.write_text("def f(a, b, c, d, e, f, g): ...\n")
    assert main(["--package", str(tmp_path / "package")]) == 1
    assert "package/wing/file.py:1: f has 7 parameters" in capsys.readouterr().err


def test_a_page_receives_the_text_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- sizes: written by hand -->", "<!-- end of sizes -->"
    other = "<!-- list: written by hand -->\nkept\n<!-- end of list -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nbetween\n{other}\n")
    for table in ("| a \\1 |", "| b |"):
        write_between_markers(page, "sizes", table)
        assert page.read_text() == f"before\n{begin}\n\n{table}\n\n{end}\nbetween\n{other}\n"
    page.write_text(f"{end}\n{begin}\n")
    with pytest.raises(ValueError, match=r"page\.md holds 0 places for 'sizes', needs one: put the lines `<!-- sizes"):
        write_between_markers(page, "sizes", "| c |")


def test_the_table_in_the_docs_has_a_line_for_every_wing() -> None:
    """Its numbers are of the day it was written; a table that is missing a wing would mislead."""
    page = (ROOT / "docs" / "code.md").read_text()
    shown = page.split("<!-- sizes: ")[1].split("<!-- end of sizes")[0].strip().splitlines()[2:]
    now = render_table(measure_wings(PACKAGE)).splitlines()
    assert shown[0] == now[0] and [line.split("|")[1] for line in shown] == [line.split("|")[1] for line in now]
