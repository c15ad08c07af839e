"""Adding splits and cohorts to tables that lack them: by prompt and by user, seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from penchant.data.checks import prompts_by_text
from penchant.data.dataset import PreferenceDataset, read_origin, read_tables, write_tables
from penchant.data.schema import is_text
from penchant.errors import ConfigError, DataError

VALID_SHARE = 0.1
"""Of each user's train comparisons, for validation."""


def split_dataset(
    folder: Path,
    out: Path,
    *,
    test_prompts: float = 0.1,
    valid: float = VALID_SHARE,
    unseen: float = 0.05,
    seed: int = 0,
) -> PreferenceDataset:
    """Copies a data set, with `split` added to comparisons and `cohort` to users where they are missing.

    Whole prompts go to test, by their texts, so that none leaks; where comparisons have a `conversation_id`, whole
    conversations, since the prompt of a later turn tells what was chosen before: one at least where the share is above 0 and
    there are two. Of each user's other comparisons a share goes to valid, and at least one stays in train. A folder without a
    users table gets one.

    Raises:
        ConfigError: A share outside [0, 1).
        DataError: The tables cannot be read or break the contract.
        OutputError: `out` is there and not empty.
    """
    for name, share in (("test_prompts", test_prompts), ("valid", valid), ("unseen", unseen)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} is {share}; it is a share.", where="data split", fix="Use 0 up to less than 1.")
    random = np.random.default_rng(seed)
    has_users = (folder / "users.parquet").exists() or (folder / "users").exists()
    tables = read_tables(folder, ("responses", "comparisons", "users") if has_users else ("responses", "comparisons"))
    comparisons = tables["comparisons"]
    for column in ("user_id", "prompt_id"):
        if column not in comparisons.column_names:
            raise DataError(f"There is no column {column!r}.", where=f"{folder}: comparisons", fix="Add it.")
        kind = comparisons.schema.field(column).type
        if not is_text(kind):
            raise DataError(
                f"Column {column!r} must be a string (got {kind}).", where=f"{folder}: comparisons", fix="Cast it to string."
            )
    if not has_users:
        ids = sorted(set(comparisons["user_id"].drop_null().to_pylist()))
        tables["users"] = pa.table({"user_id": pa.array(ids, pa.string())})
    if "cohort" not in tables["users"].column_names:
        apart = random.random(tables["users"].num_rows) < unseen
        tables["users"] = tables["users"].append_column("cohort", pa.array(np.where(apart, "unseen", "seen")))
    if "split" not in comparisons.column_names:
        split = _splits(comparisons, tables["responses"], test_prompts, valid, random)
        tables["comparisons"] = comparisons.append_column("split", pa.array(split))
    dataset = PreferenceDataset.from_tables(**tables, where=str(folder))
    write_tables(out, dataset.tables(), origin=read_origin(folder))
    return dataset


def _splits(
    comparisons: pa.Table, responses: pa.Table, test_prompts: float, valid: float, random: np.random.Generator
) -> np.ndarray:
    ids = np.array(comparisons["prompt_id"].to_pylist(), dtype=str)
    if {"prompt_id", "prompt"} <= set(responses.column_names):
        ids = prompts_by_text(ids, responses)
    _, prompt = np.unique(ids, return_inverse=True)
    if "conversation_id" in comparisons.column_names:
        prompt = _joined(prompt, comparisons["conversation_id"].to_pylist())
    _, user = np.unique(np.array(comparisons["user_id"].to_pylist(), dtype=str), return_inverse=True)
    prompts = int(prompt.max(initial=-1)) + 1
    # Of few prompts one at least, or nothing could be judged, and never all, or nothing could be learnt.
    number = min(max(round(test_prompts * prompts), int(test_prompts > 0)), max(prompts - 1, 0))
    held_out = random.permutation(prompts)[:number]
    split = np.where(np.isin(prompt, held_out), "test", "train").astype(object)
    hold_out_valid(split, user, valid, random)
    return split


def _joined(prompt: np.ndarray, conversations: list[str | None]) -> np.ndarray:
    """Codes (C,) of what has to stay together: prompts that meet in a conversation, and conversations that share a prompt."""
    named = np.array([name is not None for name in conversations], dtype=bool)
    _, conversation = np.unique(np.array([name for name in conversations if name is not None], dtype=str), return_inverse=True)
    prompts = int(prompt.max(initial=-1)) + 1
    size = prompts + int(conversation.max(initial=-1)) + 1
    links = sparse.coo_array((np.ones(len(conversation)), (prompt[named], prompts + conversation)), shape=(size, size))
    return np.unique(connected_components(links, directed=False)[1][prompt], return_inverse=True)[1]


def hold_out_valid(split: np.ndarray, user: np.ndarray, share: float, random: np.random.Generator) -> None:
    """Makes a share of each user's train comparisons valid, in place; at least one stays in train.

    Args:
        split: Object (C,), names of splits.
        user: int64 (C,), users as codes from 0.
    """
    rest = np.flatnonzero(split == "train")
    order = rest[np.lexsort((random.random(len(rest)), user[rest]))]
    start = np.searchsorted(user[order], user[order])
    count = np.bincount(user[order], minlength=int(user.max(initial=-1)) + 1)[user[order]]
    rank = np.arange(len(order)) - start
    # Rounded down, so that somebody with few comparisons keeps them all for training.
    wanted = np.minimum(np.floor(share * count + 1e-9), count - 1)
    if not wanted.any():  # everybody has few: then by lot, or there would be nothing to choose a model by
        lot = random.random(int(user.max(initial=-1)) + 1)[user[order]]
        wanted = np.minimum(np.floor(share * count + lot), count - 1)
    split[order[rank < wanted]] = "valid"
