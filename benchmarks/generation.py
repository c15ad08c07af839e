"""Writing for many users at once: tokens a second for 64 users of 2,000 adapters and for one, and a cold adapter's first token.

    python benchmarks/generation.py [--rounds 7] [--adapters 2000]

What a replica of `Generator` does, without HTTP: 64 requests at once, 64 tokens of prompt, 32 written. A Llama of random weights
made in code (hidden width 256, four layers), LoRA of rank 8 on query and value of every layer; speed does not depend on the
weights. One user's requests, those of 64 others who are in memory, and those of 64 whose adapters are on disk take turns, in
another order every round; ratios are medians of the rounds' own. The first token of a cold adapter and of a warm one take turns,
too: one request at a time. `steps` is the decoding alone, without requests: what the passes cost.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _report import report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from penchant.adapters.applying import AdapterPool, grouped_model
from penchant.adapters.bases import base_fingerprint, peft_config
from penchant.adapters.cards import Card
from penchant.adapters.config import AdapterSettings
from penchant.adapters.store import AdapterStore
from penchant.backbone.grouped import Decoder, Row
from penchant.backbone.grouped.model import adapter_shapes
from penchant.runtime.serving.chat.engine import GenerationEngine
from penchant.runtime.serving.chat.events import Ended, GenerationRequest, Started
from penchant.runtime.serving.config import GeneratorSettings, LimitSettings

ROWS, PROMPT, WRITTEN, VOCABULARY = 64, 64, 32, 8000


def make_writer() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A language model of random weights, and a tokenizer of as many words; no word ends an answer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=688, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    words = {f"word{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    tokenizer.pre_tokenizer = Whitespace()
    base = LlamaForCausalLM(config).eval().requires_grad_(False)
    return base, PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="word0")


def make_store(base: LlamaForCausalLM, folder: Path, adapters: int) -> AdapterStore:
    config = peft_config(AdapterSettings(), base, "made in code")
    shapes = adapter_shapes(base, config)
    store = AdapterStore.create(folder, fingerprint=base_fingerprint(base), config=config, shapes=shapes)
    generator = torch.Generator().manual_seed(0)
    for number in range(adapters):
        tensors = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        store.put(Card(user=str(number), base=store.fingerprint), tensors)
    return store


class Replica:
    """An engine with as many adapters in memory as are asked for."""

    def __init__(self, base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, store: AdapterStore, slots: int) -> None:
        settings = GeneratorSettings(base="", adapters="", rows=ROWS, adapters_in_memory=slots)
        self.pool = AdapterPool(grouped_model(base, store, slots=slots), store)
        self.engine = GenerationEngine(self.pool, tokenizer, settings, LimitSettings())
        self.random = np.random.default_rng(0)

    async def ask(self, user: str, tokens: int = WRITTEN) -> tuple[Started, Ended]:
        """A request of words that nobody has sent before."""
        text = " ".join(f"word{number}" for number in self.random.integers(1, VOCABULARY, PROMPT))
        request = GenerationRequest(user=user, messages=({"role": "user", "content": text},), max_tokens=tokens)
        (events,) = [some async for some in self.engine.generate(request)]
        return events[0], events[-1]

    async def rate(self, users: list[str]) -> float:
        """Tokens a second."""
        started = time.perf_counter()
        await asyncio.gather(*(self.ask(user) for user in users))
        return len(users) * WRITTEN / (time.perf_counter() - started)

    async def load(self, users: list[str]) -> None:
        for user in users:
            with self.pool.pinned([user]):
                pass


def steps(replica: Replica, users: list[str]) -> float:
    """Tokens a second of the passes alone."""
    with replica.pool.pinned(users) as pinned:
        prompts = replica.random.integers(1, VOCABULARY, (len(users), PROMPT)).tolist()
        rows = [Row(int(slot), tuple(prompt)) for slot, prompt in zip(pinned.slot, prompts, strict=True)]
        decoder, started = Decoder(replica.pool.model), time.perf_counter()
        decoder.add(rows)
        for _ in range(WRITTEN - 1):
            decoder.step()
        return len(users) * WRITTEN / (time.perf_counter() - started)


async def measure(large: Replica, small: Replica, adapters: int, rounds: int) -> None:
    random = np.random.default_rng(1)

    def draw(count: int) -> list[str]:
        return [str(number) for number in random.choice(adapters, count, replace=False)]

    await large.load([str(number) for number in range(adapters)])
    one, many, cold = "one user", f"{ROWS} users of {adapters:,}, in memory", f"{ROWS} users of {adapters:,}, on disk"
    found: dict[str, list[float]] = {name: [] for name in (one, many, cold, f"{one}: steps", f"{many}: steps")}
    for number in range(rounds + 1):
        order = list(found)[:: -1 if number % 2 else 1]
        for name in order:
            users = draw(1) * ROWS if name.startswith(one) else draw(ROWS)
            replica = small if name == cold else large
            rate = steps(replica, users) if name.endswith("steps") else await replica.rate(users)
            if number:  # the first round warms up
                found[name].append(rate)
    rows = []
    for name, rates in found.items():
        ratios = np.array(rates) / np.array(found[one + (": steps" if name.endswith("steps") else "")])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        rows.append(
            {"requests of": name, "tokens a second": float(np.median(rates)), "against one user": float(middle),
             "quartiles": f"{low:.2f} to {high:.2f}"}
        )  # fmt: skip
    flat = rows[1]["against one user"]
    report(
        "generation", f"Writing, {ROWS} requests at once, {rounds} rounds", rows,
        [f"{ROWS} users of {adapters:,}: {flat:.3f} of one user's tokens a second (within 10% is asked)."],
    )  # fmt: skip


async def first_tokens(replica: Replica, adapters: int, rounds: int) -> None:
    """One request at a time: of a user who is not in memory, and of the same user again."""
    random = np.random.default_rng(2)
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for number in range(20 * rounds):
        absent = [user for user in map(str, random.permutation(adapters)[:200]) if user not in replica.pool]
        for name in times:
            started, ended = await replica.ask(absent[0], 2)
            assert started.cold == (name == "cold")
            if number >= 5:
                times[name].append(1000 * ended.first_token_seconds)
    ratio = np.array(times["cold"]) / np.array(times["warm"])
    rows = [
        {"adapter": name, "first token, ms: p50": float(np.median(each)), "p95": float(np.quantile(each, 0.95))}
        for name, each in times.items()
    ]
    note = f"A cold adapter's first token takes {np.median(ratio):.2f} times a warm one's (median of pairs; under 2 is asked)."
    report("generation_first_token", f"First token, prompts of {PROMPT} tokens, one request at a time", rows, [note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--adapters", type=int, default=2000)
    arguments = parser.parse_args()

    async def run(folder: Path) -> None:
        base, tokenizer = make_writer()
        store = make_store(base, folder, arguments.adapters)
        large, small = (Replica(base, tokenizer, store, slots) for slots in (arguments.adapters, ROWS))
        await measure(large, small, arguments.adapters, arguments.rounds)
        await first_tokens(small, arguments.adapters, arguments.rounds)
        large.engine.close()
        small.engine.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


if __name__ == "__main__":
    main()
