import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.adapters.tasks.baselines import majority, mean_rating
from penchant.adapters.tasks.config import PromptSettings
from penchant.adapters.tasks.metrics import per_query, score
from penchant.adapters.tasks.outputs import read_output
from penchant.adapters.tasks.prompts import PROMPTS
from penchant.data.lamp import TASKS, Item, LampUser, Query
from penchant.errors import ConfigError

OUTPUTS = [
    ("LaMP_1", " [2]", "[2]"),
    ("LaMP_1", "Reference 1, I think", "[1]"),
    ("LaMP_1", "neither of the 12", "neither of the 12"),
    ("LaMP_2M", "Dark Comedy.", "dark comedy"),
    ("LaMP_2M", "It is a comedy, not a dark comedy", "comedy"),
    ("LaMP_2M", "tag: sci-fi\nThe crew drifts", "sci-fi"),
    ("LaMP_2M", "actionable", "actionable"),
    ("LaMP_2N", "Food & Drink", "food & drink"),
    ("LaMP_3", "4", "4"),
    ("LaMP_3", "I would say 4.5 stars", "4.5"),
    ("LaMP_3", "score: 2/5", "2"),
    ("LaMP_3", "10", "10"),
    ("LaMP_3", "great", "great"),
    ("LaMP_4", '\nHeadline: "Rain, again"\nIt rained.', "Rain, again"),
    ("LaMP_5", "On 'cold' glaciers", "On 'cold' glaciers"),
    ("LaMP_7", "", ""),
]


@pytest.mark.parametrize(("task", "text", "answer"), OUTPUTS)
def test_an_output_is_read(task, text, answer):
    assert read_output(TASKS[task], text) == answer


@settings(deadline=None)
@given(st.sampled_from(["LaMP_1", "LaMP_2N", "LaMP_2M", "LaMP_3"]), st.data())
def test_every_label_means_itself(task, data):
    label = data.draw(st.sampled_from(TASKS[task].labels))
    around = data.draw(st.sampled_from(["{}", " {}\n", "The answer is {}.", "{} because I say so"]))
    assert read_output(TASKS[task], around.format(label)) == label


def test_accuracy_and_macro_f1_as_lamp_counts_them():
    task = TASKS["LaMP_1"]
    golds = ["[1]", "[1]", "[1]", "[2]"]
    scores = score(task, ["[1]", "[1]", "[2]", "none of them"], golds)
    assert scores["accuracy"] == 0.5
    # [1]: precision 1, recall 2/3; [2]: precision 0, recall 0.
    assert scores["macro_f1"] == pytest.approx((2 * (2 / 3) / (1 + 2 / 3) + 0) / 2)
    # Over all 15 tags: a perfect answer to two of them reaches 2/15.
    perfect = score(TASKS["LaMP_2M"], ["comedy", "action"], ["comedy", "action"])
    assert perfect == {"accuracy": 1.0, "macro_f1": pytest.approx(2 / 15)}


@pytest.mark.parametrize(
    ("output", "error"), [("nan", 4), ("inf", 4), ("-inf", 4), ("1" * 400, 4), ("7", 2), ("0", 5), ("12", 7)]
)
def test_a_rating_is_finite_or_the_worst(output, error):
    assert score(TASKS["LaMP_3"], [output], ["5"])["mae"] == error


def test_mae_and_rmse_with_what_is_no_number_as_wrong_as_can_be():
    task = TASKS["LaMP_3"]
    scores = score(task, ["5", "3", "no idea", "no idea"], ["4", "3", "1", "4"])
    assert scores["mae"] == pytest.approx((1 + 0 + 4 + 3) / 4)
    assert scores["rmse"] == pytest.approx(np.sqrt((1 + 0 + 16 + 9) / 4))
    assert per_query(task, ["5"], ["4"])["absolute_error"].tolist() == [1.0]


def test_rouge_is_the_f_measure_without_stemming():
    scores = score(TASKS["LaMP_4"], ["the cat sat", "Rains!"], ["the sat cat down", "rain"])
    # Three of three words and three of four; two in order. "rains" is not "rain".
    one, longest = 2 * 1 * 0.75 / 1.75, 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5)
    assert scores["rouge_1"] == pytest.approx(one / 2)
    assert scores["rouge_l"] == pytest.approx(longest / 2)


@pytest.mark.parametrize(("outputs", "golds"), [(["1"], []), ([], []), (["1"], ["1", "2"])])
def test_scores_want_an_output_for_each_answer(outputs, golds):
    with pytest.raises(ValueError, match="as many"):
        score(TASKS["LaMP_3"], outputs, golds)


