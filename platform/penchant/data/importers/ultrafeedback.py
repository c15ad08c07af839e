"""UltraFeedback as UF-P-2 and UF-P-4: simulated users, who judge by one of the four ratings that GPT-4 gave every response.

The tastes and pairs are VPL's (Poddar et al., arXiv 2408.10075; repository WEIRDLabUW/vpl_llm, hidden_context/data_utils/
ultrafeedback_augment.py), the users CoPL's (Choi et al., arXiv 2503.01658; repository ml-postech/CoPL,
data/ultrafeedback_init.py and data/datagen_ufp.py):

- Ratings are those of openbmb/UltraFeedback, pairs those of argilla/ultrafeedback-binarized-preferences-cleaned: one a prompt.
  A pair with a missing rating (N/A) is left out.
- UF-P-4 has users of helpfulness, honesty, instruction following and truthfulness, equally many; UF-P-2 of the first two.
- A taste prefers the response that its rating is higher for; a tie is decided by a coin, once for all users of the taste.
- Only pairs on which the four tastes are not all of one mind are kept, in UF-P-2 too. There a pair is `controversial` where its
  two tastes differ; in UF-P-4 every pair is.
- A tenth of the prompts is for test. A user has 16 comparisons in UF-P-4, and 8 in UF-P-2.

Their random draws cannot be had again: the pairs and users that come out are other ones, by the same rules.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penchant.data.dataset import check_vacant
from penchant.data.importers.collecting import Responses
from penchant.data.importers.reading import find_parts, text_of, value_of
from penchant.data.importers.simulation import (
    Simulation,
    distinct_pairs,
    draw_pairs,
    even_groups,
    held_out_pairs,
    pair_texts,
    short_enough,
    write_simulated,
)
from penchant.errors import DataError

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
"""The rated aspects, in the order of VPL's user types 8, 4, 2 and 1."""
TASTES = {"uf-p-2": 2, "uf-p-4": 4}
"""How many of the aspects, from the first on, are somebody's taste."""
COMPARISONS = {"uf-p-2": 8, "uf-p-4": 16}
"""Of a user (CoPL's n_context)."""
Variant = Literal["uf-p-2", "uf-p-4"]


def import_ultrafeedback(
    source: str,
    out: Path,
    *,
    variant: Variant = "uf-p-4",
    pairs: str | None = None,
    common: bool = False,
    simulation: Simulation | None = None,
) -> str:
    """Makes the data set of simulated users; returns what it holds, in words.

    Args:
        source: UltraFeedback, with its ratings: a file, a folder or `hub:openbmb/UltraFeedback`.
        pairs: The binarised pairs; without them every two of a prompt's responses are a pair, which is not the published setting.
        common: Keep the pairs on which all four tastes agree as well (the authors leave them out).

    Raises:
        DataError: A file is missing, or a row is not in the published layout; told with its row and field.
        OutputError: `out` is there and not empty.
    """
    check_vacant(out)
    simulation = simulation or Simulation()
    responses, left_out = Responses(), Counter[str]()
    pair_list = [] if pairs is None else _read_pairs(pairs, responses)
    ratings = _read_ratings(source, responses, pair_list if pairs is None else None)
    kept = distinct_pairs(pair_list)
    left_out["with a blank prompt or response, or again"] = len(pair_list) - len(kept)
    pair_P2 = np.array(pair_list, dtype=np.int64).reshape(-1, 2)[kept]
    table, prompt_R = pair_texts(responses)
    rated = (ratings[pair_P2] > 0).all(axis=(1, 2))
    left_out["without all ratings"] = int((~rated).sum())
    pair_P2 = pair_P2[rated]
    short = short_enough(simulation, table, pair_P2, "Human: {prompt}\n\nAssistant: {response}")
    left_out["of a text that is too long"] = int((~short).sum())
    pair_P2 = pair_P2[short]
    margin_PA = ratings[pair_P2[:, 0]] - ratings[pair_P2[:, 1]]
    coin_PA = np.random.default_rng([simulation.seed, 2]).random(margin_PA.shape) < 0.5
    first_PA = (margin_PA > 0) | ((margin_PA == 0) & coin_PA)
    if not common:
        differ = first_PA.any(axis=1) & ~first_PA.all(axis=1)
        left_out["on which all four tastes agree"] = int((~differ).sum())
        pair_P2, first_PA = pair_P2[differ], first_PA[differ]
    tastes = TASTES[variant]
    first_PG = first_PA[:, :tastes]
    draw = draw_pairs(simulation, COMPARISONS[variant], held_out_pairs(simulation, prompt_R[pair_P2[:, 0]]), source, left_out)
    group = even_groups(simulation, tastes)
    return write_simulated(
        out,
        data_set=f"UltraFeedback, {variant.upper()}-{simulation.protocol.upper()}",
        source=source,
        protocol={"variant": variant, "pairs": pairs, "common": common},
        simulation=simulation,
        responses=table,
        pair_P2=pair_P2,
        controversial_P=first_PG.any(axis=1) & ~first_PG.all(axis=1),
        draw=draw,
        first_C=first_PG[draw.pair, group[draw.user]],
        user_facts={"group": np.array(ASPECTS)[group]},
        left_out=left_out,
    )


def _read_pairs(source: str, responses: Responses) -> list[tuple[int, int]]:
    pairs = []
    for part in find_parts(source, columns=("prompt", "chosen", "rejected")):
        for where, row in part.rows():
            prompt = text_of(row, "prompt", where)
            chosen, rejected = (_answer(row, name, where) for name in ("chosen", "rejected"))
            pairs.append((responses.row(prompt, chosen), responses.row(prompt, rejected)))
    return pairs


def _answer(row: dict[str, Any], name: str, where: str) -> str:
    """The last message of a conversation."""
    messages = value_of(row, name, where, list)
    if not messages or not isinstance(messages[-1], dict):
        raise DataError(f"{name!r} has no message.", where=where, fix="Give the pairs as they were published.")
    return text_of(messages[-1], "content", where)


def _read_ratings(source: str, responses: Responses, pairs: list[tuple[int, int]] | None) -> np.ndarray:
    """int64 (R, aspects), 0 where there is no rating. Where `pairs` is given, it gets every two responses of each prompt."""
    found: dict[int, list[int]] = {}
    for part in find_parts(source, columns=("instruction", "completions")):
        for where, row in part.rows():
            prompt = text_of(row, "instruction", where)
            rows = []
            for number, completion in enumerate(value_of(row, "completions", where, list)):
                place = f"{where}, completion {number}"
                text = text_of(completion, "response", place)
                at = responses.find(prompt, text) if pairs is None else responses.row(prompt, text)
                if at >= 0:
                    found[at] = [_rating(completion, aspect, place) for aspect in ASPECTS]
                    rows.append(at)
            if pairs is not None:
                pairs += itertools.combinations(rows, 2)
    ratings = np.zeros((len(responses), len(ASPECTS)), dtype=np.int64)
    if found:
        ratings[list(found)] = list(found.values())
    return ratings


def _rating(completion: dict[str, Any], aspect: str, where: str) -> int:
    """1 to 5; 0 where it is missing or N/A."""
    annotation = value_of(completion, "annotations", where, dict).get(aspect) or {"Rating": None}
    value = value_of(annotation, "Rating", f"{where}, {aspect}")
    if value in (None, "N/A"):
        return 0
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(
            f"The rating must be a number or N/A (got {value!r}).", where=f"{where}, {aspect}", fix="Mend or drop the row."
        ) from None
