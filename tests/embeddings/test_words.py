"""tf-idf where words are not separated by spaces, and a look at what any embedder found."""

import logging
import re
from collections import Counter

import numpy as np
import pytest

from miwv_trainer.data.pool import NO_EXEMPLAR
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.exemplar_facts import ExemplarFacts, explain_degenerate, measure_exemplars
from miwv_trainer.embeddings.words import iterate_terms, needs_character_terms

TOPICS = {
    "Chinese": (["光合作用", "地震的成因", "机器学习", "通货膨胀"], "请解释{}的含义{}"),
    "Japanese": (["光合成の仕組み", "地震の原因", "きかいがくしゅう", "インフレ"], "{}について説明してください{}"),
    "Thai": (["การสังเคราะห์แสง", "แผ่นดินไหว", "การเรียนรู้ของเครื่อง", "เงินเฟ้อ"], "อธิบาย{}ให้หน่อย{}"),
    "Khmer": (["រស្មីសំយោគ", "រញ្ជួយដី", "ម៉ាស៊ីន", "អតិផរណា"], "ពន្យល់ពី{}{}"),
}


@pytest.mark.parametrize("language", TOPICS)
def test_samples_about_the_same_thing_are_most_similar_in_languages_without_spaces(language: str) -> None:
    topics, frame = TOPICS[language]
    texts = [frame.format(topic, number) for number in range(5) for topic in topics]
    cosines = (embed_texts("tfidf", texts) @ embed_texts("tfidf", texts).T).toarray()
    np.fill_diagonal(cosines, -1)
    nearest = cosines.argmax(axis=1)
    assert (nearest % len(topics) == np.arange(len(texts)) % len(topics)).all()
    assert cosines.max(axis=1).min() > 0.3


def test_terms_of_a_mixed_text_by_hand() -> None:
    assert Counter(iterate_terms("Use Python 3 写代码, 好 a is")) == Counter(
        ["use", "python", "写代", "代码", "好", "is"]
    )


def test_texts_of_languages_with_spaces_have_scikit_learns_own_terms(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["Explain the tides to a child", "Erkläre Ebbe und Flut", "조수를 설명해 주세요", "Объясни приливы"]
    assert not needs_character_terms(texts)
    from sklearn.feature_extraction.text import TfidfVectorizer

    with caplog.at_level(logging.INFO):
        found = embed_texts("tfidf", texts)
        expected = TfidfVectorizer(dtype=np.float32).fit_transform(texts)
        assert (found != expected).nnz == 0 and not caplog.messages
        embed_texts("tfidf", ["光合作用", "地震"])
    assert "pairs of characters as terms" in caplog.text


def test_facts_of_exemplars_by_hand() -> None:
    indices = np.array([1, 0, 0, NO_EXEMPLAR, 0])
    facts = measure_exemplars(indices, np.array([0.5, 0.5, 0.0, np.nan, 0.25], dtype=np.float32))
    assert facts == ExemplarFacts(4, 0.25, 0.75, 0, False)
    assert measure_exemplars(np.full(3, NO_EXEMPLAR), np.full(3, np.nan)) is None


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (ExemplarFacts(1000, 0.84, 0.837, 0, False), r"84% of the samples have no similarity.*84% .*same exemplar, 0"),
        (ExemplarFacts(50, 0.0, 0.02, 3, True), r"all samples are equally similar"),
        (ExemplarFacts(50, 0.0, 0.5, 3, False), r"50% of the samples have one and the same exemplar, 3"),
        (ExemplarFacts(50, 0.1, 0.2, 3, False), None),
        (ExemplarFacts(19, 1.0, 1.0, 3, True), None),  # of so few, a large share comes by chance
    ],
)
def test_exemplars_that_tell_little_are_said_with_figures_and_what_to_do(
    facts: ExemplarFacts, words: str | None
) -> None:
    warning = explain_degenerate(facts, "`embedder='tfidf'`")
    if words is None:
        assert warning is None
        return
    assert warning is not None and re.search(words, warning)
    assert "found by `embedder='tfidf'` tell little" in warning and "docs/retrieval.md" in warning
