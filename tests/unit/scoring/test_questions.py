import math

import pytest
import torch

from penchant.scoring.questions import QuestionPool, choose_question, information_gain, log_posterior

CERTAIN = 40.0


def pool_of(*prompts):
    texts = [(prompt, f"{prompt} {name}") for prompt in prompts for name in ("a", "b")]
    return QuestionPool(texts, torch.zeros(len(texts), 1))


def test_a_pair_that_splits_two_prototypes_tells_one_bit_and_one_that_all_agree_on_tells_none():
    margin = torch.tensor([[CERTAIN, -CERTAIN], [CERTAIN, CERTAIN], [0.0, 0.0]])
    assert information_gain(margin, torch.zeros(2)).tolist() == pytest.approx([1, 0, 0], abs=1e-9)


def test_gain_is_that_of_the_definition():
    margin, prior = torch.tensor([[0.3, -1.2, 2.0]]), torch.tensor([0.1, 0.5, -0.2])
    weight = torch.softmax(prior.double(), 0)
    first = torch.sigmoid(margin.double())[0]
    joint = torch.stack([weight * first, weight * (1 - first)])
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    expected = float((joint * (joint / independent).log2()).sum())
    assert information_gain(margin, prior).item() == pytest.approx(expected, abs=1e-9)


def test_more_answers_sharpen_the_posterior():
    one = torch.softmax(log_posterior(torch.tensor([[1.0, -1.0]])), 0)
    four = torch.softmax(log_posterior(torch.tensor([[1.0, -1.0]] * 4)), 0)
    assert four[0] > one[0] > 0.5


def test_the_telling_pair_is_asked_first_and_never_again():
    pool = pool_of("p", "q")
    score = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, -2.0], [-2.0, 2.0]])
    nothing = torch.zeros(0, 2)
    first = choose_question(pool, score, nothing, set())
    assert first is not None
    assert (first.prompt, {first.first, first.second}) == ("q", {"q a", "q b"})
    answered = {("q", frozenset(("q b", "q a")))}
    second = choose_question(pool, score, torch.tensor([[4.0, -4.0]]), answered)
    assert second is not None
    assert second.prompt == "p"
    assert second.bits == pytest.approx(0, abs=1e-6)
    assert choose_question(pool, score, nothing, answered | {("p", frozenset(("p a", "p b")))}) is None


def test_what_is_known_already_is_not_asked():
    pool = pool_of("known", "open")
    # The first pair tells prototypes {0, 1} from {2, 3}, the second 0 from 1.
    score = torch.tensor([[2.0, 2, -2, -2], [-2.0, -2, 2, 2], [1.5, -1.5, 0, 0], [-1.5, 1.5, 0, 0]])
    assert choose_question(pool, score, torch.zeros(0, 4), set()).prompt == "known"
    sure = torch.tensor([[CERTAIN, CERTAIN, -CERTAIN, -CERTAIN]])
    chosen = choose_question(pool, score, sure, set())
    assert chosen.prompt == "open"
    assert chosen.bits < 1
    assert not math.isnan(chosen.bits)


def test_the_same_text_twice_is_one_and_never_a_pair():
    texts = [("p", "a"), ("p", "a"), ("p", "b"), ("q", "a")]
    assert QuestionPool(texts, torch.zeros(4, 1)).pairs.tolist() == [[0, 2]]


def test_many_users_at_once_are_asked_as_each_alone():
    margin_QK, told_CUK = torch.randn(5, 4, generator=torch.manual_seed(0)), torch.randn(3, 2, 4)
    together = information_gain(margin_QK, log_posterior(told_CUK))
    for user in range(2):
        alone = information_gain(margin_QK, log_posterior(told_CUK[:, user]))
        assert together[user].tolist() == pytest.approx(alone.tolist(), abs=1e-12)
