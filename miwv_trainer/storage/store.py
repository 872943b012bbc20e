"""The folder `OUTPUT/miwv` of one run: its rounds, its exemplars and embeddings, and what earlier runs left there."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.storage import exemplar_files
from miwv_trainer.storage.atomic import atomic_folder, delete, move_into
from miwv_trainer.storage.lock import claim_folder, release_folder
from miwv_trainer.storage.provenance import JsonObject
from miwv_trainer.storage.stored_round import (
    SUMMARY_FILE,
    RoundSummary,
    StoredRound,
    add_version,
    read_round_files,
    write_round_files,
    write_summary,
)

logger = logging.getLogger(__name__)
FOLDER = "miwv"


class Store:
    """The folder `OUTPUT/miwv` of one run."""

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = Path(output)
        self.folder = self.output / FOLDER
        self._exemplars_path = self.folder / "exemplars.parquet"
        self._embeddings_path = self.folder / "embeddings.safetensors"

    def claim(self) -> None:
        """
        Locks the folder against other processes until it is released or this process ends, even by SIGKILL.

        Raises:
            RuntimeError: another process has claimed it.
        """
        claim_folder(self.folder)

    def release(self) -> None:
        """Lets other processes write to the folder again."""
        release_folder(self.folder)

    def round_folder(self, number: int) -> Path:
        """The folder of a finished round."""
        return self.folder / f"round-{number:03d}"

    def journal_folder(self, number: int) -> Path:
        """The folder in which a running round records what it has scored."""
        return self.folder / f".round-{number:03d}.journal"

    def delete_journal(self, number: int) -> None:
        """Deletes the journal of a round, if there is one."""
        delete(self.journal_folder(number))

    def list_rounds(self) -> list[int]:
        """Numbers of the finished rounds, ascending."""
        return sorted(_find_numbers(self.folder, "round-"))

    def write_round(self, number: int, columns: Mapping[str, np.ndarray], summary: RoundSummary) -> StoredRound:
        """
        Writes a round as a whole folder.

        Raises:
            FileExistsError: a round of that number is finished already.
        """
        folder = self.round_folder(number)
        if folder.exists():
            raise FileExistsError(f"{folder} exists already; finished rounds are never overwritten.")
        # The folder is claimed, so no other run is writing there now.
        for left_by_a_killed_run in self.folder.glob(f".{folder.name}.*partial"):
            delete(left_by_a_killed_run)
        described = add_version(summary)
        with atomic_folder(folder) as partial:
            scores = write_round_files(partial, columns, described)
        return StoredRound(number, folder, scores, described)

    def replace_summary(self, finished: StoredRound, summary: RoundSummary) -> StoredRound:
        """Writes another summary beside the scores of a finished round, and returns the round with it."""
        write_summary(finished.folder, summary)
        return replace(finished, summary=summary)

    def read_round(self, number: int, fingerprint: JsonObject | None = None) -> StoredRound:
        """
        Reads a finished round.

        Raises:
            FileNotFoundError: there is none of that number.
            ValueError: it is damaged, has another format version, or was made from something else than `fingerprint`.
        """
        folder = self.round_folder(number)
        if folder.is_dir() and not (folder / SUMMARY_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} lacks its {SUMMARY_FILE}, so that nothing tells what its scores were made from. Bring the "
                "file back, or move the folder away and score the pool again."
            )
        if not folder.is_dir():
            found = ", ".join(map(str, self.list_rounds())) or "none"
            raise FileNotFoundError(f"There is no round {number} in {self.folder} (rounds there: {found}).")
        return read_round_files(folder, number, fingerprint)

    def write_exemplars(self, exemplars: np.ndarray, similarities: np.ndarray, fingerprint: JsonObject) -> None:
        """Writes the index of each sample's exemplar (-1: none) and the cosine between the two, `(N,)` or `(N, m)`."""
        exemplar_files.write_exemplars(self._exemplars_path, exemplars, similarities, fingerprint)

    def read_exemplars(self, fingerprint: JsonObject) -> tuple[np.ndarray, np.ndarray] | None:
        """
        Reads `(N, m)` exemplars and similarities, or returns None if there are none.

        Raises:
            ValueError: they are damaged, have another format version, or were made from something else.
        """
        return exemplar_files.read_exemplars(self._exemplars_path, fingerprint)

    def write_embeddings(self, embeddings: Embeddings, fingerprint: JsonObject) -> None:
        """Writes `(N, d)` embeddings of the prompts, dense or sparse."""
        exemplar_files.write_embeddings(self._embeddings_path, embeddings, fingerprint)

    def read_embeddings(self, fingerprint: JsonObject) -> Embeddings | None:
        """Reads embeddings, or returns None if there are none. Raises like [`read_exemplars`]."""
        return exemplar_files.read_embeddings(self._embeddings_path, fingerprint)

    def archive_rounds(self, first: int = 0) -> Path | None:
        """
        Moves the rounds from number `first` on to a folder `previous-N`, and says so in the log.

        A new run then neither mixes with an older one nor loses it. Returns that folder, or None if there were none.
        """
        previous = self._archive([self.round_folder(number) for number in self.list_rounds() if number >= first])
        if previous is not None:
            logger.warning("Rounds of an earlier run in %s were moved to %s.", self.folder, previous)
        return previous

    def archive_stale(self, fingerprint: JsonObject | None) -> Path | None:
        """
        Moves all rounds, exemplars and embeddings to a folder `previous-N`, unless they were made from `fingerprint`.

        Args:
            fingerprint: None if nothing that is stored can be used, whatever it was made from.
        """
        stored = [path for path in (self._exemplars_path, self._embeddings_path) if path.exists()]
        try:
            if fingerprint is not None:
                self.read_exemplars(fingerprint)
                exemplar_files.check_embeddings(self._embeddings_path, fingerprint)
                return None
        except (ValueError, OSError, SafetensorError):
            # A file that cannot be read is as stale as one of another pool. It is moved, not deleted.
            pass
        return self._archive([*map(self.round_folder, self.list_rounds()), *stored])

    def restore_archived(self, previous: Path) -> bool:
        """
        Moves back what was moved to a folder `previous-N`, and deletes that folder.

        Does nothing and returns False if something was written in its place.
        """
        # A run that has written rounds of its own since then must not lose them to the older ones.
        paths = list(previous.iterdir())
        if any((self.folder / path.name).exists() for path in paths):
            return False
        move_into(self.folder, paths)
        delete(previous)
        return True

    def _archive(self, paths: Sequence[Path]) -> Path | None:
        if not paths:
            return None
        # The number after the highest, not the first free one: users delete folders, and numbers tell which is older.
        taken = _find_numbers(self.folder, "previous-")
        previous = self.folder / f"previous-{max(taken, default=-1) + 1}"
        move_into(previous, paths)
        return previous


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
    numbers = store.list_rounds()
    if not numbers:
        raise FileNotFoundError(
            f"There are no scores in {store.folder}. Give the folder that `miwv score --output` or the Trainer wrote "
            "to."
        )
    return [store.read_round(number) for number in numbers]


def _find_numbers(folder: Path, prefix: str) -> list[int]:
    """The numbers after a prefix in the names of a folder. Other names, such as `round-000-copy`, are ignored."""
    ends = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    return [int(end) for end in ends if end.isdigit()]
