"""PRISM, Community Alignment and HH-RLHF: no users are made here unless they are asked for."""

import json
from datetime import datetime

import pytest

from penchant.data import PreferenceDataset
from penchant.data.dataset import read_origin, read_tables
from penchant.data.importers.community_alignment import import_community_alignment
from penchant.data.importers.hh_rlhf import import_hh_rlhf
from penchant.data.importers.prism import import_prism
from penchant.data.split import split_dataset
from penchant.errors import DataError, OutputError

ANSWERS = [("A", 80, True), ("B", 30, False), ("C", 80, False), ("D", None, False)]
LATER = [("E", 10, False), ("F", 90, True)]


def talk(identity="c1", user="u1", **change):
    history = [{"turn": 0, "role": "user", "content": "Hello?"}]
    history += [
        {
            "turn": 0,
            "role": "model",
            "content": text,
            "model_name": "m",
            "score": score,
            "if_chosen": chosen,
            "within_turn_id": at,
        }
        for at, (text, score, chosen) in enumerate(ANSWERS)
    ]
    history += [{"turn": 1, "role": "user", "content": "More?"}]
    history += [
        {"turn": 1, "role": "model", "content": text, "score": score, "if_chosen": chosen} for text, score, chosen in LATER
    ]
    return {
        "conversation_id": identity, "user_id": user, "conversation_type": "unguided", "opening_prompt": "Hello?",
        "conversation_history": history, "generated_datetime": "2023-11-22 01:02:03",
    } | change  # fmt: skip


def utterances():
    turns = [("Hello?", 0, ANSWERS), ("More?", 1, LATER)]
    return [
        {
            "utterance_id": f"ut{turn}{at}", "conversation_id": "c1", "user_id": "u1", "turn": turn, "within_turn_id": at,
            "user_prompt": prompt, "model_response": text, "score": score, "if_chosen": chosen,
        }
        for prompt, turn, answers in turns
        for at, (text, score, chosen) in enumerate(answers)
    ]  # fmt: skip


PRISM_CHOICES = [("u1", "Hello?", "A", "B"), ("u1", "user: Hello?\n\nassistant: A\n\nuser: More?", "F", "E")]


def test_prism_compares_the_chosen_with_lower_scores_of_its_turn(tmp_path, write_rows, chosen_texts):
    write_rows("prism/data/conversations.jsonl", [talk()])
    write_rows("prism/data/utterances.jsonl", utterances())
    write_rows("prism/survey.jsonl", [{"user_id": "u1"}])
    words = import_prism(str(tmp_path / "prism"), tmp_path / "out")
    tables = read_tables(tmp_path / "out")
    assert chosen_texts(tables) == PRISM_CHOICES
    assert tables["comparisons"]["timestamp"].to_pylist() == [datetime(2023, 11, 22, 1, 2, 3)] * 2
    assert tables["comparisons"]["turn"].to_pylist() == [0, 1]
    assert tables["comparisons"]["conversation_id"].to_pylist() == ["c1", "c1"]
    assert "2 comparisons of 1 users" in words
    assert "2 whose rejected response has no lower score" in words
    assert "no split and no cohort" in words
    import_prism(str(tmp_path / "prism" / "data" / "utterances.jsonl"), tmp_path / "long")
    long = read_tables(tmp_path / "long")
    assert chosen_texts(long) == PRISM_CHOICES
    assert "timestamp" not in long["comparisons"].column_names


def test_prism_follows_a_conversation_as_far_as_it_is_known(tmp_path, write_rows, chosen_texts):
    lost = talk("c2", "u2")
    lost["conversation_history"][1]["if_chosen"] = False
    words = import_prism(str(write_rows("conversations.jsonl", [lost, talk(generated_datetime=None)])), tmp_path / "out")
    assert chosen_texts(read_tables(tmp_path / "out")) == PRISM_CHOICES
    assert "1 of a turn without one chosen response" in words


