"""What a method is given besides the comparisons: features of the prompt by itself, an attribute of the users."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penchant.backbone.features import FeatureExtractor
from penchant.data import PreferenceDataset
from penchant.errors import ConfigError
from penchant.methods.registry import METHODS, MethodSettings, attribute_of


@dataclass(frozen=True)
class Attribute:
    """What a method knows of users besides their comparisons."""

    values: list[str]
    """Those that users of training have."""
    code_U: np.ndarray
    """int64: each user's value, -1 where it is none of these."""


def read_attribute(dataset: PreferenceDataset, settings: MethodSettings) -> Attribute | None:
    """The column of the users' table that the method goes by, for all users of a data set; None where it goes by none.

    Raises:
        ConfigError: There is no such column, or no user of training has a value there.
    """
    column = attribute_of(settings)
    if column is None:
        return None
    users = dataset.tables()["users"]
    if column not in users.column_names:
        raise ConfigError(
            f"The users have no column {column!r}, which method {settings.name} goes by.",
            where="method.attribute",
            fix=f"The table of users has: {', '.join(users.column_names)}.",
        )
    given = [None if value is None else str(value) for value in users[column].to_pylist()]
    values = sorted({value for value, seen in zip(given, dataset.seen, strict=True) if seen and value is not None})
    if not values:
        raise ConfigError(f"No user of training has a value in column {column!r}.", where="method.attribute", fix="Name another.")
    code = {value: number for number, value in enumerate(values)}
    return Attribute(values, np.array([code.get(value, -1) if value is not None else -1 for value in given], dtype=np.int64))


def method_features(settings: MethodSettings, feature_RF: Tensor, prompts: Iterable[str], extractor: FeatureExtractor) -> Tensor:
    """What a method reads of the responses: their features and, if it asks for them, behind these those of the prompt alone.

    Args:
        prompts: The prompt of each response; read only where they are asked for.
    """
    if not METHODS[settings.name].reads_prompts:
        return feature_RF
    prompt_R = list(prompts)
    at = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt_R))}
    prompt_PF = torch.from_numpy(extractor.features([(prompt, "") for prompt in at]))
    return torch.cat([feature_RF, prompt_PF[[at[prompt] for prompt in prompt_R]]], dim=1)
