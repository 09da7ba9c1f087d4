"""Networks that cannot be trained, or not under every executor: (classes, input_shape) -> torch.nn.Module."""

from __future__ import annotations

from torch import nn


def five(classes, input_shape):
    return nn.Linear(8, 5)


def one(classes, input_shape):
    return nn.Linear(8, 1)


class Two(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(x), x


def pair(classes, input_shape):
    return Two(classes)


def narrow(classes, input_shape):
    return nn.Linear(7, classes)


def between_layers(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, 2, batch_first=True, dropout=0.5), nn.Linear(6, classes)

        def forward(self, x):
            return self.head(self.rnn(x.reshape(len(x), 2, 4))[0][:, -1])

    return Net()


def always_random(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, classes)

        def forward(self, x):
            return self.head(nn.functional.dropout(x, 0.5))

    return Net()


def no_statistics(classes, input_shape):
    return nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, classes))


def lazy(classes, input_shape):
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, classes))


def centred(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, classes)

        def forward(self, x):
            return self.head(x - x.mean(0) if self.training else x)

    return Net()


def lstm(classes, input_shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, classes)

        def forward(self, x):
            return self.head(self.rnn(x.reshape(len(x), 2, 4))[0][:, -1])

    return Net()


class Branch(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(x * 2 if x.mean() > 0 else x)


def branch(classes, input_shape):
    return Branch(classes)
