"""Large generated graphs, a worker's part at a time."""

import numpy as np

from penchant.graph.preference_graph import PreferenceShard, user_range


def make_shard(users: int, responses: int, per_user: int, rank: int, world_size: int) -> PreferenceShard:
    """Users' choices among responses whose popularity falls off like Zipf's law; a worker makes those of its users alone."""
    start, stop = user_range(rank, world_size, users)
    random = np.random.default_rng(rank)
    count = (stop - start) * per_user
    popular = lambda: (responses * random.random(count) ** 2).astype(np.int64)  # noqa: E731
    user = np.repeat(np.arange(start, stop), per_user)
    return PreferenceShard.build(
        user, popular(), popular(), np.arange(start * per_user, stop * per_user),
        first_user=start, num_users=stop - start, num_responses=responses,
    )  # fmt: skip
