import dataclasses
import json

import numpy as np
import pytest
import torch

from penchant.artifacts import write_json
from penchant.data.choices import TextComparison
from penchant.errors import ArtifactError, DataError
from penchant.scoring.model import Asking, PersonalisedRewardModel
from penchant.scoring.onboarded import read_choices, read_onboarded, write_onboarded
from penchant.scoring.onboarding import Comparisons


@pytest.fixture
def model(bundle):
    return PersonalisedRewardModel.load(bundle[0])


CHOICE = TextComparison("Why?", "Joke of the day: ha!", "It is hereby noted.")


def test_answer_says_how_it_was_personalised(model):
    seen, unknown = (model.score(user, "Explain tides.", ["One.", "Two!"]) for user in ("user-0003", "nobody"))
    assert (seen.personalisation, unknown.personalisation) == ("seen", "unknown")
    assert unknown.score == unknown.uniform == seen.uniform
    assert seen.score != seen.uniform
    assert seen.bundle == model.manifest.name
    model.onboard({"nobody": [CHOICE]})
    assert model.score("nobody", "Explain tides.", ["One."]).personalisation == "onboarded"


def test_what_is_onboarded_does_not_take_the_place_of_what_was_trained(model):
    before = model.score("user-0003", "Explain tides.", ["One.", "Two!"])
    model.onboard({"user-0003": [CHOICE]})
    assert model.score("user-0003", "Explain tides.", ["One.", "Two!"]) == before


def test_of_one_pair_the_last_choice_counts(model):
    turned = TextComparison(CHOICE.prompt, CHOICE.rejected, CHOICE.chosen)
    several = model.embed_choices(
        {"once": [CHOICE], "twice": [CHOICE, CHOICE], "back": [turned, CHOICE], "turned": [CHOICE, turned]}
    )
    assert torch.equal(several["twice"], several["once"])
    assert torch.equal(several["back"], several["once"])
    assert not torch.allclose(several["turned"], several["once"])


def test_a_text_of_the_training_is_known_by_its_words(bundle, planted):
    folder, parts, _ = bundle
    dataset = planted[0]
    neighbours = parts.onboarding.model_copy(update={"kind": "neighbours"})
    model = PersonalisedRewardModel.load(folder)
    model.parts = dataclasses.replace(model.parts, onboarding=neighbours)
    train = dataset.select(split="train", cohort="seen")
    prompt, chosen, rejected = (
        dataset.prompts[dataset.prompt_of_response[train.chosen[0]]],
        dataset.responses[train.chosen[0]],
        dataset.responses[train.rejected[0]],
    )
    plain, blank = TextComparison(prompt, chosen, rejected), TextComparison(prompt, chosen + "\n", rejected)
    embedded = model.embed_choices({"plain": [plain], "blank": [blank]})
    assert torch.equal(embedded["blank"], embedded["plain"])


def test_scores_do_not_depend_on_what_they_are_asked_with(model):
    texts = ["One.", "Two!", "First, see what it is."]
    together = model.score("user-0003", "Explain tides.", texts)
    apart = [model.score("user-0003", "Explain tides.", [text]).score[0] for text in texts]
    assert together.score == pytest.approx(apart, abs=5e-3)


def test_seen_users_are_kept_ready_within_a_bound(model, bundle, monkeypatch):
    monkeypatch.setattr("penchant.scoring.model._USERS_READY", 2)
    _, parts, _ = bundle
    for row in (0, 1, 0, 2, 3, 1, 0):
        resolved = model.resolve(parts.user_ids[row])
        assert (resolved.user, resolved.personalisation) == (parts.user_ids[row], "seen")
        assert torch.equal(resolved.embedding, parts.user_UD[row])
        assert model.resolve(parts.user_ids[row]) is resolved
        assert len(model._ready) <= 2
    assert model.seen("nobody") is None


def test_each_asking_of_a_batch_gets_its_own_scores_in_order(model):
    asked = [("user-0003", "Why?", ["One.", "Two!"]), ("nobody", "Explain tides.", ["One."]), ("user-0004", "Why?", [])]
    asked.append(("user-0011", "Explain tides.", ["Two!", "First, see what it is.", "One."]))
    answers = model.score_batch([Asking(model.resolve(user), prompt, texts) for user, prompt, texts in asked])
    for answer, (user, prompt, texts) in zip(answers, asked, strict=True):
        alone = [model.score(user, prompt, [text]) for text in texts]
        assert (answer.user, answer.personalisation) == (user, model.resolve(user).personalisation)
        assert answer.score == pytest.approx([one.score[0] for one in alone], abs=5e-3)
        assert answer.uniform == pytest.approx([one.uniform[0] for one in alone], abs=5e-3)
    assert len({round(score, 2) for answer in answers for score in answer.score}) == 6, "or a mix-up could not be seen"


@pytest.mark.parametrize(
    ("prompt", "responses", "said"),
    [("", ["a"], "prompt"), ("p", [], "response"), ("p", ["a", " "], "response 1")],
)
def test_blank_texts_are_refused(model, prompt, responses, said):
    with pytest.raises(DataError, match=said):
        model.score("user-0003", prompt, responses)


