"""The experts against the frozen phase: the same graph, several seeds, paired on the same test choices.

    python benchmarks/experts.py                                     # the planted world of `make demo`
    python benchmarks/experts.py --data my-data --run runs/mine      # a run of `penchant fit`; what it lacks is fitted first
    python benchmarks/experts.py num_experts=8 load_balance_coef=0   # other experts, over the same graph and frozen heads

For each seed the frozen head is trained, and the experts from it on; both are judged on the run's test comparisons, for users as
the run embeds them. Intervals: 95%, two-way bootstrap over users and prompts.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from _data import DEMO, tables
from _report import report
from rich.console import Console
from rich.progress import track

from penchant.backbone.loading import load_backbone
from penchant.backbone.reading import TextReader, trainable_part
from penchant.config import load_settings
from penchant.data import PreferenceDataset
from penchant.evaluation.evaluate import Evaluator
from penchant.evaluation.experts import expert_choice
from penchant.evaluation.judgements import Judgements
from penchant.evaluation.metrics import Bootstrap, interval
from penchant.reward.config import ExpertSettings
from penchant.reward.expert_training import ExpertData, ExpertTrainer
from penchant.reward.training import RewardData, RewardTrainer
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.expert_stage import cached_activations, start_model
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.reward_stage import user_tables
from penchant.runtime.training.stages import Stages
from penchant.scoring.tables import ExpertTable, FrozenTable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=tables, default=DEMO)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the experts, instead of the run's")
    arguments = parser.parse_args()
    config = arguments.run / "config.yaml"
    settings = load_settings(FitSettings, config if config.is_file() else None)
    # A run without experts (the demo's) gets the default ones here.
    own = settings.experts if settings.experts.num_experts else ExpertSettings()
    experts = load_settings(ExpertSettings, values=own.model_dump(mode="json"), overrides=arguments.overrides)
    dataset = PreferenceDataset.load(arguments.data)
    stages = Stages(dataset, settings, arguments.run, Console())
    stages.fit_reward()
    model, prepared = stages.model(), Prepared.open(stages.run.stage("prepared"))
    features = prepared.features().float()
    evaluator = Evaluator(model, dataset, features)
    users = evaluator.users()
    rows = []
    for seed in arguments.seeds:
        margins, facts = judge(stages, model, prepared, features, evaluator, users, experts.model_copy(update={"seed": seed}))
        test = evaluator.test
        judgements = Judgements(
            user=test.user,
            prompt=dataset.prompt_of_response[test.chosen],
            seen=dataset.seen[test.user],
            controversial=test.controversial,
            margins=margins,
        )
        bootstrap = Bootstrap(judgements, resamples=settings.evaluation.resamples)
        for cohort, kind in bootstrap.cells:
            keys = ("personalised", cohort, kind), ("frozen", cohort, kind)
            low, high = interval(bootstrap.resampled[keys[0]] - bootstrap.resampled[keys[1]])
            rows.append(
                {
                    "seed": seed,
                    "users, pairs": f"{cohort}, {kind}",
                    "frozen": f"{bootstrap.value[keys[1]]:.4f}",
                    "experts": f"{bootstrap.value[keys[0]]:.4f}",
                    "difference": f"{bootstrap.value[keys[0]] - bootstrap.value[keys[1]]:+.4f}",
                    "interval": f"[{low:+.4f}, {high:+.4f}]",
                    **facts,
                }
            )
    title = " ".join([f"Experts against the frozen phase: {arguments.data}", *arguments.overrides])
    report("experts", title, rows)


def judge(stages, model, prepared, features, evaluator, users, experts) -> tuple[dict[str, np.ndarray], dict[str, str]]:  # type: ignore[no-untyped-def]
    """Margins of both on the test comparisons, and facts of the training."""
    settings, graph = stages.settings, stages.run.stage("graph")
    columns = prepared.comparisons()
    table = user_tables(prepared, columns, graph, seed=settings.graph.seed)["personalised"]
    coded = {name: columns[name] for name in ("chosen", "rejected", "valid")}
    frozen = RewardTrainer(
        settings.reward.model_copy(update={"seed": experts.seed}),
        RewardData(feature_RF=features, users={"personalised": table}, **coded),
    )
    list(frozen.run())
    head = frozen.heads["personalised"]
    head.load_state_dict(frozen.best_state["personalised"])
    test, asked = evaluator.test, users.embedding_UD[evaluator.test.user]
    both = np.concatenate([test.chosen, test.rejected])
    margins = {"frozen": margin(FrozenTable.from_features(head.eval(), features), both, asked)}

    whole, tokenizer = load_backbone(settings.backbone)
    reader = TextReader(tokenizer, settings.backbone, cached_activations(whole, tokenizer, settings.backbone, experts))
    base = trainable_part(whole, experts.layers, dropout=experts.base_dropout)
    made = start_model(base, head, settings.backbone, experts, table)
    texts = prepared.texts()
    data = ExpertData(texts=texts, prompt=prepared.prompts()[columns["chosen"]], users={"personalised": table}, **coded)
    trainer = ExpertTrainer(experts.model_copy(update={"valid_prompts": 0}), data, {"personalised": made}, reader)
    started = time.monotonic()
    for _ in track(trainer.run(), total=experts.steps, description=f"Seed {experts.seed}"):
        pass
    seconds = time.monotonic() - started
    margins["personalised"] = margin(ExpertTable(made.eval(), reader, texts), both, asked)
    load = expert_choice(made, model.parts.user_UD).mean(0)
    return margins, {"training, s": f"{seconds:.0f}", "load": " ".join(f"{share:.2f}" for share in load)}


def margin(table, both, asked) -> np.ndarray:  # type: ignore[no-untyped-def]
    chosen, rejected = table.score(both, asked.repeat(2, 1)).chunk(2)
    return (chosen - rejected).numpy()


if __name__ == "__main__":
    main()
