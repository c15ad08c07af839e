"""Many users' PEFT adapters over one frozen base: each row of a batch touches its own user's slice of stacked tensors alone."""

from penchant.backbone.grouped.decoding import Decoder, Row
from penchant.backbone.grouped.model import GroupedModel
from penchant.backbone.grouped.rows import Rows

__all__ = ["Decoder", "GroupedModel", "Row", "Rows"]
