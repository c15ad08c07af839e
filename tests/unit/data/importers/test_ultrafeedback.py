import numpy as np
import pytest

from penchant.data import PreferenceDataset
from penchant.data.dataset import read_origin, read_tables
from penchant.data.importers.simulation import Simulation
from penchant.data.importers.ultrafeedback import ASPECTS, import_ultrafeedback
from penchant.errors import ConfigError, DataError

SMALL = Simulation(users=40, unseen_users=8, comparisons=6, test_comparisons=2, test_prompts=0.25)


def completion(text, *ratings):
    return {
        "model": "some",
        "response": text,
        "annotations": {aspect: {"Rating": rating, "Rationale": "-"} for aspect, rating in zip(ASPECTS, ratings, strict=True)},
    }


def rows(count=60):
    """To each prompt: `a` is helpful and honest, `b` follows instructions and is true, `c` is worst and `d` best at all."""
    return [
        {
            "source": "s",
            "instruction": f"Prompt {number}",
            "completions": [
                completion(f"a {number}", "5", "4", "1", "2"),
                completion(f"b {number}", "2", "1", "4", "3"),
                completion(f"c {number}", "1", "1", "1", "1"),
                completion(f"d {number}", "5", "5", "5", "5"),
            ],
        }
        for number in range(count)
    ]


def binarised(chosen="a", rejected="b", count=60):
    return [
        {
            "prompt": f"Prompt {number}",
            "chosen": [{"role": "user", "content": f"Prompt {number}"}, {"role": "assistant", "content": f"{chosen} {number}"}],
            "rejected": [
                {"role": "user", "content": f"Prompt {number}"},
                {"role": "assistant", "content": f"{rejected} {number}"},
            ],
        }
        for number in range(count)
    ]


@pytest.fixture
def source(write_rows):
    return str(write_rows("uf/evol_instruct.jsonl", rows()).parent)


def load(tmp_path, source, pairs, **options):
    words = import_ultrafeedback(source, tmp_path / "out", pairs=str(pairs), **{"simulation": SMALL, **options})
    return words, PreferenceDataset.load(tmp_path / "out"), read_tables(tmp_path / "out")


def test_users_choose_by_their_own_rating(tmp_path, write_rows, source, chosen_texts):
    words, dataset, tables = load(tmp_path, source, write_rows("binarised/train-0.parquet", binarised()))
    group = dict(zip(tables["users"]["user_id"].to_pylist(), tables["users"]["group"].to_pylist(), strict=True))
    assert sorted(group.values()) == sorted([aspect for aspect in ASPECTS for _ in range(12)])
    choices = chosen_texts(tables)
    for user, _, chosen, _ in choices:
        assert chosen[0] == ("a" if group[user] in ("helpfulness", "honesty") else "b")
    assert len(choices) == 48 * 8
    assert "384 comparisons of 48 simulated users on 120 responses" in words
    assert "data split" not in words
    assert dataset.seen.sum() == 40
    assert not dataset.warnings


def test_all_gives_everybody_as_many_and_avg_as_many_on_average(tmp_path, write_rows, source):
    pairs = write_rows("binarised.jsonl", binarised())
    for protocol in ("all", "avg"):
        simulation = SMALL.model_copy(update={"protocol": protocol, "users": 400})
        import_ultrafeedback(source, tmp_path / protocol, pairs=str(pairs), simulation=simulation)
        dataset = PreferenceDataset.load(tmp_path / protocol)
        comparisons = dataset.select(split=("train", "valid"))
        count = np.bincount(comparisons.user, minlength=408)
        valid = np.bincount(dataset.select(split="valid").user, minlength=408)
        test = dataset.select(split="test")
        assert (np.bincount(test.user) == 2).all()
        assert (valid == (count >= 6)).all()
        if protocol == "all":
            assert (count == 6).all()
        else:
            assert (count.min(), count.max()) == (1, 11)
            assert abs(count.mean() - 6) < 0.6
        assert len(np.unique(dataset.prompt_of_response[test.chosen])) == 15


def test_what_all_tastes_agree_on_is_left_out_unless_it_is_asked_for(tmp_path, write_rows, source):
    pairs = write_rows("binarised.jsonl", binarised(count=40) + binarised("d", "c")[40:])
    words, dataset, _ = load(tmp_path, source, pairs)
    assert "20 on which all four tastes agree" in words
    assert dataset.comparisons.controversial.all()
    import_ultrafeedback(source, tmp_path / "all", pairs=str(pairs), common=True, simulation=SMALL)
    controversial = PreferenceDataset.load(tmp_path / "all").comparisons.controversial
    assert 0 < controversial.mean() < 1


def test_uf_p_2_has_two_tastes_and_pairs_on_which_these_agree(tmp_path, write_rows, source, chosen_texts):
    _, dataset, tables = load(tmp_path, source, write_rows("binarised.jsonl", binarised()), variant="uf-p-2")
    assert dataset.group_names == ("helpfulness", "honesty")
    assert not dataset.comparisons.controversial.any(), "both prefer a to b, the other two of the four b to a"
    assert {chosen[0] for _, _, chosen, _ in chosen_texts(tables)} == {"a"}
    assert read_origin(tmp_path / "out")["data_set"] == "UltraFeedback, UF-P-2-ALL"


