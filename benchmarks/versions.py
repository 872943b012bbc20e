"""Runs the tests with one set of versions after another, and prints a table.

    python -m benchmarks.versions today axolotl lowest           # the whole fast suite with each
    python -m benchmarks.versions axolotl --target test-core     # the part that meets other libraries most

`make test-beside` runs it with every set. Only the standard library is used: each set is installed in an environment of
its own, by `make test-with SET=...`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "trl", "peft", "deepspeed", "huggingface_hub", "numpy")
READ_VERSIONS = """
import importlib.metadata, json, platform, sys
def read(name):
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "none"
print(json.dumps({"python": platform.python_version(), **{name: read(name) for name in sys.argv[1:]}}))
"""


@dataclass(frozen=True)
class Outcome:
    """
    A run of the tests with one set.

    Args:
        failed: Names of tests that failed, and of files that could not be imported.
        skipped: How many tests were skipped for each reason.
    """

    name: str
    versions: dict[str, str]
    passed: int
    failed: list[str]
    skipped: Counter[str]
    minutes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="names of files in constraints/ without their ending, or today")
    parser.add_argument("--target", default="test-with", help="the target of make (test-with, test-core)")
    options = parser.parse_args()
    outcomes = [run_set(name, options.target) for name in options.sets]
    print(make_table(outcomes))
    for outcome in outcomes:
        for test in outcome.failed:
            print(f"{outcome.name} failed: {test}")
        for reason, count in outcome.skipped.most_common():
            print(f"{outcome.name} skipped {count}: {reason}")
    sys.exit(any(outcome.failed for outcome in outcomes))


def run_set(name: str, target: str) -> Outcome:
    """Installs a set where that has not been done, and runs the tests in its environment."""
    environment = ROOT / (".venv" if name == "today" else f".venv-{name}")
    report = environment / "tests.xml"
    subprocess.run(["make", str(environment.relative_to(ROOT) / ".ready")], cwd=ROOT, check=True)
    report.unlink(missing_ok=True)
    start = time.monotonic()
    # Failing tests are told in the table; a report that is not there is an error by itself.
    subprocess.run(["make", target, f"SET={name}", f"ARGUMENTS=--junitxml={report}"], cwd=ROOT)
    minutes = (time.monotonic() - start) / 60
    return read_report(report, name, read_versions(environment / "bin" / "python"), minutes)


def read_versions(python: Path) -> dict[str, str]:
    """The versions of Python and of the libraries in an environment."""
    printed = subprocess.run([str(python), "-c", READ_VERSIONS, *LIBRARIES], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(printed.stdout)
    return versions


def read_report(report: Path, name: str, versions: dict[str, str], minutes: float) -> Outcome:
    """What pytest wrote into a JUnit file."""
    passed, failed, skipped = 0, [], Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            passed += 1
        elif outcome.tag == "skipped":
            skipped[outcome.get("message") or "no reason"] += 1
        else:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return Outcome(name, versions, passed, failed, skipped, minutes)


def make_table(outcomes: list[Outcome]) -> str:
    """The table of docs/versions.md."""
    heads = ["set", "python", *LIBRARIES, "passed", "failed", "skipped", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for outcome in outcomes:
        found = [outcome.versions[name] for name in ("python", *LIBRARIES)]
        counts = [str(outcome.passed), str(len(outcome.failed)), str(outcome.skipped.total())]
        lines.append(f"| {' | '.join([outcome.name, *found, *counts, f'{outcome.minutes:.0f}'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
