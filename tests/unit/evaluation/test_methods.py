import numpy as np
import pytest
import torch

from penchant.data import PreferenceDataset
from penchant.errors import ConfigError
from penchant.evaluation.judgements import read_judgements, write_judgements
from penchant.evaluation.methods import MethodEvaluator
from penchant.methods.inputs import method_features, read_attribute
from penchant.methods.method import Shapes
from penchant.methods.registry import MethodChoice, build_method
from penchant.methods.training import MethodTrainer
from penchant.reward.config import HeadSettings, RewardSettings
from penchant.reward.training import RewardData


@pytest.fixture(scope="module")
def features(planted):
    """What each response shows: nothing else decides in the planted world."""
    table = planted[0].tables()["responses"]
    columns = [table[name].to_numpy() for name in table.column_names if name.startswith("shows_")]
    return torch.from_numpy(np.stack(columns, 1).astype(np.float32))


def evaluator_of(dataset, features, name, **values):
    settings = MethodChoice.model_validate({"method": {"name": name, **values}}).method
    attribute = read_attribute(dataset, settings)
    seen = int(dataset.seen.sum())
    rows = dataset.select(split=("train", "valid"), cohort="seen")
    shapes = Shapes(features.shape[1], 0, seen, 0 if attribute is None else len(attribute.values))
    trainer = MethodTrainer(
        RewardSettings(steps=200, batch_size=64, learning_rate=1e-2, evaluate_every=50),
        RewardData(features, rows.chosen, rows.rejected, rows.split == 1, {"uniform": None, "personalised": None}),
        user=torch.from_numpy(rows.user),
        num_users=seen,
        build=lambda: build_method(settings, shapes, HeadSettings()),
        attribute_U=None if attribute is None else torch.from_numpy(attribute.code_U[dataset.seen]),
    )
    list(trainer.run())
    vectors = trainer.seen_vectors()
    return MethodEvaluator(
        trainer.method, vectors, dataset, features, uniform=trainer.heads["uniform"].eval(), attribute=attribute
    )


@pytest.fixture(scope="module")
def lore(planted, features):
    return evaluator_of(planted[0], features, "lore", user_learning_rate=0.05)


def right(judged, method, mask):
    return float((judged.margins[method][mask] > 0).mean())


def test_a_method_is_judged_as_a_bundle_is(lore):
    judged = lore.judge(lore.users())
    assert set(judged.margins) == {"uniform", "personalised", "wrong_user"}
    for mask in (judged.seen & judged.controversial, ~judged.seen & judged.controversial):
        assert right(judged, "personalised", mask) > right(judged, "wrong_user", mask) + 0.1


def test_without_comparisons_a_user_is_scored_as_anybody(lore):
    curve = lore.onboarding_curve([0, 8])
    assert np.array_equal(curve[0].margins["personalised"], curve[0].margins["uniform"])
    assert not np.array_equal(curve[8].margins["personalised"], curve[8].margins["uniform"])


def test_judgements_are_read_as_they_were_written(lore, tmp_path):
    judged = lore.judge(lore.users())
    write_judgements(tmp_path / "judgements.parquet", judged)
    again = read_judgements(tmp_path / "judgements.parquet")
    assert again.margins.keys() == judged.margins.keys()
    for name in ("user", "prompt", "seen", "controversial"):
        assert np.array_equal(getattr(again, name), getattr(judged, name))
    assert np.array_equal(again.margins["personalised"], judged.margins["personalised"].astype(np.float32))


def test_the_proxy_knows_a_new_user_by_the_attribute_alone(planted, features):
    proxy = evaluator_of(planted[0], features, "proxy")
    users = proxy.users(limit=0)
    assert users.known_U.all()
    for group in range(len(planted[0].group_names)):
        assert len(users.embedding_UD[planted[0].group == group].unique(dim=0)) == 1
    curve = proxy.onboarding_curve([0])[0]
    assert right(curve, "personalised", curve.controversial) > right(curve, "uniform", curve.controversial) + 0.1


def test_an_attribute_that_training_has_not_seen_is_none(planted):
    tables = planted[0].tables()
    cohort = tables["users"]["cohort"].to_pylist()
    country = ["no" if part == "seen" else "elsewhere" for part in cohort]
    country[0] = None
    tables["users"] = tables["users"].append_column("country", [country])
    dataset = PreferenceDataset.from_tables(**tables)
    settings = MethodChoice.model_validate({"method": {"name": "proxy", "attribute": "country"}}).method
    attribute = read_attribute(dataset, settings)
    assert attribute.values == ["no"]
    assert attribute.code_U[0] == -1
    assert set(attribute.code_U[1:][dataset.seen[1:]]) == {0}
    assert set(attribute.code_U[~dataset.seen]) == {-1}
    with pytest.raises(ConfigError, match="no column 'country'"):
        read_attribute(planted[0], settings)


def test_the_prompts_features_stand_behind_the_responses():
    class Extractor:
        def features(self, texts):
            assert [response for _, response in texts] == ["", ""]
            return np.array([[len(prompt)] for prompt, _ in texts], dtype=np.float32)

    settings = MethodChoice.model_validate({"method": "pal-b"}).method
    features = torch.arange(6.0).reshape(3, 2)
    inputs = method_features(settings, features, iter(["a", "bbb", "a"]), Extractor())
    assert inputs.tolist() == [[0, 1, 1], [2, 3, 3], [4, 5, 1]]
    plain = MethodChoice.model_validate({"method": "lore"}).method
    assert method_features(plain, features, ["a"], Extractor()) is features
