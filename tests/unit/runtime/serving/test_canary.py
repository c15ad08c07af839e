"""Two bundles behind one service: who is answered by which, and what is counted of each."""

import asyncio

import pytest

from penchant.errors import DataError
from penchant.runtime.serving.engine import Knowledge, ScoreAnswer, ScoreRequest
from penchant.runtime.serving.handles import CanaryScorer
from penchant.runtime.serving.service import Busy, Unavailable


class Named:
    """Replicas that say who they are, or what ails them."""

    def __init__(self, bundle, trouble=None):
        self.bundle, self.trouble = bundle, trouble

    async def _answer(self):
        if self.trouble is not None:
            raise self.trouble
        return self.bundle

    async def score(self, request):
        return ScoreAnswer(await self._answer())

    async def onboard(self, before, choices, new):
        return await self._answer()

    async def question(self, user, choices):
        return await self._answer(), None

    async def place(self, known):
        return await self._answer()

    async def describe(self):
        return {"bundle": await self._answer()}


def answered_by(scorer, user):
    return asyncio.run(scorer.score(ScoreRequest(Knowledge(user), "prompt", ("response",)))).bundle


def test_a_share_of_the_users_always_the_same_ones_is_answered_by_the_canary():
    scorer = CanaryScorer(Named("old"), Named("new"), 0.2)
    users = [f"user-{number}" for number in range(2000)]
    tried = [user for user in users if answered_by(scorer, user) == "new"]
    assert 0.17 < len(tried) / len(users) < 0.23
    assert tried == [user for user in users if answered_by(CanaryScorer(Named("old"), Named("new"), 0.2), user) == "new"]
    # Who had the canary keeps it when it gets more users.
    more = CanaryScorer(Named("old"), Named("new"), 0.5)
    assert all(more.tries(user) for user in tried)


def test_every_question_about_a_user_goes_the_same_way_and_nobodys_to_the_old_bundle():
    scorer = CanaryScorer(Named("old"), Named("new"), 0.999999)
    known = Knowledge("ana")

    async def all_of_them():
        return [
            await scorer.onboard(known, [], 0),
            (await scorer.question("ana", []))[0],
            await scorer.place(known),
            (await scorer.describe())["bundle"],
        ]

    assert asyncio.run(all_of_them()) == ["new", "new", "new", "old"]
    assert answered_by(scorer, "") == "old"


def test_a_canary_that_is_gone_is_not_waited_for():
    class Gone(Named):
        async def score(self, request):
            await asyncio.Event().wait()

    assert answered_by(CanaryScorer(Named("old"), Gone("new"), 0.999999, patience=0.01), "ana") == "old"


@pytest.mark.parametrize("trouble", [Busy("full"), Unavailable("gone")])
def test_a_canary_that_cannot_answer_costs_nobody_an_answer(trouble):
    assert answered_by(CanaryScorer(Named("old"), Named("new", trouble), 0.999999), "ana") == "old"


def test_what_is_wrong_with_the_request_is_said_once():
    with pytest.raises(DataError, match="blank"):
        answered_by(CanaryScorer(Named("old"), Named("new", DataError("blank")), 0.999999), "ana")


def test_agreement_is_counted_by_bundle(running):
    choice = ("Explain tides.", "Step one: begin.", "Have a lovely day, dear reader.")
    bundle = running.choose("ana", choice).json()["bundle"]
    assert f'penchant_new_comparisons_total{{bundle="{bundle}"}} 1.0' in running.service.measures.text().decode()


def test_an_answer_says_what_the_model_took_and_the_batch_is_counted_once(running):
    texts = ("A text that no other test has.", "Another one of this test.")
    timing = running.score("ana", texts).headers["server-timing"]
    assert timing.startswith("model;dur=")
    assert float(timing.partition("=")[2]) > 0
    running.score("ana", texts)
    text = running.service.measures.text().decode()
    assert "penchant_batch_requests_count 2.0" in text
    # The second request asks for the same texts as the first: for what the heads make of them, and the first for features too.
    assert 'penchant_texts_total{found="remembered"} 2.0' in text
    assert 'penchant_texts_total{found="encoded"} 4.0' in text
