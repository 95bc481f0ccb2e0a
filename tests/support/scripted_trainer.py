#!/usr/bin/python3
"""A trainer that does what a test tells it, without NumPy: docs/trainer-protocol.md in its smallest form.

    scripted_trainer.py SCRIPT

SCRIPT is a JSON file that the test may replace at any time; it is read when a task begins and while one is held:

    hold     true: the task waits until it is false
    task_ms  the task takes at least so long
    mode     "train" (default); "error": the task fails; "fatal": the trainer says a fatal error; "crash": it dies;
             "hang": it never answers and ignores cancel

Training moves the first values of each written tensor by an amount that follows from the task's seed alone.
"""

import array
import json
import os
import random
import select
import struct
import sys
import time

MOVED = 32  # values of each tensor

models = {}  # by fragment: (header, {tensor: first byte}, bytes of the file)


def say(**message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def script():
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


class Lines:
    """Lines of stdin, with a look at whether one is waiting."""

    def __init__(self):
        self.buffer = b""

    def waiting(self, seconds):
        if b"\n" in self.buffer:
            return True
        if select.select([0], [], [], seconds)[0]:
            more = os.read(0, 1 << 16)
            if not more:
                os._exit(0)
            self.buffer += more
        return b"\n" in self.buffer

    def next(self):
        while not self.waiting(None):
            pass
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)


def load(path):
    with open(path, "rb") as file:
        raw = file.read()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:begin])
    header.pop("__metadata__", None)
    places = {name: [begin + at for at in entry["data_offsets"]] for name, entry in header.items()}
    return places, bytearray(raw)


def train(message):
    for fragment, source in message["read"].items():
        models[fragment] = load(source["path"])
    for fragment, path in message["write"].items():
        places, raw = models[fragment]
        for name in sorted(places):
            draw = random.Random(f"{message['seed']} {fragment} {name}")
            first, last = places[name]
            last = min(last, first + 4 * MOVED)
            values = array.array("f", bytes(raw[first:last]))
            for i in range(len(values)):
                values[i] += draw.uniform(-0.01, 0.01)
            raw[first:last] = values.tobytes()
        with open(path, "wb") as file:
            file.write(raw)


def wait(lines, task):
    """Until the script lets the task go on; True if it was cancelled."""
    begin = time.monotonic()
    while True:
        now = script()
        mode = now.get("mode", "train")
        if mode == "hang":
            time.sleep(3600)
        held = now.get("hold", False)
        if not held and time.monotonic() - begin >= now.get("task_ms", 0) / 1000:
            return False
        if lines.waiting(0.005):
            if lines.next().get("type") == "cancel":
                say(type="cancelled", task=task)
                return True


def main():
    lines = Lines()
    say(type="hello", protocol=1, trainer="scripted", version="1", architectures=["linear", "mlp"], kinds=["csv"], warnings=[])
    opened = lines.next()
    with open(opened["data"]["path"], encoding="utf-8") as file:
        rows = sum(1 for _ in file) - 1
    splits = {name: int(part["to"] * rows + 1e-6) - int(part["from"] * rows + 1e-6)
              for name, part in opened["data"]["splits"].items()}
    say(type="opened", examples=splits, resumed_step=0)
    while True:
        message = lines.next()
        kind, task = message.get("type"), message.get("task")
        if kind == "close":
            return
        if kind == "checkpoint":
            say(type="checkpointed", step=0)
        if kind not in ("train", "evaluate"):
            continue
        mode = script().get("mode", "train")
        if mode == "crash":
            sys.stderr.write("scripted crash: row 17 was strange\n")
            os.abort()
        if mode == "error":
            say(type="error", task=task, code="FAILED_PRECONDITION", message="scripted error: row 17 was strange", fatal=False)
            continue
        if mode == "fatal":
            say(type="error", task=task, code="INTERNAL", message="scripted fatal error: row 17 was strange", fatal=True)
            return
        if kind == "train":
            say(type="progress", task=task, step=0, of=max(message["steps"], 1), loss=1.0)
        if wait(lines, task):
            continue
        if kind == "train":
            train(message)
            say(type="done", task=task, steps=max(message["steps"], 1), examples=splits["train"], tokens=0, metrics={"train_loss": 1.0})
        else:
            say(type="done", task=task, examples=splits.get("holdout", 0), tokens=0, metrics={"loss": 1.0, "accuracy": 0.5})


if __name__ == "__main__":
    main()
