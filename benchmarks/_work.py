"""Operations and bytes of the hot paths, by formula.

A multiplication and an addition are two operations. Bytes are those of every array read or written once, as if the caches held
everything in between: no implementation moves fewer, so the bound is one. `itemsize` is of the numbers, 4 for float32.

Shapes: E edges, U users, R responses, D dim, N texts, F features, H hidden, B rows, T tokens, I in, O out, r rank, K experts of a
row, M neighbours, C comparisons.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a call has to do."""

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes


def aggregation(edges: int, users: int, responses: int, dim: int, itemsize: int = 4) -> Work:
    """`sum over a user's edges of weight * response`: 2 E D operations. Read: R D rows, E weights, E int32 ends and U int32
    offsets; written: U D rows.
    """
    return Work(2 * edges * dim, itemsize * (responses * dim + edges + users * dim) + 4 * (edges + users))


def head(texts: int, features: int, hidden: int, dim: int, itemsize: int = 4) -> Work:
    """The two-term head, a user each text: `h = ReLU(W standardise(x))`, 2 N F + 2 N F H; `w . h`, 2 N H; `P e_u`, 2 N D H;
    `<P e_u, h>`, 2 N H. Read: N F features, N D users, F H + D H + H weights; written: N scores.
    """
    operations = 2 * texts * (features + features * hidden + hidden + dim * hidden + hidden)
    return Work(operations, itemsize * (texts * (features + dim + 1) + (features + dim + 1) * hidden))


def low_rank_layer(
    rows: int, tokens: int, inputs: int, outputs: int, rank: int, slices: int, shared: int = 0, itemsize: int = 4
) -> Work:
    """A linear layer with a low-rank map of rank r for each row, of which the batch has so many distinct `slices`, and one of
    rank `shared` for all. MoLE: the rank is K x an expert's, the slices are the distinct experts; grouped adapters: the users.

    `W x`: 2 B T I O. `B A x`: 2 B T (r + shared) (I + O). Read: B T I, I O, (slices r + shared) (I + O); written: B T O.
    """
    operations = 2 * rows * tokens * (inputs * outputs + (rank + shared) * (inputs + outputs))
    weights = inputs * outputs + (slices * rank + shared) * (inputs + outputs)
    return Work(operations, itemsize * (rows * tokens * (inputs + outputs) + weights))


def low_rank_backward(
    rows: int, tokens: int, inputs: int, outputs: int, rank: int, slices: int, shared: int = 0, itemsize: int = 4
) -> Work:
    """The same layer's way back, `W` frozen: the gradient of x as much as the way there; of A and B, once more 2 B T (r + shared)
    (I + O). Read: B T (I + O) of x and of the output's gradient, the weights; written: B T I, and the gradients of A and B.
    """
    there = low_rank_layer(rows, tokens, inputs, outputs, rank, slices, shared, itemsize)
    low_rank = (inputs + outputs) * (rank + shared)
    moved = there.bytes + itemsize * (rows * tokens * inputs + (slices * rank + shared) * (inputs + outputs))
    return Work(there.operations + 2 * rows * tokens * low_rank, moved)


def transformer(
    rows: int, tokens: int, parameters: int, width: int, layers: int, cached: int = 0, kept: int = 0, itemsize: int = 4
) -> Work:
    """A base's layers over B rows of T new tokens behind `cached` earlier ones, all of which they attend to: 2 P B T of the
    linear maps, which have P parameters, and 4 B T (cached + T) I a layer of attention. Read: P, and `kept` numbers a layer of
    each cached token; read and written: B T I a layer.
    """
    operations = 2 * rows * tokens * parameters + 4 * layers * rows * tokens * (cached + tokens) * width
    return Work(operations, itemsize * (parameters + layers * rows * (2 * tokens * width + cached * kept)))


def neighbours(found: int, comparisons: int, dim: int, itemsize: int = 4) -> Work:
    """Onboarding one user: differences of responses, C D; margins under M neighbours, 2 M C D; `logsigmoid`'s mean and the
    softmax, about 5 M C + 4 M; the weighted sum, 2 M D. Read: M D, 2 C D and M int32 ids; written: D. Finding the ids is not
    counted: it is sorting.
    """
    operations = comparisons * dim + found * (2 * comparisons * dim + 5 * comparisons + 4 + 2 * dim)
    return Work(operations, itemsize * (found * dim + 2 * comparisons * dim + dim) + 4 * found)
