"""PersonalLLM (Zollo et al., arXiv 2409.20296): simulated users, each a mixture of reward models with Dirichlet weights.

A row of namkoong-lab/PersonalLLM is a prompt with eight responses `response_1` to `response_8`, and for each of them a score by
each of ten reward models, such as `response_1_gemma_2b`. The published split is kept.

`ten`: all ten models and all pairs of the eight responses, scores standardised by model, Dirichlet of .01 (repository
namkoong-lab/PersonalLLM, data/gen_pref_interaction_database.py). There a mean and a deviation of each model are constants that
are not in the repository: here they are those of the train rows. There a user has 25 to 49 choices; here 37, the mean.

`copl`: what CoPL's authors make of it (repository ml-postech/CoPL, data/datagen_plm.py): four of the models, scores as they
are, responses 5, 6 and 7, only pairs on which the four models are not of one mind, Dirichlet of .1, and 16 comparisons a user.
Where one of the three is over the length, the authors leave the prompt out; here the pair of the other two stays.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penchant.data.dataset import check_vacant
from penchant.data.importers.collecting import Responses
from penchant.data.importers.reading import Row, find_parts, text_of, value_of
from penchant.data.importers.simulation import Simulation, draw_pairs, pair_texts, short_enough, write_simulated
from penchant.errors import DataError

MODELS = (
    "gemma_2b", "gemma_7b", "mistral_raft", "mistral_ray", "mistral_weqweasdas",
    "llama3_sfairx", "oasst_deberta_v3", "beaver_7b", "oasst_pythia_7b", "oasst_pythia_1b",
)  # fmt: skip
"""The ten reward models, as the columns name them."""
COPL_MODELS = ("gemma_7b", "mistral_weqweasdas", "llama3_sfairx", "oasst_deberta_v3")
"""The four of CoPL's setting."""
Setting = Literal["ten", "copl"]
_ALPHA = {"ten": 0.01, "copl": 0.1}
_COMPARISONS = {"ten": 37, "copl": 16}
_RESPONSES = {"ten": range(1, 9), "copl": range(5, 8)}


def import_personalllm(source: str, out: Path, *, setting: Setting = "ten", simulation: Simulation | None = None) -> str:
    """Makes the data set of simulated users; returns what it holds, in words. The users' table has each one's weights.

    Args:
        source: A folder with the files of train and test, or `hub:namkoong-lab/PersonalLLM`.

    Raises:
        DataError: A file is missing, or a row is not in the published layout; told with its row and field.
        OutputError: `out` is there and not empty.
    """
    check_vacant(out)
    simulation = simulation or Simulation()
    models = MODELS if setting == "ten" else COPL_MODELS
    responses, left_out = Responses(), Counter[str]()
    scores: dict[int, list[float]] = {}
    pairs: list[tuple[int, int]] = []
    is_test: list[bool] = []
    numbers = _RESPONSES[setting]
    columns = ["prompt", *(f"response_{number}" for number in numbers)]
    columns += [f"response_{number}_{model}" for number in numbers for model in models]
    for part in find_parts(source, columns=columns):
        if part.split not in ("train", "test"):
            raise DataError(
                f"It is neither of train nor of test, by its name ({part.name}).",
                where=part.where,
                fix="Give the folder as it was downloaded: data/train-*.parquet and data/test-*.parquet.",
            )
        for where, row in part.rows():
            prompt = text_of(row, "prompt", where)
            rows = []
            for number in numbers:
                at = responses.row(prompt, text_of(row, f"response_{number}", where))
                if at < 0:
                    left_out["with a blank prompt or response"] += 1
                    continue
                scores[at] = [_score(row, f"response_{number}_{model}", where) for model in models]
                rows.append(at)
            own = list(itertools.combinations(dict.fromkeys(rows), 2))
            pairs += own
            is_test += [part.split == "test"] * len(own)
    table, prompt_R = pair_texts(responses)
    score_RM = np.array([scores[row] for row in range(len(responses))]).reshape(len(responses), len(models))
    pair_P2, test_P = np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(is_test, dtype=bool)
    # A prompt that is in both is for training.
    test_P &= ~np.isin(prompt_R[pair_P2[:, 0]], prompt_R[pair_P2[~test_P][:, 0]])
    if setting == "ten":
        score_RM = _standardised(score_RM, pair_P2[~test_P])
    margin_PM = score_RM[pair_P2[:, 0]] - score_RM[pair_P2[:, 1]]
    controversial = ~((margin_PM > 0).all(axis=1) | (margin_PM < 0).all(axis=1))
    keep = np.ones(len(pair_P2), dtype=bool) if setting == "ten" else controversial.copy()
    left_out["on which the reward models agree"] = int((~keep).sum())
    short = short_enough(simulation, table, pair_P2, "{response}")
    left_out["of a text that is too long"] = int((keep & ~short).sum())
    keep &= short
    pair_P2, margin_PM, controversial, test_P = (values[keep] for values in (pair_P2, margin_PM, controversial, test_P))
    draw = draw_pairs(simulation, _COMPARISONS[setting], test_P, source, left_out)
    random = np.random.default_rng([simulation.seed, 3])
    weight_UM = random.dirichlet([_ALPHA[setting]] * len(models), size=simulation.users + simulation.unseen_users)
    return write_simulated(
        out,
        data_set=f"PersonalLLM, {setting}, {simulation.protocol.upper()}",
        source=source,
        protocol={"setting": setting, "models": models, "alpha": _ALPHA[setting]},
        simulation=simulation,
        responses=table,
        pair_P2=pair_P2,
        controversial_P=controversial,
        draw=draw,
        first_C=(margin_PM[draw.pair] * weight_UM[draw.user]).sum(axis=1) > 0,
        user_facts={f"weight_{model}": weight_UM[:, column] for column, model in enumerate(models)},
        left_out=left_out,
    )


def _score(row: Row, name: str, where: str) -> float:
    value: Any = value_of(row, name, where, (int, float))
    if not np.isfinite(value):
        raise DataError(f"{name!r} must be a number (got {value!r}).", where=where, fix="Drop the row.")
    return float(value)


def _standardised(score_RM: np.ndarray, train_P2: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 for each model over the responses of train."""
    train_RM = score_RM[np.unique(train_P2)]
    if not len(train_RM):
        return score_RM
    spread = train_RM.std(axis=0)
    return (score_RM - train_RM.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
