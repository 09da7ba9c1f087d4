"""rayfed's side: a visit without training, and one that dies (kill.py)."""

from rayfed import methods, tree
from rayfed.visits import Visit, visit

SCALE = 1e-4  # as in plan.py


class Nothing(methods.get("fedavg")):
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
