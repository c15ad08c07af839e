"""The reward for TRL's trainers, against a service that scores by a rule the tests know."""

import inspect
import math

import httpx
import pytest

from penchant.client import AsyncClient, Client, RequestError
from penchant.client.trl import BODY_BYTES, RESPONSES, chunks, plain, user_reward
from penchant.data.importers.trl import _plain
from penchant.errors import ConfigError, DataError
from penchant.runtime.serving import schemas
from penchant.runtime.serving.config import LimitSettings


class Service:
    """Scores a response by its length, ten times for Ben; knows nobody called Nemo."""

    def __init__(self):
        self.bodies = []
        self.client = Client("http://service.test", "penchant_key", transport=httpx.MockTransport(self._answer))

    def _answer(self, request):
        assert request.url.path == "/v1/score"
        assert len(request.content) <= 1_048_576
        body = schemas.ScoreBody.model_validate_json(request.content)
        self.bodies.append(body)
        if body.prompt == "refused":
            trouble = schemas.Trouble(type="invalid_request", message="No.", where="body.prompt", fix="Another.")
            return httpx.Response(422, json=schemas.Failure(error=trouble).model_dump())
        times = 10 if body.user == "ben" else 1
        items = [
            schemas.ScoreItem(index=number, score=times * len(text), uniform=0) for number, text in enumerate(body.responses)
        ]
        known = "unknown" if body.user == "nemo" else "seen"
        result = schemas.ScoreResult(user=body.user, personalisation=known, bundle="b", scores=items)
        return httpx.Response(200, json=result.model_dump())


@pytest.fixture
def service():
    return Service()


def said(content, role="assistant"):
    return [{"role": role, "content": content}]


def test_texts(service):
    reward = user_reward(service.client, "ana")
    rewards = reward(
        prompts=["p", "q", "p", "p"],
        completions=["a", "bbb", "cc", "a"],
        completion_ids=[[1], [2], [3], [1]],
        trainer_state=object(),
        log_metric=print,
    )
    assert rewards == [1.0, 3.0, 2.0, 1.0]
    assert [type(each) for each in rewards] == [float] * 4
    assert [(body.user, body.prompt, body.responses) for body in service.bodies] == [
        ("ana", "p", ["a", "cc"]),
        ("ana", "q", ["bbb"]),
    ], "one request for each prompt, and equal texts are sent once"


def test_conversations(service):
    system = {"role": "system", "content": "Be short."}
    prompts = [said("Why?", "user"), [system, *said("Why?", "user")]]
    tools = [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "tool", "name": "clock", "content": "noon"},
        {"role": "assistant", "content": "It is noon."},
    ]
    rewards = user_reward(service.client, "ana")(prompts=prompts, completions=[said("abcd"), tools])
    assert [(body.prompt, body.responses) for body in service.bodies] == [
        ("Why?", ["abcd"]),
        ("system: Be short.\n\nuser: Why?", ["tool: noon\n\nassistant: It is noon."]),
    ]
    assert rewards == [4.0, float(len("tool: noon\n\nassistant: It is noon."))]


@pytest.mark.parametrize(
    "text",
    [" blue.\n", said(" blue. "), [*said("Why? ", "user"), *said("So.")], [{"content": "a"}, {"role": "user", "content": "b"}]],
)
def test_texts_are_what_the_importer_makes_of_them(text):
    assert plain(text, "prompts") == _plain(text, "prompt", "row 0")


