#!/usr/bin/python3
"""A trainer whose steps take exactly as long as it is told, so that what is measured is the link and not the processor.

It follows docs/trainer-protocol.md, moves the first values of every tensor a little, and takes merged tensors as they come
(what the rule would make of them does not change how long anything takes). Beside the data lie two files:

    pace       milliseconds a step, read when a task begins
    paced.log  one JSON object a train task: when it began and ended (Unix seconds), the seconds spent in steps, its steps
"""

import array
import json
import os
import select
import struct
import sys
import time

MOVED = 64  # values of each fragment


def say(**message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Lines:
    """Lines of stdin; merge lines are set aside for the step that wants them."""

    def __init__(self):
        self.buffer, self.merges, self.cancelled = b"", {}, None

    def _read(self, seconds):
        if b"\n" in self.buffer or select.select([0], [], [], seconds)[0]:
            if b"\n" not in self.buffer:
                more = os.read(0, 1 << 16)
                if not more:
                    os._exit(0)
                self.buffer += more
            if b"\n" in self.buffer:
                line, _, self.buffer = self.buffer.partition(b"\n")
                return json.loads(line)
        return None

    def look(self, seconds=0):
        """Takes what has come, waiting up to `seconds` for the first."""
        line = self._read(seconds)
        while line is not None:
            if line["type"] == "merge":
                self.merges[line["fragment"], line.get("exchange", 0)] = line
            elif line["type"] == "cancel":
                self.cancelled = line["task"]
            elif line["type"] == "checkpoint":
                say(type="checkpointed", step=0)
            elif line["type"] == "close":
                os._exit(0)
            else:
                return line
            line = self._read(0)
        return None

    def next(self):
        while True:
            line = self.look(1.0)
            if line is not None:
                return line


class Paced:
    def __init__(self, lines):
        self.lines, self.files, self.bases, self.versions = lines, {}, {}, {}

    def load(self, fragment, source):
        with open(source["path"], "rb") as file:
            self.files[fragment] = bytearray(file.read())
        self.bases[fragment] = bytes(self.files[fragment])
        self.versions[fragment] = source["version"]

    def learn(self):
        for raw in self.files.values():
            begin = 8 + struct.unpack("<Q", raw[:8])[0]
            last = min(len(raw), begin + 4 * MOVED)
            values = array.array("f", bytes(raw[begin:last]))
            raw[begin:last] = array.array("f", [value + 0.001 for value in values]).tobytes()

    @staticmethod
    def write(path, content):
        with open(path, "wb") as file:
            file.write(content)

    def emit(self, task, step):
        for plan in task.get("emit", []):
            if plan["at_step"] != step:
                continue
            fragment = plan["fragment"]
            if plan.get("base_path"):
                self.write(plan["base_path"], self.bases[fragment])
            self.write(plan["path"], self.files[fragment])
            self.bases[fragment] = bytes(self.files[fragment])
            say(type="fragment", task=task["task"], fragment=fragment, exchange=plan.get("exchange", 0), step=step,
                path=plan["path"], base=self.versions[fragment])

    def merge(self, task, step, done):
        for number, plan in enumerate(task.get("merge", [])):
            key = plan["fragment"], plan.get("exchange", 0)
            if number in done or plan["at_step"] > step:
                continue
            while plan.get("on_late", "block") == "block" and key not in self.lines.merges:
                self.lines.look(0.5)
                if self.lines.cancelled == task["task"]:
                    return
            line = self.lines.merges.pop(key, None)
            if line is None:
                continue
            self.load(plan["fragment"], line)
            done.add(number)
            say(type="merged", task=task["task"], fragment=key[0], exchange=key[1], version=line["version"], step=step)

    def train(self, task, pace):
        for fragment, source in task["read"].items():
            self.load(fragment, source)
        begin, busy, merged = time.time(), 0.0, set()
        self.merge(task, 0, merged)
        for step in range(1, task["steps"] + 1):
            started = time.monotonic()
            self.lines.look()
            if self.lines.cancelled == task["task"]:
                return None
            if step == task["steps"]:
                self.learn()
            time.sleep(max(0.0, started + pace - time.monotonic()))
            busy += time.monotonic() - started
            self.emit(task, step)
            self.merge(task, step, merged)
        for fragment, path in task.get("write", {}).items():
            self.write(path, self.files[fragment])
        return {"task": task["task"], "begin": begin, "end": time.time(), "busy": busy, "steps": task["steps"]}


def main():
    lines = Lines()
    say(type="hello", protocol=1, trainer="paced", version="1", architectures=["linear", "mlp"], kinds=["csv"], warnings=[])
    opened = lines.next()
    place = os.path.dirname(opened["data"]["path"])
    with open(opened["data"]["path"], encoding="utf-8") as file:
        rows = sum(1 for _ in file) - 1
    examples = {name: int(part["to"] * rows + 1e-6) - int(part["from"] * rows + 1e-6)
                for name, part in opened["data"]["splits"].items()}
    say(type="opened", examples=examples, resumed_step=0)
    trainer = Paced(lines)
    while True:
        task = lines.next()
        if task["type"] != "train":
            continue
        with open(os.path.join(place, "pace"), encoding="ascii") as file:
            pace = float(file.read()) / 1000
        log = trainer.train(task, pace)
        if log is None:
            say(type="cancelled", task=task["task"])
            continue
        with open(os.path.join(place, "paced.log"), "a", encoding="ascii") as file:
            file.write(json.dumps(log) + "\n")
        say(type="done", task=task["task"], steps=task["steps"], examples=task["steps"], tokens=0, metrics={"train_loss": 1.0})


if __name__ == "__main__":
    main()
