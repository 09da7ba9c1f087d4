"""Who took what, and when: implicit feedback, split by leaving each user's last items out."""

from __future__ import annotations

import numpy as np

from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError

LEAST = 3  # items of a user: one to train on, one to validate, one to test


def leave_one_out(name: str, user: np.ndarray, item: np.ndarray, time: np.ndarray | None = None) -> Dataset:
    """Return who took what as a data set of kind `items`: of each user the last item is test, the last but one validation.

    user: (n,) names; item: (n,) names or numbers; time: (n,), by which a user's items are ordered, default the order of the rows. An item
    that a user took again counts once, at its first time; users of fewer than `LEAST` items are left out, and a note says how many.
    ConfigError where nobody is left.
    """
    users, who = np.unique(np.asarray(user).astype(str), return_inverse=True)
    items, what = np.unique(item, return_inverse=True)
    order = np.lexsort((np.arange(len(who)), np.zeros(len(who)) if time is None else time, who))
    who, what = who[order], what[order]
    first = np.sort(np.unique(who * len(items) + what, return_index=True)[1])
    again, who, what = len(who) - len(first), who[first], what[first]
    many = np.bincount(who, minlength=len(users))
    enough = (many >= LEAST)[who] & (users != "")[who]
    who, what = who[enough], what[enough]
    if not len(who):
        raise ConfigError(f"task.data: no user of {name} took at least {LEAST} different items")
    last = np.append(who[1:] != who[:-1], True)
    before = np.append(last[1:], False)
    split = np.where(last, "test", np.where(before, "valid", "train"))
    whole = Part(what[:, None].astype(np.int32), what.astype(np.int64), users[who], None, split)
    few = int(((many > 0) & (many < LEAST)).sum())
    notes = (
        *([f"{few:,} users of {name} took fewer than {LEAST} items and are left out"] if few else []),
        *([f"{again:,} rows of {name} are of an item that their user took before, and are left out"] if again else []),
    )
    return Dataset(name, whole.take(~last), whole.take(last), len(items), tuple(map(str, items)), "items", notes)
