"""TRL's fused head, which its SFTTrainer gives to a model."""

import pytest
from torch import nn

from miwv_trainer.compat import is_at_least


def add_fused_head(model: nn.Module) -> None:
    """Gives a model the fused head, or skips the test where the installed TRL has none that runs on a CPU."""
    pytest.importorskip("trl")
    if not is_at_least("trl", "1.16"):
        pytest.skip("before TRL 1.16 there is no fused head that runs without Triton")
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
