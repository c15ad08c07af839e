import pytest

from penchant.adapters.tasks.slices import ask_about_history, cut_history, fitted_history
from penchant.data.lamp import Item, LampData, LampUser, Query, find_task
from penchant.errors import ConfigError


def make_user(items=10, seen=(10, 10)):
    past = tuple(Item(f"i{at}", {"text": f"text {at}", "score": str(1 + at % 5)}) for at in range(items))
    return LampUser("ann", past, tuple(Query(f"q{at}", "", {"text": "new"}, "3", count) for at, count in enumerate(seen)))


def ids(user):
    return [item.id for item in user.items]


def test_adapters_are_fitted_on_what_came_before_every_query():
    assert ids(fitted_history(make_user(seen=(7, 9)))) == [f"i{at}" for at in range(7)]
    assert fitted_history(make_user(seen=(0, 9))).items == ()


def test_near_and_far_are_as_many_items_and_do_not_meet():
    user = make_user(seen=(8, 10))
    near, far = fitted_history(user, "near"), fitted_history(user, "far")
    assert ids(far) == ["i0", "i1", "i2", "i3"]
    assert ids(near) == ["i4", "i5", "i6", "i7"]
    assert [query.seen for query in near.queries] == [4, 4]


def test_queries_see_what_is_left_of_what_they_saw():
    cut = cut_history(make_user(seen=(2, 5, 10)), 3, 8)
    assert ids(cut) == ["i3", "i4", "i5", "i6", "i7"]
    assert [query.seen for query in cut.queries] == [0, 2, 5]


def test_the_latest_items_stand_in_for_queries_and_see_only_earlier_ones():
    task = find_task("3")
    data = ask_about_history(LampData(task, {"ann": make_user(seen=(9,))}, {}), 0.3)
    user = data.targets["ann"]
    assert ids(user) == [f"i{at}" for at in range(7)]
    assert [(query.id, query.gold, query.seen) for query in user.queries] == [("i7", "3", 7), ("i8", "4", 7)]
    assert user.queries[0].fields == {"text": "text 7"}


@pytest.mark.parametrize("task", ["1", "7"])
def test_where_items_are_not_what_is_asked_they_cannot_stand_in(task):
    fields = {"1": {"title": "a", "citation": "b"}, "7": {"text": "a"}}[task]
    user = LampUser("ann", tuple(Item(str(at), fields) for at in range(5)), ())
    with pytest.raises(ConfigError, match="are not what its questions ask"):
        ask_about_history(LampData(find_task(task), {"ann": user}, {}), 0.4)
