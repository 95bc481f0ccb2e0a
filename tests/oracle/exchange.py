#!/usr/bin/env python3
"""The ways to exchange, in one process and in float64, for tests/integration/sim/exchange_test.cc.

    exchange.py < case.json > models.json

A case has islands (rows and targets), a small multilayer perceptron, and how they exchange. Every island takes all its
rows in every step, so that the order of the data does not matter. Out comes a list: for every exchange the fragments that
it changed and their values. Written from the papers and from docs/trainer-protocol.md, not from Skerry's source.
"""

import json
import sys

import numpy as np


# ---- a model: layers with tanh between them, one output, mean squared error ----

def gradient(tensors, rows, targets):
    """Of the mean squared error, for tensors [W0, b0, W1, b1, ...]."""
    layers = [(tensors[i], tensors[i + 1]) for i in range(0, len(tensors), 2)]
    inputs = [rows]
    for i, (weight, bias) in enumerate(layers):
        out = inputs[-1] @ weight.T + bias
        inputs.append(np.tanh(out) if i + 1 < len(layers) else out)
    flowing = 2 * (inputs[-1] - targets) / len(rows)
    gradients = []
    for i in reversed(range(len(layers))):
        weight, _ = layers[i]
        gradients[:0] = [flowing.T @ inputs[i], flowing.sum(axis=0)]
        flowing = (flowing @ weight) * (1 - inputs[i] ** 2)  # not used for i = 0, whose input is the data
    return gradients


class Inner:
    """SGD, or AdamW as torch.optim has it; the state stays with the island."""

    def __init__(self, options):
        self.o, self.t, self.m, self.v = options, 0, None, None

    def step(self, tensors, gradients):
        o = self.o
        rate = o["learning_rate"]
        if o["optimizer"] == "sgd":
            return [w - rate * g for w, g in zip(tensors, gradients)]
        if self.m is None:
            self.m, self.v = [np.zeros_like(w) for w in tensors], [np.zeros_like(w) for w in tensors]
        self.t += 1
        self.m = [o["beta1"] * m + (1 - o["beta1"]) * g for m, g in zip(self.m, gradients)]
        self.v = [o["beta2"] * v + (1 - o["beta2"]) * g * g for v, g in zip(self.v, gradients)]
        size = rate / (1 - o["beta1"] ** self.t)
        root = np.sqrt(1 - o["beta2"] ** self.t)
        return [w * (1 - rate * o["weight_decay"]) - size * m / (np.sqrt(v) / root + o["epsilon"])
                for w, m, v in zip(tensors, self.m, self.v)]


class Outer:
    """Of one fragment. PyTorch's SGD, with Nesterov's momentum, and the delayed one (arXiv 2401.09135, algorithm 3)."""

    def __init__(self, options):
        self.o, self.t, self.velocity, self.buffer = options, 0, 0.0, 0.0

    def step(self, theta, delta):
        o, rate = self.o, self.o["learning_rate"]
        if o["optimizer"] == "sgd":
            return theta - rate * delta
        beta = o["momentum"]
        if o.get("form") == "fedmom":               # FedMom (arXiv 2002.02090, algorithm 3)
            ahead = theta - rate * delta
            behind, self.velocity = self.velocity if self.t else theta, ahead
            self.t += 1
            return ahead + beta * (ahead - behind)
        if o["optimizer"] == "delayed_nesterov":
            n, c = o["delay"], o["carry"]
            self.buffer = self.buffer + delta
            self.t += 1
            if self.t % n:
                return theta - rate * (c * beta * self.velocity + delta / n)
            self.velocity, self.buffer = beta * self.velocity + self.buffer / n, 0.0
            return theta - rate * ((1 - c * n + c) * beta * self.velocity + delta / n)
        self.velocity = beta * self.velocity + delta
        return theta - rate * (delta + beta * self.velocity if o["optimizer"] == "nesterov" else self.velocity)


