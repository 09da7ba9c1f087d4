"""FedFTG: the average is fine-tuned at the server by the clients' models, on inputs of a generator."""

from __future__ import annotations

from rayfed.methods._bases.finetuned_average import FineTunedAverage


class FedFTG(FineTunedAverage):
    """Zhang et al. 2022, "Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning"
    (CVPR 2022, 2203.09249).

    Client i: w_i <- w, E epochs of SGD; sends w_i - w and its class counts n_i^y.
    Server: w <- sum_i (n_i / n) w_i, then `iterations` times, with y ~ (sum_i n_i^y)^rho, x = G(z, y) and
    alpha_i^y = n_i^y / sum_j n_j^y over the round's clients:
        G: min  sum_i alpha_i^y CE(f(x; w_i), y) - sum_i alpha_i^y |f(x; w) - f(x; w_i)|_1 + L_div   (Adam)
        w: min  KL(sum_i alpha_i^y softmax f(x; w_i) || softmax f(x; w)) / C                          (SGD)
    C classes: the code takes the mean of its cross-entropy over examples and classes, which has this gradient, so that rate 0.1
    is one of 0.1 / C on a cross-entropy as it is usually written. `cross_entropy` adds one against the drawn label [ours],
    `adversary: kl` takes the KL for the generator as well [paper].
    Differences to the code, all [ours]: it takes one generator step per teacher, here one step goes down the sum of their
    losses, and `generator_steps` asks for more; it draws y and z once per iteration, labels by quota, here every step draws
    anew; its fidelity is the batch's mean cross-entropy times the teacher's mean weight, here example by example; its
    generator is a convolutional one with Adam at 0.01 decayed like the student's rate, here an MLP at a constant rate; its
    student has weight decay (0.001).
    The generator is kept between rounds. The paper generates images; `inputs: embeddings`, for texts, and `inputs: probe`
    are ours.
    `iterations: 0` is FedAvg to the bit.
    Down: w (P). Up: update (P), n_i^y (C ints). Kept at clients: nothing. At the server: w, generator and its Adam state;
    within a round the models of all its clients.
    """
