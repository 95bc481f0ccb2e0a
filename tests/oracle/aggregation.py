#!/usr/bin/python3
"""What each aggregation rule should give: its paper's formula in NumPy float64, written without a look at the C++ code.

    aggregation.py DIRECTORY

DIRECTORY/cases holds one JSON object a line: rule, parameters, updates (K), count, contributions [{examples, tokens, steps,
factor, node, metrics}], tensors [[name, first, count]], state (number of vectors). Line i's values are in DIRECTORY/i.f32:
K rows of `count` float32, then the state vectors. Its outer gradient is written to DIRECTORY/i.f64.
"""
import fnmatch
import json
import pathlib
import sys

import numpy as np


def weights_of(case):
    kind = case["parameters"]["weights"]
    out = []
    for c in case["contributions"]:
        w = {
            "examples": lambda: c["examples"],
            "tokens": lambda: c["tokens"],
            "steps": lambda: c["steps"],
            "uniform": lambda: 1,
            "reported": lambda: c["metrics"][0],
            "token_rate": lambda: c["tokens"] * c["tokens"] / c["steps"] if c["steps"] else 0,
        }[kind]()
        cap = case["parameters"]["weight_cap"]
        out.append(min(w, cap) if cap else w)
    return np.array(out, dtype=np.float64)


def factors_of(case):
    return np.array([c["factor"] for c in case["contributions"]], dtype=np.float64)


def shares_of(case):
    w = weights_of(case) * factors_of(case)
    return w / w.sum()


def weighted_mean(x, case):
    w, f, p = weights_of(case), factors_of(case), case["parameters"]
    mean = (w * f) @ x / ((w * f).sum() if p["discount"] == "renormalised" else w.sum())
    return mean * np.sqrt(np.count_nonzero(w * f)) if p["scale"] == "sqrt_updates" else mean


def module_mean(x, case):
    p = shares_of(case)
    return p @ x * np.sqrt(np.count_nonzero(p))


def local_steps(steps, momentum, proximal):
    """How far plain simulation of SGD on a constant gradient of 1 walks, in learning rates."""
    velocity = distance = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1 - proximal * distance
        distance += velocity
    return distance


def normalised_mean(x, case):
    q = case["parameters"]
    p = shares_of(case)
    a = np.array([local_steps(c["steps"], q["momentum"], q["proximal"]) for c in case["contributions"]])
    return (p @ a) * sum(p[k] * x[k] / a[k] for k in range(len(x)))


def median(x, case):
    return np.median(x, axis=0)


def trimmed_mean(x, case):
    n, q = len(x), case["parameters"]
    b = q["trim"]
    if q["fraction"] > 0:
        # As decimals: 0.29 of 100 is 29.
        from fractions import Fraction
        b = int(Fraction(repr(q["fraction"])) * n)
    return np.sort(x, axis=0)[b : n - b].mean(axis=0)


def squared_distances(x):
    return np.array([[np.sum((a - b) ** 2) for b in x] for a in x])


def best_by_krum(d, indices, neighbours):
    def key(i):
        others = sorted(d[i, j] for j in indices if j != i)
        return (sum(others[:neighbours]), others[neighbours : neighbours + 1], i)

    return sorted(indices, key=key)


def krum(x, case):
    n, f = len(x), case["parameters"]["byzantine"]
    return x[best_by_krum(squared_distances(x), range(n), n - f - 2)[0]]


def multi_krum(x, case):
    n, f, m = len(x), case["parameters"]["byzantine"], case["parameters"]["keep"]
    order = best_by_krum(squared_distances(x), range(n), n - f - 2)
    return x[order[: m or n - f - 2]].mean(axis=0)


def bulyan(x, case):
    n, f = len(x), case["parameters"]["byzantine"]
    d, left, chosen = squared_distances(x), list(range(n)), []
    for _ in range(n - 2 * f):
        best = best_by_krum(d, left, max(1, len(left) - f - 2))[0]
        left.remove(best)
        chosen.append(best)
    s = x[chosen]
    middle = np.median(s, axis=0)
    out = np.empty(x.shape[1])
    for i in range(x.shape[1]):
        near = sorted(s[:, i], key=lambda value: (abs(value - middle[i]), value))
        out[i] = np.mean(near[: n - 4 * f])
    return out