# ---- what an update's encoding leaves of it, for vectors of less than a block (docs/encodings.md) ----

def int8(x):
    """256 buckets within three deviations, each decoded to its mean."""
    sigma = np.sqrt((x ** 2).sum() / max(len(x) - 1, 1))
    codes = np.round(np.clip(x * (256 / (6 * sigma) if sigma else 0), -128, 127))
    return np.array([x[codes == code].mean() for code in codes])


def topk2(x):
    """One in 64, as a sign and one of two magnitudes: the means of a lower and an upper part."""
    keep = np.sort(np.argsort(-np.abs(x), kind="stable")[: -(-len(x) // 64)])
    sizes = np.sort(np.abs(x[keep]))
    cuts = [j for j in range(1, len(sizes)) if sizes[j] > sizes[j - 1]]
    explained = [sizes[:j].sum() ** 2 / j + sizes[j:].sum() ** 2 / (len(sizes) - j) for j in cuts]
    j = cuts[int(np.argmax(explained))] if cuts else 0
    low, high = sizes[:j].mean() if j else 0, sizes[j:].mean()
    out = np.zeros_like(x)
    out[keep] = np.sign(x[keep]) * np.where(np.abs(x[keep]) >= sizes[j], high, low)
    return out


ENCODINGS = {"f32": lambda x: x, "int8": int8, "topk2": topk2}


# ---- islands ----

class Island:
    def __init__(self, case, data, model):
        self.rows, self.targets = np.array(data["rows"]), np.array(data["targets"]).reshape(-1, 1)
        self.fragments = case["fragments"]           # each a list of indices of tensors
        self.x = [w.copy() for w in model]
        self.inner = Inner(case["inner"])
        self.base = [[self.x[i].copy() for i in f] for f in self.fragments]
        self.encode, self.feedback = ENCODINGS[case.get("up", "f32")], case.get("feedback", 0)
        self.residual = [0.0 for _ in self.fragments]
        self.flying = {}                             # (fragment, exchange): as emitted, moved by every merge since

    def train(self, steps):
        for _ in range(steps):
            self.x = self.inner.step(self.x, gradient(self.x, self.rows, self.targets))

    def read(self, fragment, version):
        for i, new in zip(self.fragments[fragment], version):
            self.x[i] = new.copy()
        self.base[fragment] = [new.copy() for new in version]

    def change(self, fragment):
        return [b - self.x[i] for b, i in zip(self.base[fragment], self.fragments[fragment])]

    def sent(self, fragment, delta):
        """What arrives of a change; with error feedback the rest goes into the next one."""
        whole = np.concatenate([d.ravel() for d in delta]) + self.feedback * self.residual[fragment]
        coded = self.encode(whole)
        self.residual[fragment] = whole - coded
        ends = np.cumsum([d.size for d in delta])[:-1]
        return [part.reshape(d.shape) for part, d in zip(np.split(coded, ends), delta)]

    def emit(self, fragment, exchange):
        """The change since the last emission; the next one begins here."""
        delta = self.change(fragment)
        self.base[fragment] = [self.x[i].copy() for i in self.fragments[fragment]]
        self.flying[fragment, exchange] = [b.copy() for b in self.base[fragment]]
        return delta

    def merge(self, fragment, exchange, version, rule, alpha):
        """One map for the tensors, the base and what is still in flight."""
        emitted = self.flying.pop((fragment, exchange))
        for k, i in enumerate(self.fragments[fragment]):
            new, sent = version[k], emitted[k]
            move = {"replace": lambda z: new.copy(), "lerp": lambda z: alpha * z + (1 - alpha) * new,
                    "eager": lambda z: new + alpha * (z - sent)}[rule]
            self.x[i] = move(self.x[i])
            self.base[fragment][k] = move(self.base[fragment][k])
            for key, values in self.flying.items():
                if key[0] == fragment:
                    values[k] = move(values[k])


class Coordinator:
    def __init__(self, case, model):
        self.theta = [[model[i].copy() for i in f] for f in case["fragments"]]
        self.outer = [[Outer(case["outer"]) for _ in f] for f in case["fragments"]]

    def commit(self, fragment, deltas, weights):
        """One outer step with the weighted mean; without any delta the fragment stays as it is."""
        if deltas:
            for k, outer in enumerate(self.outer[fragment]):
                mean = sum(w * d[k] for w, d in zip(weights, deltas)) / sum(weights)
                self.theta[fragment][k] = outer.step(self.theta[fragment][k], mean)
        return self.theta[fragment]


# ---- the exchanges ----

def model_of(case):
    return [np.array(t["values"]).reshape(t["shape"]) for t in case["tensors"]]


def written(case, exchange):
    """Which fragments an exchange is of: all of them, or one after another."""
    count = len(case["fragments"])
    return range(count) if case["schedule"] == "whole" else [(exchange - 1) % count]


def told(coordinator, fragments):
    return {str(f): [float("%.9g" % v) for v in np.concatenate([w.ravel() for w in coordinator.theta[f]])] for f in fragments}


def synchronous(case):
    coordinator = Coordinator(case, model_of(case))
    islands = [Island(case, data, model_of(case)) for data in case["islands"]]
    weights = [len(i.rows) for i in islands]
    overlap, steps, out = case.get("overlap", 0), case["steps"], []
    unread = [set() for _ in islands]               # versions that came since the island's last task
    versions = {}                                   # by fragment and exchange: to be merged
    for exchange in range(1, case["exchanges"] + 1):
        lost = case.get("lost", {}).get(str(exchange), [])
        if overlap == 0:
            for island, new in zip(islands, unread):
                for fragment in new:
                    island.read(fragment, coordinator.theta[fragment])
                new.clear()
        for island in islands:
            if overlap == 0:
                island.train(steps)
            elif overlap < steps:                   # merge the version before, `overlap` steps into this one
                island.train(overlap)
                merge_all(case, island, exchange - 1, versions)
                island.train(steps - overlap)
            else:                                   # merge the one before that, at once
                merge_all(case, island, exchange - 2, versions)
                island.train(steps)
        for fragment in written(case, exchange):
            deltas = [i.sent(fragment, i.emit(fragment, exchange) if overlap else i.change(fragment)) for i in islands]
            kept = [n for n in range(len(islands)) if n not in lost]
            version = coordinator.commit(fragment, [deltas[n] for n in kept], [weights[n] for n in kept])
            versions[fragment, exchange] = [v.copy() for v in version]
            for new in unread:
                new.add(fragment)
        for n in lost:                              # nobody knows what it still has: it reads everything
            unread[n].update(range(len(case["fragments"])))
        out.append(told(coordinator, written(case, exchange)))
    return out


def merge_all(case, island, exchange, versions):
    if exchange < 1:
        return
    for fragment in written(case, exchange):
        island.merge(fragment, exchange, versions[fragment, exchange], case["merge"], case["alpha"])


def asynchronous(case):
    """Each update is an exchange; the islands' tasks end after steps / speed, all at different instants."""
    coordinator = Coordinator(case, model_of(case))
    islands = [Island(case, data, model_of(case)) for data in case["islands"]]
    ends = [case["steps"] / speed for speed in case["speeds"]]
    out = []
    for _ in range(case["exchanges"]):
        n = int(np.argmin(ends))
        island = islands[n]
        island.train(case["steps"])
        for fragment in range(len(case["fragments"])):
            coordinator.commit(fragment, [island.change(fragment)], [1])
        for fragment in range(len(case["fragments"])):
            island.read(fragment, coordinator.theta[fragment])
        ends[n] += case["steps"] / case["speeds"][n]
        out.append(told(coordinator, range(len(case["fragments"]))))
    return out


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(asynchronous(given) if given["mode"] == "asynchronous" else synchronous(given), sys.stdout)
