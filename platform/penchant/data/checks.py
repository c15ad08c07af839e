"""Every check of the data contract, each a function from tables to the problems it finds.

Checks work on whole columns (Arrow and NumPy): a table of a million comparisons takes a second or two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penchant.data.schema import COHORTS, LISTED_PER_KIND, REQUIRED, SPLITS, Problem, is_text

Tables = dict[str, pa.Table]


def shape_problems(tables: Tables) -> list[Problem]:
    """Missing columns, wrong types, empty tables, nulls. Where there is one, other checks cannot run."""
    problems: list[Problem] = []
    for name, table in tables.items():
        for column in REQUIRED[name]:
            if column not in table.column_names:
                fix = f"Add it. The table has: {', '.join(table.column_names) or 'no column'}."
                if column in ("split", "cohort"):
                    fix = "Run `penchant data split DIR OUT`, which adds it."
                problems.append(Problem("missing_column", name, f"there is no column {column!r}", fix))
            elif not is_text(table.schema.field(column).type):
                kind = str(table.schema.field(column).type)
                problems.append(
                    Problem("wrong_type", name, f"column {column!r} must be a string", "Cast it to string.", value=kind)
                )
        problems.extend(_optional_types(name, table))
        if table.num_rows == 0:
            problems.append(Problem("empty_table", name, "the table has no row", "Give at least one."))
    if problems:
        return problems
    for name, table in tables.items():
        for column in REQUIRED[name]:
            values = table[column].combine_chunks()
            blank = pc.or_kleene(pc.is_null(values), pc.equal(pc.utf8_trim_whitespace(_plain(values)), ""))
            rows = np.flatnonzero(pc.fill_null(blank, True).to_numpy(zero_copy_only=False))
            problems.extend(
                _listed(
                    "blank",
                    name,
                    rows,
                    lambda row, column=column: (f"{column} is null or blank", None),  # type: ignore[misc]
                    "Give a text, or drop the row.",
                )
            )
    return problems


def _optional_types(name: str, table: pa.Table) -> Iterable[Problem]:
    wanted: dict[tuple[str, str], tuple[Callable[[Any], bool], str]] = {
        ("comparisons", "controversial"): (pa.types.is_boolean, "boolean"),
        ("comparisons", "timestamp"): (
            lambda kind: pa.types.is_timestamp(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind),
            "timestamp or number",
        ),
        ("comparisons", "conversation_id"): (is_text, "string"),
        ("users", "group"): (lambda kind: is_text(kind) or pa.types.is_integer(kind), "string or integer"),
    }
    for (table_name, column), (accepts, words) in wanted.items():
        if table_name == name and column in table.column_names and not accepts(table.schema.field(column).type):
            kind = str(table.schema.field(column).type)
            yield Problem("wrong_type", name, f"column {column!r} must be {words}", "Cast or drop it.", value=kind)
    if name == "comparisons" and "controversial" in table.column_names:
        unknown = np.flatnonzero(table["controversial"].is_null().to_numpy())
        yield from _listed(
            "unknown_kind",
            name,
            unknown,
            lambda row: ("controversial is null", None),
            "Say true or false in every row, or drop the column.",
        )


def content_problems(tables: Tables) -> list[Problem]:
    """Everything that can be wrong with tables of the right shape."""
    checks = (
        duplicate_ids,
        prompts_with_two_texts,
        unknown_values,
        unknown_references,
        same_response_twice,
        two_prompts,
        leaking_prompts,
        leaking_conversations,
        silent_users,
    )
    return [problem for check in checks for problem in check(tables)]


def duplicate_ids(tables: Tables) -> list[Problem]:
    """A response or user that is there twice."""
    problems = []
    for name, column in (("responses", "response_id"), ("users", "user_id")):
        values = _strings(tables[name], column)
        _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
        rows = np.flatnonzero(first[inverse] != np.arange(len(values)))
        problems += _listed(
            "duplicate_id",
            name,
            rows,
            lambda row, values=values, column=column: (f"{column} stands in an earlier row", values[row]),  # type: ignore[misc]
            "Keep one row.",
        )
    return problems


def prompts_with_two_texts(tables: Tables) -> list[Problem]:
    """A prompt id with two texts."""
    ids, prompts = _strings(tables["responses"], "prompt_id"), _strings(tables["responses"], "prompt")
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rows = np.flatnonzero(prompts[first[inverse]] != prompts)
    return _listed(
        "prompt_text",
        "responses",
        rows,
        lambda row: (f"the prompt is not that of row {first[inverse[row]]} with the same prompt_id", ids[row]),
        "Give each text of a prompt an id of its own.",
    )


def unknown_values(tables: Tables) -> list[Problem]:
    """A split or cohort that is none."""
    problems = []
    for name, column, known in (("comparisons", "split", SPLITS), ("users", "cohort", COHORTS)):
        values = _strings(tables[name], column)
        problems += _listed(
            f"unknown_{column}",
            name,
            np.flatnonzero(~np.isin(values.astype(str), known)),
            lambda row, values=values, column=column: (f"there is no {column}", values[row]),  # type: ignore[misc]
            f"Use {', '.join(known)}.",
        )
    return problems


def unknown_references(tables: Tables) -> list[Problem]:
    """A comparison of a response or user that is in no table."""
    problems = []
    for column, table, key in (
        ("chosen_id", "responses", "response_id"),
        ("rejected_id", "responses", "response_id"),
        ("user_id", "users", "user_id"),
    ):
        at = positions(tables["comparisons"], column, tables[table], key)
        values = tables["comparisons"][column]
        problems += _listed(
            f"unknown_{table.removesuffix('s')}",
            "comparisons",
            np.flatnonzero(at < 0),
            lambda row, values=values, column=column, table=table: (  # type: ignore[misc]
                f"{column} is not in {table}",
                values[int(row)].as_py(),
            ),
            f"Add it to {table}, or drop the row.",
        )
    return problems


def same_response_twice(tables: Tables) -> list[Problem]:
    """A comparison of a response with itself."""
    chosen, rejected = (_strings(tables["comparisons"], column) for column in ("chosen_id", "rejected_id"))
    return _listed(
        "chosen_is_rejected",
        "comparisons",
        np.flatnonzero(chosen == rejected),
        lambda row: ("chosen_id and rejected_id are the same", chosen[row]),
        "Drop the row.",
    )


def two_prompts(tables: Tables) -> list[Problem]:
    """A comparison of responses to two prompts, or to another prompt than it says."""
    comparisons, responses = tables["comparisons"], tables["responses"]
    prompt = _strings(responses, "prompt_id")
    said = _strings(comparisons, "prompt_id")
    ends = [positions(comparisons, column, responses, "response_id") for column in ("chosen_id", "rejected_id")]
    known = (ends[0] >= 0) & (ends[1] >= 0)
    chosen, rejected = (prompt[end] for end in ends)
    crossed = np.flatnonzero(known & (chosen != rejected))
    other = np.flatnonzero(known & (chosen == rejected) & (chosen != said))
    return _listed(
        "two_prompts",
        "comparisons",
        crossed,
        lambda row: ("the responses answer two prompts", f"{chosen[row]} and {rejected[row]}"),
        "Compare responses to one prompt.",
    ) + _listed(
        "other_prompt",
        "comparisons",
        other,
        lambda row: (f"the responses answer prompt {chosen[row]!r}, not the row's prompt_id", said[row]),
        "Mend prompt_id.",
    )


def leaking_prompts(tables: Tables) -> list[Problem]:
    """A test prompt that occurs in train or valid; a warning where its text does so under another id alone."""
    comparisons = tables["comparisons"]
    prompt, test = _strings(comparisons, "prompt_id").astype(str), _strings(comparisons, "split") == "test"
    text = np.where(
        np.isin(prompt, np.intersect1d(prompt[test], prompt[~test])), "", prompts_by_text(prompt, tables["responses"])
    )
    return _leaks(
        "leaking_prompt",
        test,
        prompt,
        "a test prompt is also in train or valid",
        "Split by prompt: drop the column and run `penchant data split`.",
    ) + _leaks(
        "leaking_text",
        test,
        text,
        "the text of a test prompt is in train or valid, too, under another prompt_id; its first id",
        "Split by prompt: drop the column and run `penchant data split`, which goes by texts.",
        severity="warning",
    )


def prompts_by_text(ids: np.ndarray, responses: pa.Table) -> np.ndarray:
    """Prompt ids, with one for each text: the first of those that have it."""
    text = dict(zip(responses["prompt_id"].to_pylist(), responses["prompt"].to_pylist(), strict=True))
    first: dict[str, str] = {}
    for identity in sorted(map(str, text)):
        first.setdefault(text.get(identity, identity), identity)
    return np.array([first.get(text.get(identity, identity), identity) for identity in ids], dtype=str)


def leaking_conversations(tables: Tables) -> list[Problem]:
    """A conversation that is in test and elsewhere: the prompt of a later turn tells what was chosen before."""
    comparisons = tables["comparisons"]
    if "conversation_id" not in comparisons.column_names:
        return []
    return _leaks(
        "leaking_conversation",
        _strings(comparisons, "split") == "test",
        np.array(comparisons["conversation_id"].fill_null("").to_pylist(), dtype=str),
        "a conversation in test is also in train or valid",
        "Split by conversation: drop the column split and run `penchant data split`.",
    )


def _leaks(kind: str, test: np.ndarray, value: np.ndarray, words: str, fix: str, *, severity: str = "error") -> list[Problem]:
    """Values of test comparisons that others have too: one line for each, not for a row. An empty one is none."""
    rows = np.flatnonzero(test & (value != "") & np.isin(value, value[~test]))
    _, first = np.unique(value[rows], return_index=True)
    return _listed(kind, "comparisons", rows[np.sort(first)], lambda row: (words, value[row]), fix, severity=severity)


def silent_users(tables: Tables) -> list[Problem]:
    """A seen user without a train comparison: nothing can be learnt of them."""
    users, comparisons = tables["users"], tables["comparisons"]
    ids, cohort = _strings(users, "user_id"), _strings(users, "cohort")
    trained = np.unique(_strings(comparisons, "user_id")[_strings(comparisons, "split") == "train"].astype(str))
    rows = np.flatnonzero((cohort == "seen") & ~np.isin(ids.astype(str), trained))
    return _listed(
        "silent_user",
        "users",
        rows,
        lambda row: ("a seen user has no train comparison", ids[row]),
        "They are scored by an embedding that their choices did not shape.",
        severity="warning",
    )


def positions(table: pa.Table, column: str, other: pa.Table, key: str) -> np.ndarray:
    """Each value's row in another table: int64 (N,), -1 where it is in none."""
    found = pc.index_in(_plain(table[column].combine_chunks()), value_set=_plain(other[key].combine_chunks()))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _plain(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.large_string())


def _strings(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist(), dtype=object)


def _listed(
    kind: str,
    file: str,
    rows: np.ndarray,
    tell: Callable[[int], tuple[str, Any]],
    fix: str,
    *,
    severity: str = "error",
) -> list[Problem]:
    """A problem for each row, the first few of them; the last one listed counts the rest."""
    problems = []
    for number, row in enumerate(rows[:LISTED_PER_KIND]):
        message, value = tell(int(row))
        left = len(rows) - number if number == LISTED_PER_KIND - 1 else 1
        problems.append(
            Problem(
                kind,
                file,
                message,
                fix,
                row=int(row),
                value=None if value is None else str(value)[:80],
                severity=severity,  # type: ignore[arg-type]
                count=left,
            )
        )
    return problems
