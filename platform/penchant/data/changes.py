"""Planted troubles: a data set whose training choices were changed on purpose, while its test choices stay what they are.

What is changed is what is learnt from: seen users' train comparisons, and the train and valid ones of unseen users, who are
onboarded from both. Seen users' valid comparisons, by which models are chosen, are left alone.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from penchant.config import Settings
from penchant.data.dataset import PreferenceDataset
from penchant.errors import DataError


class ChangeSettings(Settings):
    """What is done to the comparisons that are learnt from, in this order."""

    keep: int | None = Field(None, ge=1)
    """Comparisons that a user keeps at most, drawn at random."""
    skew: float | None = Field(None, ge=0)
    """Half of the comparisons are kept, of popular prompts rather than others: the k-th most popular prompt (in an order
    drawn at random) with a weight of k ** -skew. 0 keeps a half at random, to compare with. Everybody keeps one at least."""
    drift: float = Field(0.0, ge=0, le=1)
    """Share of users whose taste was another one before: the first half of their comparisons is replaced by that of a user of
    another group."""
    flip: float = Field(0.0, ge=0, le=1)
    """Share of the choices that are turned around."""
    adversaries: float = Field(0.0, ge=0)
    """Accounts that are added, as a share of the seen users: each has a seen user's train comparisons, all turned around, and
    says to be of that user's group. So the oracle, and the proxy by the group, are misled too: what they are told of these
    accounts is false, and both may fall below methods that go by choices alone."""


def change_choices(dataset: PreferenceDataset, settings: ChangeSettings, *, seed: int = 0) -> PreferenceDataset:
    """The data set with its training choices changed; the same seed changes the same ones.

    Raises:
        DataError: Tastes are to drift, and the users' groups are not known.
    """
    if settings == ChangeSettings():
        return dataset
    random = np.random.default_rng(seed)
    tables = dataset.tables()
    comparisons, users = tables["comparisons"], tables["users"]
    unseen = set(dataset.user_ids[~dataset.seen])
    if settings.keep is not None or settings.skew is not None:
        comparisons = comparisons.filter(_kept(comparisons, _learnt_from(comparisons, unseen), settings, random))
    if settings.drift:
        comparisons = _drifted(comparisons, _learnt_from(comparisons, unseen), users, settings.drift, random)
    if settings.flip:
        rows = np.flatnonzero(_learnt_from(comparisons, unseen))
        comparisons = _turned(comparisons, random.permutation(rows)[: round(settings.flip * len(rows))])
    if settings.adversaries:
        comparisons, users = _with_adversaries(comparisons, users, settings.adversaries, random)
    return PreferenceDataset.from_tables(responses=tables["responses"], comparisons=comparisons, users=users)


def _kept(comparisons: pa.Table, learnt: np.ndarray, settings: ChangeSettings, random: np.random.Generator) -> pa.Array:
    """Mask of the comparisons that stay."""
    user = _codes(comparisons, "user_id")
    # Drawn without replacement, by weight: the largest keys of u ** (1 / weight) (Efraimidis and Spirakis, 2006), in logarithms.
    key = np.log(random.random(len(learnt)))
    if settings.skew is not None:
        prompt = _codes(comparisons, "prompt_id")
        key /= (1.0 + random.permutation(prompt.max() + 1))[prompt] ** -settings.skew
    key[~learnt] = -np.inf
    order = np.lexsort((-key, user))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(user[order], user[order])
    kept = learnt.copy()
    if settings.skew is not None:
        kept &= (key >= np.median(key[learnt])) | (rank == 0)
    if settings.keep is not None:
        kept &= rank < settings.keep
    return pa.array(kept | ~learnt)


def _drifted(comparisons: pa.Table, learnt: np.ndarray, users: pa.Table, share: float, random: np.random.Generator) -> pa.Table:
    if "group" not in users.column_names or users["group"].null_count:
        raise DataError("Tastes can only drift where the users' groups are known.", where="users", fix="Leave change.drift out.")
    ids, group = users["user_id"].to_pylist(), np.array(users["group"].to_pylist(), dtype=object)
    user = np.array(comparisons["user_id"].to_pylist(), dtype=object)
    rows: dict[str, list[int]] = {}
    for row in np.flatnonzero(learnt):
        rows.setdefault(user[row], []).append(int(row))
    halves = {name: own[: len(own) // 2] for name, own in rows.items()}
    source = np.arange(len(user))
    dropped = np.zeros(len(user), dtype=bool)
    for at in random.permutation(len(ids))[: round(share * len(ids))]:
        others = np.flatnonzero(group != group[at])
        if not len(others):
            continue
        former = halves.get(ids[random.choice(others)], [])
        early = halves.get(ids[at], [])
        shared = min(len(early), len(former))
        source[early[:shared]] = former[:shared]
        dropped[early[len(former) :]] = True
    # The user stays; what they were asked and answered is the other's.
    taken = comparisons.take(pa.array(source))
    for name in ("user_id", "split"):
        taken = taken.set_column(taken.column_names.index(name), name, comparisons[name])
    return taken.filter(pa.array(~dropped))


def _with_adversaries(
    comparisons: pa.Table, users: pa.Table, share: float, random: np.random.Generator
) -> tuple[pa.Table, pa.Table]:
    seen = np.flatnonzero(np.array(users["cohort"].to_pylist(), dtype=object) == "seen")
    copied = users.take(pa.array(random.choice(seen, round(share * len(seen)))))
    names = pa.array([f"adversary-{number:06d}" for number in range(len(copied))])
    column = np.array(comparisons["user_id"].to_pylist(), dtype=object)
    rows: dict[str, list[int]] = {}
    for row in np.flatnonzero(_in_split(comparisons, "train")):
        rows.setdefault(column[row], []).append(int(row))
    theirs = [
        (name, row)
        for name, user in zip(names.to_pylist(), copied["user_id"].to_pylist(), strict=True)
        for row in rows.get(user, [])
    ]
    added = comparisons.take(pa.array([row for _, row in theirs], pa.int64()))
    added = _turned(added, np.arange(len(added)))
    added = added.set_column(added.column_names.index("user_id"), "user_id", pa.array([name for name, _ in theirs], pa.string()))
    accounts = copied.set_column(copied.column_names.index("user_id"), "user_id", names)
    return (
        pa.concat_tables([comparisons, added.cast(comparisons.schema)]),
        pa.concat_tables([users, accounts.cast(users.schema)]),
    )


def _turned(comparisons: pa.Table, rows: np.ndarray) -> pa.Table:
    """The table with the choices of these rows turned around."""
    chosen, rejected = (np.array(comparisons[name].to_pylist(), dtype=object) for name in ("chosen_id", "rejected_id"))
    chosen[rows], rejected[rows] = rejected[rows].copy(), chosen[rows].copy()
    for name, column in (("chosen_id", chosen), ("rejected_id", rejected)):
        kind = comparisons.schema.field(name).type
        comparisons = comparisons.set_column(comparisons.column_names.index(name), name, pa.array(column.tolist(), kind))
    return comparisons


def _learnt_from(comparisons: pa.Table, unseen: set[str]) -> np.ndarray:
    """Mask of the comparisons that a model is trained on, or an unseen user onboarded from."""
    is_unseen = np.array([user in unseen for user in comparisons["user_id"].to_pylist()])
    return _in_split(comparisons, "train") | (_in_split(comparisons, "valid") & is_unseen)


def _in_split(comparisons: pa.Table, split: str) -> np.ndarray:
    return np.array(comparisons["split"].to_pylist(), dtype=object) == split


def _codes(table: pa.Table, column: str) -> np.ndarray:
    return np.unique(np.array(table[column].to_pylist(), dtype=object).astype(str), return_inverse=True)[1]