def test_the_published_numbers_are_the_defaults(tmp_path, write_rows, source):
    pairs = write_rows("binarised.jsonl", binarised())
    simulation = Simulation(users=4, unseen_users=0, test_comparisons=1)
    for variant, expected in (("uf-p-2", 8), ("uf-p-4", 16)):
        import_ultrafeedback(source, tmp_path / variant, variant=variant, pairs=str(pairs), simulation=simulation)
        dataset = PreferenceDataset.load(tmp_path / variant)
        assert len(dataset.select(split=("train", "valid"))) == 4 * expected
    assert Simulation().users == 10_000


def test_a_tie_is_one_coin_for_all_users_of_a_taste(tmp_path, write_rows, chosen_texts):
    tied = rows()
    for number, row in enumerate(tied):
        row["completions"] = [completion(f"a {number}", "3", "5", "1", "1"), completion(f"b {number}", "3", "1", "5", "5")]
    source = write_rows("tied.jsonl", tied)
    _, _, tables = load(tmp_path, str(source), write_rows("binarised.jsonl", binarised()))
    group = dict(zip(tables["users"]["user_id"].to_pylist(), tables["users"]["group"].to_pylist(), strict=True))
    chosen = {}
    for user, prompt, text, _ in chosen_texts(tables):
        if group[user] == "helpfulness":
            chosen.setdefault(prompt, set()).add(text[0])
    assert all(len(texts) == 1 for texts in chosen.values())
    assert {"a"} in chosen.values()
    assert {"b"} in chosen.values()


def test_the_same_seed_gives_the_same_data(tmp_path, write_rows, source):
    pairs = str(write_rows("binarised.jsonl", binarised()))
    found = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        import_ultrafeedback(source, tmp_path / name, pairs=pairs, simulation=SMALL.model_copy(update={"seed": seed}))
        found.append(read_tables(tmp_path / name))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_without_published_pairs_every_two_responses_are_one(tmp_path, source):
    words = import_ultrafeedback(source, tmp_path / "out", simulation=SMALL)
    # Of the six pairs of a prompt, d beats a, b and c; a and b lose no rating to c, and some coins make c the better one.
    assert "on which all four tastes agree" in words
    assert PreferenceDataset.load(tmp_path / "out").comparisons.controversial.all()


def test_missing_ratings_and_texts_are_left_out_and_told(tmp_path, write_rows):
    broken = rows()
    broken[0]["completions"][0]["annotations"]["honesty"]["Rating"] = "N/A"
    del broken[1]["completions"][1]["annotations"]["truthfulness"]
    pairs = binarised()
    pairs[2]["rejected"][1]["content"] = " "
    broken[3]["completions"][0]["response"] = pairs[3]["chosen"][1]["content"] = "half a pair \ud83d"
    words, _, _ = load(tmp_path, str(write_rows("uf.jsonl", broken)), write_rows("binarised.jsonl", [*pairs, pairs[5]]))
    assert "2 with a blank prompt or response, or again; 2 without all ratings" in words
    assert read_origin(tmp_path / "out")["left_out"]["without all ratings"] == 2


def test_long_texts_are_left_out_by_a_tokenizer(tmp_path, write_rows, source, tiny_backbone):
    pairs = binarised()
    long = rows()
    long[3]["completions"][0]["response"] = pairs[3]["chosen"][1]["content"] = "word " * 50
    simulation = SMALL.model_copy(update={"tokenizer": tiny_backbone, "max_tokens": 30})
    words, _, _ = load(tmp_path, str(write_rows("long.jsonl", long)), write_rows("binarised.jsonl", pairs), simulation=simulation)
    assert "1 of a text that is too long" in words
    with pytest.raises(ConfigError, match="no tokenizer"):
        load(
            tmp_path / "other", source, tmp_path / "binarised.jsonl", simulation=SMALL.model_copy(update={"tokenizer": "./none"})
        )


def broken(change):
    found = rows(3)
    change(found[1])
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("instruction"), "row 1: There is no 'instruction'; it has source, completions"),
        (lambda row: row.update(instruction=7), "'instruction' must be a text (got 7)"),
        (lambda row: row.update(completions="none"), "'completions' must be list"),
        (lambda row: row["completions"][2].pop("response"), "row 1, completion 2: There is no 'response'"),
        (lambda row: row["completions"][0].update(annotations=[]), "'annotations' must be dict"),
        (
            lambda row: row["completions"][0]["annotations"]["honesty"].update(Rating="good"),
            "row 1, completion 0, honesty: The rating must be a number or N/A (got 'good')",
        ),
    ],
)
def test_mistakes_name_the_row_and_the_field(tmp_path, write_rows, change, said):
    source = write_rows("uf.jsonl", broken(change))
    with pytest.raises(DataError) as raised:
        import_ultrafeedback(str(source), tmp_path / "out", simulation=SMALL)
    assert said in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_too_few_pairs(tmp_path, write_rows, source):
    with pytest.raises(DataError, match=r"3 pairs for training; a user is asked about up to 6.*56 on which all four"):
        load(tmp_path, source, write_rows("binarised.jsonl", binarised(count=4) + binarised("d", "c")[4:]))
    with pytest.raises(DataError, match="'chosen' has no message"):
        load(tmp_path, source, write_rows("binarised.jsonl", [binarised()[0] | {"chosen": []}]))
