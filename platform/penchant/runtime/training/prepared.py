"""What the workers read: the data set in integer codes, in files that each worker can take its part of.

Files::

    texts.parquet          prompt and response, in row order (R)
    comparisons.parquet    seen users' train and valid comparisons as rows: user (ascending), chosen, rejected, valid
    features.safetensors   features of the responses (R, F), float16
    groups.safetensors     one-hot groups of the seen users (U, G), where groups are known: for the oracle alone
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from torch import Tensor

from penchant.artifacts import read_json, replace_folder, write_json
from penchant.backbone.features import FeatureExtractor
from penchant.backbone.tokens import Text
from penchant.data import PreferenceDataset
from penchant.errors import ArtifactError, DataError
from penchant.graph.preference_graph import PreferenceShard, user_range
from penchant.storage import Location, local_copy
from penchant.tensors import read_tensors, write_rows, write_tensors

_ROWS_PER_GROUP = 65_536
_TEXTS_READ = 512
"""Texts in a row group of their file, which is read at once."""
_BYTES_AT_ONCE = 2**25
"""Of texts in a batch, about: what is held in memory while features are computed. Texts of like length are encoded together, so a
batch is as large as it can well be."""


def check_learnable(dataset: PreferenceDataset) -> None:
    """Raises `DataError` where there are too few seen users or comparisons to learn from."""
    seen = int(dataset.seen.sum())
    if seen < 2:
        raise DataError(
            f"There {'is one seen user' if seen == 1 else 'are no seen users'}; nothing can be learnt about how people differ.",
            where="users",
            fix="Give at least two users with cohort 'seen'.",
        )
    if not len(dataset.select(split="train", cohort="seen")):
        raise DataError(
            "No seen user has a train comparison.", where="comparisons", fix="Run `penchant data split` on the folder."
        )


def check_judged(dataset: PreferenceDataset) -> None:
    """Raises `DataError` where there is no test comparison to judge a fit by, which would be told after all of its training."""
    if not len(dataset.select(split="test")):
        raise DataError(
            "There is no test comparison; the fit could not be judged.",
            where="comparisons",
            fix="Drop the column split and run `penchant data split`; a job `fit_reward` makes a bundle without judging it.",
        )


@dataclass(frozen=True)
class TextBatches:
    """The texts of a Parquet file with columns prompt and response, in order; each time it is iterated the file is read anew."""

    path: Path

    def __iter__(self) -> Iterator[list[Text]]:
        texts: list[Text] = []
        size = 0
        with pq.ParquetFile(self.path) as file:
            # By row groups: `iter_batches` holds on to a part of each that it has passed.
            for number in range(file.num_row_groups):
                batch = file.read_row_group(number, columns=["prompt", "response"])
                texts += zip(batch["prompt"].to_pylist(), batch["response"].to_pylist(), strict=True)
                size += batch.nbytes
                if size >= _BYTES_AT_ONCE:
                    yield texts
                    texts, size = [], 0
        if texts:
            yield texts


@dataclass(frozen=True)
class Prepared:
    """A prepared data set in a folder; opening it reads only its counts."""

    folder: Path
    num_users: int
    """Seen users."""
    num_responses: int

    @classmethod
    def open(cls, where: Location) -> Prepared:
        """Opens what `prepare` wrote, from its folder or its URI.

        Raises:
            ArtifactError: This node does not see the folder.
        """
        folder = local_copy(where)
        if not folder.is_dir():
            raise ArtifactError(
                "This node does not see the run's folder.",
                where=str(where),
                fix="Give an --out folder that every node sees, or a URI such as s3://bucket/run.",
            )
        counts = read_json(folder / "counts.json")
        return cls(folder, counts["users"], counts["responses"])

    def text_batches(self) -> TextBatches:
        """(prompt, response) of every response, a batch in memory at a time."""
        return TextBatches(self.folder / "texts.parquet")

    def texts(self) -> list[Text]:
        """(prompt, response) of every response, all in memory."""
        return [text for batch in self.text_batches() for text in batch]

    def prompts(self) -> np.ndarray:
        """The prompt of every response, counted from 0: int64 (R,)."""
        # Encoded before it is joined: many long prompts, each repeated, are beyond what one string array holds.
        column = pq.read_table(self.folder / "texts.parquet", columns=["prompt"])["prompt"].dictionary_encode()
        return column.unify_dictionaries().combine_chunks().indices.to_numpy().astype(np.int64)

    def features(self) -> Tensor:
        """Features of the responses: (R, F), float16."""
        return read_tensors(self.folder / "features.safetensors")["features"]

    def write_features(self, extractor: FeatureExtractor) -> None:
        """Keeps the features for the stages to come, in a file that is filled a part at a time."""
        path = self.folder / "features.safetensors"
        extractor.write_features(self.text_batches(), lambda width: write_rows(path, "features", (self.num_responses, width)))

    def groups(self) -> Tensor | None:
        """One-hot groups (U, G), or None where they are not known."""
        path = self.folder / "groups.safetensors"
        return read_tensors(path)["group"] if path.is_file() else None

    def comparisons(self, *, users: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """Columns user, chosen, rejected, valid and number (C,) of a range of users; the others are not read."""
        table = pads.dataset(self.folder / "comparisons.parquet")
        chosen = None
        if users is not None:
            chosen = (pads.field("user") >= users[0]) & (pads.field("user") < users[1])
        columns = table.to_table(filter=chosen)
        return {name: columns[name].to_numpy() for name in columns.column_names}

    def shards(self, rank: int, world_size: int) -> tuple[PreferenceShard, PreferenceShard]:
        """One worker's training and validation comparisons, of the users that it owns."""
        start, stop = user_range(rank, world_size, self.num_users)
        columns = self.comparisons(users=(start, stop))
        train, valid = (
            PreferenceShard.build(
                *(columns[name][rows] for name in ("user", "chosen", "rejected", "number")),
                first_user=start,
                num_users=stop - start,
                num_responses=self.num_responses,
            )
            for rows in (~columns["valid"], columns["valid"])
        )
        return train, valid


def prepare(dataset: PreferenceDataset, folder: Path) -> Prepared:
    """Writes the prepared form of a data set, atomically."""
    seen_row = np.cumsum(dataset.seen) - 1
    comparisons = dataset.select(split=("train", "valid"), cohort="seen")
    user = seen_row[comparisons.user]
    order = np.argsort(user, kind="stable")
    with replace_folder(folder) as draft:
        schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
        with pq.ParquetWriter(draft / "texts.parquet", schema) as writer:
            for start in range(0, len(dataset.responses), _TEXTS_READ):
                rows = slice(start, start + _TEXTS_READ)
                prompts = [dataset.prompts[prompt] for prompt in dataset.prompt_of_response[rows]]
                writer.write_table(pa.table([prompts, dataset.responses[rows]], schema=schema))
        columns = {
            "user": user[order],
            "chosen": comparisons.chosen[order],
            "rejected": comparisons.rejected[order],
            "valid": comparisons.split[order] == 1,
            "number": np.arange(len(order)),
        }
        pq.write_table(pa.table(columns), draft / "comparisons.parquet", row_group_size=_ROWS_PER_GROUP)
        if dataset.group is not None and (dataset.group[dataset.seen] >= 0).all():
            group = torch.from_numpy(dataset.group[dataset.seen])
            one_hot = torch.nn.functional.one_hot(group, len(dataset.group_names)).float()
            write_tensors(draft / "groups.safetensors", {"group": one_hot})
        write_json(draft / "counts.json", {"users": int(dataset.seen.sum()), "responses": len(dataset.response_ids)})
    return Prepared.open(folder)
