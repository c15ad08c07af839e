"""What a replica decides before it scores."""

from dataclasses import replace

from penchant.runtime.serving.engine import Knowledge, ScoreRequest


def test_a_request_is_quick_once_its_texts_are_remembered_and_its_user_is_known(engine):
    request = ScoreRequest(Knowledge("user-0001", may_be_seen=True), "Explain dew.", ("Step one: wait.", "Dear reader!"))
    assert not engine.is_quick([request])
    engine.score([request])
    assert engine.is_quick([request, request])
    assert not engine.is_quick([request, replace(request, responses=("Step one: wait.", "Nobody has said this."))])
    stranger = Knowledge("ana", comparisons=1)
    assert not engine.is_quick([request, replace(request, known=stranger)]), "the user would have to be embedded"
