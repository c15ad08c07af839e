"""What users would answer to a pair that nobody has asked them: known of the planted world alone.

Shapes: U users, R responses, G groups, N answers.
"""

from __future__ import annotations

import numpy as np
from pydantic import ValidationError

from penchant.data.dataset import PreferenceDataset
from penchant.data.planted import ATTRIBUTES, PlantedTastes, PlantedWorld, load_truth, tastes
from penchant.errors import ArtifactError
from penchant.storage import Location, local_copy


class PlantedAnswers:
    """The users of a planted data set, who can be asked about any two responses to a prompt.

    They choose what their group likes better, and err as often as the world's noise says, as in their comparisons.

    Args:
        taste: Of the data set's world.
        noise: Probability of an error.
        dataset: Of that world; every user's group is known.
    """

    def __init__(self, taste: PlantedTastes, noise: float, dataset: PreferenceDataset) -> None:
        self.noise = noise
        self._utility_RG = taste.utility_RG[_world_rows(dataset)]
        assert dataset.group is not None
        number_G = np.array([int(name.removeprefix("group-")) for name in dataset.group_names])
        self._group_U = number_G[dataset.group]

    def chooses_first(
        self, user_N: np.ndarray, first_N: np.ndarray, second_N: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """Whether each user chooses the first of two responses, all by their rows in the data set: bool (N,)."""
        group_N = self._group_U[user_N]
        likes_first = self._utility_RG[first_N, group_N] > self._utility_RG[second_N, group_N]
        return likes_first ^ (random.random(len(user_N)) < self.noise)


def read_answers(folder: Location, dataset: PreferenceDataset) -> PlantedAnswers | None:
    """Whoever answers for the users of a data set's folder; None where that cannot be known.

    It is known where `truth.json` lies beside the tables, the tables show what its world generates, and every user has a group
    whose taste is theirs.
    """
    folder = local_copy(folder)
    if not (folder / "truth.json").is_file():
        return None
    try:
        world = PlantedWorld.model_validate(load_truth(folder)["world"])
    except (ArtifactError, KeyError, TypeError, ValidationError):
        return None  # a file of that name that `save_planted` has not written
    if world.individuality:
        return None
    taste = tastes(world)
    return PlantedAnswers(taste, world.noise, dataset) if _is_of(dataset, world, taste) else None


def _is_of(dataset: PreferenceDataset, world: PlantedWorld, taste: PlantedTastes) -> bool:
    """Whether a data set's responses and groups are those of a world; users and comparisons may have been left out."""
    responses = dataset.tables()["responses"]
    columns = [f"shows_{name}" for name in ATTRIBUTES]
    known = {f"r{row:05d}" for row in range(len(taste.merit_R))}
    groups = {f"group-{number}" for number in range(world.groups)}
    if not set(columns) <= set(responses.column_names) or not set(dataset.response_ids) <= known:
        return False
    if dataset.group is None or (dataset.group < 0).any() or not set(dataset.group_names) <= groups:
        return False
    shows_RA = np.stack([responses[name].to_numpy() for name in columns], axis=1)
    return bool((shows_RA == taste.shows_RA[_world_rows(dataset)]).all())


def _world_rows(dataset: PreferenceDataset) -> np.ndarray:
    """Each response's row in its world: ids are `r` and that number."""
    return np.array([int(name[1:]) for name in dataset.response_ids], dtype=np.int64)
