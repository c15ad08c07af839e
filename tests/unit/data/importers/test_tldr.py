import pytest

from penchant.data import PreferenceDataset
from penchant.data.dataset import read_tables
from penchant.data.importers.simulation import Simulation
from penchant.data.importers.tldr import import_tldr
from penchant.errors import DataError

SMALL = Simulation(users=6, unseen_users=2, comparisons=4, test_comparisons=2)


def row(number, *, split="train", worker="w0", choice=1, policies=("sup1", "sup4"), texts=None, info=None):
    short, long = f"short {number}", f"rather longer {number}"
    return {
        "info": info or {"id": f"t3_{number}", "post": f"Post {number}", "title": "t", "subreddit": "s"},
        "summaries": [
            {"text": f" {text}", "policy": policy, "note": None}
            for text, policy in zip(texts or (short, long), policies, strict=True)
        ],
        "choice": choice,
        "worker": worker,
        "batch": "batch3",
        "split": split,
        "extra": {"confidence": 8},
    }


def test_workers_are_the_users(tmp_path, write_rows, chosen_texts):
    write_rows("comparisons/batch3.jsonl", [row(number, worker=f"w{number % 2}", choice=number % 2) for number in range(22)])
    write_rows("comparisons/batch4.jsonl", [row(100, split="valid1"), row(101, split="valid2"), row(0, split="valid2")])
    words = import_tldr(str(tmp_path / "comparisons"), tmp_path / "out")
    tables = read_tables(tmp_path / "out")
    assert chosen_texts(tables)[:2] == [
        ("w0", "Post 0", "short 0", "rather longer 0"),
        ("w1", "Post 1", "rather longer 1", "short 1"),
    ]
    splits = tables["comparisons"]["split"].to_pylist()
    assert {name: splits.count(name) for name in set(splits)} == {"train": 20, "valid": 2, "test": 2}
    assert "1 for test of a prompt that is also in train" in words
    assert "It has no cohort: run `penchant data split" in words


def test_an_article_is_a_prompt_too(tmp_path, write_rows, chosen_texts):
    info = {"id": "1", "site": "cnn", "article": "News", "post": None}
    import_tldr(str(write_rows("batch.json", [row(0, info=info)])), tmp_path / "out")
    assert chosen_texts(read_tables(tmp_path / "out"))[0][1] == "News"


def test_simulated_users_prefer_the_shorter_or_the_longer(tmp_path, write_rows, chosen_texts):
    rows = [row(number, texts=None if number % 2 else (f"rather longer {number}", f"short {number}")) for number in range(12)]
    rows += [row(number, split="valid2") for number in range(100, 105)]
    rows += [row(200, policies=("sup4_ppo_rm3_kl10", "sup4")), row(201, policies=("ref", "sup4"))]
    rows += [row(202, texts=("same", "size")), row(203, worker="rare"), row(0)]
    # Ten workers have more rows than "rare": nine of them on the same post, of which nothing is new.
    rows += [row(1, worker=f"w{worker}") for worker in range(1, 10) for _ in range(2)]
    words = import_tldr(str(write_rows("batch.jsonl", rows)), tmp_path / "out", setting="length", simulation=SMALL)
    tables = read_tables(tmp_path / "out")
    group = dict(zip(tables["users"]["user_id"].to_pylist(), tables["users"]["group"].to_pylist(), strict=True))
    assert sorted(group.values()) == ["longer"] * 4 + ["shorter"] * 4
    for user, _, chosen, rejected in chosen_texts(tables):
        assert (len(chosen) < len(rejected)) == (group[user] == "shorter")
    dataset = PreferenceDataset.load(tmp_path / "out")
    assert len(dataset.select(split="train")) == 8 * 3
    assert len(dataset.select(split="valid")) == 8
    assert {prompt for prompt in dataset.prompts if int(prompt.split()[1]) >= 100} <= {f"Post {n}" for n in range(100, 105)}
    for said in ("2 of other policies", "1 of other workers", "19 with a blank text, or again", "1 of one length"):
        assert said in words


def test_simulated_users_are_asked_about_posts_alone(tmp_path, write_rows, chosen_texts):
    articles = [
        row(n, split=split, info={"site": "cnn", "article": f"News {n}", "post": None})
        for split in ("train", "valid2")
        for n in range(4)
    ]
    rows = [row(number) for number in range(12)] + [row(number, split="valid2") for number in range(100, 105)]
    words = import_tldr(str(write_rows("batch.jsonl", rows + articles)), tmp_path / "out", setting="length", simulation=SMALL)
    assert {prompt.split()[0] for _, prompt, _, _ in chosen_texts(read_tables(tmp_path / "out"))} == {"Post"}
    assert "8 of articles, not of posts" in words


def test_articles_count_for_who_is_among_the_ten(tmp_path, write_rows):
    # The authors' code drops rows without a post after it has chosen the ten. "articles" has three rows, each other two.
    rows = [row(10 * worker + n, worker=f"w{worker:02d}") for worker in range(10) for n in range(2)]
    rows += [row(900 + n, worker="articles", info={"article": f"News {n}", "post": None}) for n in range(3)]
    rows += [row(number, split="valid2", worker="w00") for number in range(1000, 1005)]
    words = import_tldr(str(write_rows("batch.jsonl", rows)), tmp_path / "out", setting="length", simulation=SMALL)
    assert "2 of other workers than the ten" in words
    assert "3 of articles, not of posts" in words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choice": 2}, "the choice 0 or 1 (got 2, and 2)"),
        ({"summaries": []}, "two summaries"),
        ({"worker": ""}, "'worker' is blank"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"info": {"id": "1"}}, "neither post nor article"),
        ({"choice": "1"}, "'choice' must be int (got '1')"),
    ],
)
def test_mistakes_name_the_row(tmp_path, write_rows, change, said):
    with pytest.raises(DataError) as raised:
        import_tldr(str(write_rows("batch.jsonl", [row(0), row(1) | change])), tmp_path / "out")
    assert said in str(raised.value)
    assert "batch.jsonl, row 1" in str(raised.value)
    assert not (tmp_path / "out").exists()
