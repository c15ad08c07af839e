"""A sweep against the default settings: trials and minutes, how many were stopped early, and both fits on the test choices.

    python benchmarks/sweep.py                                          # the planted world of `make demo`
    python benchmarks/sweep.py --data my-data --trials 16 --time 30m --out runs/sweep
    python benchmarks/sweep.py --data my-data --out runs/sweep --default runs/mine    # a default fit that is there already
    python benchmarks/sweep.py --data my-data --out runs/sweep --sweep-only

The sweep chooses by validation. If it does not choose the default, both are fitted in full, at the same budget, and judged on
the same test choices: the difference is paired, with a 95% interval from a two-way bootstrap over users and prompts. Run again,
it takes up where it was.
"""

import argparse
import time
from pathlib import Path

from _data import DEMO, tables
from _report import report
from rich.console import Console

from penchant.cli.tune import parse_seconds, show_trials
from penchant.config import load_settings
from penchant.data import PreferenceDataset
from penchant.evaluation.evaluate import Evaluator
from penchant.evaluation.judgements import Judgements
from penchant.evaluation.metrics import Bootstrap, interval
from penchant.runtime.training.config import FitSettings
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.stages import Stages
from penchant.runtime.tuning.candidates import base_settings
from penchant.runtime.tuning.results import STOPPED
from penchant.runtime.tuning.space import load_space
from penchant.runtime.tuning.sweep import Sweep

console = Console(width=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=tables, default=DEMO)
    parser.add_argument("--space", default="tune/depth-experts.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sweep"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--time", default="30m")
    parser.add_argument("--config", type=Path, help="settings of the default fit, and of what the trials start from")
    parser.add_argument("--default", type=Path, help="folder of the default fit; made where it is not there")
    parser.add_argument("--sweep-only", action="store_true", help="leave the two fits out")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    dataset = PreferenceDataset.load(arguments.data)
    space = load_space(arguments.space)
    base = base_settings(space, arguments.config, arguments.overrides, where=arguments.space)
    started = time.monotonic()
    seconds = parse_seconds(arguments.time)
    sweep = Sweep(dataset, space, base, arguments.out / "sweep", console, trials=arguments.trials, seconds=seconds)
    result = sweep.run()
    whole = time.monotonic() - started
    show_trials(result.rows, result.values)
    found = result.values["summary"]
    facts = {
        "trials": found["trials"],
        "minutes": f"{found['seconds'] / 60:.1f}",
        "with start-up": f"{whole / 60:.1f}",
        "stopped early": f"{found['states'].get(STOPPED, 0)} ({found['stopped_early_share']:.0%})",
        "training, s": found["training_seconds"],
        "shared, s": found["shared_seconds"],
        "overhead, s a trial": found["overhead_seconds_a_trial"],
        "most accurate on validation": f"{result.rows[0].accuracy:.4f}",
        "chosen": f"{result.best.accuracy:.4f}",
    }
    report("sweep", f"A sweep over {', '.join(space.parameters)}: {arguments.data}", [facts])
    if not arguments.sweep_only:
        settings = load_settings(FitSettings, arguments.config, arguments.overrides)
        best = load_settings(FitSettings, sweep.out / "best.yaml")
        if best == settings.model_copy(update={"workers": best.workers}):
            console.print("The default was chosen: it is no worse than itself.")
        else:
            compare(dataset, settings, best, arguments)


def compare(dataset: PreferenceDataset, default: FitSettings, best: FitSettings, arguments: argparse.Namespace) -> None:
    """Fits both in full, and prints the paired difference on test for every cell."""
    judged = {
        "best": judge(dataset, best, arguments.out / "best"),
        "default": judge(dataset, default, arguments.default or arguments.out / "default"),
    }
    first = judged["best"]
    both = Judgements(
        user=first.user,
        prompt=first.prompt,
        seen=first.seen,
        controversial=first.controversial,
        margins={name: judgements.margins["personalised"] for name, judgements in judged.items()},
    )
    bootstrap = Bootstrap(both, resamples=default.evaluation.resamples, methods=tuple(judged))
    rows = []
    for cohort, kind in bootstrap.cells:
        keys = ("best", cohort, kind), ("default", cohort, kind)
        low, high = interval(bootstrap.resampled[keys[0]] - bootstrap.resampled[keys[1]])
        rows.append(
            {
                "users, pairs": f"{cohort}, {kind}",
                "choices": bootstrap.count[cohort, kind],
                "default": f"{bootstrap.value[keys[1]]:.4f}",
                "best": f"{bootstrap.value[keys[0]]:.4f}",
                "difference": f"{bootstrap.value[keys[0]] - bootstrap.value[keys[1]]:+.4f}",
                "interval": f"[{low:+.4f}, {high:+.4f}]",
            }
        )
    report("sweep-test", f"The best of the sweep against the default, on test: {arguments.data}", rows)


def judge(dataset: PreferenceDataset, settings: FitSettings, out: Path) -> Judgements:
    """A fit in full, and what it says of the test comparisons."""
    stages = Stages(dataset, settings, out, console)
    stages.fit_reward()
    features = Prepared.open(stages.run.stage("prepared")).features().float()
    evaluator = Evaluator(stages.model(), dataset, features, seed=settings.evaluation.seed)
    return evaluator.judge(evaluator.users())


if __name__ == "__main__":
    main()
