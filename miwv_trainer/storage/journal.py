"""What a running round has scored so far, so that a killed one goes on where it stopped.

One append-only JSON Lines file a rank, in a folder beside the rounds that is deleted when the round is written. Each
line carries a checksum; one that a crash has cut is left out, and its losses are scored again. The first line says what
the losses were made from; a file that says otherwise is not read.
"""

import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

logger = logging.getLogger(__name__)
FORMAT_VERSION = 2
SYNC_SECONDS = 30.0
SYNC_SHARE = 0.01


@dataclass(frozen=True)
class JournalLine:
    """
    What one forward gave.

    Args:
        stage: The pass over the pool that it belongs to.
        kinds: `(losses,)` which of the sample's losses, `ZERO_SHOT` or `ONE_SHOT`.
        samples: `(losses,)` the samples.
        losses: `(losses,)` float64, NaN where a loss is not finite.
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

    What a kill of the process leaves is everything written; what a loss of power leaves, everything up to 30 s or 1 %
    of the work before.

    Args:
        folder: Of the round's journal, the same for all ranks.
        rank: Whose file is written.
        header: What the losses depend on, as JSON holds it.
    """

    def __init__(self, folder: Path, rank: int, header: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / f"rank-{rank:05d}.jsonl"
        self.header = {"version": FORMAT_VERSION, **header}
        self._file: IO[bytes] | None = None
        self._synced = self._written = time.monotonic()
        self._losses_unsynced = 0

    def read(self) -> list[list[JournalLine]]:
        """Of each rank's file that was made from the same, what is whole."""
        entries = []
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            lines = list(_whole_lines(path))
            if lines and lines[0] == self.header:
                # Every further attempt repeats the header.
                entries.append([_entry(line) for line in lines if "stage" in line])
        return entries

    def append(self, entry: JournalLine, of_losses: int) -> None:
        """
        Writes what one forward gave.

        Args:
            of_losses: How many losses the whole pass makes.

        Raises:
            OSError: the line could not be written; the message names the file.
        """
        if self._file is None:
            self._file = self._open()
        self._write(_described(entry))
        self._losses_unsynced += len(entry.losses)
        is_due = time.monotonic() - self._synced >= SYNC_SECONDS
        if is_due or self._losses_unsynced >= SYNC_SHARE * of_losses:
            os.fsync(self._file.fileno())
            self._synced, self._losses_unsynced = time.monotonic(), 0

    def seconds(self) -> float:
        """Since the last line, or since the journal was opened."""
        now = time.monotonic()
        passed, self._written = now - self._written, now
        return passed

    def close(self) -> None:
        """Flushes the file to the disk and lets go of it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    @staticmethod
    def headers(folder: Path) -> list[dict[str, Any]]:
        """What the files in a journal's folder were made from, as far as they are of this format version."""
        firsts = (next(_whole_lines(path), None) for path in sorted(folder.glob("rank-*.jsonl")))
        return [first for first in firsts if first is not None and first.get("version") == FORMAT_VERSION]

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        is_own = self.path.is_file() and next(_whole_lines(self.path), None) == self.header
        file = self._file = open(self.path, "ab" if is_own else "wb", buffering=0)  # noqa: SIM115
        # A line that a crash has cut must not swallow the next one.
        file.write(b"\n")
        self._write(self.header)
        return file

    def _write(self, content: Mapping[str, Any]) -> None:
        assert self._file is not None
        line = json.dumps({"crc32": _checksum(content), "content": content}).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: the journal could not be written", str(self.path)) from error
        if written != len(line):
            raise OSError(
                f"The journal could not be written: the disk took {written} of {len(line)} bytes: {self.path}"
            )


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The contents of lines whose checksum is right."""
    broken = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                held = json.loads(line)
                content = held["content"]
                is_whole = held["crc32"] == _checksum(content)
            except (ValueError, KeyError, TypeError):
                is_whole = False
            if is_whole:
                yield content
            else:
                broken += bool(line.strip())
    if broken:
        logger.info("%d broken line(s) of %s are left out.", broken, path)


def _described(entry: JournalLine) -> dict[str, Any]:
    return {
        "stage": entry.stage,
        "kinds": entry.kinds.tolist(),
        "samples": entry.samples.tolist(),
        "losses": [loss if np.isfinite(loss) else None for loss in entry.losses.tolist()],
        "tokens": entry.tokens,
        "seconds": round(entry.seconds, 6),
    }


def _entry(line: Mapping[str, Any]) -> JournalLine:
    losses = np.asarray([np.nan if loss is None else loss for loss in line["losses"]], dtype=np.float64)
    kinds, samples = np.asarray(line["kinds"], dtype=np.int64), np.asarray(line["samples"], dtype=np.int64)
    return JournalLine(line["stage"], kinds, samples, losses, int(line["tokens"]), float(line["seconds"]))
