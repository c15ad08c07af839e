"""TL;DR: the comparisons of OpenAI's summarize_from_feedback (Stiennon et al., arXiv 2009.01325), as in its files batch*.json.

`workers`: as people chose. A user is a worker, the prompt is the post (of CNN/Daily Mail the article), and the split is the
published one: train is train; valid1 and valid2, which the hub calls validation, are test.

`length`: the simulated users of CoPL (arXiv 2503.01658; repository ml-postech/CoPL, data/datagen_tldr.py). Half of them prefer
the shorter summary, half the longer. Pairs are those of the ten workers with the most rows, of summaries by supervised models
("sup" in both policies, "ppo" in neither), and of posts alone, as there: an article has no post. The ten are counted before
articles are left out. A user has 8 comparisons. Two summaries of one length have no shorter one and are left out; the authors
take one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from penchant.data.dataset import check_vacant
from penchant.data.importers.collecting import Choices, Origin, Responses, write_dataset
from penchant.data.importers.reading import find_parts, text_of, value_of
from penchant.data.importers.simulation import (
    Simulation,
    distinct_pairs,
    draw_pairs,
    even_groups,
    pair_texts,
    short_enough,
    write_simulated,
)
from penchant.errors import DataError

COMPARISONS = 8
"""Of a simulated user (CoPL's n_context)."""
TOP_WORKERS = 10
"""Whose rows the simulated users are asked about."""
Setting = Literal["workers", "length"]


def import_tldr(source: str, out: Path, *, setting: Setting = "workers", simulation: Simulation | None = None) -> str:
    """Makes the data set; returns what it holds and what to run next, in words.

    Args:
        source: A file, the folder of comparisons/, or a data set of the hub in its layout.
        simulation: For `length` alone, but for its seed.

    Raises:
        DataError: A file is missing, or a row is not in the published layout; told with its row and field.
        OutputError: `out` is there and not empty.
    """
    check_vacant(out)
    simulation = simulation or Simulation()
    if setting == "workers":
        return _import_workers(source, out, simulation.seed)
    return _import_length(source, out, simulation)


@dataclass(frozen=True)
class _Asked:
    """One row: two summaries of a text."""

    prompt: str
    is_post: bool
    """Whether the prompt is a post of Reddit, and not an article of CNN/Daily Mail."""
    texts: tuple[str, str]
    policies: tuple[str, str]
    choice: int
    worker: str
    is_test: bool


def _rows(source: str) -> Iterator[_Asked]:
    columns = ("info", "summaries", "choice", "worker", "split")
    for part in find_parts(source, columns=columns, hub_config="comparisons"):
        for where, row in part.rows():
            info = value_of(row, "info", where, dict)
            summaries = value_of(row, "summaries", where, list)
            choice = value_of(row, "choice", where, int)
            if len(summaries) != 2 or choice not in (0, 1) or not all(isinstance(summary, dict) for summary in summaries):
                raise DataError(
                    f"There must be two summaries, and the choice 0 or 1 (got {len(summaries)}, and {choice}).",
                    where=where,
                    fix="Give the files of comparisons/, not those of axis_evals/.",
                )
            worker, split = text_of(row, "worker", where), text_of(row, "split", where)
            if not worker:
                raise DataError("'worker' is blank: nobody's choice.", where=where, fix="Drop the row.")
            if split not in ("train", "valid1", "valid2"):
                raise DataError(f"There is no split {split!r}.", where=where, fix="It is train, valid1 or valid2.")
            texts, policies = ([text_of(summary, name, where) for summary in summaries] for name in ("text", "policy"))
            prompt = _first_text(info, ("post", "article"), where)
            is_post = info.get("post") is not None
            yield _Asked(prompt, is_post, (texts[0], texts[1]), (policies[0], policies[1]), choice, worker, split != "train")


def _first_text(info: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if info.get(name) is not None:
            return text_of(info, name, where)
    raise DataError(f"'info' has neither {' nor '.join(names)}.", where=where, fix="Give the files as they were published.")


def _import_workers(source: str, out: Path, seed: int) -> str:
    responses, choices = Responses(), Choices(Counter())
    for asked in _rows(source):
        pair = [responses.row(asked.prompt, text) for text in asked.texts]
        choices.add(asked.worker, pair[asked.choice], pair[1 - asked.choice], split="test" if asked.is_test else "train")
    return write_dataset(
        out,
        Origin(data_set="TL;DR, by worker", source=source, users_are="people", protocol={"setting": "workers", "seed": seed}),
        responses.table(),
        user=choices.user,
        chosen=choices.chosen,
        rejected=choices.rejected,
        facts=choices.facts,
        users=None,
        left_out=choices.left_out,
        seed=seed,
    )


def _import_length(source: str, out: Path, simulation: Simulation) -> str:
    responses, left_out = Responses(), Counter[str]()
    pairs, workers, is_test, is_post = [], [], [], []
    for asked in _rows(source):
        if all("sup" in policy and "ppo" not in policy for policy in asked.policies):
            pairs.append((responses.row(asked.prompt, asked.texts[0]), responses.row(asked.prompt, asked.texts[1])))
            workers.append(asked.worker)
            is_test.append(asked.is_test)
            is_post.append(asked.is_post)
        else:
            left_out["of other policies than supervised ones"] += 1
    test_P = np.array(is_test, dtype=bool)
    rows = Counter(worker for worker, test in zip(workers, is_test, strict=True) if not test)
    top = sorted(rows, key=lambda worker: (-rows[worker], worker))[:TOP_WORKERS]
    by_top = np.isin(np.array(workers, dtype=str), top)
    left_out["of other workers than the ten"] = int((~by_top).sum())
    eligible = by_top & np.array(is_post, dtype=bool)
    left_out["of articles, not of posts"] = int((by_top & ~eligible).sum())
    pair_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)[eligible]
    kept = distinct_pairs([(int(one), int(other)) for one, other in pair_P2])
    left_out["with a blank text, or again"] = len(pair_P2) - len(kept)
    pair_P2, test_P = pair_P2[kept], test_P[eligible][kept]
    table, prompt_R = pair_texts(responses)
    length_R = np.asarray(pc.utf8_length(table["response"])).astype(np.int64)
    length_P2 = length_R[pair_P2]
    keep = length_P2[:, 0] != length_P2[:, 1]
    left_out["of one length"] = int((~keep).sum())
    short = short_enough(simulation, table, pair_P2, "Human: {prompt} Assistant: {response}")
    left_out["of a text that is too long"] = int((keep & ~short).sum())
    keep &= short
    pair_P2, test_P, length_P2 = pair_P2[keep], test_P[keep], length_P2[keep]
    # A post is of one split; should one be of both, it is for training.
    test_P &= ~np.isin(prompt_R[pair_P2[:, 0]], prompt_R[pair_P2[~test_P][:, 0]])
    draw = draw_pairs(simulation, COMPARISONS, test_P, source, left_out)
    group = even_groups(simulation, 2)
    first_is_shorter = (length_P2[:, 0] < length_P2[:, 1])[draw.pair]
    return write_simulated(
        out,
        data_set=f"TL;DR, by length, {simulation.protocol.upper()}",
        source=source,
        protocol={"setting": "length", "top_workers": top},
        simulation=simulation,
        responses=table,
        pair_P2=pair_P2,
        controversial_P=np.ones(len(pair_P2), dtype=bool),
        draw=draw,
        first_C=first_is_shorter == (group[draw.user] == 0),
        user_facts={"group": np.array(["shorter", "longer"])[group]},
        left_out=left_out,
    )
