"""
Instructions through a sentence encoder, shared among the ranks.

The other texts of a batch change the last bits of a text's vector. So batches are composed over the whole pool, and
whole batches are dealt to the ranks: the vectors are the same on any number of ranks with the same hardware. The price
is one encoder in the memory of each rank.
"""

from collections.abc import Sequence

import numpy as np

from miwv_trainer.data.encoders import load_encoder
from miwv_trainer.distributed.sharding import load_models_whole
from miwv_trainer.distributed.turns import gather_rows, run_in_turns
from miwv_trainer.distributed.world import World

TEXTS_AT_ONCE = 32  # what sentence-transformers takes by default


def encode_sentences(name: str, alternatives: str, smaller: str, texts: Sequence[str], world: World) -> np.ndarray:
    """
    `(N, d)` float32 vectors of N texts, on every rank. All ranks call this together, with the same texts.

    Args:
        name, alternatives, smaller: As `load_encoder` takes them.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: the model cannot be loaded.
        RuntimeError: another rank failed; the message says which, and why.
    """
    # Under ZeRO-3 the encoder's weights would be split over the ranks, whose batches differ in number.
    with world.run_together("loading the embedder"), load_models_whole():
        # A rank on the CPU leaves the choice to sentence-transformers, as a model there says nothing about an encoder.
        device = None if world.device.type == "cpu" else str(world.device)
        encoder = load_encoder(name, alternatives, smaller, device)

    def encode(batch: np.ndarray) -> np.ndarray:
        chosen = [texts[index] for index in batch]
        vectors = encoder.encode(chosen, batch_size=len(chosen), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    return gather_rows(
        world, run_in_turns(world, compose_batches(texts), encode, "embedding the instructions"), len(texts)
    )


def compose_batches(texts: Sequence[str]) -> list[np.ndarray]:
    """The numbers of the texts of each batch. Texts of like length share one, which spares padding; longest first."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    return [order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE)]
