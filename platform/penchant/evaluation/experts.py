"""What the experts of a bundle are for: who gets which, and which texts an expert's users like.

Shapes: U users, E experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from penchant.data import PreferenceDataset
from penchant.evaluation.evaluate import EmbeddedUsers, Evaluator
from penchant.reward.experts import ExpertModel

_SHOWN = 3
_CHARACTERS = 240


@torch.no_grad()
def expert_choice(model: ExpertModel, user_UD: Tensor) -> np.ndarray:
    """How much of each user's route is each expert, the mean over the gates: (U, E), rows summing to 1."""
    routing = model.route(user_UD)
    assert routing is not None
    shares = []
    for route in routing.distinct():
        weight = route.weight / route.weight.sum(1, keepdim=True)
        shares.append(torch.zeros_like(route.probability).scatter(1, route.expert, weight))
    return torch.stack(shares).mean(0).numpy()


def expert_table(model: ExpertModel, dataset: PreferenceDataset, users: EmbeddedUsers, evaluator: Evaluator) -> dict[str, Any]:
    """Expert load over users (seen, unseen) and groups, and example texts of each expert.

    `load` and `by_group` are shares of users, a number an expert. An example is a test response that rises (or falls) most, among
    the responses to its prompt, from the uniform model's scores to those of the expert's typical user (the mean of its users).
    """
    known = users.known_U
    choice_KE = expert_choice(model, users.embedding_UD[torch.from_numpy(known)])
    choice = np.zeros((len(known), choice_KE.shape[1]))
    choice[known] = choice_KE
    cohorts = {"seen": dataset.seen & known, "unseen": ~dataset.seen & known}
    table: dict[str, Any] = {
        "load": {name: choice[mask].mean(0).tolist() for name, mask in cohorts.items() if mask.any()},
        "by_group": {},
        "examples": [],
    }
    table["idle"] = int((np.array(table["load"]["seen"]) == 0).sum())
    if dataset.group is not None:
        for code, name in enumerate(dataset.group_names):
            mask = known & (dataset.group == code)
            if mask.any():
                table["by_group"][name] = choice[mask].mean(0).tolist()
    if model.routes_are_few:
        table["examples"] = _examples(choice, dataset, users, evaluator)
    return table


def _examples(
    choice_UE: np.ndarray, dataset: PreferenceDataset, users: EmbeddedUsers, evaluator: Evaluator
) -> list[dict[str, Any]]:
    test = evaluator.test
    rows = np.unique(np.concatenate([test.chosen, test.rejected]))
    prompt = dataset.prompt_of_response[rows]
    uniform = _standardised(evaluator.tables["uniform"].score(rows, None).numpy(), prompt)
    examples = []
    for expert in range(choice_UE.shape[1]):
        mask = dataset.seen & (choice_UE[:, expert] > 0.5)
        if not mask.any():
            continue
        typical = functional.normalize(users.embedding_UD[torch.from_numpy(mask)].mean(0), dim=0)
        own = _standardised(evaluator.tables["personalised"].score(rows, typical.expand(len(rows), -1)).numpy(), prompt)
        order = np.argsort(own - uniform, kind="stable")
        examples.append(
            {
                "expert": expert,
                "users": int(mask.sum()),
                "rises": [_text(dataset, rows[at]) for at in order[::-1][:_SHOWN]],
                "falls": [_text(dataset, rows[at]) for at in order[:_SHOWN]],
            }
        )
    return examples


def _standardised(score: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Scores less their prompt's mean, over their deviation: only differences within a prompt mean something."""
    _, at, count = np.unique(prompt, return_inverse=True, return_counts=True)
    centred = score - (np.bincount(at, score) / count)[at]
    return centred / max(1e-12, float(centred.std()))


def _text(dataset: PreferenceDataset, row: int) -> dict[str, str]:
    prompt, response = dataset.prompts[dataset.prompt_of_response[row]], dataset.responses[row]
    return {"prompt": _short(prompt), "response": _short(response)}


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _CHARACTERS else words[: _CHARACTERS - 1] + "…"
