"""Base models of known shapes with random weights: speed does not depend on what they have learnt."""

from typing import Any

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification, LlamaModel

DECODERS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "half": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 16, "num_attention_heads": 20},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "2b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 20, "num_attention_heads": 32},
    # Llama 3's 8B (arXiv 2407.21783, table 3), with a smaller vocabulary: a reward model has no language head.
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
VOCABULARY = 32_000


def decoder(shape: str, device: str, precision: torch.dtype, *, scores: bool = False) -> Any:
    """A Llama of this shape; `scores`: with a head of one label on the last token."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, use_cache=False, **DECODERS[shape], num_labels=1)
    kind = LlamaForSequenceClassification if scores else LlamaModel
    with torch.device(device):
        return kind._from_config(config, dtype=precision)  # made in its precision: float32 would need twice the room


def minilm(device: str, precision: torch.dtype) -> BertModel:
    """An encoder of MiniLM's shape: 6 layers, 384 wide."""
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    with torch.device(device):
        return BertModel._from_config(BertConfig(vocab_size=VOCABULARY, **shape), dtype=precision)


def parameters_of_layers(model: torch.nn.Module) -> int:
    """Parameters that every token goes through: all but the embeddings."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "embed" not in name)


def random_tokens(rows: int, tokens: int, device: str) -> dict[str, torch.Tensor]:
    """Rows without padding."""
    ids = torch.randint(1, VOCABULARY, (rows, tokens), device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
