import numpy as np
import pytest
import torch

from penchant.data.planted import ATTRIBUTES
from penchant.errors import TrainingError
from penchant.graph.collectives import Collective
from penchant.graph.config import CandidateSettings, EncoderSettings, OptimizationSettings
from penchant.graph.inductive import embed_responses, embed_users
from penchant.graph.mixture import MixtureLayer
from penchant.graph.preference_graph import PreferenceShard, messages
from penchant.graph.sampling import fold_of, initial_rows, uniform
from penchant.graph.training import GraphTrainer

ENCODERS = {
    "published": EncoderSettings(dim=8, num_layers=2, response_init="id", user_init="id"),
    "text": EncoderSettings(dim=8, num_layers=2),
    "id+text": EncoderSettings(dim=8, num_layers=2, response_init="id+text"),
    "mixture": EncoderSettings(dim=8, num_layers=1, layer="mixture"),
}


def trainer(dataset, encoder, features=None, *, valid=True, **optimization):
    if features is None:
        features = np.random.default_rng(0).normal(size=(len(dataset.response_ids), 6)).astype(np.float32)
    shards = []
    for split in ("train", "valid"):
        part = dataset.select(split=split, cohort="seen")
        part = part if valid or split == "train" else part.take(np.zeros(0, dtype=np.int64))
        shards.append(
            PreferenceShard.build(
                part.user, part.chosen, part.rejected, np.arange(len(part)),
                first_user=0, num_users=int(dataset.seen.sum()), num_responses=len(dataset.response_ids),
            )
        )  # fmt: skip
    settings = CandidateSettings(encoder=encoder, optimization=OptimizationSettings(**optimization))
    return GraphTrainer(settings, *shards, features=torch.from_numpy(features), collective=Collective())


@pytest.mark.parametrize("name", ENCODERS)
def test_resuming_gives_the_uninterrupted_run(planted, name):
    whole, first, second = (trainer(planted[0], ENCODERS[name], edge_dropout=0.1) for _ in range(3))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state(first.state())
    for _ in range(3):
        second.step()
    for key, value in whole.state().items():
        assert torch.equal(value, second.state()[key]), key


def test_published_graph_recovers_the_planted_groups(planted):
    dataset, _ = planted
    from penchant.evaluation.users import group_purity

    encoder = EncoderSettings(dim=16, num_layers=4, response_init="id", user_init="id")
    graph = trainer(dataset, encoder, max_steps=150, patience=30)
    assert max(progress.valid_accuracy for progress in graph.run()) > 0.55
    everyone = np.ones(int(dataset.seen.sum()), dtype=bool)
    purity = group_purity(graph.embeddings().user.numpy(), dataset.group[dataset.seen], fit_U=everyone, of_U=everyone)
    assert purity > 0.5  # chance is a quarter


@pytest.mark.parametrize("name", ["text", "mixture"])
def test_forward_pass_of_a_seen_user_gives_their_embedding_up_to_the_extra_edge(planted, name):
    """A user embedded anew from the same edges differs only through the responses' degrees, which count them once more."""
    dataset, _ = planted
    graph = trainer(dataset, ENCODERS[name], max_steps=20)
    list(graph.run())
    result = graph.embeddings()
    graph.encoder.load_state_dict(graph.best_state)
    part = dataset.select(split="train", cohort="seen")
    embedded = embed_users(
        graph.encoder, result.response_layers, result.response_degree - 1, part.user, part.chosen, part.rejected,
        num_users=int(dataset.seen.sum()),
    )  # fmt: skip
    assert torch.allclose(embedded, result.user, atol=1e-5)


def test_fold_embedding_is_that_of_a_graph_without_its_comparisons(planted):
    dataset, _ = planted
    graph = trainer(dataset, ENCODERS["text"], max_steps=5)
    list(graph.run())
    folds = graph.embeddings(folds=3).user_folds
    part = dataset.select(split="train", cohort="seen")
    fold = fold_of(torch.arange(len(part)), folds=3, seed=0).numpy()
    assert set(fold) == {0, 1, 2}
    for number in range(3):
        kept = part.take(fold != number)
        shard = PreferenceShard.build(
            kept.user, kept.chosen, kept.rejected, np.arange(len(kept)),
            first_user=0, num_users=int(dataset.seen.sum()), num_responses=len(dataset.response_ids),
        )  # fmt: skip
        graph.encoder.load_state_dict(graph.best_state)
        users, _ = graph.encoder(messages(shard, Collective()), graph.features)
        assert torch.allclose(torch.nn.functional.normalize(users, dim=1), folds[number], atol=1e-5)


@pytest.mark.parametrize("name", ["text", "mixture"])
def test_fresh_responses_have_an_embedding_at_every_layer(planted, name):
    graph = trainer(planted[0], ENCODERS[name])
    layers = embed_responses(graph.encoder, torch.randn(5, 6))
    assert layers.shape == (ENCODERS[name].num_layers + 1, 5, 8)
    assert torch.isfinite(layers).all()


def test_mixture_drops_the_same_units_in_the_same_step_alone(planted):
    graph = trainer(planted[0], ENCODERS["mixture"])
    views = [messages(graph.train, Collective(), step=step) for step in ((0, 3), (0, 3), (0, 4), None, None)]
    first, again, later, whole, whole_again = (graph.encoder(view, graph.features)[1] for view in views)
    assert torch.equal(first, again)
    assert torch.equal(whole, whole_again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, whole)


