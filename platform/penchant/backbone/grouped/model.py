"""A frozen base with the adapters of many users in slots.

What an adapter consists of is asked of PEFT, on the meta device: names and shapes are those of `adapter_model.safetensors`, so
a slot's tensors are a standard PEFT adapter of the whole base.

Shapes: S slots, B rows, T tokens, P virtual tokens, H hidden width.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from penchant.backbone.cut import LAYERS, keep_upper
from penchant.backbone.grouped.layers import grouped_layer
from penchant.backbone.grouped.rows import Rows, recomputation_contexts, rows_scope
from penchant.backbone.reading import share_weights
from penchant.errors import ArtifactError, BackboneError

_PROMPTS = "prompt_embeddings"
_PARTS = ("lora_A.weight", "lora_B.weight", "ia3_l", "weight", "bias")


class GroupedModel(nn.Module):
    """A base whose rows each go through the adapter in their own slot; slot `nobody` changes nothing.

    Call it as the base, with the rows' slots first: `model(slot_B, input_ids=..., attention_mask=...)`. LoRA, IA3 and prompt
    tuning; a label head that PEFT saves with the adapter is in the slots too. Only the slots' tensors require gradients; the
    base is never changed, nor wrapped a second time.

    Args:
        base: A transformers model with a head, frozen and in eval mode. It is not changed; its tensors are shared.
        config: PEFT's own, of the kind of adapter that every slot has.
        slots: How many adapters fit.
        lowest: The layers below this one are taken away; the model is then called with `lower=` (see `backbone.cut`).

    Raises:
        BackboneError: The base has no such modules, cannot be cut there, or the kind of adapter is not grouped here.
    """

    def __init__(self, base: Any, config: PeftConfig, *, slots: int, lowest: int = 0) -> None:
        super().__init__()
        self.config, self.slots, self.nobody = config, slots, slots
        self.shapes = adapter_shapes(base, config)
        self.prompt_tokens = self.shapes[_PROMPTS][0] if _PROMPTS in self.shapes else 0
        if self.prompt_tokens and lowest:
            raise BackboneError(
                "Prompt tuning reaches down to the lowest layer.", where="adapter.layers", fix="Set it to null, or use LoRA."
            )
        self.base = share_weights(base).requires_grad_(False).eval()
        if lowest:
            keep_upper(self.base.base_model, lowest)  # type: ignore[arg-type]
        dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
        self._table: dict[str, nn.Parameter] = {}
        modules: dict[str, dict[str, str]] = defaultdict(dict)
        for name in self.shapes:
            if name == _PROMPTS:
                shape = (slots + 1, *self.shapes[name])
                self.prompts = self._table[name] = nn.Parameter(torch.zeros(shape, dtype=dtype, device=base.device))
            else:
                path, part = _module_and_part(name)
                modules[path][part] = name
        scale = getattr(config, "lora_alpha", 1) / getattr(config, "r", 1)
        for number, (path, names) in enumerate(modules.items()):
            path = _path_in_part(base, path, lowest)
            parent, _, own = path.rpartition(".")
            shapes = {part: self.shapes[name] for part, name in names.items()}
            layer = grouped_layer(self.base.get_submodule(path), shapes, slots=slots, dtype=dtype, scale=scale, number=number)
            setattr(self.base.get_submodule(parent), own, layer)
            self._table |= {name: layer.parts[part] for part, name in names.items()}

    @property
    def stacked(self) -> dict[str, nn.Parameter]:
        """What is fitted: by PEFT's names, each (S + 1, ...); the last slot is `nobody`."""
        return self._table

    def forward(self, rows: Rows | Tensor, **inputs: Any) -> Any:
        """The base's output; row b has gone through the adapter in the slot that `rows` (or a tensor of slots) has for it.

        Prompt tuning puts P tokens before the others, in the logits of a language model too.
        """
        rows = rows if isinstance(rows, Rows) else Rows(rows)
        with rows_scope(rows):
            return self.base(**self._with_prompts(rows.slot, inputs))

    @torch.no_grad()
    def generate(self, slot_B: Tensor, **inputs: Any) -> Tensor:
        """transformers' `generate`, each row by its own adapter; inputs are padded on the left.

        With prompt tuning what comes back are the new tokens alone.
        """
        copies = max(int(inputs.get("num_return_sequences", 1)), int(inputs.get("num_beams", 1)))
        inputs = self._with_prompts(slot_B, inputs)
        with rows_scope(Rows(slot_B).repeat(copies)):
            return self.base.generate(**inputs)  # type: ignore[no-any-return, operator]

    def _with_prompts(self, slot_B: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        past = inputs.get("past_key_values")
        if not self.prompt_tokens or (past is not None and past.get_seq_length()):  # the prompts are in what has been read
            return inputs
        if bool((slot_B == self.nobody).any()):
            raise BackboneError("Prompt tuning has no prompt that changes nothing.", fix="Run rows of nobody through the base.")
        inputs = dict(inputs)
        tokens, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        inputs.pop("token_type_ids", None)
        words = self.base.get_input_embeddings()(tokens)  # type: ignore[operator]
        inputs["inputs_embeds"] = torch.cat([self.prompts[slot_B].to(words.dtype), words], dim=1)
        inputs["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.prompt_tokens), mask], dim=1)
        return inputs

    def checkpoint_gradients(self) -> None:
        """Recomputes activations in the backward pass from now on: less memory, more time.

        The base stays in eval mode: a layer that recomputes asks only whether it trains itself, not the modules in it.
        """
        self.base.gradient_checkpointing_enable(  # type: ignore[operator]
            {"use_reentrant": False, "context_fn": recomputation_contexts}
        )
        for module in self.base.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True

    @torch.no_grad()
    def put(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Fills a slot with an adapter, as PEFT saves it.

        Raises:
            ArtifactError: It is not an adapter of this base and kind.
        """
        check_adapter(tensors, self.shapes)
        for name, parameter in self._table.items():
            parameter[slot].copy_(tensors[name])

    def take(self, slot: int) -> dict[str, Tensor]:
        """A copy of a slot's adapter, as PEFT saves it."""
        return {name: parameter[slot].detach().clone() for name, parameter in self._table.items()}

    def fresh(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A new adapter that changes nothing, drawn as PEFT does (LoRA's A uniform, B zero; a prompt from the base's own words).

        The values depend on the generator's seed and on nothing else.
        """
        tensors = {}
        for name, parameter in self._table.items():
            if name == _PROMPTS:
                words: Tensor = self.base.get_input_embeddings().weight  # type: ignore[operator, assignment]
                drawn = torch.randint(len(words), (self.prompt_tokens,), generator=generator)
                tensors[name] = words[drawn.to(words.device)].detach().to(parameter.dtype).clone()
            elif name.endswith("lora_A.weight"):
                bound = parameter.shape[-1] ** -0.5  # Kaiming's uniform bound for a = sqrt(5)
                drawn = torch.rand(parameter.shape[1:], generator=generator, dtype=torch.float64) * 2 - 1
                tensors[name] = (drawn * bound).to(parameter)
            else:
                tensors[name] = parameter[self.nobody].detach().clone()
        return tensors


def adapter_shapes(base: Any, config: PeftConfig) -> dict[str, torch.Size]:
    """Names and shapes of what PEFT saves of one adapter; no weight is made.

    Raises:
        BackboneError: The base has no such modules.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings that are tied, and of names that PEFT looks up the old way
        outline = type(base)(copy.deepcopy(base.config))
        try:
            model = get_peft_model(outline, copy.deepcopy(config))
        except ValueError as error:
            kinds = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)})
            raise BackboneError(
                f"The base cannot be adapted there ({str(error).splitlines()[0][:160]}).",
                where="adapter.target_modules",
                fix=f"Its linear maps are called {', '.join(kinds)}.",
            ) from None
        if not isinstance(config, PromptTuningConfig):
            return {name: value.shape for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
        # PEFT would copy the prompt to the CPU, which the meta device forbids.
        shapes = {_PROMPTS: torch.Size([config.num_virtual_tokens, base.get_input_embeddings().embedding_dim])}
        for name, module in model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                head = module.modules_to_save[model.active_adapter].state_dict()  # type: ignore[index]
                shapes |= {f"{name}.{part}": value.shape for part, value in head.items()}
        return shapes


def check_adapter(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], *, where: str = "adapter") -> None:
    """Whether tensors are one adapter of these shapes, with finite values.

    Raises:
        ArtifactError: One is missing, is not of this adapter, has another shape, or holds a value that is no number.
    """
    fix = "Give an adapter of this base and of the store's settings."
    for name in sorted(shapes.keys() ^ tensors.keys()):
        what = "is missing" if name in shapes else "is not of this kind of adapter"
        raise ArtifactError(f"The tensor {name} {what}.", where=where, fix=fix)
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ArtifactError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}.", where=where, fix=fix)
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ArtifactError(f"{name} holds values that are no numbers.", where=where, fix="Fit the adapter again.")


def _module_and_part(name: str) -> tuple[str, str]:
    path = re.sub(r"^base_model\.(model\.)?", "", name, count=1)
    part = next(part for part in _PARTS if path.endswith("." + part))
    return path.removesuffix("." + part), part


def _path_in_part(base: Any, path: str, lowest: int) -> str:
    """Where a module of the whole base is in the base without the layers below `lowest`."""
    if not lowest:
        return path
    layers = f"{base.base_model_prefix}.{LAYERS[base.config.model_type]}."
    if not path.startswith(layers):
        return path
    number, _, rest = path.removeprefix(layers).partition(".")
    return f"{layers}{int(number) - lowest}.{rest}"
