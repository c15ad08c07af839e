"""Whose style an adapter writes in: planted headlines, with a small language model that is built and trained here.

    python benchmarks/planted_styles.py [--quick] [--task LaMP_4]

Each planted user frames what a text is about with a lead and a closing of their own. A Llama (4 layers, 128 wide, a word a
token) is trained on users of another world to write such texts in anybody's style. Then the whole of OPPU runs, as in
`penchant adapters evaluate`: task base, adapters, greedy answers through the user's adapter, the wrong user's and none.
A style counts if both the lead and the closing are there.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from _report import report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from penchant.adapters.asking import wrong_users
from penchant.adapters.config import AdapterSettings, AnswerSettings, FittingSettings, LampSettings, TaskBaseSettings
from penchant.adapters.examples import Example
from penchant.adapters.items import ItemReader
from penchant.adapters.tasks.building import ExampleBuilder
from penchant.adapters.variants import table_rows
from penchant.data.lamp import LampData, find_task
from penchant.data.lamp.planted import LampTruth, LampWorld, load_lamp_truth, save_planted_lamp
from penchant.data.lamp.reading import read_lamp
from penchant.evaluation.personal_results import personal_results
from penchant.runtime.cluster import start_ray
from penchant.runtime.training.config import WorkerSettings
from penchant.runtime.training.lamp_run import LampRun

TOKENS = 64


def plant(world: LampWorld, folder: Path) -> tuple[LampData, LampTruth]:
    save_planted_lamp(world, folder)
    return read_lamp(folder, find_task(world.task)), load_lamp_truth(folder)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in text.split()})
    special = ["[PAD]", "[UNK]", "[BEGIN]", "[END]"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[BEGIN] $A", special_tokens=[("[BEGIN]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BEGIN]", eos_token="[END]"
    )


def train_base(examples: list[Example], folder: Path, steps: int) -> float:
    """Writes the language model; its loss on the targets, mean over the last tenth of the steps."""
    tokenizer = make_tokenizer([f"{example.prompt} {example.target}" for example in examples])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=384, max_position_embeddings=2 * TOKENS, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    reader = ItemReader(model, tokenizer, max_tokens=TOKENS)
    items = reader.items(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        batch = [items[at] for at in torch.randint(len(items), (64,)).tolist()]
        loss = reader.losses(batch, model(**reader.inputs(batch)).logits).sum() / sum(map(reader.weight, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def share_in_style(outputs: dict[str, list[str]], whose: dict[str, str], rules: dict) -> float:
    """Share of the texts that have the lead and the closing of `whose[user]`."""
    right = [
        text.startswith(rules[whose[user]]["lead"] + " ") and text.endswith(" " + rules[whose[user]]["closing"])
        for user, texts in outputs.items()
        for text in texts
    ]
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="LaMP_4", help="LaMP_4, LaMP_5 or LaMP_7")
    parser.add_argument("--quick", action="store_true", help="few users and steps: only to see that it runs")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    size = {"users": 4, "other_users": 8, "items": 10} if arguments.quick else {"users": 40, "other_users": 80, "items": 40}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, truth = plant(LampWorld(task=arguments.task, noise=0, layout="oppu", **size), folder / "world")
        # The language model learns from people who are in neither part of the task.
        before, _ = plant(LampWorld(task=arguments.task, noise=0, layout="oppu", seed=1, **size), folder / "before")
        builder = ExampleBuilder(before.task)
        everybody = {**before.targets, **before.others}
        parts = [*builder.queries_of(everybody).values(), *builder.personal_of(everybody).values()]
        examples = [example for part in parts for example in part]
        loss = train_base(examples, folder / "model", 20 if arguments.quick else 1500)
        settings = LampSettings(
            base=TaskBaseSettings(name=str(folder / "model"), answers="text", max_tokens=TOKENS),
            adapter=AdapterSettings(r=8, alpha=16),
            fitting=FittingSettings(epochs=10, learning_rate=3e-3),
            answers=AnswerSettings(max_new_tokens=16),
        )
        run = LampRun(data, settings, table_rows(["oppu"], settings), folder / "run", WorkerSettings())
        start_ray()
        run.fit()
        answered = run.answer()
        results = personal_results(data, answered, settings)["groups"]["all users"]
    own = {user: user for user in data.targets}
    wrong = wrong_users(sorted(own), settings.answers.seed)
    rows = [
        {
            "adapter": name,
            "in the user's style": share_in_style(outputs, own, truth.rules),
            "in the wrong user's style": share_in_style(outputs, wrong, truth.rules),
            "ROUGE-1": results["rows"][name]["rouge_1"]["value"],
        }
        for name, outputs in answered.items()
    ]
    alike = sum(truth.rules[user] == truth.rules[other] for user, other in wrong.items())
    user, written = next((user, texts[0]) for user, texts in answered["oppu"].items())
    right = data.targets[user].queries[0].gold
    report(
        "planted_styles",
        f"Planted styles, {arguments.task}: {results['users']} users, {results['queries']} greedy generations",
        rows,
        [
            f"Loss of the language model: {loss:.3f}. {alike} of {len(wrong)} wrong users share the user's style by chance.",
            f"One of the generations: {written!r}; right is {right!r}.",
        ],
    )


if __name__ == "__main__":
    main()
