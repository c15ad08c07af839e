"""HH-RLHF by objective (Bai et al., arXiv 2204.05862): what annotators chose who looked for helpful, or for harmless, answers.

The files hold no annotators. So a user is an objective, and there are two of them; or, with `users`, each objective's
comparisons are dealt out at random to as many simulated users, whose group is the objective. Rows are a pair of transcripts
("\\n\\nHuman: ...\\n\\nAssistant: ..."); the prompt is all up to the last answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from penchant.data.dataset import check_vacant
from penchant.data.importers.collecting import Choices, Origin, Responses, conversation, write_dataset
from penchant.data.importers.reading import find_parts, text_of
from penchant.errors import DataError

FOLDERS = ("helpful-base", "harmless-base")
"""The published folders that are read; helpful-online and helpful-rejection-sampled can be."""
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_ASSISTANT = "\n\nAssistant:"


def import_hh_rlhf(source: str, out: Path, *, folders: Sequence[str] = FOLDERS, users: int = 0, seed: int = 0) -> str:
    """Makes the data set; returns what it holds and what to run next, in words.

    Args:
        source: The folder that was downloaded, with a folder for each tranche, or `hub:Anthropic/hh-rlhf`.
        users: Simulated users of each objective; 0: each objective is a user.
        seed: Fixes who gets which comparison, and which become valid.

    Raises:
        DataError: A file is missing, or a row is not in the published layout; told with its row and field.
        OutputError: `out` is there and not empty.
    """
    check_vacant(out)
    for folder in folders:
        if _objective(folder) is None:
            raise DataError(f"{folder!r} has no objective.", where="folders", fix="Name folders of helpful-* and harmless-*.")
    parts = find_parts(
        source, columns=("chosen", "rejected"), wanted=lambda name: Path(name).parent.name in folders, hub_folders=folders
    )
    responses, choices = Responses(), Choices(Counter())
    for part in parts:
        objective = _objective(part.folder)
        if objective is None or part.split not in ("train", "test"):
            raise DataError(
                f"Its objective and split cannot be told from its name ({part.name}).",
                where=part.where,
                fix="Give the folder that holds helpful-base/train.jsonl.gz and the like.",
            )
        for where, row in part.rows():
            chosen, rejected = text_of(row, "chosen", where), text_of(row, "rejected", where)
            if _ASSISTANT not in f"\n\n{chosen}":
                raise DataError(
                    f"'chosen' has no {_ASSISTANT.strip()!r} (got {chosen!r:.80}).", where=where, fix="Mend or drop it."
                )
            asked, answer = _cut(chosen)
            other, other_answer = _cut(rejected)
            if asked != other:
                choices.left_out["of answers to two prompts"] += 1
                continue
            choices.add(objective, responses.row(asked, answer), responses.row(asked, other_answer), split=part.split)
    owner, table = _deal(choices.user, users, seed)
    return write_dataset(
        out,
        Origin(
            data_set="HH-RLHF, by objective",
            source=source,
            users_are="simulated" if users else "objectives",
            protocol={"folders": list(folders), "users_of_each_objective": users, "seed": seed},
        ),
        responses.table(),
        user=owner,
        chosen=choices.chosen,
        rejected=choices.rejected,
        facts=choices.facts,
        users=table,
        left_out=choices.left_out,
        seed=seed,
    )


def _objective(folder: str) -> str | None:
    first = folder.split("-")[0]
    return first if first in ("helpful", "harmless") else None


def _cut(transcript: str) -> tuple[str, str]:
    """The prompt, which is a conversation, and the last answer."""
    before, _, answer = f"\n\n{transcript}".rpartition(_ASSISTANT)
    pieces = re.split(r"\n\n(Human|Assistant):", before)
    messages = [
        {"role": _SPEAKERS[speaker], "content": text.strip()} for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return conversation(messages) if messages else "", answer.strip()


def _deal(objectives: list[str], users: int, seed: int) -> tuple[list[str], pa.Table]:
    """Whose each comparison is, and the users' table."""
    if not users:
        names = sorted(set(objectives))
        return objectives, pa.table({"user_id": names, "group": names})
    number = np.random.default_rng(seed).integers(users, size=len(objectives))
    owner = [f"{objective}-{one:06d}" for objective, one in zip(objectives, number, strict=True)]
    names = sorted(set(owner))
    return owner, pa.table({"user_id": names, "group": [name.rpartition("-")[0] for name in names]})
