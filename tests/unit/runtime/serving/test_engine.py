"""What a replica decides before it scores."""

from dataclasses import replace

from penchant.runtime.serving.engine import Knowledge, ScoreRequest, pieces


def test_a_request_is_quick_once_its_texts_are_remembered_and_its_user_is_known(engine):
    request = ScoreRequest(Knowledge("user-0001", may_be_seen=True), "Explain dew.", ("Step one: wait.", "Dear reader!"))
    assert not engine.is_quick([request])
    engine.score([request])
    assert engine.is_quick([request, request])
    assert not engine.is_quick([request, replace(request, responses=("Step one: wait.", "Nobody has said this."))])
    stranger = Knowledge("ana", comparisons=1)
    assert not engine.is_quick([request, replace(request, known=stranger)]), "the user would have to be embedded"


def test_requests_are_scored_in_pieces_that_take_seconds():
    def asked(*counts):
        return [ScoreRequest(Knowledge(""), str(number), ("a",) * count) for number, count in enumerate(counts)]

    def dealt(*counts):
        return [[len(request.responses) for request in piece] for piece in pieces(asked(*counts))]

    assert dealt() == []
    assert dealt(3, 2) == [[3, 2]]
    assert dealt(256, 256, 256, 1) == [[256, 256], [256, 1]]
    assert dealt(1, 9_000, 1) == [[1], [9_000], [1]]
    assert [request for piece in pieces(asked(*[7] * 500)) for request in piece] == asked(*[7] * 500)
