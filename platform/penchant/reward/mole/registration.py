"""Making MoLE known to PEFT, in this one place.

`register_peft_method` refuses a name that is not in PEFT's `PeftType`, and Python has no way to extend an enum. So the member
is added to the enum's own tables here, as PEFT would have it if MoLE were one of its methods (docs/decisions/0006).
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

NAME = "MOLE"


def peft_type() -> PeftType:
    """`PeftType.MOLE`, added on first use."""
    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_, member._value_ = NAME, NAME
        PeftType._member_names_.append(NAME)
        PeftType._member_map_[NAME] = member
        PeftType._value2member_map_[NAME] = member
        type.__setattr__(PeftType, NAME, member)  # an enum's own __setattr__ refuses members
    return PeftType(NAME)


def register(config: type, model: type) -> None:
    """Maps the type to its config and model classes; a second call does nothing."""
    if peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config, model_cls=model)
