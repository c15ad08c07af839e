import pytest
import torch

from penchant.reward.config import HeadSettings
from penchant.reward.heads import make_head


def head(kind="two_term", user_dim=4):
    torch.manual_seed(0)
    made = make_head(HeadSettings(kind=kind, hidden=8), feature_dim=6, user_dim=user_dim).eval()
    made.standardise.fit(torch.randn(50, 6))
    return made


def test_two_terms_are_the_formula():
    made, features, user = head(), torch.randn(5, 6), torch.randn(5, 4)
    hidden = torch.relu(made.encode[0](made.standardise(features)))
    expected = hidden @ made.shared.weight[0] + ((user @ made.personal.weight.T) * hidden).sum(1)
    assert torch.allclose(made(features, user), expected, atol=1e-6)


def test_without_a_user_the_shared_term_is_left():
    made, features = head(), torch.randn(5, 6)
    assert torch.allclose(made(features), made(features, torch.zeros(5, 4)))


def test_one_user_broadcasts_over_texts():
    made, features, user = head(), torch.randn(5, 6), torch.randn(4)
    assert torch.allclose(made(features, user), made(features, user.expand(5, 4)))


@pytest.mark.parametrize(("kind", "user_dim"), [("two_term", 4), ("two_term", 0), ("linear", 4), ("linear", 0)])
def test_no_dead_parameters(kind, user_dim):
    """The published code has parameters that no score depends on."""
    made = head(kind, user_dim)
    made(torch.randn(5, 6), torch.randn(5, user_dim) if user_dim else None).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_papers_linear_head_sees_no_user_on_a_frozen_base():
    made, features = head("linear"), torch.randn(5, 6)
    assert torch.equal(made(features, torch.randn(5, 4)), made(features))
