"""Models by name: their dtype."""

from pathlib import Path

import pytest
import torch

from miwv_trainer import load_model
from tests.helpers.tiny import save_tiny, tiny_model


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`dtype` must be one of 'float32', 'bfloat16', but got 'int4'"):
        load_model(str(tmp_path), "int4")


@pytest.mark.parametrize(("given", "dtype"), [(None, "bfloat16"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_has_the_dtype_that_was_asked_for_else_the_one_it_was_saved_in(
    given: str | None, dtype: str, tmp_path: Path
) -> None:
    tiny_model().bfloat16().save_pretrained(save_tiny(tmp_path))
    model, tokenizer = load_model(str(tmp_path), given)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert tokenizer.chat_template is not None
