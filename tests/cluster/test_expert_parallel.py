"""The experts' phase on several workers gives what one gives, data-parallel and with a sharded base: real processes over gloo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaModel

from penchant.backbone.config import BackboneSettings
from penchant.backbone.reading import TextBatch, trainable_part
from penchant.reward import experts
from penchant.reward.config import ExpertSettings, HeadSettings
from penchant.reward.expert_training import ExpertData, ExpertTrainer
from penchant.reward.experts import ExpertModel, add_experts, add_lora
from penchant.reward.heads import make_head
from penchant.reward.training import UserTable
from penchant.runtime.training.sharding import average, shard_base
from penchant.tensors import read_tensors, write_tensors

STEPS, DIM, TEXTS, USERS = 4, 5, 40, 10
SETTINGS = ExpertSettings(
    num_experts=3, r=2, gate_hidden=8, layers=None, steps=STEPS, prompts_per_step=6, learning_rate=1e-3, gate_noise=0.3,
    base_dropout=False, load_balance_coef=0.1,
)  # fmt: skip


class NumberedTexts:
    """A reader of texts that are numbers: no tokenizer is needed."""

    activations = None

    def read(self, texts):
        rows = [torch.randint(30, (6,), generator=torch.Generator().manual_seed(int(number))) for _, number in texts]
        tokens = {"input_ids": torch.stack(rows), "attention_mask": torch.ones(len(rows), 6, dtype=torch.long)}
        return TextBatch(tokens, None, torch.zeros(len(rows), 0))


def train(mode: str = "alone", **parallel) -> tuple[dict[str, torch.Tensor], int]:
    experts._SEQUENCES_AT_ONCE = 3  # so that workers with more texts go through the base more often
    torch.manual_seed(0)
    backbone = BackboneSettings(pooling=("mean", "last"), surface=False)
    whole = LlamaModel(
        LlamaConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=32,
        )
    )  # fmt: skip
    base = trainable_part(whole.requires_grad_(False).eval(), None, dropout=False)
    heads = {dim: make_head(HeadSettings(hidden=8, dropout=0.0), feature_dim=32, user_dim=dim) for dim in (0, DIM)}
    models = {
        "uniform": ExpertModel(add_lora(base, SETTINGS), heads[0], backbone),
        "personalised": ExpertModel(add_experts(base, SETTINGS, user_dim=DIM), heads[DIM], backbone),
    }
    if mode == "fsdp":
        for model in models.values():
            shard_base(model, torch.device("cpu"))
    random = np.random.default_rng(0)
    prompt = random.integers(0, 10, 300)
    first, second = random.integers(0, 4, 300), random.integers(1, 4, 300)
    embedding = torch.nn.functional.normalize(torch.from_numpy(random.normal(size=(USERS, DIM)).astype(np.float32)), dim=1)
    data = ExpertData(
        texts=[("", str(number)) for number in range(TEXTS)],
        chosen=prompt * 4 + first,
        rejected=prompt * 4 + (first + second) % 4,
        prompt=prompt,
        valid=np.arange(300) % 10 == 0,
        users={"uniform": None, "personalised": UserTable(embedding, random.integers(0, USERS, 300))},
    )
    trainer = ExpertTrainer(SETTINGS, data, models, NumberedTexts(), **parallel)
    for _ in range(STEPS):
        trainer.step()
    trainer.validate()
    local = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in models["personalised"].base.parameters())
    return {name: tensor for name, tensor in trainer.state().items() if ".model." in name}, local


def worker(rank: int, world_size: int, mode: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world_size)
    parallel = {"average": average} if mode == "fsdp" else {"wrap": torch.nn.parallel.DistributedDataParallel}
    state, local = train(mode, rank=rank, world_size=world_size, **parallel)
    if rank == 0:
        write_tensors(Path(out) / "state.safetensors", state | {"local": torch.tensor(local)})
    dist.destroy_process_group()


@pytest.mark.cluster
@pytest.mark.parametrize(("mode", "world_size"), [("ddp", 2), ("ddp", 3), ("fsdp", 2)])
def test_workers_give_what_one_gives(tmp_path, mode, world_size):
    command = [sys.executable, __file__]
    processes = [subprocess.Popen([*command, str(rank), str(world_size), mode, str(tmp_path)]) for rank in range(world_size)]
    alone, whole = train()
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    together = read_tensors(tmp_path / "state.safetensors")
    for key, value in alone.items():
        assert torch.allclose(value, together[key], rtol=1e-4, atol=1e-5), key
    if mode == "fsdp":
        assert together["local"] < 0.8 * whole, "the base is not sharded"


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
