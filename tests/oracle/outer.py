#!/usr/bin/env python3
"""The outer optimizers as their papers write them, in float64, for tests/unit/outer/oracle_test.cc.

    outer.py '{"optimizer": "adam", "learning_rate": 0.1, ..., "count": 100}' < gradients > values

Reads outer gradients (old - new, float32, one row of `count` a step), walks from zeros, and writes the model after each
step (float64). Written from the papers, not from Skerry's source: FedOpt's pseudo-gradient is new - old and is added.
"""

import json
import math
import sys

import numpy as np


def factor(o, t):
    """The schedule's factor before step t = 0, 1, ..."""
    warmup = o.get("warmup_steps", 0)
    if t < warmup:
        return (t + 1) / warmup
    kind = o.get("schedule", "constant")
    if kind == "inverse_sqrt":
        return math.sqrt(max(1, warmup) / (t + 1))
    if kind == "step":
        return o["step_factor"] ** ((t - warmup) // o["step_every"])
    if kind == "constant":
        return 1.0
    gone = min(1.0, (t - warmup) / (o["schedule_steps"] - warmup))
    low = o.get("final_fraction", 0.0)
    return low + (1 - low) * (1 - gone if kind == "linear" else 0.5 * (1 + math.cos(math.pi * gone)))


def sgd(o, w, state, g, rate, t):  # torch.optim.SGD
    return w - rate * g


def momentum(o, w, state, g, rate, t):  # torch.optim.SGD(momentum)
    state["b"] = g if t == 0 else o["momentum"] * state["b"] + g
    return w - rate * state["b"]


def nesterov(o, w, state, g, rate, t):
    beta = o["momentum"]
    if o.get("form") == "fedmom":  # arXiv 2002.02090: two sequences of models
        before = state.get("v", w)  # v_0 = w_0
        state["v"] = w - rate * g
        return state["v"] + beta * (state["v"] - before)
    state["b"] = g if t == 0 else beta * state["b"] + g  # torch.optim.SGD(nesterov=True)
    return w - rate * (g + beta * state["b"])


def delayed_nesterov(o, w, state, g, rate, t):  # arXiv 2401.09135, algorithm 3
    beta, n, c = o["momentum"], o["delay"], o["carry"]
    m, buffer = state.get("m", 0.0), state.get("buffer", 0.0) + g
    if (t + 1) % n == 0:
        m = beta * m + buffer / n
        w = w - rate * ((1 - c * n + c) * beta * m + g / n)
        buffer = 0.0
    else:
        w = w - rate * (c * beta * m + g / n)
    state.update(m=m, buffer=buffer)
    return w


def adaptive(o, w, state, g, rate, t):  # arXiv 2003.00295, algorithm 2, whose pseudo-gradient is new - old
    delta = -g
    kind, tau = o["optimizer"], o["epsilon"]
    beta1, beta2 = (0.0, None) if kind == "adagrad" else (o["beta1"], o["beta2"])
    m = beta1 * state.get("m", 0.0) + (1 - beta1) * delta
    v = state.get("v", o["initial_accumulator"])
    if kind == "adagrad":
        v = v + delta**2
    elif kind == "adam":
        v = beta2 * v + (1 - beta2) * delta**2
    else:
        v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
    state.update(m=m, v=v)
    if o.get("bias_correction"):  # torch.optim.Adam
        m, v = m / (1 - beta1 ** (t + 1)), v / (1 - beta2 ** (t + 1))
    return w + rate * m / (np.sqrt(v) + tau)


def main():
    o = json.loads(sys.argv[1])
    steps = {"sgd": sgd, "momentum": momentum, "nesterov": nesterov, "delayed_nesterov": delayed_nesterov}
    step = steps.get(o["optimizer"], adaptive)
    gradients = np.frombuffer(sys.stdin.buffer.read(), dtype="<f4").reshape(-1, o["count"]).astype(np.float64)
    w, state = np.zeros(o["count"]), {}
    for t, g in enumerate(gradients):
        w = step(o, w, state, g, o["learning_rate"] * factor(o, t), t)
        sys.stdout.buffer.write(w.astype("<f8").tobytes())


if __name__ == "__main__":
    main()
