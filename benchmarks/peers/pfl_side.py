"""pfl-research's simulated backend on the same plan: one process, one thread, the global model scored where rayfed's defaults do.

python pfl_side.py PLAN OUT
"""

import sys

import numpy as np
import torch
import work
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDatasetBase
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from plan import SCALE, Plan, Times

torch.set_num_threads(1)
plan, times = Plan(sys.argv[1]), Times(sys.argv[2])
client = work.Client(plan)
client.load(plan.start)


class Planned(FederatedDatasetBase):
    """The plan's clients, round by round."""

    def __init__(self):
        super().__init__()
        self.round = 0

    def __next__(self):
        raise NotImplementedError

    def get_cohort(self, cohort_size):
        times.begin()
        r, self.round = self.round, self.round + 1
        for i in range(cohort_size):
            data = Dataset(raw_data=[np.empty(int(plan.examples[r, i]))], user_id=str(i))
            data.at = (r, i)
            yield data, i


class Replayed(FederatedAveraging):
    """FedAvg whose local training takes the planned batches."""

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        r, i = user_dataset.at
        if plan.about["steps"]:
            client.steps(r, i)
        else:
            with torch.no_grad():
                for p in client.params:
                    p.mul_(1 + SCALE * int(plan.clients[r, i]))
        return model.get_model_difference(initial_model_state), Metrics()


class Ends(TrainingProcessCallback):
    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        times.end()
        times.score(plan, client.accuracy)
        return False, Metrics()


net = client.net
net.loss = net.metrics = lambda *a, **k: {}
model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(client.params, lr=1.0))
data = Planned()
Replayed().run(
    backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
    model=model,
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=plan.rounds,
        evaluation_frequency=10**9,
        train_cohort_size=len(plan.clients[0]),
        val_cohort_size=0,
    ),
    model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=None),
    callbacks=[Ends()],
)
times.write(plan, [p.detach().numpy() for p in client.params])
