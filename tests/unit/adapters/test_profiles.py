import pytest

from penchant.adapters.profiles import PROFILE_INSTRUCTIONS, TemplateProfiler, WrittenProfiler
from penchant.data.lamp import TASKS, Item
from penchant.data.lamp.planted import LampWorld, save_planted_lamp
from penchant.data.lamp.reading import read_lamp
from penchant.errors import BackboneError


class Echo:
    """A writer that says how often it was asked, and how long the prompt is."""

    def __init__(self, name="echo"):
        self.name, self.asked = name, []

    def write(self, prompts):
        self.asked += prompts
        return [f" profile\n number {len(self.asked)}" for _ in prompts]

    def fits(self, prompt):
        return True


def reviews(stars):
    return [Item(str(number), {"text": f"Review {number}", "score": star}) for number, star in enumerate(stars)]


def test_templates_say_what_is_counted():
    stars = TemplateProfiler(TASKS["LaMP_3"]).profile("ann", reviews("5551"))
    assert stars == "This person gives 4.0 stars on average (1: 25%, 2: 0%, 3: 0%, 4: 0%, 5: 75%)."
    films = [Item(str(number), {"description": "d", "tag": tag}) for number, tag in enumerate(["comedy", "action", "comedy"])]
    tags = TemplateProfiler(TASKS["LaMP_2M"]).profile("ann", films)
    assert tags == "The tag that this person gives most often: comedy (67%), action (33%)."
    tweets = [Item(str(number), {"text": text}) for number, text in enumerate(["omg I sat lol", "Omg rain lol", "So wet"])]
    style = TemplateProfiler(TASKS["LaMP_7"]).profile("ann", tweets)
    assert "3 words on average" in style
    assert "begin with 'omg', 'so' and end with 'lol', 'wet'" in style


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_both_kinds(task, tmp_path):
    save_planted_lamp(LampWorld(task=task, users=1, other_users=1, items=3, queries=1), tmp_path / "data")
    user = read_lamp(tmp_path / "data", TASKS[task]).targets["user-00000"]
    assert TemplateProfiler(TASKS[task]).profile(user.user_id, user.items)
    writer = Echo()
    profiler = WrittenProfiler(TASKS[task], writer, tmp_path / "profiles")
    assert profiler.profile(user.user_id, user.items) == "profile number 1"
    assert writer.asked[0].startswith(PROFILE_INSTRUCTIONS[task])
    for item in user.items:
        assert item.fields[profiler.prompts.item_target(item)] in writer.asked[0]


def test_a_profile_is_written_once_for_what_it_is_written_from(tmp_path):
    writer = Echo()
    profiler = WrittenProfiler(TASKS["LaMP_3"], writer, tmp_path)
    first = profiler.profile("ann", reviews("12"))
    assert profiler.profile("ann", reviews("12")) == first
    assert WrittenProfiler(TASKS["LaMP_3"], writer, tmp_path).profile("ann", reviews("12")) == first
    assert len(writer.asked) == 1
    profiler.profile("ann", reviews("123"))
    WrittenProfiler(TASKS["LaMP_3"], Echo("another model"), tmp_path).profile("ann", reviews("12"))
    assert len(writer.asked) == 2
    assert len(list(tmp_path.rglob("*.json"))) == 3


def test_a_users_profiles_can_be_taken_away(tmp_path):
    profiler = WrittenProfiler(TASKS["LaMP_3"], Echo(), tmp_path)
    for user in ("ann", "../ben"):
        profiler.profile(user, reviews("12"))
    profiler.forget("ann")
    profiler.forget("nobody")
    assert len(list(tmp_path.rglob("*.json"))) == 1
    assert [path.name for path in tmp_path.parent.rglob("*ben*")] == [], "a user's id is no path"


def test_the_writer_sees_the_latest_items_cut(tmp_path):
    profiler = WrittenProfiler(TASKS["LaMP_3"], Echo(), tmp_path, items=2, item_words=1)
    prompt = profiler.prompt(reviews("123"))
    assert prompt.splitlines()[1:] == ["review: Review stars: 2", "review: Review stars: 3", "Profile:"]


def test_a_causal_model_writes_the_same_alone_and_in_a_batch(tiny_writer):
    prompts = ["tea and wool", "yeast", "the tides and the moon"]
    together = tiny_writer.write(prompts)
    assert together == [tiny_writer.write([prompt])[0] for prompt in prompts]
    assert len(set(together)) > 1
    assert all(text and prompt not in text for prompt, text in zip(prompts, together, strict=True))


def test_a_prompt_that_does_not_fit_the_model_is_refused(tiny_writer):
    with pytest.raises(BackboneError, match=r"prompt of 100 tokens and 8 to write exceed the model's 64.*longer window"):
        tiny_writer.write(["tea " * 100])


def test_the_oldest_items_go_where_the_writers_window_is_small(tiny_writer, tmp_path):
    profiler = WrittenProfiler(TASKS["LaMP_3"], tiny_writer, tmp_path)
    items = [Item(str(number), {"text": "tea " * (12 - number), "score": "4"}) for number in range(4)]
    everything = WrittenProfiler(TASKS["LaMP_3"], Echo(), tmp_path).prompt(items)
    prompt = profiler.prompt(items)
    assert not tiny_writer.fits(everything)
    assert tiny_writer.fits(prompt)
    assert 3 <= len(prompt.splitlines()) < len(everything.splitlines())
    assert prompt.splitlines()[1:] == everything.splitlines()[-len(prompt.splitlines()) + 1 :]
    assert profiler.profile("ann", items)


@pytest.fixture(scope="module")
def tiny_writer(tiny_backbone):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from penchant.adapters.writing import ModelWriter

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.backend_tokenizer.post_processor = None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return ModelWriter(model, tokenizer, name="tiny", max_new_tokens=8)
