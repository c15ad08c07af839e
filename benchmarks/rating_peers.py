"""What ridge regression on frozen features makes of a rating task (LaMP_3): what a task base and an adapter have to beat.

    python benchmarks/rating_peers.py --lamp FOLDER

`base` is one regression on everybody else's ratings: as much as is to be known of a text without its rater, by these features.
The personal rows are a regression on the user's own history, which starts from the mean of the user's stars. Both choose their
penalty by leave-one-out on what they are fitted on; an answer is the nearest whole star. The features are MiniLM's pooled token
states beside the surface ones that a fit of rewards uses, too. Intervals and differences are those of
`penchant adapters evaluate`: 95%, over users, paired.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from _report import report
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from penchant.adapters.asking import wrong_users
from penchant.adapters.tasks.baselines import mean_rating
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor
from penchant.data.lamp import LampUser, find_task
from penchant.data.lamp.reading import read_lamp
from penchant.evaluation.personal import judge_rows

PENALTIES = np.logspace(1, 5, 9)


class Features:
    """Frozen features of the texts that are rated: each is encoded once."""

    def __init__(self, texts: list[str]) -> None:
        self.row = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        self.values = FeatureExtractor(BackboneSettings(name="minilm")).features([("", text) for text in self.row])

    def of(self, texts: list[str]) -> np.ndarray:
        return self.values[[self.row[text] for text in texts]]


def past(user: LampUser) -> tuple[list[str], np.ndarray]:
    """What a user had rated before the first query."""
    items = user.items[: min((query.seen for query in user.queries), default=len(user.items))]
    return [item.fields["text"] for item in items], np.array([float(item.fields["score"]) for item in items])


def asked(user: LampUser) -> list[str]:
    return [query.fields["text"] for query in user.queries]


def fit(features: np.ndarray, stars: np.ndarray) -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features, stars)


def answers(stars: np.ndarray) -> list[str]:
    return [str(int(star)) for star in np.clip(np.round(stars), 1, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lamp", type=Path, required=True, help="a folder of LaMP_3")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    task = find_task("LaMP_3")
    data = read_lamp(arguments.lamp, task)
    users = {name: user for name, user in data.targets.items() if user.queries}
    everybody = [*users.values(), *data.others.values()]
    features = Features([text for user in everybody for text in (*past(user)[0], *asked(user))])

    rated = [
        (past(user), (asked(user), np.array([float(query.gold) for query in user.queries]))) for user in data.others.values()
    ]
    texts = [text for both in rated for some, _ in both for text in some]
    pooled = fit(features.of(texts), np.concatenate([stars for both in rated for _, stars in both]))
    own = {name: fit(features.of(past(user)[0]), past(user)[1]) for name, user in users.items()}
    wrong = wrong_users(sorted(users), 0)
    rows = {
        "base": {name: answers(pooled.predict(features.of(asked(user)))) for name, user in users.items()},
        "mean stars": {name: mean_rating(task, user) or [] for name, user in users.items()},
        "the user's own": {name: answers(own[name].predict(features.of(asked(user)))) for name, user in users.items()},
        "the wrong user's": {name: answers(own[wrong[name]].predict(features.of(asked(user)))) for name, user in users.items()},
    }
    golds = {name: [query.gold for query in user.queries] for name, user in users.items()}
    table = judge_rows(task, golds, rows)
    said = [answer for told in rows["base"].values() for answer in told]
    report(
        "rating_peers",
        f"Ridge regression on frozen features: {table['users']} users, {table['queries']:,} queries",
        [{"regression": name, **_cells(metrics)} for name, metrics in table["rows"].items()],
        [f"`base` answers {max(set(said), key=said.count)} to {max(map(said.count, set(said))) / len(said):.1%} of the queries."],
    )


def _cells(metrics: dict) -> dict:
    cells = {}
    for name, cell in metrics.items():
        cells[name.upper()] = cell["value"]
        against = cell.get("difference")
        cells[f"{name.upper()}, against base"] = (
            "" if against is None else f"{against['value']:+.3f} [{against['low']:+.3f}, {against['high']:+.3f}]"
        )
    return cells


if __name__ == "__main__":
    main()
