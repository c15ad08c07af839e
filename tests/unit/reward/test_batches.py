import numpy as np

from penchant.reward.batches import PromptBatches


def batches(*, comparisons=300, prompts=6, texts=8, limit=32, groups=2, seed=0):
    random = np.random.default_rng(0)
    prompt = random.integers(0, prompts, comparisons)
    chosen = prompt * texts + random.integers(0, texts, comparisons)
    rejected = prompt * texts + (chosen % texts + 1 + random.integers(0, texts - 1, comparisons)) % texts
    rows = np.flatnonzero(random.random(comparisons) < 0.8)
    dealt = PromptBatches(chosen, rejected, prompt, rows, texts_per_group=limit, groups_per_step=groups, seed=seed)
    return dealt, chosen, rejected, prompt, rows


def test_an_epoch_deals_every_comparison_once_by_prompt():
    dealt, _, _, prompt, rows = batches()
    seen = np.concatenate([group for step in range(3) for group in dealt.step(step)])
    assert sorted(seen) == sorted(rows)
    assert all(len(set(prompt[group])) == 1 for group in dealt.groups)
    assert [group.tolist() for group in dealt.step(1)] == [group.tolist() for group in batches()[0].step(1)]
    assert [group.tolist() for group in dealt.step(0)] != [group.tolist() for group in dealt.step(3)]


def test_a_prompt_with_many_responses_is_cut():
    dealt, chosen, rejected, _, rows = batches(limit=4)
    assert len(dealt.groups) > 6
    assert all(len(np.unique([chosen[group], rejected[group]])) <= 4 for group in dealt.groups)
    assert sorted(np.concatenate(dealt.groups)) == sorted(rows)
