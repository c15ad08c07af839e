import itertools

from hypothesis import given
from hypothesis import strategies as st

from penchant.data.lamp.histories import Item, oldest_first, seen_at
from penchant.data.lamp.schema import read_date

DATES = st.one_of(
    st.tuples(st.integers(2000, 2003)),
    st.tuples(st.integers(2000, 2003), st.integers(1, 3)),
    st.tuples(st.integers(2000, 2003), st.integers(1, 3), st.integers(1, 3)),
)


def items_of(dates):
    return [Item(str(number), {}, date) for number, date in enumerate(dates)]


@given(st.lists(DATES), DATES)
def test_nothing_of_the_day_or_later_is_seen(dates, asked):
    items = oldest_first(items_of(dates))
    for item in items[: seen_at(items, asked)]:
        common = min(len(item.date), len(asked))
        assert item.date[:common] < asked[:common]


@given(st.lists(st.tuples(st.integers(2000, 2003), st.integers(1, 12), st.integers(1, 28))), DATES)
def test_all_that_came_before_is_seen(dates, asked):
    items = oldest_first(items_of(dates))
    assert seen_at(items, asked) == sum(date[: len(asked)] < asked for date in dates)


@given(st.lists(DATES))
def test_order_is_by_date_and_otherwise_as_in_the_file(dates):
    items = oldest_first(items_of(dates))
    assert [item.date for item in items] == sorted(dates)
    for one, other in itertools.pairwise(items):
        assert one.date < other.date or int(one.id) < int(other.id)


def test_without_dates_the_order_of_the_file_is_the_order_of_time():
    items = items_of([(2003,), None, (2001,)])
    assert oldest_first(items) == tuple(items)
    assert seen_at(items, (2000,)) == 3


def test_dates_are_years_or_iso():
    assert read_date(2015) == (2015,)
    assert read_date("2015-03-09") == (2015, 3, 9)
    assert read_date("2015-03-09T10:20:30Z") == (2015, 3, 9, 10, 20, 30)
