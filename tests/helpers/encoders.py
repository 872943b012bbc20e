"""A tiny sentence encoder, made on the spot as sentence-transformers saves one."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from tests.helpers.tiny import tiny_tokenizer


def save_encoder(folder: Path) -> str:
    """The folder of a random encoder of 16 dimensions. Its last bits depend on the batch, as a real one's do."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    config = BertConfig(
        vocab_size=512, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "transformer")
    tiny_tokenizer().save_pretrained(folder / "transformer")
    words = Transformer(str(folder / "transformer"), max_seq_length=64)
    SentenceTransformer(modules=[words, Pooling(16)]).save(str(folder / "encoder"))
    return str(folder / "encoder")
