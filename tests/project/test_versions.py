"""The table of sets of versions: what is read of a run of the tests, and what is printed of it."""

import importlib.metadata
import sys
from collections import Counter
from pathlib import Path

from benchmarks import versions

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.a" name="test_one"/><testcase classname="tests.a" name="test_two"><properties/></testcase>
<testcase classname="tests.a" name="test_three"><failure message="no">E</failure></testcase>
<testcase classname="tests.b" name="tests.b"><error message="collection failure">E</error></testcase>
<testcase classname="tests.c" name="test_four"><skipped message="no browser"/></testcase>
<testcase classname="tests.c" name="test_five"><skipped message="no browser"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted_and_its_failures_and_reasons_are_named(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(REPORT)
    found = versions.read_report(tmp_path / "tests.xml", "lowest", {}, 2.4)
    assert found.passed == 2
    assert found.failed == ["tests.a::test_three", "tests.b::tests.b"]
    assert found.skipped == {"no browser": 2}


def test_the_table_has_a_line_for_each_set_with_its_versions_and_counts() -> None:
    installed = versions.read_versions(Path(sys.executable))
    assert installed["transformers"] == importlib.metadata.version("transformers")
    outcome = versions.Outcome("today", installed, 40, ["tests.a::test"], Counter({"no browser": 3}), 7.6)
    head, rule, line = versions.make_table([outcome]).splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert rule.count("---") == len(cells)
    assert [cells[name] for name in ("passed", "failed", "skipped")] == ["40", "1", "3"]
    assert cells["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert line.endswith(" 8 |") and line.startswith("| today |")
