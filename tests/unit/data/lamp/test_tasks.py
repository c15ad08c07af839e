import pytest

from penchant.data.lamp import TASKS, find_task
from penchant.data.lamp.tasks import is_named
from penchant.errors import ConfigError

# Shaped as LaMP's own questions are, around texts of ours.
QUESTIONS = {
    "LaMP_1": (
        'For an author who has written the paper with the title "On "cold" glaciers", which reference is related? Just answer '
        'with [1] or [2] without explanation. [1]: "Ice, and how it "flows"" [2]: "Tides"',
        {"title": 'On "cold" glaciers', "first": 'Ice, and how it "flows"', "second": "Tides"},
    ),
    "LaMP_2N": ("Which category? categories: [travel, sports] article: A train. article: two", {"text": "A train. article: two"}),
    "LaMP_2M": ("Which tag? tags: [sci-fi, action] description: A crew\ndrifts.", {"description": "A crew\ndrifts."}),
    "LaMP_3": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further "
        "explanation. review: Good review: yes",
        {"text": "Good review: yes"},
    ),
    "LaMP_4": (
        "Generate a headline for the following article: Rain in Oslo: more",
        {"text": "Rain in Oslo: more"},
    ),
    "LaMP_5": ("Generate a title for the following abstract of a paper: We fold.", {"abstract": "We fold."}),
    "LaMP_7": (
        "Paraphrase the following tweet without any explanation before or after it: so: tired",
        {"original": "so: tired"},
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_question_is_read(name):
    text, fields = QUESTIONS[name]
    assert TASKS[name].read_question(text) == fields


@pytest.mark.parametrize("name", TASKS)
def test_a_question_of_another_kind_is_not(name):
    assert TASKS[name].read_question("What is the weather like today?") is None
    assert TASKS[name].read_question(QUESTIONS[name][0].split(next(iter(QUESTIONS[name][1].values())))[0] + "  ") is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("LaMP_3", "LaMP_3"),
        ("lamp-3", "LaMP_3"),
        ("2m", "LaMP_2M"),
        # The two that the published script could not run.
        ("product_rating", "LaMP_3"),
        ("tweet_paraphrase", "LaMP_7"),
        ("citation", "LaMP_1"),
        ("movie_tagging", "LaMP_2M"),
        ("news_categorize", "LaMP_2N"),
        ("news_headline", "LaMP_4"),
        ("scholarly_title", "LaMP_5"),
    ],
)
def test_a_task_has_several_names(spelling, name):
    assert find_task(spelling).name == name


def test_an_unknown_task_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'product_ratings'.*mean LaMP_3\?.*LaMP_2N \(news_categorize\)"):
        find_task("product_ratings")


def test_lamps_own_files_name_films_without_the_letter():
    assert is_named(TASKS["LaMP_2M"], "LaMP_2")
    assert is_named(TASKS["LaMP_2N"], "LaMP_2")
    assert not is_named(TASKS["LaMP_3"], "LaMP_2")
