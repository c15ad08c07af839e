"""From files to a validated `PreferenceDataset`."""

from penchant.data.choices import TextComparison
from penchant.data.dataset import Comparisons, PreferenceDataset
from penchant.data.schema import COHORTS, SPLITS, Problem

__all__ = ["COHORTS", "SPLITS", "Comparisons", "PreferenceDataset", "Problem", "TextComparison"]