FIELDS = {
    "LaMP_1": {"title": "Own paper", "abstract": "Own abstract", "citation": "Cited paper"},
    "LaMP_2N": {"text": "Article text", "title": "Headline", "category": "travel"},
    "LaMP_2M": {"description": "Film text", "tag": "comedy"},
    "LaMP_3": {"text": "Review text", "score": "4"},
    "LaMP_4": {"text": "Article text", "title": "Headline"},
    "LaMP_5": {"abstract": "Abstract text", "title": "Paper title"},
    "LaMP_7": {"text": "Tweet text"},
}
QUERY = {"title": "Asked paper", "first": "Option one", "second": "Option two", "original": "Plain text"}


@pytest.mark.parametrize("name", TASKS)
def test_a_past_item_is_asked_in_the_words_of_a_question(name):
    prompts, item = PROMPTS[name], Item("i", FIELDS[name])
    target = item.fields[prompts.item_target(item)]
    asked = prompts.item_question(item, max_words=100)
    # The labels stand in the instruction, which is one line.
    assert target not in asked.partition("\n")[2]
    assert asked.endswith(":")
    if name not in ("LaMP_1", "LaMP_7"):
        query = Query("q", "", {field: item.fields[field] for field in prompts.subject}, target, 0)
        assert prompts.question(query, max_words=100) == asked
        assert all(item.fields[field] in asked for field in prompts.subject)


@pytest.mark.parametrize("name", TASKS)
def test_a_question_shows_all_that_it_is_about(name):
    # The published prompt of LaMP_1 leaves the two options out.
    prompts = PROMPTS[name]
    fields = {field: (QUERY | FIELDS[name])[field] for field in prompts.subject} | (QUERY if name == "LaMP_1" else {})
    asked = prompts.question(Query("q", "", fields, "", 0), max_words=100)
    assert all(fields[field] in asked for field in prompts.subject)
    assert asked.count("Option") == (2 if name == "LaMP_1" else 0)
    assert set(TASKS[name].question.groupindex) == set(prompts.subject), "what is read out of a question is what is shown"


def test_lamps_own_papers_teach_titles_where_no_citation_is_told():
    prompts, item = PROMPTS["LaMP_1"], Item("i", {"title": "Own paper", "abstract": "Own abstract"})
    assert prompts.item_target(item) == "title"
    asked = prompts.item_question(item, max_words=100)
    assert "Own abstract" in asked
    assert "Own paper" not in asked
    assert "cite" not in asked


def test_what_of_an_item_is_shown_is_a_parameter():
    prompts, item = PROMPTS["LaMP_2N"], Item("i", FIELDS["LaMP_2N"])
    assert prompts.shown(item, fields=None, max_words=100) == "article: Article text category: travel"
    assert prompts.shown(item, fields=("category",), max_words=100) == "category: travel"
    assert prompts.shown(item, fields=("title", "text"), max_words=1) == "headline: Headline article: Article"
    prompts.check_fields(("title", "text"))
    with pytest.raises(ConfigError, match=r"LaMP_2N have no field 'tag'. They have: text, title, category"):
        prompts.check_fields(("text", "tag"))


def test_the_commonest_answer_is_of_the_items_before():
    items = tuple(Item(str(number), {"text": "t", "score": stars}) for number, stars in enumerate("5544333"))
    queries = tuple(Query(f"q{seen}", "", {}, "1", seen) for seen in (0, 2, 4, 7))
    user = LampUser("ann", items, queries)
    assert majority(TASKS["LaMP_3"], user) == ["", "5", "4", "3"]
    assert majority(TASKS["LaMP_4"], user) is None


def test_mean_stars_are_of_the_items_before():
    items = tuple(Item(str(at), {"text": "tea", "score": stars}) for at, stars in enumerate("1525"))
    user = LampUser("ann", items, tuple(Query(str(seen), "", {"text": "new"}, "3", seen) for seen in (0, 2, 4)))
    assert mean_rating(TASKS["LaMP_3"], user) == ["3", "3.000", "3.250"]
    assert mean_rating(TASKS["LaMP_2M"], user) is None


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "plain"),
        ({"retriever": "dense"}, "plain"),
        ({"retrieved": 2}, "bm25-2"),
        ({"retrieved": 1, "retriever": "dense", "profile": "template"}, "dense-1-template"),
        ({"retrieved": 1, "history_fields": ("text", "score")}, "bm25-1-text+score"),
    ],
)
def test_formats_have_names(values, name):
    assert PromptSettings(**values).name == name
