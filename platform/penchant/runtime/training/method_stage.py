"""The stage of another method than Penchant's, under Ray Train: the method, uniform and the oracle, trained on the same batches.

It leaves in `method/` what `methods/saved.py` lists, the heads beside it (`uniform.safetensors`, `oracle.safetensors`) and
`training.json`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from penchant.artifacts import write_json
from penchant.backbone.config import BackboneSettings
from penchant.backbone.features import FeatureExtractor
from penchant.methods.inputs import method_features
from penchant.methods.method import Shapes
from penchant.methods.registry import MethodChoice, build_method
from penchant.methods.saved import save_method
from penchant.methods.training import PERSONALISED, MethodTrainer
from penchant.reward.config import RewardSettings
from penchant.reward.training import RewardData
from penchant.runtime.training.checkpoints import Checkpointer
from penchant.runtime.training.feature_stage import feature_cache
from penchant.runtime.training.prepared import Prepared
from penchant.runtime.training.progress import open_log
from penchant.runtime.training.reward_stage import summary_of, train_heads, user_tables
from penchant.runtime.training.workers import prepare_worker
from penchant.storage import replacing
from penchant.tensors import write_tensors


def method_loop(config: dict[str, Any]) -> None:
    """What the one worker runs, from the last checkpoint on."""
    device = prepare_worker(config)
    settings = RewardSettings.model_validate(config["reward"])
    method_settings = MethodChoice.model_validate({"method": config["method"]}).method
    backbone = BackboneSettings.model_validate(config["backbone"])
    prepared, log = Prepared.open(config["prepared"]), open_log(config["log"])
    checkpointer = Checkpointer(config["checkpoint_seconds"], log)
    columns = prepared.comparisons()
    feature_RF = prepared.features().float()
    tables = user_tables(prepared, columns, None, seed=0, models=config["models"])
    extractor = FeatureExtractor(backbone, feature_cache(backbone), device)
    prompts = (prompt for batch in prepared.text_batches() for prompt, _ in batch)
    inputs_RF = method_features(method_settings, feature_RF, prompts, extractor)
    attribute_U: np.ndarray | None = config["attribute"]
    shapes = Shapes(
        features=feature_RF.shape[1],
        prompts=inputs_RF.shape[1] - feature_RF.shape[1],
        users=prepared.num_users,
        attributes=config["attributes"],
    )
    trainer = MethodTrainer(
        settings,
        RewardData(feature_RF, columns["chosen"], columns["rejected"], columns["valid"], tables),
        user=torch.tensor(columns["user"]),
        num_users=prepared.num_users,
        build=lambda: build_method(method_settings, shapes, settings.head),
        feature_RF=inputs_RF,
        attribute_U=None if attribute_U is None else torch.from_numpy(attribute_U),
        device=device,
    )
    seconds = train_heads(trainer, config, checkpointer, log)
    method = trainer.method
    method.load_state_dict(trainer.best_state[PERSONALISED])
    with replacing(config["out"]) as draft:
        save_method(draft, method, trainer.seen_vectors(), method_settings, settings.head)
        for name, state in trainer.best_state.items():
            if name != PERSONALISED:
                write_tensors(draft / f"{name}.safetensors", state)
        write_json(draft / "training.json", summary_of(trainer, seconds))
