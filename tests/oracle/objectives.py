#!/usr/bin/env python3
"""Rounds of federated training with a linear model under mean squared error, in float64, from the papers' own formulas.

    objectives.py '{"tables": [[[[a, b], y], ...], ...], "start": [w1, w2, bias], "exchanged": 2, "frozen": 0, ...}'

Each client takes `steps` full-batch gradient steps of `rate` on its own table. The first `exchanged` parameters are
averaged over the clients that `counted` names for the round; of the others the last `frozen` stay, and the rest are each
client's own. Written from FedProx (arXiv 1812.06127) and SCAFFOLD (arXiv 1910.06378, algorithm 1, option II), not from
Skerry's source. Prints the shared parameters, c, every client's own parameters and every c_i after each round.
"""

import json
import sys

import numpy as np


def main():
    o = json.loads(sys.argv[1])
    tables = [(np.array([row[0] for row in table], float), np.array([row[1] for row in table], float)) for table in o["tables"]]
    exchanged, trained = o["exchanged"], len(o["start"]) - o.get("frozen", 0)
    x = np.array(o["start"][:exchanged], float)
    rest = [np.array(o["start"][exchanged:], float) for _ in tables]
    c = np.zeros(exchanged)
    own = [np.zeros(exchanged) for _ in tables]
    out = []
    for counted in o["counted"]:
        changes, control_changes = [], []
        for i, (features, target) in enumerate(tables):
            y = np.concatenate([x, rest[i]])
            for _ in range(o["steps"]):
                error = features @ y[:2] + y[2] - target
                gradient = np.append(2 * features.T @ error, 2 * error.sum()) / len(target)
                gradient[:exchanged] += o.get("mu", 0.0) * (y[:exchanged] - x)
                if o.get("scaffold"):
                    gradient[:exchanged] += c - own[i]
                y[:trained] -= o["rate"] * gradient[:trained]
            rest[i] = y[exchanged:]
            if i not in counted:
                continue
            changes.append(y[:exchanged] - x)
            new = own[i] - c + (x - y[:exchanged]) / (o["steps"] * o["rate"])
            control_changes.append(new - own[i])
            own[i] = new
        x = x + np.mean(changes, axis=0)
        if o.get("scaffold"):
            c = c + len(counted) / len(tables) * np.mean(control_changes, axis=0)
        out.append({"x": x.tolist(), "c": c.tolist(), "rest": [r.tolist() for r in rest], "own": [v.tolist() for v in own]})
    print(json.dumps(out))


main()
