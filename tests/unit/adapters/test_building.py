import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.adapters.profiles import TemplateProfiler
from penchant.adapters.retrieval import Bm25Retriever, DenseRetriever
from penchant.adapters.tasks.building import ExampleBuilder, horizon, make_builder
from penchant.adapters.tasks.config import PromptSettings
from penchant.data.lamp import TASKS, Item, LampUser, Query
from penchant.errors import ConfigError

RATING = TASKS["LaMP_3"]
VARIANTS = [
    PromptSettings(),
    PromptSettings(retrieved=1),
    PromptSettings(retrieved=2, history_fields=("score",)),
    PromptSettings(retrieved=4, profile="template"),
    PromptSettings(profile="template"),
]
REVIEWS = st.lists(
    st.tuples(st.lists(st.sampled_from(["tea", "wool", "tide"]), min_size=1, max_size=3).map(" ".join), st.sampled_from("12345")),
    max_size=9,
)


def builder_of(task, settings):
    return ExampleBuilder(task, settings, retriever=Bm25Retriever(), profiler=TemplateProfiler(task))


def user_of(reviews, *queries):
    items = tuple(Item(str(number), {"text": text, "score": stars}) for number, (text, stars) in enumerate(reviews))
    return LampUser("ann", items, tuple(queries))


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: f"k{settings.retrieved}-{settings.profile}")
@hypothesis.settings(max_examples=30, deadline=None)
@given(past=REVIEWS, future=REVIEWS)
def test_a_training_item_sees_only_what_came_before_it(settings, past, future):
    builder = builder_of(RATING, settings)
    whole, alone = builder.personal(user_of(past + future)), builder.personal(user_of(past))
    assert whole[: len(past)] == alone
    assert [example.target for example in whole] == [stars for _, stars in past + future]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: f"k{settings.retrieved}-{settings.profile}")
@hypothesis.settings(max_examples=30, deadline=None)
@given(past=REVIEWS, future=REVIEWS)
def test_a_query_sees_only_what_came_before_it(settings, past, future):
    builder = builder_of(RATING, settings)
    query = Query("q", "", {"text": "tea or wool"}, "5", len(past))
    assert builder.queries(user_of(past + future, query)) == builder.queries(user_of(past, query))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: f"k{settings.retrieved}-{settings.profile}")
def test_a_user_is_trained_on_their_own_items_alone(name, settings, planted_tasks):
    # The published script puts every earlier user's items into a user's training, and names adapters by loop position.
    data = planted_tasks[name]
    if settings.history_fields and name != "LaMP_3":
        settings = settings.model_copy(update={"history_fields": None})
    builder = builder_of(data.task, settings)
    together = builder.personal_of(data.targets)
    backwards = builder.personal_of(dict(reversed(data.targets.items())))
    assert set(together) == set(data.targets)
    for user_id, user in data.targets.items():
        assert together[user_id] == backwards[user_id] == builder.personal(user)
        assert len(together[user_id]) == len(user.items)
        own = {value for item in user.items for value in item.fields.values()}
        assert all(example.target in own for example in together[user_id])
        strangers = [item for other in data.targets.values() if other is not user for item in other.items]
        shown = "\n".join(example.prompt for example in together[user_id])
        said = {max(item.fields.values(), key=len) for item in strangers} - own
        assert said
        assert not any(text in shown for text in said)


@pytest.mark.parametrize("name", TASKS)
def test_all_seven_tasks_build_questions_in_every_variant(name, planted_tasks):
    # Two of the seven crash in the published script, on a misspelt name.
    data = planted_tasks[name]
    for settings in VARIANTS:
        if settings.history_fields:
            continue
        examples = builder_of(data.task, settings).queries_of(data.others)
        for user_id, user in data.others.items():
            for query, example in zip(user.queries, examples[user_id], strict=True):
                assert example.target == query.gold
                assert all(value in example.prompt for value in query.fields.values())
                lines = example.prompt.count("\n")
                bare = ExampleBuilder(data.task).queries(user)[user.queries.index(query)].prompt
                assert lines == bare.count("\n") + settings.retrieved + (settings.profile != "none")
                assert example.prompt.endswith(bare)


