"""
The journal of a running round: what it has scored so far, so that a killed round continues where it stopped.

Each rank appends to a JSON Lines file of its own, in a folder beside the rounds that is deleted when the round is
written. Each line has a checksum; a line that a crash has cut is ignored, and its losses are computed again. The first
line, the header, says what the losses were made from. A file with another header is ignored.
"""

import json
import logging
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict, cast

import numpy as np

from miwv_trainer.choices import AttentionChoice
from miwv_trainer.storage.atomic import delete
from miwv_trainer.storage.provenance import JsonObject
from miwv_trainer.storage.stored_round import RoundIdentity

logger = logging.getLogger(__name__)
FORMAT_VERSION = 2
# A flush to the disk takes as long as a forward of a small model, and on a network disk much longer. So the journal is
# flushed after so many seconds, or after this share of the losses of a pass.
SYNC_SECONDS = 30.0
SYNC_SHARE = 0.01


class _Limits(TypedDict):
    context: int
    layout: str
    memory: JsonObject


class PlanHeader(_Limits, total=False):
    """How a round composes its forwards, decided when its journal is begun. Older versions wrote no `attention`."""

    attention: AttentionChoice


class JournalHeader(RoundIdentity, PlanHeader, total=False):
    """What the losses of a journal were made from."""

    version: int


class _StoredLine(TypedDict):
    """A JournalLine as JSON holds it. A loss that is not finite is null."""

    stage: str
    kinds: list[int]
    samples: list[int]
    losses: list[float | None]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class JournalLine:
    """
    The result of one forward.

    Args:
        stage: The pass over the pool that it belongs to.
        kinds: `(losses,)` int64, which of the sample's losses: `ZERO_SHOT` or `ONE_SHOT`.
        samples: `(losses,)` int64, the samples.
        losses: `(losses,)` float64, NaN if a loss is not finite.
        tokens: Tokens forwarded, padding included.
        seconds: Time since the line before on this rank.
    """

    stage: str
    kinds: np.ndarray
    samples: np.ndarray
    losses: np.ndarray
    tokens: int
    seconds: float


class Journal:
    """
    The journal of one round on one rank.

    After SIGKILL every appended line is on the disk; after a power loss, all but those of the last 30 s or of the last
    1 % of the pass.

    Args:
        folder: The folder of the round's journal, the same for all ranks.
        rank: The rank whose file is written.
        header: What the losses were made from.
    """

    def __init__(self, folder: Path, rank: int, header: JournalHeader) -> None:
        self.folder = folder
        self.path = folder / f"rank-{rank:05d}.jsonl"
        self.header = cast(JournalHeader, {"version": FORMAT_VERSION, **header})
        self._file: IO[bytes] | None = None
        self._last_sync = self._last_line = time.monotonic()
        self._losses_unsynced = 0

    def read(self) -> list[list[JournalLine]]:
        """The whole lines of each rank's file that has the same header."""
        entries = []
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            lines = list(_read_whole_lines(path))
            if lines and lines[0] == self.header:
                # Every attempt at the round has appended a header of its own.
                entries.append([_decode(cast(_StoredLine, line)) for line in lines if "stage" in line])
        return entries

    def append(self, entry: JournalLine, losses_in_pass: int) -> None:
        """
        Writes the result of one forward.

        Args:
            losses_in_pass: Number of losses that the whole pass computes.

        Raises:
            OSError: the line could not be written; the message names the file.
        """
        if self._file is None:
            self._file = self._open()
        self._write(_encode(entry))
        self._losses_unsynced += len(entry.losses)
        is_due = time.monotonic() - self._last_sync >= SYNC_SECONDS
        if is_due or self._losses_unsynced >= SYNC_SHARE * losses_in_pass:
            # Until then the line is with the operating system, which keeps it when the process is killed.
            os.fsync(self._file.fileno())
            self._last_sync, self._losses_unsynced = time.monotonic(), 0

    def measure_seconds(self) -> float:
        """Time since the last call, or since the journal was made."""
        now = time.monotonic()
        passed, self._last_line = now - self._last_line, now
        return passed

    def close(self) -> None:
        """Flushes the file to the disk and closes it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def delete_file(self) -> None:
        """Deletes this rank's file, which rank 0 cannot do if it is on the disk of another machine."""
        delete(self.path)

    def delete_folder(self) -> None:
        """Deletes the journal of all ranks."""
        delete(self.folder)

    @staticmethod
    def read_headers(folder: Path) -> list[JournalHeader]:
        """The headers of the files in a journal's folder that have this format version."""
        firsts = (next(_read_whole_lines(path), None) for path in sorted(folder.glob("rank-*.jsonl")))
        found = [first for first in firsts if first is not None and first.get("version") == FORMAT_VERSION]
        return cast(list[JournalHeader], found)

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A file with another header is of another round, such as one with other weights: it is overwritten.
        is_own = self.path.is_file() and next(_read_whole_lines(self.path), None) == self.header
        # Without a buffer every line is one write to the operating system; a buffer would be lost with the process.
        file = self._file = open(self.path, "ab" if is_own else "wb", buffering=0)  # noqa: SIM115
        # If a crash has cut the last line, the next one must not become a part of it.
        file.write(b"\n")
        self._write(self.header)
        return file

    def _write(self, content: JsonObject) -> None:
        assert self._file is not None
        line = json.dumps({"crc32": _checksum(content), "content": content}).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: the journal could not be written", str(self.path)) from error
        # A file without a buffer may write less than it was given, when the disk is full.
        if written != len(line):
            raise OSError(
                f"The journal could not be written: the disk took {written} of {len(line)} bytes: {self.path}"
            )


def _checksum(content: JsonObject) -> int:
    # Of the content as JSON with sorted keys: it is computed again from what was read, whose keys may have any order.
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _read_whole_lines(path: Path) -> Iterator[JsonObject]:
    """The contents of the lines whose checksum is right."""
    broken = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                held = json.loads(line)
                content = held["content"]
                is_whole = held["crc32"] == _checksum(content)
            # A line that was cut is no JSON; a line that something else wrote may be JSON of another shape.
            except (ValueError, KeyError, TypeError):
                is_whole = False
            if is_whole:
                yield content
            else:
                broken += bool(line.strip())
    if broken:
        logger.info("%d broken line(s) of %s are left out.", broken, path)


def _encode(entry: JournalLine) -> _StoredLine:
    return {
        "stage": entry.stage,
        "kinds": entry.kinds.tolist(),
        "samples": entry.samples.tolist(),
        # JSON keeps every bit of a finite float64, and knows no NaN.
        "losses": [loss if np.isfinite(loss) else None for loss in entry.losses.tolist()],
        "tokens": entry.tokens,
        "seconds": round(entry.seconds, 6),
    }


def _decode(line: _StoredLine) -> JournalLine:
    losses = np.asarray([np.nan if loss is None else loss for loss in line["losses"]], dtype=np.float64)
    kinds, samples = np.asarray(line["kinds"], dtype=np.int64), np.asarray(line["samples"], dtype=np.int64)
    return JournalLine(line["stage"], kinds, samples, losses, int(line["tokens"]), float(line["seconds"]))
