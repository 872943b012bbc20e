"""Everything on disk, under `OUTPUT/miwv`. Nothing written is ever half written.

A file goes to a temporary name beside its own, is flushed to the disk and renamed; a round is a folder that appears
whole. What is read again carries a version and a fingerprint.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.storage.atomic import atomic_path, explain_write_errors, sync_folder, write_text

logger = logging.getLogger(__name__)
FORMAT_VERSION = 1
MISSING_BELOW_ZERO = ("exemplar", "age")
FOLDER = "miwv"
LOCK = "in-use.lock"
# Of this process: a lock ends with the object that holds it.
_claimed: dict[Path, BaseFileLock] = {}
SCORES = pa.schema(
    [
        ("index", pa.int64()),
        ("exemplar", pa.int64()),
        ("similarity", pa.float32()),
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("zero_shot_loss", pa.float32()),
        ("one_shot_loss", pa.float32()),
        ("miwv", pa.float32()),
        ("selected", pa.bool_()),
        ("score", pa.float32()),
        ("age", pa.int32()),
    ]
)


@dataclass(frozen=True)
class StoredRound:
    """
    A finished round as it lies on disk: `scores.parquet` and `round.json`.

    Args:
        was_there: Whether an earlier process finished it, so that it was not scored again.
    """

    number: int
    folder: Path
    scores: pa.Table
    summary: dict[str, Any]
    was_there: bool = False

    def column(self, name: str) -> np.ndarray:
        """One column of the scores as an array; nulls become NaN (or -1 in `exemplar` and `age`)."""
        column = self.scores[name]
        if name in MISSING_BELOW_ZERO:
            column = column.fill_null(-1)
        return column.to_numpy()

    @property
    def selection(self) -> np.ndarray:
        """Ascending indices of the selected samples."""
        return np.flatnonzero(self.column("selected"))


class Store:
    """The folder `OUTPUT/miwv` of one run."""

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = Path(output)
        self.folder = self.output / FOLDER
        self._exemplars_path = self.folder / "exemplars.parquet"
        self._embeddings_path = self.folder / "embeddings.safetensors"

    def round_folder(self, number: int) -> Path:
        return self.folder / f"round-{number:03d}"

    def claim(self) -> None:
        """
        Keeps other processes from writing to the folder, until it is released or this process ends, however it does.

        Raises:
            RuntimeError: another process has claimed it.
        """
        path = (self.folder / LOCK).resolve()
        if path in _claimed:
            return
        try:
            with explain_write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(timeout=0)
            _claimed[path] = lock
        except Timeout:
            raise RuntimeError(
                f"Another run is writing to {self.folder}. Wait until it has ended, or give another output folder."
            ) from None
        except NotImplementedError:
            logger.warning("%s is on a file system without locks: make sure that no other run uses it.", self.folder)

    def release(self) -> None:
        """Lets other processes write to the folder again."""
        lock = _claimed.pop((self.folder / LOCK).resolve(), None)
        if lock is not None:
            lock.release()

    def journal_folder(self, number: int) -> Path:
        """Where a running round notes what it has scored."""
        return self.folder / f".round-{number:03d}.journal"

    def rounds(self) -> list[int]:
        """Numbers of the finished rounds, ascending."""
        return sorted(_numbers(self.folder, "round-"))

    def write_round(self, number: int, columns: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> StoredRound:
        """Writes a round as a whole folder. A finished round of that number is an error."""
        folder = self.round_folder(number)
        if folder.exists():
            raise FileExistsError(f"{folder} exists already; finished rounds are never overwritten.")
        scores = _scores_table(columns)
        described = {"version": FORMAT_VERSION, **summary}
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with atomic_path(partial / "scores.parquet") as path:
                pq.write_table(scores, path)
            write_text(partial / "round.json", json.dumps(described, indent=2, allow_nan=False) + "\n")
            with explain_write_errors(folder):
                os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(self.folder)
        return StoredRound(number, folder, scores, described)

    def read_round(self, number: int, fingerprint: Mapping[str, Any] | None = None) -> StoredRound:
        """
        Reads a finished round.

        Raises:
            FileNotFoundError: there is none of that number.
            ValueError: it has another format version, or was made from something else than `fingerprint` says.
        """
        folder = self.round_folder(number)
        if not (folder / "round.json").is_file():
            found = ", ".join(map(str, self.rounds())) or "none"
            raise FileNotFoundError(f"There is no round {number} in {self.folder} (rounds there: {found}).")
        with _told(folder / "round.json"):
            summary = json.loads((folder / "round.json").read_text(encoding="utf-8"))
        check_version(folder, summary.get("version"))
        if fingerprint is not None:
            check_fingerprint(folder, summary["fingerprint"], fingerprint)
        with _told(folder / "scores.parquet"):
            scores = pq.read_table(folder / "scores.parquet", schema=SCORES, partitioning=None)
        return StoredRound(number, folder, scores, summary)

    def set_aside(self, first: int = 0) -> Path | None:
        """
        Moves rounds from number `first` on to a folder `previous-N`, so that a new run neither mixes with an older
        one nor loses it, and says so in the log. Returns that folder, or None where there was nothing to move.
        """
        aside = self._move_aside([self.round_folder(number) for number in self.rounds() if number >= first])
        if aside is not None:
            logger.warning("Rounds of an earlier run in %s were moved to %s.", self.folder, aside)
        return aside

    def _move_aside(self, paths: Sequence[Path]) -> Path | None:
        if not paths:
            return None
        taken = _numbers(self.folder, "previous-")
        target = self.folder / f"previous-{max(taken, default=-1) + 1}"
        target.mkdir()
        for path in paths:
            os.replace(path, target / path.name)
        return target

    def bring_back(self, aside: Path) -> bool:
        """Undoes that something was moved aside, unless something was written in its place. Returns whether it did."""
        if any((self.folder / path.name).exists() for path in aside.iterdir()):
            return False
        for path in aside.iterdir():
            os.replace(path, self.folder / path.name)
        aside.rmdir()
        return True

    def set_stale_aside(self, fingerprint: Mapping[str, Any] | None) -> Path | None:
        """
        Moves everything aside unless its exemplars and embeddings are what `fingerprint` says; None says they are not.
        """
        stored = [path for path in (self._exemplars_path, self._embeddings_path) if path.exists()]
        try:
            if fingerprint is not None:
                self.read_exemplars(fingerprint)
                if self._embeddings_path.exists():
                    # What they are made from is enough; the arrays themselves may be large.
                    with safe_open(self._embeddings_path, framework="numpy") as file:
                        _check_described(self._embeddings_path, file.metadata() or {}, fingerprint)
                return None
        except (ValueError, OSError, SafetensorError):
            pass
        return self._move_aside([*map(self.round_folder, self.rounds()), *stored])

    def write_exemplars(self, exemplars: np.ndarray, similarities: np.ndarray, fingerprint: Mapping[str, Any]) -> None:
        table = pa.table({"exemplar": exemplars, "similarity": similarities})
        described = {"version": str(FORMAT_VERSION), "fingerprint": json.dumps(fingerprint)}
        with atomic_path(self._exemplars_path) as path:
            pq.write_table(table.replace_schema_metadata(described), path)

    def read_exemplars(self, fingerprint: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """
        The exemplars found earlier, or None where there are none.

        Raises:
            ValueError: they have another format version, or belong to something else than `fingerprint` says.
        """
        path = self._exemplars_path
        if not path.is_file():
            return None
        with _told(path):
            table = pq.read_table(path, partitioning=None)
        described = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        _check_described(path, described, fingerprint)
        return table["exemplar"].to_numpy(), table["similarity"].to_numpy()

    def write_embeddings(self, embeddings: Embeddings, fingerprint: Mapping[str, Any]) -> None:
        """Dense ones as one array, sparse ones (tf-idf) as the three arrays of their CSR form."""
        if isinstance(embeddings, np.ndarray):
            arrays = {"embeddings": np.ascontiguousarray(embeddings)}
        else:
            shape = np.asarray(embeddings.shape)
            arrays = {"data": embeddings.data, "indices": embeddings.indices, "indptr": embeddings.indptr}
            arrays["shape"] = shape
        described = {"version": str(FORMAT_VERSION), "fingerprint": json.dumps(fingerprint)}
        with atomic_path(self._embeddings_path) as path:
            save_file(arrays, path, metadata=described)

    def read_embeddings(self, fingerprint: Mapping[str, Any]) -> Embeddings | None:
        """The embeddings computed earlier, or None. Raises like `read_exemplars`."""
        path = self._embeddings_path
        if not path.is_file():
            return None
        with _told(path), safe_open(path, framework="numpy") as file:
            _check_described(path, file.metadata() or {}, fingerprint)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "embeddings" in arrays:
            return arrays["embeddings"]
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        return scipy.sparse.csr_matrix(parts, shape=tuple(arrays["shape"]))


def read_rounds(output: str | os.PathLike[str]) -> list[StoredRound]:
    """
    Reads the finished rounds of a run, the first one first.

    Args:
        output: The folder that `miwv score --output` or the Trainer wrote to.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a round has another format version, or is damaged.
    """
    store = Store(output)
    numbers = store.rounds()
    if not numbers:
        raise FileNotFoundError(
            f"There are no scores in {store.folder}. Give the folder that `miwv score --output` or the Trainer wrote "
            "to."
        )
    return [store.read_round(number) for number in numbers]


def _numbers(folder: Path, prefix: str) -> list[int]:
    """The numbers behind a prefix among the names in a folder; other names are none of ours."""
    ends = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    return [int(end) for end in ends if end.isdigit()]


def check_version(path: Path, found: Any) -> None:
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {found!r}, but this miwv_trainer reads version {FORMAT_VERSION}. Use the "
            "version that wrote it, or a fresh output folder."
        )


def check_fingerprint(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises `ValueError` naming the first entry of `expected` that differs in `found`."""
    for name, value in expected.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} = {_shorten(found.get(name))}, but this run has {name} = "
                f"{_shorten(value)}. Use a fresh output folder, or the same values."
            )


def _shorten(value: Any) -> str:
    """A hash by its beginning."""
    shown = repr(value)
    return shown if len(shown) <= 40 or " " in shown else shown[:13] + "...'"


def _check_described(path: Path, described: Mapping[str, str], expected: Mapping[str, Any]) -> None:
    """Checks the version and fingerprint that a file holds as text beside its arrays."""
    version = described.get("version", "")
    check_version(path, int(version) if version.isdigit() else version)
    check_fingerprint(path, json.loads(described["fingerprint"]), expected)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says which file could not be read."""
    try:
        yield
    except (OSError, json.JSONDecodeError, pa.ArrowInvalid, SafetensorError) as error:
        raise ValueError(
            f"{path} could not be read, it is cut or damaged ({error}). Delete it or move it away, and what it held is "
            "computed again; or use a fresh output folder."
        ) from error


def _scores_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    arrays = []
    for entry in SCORES:
        values = columns[entry.name]
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
        if entry.name in MISSING_BELOW_ZERO:
            missing = values < 0
        arrays.append(pa.array(values, type=entry.type, mask=missing))
    return pa.Table.from_arrays(arrays, schema=SCORES)
