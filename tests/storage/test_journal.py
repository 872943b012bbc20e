"""What a killed round leaves behind is read back whole, and nothing else is."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer.storage import journal as journal_module
from miwv_trainer.storage.journal import Journal, JournalLine
from tests.helpers.forks import fork_python
from tests.helpers.journals import HEADER, entry, samples


def write(folder: Path, rank: int, *entries: JournalLine, header: dict = HEADER) -> Path:
    journal = Journal(folder, rank, header)
    for one in entries:
        journal.append(one, 100)
    journal.close()
    return journal.path


def test_what_was_written_by_all_ranks_is_read_back_to_the_bit(tmp_path: Path) -> None:
    written = [entry(0, 1, 2), entry(5, stage="float32"), entry(7, 8)]
    write(tmp_path, 0, *written[:2])
    write(tmp_path, 1, written[2])
    first, second = Journal(tmp_path, 2, HEADER).read()
    found = [*first, *second]
    assert (len(first), len(second)) == (2, 1)
    for one, other in zip(found, written, strict=True):
        assert (one.stage, one.tokens, one.seconds) == (other.stage, other.tokens, other.seconds)
        for name in ("kinds", "samples", "losses"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_loss_that_is_not_finite_is_recorded_as_such(tmp_path: Path) -> None:
    losses = np.asarray([np.nan, np.inf, 1.5])
    path = write(tmp_path, 0, JournalLine("losses", np.zeros(3, int), np.arange(3), losses, 9, 0.0))
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    ((found,),) = Journal(tmp_path, 0, HEADER).read()
    np.testing.assert_array_equal(found.losses, [np.nan, np.nan, 1.5])


def test_wherever_a_file_is_cut_the_read_whole_lines_before_are_read_and_writing_goes_on(tmp_path: Path) -> None:
    content = write(tmp_path / "whole", 0, entry(0), entry(1), entry(2)).read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "rank-00000.jsonl").write_bytes(content[:size])
        # A line is whole without its end of line too.
        complete = sum(end - 1 <= size for end in ends) - 2  # an empty line, the header
        expected = [[number] for number in range(max(complete, 0))]
        assert samples(Journal(folder, 0, HEADER).read()) == expected
        write(folder, 0, entry(9))
        assert samples(Journal(folder, 0, HEADER).read()) == [*expected, [9]]


def test_a_line_that_was_changed_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, 0, entry(0), entry(1), entry(2))
    lines = path.read_text().splitlines()
    lines[-2] = lines[-2].replace('"tokens": 10', '"tokens": 11')
    path.write_text("\n".join([*lines, '{"crc32": 1}', "[]", "7", ""]))
    with caplog.at_level(logging.INFO, logger="miwv_trainer"):
        assert samples(Journal(tmp_path, 0, HEADER).read()) == [[0], [2]]
    assert f"4 broken line(s) of {path} are left out." in caplog.messages


@pytest.mark.parametrize("other", [{**HEADER, "round": 1}, {"pool": "abc"}, {**HEADER, "pool": "abd"}])
def test_what_was_made_from_something_else_is_not_read_and_gives_way(tmp_path: Path, other: dict) -> None:
    write(tmp_path, 0, entry(0), header=other)
    write(tmp_path, 1, entry(1))
    assert samples(Journal(tmp_path, 0, HEADER).read()) == [[1]]
    write(tmp_path, 0, entry(2))
    assert samples(Journal(tmp_path, 0, HEADER).read()) == [[2], [1]]
    assert Journal(tmp_path, 0, other).read() == []


def test_another_format_version_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "FORMAT_VERSION", 99)
    write(tmp_path, 0, entry(0))
    monkeypatch.undo()
    assert Journal(tmp_path, 0, HEADER).read() == []
    assert Journal.read_headers(tmp_path) == []


def test_headers_say_what_is_there(tmp_path: Path) -> None:
    assert Journal.read_headers(tmp_path / "none") == []
    write(tmp_path, 0, entry(0))
    write(tmp_path, 1, entry(1), header={"round": 5})
    (tmp_path / "rank-00002.jsonl").write_text("torn")
    assert Journal.read_headers(tmp_path) == [{"version": 2, **HEADER}, {"version": 2, "round": 5}]


def test_lines_reach_the_disk_every_hundredth_of_the_work_or_after_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    now = [0.0]
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(1))
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    journal = Journal(tmp_path, 0, HEADER)
    for _ in range(10):
        journal.append(entry(0, 1), 1000)
    assert len(synced) == 2  # twenty losses of a thousand
    journal.append(entry(0), 1000)
    assert len(synced) == 2
    now[0] = 31.0
    journal.append(entry(0), 1000)
    assert len(synced) == 3


def test_every_line_outlives_the_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from miwv_trainer.storage.journal import Journal; from tests.helpers.journals import HEADER, entry\n"
        "journal = Journal(Path(sys.argv[1]), 0, HEADER)\n"
        "for number in range(5): journal.append(entry(number), 10**9)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = fork_python("-c", code, tmp_path)
    assert done.returncode == -9
    assert samples(Journal(tmp_path, 0, HEADER).read()) == [[number] for number in range(5)]


def test_a_disk_that_is_full_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from miwv_trainer.storage.journal import Journal; from tests.helpers.journals import HEADER, entry\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        "journal = Journal(Path(sys.argv[1]), 0, HEADER)\n"
        "for number in range(50): journal.append(entry(number), 10**9)"
    )
    done = fork_python("-c", code, tmp_path)
    assert done.returncode == 1
    assert "journal could not be written" in done.stderr and "rank-00000.jsonl" in done.stderr
    found = samples(Journal(tmp_path, 0, HEADER).read())
    assert 0 < len(found) < 50 and found == [[number] for number in range(len(found))]


def test_lines_are_json_that_anyone_can_read(tmp_path: Path) -> None:
    path = write(tmp_path, 0, entry(3, 4))
    header, line = (json.loads(line)["content"] for line in path.read_text().split("\n") if line)
    assert header == {"version": 2, **HEADER}
    assert line["samples"] == [3, 4] and line["kinds"] == [1, 0] and line["tokens"] == 20
