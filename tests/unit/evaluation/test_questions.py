import dataclasses

import numpy as np
import pytest
import torch

from penchant.data.answers import PlantedAnswers
from penchant.data.choices import TextComparison
from penchant.data.planted import PlantedWorld, tastes
from penchant.evaluation.evaluate import Evaluator
from penchant.evaluation.figures import question_curves
from penchant.evaluation.questions import Interview, answers_needed, compare_questions
from penchant.evaluation.report import question_sentence, write_report
from penchant.reward.config import HeadSettings
from penchant.scoring.model import PersonalisedRewardModel

FEW = {"answers": 5, "draws": 2, "resamples": 30}


@pytest.fixture
def evaluator(bundle, planted):
    folder, _, features = bundle
    return Evaluator(PersonalisedRewardModel.load(folder), planted[0], features)


@pytest.fixture
def answerer(planted):
    world = PlantedWorld(users=60, unseen_users=12, prompts=40, comparisons_per_user=12, seed=3)
    return PlantedAnswers(tastes(world), world.noise, planted[0])


class Recorder:
    """Answers by a rule, and keeps what was asked."""

    def __init__(self):
        self.asked = []

    def chooses_first(self, user_N, first_N, second_N, random):
        self.asked.append((first_N, second_N))
        return (user_N + first_N) % 2 == 0


def test_an_interview_asks_what_the_service_would_ask_and_embeds_as_it_does(evaluator, planted):
    """One user at a time through `next_question` and `embed_choices`: the same pairs, the same embeddings."""
    dataset, model, recorder = planted[0], evaluator.model, Recorder()
    users = np.flatnonzero(~dataset.seen)[:3]
    embeddings = list(Interview(evaluator, recorder, users).embeddings("chosen", 4, np.random.default_rng(0)))
    for number, user in enumerate(users):
        told = []
        for (first, second), embedding in zip(recorder.asked, embeddings, strict=True):
            question = model.next_question(told)
            pair = dataset.responses[first[number]], dataset.responses[second[number]]
            assert (question.first, question.second) == pair
            assert question.prompt == dataset.prompts[dataset.prompt_of_response[first[number]]]
            chosen, rejected = pair if (user + first[number]) % 2 == 0 else pair[::-1]
            told.append(TextComparison(question.prompt, chosen, rejected))
            expected = model.embed_choices({"she": told})["she"]
            assert torch.allclose(embedding[number], expected, atol=1e-5)


@pytest.mark.parametrize("way", ["chosen", "random"])
def test_no_pair_is_asked_twice_and_all_of_them_can_be(evaluator, planted, way):
    recorder = Recorder()
    interview = Interview(evaluator, recorder, np.flatnonzero(~planted[0].seen)[:2])
    pairs = len(interview.pairs)
    assert len(list(interview.embeddings(way, pairs + 5, np.random.default_rng(0)))) == pairs
    for user in range(2):
        assert len({(first[user], second[user]) for first, second in recorder.asked}) == pairs


def test_answers_needed_are_counted_to_the_first_that_reaches():
    gain = {
        "chosen": np.array([[0.1, 0.1, 0.5], [0.5, 0.1, 0.5], [0.4, 0.1, 0.5]]),
        "random": np.array([[0.0, 0.0, 0.5], [0.1, 0.2, 0.5], [0.4, 0.4, 0.5]]),
    }
    needed = answers_needed(gain, 0.95 * gain["random"][-1])
    assert {name: cell["value"] for name, cell in needed.items()} == {"chosen": 2, "random": 3, "saved": 1}
    # In the first resample the chosen ones never reach: that counts as one more than were asked.
    assert needed["chosen"] == {"value": 2, "low": 1, "high": 4}
    assert (needed["saved"]["low"], needed["saved"]["high"]) == (-1, 0)
    assert answers_needed(gain, np.array([0.0, 0.1, 0.1])) is None


def test_better_questions_save_answers_and_the_report_says_so(evaluator, answerer, planted, tmp_path):
    questions = compare_questions(evaluator, answerer, **FEW)
    assert questions["users"] == 12
    assert [point["answers"] for point in questions["points"]] == [1, 2, 3, 4, 5]
    judged = evaluator.judge(evaluator.users())
    uniform = ((margin := judged.margins["uniform"][~judged.seen]) > 0).mean() + 0.5 * (margin == 0).mean()
    assert questions["uniform"]["value"] == pytest.approx(uniform)
    for point in questions["points"]:
        assert point["difference"]["value"] == pytest.approx(point["chosen"]["value"] - point["random"]["value"])
        for cell in (point["chosen"], point["random"], point["difference"]):
            assert cell["low"] <= cell["value"] <= cell["high"]
    assert questions == compare_questions(evaluator, answerer, **FEW), "the seed fixes everything"
    metrics = {"questions": questions, "recovered": {}, "data": {}, "run": {}, "notes": []}
    write_report(tmp_path / "report.html", metrics, None)
    html = (tmp_path / "report.html").read_text()
    assert 'id="figure-questions"' in html
    assert question_sentence(metrics).split(":")[0] in html


def test_points_are_the_accuracy_of_those_embeddings_on_the_users_own_test_comparisons(evaluator, answerer, planted):
    dataset, draws = planted[0], 2
    questions = compare_questions(evaluator, answerer, answers=3, draws=draws, resamples=10, seed=4)
    users = np.flatnonzero(~dataset.seen)
    interview = Interview(evaluator, answerer, np.tile(users, draws))
    for number, way in enumerate(("chosen", "random")):
        for point, embedding in zip(
            questions["points"], interview.embeddings(way, 3, np.random.default_rng([4, number])), strict=True
        ):
            right = []
            for draw, user in enumerate(interview.user_V):
                test = dataset.select(split="test")
                test = test.take(test.user == user)
                own = embedding[draw].repeat(len(test), 1)
                table = evaluator.tables["personalised"]
                right.append((table.score(test.chosen, own) > table.score(test.rejected, own)).double().mean())
            assert point[way]["value"] == pytest.approx(float(torch.stack(right).mean()))


def test_without_texts_to_ask_about_or_a_head_that_sees_users_there_is_nothing(evaluator, answerer):
    manifest, parts = evaluator.model.manifest, evaluator.model.parts
    for without in ({"questions": None}, {"head_settings": HeadSettings(kind="linear")}):
        evaluator.model = PersonalisedRewardModel(manifest, dataclasses.replace(parts, **without))
        assert compare_questions(evaluator, answerer, **FEW) is None
    assert question_curves({}) is None
    assert question_sentence({}) is None


def sentence(chosen, random, saved):
    cells = {"chosen": chosen, "random": random, "saved": saved}
    needed = {name: dict(zip(("value", "low", "high"), cell, strict=True)) for name, cell in cells.items()}
    return question_sentence({"questions": {"answers": 16, "share": 0.95, "needed": needed}})


def test_sentence_says_what_the_interval_says():
    assert "needs 5 well-chosen answers [4, 6] or 14 random ones [12, 15]: 9 saved [7, 10]." in sentence(
        (5, 4, 6), (14, 12, 15), (9, 7, 10)
    )
    assert "more than 16 well-chosen answers" in sentence((17, 15, 17), (14, 12, 15), (-3, -5, -1))
    assert "no saving" in sentence((17, 15, 17), (14, 12, 15), (-3, -5, -1))
    assert "no saving" not in sentence((5, 4, 6), (14, 12, 15), (9, 7, 10))
    assert "nothing to reach" in question_sentence({"questions": {"answers": 16, "share": 0.95, "needed": None}})
