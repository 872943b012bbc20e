"""The output of a model's own forward, whatever it is packed in."""

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from miwv_trainer.scoring.root_forward import read_output

LOGITS = torch.zeros(1, 2, 3)


@pytest.mark.parametrize("output", [CausalLMOutput(logits=LOGITS), {"logits": LOGITS}, (LOGITS, "cache")])
def test_logits_are_found_by_name_or_as_the_first_of_a_tuple(output: object) -> None:
    assert read_output(output).logits is LOGITS


@pytest.mark.parametrize(
    ("output", "kind"), [({"scores": LOGITS}, "dict"), ((torch.tensor(0.5), LOGITS), "tuple"), (LOGITS, "Tensor")]
)
def test_an_output_without_logits_is_refused_with_what_to_return(output: object, kind: str) -> None:
    with pytest.raises(
        TypeError, match=rf"forward returned a {kind} without logits\. Return them as the entry `logits`"
    ):
        read_output(output)
