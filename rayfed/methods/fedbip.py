"""FedBip: one model per client at the server, moved by the task vectors of clients that learn alike."""

from __future__ import annotations

from rayfed.methods._bases.task_vectors import TaskVectors


class FedBip(TaskVectors):
    """Yang et al. 2026, "Bi-level Personalization for Federated Foundation Models: A Task-vector Aggregation Approach"
    (2509.12697).

    Client i: trains from its own theta_i, sends the task vector tau_i = trained - theta_i (from what it got this round).
    Server: s_ik = cos(tau_i, tau_k), p_ik = s_ik / sum_j s_ij with s_ii = 1, theta_i <- theta_i + sum_k p_ik tau_k. There is no
    global model, and sample counts do not enter.
    Not in what could be read of the paper, so settings: `negative: clamp` puts negative s_ik at 0, `raw` divides as written;
    `temperature` takes softmax(s_i / temperature) in place of the quotient; `neighbours` keeps the m largest of a row, i's own
    among them; `similarity: product` compares the changes of B A and not those of B and A side by side; `weights: uniform`
    is p = 1/K. Clients that are absent keep theta_i and are in no sum. A client that never took part is served the mean of
    the theta_i of those who did (`newcomers: mean`) or the first model.
    Down: theta_i (P, trained parameters only). Up: tau_i (P). Kept at clients: nothing. At the server: theta_i of all N, the
    first model.
    """
