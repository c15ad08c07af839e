import numpy as np
import pytest

from penchant.data import PreferenceDataset
from penchant.data.changes import ChangeSettings, change_choices
from penchant.errors import DataError


def rows(dataset, split):
    """(user, prompt, chosen, rejected) of a split, in order."""
    table = dataset.tables()["comparisons"]
    columns = [table[name].to_pylist() for name in ("user_id", "prompt_id", "chosen_id", "rejected_id", "split")]
    return [row[:4] for row in zip(*columns, strict=True) if row[4] == split]


def learnt(dataset):
    """Rows that a model is trained on, or an unseen user onboarded from."""
    unseen = set(dataset.user_ids[~dataset.seen])
    return rows(dataset, "train") + [row for row in rows(dataset, "valid") if row[0] in unseen]


def changed(planted, **values):
    return change_choices(planted[0], ChangeSettings(**values), seed=1)


@pytest.mark.parametrize(
    "values",
    [{"keep": 3}, {"skew": 1.0}, {"flip": 0.3}, {"adversaries": 0.5}, {"drift": 0.5}],
    ids=lambda values: next(iter(values)),
)
def test_what_models_are_chosen_and_judged_by_is_untouched_and_the_same_seed_changes_the_same(planted, values):
    first, second = (changed(planted, **values) for _ in range(2))
    assert rows(first, "test") == rows(planted[0], "test")
    seen = set(planted[0].user_ids[planted[0].seen])
    kept, before = ([row for row in rows(dataset, "valid") if row[0] in seen] for dataset in (first, planted[0]))
    assert kept == before
    assert learnt(first) == learnt(second) != learnt(planted[0])


@pytest.mark.parametrize("values", [{"keep": 3}, {"skew": 1.0}, {"flip": 1.0}], ids=lambda values: next(iter(values)))
def test_unseen_users_are_onboarded_from_changed_choices_alone(planted, values):
    unseen = set(planted[0].user_ids[~planted[0].seen])
    before, after = (
        [row for row in rows(dataset, "valid") if row[0] in unseen] for dataset in (planted[0], changed(planted, **values))
    )
    assert before
    assert before != after


def test_nothing_changes_nothing(planted):
    assert change_choices(planted[0], ChangeSettings()) is planted[0]


def test_keeps_so_many_of_each_user(planted):
    counts = {}
    for user, *_ in learnt(changed(planted, keep=3)):
        counts[user] = counts.get(user, 0) + 1
    assert set(counts.values()) == {3}
    assert len(counts) == len(planted[0].user_ids)


def test_turns_so_many_choices_around(planted):
    before, after = learnt(planted[0]), learnt(changed(planted, flip=0.25))
    turned = [one != other for one, other in zip(before, after, strict=True)]
    assert sum(turned) == round(0.25 * len(before))
    assert all(one[2:] == other[:1:-1] for one, other, is_turned in zip(before, after, turned, strict=True) if is_turned)


def test_adversaries_are_accounts_that_turn_a_users_choices_around(planted):
    before, after = rows(planted[0], "train"), rows(changed(planted, adversaries=0.1), "train")
    added = after[len(before) :]
    assert after[: len(before)] == before
    assert len({row[0] for row in added}) == round(0.1 * planted[0].seen.sum())
    choices = {(prompt, rejected, chosen) for _, prompt, chosen, rejected in before}
    assert all(tuple(row[1:]) in choices for row in added)
    assert planted[0].user_ids.tolist() == changed(planted, adversaries=0.1).user_ids[: len(planted[0].user_ids)].tolist()


def test_skew_crowds_the_choices_on_few_prompts(planted):
    def most(skew):
        kept = learnt(changed(planted, skew=skew))
        assert len({row[0] for row in kept}) == len(planted[0].user_ids), "everybody keeps one"
        _, count = np.unique([row[1] for row in kept], return_counts=True)
        return len(kept), np.sort(count)[-5:].sum()

    even, crowded = most(0.0), most(3.0)
    assert even[0] == pytest.approx(len(learnt(planted[0])) / 2, rel=0.05)
    assert crowded[1] > 1.3 * even[1]


def test_drifted_users_have_choices_of_another_group_first(planted):
    dataset = planted[0]
    group = dict(zip(dataset.user_ids, dataset.group, strict=True))
    owner = {}
    for user, *choice in learnt(dataset):
        owner.setdefault(tuple(choice), set()).add(group[user])
    before, after = ({} for _ in range(2))
    for found, source in ((before, dataset), (after, changed(planted, drift=1.0))):
        for user, *choice in learnt(source):
            found.setdefault(user, []).append(tuple(choice))
    for user, own in after.items():
        half = len(before[user]) // 2
        assert own[-(len(before[user]) - half) :] == before[user][half:]
        new = [choice for choice in own if choice not in before[user]]
        assert new, user
        assert all(owner[choice] != {group[user]} for choice in new)


def test_drift_needs_groups(planted):
    tables = planted[0].tables()
    tables["users"] = tables["users"].drop_columns(["group"])
    with pytest.raises(DataError, match="groups are known"):
        change_choices(PreferenceDataset.from_tables(**tables), ChangeSettings(drift=0.5))