def test_prism_marks_what_is_chosen_by_its_text_and_has_a_word_for_no_text(tmp_path, write_rows, chosen_texts):
    odd = talk()
    odd["conversation_history"][2]["content"] = "EMPTY STRING"
    odd["conversation_history"][3] |= {"content": "A", "if_chosen": True, "score": 70}
    words = import_prism(str(write_rows("conversations.jsonl", [odd])), tmp_path / "out")
    assert chosen_texts(read_tables(tmp_path / "out")) == PRISM_CHOICES[1:]
    assert "1 with a blank prompt or response" in words
    assert "1 of a response with itself" in words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user_id": ""}, "'user_id' or 'conversation_id' is blank"),
        ({"conversation_history": "none"}, "'conversation_history' must be list"),
        ({"conversation_history": [{"turn": 0, "role": "model", "content": "A"}]}, "before its user's message"),
        ({"generated_datetime": "yesterday"}, "no time (got 'yesterday')"),
        ({"conversation_history": [{"turn": "0", "role": "user"}]}, "row 1, message 0: 'turn' must be int"),
        ({"conversation_history": ["Hello"]}, "row 1, message 0: It must be an object with 'turn' (got 'Hello')"),
    ],
)
def test_prism_mistakes_name_the_row(tmp_path, write_rows, change, said):
    with pytest.raises(DataError) as raised:
        import_prism(str(write_rows("conversations.jsonl", [talk(), talk("c2", **change)])), tmp_path / "out")
    assert said in str(raised.value)
    assert "conversations.jsonl, row 1" in str(raised.value)
    assert not (tmp_path / "out").exists()


def annotated(identity, annotator, **change):
    row = {"conversation_id": identity, "annotator_id": annotator, "assigned_lang": "en", "annotator_country": "india"}
    for turn in ("first", "second", "third", "fourth"):
        row |= {f"{turn}_turn_{name}": None for name in ("prompt", "preferred_response", "feedback")}
        row |= {f"{turn}_turn_response_{letter}": None for letter in "abcd"}
    row |= {f"first_turn_response_{letter}": f"first\n{letter}<|end_of_text|>" for letter in "abcd"}
    row |= {"first_turn_prompt": "Hello?", "first_turn_preferred_response": "response_b"}
    row |= {"second_turn_prompt": "More?", "second_turn_preferred_response": "response_a"}
    row |= {"second_turn_response_a": "second a", "second_turn_response_b": "second b"}
    return row | change


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_community_alignment_compares_the_preferred_with_the_others(tmp_path, write_rows, chosen_texts, kind):
    rows = [annotated("1", "x"), annotated("2", "y", assigned_lang="fr"), annotated("3", "z", first_turn_preferred_response=None)]
    write_rows(f"ca/full.{kind}", rows)
    write_rows(f"ca/filtered.{kind}", rows[:1])
    words = import_community_alignment(str(tmp_path / "ca"), tmp_path / "out")
    tables = read_tables(tmp_path / "out")
    later = "user: Hello?\n\nassistant: first\nb\n\nuser: More?"
    assert chosen_texts(tables)[:4] == [
        ("x", "Hello?", "first\nb", "first\na"),
        ("x", "Hello?", "first\nb", "first\nc"),
        ("x", "Hello?", "first\nb", "first\nd"),
        ("x", later, "second a", "second b"),
    ]
    assert tables["comparisons"].num_rows == 8, "a conversation of both files counts once"
    assert tables["users"].to_pylist() == [{"user_id": name, "annotator_country": "india"} for name in "xy"]
    assert "1 of a turn without a preferred response" in words
    import_community_alignment(str(tmp_path / "ca"), tmp_path / "fr", language="fr")
    assert read_tables(tmp_path / "fr")["users"]["user_id"].to_pylist() == ["y"]


def test_community_alignment_mistakes_name_the_row(tmp_path, write_rows):
    bad = write_rows("ca.csv", [annotated("1", "x"), annotated("2", "y", second_turn_preferred_response="both")])
    with pytest.raises(DataError, match=r"row 1: second_turn_preferred_response must be response_a to response_d \(got 'both'\)"):
        import_community_alignment(str(bad), tmp_path / "out")
    with pytest.raises(DataError, match="no conversation in 'de'"):
        import_community_alignment(str(write_rows("one.csv", [annotated("1", "x")])), tmp_path / "out", language="de")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        import_community_alignment("hub:not/asked", occupied)
    nobody = annotated("1", "x")
    del nobody["annotator_id"]
    with pytest.raises(DataError, match="row 0: There is no 'annotator_id'"):
        import_community_alignment(str(write_rows("two.csv", [nobody])), tmp_path / "out")


