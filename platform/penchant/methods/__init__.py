"""Other methods than Penchant's, in the same harness: the same frozen features, splits, steps and batches.

A method is one module here: a subclass of `Settings`, one of `Method` (`method.py`), and a line for each in `registry.py`:

- `hidden(features)` and `score(hidden, users)`: what a text gets under users' vectors, as any `RewardHead` has them;
- `loss(choices, rows)`: what training makes least. It has a default, which needs
- `training_vectors(choices, rows)`: users' vectors with their gradients, none made from the comparison that it is to explain;
- `seen_vectors(choices)`: the vectors of the users of training, once that is done;
- `new_vectors(choices)`: those of users who were not in training, from their own comparisons alone.

Vectors are whatever the method says of a user: an embedding, weights, an ideal point. A method that has a free row for each
user starts from `FittedMethod` (`fitted.py`) and says only what a row means.
"""
