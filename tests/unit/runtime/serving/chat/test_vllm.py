"""vLLM's configuration from ours, and the talk with its replicas; vLLM itself is not run."""

import asyncio
import importlib.util
import json
import shutil
import sys
import types

import pytest
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig  # ray.serve.llm has it, too, where vLLM is installed

from penchant.adapters.store import AdapterStore
from penchant.errors import ConfigError
from penchant.runtime.serving.application import build
from penchant.runtime.serving.chat.events import Ended, GenerationRequest, KeyNeeded, Piece, Started
from penchant.runtime.serving.chat.vllm import VllmHandle, vllm_config
from penchant.runtime.serving.config import GeneratorSettings, ServiceSettings
from penchant.runtime.serving.service import Unavailable


@pytest.fixture
def store(personal_writer, tmp_path):
    shutil.copytree(personal_writer, tmp_path, dirs_exist_ok=True)
    return AdapterStore.open(tmp_path / "store")


@pytest.fixture
def settings(store):
    vllm = {"adapters_uri": "s3://bucket/adapters", "engine": {"tensor_parallel_size": 2}}
    folder = store.folder
    return GeneratorSettings(
        base=str(folder.parent / "base"), adapters=str(folder), backend="vllm", vllm=vllm, rows=32, precision="bfloat16"
    )


def test_ray_takes_the_configuration_and_it_says_what_ours_says(settings, store):
    config = LLMConfig(**vllm_config(settings, store))
    assert (config.model_id, config.model_loading_config.model_source) == ("penchant", settings.base)
    assert config.lora_config.dynamic_lora_loading_path == "s3://bucket/adapters"
    assert config.lora_config.max_num_adapters_per_replica == 256
    engine = config.engine_kwargs
    assert (engine["enable_lora"], engine["max_lora_rank"], engine["max_loras"]) == (True, 8, 32)
    assert (engine["dtype"], engine["tensor_parallel_size"], engine["max_model_len"]) == ("bfloat16", 2, 8192)
    assert config.deployment_config["autoscaling_config"]["max_replicas"] == 4


def test_what_vllm_cannot_serve_is_refused(settings, store, monkeypatch):
    monkeypatch.setattr(store, "config", dict(store.config) | {"peft_type": "IA3"})
    with pytest.raises(ConfigError, match="the adapters are IA3"):
        vllm_config(settings, store)


def test_without_vllm_the_service_says_what_to_install(settings):
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(ConfigError, match=r"vLLM is not installed.*pip install"):
        build(ServiceSettings(generator=settings))


class Handle:
    """Ray Serve's handle, in front of a replica of vLLM's as `ray.serve.llm` describes it."""

    def __init__(self, *sent):
        self.sent, self.asked, self.chosen = sent, [], {}
        self.chat = types.SimpleNamespace(remote=self._chat)

    def options(self, **chosen):
        self.chosen = chosen
        return self

    async def _chat(self, body, _):
        self.asked.append(body)
        for each in self.sent:
            yield each


@pytest.fixture(autouse=True)
def protocol(monkeypatch):
    """vLLM's request, which comes with vLLM."""
    module = types.ModuleType("ray.serve.llm.openai_api_models")
    module.ChatCompletionRequest = lambda **values: types.SimpleNamespace(**values)
    monkeypatch.setitem(sys.modules, "ray.serve.llm.openai_api_models", module)


def chunk(index, text, tokens, finish=None):
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 4, "completion_tokens": tokens}
    return f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n"


def events_of(settings, handle, **request):
    async def collect():
        asked = GenerationRequest(messages=({"role": "user", "content": "Hi"},), **request)
        return [some async for some in VllmHandle(handle, settings).generate(asked)]

    return asyncio.run(collect())


def test_a_user_with_an_adapter_is_asked_for_by_its_folder(settings, store):
    last = f"data: {json.dumps({'choices': [], 'usage': {}})}\n\n"
    handle = Handle([chunk(0, "The ", 1), chunk(0, "moon", 2)], [chunk(0, ".", 3, "stop"), last, "data: [DONE]\n\n"])
    (events,) = events_of(settings, handle, user="ann", candidates=1, max_tokens=9, seed=2)
    assert isinstance(events[0], Started)
    assert (events[0].how, events[0].prompt_tokens) == ("own", 4)
    assert [event.text for event in events if isinstance(event, Piece)] == ["The ", "moon", "."]
    assert (events[-2].tokens, events[-2].finish) == (3, "stop")
    assert isinstance(events[-1], Ended)
    (asked,) = handle.asked
    name, _, folder = asked.model.partition(":")
    assert name == "penchant"
    assert (store.folder / "adapters" / folder / "adapter_config.json").is_file()
    assert handle.chosen["multiplexed_model_id"] == asked.model
    assert (asked.max_tokens, asked.seed) == (9, 2)


def test_a_user_without_one_is_asked_of_the_base_and_streams_come_in_pieces(settings):
    handle = Handle([chunk(0, "a", 1)], [chunk(0, "b", 2, "length")])
    several = events_of(settings, handle, user="nobody", stream=True)
    assert [len(some) for some in several] == [2, 1, 1]
    assert several[0][0].how == "task"
    assert handle.asked[0].model == "penchant"
    assert "multiplexed_model_id" not in handle.chosen


def test_what_it_cannot_do_is_told(settings):
    with pytest.raises(KeyNeeded, match="cannot open encrypted adapters"):
        events_of(settings, Handle(), user="locked")
    with pytest.raises(Unavailable, match="refused"):
        events_of(settings, Handle([object()]), user="ann")