@pytest.mark.parametrize("kind", ["forward", "neighbours", "prototypes"])
def test_onboarded_users_of_a_group_are_nearer_to_it(model, bundle, planted, kind):
    """Unseen users embedded from their own comparisons rank their held-out choices better than by chance."""
    dataset, (_, parts, features) = planted[0], bundle
    unseen = dataset.select(split=("train", "valid"), cohort="unseen")
    users, number = np.unique(unseen.user, return_inverse=True)
    embedding = model.embed(
        Comparisons(number, unseen.chosen, unseen.rejected), features, np.arange(len(features)), num_users=len(users), kind=kind
    )
    assert torch.allclose(embedding.norm(dim=1), torch.ones(len(users)), atol=1e-5)
    hidden = parts.personalised.hidden(features)
    user = embedding[torch.from_numpy(number)]
    margin = parts.personalised.score(hidden[unseen.chosen], user) - parts.personalised.score(hidden[unseen.rejected], user)
    assert (margin > 0).float().mean() > 0.55


@pytest.mark.parametrize("kind", ["forward", "neighbours", "prototypes"])
def test_onboarding_many_is_onboarding_each(model, bundle, planted, kind):
    dataset, (_, _, features) = planted[0], bundle
    unseen = dataset.select(split="train", cohort="unseen")
    users, number = np.unique(unseen.user, return_inverse=True)
    known = np.arange(len(features))
    together = model.embed(Comparisons(number, unseen.chosen, unseen.rejected), features, known, num_users=len(users), kind=kind)
    for user in range(len(users)):
        mine = number == user
        alone = Comparisons(np.zeros(mine.sum(), dtype=np.int64), unseen.chosen[mine], unseen.rejected[mine])
        assert torch.allclose(model.embed(alone, features, known, num_users=1, kind=kind)[0], together[user], atol=1e-5)


def test_fresh_texts_fall_back_on_prototypes(model, bundle):
    features = bundle[2]
    one = Comparisons(np.array([0]), np.array([0]), np.array([1]))
    fresh = np.full(len(features), -1)
    by_default, by_prototypes = (
        model.embed(one, features, fresh, num_users=1, kind=kind) for kind in ("neighbours", "prototypes")
    )
    assert torch.equal(by_default, by_prototypes)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ([], "no comparison"),
        ([TextComparison("p", "a", "a")], "the same text"),
        ([CHOICE, TextComparison("p", " ", "b")], "comparison 1: chosen is blank"),
    ],
)
def test_choices_that_say_nothing_are_refused(model, choices, said):
    with pytest.raises(DataError, match=said):
        model.onboard({"somebody": choices})
    assert model.resolve("somebody").personalisation == "unknown"


def test_onboarded_users_go_through_a_file(model, tmp_path):
    made = model.onboard({"new": [CHOICE]})
    write_onboarded(tmp_path / "users.json", made, bundle=model.manifest.name, counts={"new": 1})
    read = read_onboarded(tmp_path / "users.json", bundle=model.manifest.name)
    assert torch.allclose(read["new"], made["new"])
    with pytest.raises(ArtifactError, match="Onboard them again"):
        read_onboarded(tmp_path / "users.json", bundle="another")


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ({"ana": {}}, "KeyError: 'embedding'"),
        ({"ana": {"embedding": None}}, "no embedding"),
        ({"ana": {"embedding": ["0.5"]}}, "no embedding"),
        ({"ana": {"embedding": [0.5, [1.0]]}}, "no embedding"),
        ({"ana": [0.5]}, "no embedding"),
        (["ana"], "no embedding"),
        ({"ana": {"embedding": 0.5}}, "shapes"),
        ({"ana": {"embedding": [0.5]}, "bob": {"embedding": [0.5, 0.5]}}, "shapes"),
    ],
)
def test_a_damaged_file_of_onboarded_users_is_told(tmp_path, users, said):
    write_json(tmp_path / "users.json", {"bundle": "b", "users": users})
    with pytest.raises(ArtifactError, match=said):
        read_onboarded(tmp_path / "users.json", bundle="b")


def test_an_embedding_of_another_width_is_not_taken(model):
    with pytest.raises(ArtifactError, match=r"shape \(1,\).*'narrow'|'narrow'.*shape \(1,\)"):
        model.remember({"narrow": torch.tensor([0.5])})
    assert model.resolve("narrow").personalisation == "unknown"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"user_id": "u", "prompt": "p", "chosen": "a"}', "row 0: There is no text 'rejected'"),
        ('{"user_id": 3, "prompt": "p", "chosen": "a", "rejected": "b"}', "There is no text 'user_id'"),
        ("not json", "cannot be read"),
        ("", "no comparison"),
    ],
)
def test_file_of_choices_with_a_mistake(tmp_path, content, said):
    (tmp_path / "choices.jsonl").write_text(content)
    with pytest.raises(DataError) as raised:
        read_choices(tmp_path / "choices.jsonl")
    assert said in str(raised.value)
    assert "choices.jsonl" in str(raised.value)


def test_choices_are_read_by_user(tmp_path):
    rows = [{"user_id": user, "prompt": "p", "chosen": "a", "rejected": "b"} for user in ("u", "v", "u")]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert {user: len(choices) for user, choices in read_choices(tmp_path / "choices.jsonl").items()} == {"u": 2, "v": 1}
