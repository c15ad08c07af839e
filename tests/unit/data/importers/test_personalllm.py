import numpy as np
import pytest

from penchant.data import PreferenceDataset
from penchant.data.dataset import read_origin, read_tables
from penchant.data.importers.personalllm import COPL_MODELS, MODELS, import_personalllm
from penchant.data.importers.simulation import Simulation
from penchant.errors import DataError

SMALL = Simulation(users=30, unseen_users=5, comparisons=5, test_comparisons=2)


def rows(split, count, first=0):
    random = np.random.default_rng(first)
    found = []
    for number in range(first, first + count):
        row = {"prompt": f"Prompt {number}", "subset": "s"}
        for response in range(1, 9):
            row[f"response_{response}"] = f"answer {response} to {number}"
            for scale, model in enumerate(MODELS, start=1):
                row[f"response_{response}_{model}"] = float(random.normal()) * 10**scale
        found.append(row)
    return found


@pytest.fixture
def source(tmp_path, write_rows):
    write_rows("plm/data/train-00000-of-00001.parquet", rows("train", 20))
    write_rows("plm/data/test-00000-of-00001.parquet", rows("test", 6, first=100))
    return str(tmp_path / "plm")


def scores(models, standardised):
    """Score of each response's text by each model, from the rows themselves."""
    train, test = rows("train", 20), rows("test", 6, first=100)
    found = {
        row[f"response_{one}"]: np.array([row[f"response_{one}_{model}"] for model in models])
        for row in train + test
        for one in range(1, 9)
    }
    if standardised:
        learnt = np.array([found[row[f"response_{one}"]] for row in train for one in range(1, 9)])
        found = {text: (score - learnt.mean(axis=0)) / learnt.std(axis=0) for text, score in found.items()}
    return found


@pytest.mark.parametrize(("setting", "models"), [("ten", MODELS), ("copl", COPL_MODELS)])
def test_users_choose_by_their_own_mixture(tmp_path, source, chosen_texts, setting, models):
    words = import_personalllm(source, tmp_path / "out", setting=setting, simulation=SMALL)
    tables = read_tables(tmp_path / "out")
    known = scores(models, setting == "ten")
    weights = {row["user_id"]: np.array([row[f"weight_{model}"] for model in models]) for row in tables["users"].to_pylist()}
    assert all(weight.sum() == pytest.approx(1) for weight in weights.values())
    for user, _, chosen, rejected in chosen_texts(tables):
        assert weights[user] @ (known[chosen] - known[rejected]) > 0
    dataset = PreferenceDataset.load(tmp_path / "out")
    assert len(dataset.select(split=("train", "valid"))) == 35 * 5
    assert {
        int(dataset.prompts[at].split()[1]) >= 100 for at in dataset.prompt_of_response[dataset.select(split="test").chosen]
    } == {True}
    assert "35 simulated users" in words


def test_copls_setting_has_three_responses_and_pairs_that_its_models_differ_on(tmp_path, source, chosen_texts):
    words = import_personalllm(source, tmp_path / "out", setting="copl", simulation=SMALL)
    tables = read_tables(tmp_path / "out")
    known = scores(COPL_MODELS, False)
    agreed = 0
    for _, _, chosen, rejected in chosen_texts(tables):
        assert chosen.split()[1] in "567"
        margin = known[chosen] - known[rejected]
        agreed += bool((margin > 0).all() or (margin < 0).all())
    assert agreed == 0
    assert "on which the reward models agree" in words
    assert PreferenceDataset.load(tmp_path / "out").comparisons.controversial.all()
    assert read_origin(tmp_path / "out")["protocol"]["alpha"] == 0.1


def test_mistakes_name_the_row(tmp_path, write_rows, source):
    for change, said in (
        ({"response_3_beaver_7b": None}, "'response_3_beaver_7b' must be int or float (got None)"),
        ({"response_3_beaver_7b": float("nan")}, "must be a number (got nan)"),
        ({"prompt": 4}, "'prompt' must be a text"),
    ):
        bad = write_rows("bad/train.jsonl", [rows("train", 1)[0], rows("train", 1)[0] | change])
        with pytest.raises(DataError) as raised:
            import_personalllm(str(bad), tmp_path / "out", simulation=SMALL)
        assert said in str(raised.value)
        assert "train.jsonl, row 1" in str(raised.value)
    missing = rows("train", 1)[0]
    del missing["response_8_gemma_2b"]
    with pytest.raises(DataError, match="no 'response_8_gemma_2b'"):
        import_personalllm(str(write_rows("missing/train.parquet", [missing])), tmp_path / "out", simulation=SMALL)
    with pytest.raises(DataError, match=r"neither of train nor of test.*scores\.jsonl"):
        import_personalllm(str(write_rows("bad/scores.jsonl", rows("train", 1))), tmp_path / "out", simulation=SMALL)
    with pytest.raises(DataError, match="0 pairs for test"):
        import_personalllm(str(write_rows("only/train.jsonl", rows("train", 9))), tmp_path / "out", simulation=SMALL)
    assert not (tmp_path / "out").exists()
