#!/usr/bin/env python3
"""Drives skerry-trainer without a federation, over the trainer protocol (docs/trainer-protocol.md).

  alone.py train    TRAINER SPEC DATA OUTPUT [--steps N] [--threads T] [--holdout F]
  alone.py evaluate TRAINER SPEC DATA MODEL  [--threads T] [--holdout F]

SPEC is a resolved run spec (the spec_json of `skerry run submit --dry-run --json`), DATA a directory of text, OUTPUT and
MODEL fragment files FRAGMENT.safetensors in a directory. `evaluate` prints one JSON object: examples and metrics.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile


class Trainer:
    """One trainer process, opened for one data set."""

    def __init__(self, program, spec, data, threads, holdout, state):
        environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", OPENBLAS_NUM_THREADS="1")
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.answer("hello")
        work = os.path.join(state, "work")
        os.makedirs(work)
        splits = {"train": {"from": 0.0, "to": 1.0 - holdout}, "holdout": {"from": 1.0 - holdout, "to": 1.0}}
        model = {name: value for name, value in spec["model"].items() if name != "initial"}  # the coordinator's alone
        self.say({"type": "open", "run": "alone", "work_dir": work, "state_dir": state, "threads": threads, "seed": spec["seed"],
                  "model": model, "training": spec["training"],
                  "data": {"kind": "text", "schema": {"encoding": "bytes"}, "path": os.path.abspath(data), "splits": splits}})
        self.answer("opened")

    def say(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self, wanted):
        """The next message of this type; what is not JSON, and progress, is passed over."""
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if message["type"] == "error":
                sys.exit("alone.py: the trainer says: " + message["message"])
            if message["type"] == wanted:
                return message
        sys.exit("alone.py: the trainer ended without an answer")

    def task(self, message):
        self.say(dict(message, task="alone"))
        return self.answer("done")


def fragments(spec):
    count = spec["model"].get("fragments", 1)
    return ["all"] if count == 1 else [f"f{i}" for i in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "evaluate"])
    parser.add_argument("trainer")
    parser.add_argument("spec")
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--holdout", type=float, default=0.1)
    arguments = parser.parse_args()
    with open(arguments.spec) as file:
        spec = json.load(file)
    os.makedirs(arguments.model, exist_ok=True)
    files = {name: os.path.abspath(os.path.join(arguments.model, name + ".safetensors")) for name in fragments(spec)}
    with tempfile.TemporaryDirectory() as state:
        trainer = Trainer(arguments.trainer, spec, arguments.data, arguments.threads, arguments.holdout, state)
        if arguments.action == "train":
            trainer.task({"type": "initialise", "seed": spec["seed"], "write": files})
            read = {name: {"path": path, "version": 0} for name, path in files.items()}
            trainer.task({"type": "train", "read": read, "write": files, "steps": arguments.steps, "epochs": 0, "seed": spec["seed"],
                          "first_step": 0, "progress_ms": 5000, "checkpoint": False})
        else:
            read = {name: {"path": path, "version": 0} for name, path in files.items()}
            done = trainer.task({"type": "evaluate", "read": read, "split": "holdout"})
            print(json.dumps(dict(done["metrics"], examples=done["examples"])))
        trainer.process.stdin.close()
        trainer.process.wait(10)


if __name__ == "__main__":
    main()