def pair(number, answers=("yes", "no"), before="\n\nHuman: What?\n\nAssistant: Which?"):
    asked = f"{before}\n\nHuman: Question {number}\n\nAssistant:"
    return {"chosen": f"{asked} {answers[0]}", "rejected": f"{asked} {answers[1]}"}


@pytest.fixture
def hh(tmp_path, write_rows):
    write_rows("hh/helpful-base/train.jsonl.gz", [pair(number) for number in range(20)])
    write_rows("hh/helpful-base/test.jsonl.gz", [pair(100), pair(0)])
    write_rows("hh/harmless-base/train.jsonl.gz", [pair(number, ("no", "yes"), before="") for number in range(20, 40)])
    write_rows("hh/harmless-base/test.jsonl.gz", [pair(200), pair(201, ("", "x")), pair(202, ("x", "x"))])
    write_rows("hh/red-team-attempts/train.jsonl.gz", [{"transcript": "x"}])
    return str(tmp_path / "hh")


def test_hh_has_two_objectives_as_users(tmp_path, hh, chosen_texts):
    words = import_hh_rlhf(hh, tmp_path / "out")
    tables = read_tables(tmp_path / "out")
    choices = chosen_texts(tables)
    assert ("helpful", "user: What?\n\nassistant: Which?\n\nuser: Question 3", "yes", "no") in choices
    assert ("harmless", "Question 20", "no", "yes") in choices
    assert tables["users"].to_pylist() == [{"user_id": name, "group": name} for name in ("harmless", "helpful")]
    splits = tables["comparisons"]["split"].to_pylist()
    assert [splits.count(name) for name in ("train", "valid", "test")] == [36, 4, 2]
    assert "2 objectives, each as a user," in words
    for said in ("1 with a blank", "1 of a response with itself", "1 for test of a prompt that is also in train"):
        assert said in words
    assert read_origin(tmp_path / "out")["users_are"] == "objectives"


def test_hh_deals_comparisons_to_simulated_users_when_asked(tmp_path, hh):
    words = import_hh_rlhf(hh, tmp_path / "out", users=3)
    assert "6 simulated users" in words
    assert split_dataset(tmp_path / "out", tmp_path / "split").group_names == ("harmless", "helpful")
    assert read_origin(tmp_path / "split")["users_are"] == "simulated", "what was split says the same of its users"
    assert PreferenceDataset.load(tmp_path / "split")


def test_hh_mistakes(tmp_path, write_rows, hh):
    with pytest.raises(DataError, match="'red-team-attempts' has no objective"):
        import_hh_rlhf(hh, tmp_path / "out", folders=["red-team-attempts"])
    with pytest.raises(DataError, match=r"cannot be told from its name \(pairs\.jsonl\)"):
        import_hh_rlhf(str(write_rows("pairs.jsonl", [pair(0)])), tmp_path / "out")
    write_rows("bad/helpful-base/train.jsonl", [pair(0), {"chosen": "Hello", "rejected": "Bye"}])
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: 'chosen' has no 'Assistant:'"):
        import_hh_rlhf(str(tmp_path / "bad"), tmp_path / "out")
    write_rows("other/helpful-base/train.jsonl", [{"chosen": pair(0)["chosen"], "rejected": pair(1)["rejected"]}])
    with pytest.raises(DataError, match="Left out: 1 of answers to two prompts"):
        import_hh_rlhf(str(tmp_path / "other"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_it_is_from_is_told_of_a_data_set(tmp_path, hh):
    import_hh_rlhf(hh, tmp_path / "out", users=2, seed=3)
    origin = json.loads((tmp_path / "out" / "origin.json").read_text())
    assert origin["data_set"] == "HH-RLHF, by objective"
    assert origin["source"] == hh
    assert origin["protocol"] == {"folders": ["helpful-base", "harmless-base"], "users_of_each_objective": 2, "seed": 3}
