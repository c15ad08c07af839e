import pytest
import torch

from penchant.adapters.answering import PersonalModel
from penchant.adapters.applying import AdapterPool
from penchant.adapters.asking import NOBODY, answering_adapters, ask, median_stars, wrong_users
from penchant.adapters.bases import base_fingerprint
from penchant.adapters.cards import Card
from penchant.adapters.config import AnswerSettings
from penchant.adapters.examples import Example
from penchant.adapters.store import AdapterStore
from penchant.data.lamp import find_task


def test_the_median_errs_least():
    probability = torch.tensor([[0.3, 0.1, 0.1, 0.2, 0.3], [0.6, 0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.1, 0.9]])
    assert median_stars(probability, [1, 2, 3, 4, 5]) == ["3", "1", "5"]
    assert median_stars(probability.flip(1), [5, 4, 3, 2, 1]) == ["3", "1", "5"], "whatever the order of the labels"


@pytest.mark.parametrize("count", [2, 3, 17])
def test_nobody_is_their_own_wrong_user_and_each_is_somebodys(count):
    users = [f"user {number}" for number in range(count)]
    wrong = wrong_users(users, seed=1)
    assert sorted(wrong) == sorted(wrong.values()) == sorted(users)
    assert all(user != other for user, other in wrong.items())
    assert wrong == wrong_users(users, seed=1)


def test_a_single_user_has_no_wrong_one():
    assert wrong_users(["ann"], seed=0) == {}
    own = {"ann": "ann", "bob": "bob"}
    assert answering_adapters("oppu", ["ann", "bob"], ["ann"], seed=0) == {"oppu": own}
    assert answering_adapters("oppu", ["ann", "bob", "carl"], ["ann", "bob"], seed=0) == {
        "oppu": own | {"carl": "carl"},
        "oppu, wrong user": {"ann": "bob", "bob": "ann", "carl": NOBODY},
    }


def test_each_query_goes_through_the_adapter_that_is_named(tiny, label_base, tmp_path):
    base, tokenizer = label_base
    fitter = tiny.make_fitter(base, tokenizer, epochs=60)
    task, settings = find_task("LaMP_2M"), AnswerSettings(rows_at_once=3)
    store = AdapterStore.create(
        tmp_path, fingerprint=base_fingerprint(base), config=fitter.model.config, shapes=fitter.model.shapes
    )
    prompts = [example.prompt for example in tiny.make_examples("label", 5)]
    habits = {"ann": "low", "bob": "high"}
    users = {user: [Example(prompt, label) for prompt in prompts] for user, label in habits.items()}
    for fitted in fitter.fit(users):
        store.put(Card(user=fitted.user, base=store.fingerprint), fitted.tensors)
    pool = AdapterPool(fitter.model, store)
    model = PersonalModel(pool, fitter.reader)

    def answers(whose):
        return ask(model, task, users, whose, settings)

    assert answers({"ann": "ann", "bob": "bob"}) == {"ann": ["low"] * 5, "bob": ["high"] * 5}
    assert answers({"ann": "bob", "bob": "ann"}) == {"ann": ["high"] * 5, "bob": ["low"] * 5}
    nobody = answers({"ann": NOBODY, "bob": NOBODY})
    assert nobody["ann"] == nobody["bob"] == model.choose(["stranger"] * 5, prompts).texts
    pool.close()
