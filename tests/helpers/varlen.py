"""Variable-length attention by its definition, for devices on which torch has no kernel of it."""

import pytest
import torch

from miwv_trainer.scoring.varlen import KERNELS, VarlenKernel


def attend_by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` documents: `(tokens, heads, dim)`, causal from the bottom right."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and query.shape[-1] % 8 == 0
    assert enable_gqa == (query.shape[1] != key.shape[1]) and query.shape[-1] == key.shape[-1] == value.shape[-1]
    outputs = []
    ends = zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False)
    for q_start, q_end, k_start, k_end in ends:
        queries, keys = q_end - q_start, k_end - k_start
        assert 0 < queries <= max_q and queries <= keys <= max_k
        q, k, v = (
            each[start:end].transpose(0, 1)
            for each, start, end in ((query, q_start, q_end), (key, k_start, k_end), (value, k_start, k_end))
        )
        k, v = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=0) for each in (k, v))
        index = torch.arange(keys, device=query.device)
        distance = index[keys - queries :, None] - index
        left, right = window_size
        sees = (distance >= -right) & ((distance <= left) if left >= 0 else True)
        weights = (q @ k.transpose(1, 2) * scale).masked_fill(~sees, -torch.inf).softmax(dim=-1)
        outputs.append((weights @ v).transpose(0, 1))
    assert q_end == len(query) and k_end == len(key)
    return torch.cat(outputs)


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the CPU variable-length attention, so that models on it take trees that way."""
    dtypes = (torch.float32, torch.bfloat16)
    monkeypatch.setitem(KERNELS, "cpu", VarlenKernel(lambda: attend_by_definition, dtypes))