def norm(v):
    return np.sqrt(np.sum(v * v))


def geometric_median(x, case):
    q, a = case["parameters"], shares_of(case)
    v, last = a @ x, None
    for _ in range(int(q["iterations"])):
        r = np.array([norm(v - row) for row in x])
        b = a / np.maximum(q["smoothing"], r)
        v = b @ x / b.sum()
        if last is not None and np.all(np.abs(r - last) <= q["tolerance"] * np.maximum(q["smoothing"], last)):
            break
        last = r
    return v


def centered_clipping(x, case, center):
    q, v = case["parameters"], center
    for _ in range(int(q["iterations"])):
        r = np.array([norm(row - v) for row in x])
        tau = q["radius"] or np.median(r)
        scale = [min(1.0, tau / ri) if ri > 0 else 1.0 for ri in r]
        v = v + sum(f * s * (row - v) for f, s, row in zip(factors_of(case), scale, x)) / len(x)
    return v


def norm_bound(x, case):
    r = np.array([norm(row) for row in x])
    bound = case["parameters"]["bound"] or np.median(r)
    return sum(p * row * (min(1.0, bound / ri) if ri > 0 else 1.0) for p, row, ri in zip(shares_of(case), x, r))


def radial_directional(x, case):
    p, out = shares_of(case), np.zeros(x.shape[1])
    for name, first, count in case["tensors"]:
        t = x[:, first : first + count]
        if any(fnmatch.fnmatch(name, pattern) for pattern in case["parameters"]["direct"].split()):
            out[first : first + count] = p @ t
            continue
        r = np.array([norm(row) for row in t])
        u = sum(pk * row / rk for pk, row, rk in zip(p, t, r) if rk > 0)
        if norm(u) > 1e-7:
            out[first : first + count] = (p @ r) * u / norm(u)
    return out


def fltrust(x, case):
    trusted = [c["node"] for c in case["contributions"]].index(case["parameters"]["trusted"])
    g, total, out = x[trusted], 0.0, np.zeros(x.shape[1])
    for k, row in enumerate(x):
        if k == trusted or norm(row) == 0 or norm(g) == 0:
            continue
        trust = max(0.0, row @ g / (norm(row) * norm(g))) * case["contributions"][k]["factor"]
        out += trust * norm(g) / norm(row) * row
        total += trust
    return out / total if total > 0 else out


def qffl(x, case):
    q, lipschitz = case["parameters"]["q"], 1 / case["parameters"]["learning_rate"]
    numerator, denominator = np.zeros(x.shape[1]), 0.0
    for row, c in zip(x, case["contributions"]):
        loss, step = c["metrics"][0] + 1e-10, lipschitz * row
        numerator += c["factor"] * loss**q * step
        denominator += c["factor"] * (q * loss ** (q - 1) * np.sum(step * step) + lipschitz * loss**q)
    return numerator / denominator


def sign_majority(x, case):
    sign = np.sign(np.sum(np.sign(x), axis=0))
    size = {"unit": 1.0, "mean": np.mean(np.abs(x), axis=0), "median": np.median(np.abs(x), axis=0)}
    # The magnitude is kept in float32 before the sign is given to it.
    return sign * np.float32(size[case["parameters"]["magnitude"]])


def main(directory):
    for index, line in enumerate((directory / "cases").read_text().splitlines()):
        case = json.loads(line)
        rows = case["updates"] + case["state"]
        values = np.fromfile(directory / f"{index}.f32", dtype="<f4").reshape(rows, case["count"]).astype(np.float64)
        arguments = [values[: case["updates"]], case] + [row for row in values[case["updates"] :]]
        globals()[case["rule"]](*arguments).astype("<f8").tofile(directory / f"{index}.f64")


main(pathlib.Path(sys.argv[1]))