def test_retrieval_shows_what_fits_and_the_format_says_how():
    user = user_of(
        [("tea is warm", "5"), ("wool itches", "1"), ("tides turn", "3")], Query("q", "", {"text": "this wool itches me"}, "1", 3)
    )
    shown = builder_of(RATING, PromptSettings(retrieved=1)).queries(user)[0].prompt
    assert shown.startswith("review: wool itches stars: 1\nHow many stars")
    assert (
        builder_of(RATING, PromptSettings(retrieved=1, history_fields=("score",))).queries(user)[0].prompt.startswith("stars: ")
    )


def test_what_fits_best_stands_next_to_the_question():
    past = [("wool itches", "1"), ("warm wool, soft wool", "4"), ("tin rusts", "2")]
    user = user_of(past, Query("q", "", {"text": "soft wool"}, "4", 3))
    shown = builder_of(RATING, PromptSettings(retrieved=2)).queries(user)[0].prompt.split("\n")
    assert shown[:2] == ["review: wool itches stars: 1", "review: warm wool, soft wool stars: 4"]


def test_items_with_a_label_outside_the_tasks_are_not_trained_on():
    films = [Item(tag, {"description": f"A {tag} film", "tag": tag}) for tag in ("western", "comedy")]
    examples = ExampleBuilder(TASKS["LaMP_2M"]).personal(LampUser("ann", tuple(films), ()))
    assert [example.target for example in examples] == ["comedy"]


def test_profiles_are_of_a_power_of_two_of_items():
    assert [horizon(position) for position in (0, 1, 2, 3, 4, 7, 8, 1000)] == [0, 1, 2, 2, 4, 4, 8, 512]


class Counter:
    """A writer that numbers what it writes."""

    name = "counter"

    def __init__(self):
        self.calls = []

    def write(self, prompts):
        self.calls.append(len(prompts))
        return [f"profile of {prompt.count('stars:')} items" for prompt in prompts]

    def fits(self, prompt):
        return True


def test_profiles_of_all_users_are_written_at_once(planted_tasks, tmp_path):
    users, writer = planted_tasks["LaMP_3"].targets, Counter()
    builder = make_builder(RATING, PromptSettings(profile="written"), writer=writer, folder=tmp_path)
    examples = builder.personal_of(users)
    assert writer.calls == [9], "three users, of one, two and four items each"
    for user in users:
        heads = [example.prompt.partition("\n")[0] for example in examples[user]]
        assert heads[1:] == [f"profile of {count} items" for count in (1, 2, 2, 4, 4)]
        assert heads[0].startswith("How many stars")
    builder.queries_of(users)
    assert writer.calls == [9, 3]
    builder.personal_of(users)
    assert writer.calls == [9, 3]


def test_settings_say_what_a_builder_is_made_of(tmp_path):
    bare = make_builder(RATING, PromptSettings())
    assert (bare.retriever, bare.profiler) == (None, None)
    full = make_builder(RATING, PromptSettings(retrieved=2, retriever="dense", profile="template"))
    assert isinstance(full.retriever, DenseRetriever)
    assert isinstance(full.profiler, TemplateProfiler)
    assert isinstance(make_builder(RATING, PromptSettings(retrieved=1)).retriever, Bm25Retriever)
    with pytest.raises(ConfigError, match="nobody to write"):
        make_builder(RATING, PromptSettings(profile="written"))


def test_what_a_variant_needs_is_asked_for_at_once():
    with pytest.raises(ConfigError, match="no retriever"):
        ExampleBuilder(RATING, PromptSettings(retrieved=1))
    with pytest.raises(ConfigError, match="no profiler"):
        ExampleBuilder(RATING, PromptSettings(profile="template"))
    with pytest.raises(ConfigError, match="no field 'tag'"):
        ExampleBuilder(RATING, PromptSettings(history_fields=("tag",)))
