"""The preamble is what stands before the first user turn of every sample, never words of their prompts."""

import pytest

from miwv_trainer.data.turn_markers import TurnMarkers
from tests.helpers.tokenized import ASSISTANT, BOS, CHAT_MARKERS, IDS, SYSTEM, USER, pool_of


def test_the_preamble_is_what_all_samples_show_before_the_first_user_turn():
    ids = [[BOS, SYSTEM, 50, USER, 60, ASSISTANT, 70], [BOS, SYSTEM, 50, USER, 61, ASSISTANT, 71]]
    pool = pool_of(ids, [[0] * 6 + [1]] * 2, CHAT_MARKERS)
    assert pool.preamble.tolist() == [BOS, SYSTEM, 50]
    assert pool.sample(1).tolist() == [USER, 61, ASSISTANT, 71]


def test_words_that_all_prompts_begin_with_stay_in_the_prompts():
    ids = [[BOS, USER, 60, 61, 62, ASSISTANT, 70], [BOS, USER, 60, 61, 63, ASSISTANT, 71]]
    pool = pool_of(ids, [[0] * 6 + [1]] * 2, CHAT_MARKERS)
    assert pool.preamble.tolist() == [BOS]
    assert pool.sample(0).tolist() == [USER, 60, 61, 62, ASSISTANT, 70]


def test_a_system_turn_that_one_sample_lacks_belongs_to_the_prompts_and_only_bos_is_shared():
    ids = [[BOS, SYSTEM, 50, USER, 60, 70], [BOS, USER, 61, 71], [BOS, SYSTEM, 50, USER, 62, 72]]
    pool = pool_of(ids, [[0] * 5 + [1], [0] * 3 + [1], [0] * 5 + [1]], CHAT_MARKERS)
    assert pool.preamble.tolist() == [BOS]
    assert [pool.sample(index).tolist() for index in range(3)] == [sample[1:] for sample in ids]


def test_system_turns_of_one_length_that_differ_belong_to_the_prompts():
    ids = [[BOS, SYSTEM, 50, USER, 60, 70], [BOS, SYSTEM, 51, USER, 61, 71]]
    pool = pool_of(ids, [[0] * 5 + [1]] * 2, CHAT_MARKERS)
    assert pool.preamble.tolist() == [BOS]
    assert pool.prompt(1).tolist() == [SYSTEM, 51, USER, 61]


def test_without_bos_system_turns_that_differ_leave_no_preamble():
    ids = [[SYSTEM, 50, USER, 60, 70], [SYSTEM, 51, USER, 61, 71]]
    pool = pool_of(ids, [[0] * 4 + [1]] * 2, TurnMarkers(user_header=(USER,)))
    assert pool.preamble.tolist() == []
    assert pool.sample(0).tolist() == ids[0]


def test_a_bos_token_that_one_sample_lacks_is_no_preamble():
    ids = [[BOS, 60, 70], [61, 71]]
    pool = pool_of(ids, [[0, 0, 1], [0, 1]], TurnMarkers(bos=BOS))
    assert pool.preamble.tolist() == []
    assert [pool.sample(0).tolist(), pool.sample(1).tolist()] == ids


def test_a_bos_token_that_opens_every_turn_is_not_taken_off_a_system_turn():
    turn_opener = BOS  # as in SmolLM2, whose BOS is <|im_start|>
    ids = [[turn_opener, SYSTEM, 50, turn_opener, USER, 60, 70], [turn_opener, SYSTEM, 51, turn_opener, USER, 61, 71]]
    pool = pool_of(ids, [[0] * 6 + [1]] * 2, TurnMarkers(user_header=(turn_opener, USER), bos=turn_opener))
    assert pool.preamble.tolist() == []
    assert pool.sample(1).tolist() == ids[1]


def test_a_bos_token_that_opens_every_turn_is_not_taken_off_where_no_template_is_known():
    turn_opener = BOS  # SmolLM2 again, in a Trainer without a tokenizer: the model's configuration names it BOS
    ids = [[turn_opener, USER, 60, turn_opener, ASSISTANT, 70], [turn_opener, USER, 61, turn_opener, ASSISTANT, 71]]
    pool = pool_of(ids, [[0] * 5 + [1]] * 2, TurnMarkers(bos=turn_opener))
    assert pool.sample(1).tolist() == ids[1]


def test_a_user_header_of_several_tokens_is_found_only_as_a_whole():
    ids = [[USER, 50, USER, 9, 60, 70], [USER, 50, USER, 9, 61, 71]]
    pool = pool_of(ids, [[0] * 5 + [1]] * 2, TurnMarkers(user_header=(USER, 9)))
    assert pool.preamble.tolist() == [USER, 50]


def test_a_user_header_inside_the_response_ends_no_preamble():
    ids = [[BOS, 60, USER, 70], [BOS, 60, USER, 71]]
    pool = pool_of(ids, [[0, 0, 1, 1]] * 2, CHAT_MARKERS)
    assert pool.preamble.tolist() == [BOS]


def test_a_pool_whose_labels_are_all_ignored_is_refused():
    with pytest.raises(ValueError, match="Not one sample of the pool has a response token: all labels are -100"):
        pool_of(IDS, [[0] * len(ids) for ids in IDS])


def test_a_pool_in_which_no_prompt_can_be_told_is_refused():
    words = "No prompt can be told from the response.*prompt/completion pairs or messages instead of plain text"
    with pytest.raises(ValueError, match=words):
        pool_of(IDS, [[1] * len(ids) for ids in IDS])


def test_one_sample_with_prompt_and_response_is_enough_to_keep_the_pool():
    pool = pool_of(IDS, [[1, 1, 1, 1], [0, 0], [0, 0, 0, 0, 1]])
    assert pool.has_prompt_and_response.tolist() == [False, False, True]