def test_mixture_drops_a_fifth_and_keeps_the_sum(planted):
    graph = trainer(planted[0], ENCODERS["mixture"])
    layer = MixtureLayer(64)
    torch.nn.init.zeros_(layer.shared.weight)
    layer.own.weight.data.copy_(torch.eye(64))
    ones = torch.ones(graph.train.num_responses, 64)
    _, kept = layer(torch.zeros(graph.train.num_users, 64), ones, messages(graph.train, Collective(), step=(0, 3)))
    assert kept.mean().item() == pytest.approx(1, abs=0.01)
    assert (kept == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_mixture_learns_the_planted_tastes(planted):
    dataset, _ = planted
    responses = dataset.tables()["responses"]
    shows = np.stack([responses[f"shows_{name}"].to_numpy(zero_copy_only=False) for name in ATTRIBUTES], axis=1)
    encoder = EncoderSettings(dim=16, num_layers=1, layer="mixture")
    graph = trainer(dataset, encoder, shows.astype(np.float32), max_steps=150, patience=30)
    assert max(progress.valid_accuracy for progress in graph.run()) > 0.75  # who knows nobody gets .69 at best


def test_loss_that_is_not_finite_stops_the_stage(planted):
    graph = trainer(planted[0], ENCODERS["text"])
    graph.encoder.project.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="nan at step 0"):
        graph.step()


def test_hash_is_uniform_and_depends_on_step_and_stream():
    index = torch.arange(100_000)
    draws = uniform(index, seed=1, step=2, stream=3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    for other in (uniform(index, seed=1, step=3, stream=3), uniform(index, seed=1, step=2, stream=4)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.02


def test_rows_do_not_depend_on_the_sharding():
    whole = initial_rows(0, 10, 4, seed=5, stream=1, dtype=torch.float64)
    parts = [initial_rows(start, stop, 4, seed=5, stream=1, dtype=torch.float64) for start, stop in ((0, 3), (3, 10))]
    assert torch.equal(whole, torch.cat(parts))


def test_without_validation_comparisons_the_last_step_is_kept(planted):
    graph = trainer(planted[0], ENCODERS["text"], valid=False, max_steps=60, patience=1)
    assert len(list(graph.run())) > 1
    assert graph.best_step == graph.step_number == graph.settings.max_steps
    for name, value in graph.encoder.state_dict().items():
        assert torch.equal(value, graph.best_state[name])


def test_a_mixture_is_one_layer():
    with pytest.raises(ValueError, match="num_layers: 1"):
        EncoderSettings(layer="mixture")


def batched(**values):
    return {"supervision_share": 0.0, "batch_size": 100} | values


def test_batches_are_an_epoch_each_comparison_once(planted):
    graph = trainer(planted[0], ENCODERS["published"], **batched(num_epochs=2))
    assert graph.batches == -(-len(graph.train) // 100)
    assert graph.steps == 2 * graph.batches
    scored = []
    for step in range(graph.steps):
        graph.step_number = step
        scored.append(graph._choose_supervised()[1])
    first, second = torch.stack(scored).split(graph.batches)
    assert bool((first.sum(0) == 1).all())
    assert bool((second.sum(0) == 1).all())
    assert not torch.equal(first, second)  # another order in each epoch
    assert all(60 < size < 140 for size in first.sum(1).tolist())


def test_a_batch_is_scored_under_the_whole_graph(planted):
    graph = trainer(planted[0], ENCODERS["published"], **batched())
    passed, supervised = graph._choose_supervised()
    assert bool(passed.positive.visible.all())
    assert 0 < supervised.sum() < len(graph.train)


def test_looks_come_after_each_epoch(planted):
    graph = trainer(planted[0], ENCODERS["published"], **batched(num_epochs=3, evaluate_every=1, patience=9))
    assert [progress.step for progress in graph.run()] == [graph.batches, 2 * graph.batches, 3 * graph.batches]


def test_the_rate_rises_and_falls_as_half_a_cosine():
    settings = OptimizationSettings(learning_rate=2.0, lr_scheduler_type="cosine", warmup_ratio=0.1)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert max(rates) == rates[10] == 2.0
    assert [rates[0], rates[5], rates[55], rates[99]] == pytest.approx([0.0, 1.0, 1.0, 0.0], abs=0.002)
    assert {OptimizationSettings(learning_rate=2.0).rate(step, 100) for step in range(100)} == {2.0}


def test_the_l2_term_is_the_squares_of_the_scored_comparisons(planted):
    plain, heavy = (trainer(planted[0], ENCODERS["text"], supervision_share=0.0, embedding_l2=weight) for weight in (0.0, 0.01))
    user, response = plain.encoder(messages(plain.train, Collective()), plain.features)
    rows = [
        user[plain.train.positive.user],
        response[plain.train.positive.response.long()],
        response[plain.train.negative.response.long()],
    ]
    expected = 0.01 * sum(row.square().sum() for row in rows)
    assert heavy.step() - plain.step() == pytest.approx(expected.item(), rel=1e-4)


def test_batches_go_with_comparisons_that_stay_in_the_graph():
    with pytest.raises(ValueError, match="supervision_share: 0"):
        OptimizationSettings(batch_size=8)


def test_what_came_later_is_not_written_where_it_is_the_default():
    """Runs from before it have the same settings as those after it."""
    assert not {"batch_size", "num_epochs", "lr_scheduler_type", "warmup_ratio", "embedding_l2"} & set(
        OptimizationSettings().model_dump()
    )
    assert OptimizationSettings(**batched(num_epochs=3)).model_dump()["num_epochs"] == 3
