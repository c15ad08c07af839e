import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.adapters.retrieval import Bm25Retriever, DenseRetriever
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor

WORDS = st.sampled_from(["tide", "yeast", "tea", "wool", "the", "and"])
TEXTS = st.lists(st.lists(WORDS, max_size=4).map(" ".join), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def dense(tiny_backbone):
    settings = BackboneSettings(name=tiny_backbone, pooling=("mean",), surface=False, prompt_characters=0, max_tokens=32)
    return DenseRetriever(FeatureExtractor(settings))


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, st.lists(WORDS, max_size=3).map(" ".join), st.sampled_from([0, 1, 2, 4]))
def test_bm25_finds_k_items_before_and_does_not_know_the_rest(past, future, query, k):
    whole, alone = (Bm25Retriever().rank(texts) for texts in (past + future, past))
    found = whole.top(query, before=len(past), k=k)
    assert found == alone.top(query, before=len(past), k=k)
    assert len(found) == len(set(found)) == min(k, len(past))
    assert all(position < len(past) for position in found)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.lists(WORDS, max_size=4).map(" ".join), st.data())
def test_bm25_is_what_a_library_says_of_the_items_before(texts, query, data):
    before = data.draw(st.integers(1, len(texts)))
    words, asked = (bm25s.tokenize(part, stopwords="en", return_ids=False, show_progress=False) for part in (texts, [query]))
    expected = np.zeros(before)
    if any(words[:before]):
        index = bm25s.BM25(method="lucene")
        index.index(words[:before], show_progress=False)
        known = [word for word in asked[0] if word in index.vocab_dict]
        if known:
            expected = index.get_scores(known)
    np.testing.assert_allclose(Bm25Retriever().rank(texts).scores(query, before), expected, rtol=1e-5, atol=1e-7)


def test_bm25_ranks_by_rare_words_and_then_by_time():
    texts = ["tea and bread", "tea and wool", "yeast rises", "nothing here", "tea and bread"]
    ranking = Bm25Retriever().rank(texts)
    assert ranking.top("How does yeast rise?", before=5, k=1) == [2]
    # "wool" is in one of three, "tea" in two: the item with both comes first, then the later of two alike.
    assert ranking.top("tea or wool", before=5, k=4)[:3] == [1, 4, 0]
    assert ranking.top("tea or wool", before=1, k=4) == [0]
    assert ranking.top("", before=3, k=2) == [2, 1], "with nothing to go by, the latest"
    assert Bm25Retriever().rank(["the", "and"]).top("the", before=2, k=2) == [1, 0], "nor with stop words alone"


def test_dense_finds_the_same_text_first(dense):
    texts = ["tea", "yeast rises slowly", "wool and tea", "lighthouses"]
    ranking = dense.rank(texts)
    for position, text in enumerate(texts):
        assert ranking.top(text, before=4, k=1) == [position]
    assert len(ranking.top("tea", before=2, k=4)) == 2
    assert 3 not in ranking.top("lighthouses", before=3, k=3)
    assert ranking.top("tea", before=0, k=2) == ranking.top("tea", before=4, k=0) == []


@settings(max_examples=10, deadline=None)
@given(past=TEXTS, future=TEXTS)
def test_dense_does_not_know_the_rest(dense, past, future):
    whole, alone = (dense.rank(texts).top("tea", before=len(past), k=2) for texts in (past + future, past))
    assert [past[position] for position in whole] == [past[position] for position in alone]


def test_dense_reads_each_text_once(dense, monkeypatch):
    asked = []
    features = dense.extractor.features
    monkeypatch.setattr(dense.extractor, "features", lambda texts: asked.append(len(texts)) or features(texts))
    dense.prepare(["one text", "another text", "one text"])
    dense.rank(["one text", "another text"]).top("one text", before=2, k=1)
    assert asked == [2]
