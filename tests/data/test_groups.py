"""Groups are numbered by the texts of a column's values, in any kind of dataset."""

import datasets
import pytest

from miwv_trainer.data.groups import add_groups, number_groups
from tests.helpers.tokenized import IDS, MASKS, MapStyle, pool_of

ROWS = [{"topic": "sea", "year": 2024}, {"topic": "air", "year": "2024"}, {"topic": "sea", "year": 1999}]
KINDS = {"a list": list, "map-style": MapStyle}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_samples_with_the_same_text_in_a_column_are_one_group(make) -> None:
    topics, years = (number_groups(make(ROWS), column).tolist() for column in ("topic", "year"))
    assert topics == [1, 0, 1]
    assert years == [1, 1, 0]  # 2024 and "2024" are the same text


def test_a_dataset_of_columns_has_the_same_groups() -> None:
    dataset = datasets.Dataset.from_dict({"topic": [row["topic"] for row in ROWS]})
    assert number_groups(dataset, "topic").tolist() == [1, 0, 1]


def test_a_column_that_is_not_there_is_refused_with_those_that_are() -> None:
    words = "`group_column` is 'source', but the dataset has the columns topic, year. Give one of them"
    with pytest.raises(ValueError, match=words):
        number_groups(ROWS, "source")


def test_a_pool_gets_groups_only_if_a_column_is_asked_for() -> None:
    pool = pool_of(IDS, MASKS)
    assert add_groups(pool, ROWS, None) is pool
    assert add_groups(pool, ROWS, "topic").groups.tolist() == [1, 0, 1]
