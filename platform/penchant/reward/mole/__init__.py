"""MoLE: a mixture of LoRA experts gated by the user embedding (CoPL, section 3.2), as a PEFT tuner.

Importing this makes `peft_type: MOLE` known to PEFT, so that `get_peft_model`, `save_pretrained` and `from_pretrained` work.
"""

from penchant.reward.mole.config import MoleConfig
from penchant.reward.mole.model import MoleModel
from penchant.reward.mole.registration import register
from penchant.reward.mole.routing import Route, Routing

register(MoleConfig, MoleModel)

__all__ = ["MoleConfig", "MoleModel", "Route", "Routing"]