def test_parts_that_are_no_text_are_left_out():
    parts = [{"type": "image"}, {"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    assert plain(said(parts, "user"), "prompts") == "What is it?"
    assert plain("a\0b\ud800c", "completions") == "abc"


@pytest.mark.parametrize("text", [None, 7, ["a"], said(7), {"role": "user"}])
def test_other_forms_are_refused(service, text):
    with pytest.raises(DataError, match="TRL's formats"):
        user_reward(service.client, "ana")(prompts=["p"], completions=[text])
    assert service.bodies == []


def test_a_column_says_whose_reward(service):
    reward = user_reward(service.client, user_column="user")
    assert reward(prompts=["p"] * 4, completions=["a", "a", "bb", "bb"], user=["ana", "ben", "ben", "ana"]) == [1, 10, 20, 2]
    assert [(body.user, body.responses) for body in service.bodies] == [("ana", ["a", "bb"]), ("ben", ["a", "bb"])]


def test_a_column_says_what_the_service_sees(service):
    reward = user_reward(service.client, "ana", prompt_column="question")
    assert reward(prompts=["long p", "long q"], completions=["a", "bb"], question=["p", "p"]) == [1, 2]
    assert [(body.prompt, body.responses) for body in service.bodies] == [("p", ["a", "bb"])]


@pytest.mark.parametrize("columns", [{}, {"user": ["ana"]}])
def test_a_column_that_is_missing_or_short(service, columns):
    with pytest.raises(DataError, match="'user'"):
        user_reward(service.client, user_column="user")(prompts=["p", "p"], completions=["a", "b"], **columns)


def test_a_prompt_for_each_completion(service):
    with pytest.raises(DataError, match="1 prompts for 2"):
        user_reward(service.client, "ana")(prompts=["p"], completions=["a", "b"])


def test_many_completions_are_few_requests(service):
    completions = [f"{number:03}" + "x" * number for number in range(2 * RESPONSES + 1)]
    rewards = user_reward(service.client, "ana")(prompts=["p"] * len(completions), completions=completions)
    assert rewards == [float(len(text)) for text in completions]
    assert [len(body.responses) for body in service.bodies] == [RESPONSES, RESPONSES, 1]


def test_long_completions_stay_within_a_body(service):
    completions = [f"{number:03}" + "\N{CAT FACE}" * 15_000 for number in range(40)]
    rewards = user_reward(service.client, "ana")(prompts=["p"] * 40, completions=completions)
    assert rewards == [15_003.0] * 40
    assert sum(len(body.responses) for body in service.bodies) == 40
    assert len(service.bodies) == math.ceil(40 * 60_000 / BODY_BYTES)


def test_what_is_longer_than_the_service_takes_is_cut(service):
    limit = LimitSettings().text_characters
    prompt, long = "p" * (limit + 1), "\N{GRINNING FACE}" * (limit + 1)
    assert user_reward(service.client, "ana")(prompts=[prompt] * 2, completions=[long, "a"]) == [limit, 1]
    assert [body.prompt for body in service.bodies] == [prompt[:limit]]


def test_chunks_keep_the_order_and_take_what_is_too_long_alone():
    huge = "x" * (2 * BODY_BYTES)
    assert list(chunks("p", ["a", huge, "b"])) == [["a"], [huge], ["b"]]
    assert list(chunks("p", [])) == []


@pytest.mark.parametrize("blank", ["", " \n", "\0", [], said(""), said(None)])
def test_silence_never_pays(service, blank):
    rewards = user_reward(service.client, "ana")(prompts=["p", "p", "p", "q"], completions=["aaa", blank, "aa", blank])
    assert rewards[:3] == [3.0, 2.0, 2.0]
    assert math.isnan(rewards[3]), "there is nothing to compare it with"
    assert len(service.bodies) == 1


def test_nobody_trains_on_everybodys_scores_by_mistake(service):
    with pytest.raises(DataError, match="Nobody knows 'nemo'"):
        user_reward(service.client, "nemo")(prompts=["p"], completions=["a"])
    assert user_reward(service.client, "nemo", allow_unknown=True)(prompts=["p"], completions=["a"]) == [1.0]


def test_what_the_service_refuses_is_raised(service):
    with pytest.raises(RequestError):
        user_reward(service.client, "ana")(prompts=["refused"], completions=["a"])


def test_nothing_to_score(service):
    assert user_reward(service.client, "ana")(prompts=[], completions=[]) == []
    assert service.bodies == []


def test_trl_can_name_it_and_call_it(service):
    reward = user_reward(service.client, "team/ana b")
    assert reward.__name__ == "penchant_team_ana_b"
    assert user_reward(service.client, user_column="user").__name__ == "penchant_by_user"
    assert callable(reward)
    assert not inspect.iscoroutinefunction(reward)
    assert "penchant_key" not in repr(reward)


def test_one_user_or_a_column_and_a_client_that_waits(service):
    for options in ({}, {"user": "ana", "user_column": "user"}):
        with pytest.raises(ConfigError):
            user_reward(service.client, **options)
    with pytest.raises(ConfigError, match="AsyncClient"):
        user_reward(AsyncClient(key="penchant_key"), "ana")
