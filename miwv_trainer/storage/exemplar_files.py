"""Exemplars and embeddings on disk. They are found once in a run and read in every later round and process."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
from safetensors import safe_open
from safetensors.numpy import save_file

from miwv_trainer.data.pool import rank_columns
from miwv_trainer.embeddings.vectors import Embeddings
from miwv_trainer.storage.atomic import atomic_path
from miwv_trainer.storage.provenance import JsonObject, check_description, describe, explain_read_errors


def write_exemplars(path: Path, exemplars: np.ndarray, similarities: np.ndarray, fingerprint: JsonObject) -> None:
    """
    Writes a Parquet file: `(N,)` index of each sample's exemplar (-1: none) and `(N,)` cosine between the two, or
    `(N, m)` of its nearest ones, a column for each rank.
    """
    columns: dict[str, np.ndarray] = {}
    pairs = zip(rank_columns(exemplars).T, rank_columns(similarities).T, strict=True)
    for rank, (indices, cosines) in enumerate(pairs):
        columns |= {_name("exemplar", rank): indices, _name("similarity", rank): cosines}
    table = pa.table(columns)
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(describe(fingerprint)), temporary)


def _name(column: str, rank: int) -> str:
    return column if rank == 0 else f"{column}_{rank + 1}"


def read_exemplars(path: Path, fingerprint: JsonObject) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Reads `(N, m)` exemplars and similarities, or returns None if there is no file.

    Raises:
        ValueError: it is damaged, has another format version, or was made from something else than `fingerprint`.
    """
    if not path.is_file():
        return None
    # `partitioning=None`: a folder named `seed=1` on the way would add a column.
    with explain_read_errors(path):
        table = pq.read_table(path, partitioning=None)
    described = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    check_description(path, described, fingerprint)
    ranks = range(table.num_columns // 2)
    exemplars, similarities = (
        np.column_stack([table[_name(column, rank)].to_numpy() for rank in ranks])
        for column in ("exemplar", "similarity")
    )
    return exemplars, similarities


def write_embeddings(path: Path, embeddings: Embeddings, fingerprint: JsonObject) -> None:
    """Writes a safetensors file: dense embeddings as one array, sparse ones (tf-idf) as those of their CSR form."""
    if isinstance(embeddings, np.ndarray):
        # safetensors stores the memory of an array, which for a view is not in the order of its values.
        arrays = {"embeddings": np.ascontiguousarray(embeddings)}
    else:
        arrays = {"data": embeddings.data, "indices": embeddings.indices, "indptr": embeddings.indptr}
        arrays["shape"] = np.asarray(embeddings.shape)
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata=describe(fingerprint))


def read_embeddings(path: Path, fingerprint: JsonObject) -> Embeddings | None:
    """Reads embeddings, or returns None if there is no file. Raises like [`read_exemplars`]."""
    if not path.is_file():
        return None
    with explain_read_errors(path), safe_open(path, framework="numpy") as file:
        check_description(path, file.metadata() or {}, fingerprint)
        # The handle is no mapping: it has `keys` and cannot be iterated over.
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "embeddings" in arrays:
        return arrays["embeddings"]
    parts = (arrays["data"], arrays["indices"], arrays["indptr"])
    return scipy.sparse.csr_matrix(parts, shape=tuple(arrays["shape"]))


def check_embeddings(path: Path, fingerprint: JsonObject) -> None:
    """Raises like [`read_embeddings`] without reading the arrays, which may take gigabytes."""
    if path.exists():
        with safe_open(path, framework="numpy") as file:
            check_description(path, file.metadata() or {}, fingerprint)
