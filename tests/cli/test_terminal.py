"""What the command line writes to a terminal."""

import logging
import os
import pty
import sys
from pathlib import Path

import pytest

from miwv_trainer.cli.main import main


def test_no_colours_on_a_terminal_that_asks_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("miwv_trainer"), "level", logging.INFO)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patched:
        assert terminal.isatty()
        patched.setattr(sys, "stdout", terminal)
        patched.setattr(sys, "stderr", terminal)
        assert main(["select", "--scores", str(tmp_path), "--fraction", "0.1"]) == 2
        with pytest.raises(SystemExit, match="^0$"):
            main(["--help"])
        terminal.flush()
        text = os.read(reader, 100_000).decode()
    os.close(reader)
    assert "There are no scores in" in text and "usage: miwv" in text
    assert "\x1b[" not in text
