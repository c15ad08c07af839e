import numpy as np
import pytest
import torch

from penchant.artifacts import write_json
from penchant.graph.config import GraphSettings
from penchant.runtime.training.graph_stage import _own_state, keep_best
from penchant.runtime.training.prepared import prepare
from penchant.runtime.training.reward_stage import _personal_users
from penchant.tensors import read_tensors, write_tensors


@pytest.fixture
def prepared(planted, tmp_path):
    return prepare(planted[0], tmp_path / "prepared")


def test_shards_together_are_the_data_set(prepared, planted):
    dataset, _ = planted
    for world_size in (1, 2, 3):
        shards = [prepared.shards(rank, world_size) for rank in range(world_size)]
        assert sum(train.num_users for train, _ in shards) == dataset.seen.sum()
        numbers = np.concatenate([part.comparison.numpy() for shard in shards for part in shard])
        assert sorted(numbers) == list(range(len(dataset.select(split=("train", "valid"), cohort="seen"))))


def test_no_test_comparison_and_no_unseen_user_is_prepared(prepared, planted):
    dataset, _ = planted
    columns = prepared.comparisons()
    assert len(columns["user"]) == len(dataset.select(split=("train", "valid"), cohort="seen"))
    assert columns["valid"].sum() == len(dataset.select(split="valid", cohort="seen"))
    test = dataset.select(split="test")
    assert not set(zip(columns["chosen"], columns["rejected"], strict=True)) & set(zip(test.chosen, test.rejected, strict=True))


