"""What a user brings along: a data function and networks, those that the other sides train (work.py)."""

import work


def digits(seed: int):
    """Return scikit-learn's digits; the pooled test set is that of the plan."""
    from rayfed.config.schema import Named
    from rayfed.data import digits

    return digits.load(Named(name="digits"), seed)


def mlp(classes: int, input_shape: tuple[int, ...]):
    return work.MLP({})


def cnn(classes: int, input_shape: tuple[int, ...]):
    return work.CNN({})
