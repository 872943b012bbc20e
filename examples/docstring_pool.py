"""A pool of instruction and response pairs made from the documentation strings of Python's standard library.

It needs no download and no licence except Python's. Nothing is random: a version of Python always gives the same pool.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

MODULES = """
argparse ast base64 binascii bisect bz2 calendar codecs collections colorsys compileall contextlib copy csv
dataclasses datetime difflib dis email.utils enum filecmp fileinput fnmatch fractions functools getpass
gettext glob gzip hashlib heapq hmac html imaplib importlib.util inspect ipaddress itertools json keyword
linecache locale logging lzma math mimetypes multiprocessing netrc ntpath numbers opcode operator os os.path
pathlib pickle pickletools pkgutil platform plistlib posixpath pprint py_compile pyclbr queue quopri random re
runpy secrets shelve shlex shutil signal site smtplib socket sqlite3 ssl stat statistics string struct
subprocess sysconfig tarfile tempfile textwrap threading timeit token tokenize trace traceback types typing
unicodedata urllib.parse uuid warnings wave weakref webbrowser xml.dom.minidom xml.sax.saxutils zipapp zipfile
zlib
""".split()
PURPOSE = ("What does `{}` do?", "Explain what `{}` is for.", "What is `{}` used for in Python?")
SIGNATURE = ("What is the signature of `{}`?", "How is `{}` called?", "Which arguments does `{}` take?")
ERRORS = ("Which errors does `{}` raise?", "When does `{}` fail?")

Row = dict[str, str]


def collect_docstring_rows(accept: Callable[[Row], bool], count: int) -> list[Row]:
    """
    Rows with `module`, `instruction` and `output`, spread over the modules: one of each first, then a second of each.

    Args:
        accept: Returns whether a row is short enough.
        count: How many rows, if there are so many.
    """
    by_module = [filter(accept, _iterate_module(name)) for name in MODULES]
    rows: list[Row] = []
    while len(rows) < count and by_module:
        found = [(source, next(source, None)) for source in by_module]
        rows += [row for _, row in found if row is not None]
        by_module = [source for source, row in found if row is not None]
    return sorted(rows[:count], key=lambda row: row["module"])


def _iterate_module(name: str) -> Iterator[Row]:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None) or [entry for entry in dir(module) if not entry.startswith("_")]
    for number, entry in enumerate(sorted(public)):
        member = getattr(module, entry, None)
        # A function that is exported by several modules is asked about only in the one that defines it.
        if inspect.isroutine(member) and getattr(member, "__module__", name) == name:
            yield from _ask_about(name, f"{name}.{entry}", member, number)


def _ask_about(module: str, name: str, function: Any, number: int) -> Iterator[Row]:
    text = inspect.getdoc(function) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    # The first line of a C function's docstring is its signature, which is no description.
    described = [paragraph for paragraph in paragraphs if not paragraph.startswith(name.rpartition(".")[2] + "(")]
    errors = [sentence for sentence in re.split(r"(?<=\.)\s", " ".join(described)) if re.search(r"\braise", sentence)]
    answers = [
        (PURPOSE, described[0] if described else ""),
        (SIGNATURE, _describe_signature(name, function)),
        (ERRORS, " ".join(errors)),
    ]
    turn = number % len(answers)
    for questions, answer in answers[turn:] + answers[:turn]:
        # Some default values print with their address in memory, which differs from run to run.
        if len(answer.split()) > 1 and " at 0x" not in answer:
            yield {"module": module, "instruction": questions[number % len(questions)].format(name), "output": answer}


def _describe_signature(name: str, function: Any) -> str:
    try:
        return f"`{name}{inspect.signature(function)}`" if inspect.signature(function).parameters else ""
    except ValueError:
        return ""