def test_what_is_prepared_does_not_depend_on_what_test_users_chose(planted, tmp_path):
    from penchant.data import PreferenceDataset

    tables = planted[0].tables()
    rows = tables["comparisons"]
    is_test = np.array(rows["split"].to_pylist()) == "test"
    pair = [np.array(rows[name].to_pylist(), dtype=object) for name in ("chosen_id", "rejected_id")]
    for name, own, other in (("chosen_id", *pair), ("rejected_id", *pair[::-1])):
        turned = np.where(is_test, other, own)
        rows = rows.set_column(rows.column_names.index(name), name, [turned.tolist()])
    turned = PreferenceDataset.from_tables(**tables | {"comparisons": rows})
    assert turned.fingerprint != planted[0].fingerprint
    first, second = (prepare(dataset, tmp_path / name) for name, dataset in (("own", planted[0]), ("turned", turned)))
    for name in ("comparisons.parquet", "texts.parquet", "groups.safetensors"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_groups_stay_out_where_one_is_not_known(planted, tmp_path):
    from penchant.data import PreferenceDataset

    tables = planted[0].tables()
    groups = tables["users"]["group"].to_pylist()
    groups[0] = None
    at = tables["users"].column_names.index("group")
    tables["users"] = tables["users"].set_column(at, "group", [groups])
    assert prepare(PreferenceDataset.from_tables(**tables), tmp_path / "prepared").groups() is None


def candidate(folder, parts, accuracy, workers):
    users = torch.arange(12.0).reshape(6, 2)
    for rank in range(parts):
        rows = slice(6 * rank // parts, 6 * (rank + 1) // parts)
        name = f"{rank:05d}-of-{parts:05d}.safetensors"
        write_tensors(folder / f"users-{name}", {"embedding": users[rows] * accuracy})
        write_tensors(folder / f"folds-{name}", {"embedding": users[rows].repeat(3, 1, 1)})
    for name in ("encoder", "responses"):
        write_tensors(folder / f"{name}.safetensors", {"a": torch.zeros(1)})
    write_json(
        folder / "summary.json",
        {"valid_accuracy": accuracy, "workers": workers, "steps": 1, "best_step": 1, "seconds": 1.0},
    )


def test_best_candidate_is_joined_from_its_own_run_alone(tmp_path):
    """What an interrupted run with more workers has left in the folder is not taken for a part."""
    candidate(tmp_path / "text", 3, 0.5, workers=3)
    candidate(tmp_path / "id+text", 3, 0.7, workers=3)
    candidate(tmp_path / "id+text", 2, 0.7, workers=2)
    summary = keep_best(tmp_path, GraphSettings(), tmp_path / "graph")
    assert summary["chosen"] == "id+text"
    assert summary["seconds"] == 2.0
    assert torch.equal(
        read_tensors(tmp_path / "graph" / "users.safetensors")["embedding"], torch.arange(12.0).reshape(6, 2) * 0.7
    )
    assert read_tensors(tmp_path / "graph" / "folds.safetensors")["embedding"].shape == (3, 6, 2)


def test_checkpoint_of_another_number_of_workers_is_cut_anew():
    rows = torch.arange(10.0).reshape(5, 2)
    saved = [
        {"encoder.user_rows": rows[:2], "encoder.shared": torch.ones(2, 2), "progress": torch.ones(3)},
        {"encoder.user_rows": rows[2:], "encoder.shared": torch.ones(2, 2), "progress": torch.ones(3)},
    ]
    own = [_own_state(saved, rank, 3, 5) for rank in range(3)]
    assert torch.equal(torch.cat([state["encoder.user_rows"] for state in own]), rows)
    assert all(state["encoder.shared"].shape == (2, 2) for state in own)
    assert _own_state(saved, 1, 2, 5) is saved[1]


def test_training_comparisons_use_the_embedding_without_their_fold(tmp_path):
    users, folds = torch.zeros(4, 2), torch.arange(1.0, 4).view(3, 1, 1).expand(3, 4, 2).contiguous()
    write_tensors(tmp_path / "users.safetensors", {"embedding": users})
    write_tensors(tmp_path / "folds.safetensors", {"embedding": folds})
    columns = {"user": np.arange(40) % 4, "number": np.arange(40), "valid": np.arange(40) >= 30}
    from penchant.graph.sampling import fold_of

    table = _personal_users(tmp_path, columns, seed=5)
    used = table.embedding[table.row][:, 0]
    assert torch.equal(used[:30], 1 + fold_of(torch.arange(30), folds=3, seed=5).float())
    assert (used[30:] == 0).all(), "validation is judged with the whole embedding"
    write_tensors(tmp_path / "folds.safetensors", {"embedding": folds[:0]})
    assert np.array_equal(_personal_users(tmp_path, columns, seed=5).row, columns["user"])


@pytest.mark.parametrize(
    ("cohorts", "said"),
    [(["seen"], "There is one seen user"), (["unseen", "unseen"], "There are no seen users")],
)
def test_nothing_is_learnt_from_one_user(cohorts, said):
    import pyarrow as pa

    from penchant.data import PreferenceDataset
    from penchant.errors import DataError
    from penchant.runtime.training.prepared import check_learnable

    users = [f"u{number}" for number in range(len(cohorts))]
    dataset = PreferenceDataset.from_tables(
        responses=pa.table({"response_id": ["a", "b"], "prompt_id": ["p"] * 2, "prompt": ["Why?"] * 2, "response": ["A", "B"]}),
        comparisons=pa.table(
            {"user_id": users, "prompt_id": ["p"] * len(users), "chosen_id": ["a"] * len(users),
             "rejected_id": ["b"] * len(users), "split": ["train"] * len(users)}
        ),
        users=pa.table({"user_id": users, "cohort": cohorts}),
    )  # fmt: skip
    with pytest.raises(DataError, match=said):
        check_learnable(dataset)


def test_what_cannot_be_judged_is_refused_before_it_is_trained(planted, tmp_path, tiny_backbone, monkeypatch):
    import pyarrow.compute as pc
    from rich.console import Console

    from penchant.config import load_settings
    from penchant.data import PreferenceDataset
    from penchant.errors import DataError
    from penchant.runtime.training import stages as module
    from penchant.runtime.training.config import FitSettings
    from penchant.runtime.training.evaluation_stage import evaluate

    tables = planted[0].tables()
    tables["comparisons"] = tables["comparisons"].filter(pc.not_equal(tables["comparisons"]["split"], "test"))
    settings = load_settings(FitSettings, overrides=[f"backbone.name={tiny_backbone}"])
    stages = module.Stages(PreferenceDataset.from_tables(**tables), settings, tmp_path / "run", Console(quiet=True))
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("it has begun"))
    for work in (stages.fit, lambda: evaluate(stages)):
        with pytest.raises(DataError, match="There is no test comparison"):
            work()


@pytest.mark.parametrize(
    ("tried", "kept", "noted"), [("{}", 0, True), ('{"forward": NaN}', 0, True), ('{"forward": 0.5}', 1, False)]
)
def test_an_onboarding_that_nothing_was_tried_for_is_noted(tmp_path, tried, kept, noted):
    from penchant.runtime.training.evaluation_stage import read_onboarding

    (tmp_path / "onboarding.json").write_text(f'{{"kind": "prototypes", "tried": {tried}}}')
    found, notes = read_onboarding(tmp_path / "onboarding.json")
    assert len(found["tried"]) == kept
    assert any("prototypes was taken untried" in note for note in notes) == noted


def test_texts_come_in_batches_of_so_many_bytes(planted, tmp_path, monkeypatch):
    from penchant.runtime.training import prepared as module

    monkeypatch.setattr(module, "_TEXTS_READ", 7)
    prepared = prepare(planted[0], tmp_path / "prepared")
    dataset = planted[0]
    whole = [(dataset.prompts[at], text) for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    assert prepared.texts() == whole
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 1)
    batches = list(prepared.text_batches())
    assert [text for batch in batches for text in batch] == whole
    assert max(map(len, batches)) == 7


@pytest.mark.parametrize(("asked", "given"), [(6, 4), (3, 3)])
def test_a_stage_gets_no_more_workers_than_it_has_work_for_and_says_so(
    planted, tiny_backbone, tmp_path, monkeypatch, asked, given
):
    from rich.console import Console

    from penchant.config import load_settings
    from penchant.runtime.training import stages as module
    from penchant.runtime.training.config import FitSettings
    from penchant.runtime.training.workers import WorkerGroup

    settings = [f"backbone.name={tiny_backbone}", f"workers.num_workers={asked}", "workers.min_workers=1"]
    console, used = Console(record=True, width=200), []
    stages = module.Stages(planted[0], load_settings(FitSettings, overrides=settings), tmp_path / "run", console)
    monkeypatch.setattr(module, "start_ray", lambda address: None)
    monkeypatch.setattr(module, "wait_for_resources", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "choose_workers", lambda workers: WorkerGroup(workers.num_workers, 1, 1, use_gpu=False))
    monkeypatch.setattr(module, "run_stage", lambda *args, settings, **kwargs: used.append(settings))
    stages._run("experts", None, [], {}, most_workers=4)
    assert (used[0].num_workers, used[0].min_workers) == (given, 1)
    assert ("there is work for 4 of 6 workers" in console.export_text()) == (asked > given)
