"""rayfed's side: FedAvg that notes when its rounds begin and end, a visit without training (workload N), and one that dies (kill.py)."""

import os
import time
from functools import cache

from rayfed import methods, tree
from rayfed.visits import Visit, visit

STAMPS = "PEERS_STAMPS"  # environment: the file of the times
SCALE = 1e-4


@cache
def stamps():
    """Open the file of the times."""
    return os.open(os.environ[STAMPS], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


class Stamped(methods.get("fedavg")):
    """FedAvg, whose rounds' times are written down."""

    def round(self, state, fed, task):
        begin = time.time()
        new = super().round(state, fed, task)
        os.write(stamps(), f"[{begin}, {time.time()}]\n".encode())
        return new


class Nothing(Stamped):
    """Clients send back what they were sent, scaled by their number (see work.py)."""

    @visit
    def train(self, task):
        def end(client, carry):
            factor = SCALE * client.info.client
            return {"delta": tree.map(lambda x: x * factor.to(x.dtype), client.shared["model"])}, client.own

        return Visit(lambda client: {}, (), end)


class Mortal(methods.get("fedavg")):
    """FedAvg a process of which dies in the visit that kill.py names."""

    @visit
    def train(self, task):
        import work

        inner = super().train(task)

        def begin(client):
            work.die_if_told(int(client.info.round), int(client.info.client))
            return inner.begin(client)

        return inner._replace(begin=begin, vectorize="it looks at the client's number")
