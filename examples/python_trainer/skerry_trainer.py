"""What a trainer in Python needs: the protocol's loop, safetensors files, data sets, flat vectors. NumPy only.

A trainer is a class derived from Trainer:

    class Mine(Trainer):
        name, architectures, kinds = "mine", ["linear"], ["csv"]
        def open(self):               # self.model, self.training, self.data, self.threads, self.seed are set
            ...                       # read the data; return {"train": examples, "holdout": examples}
        def initial(self, seed):      # {fragment: {tensor: array}} of an untouched model
        def train(self, task):        # for step in task.steps(): ...; return {"examples": n, "tokens": 0, "metrics": {...}}
        def evaluate(self, task):     # return {"examples": n, "tokens": 0, "metrics": {"loss": ...}}
    run(Mine())

self.tensors[fragment][tensor] are the current arrays: read files replace them before train and evaluate are called,
and afterwards the helper writes the fragments that the daemon asked for. docs/trainer-protocol.md has the contract.
"""

import copy
import glob
import gzip
import json
import os
import pickle
import queue
import struct
import sys
import threading
import time

import numpy as np

__all__ = ["Trainer", "TrainerError", "run", "load", "save", "flatten", "unflatten", "read_images", "read_table", "split"]


class TrainerError(Exception):
    """An error for the daemon: a code from gRPC's list and a sentence."""

    def __init__(self, message, code="INVALID_ARGUMENT", fatal=False):
        super().__init__(message)
        self.code, self.fatal = code, fatal


class Cancelled(Exception):
    """The daemon cancelled the task."""


# ---- safetensors: eight bytes of length, JSON, then the tensors' bytes ----

def load(path):
    """{name: float32 array} of a safetensors file, in the file's order."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise TrainerError(f"{path}: {error.strerror}", "NOT_FOUND") from error
    try:
        begin = 8 + struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:begin])
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] != "F32":
                raise TrainerError(f'{path}: tensor "{name}" is {entry["dtype"]}, must be F32')
            first, last = entry["data_offsets"]
            if not 0 <= first <= last <= len(raw) - begin:
                raise TrainerError(f'{path}: tensor "{name}" lies outside of the file')
            values = np.frombuffer(raw[begin + first:begin + last], dtype="<f4")
            tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
        return tensors
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainerError(f"{path}: not a safetensors file ({error})") from error


def save(path, tensors):
    """Writes {name: array} as f32, complete before it appears under its name; the data starts at a multiple of 64 bytes."""
    header, offset, parts = {}, 0, []
    for name, array in tensors.items():
        part = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(np.shape(array)), "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    _replace(path, struct.pack("<Q", len(text)) + text + b"".join(parts))


def _replace(path, content):
    with open(path + ".new", "wb") as file:
        file.write(content)
    os.replace(path + ".new", path)


def flatten(tensors):
    """One float32 vector of all tensors, in order."""
    return np.concatenate([np.ravel(array) for array in tensors.values()]).astype(np.float32)


def unflatten(vector, like):
    """The vector cut into tensors of the names and shapes of `like`."""
    tensors, at = {}, 0
    for name, array in like.items():
        tensors[name] = np.asarray(vector[at:at + array.size], dtype=np.float32).reshape(array.shape)
        at += array.size
    return tensors


# ---- data sets ----

def split(data, count, name):
    """The range of examples that a split of the `open` line's data section takes out of `count`."""
    splits = data.get("splits") or {"train": {"from": 0.0, "to": 1.0}}
    if name not in splits:
        raise TrainerError(f'data has no split "{name}", it has {", ".join(splits)}', "NOT_FOUND")
    bounds = [int(splits[name].get(key, default) * count + 1e-6) for key, default in (("from", 0.0), ("to", 1.0))]
    return range(bounds[0], bounds[1])


def _chosen(data, count):
    if "indices" not in data:
        return np.arange(count)
    with open(data["indices"], encoding="ascii") as file:
        rows = np.array([int(line) for line in file if line.strip()], dtype=np.int64)
    if rows.size and not (0 <= rows.min() and rows.max() < count):
        raise TrainerError(f'{data["indices"]}: a row is not below {count}')
    return rows


def _idx(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        raw = file.read()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise TrainerError(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4:4 + 4 * raw[3]])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_images(data):
    """(images as float32 [examples, values] in [0, 1], labels as int64) of an `idx` data section."""
    images, labels = [], []
    for path in sorted(glob.glob(os.path.join(data["path"], "*-images-idx3-ubyte*"))):
        pixels = _idx(path)
        images.append(pixels.reshape(len(pixels), -1))
        labels.append(_idx(path.replace("-images-idx3-", "-labels-idx1-")))
    if not images:
        raise TrainerError(f'{data["path"]}: no *-images-idx3-ubyte[.gz] there')
    rows = _chosen(data, sum(map(len, images)))
    return (np.concatenate(images)[rows] / np.float32(255)).astype(np.float32), np.concatenate(labels)[rows].astype(np.int64)


def read_table(data):
    """(features as float32 [rows, features], labels: int64, or float32 where classes is 0) of a `csv` data section."""
    import csv
    schema = data["schema"]
    with open(data["path"], newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    try:
        columns = [rows[0].index(name) for name in schema["features"]]
        label = rows[0].index(schema["label"])
        values = np.array([[row[column] for column in columns] for row in rows[1:]], dtype=np.float32)
        labels = np.array([row[label] for row in rows[1:]], dtype=np.float32)
    except (ValueError, IndexError) as error:
        raise TrainerError(f'{data["path"]}: {error}') from error
    if not (np.isfinite(values).all() and np.isfinite(labels).all()):
        raise TrainerError(f'{data["path"]}: holds a value that is not finite')
    chosen = _chosen(data, len(values))
    return values[chosen], labels[chosen].astype(np.int64) if schema.get("classes") else labels[chosen]


# ---- the protocol ----

class Task:
    """One task: the members of its line as attributes (task.seed, task.split, …), all of them in task.line."""

    def __init__(self, trainer, line):
        self.__dict__.update((name, value) for name, value in line.items() if not hasattr(Task, name))
        self.line, self._trainer, self._merged = line, trainer, set()
        self.loss = 0.0  # set it for progress lines

    def __getattr__(self, name):  # a member that the line does not have
        return None

    def steps(self, total=None):
        """0, 1, …: looks for the daemon's lines before each step, and reports progress after it."""
        total = total or self.line["steps"]
        reported = time.monotonic()
        self._trainer._exchange(self, 0)
        for step in range(total):
            self._trainer._look(self.task)
            yield step
            self._trainer.step += 1
            self._trainer._exchange(self, step + 1)
            if self.progress_ms and (time.monotonic() - reported) * 1000 >= self.progress_ms:
                reported = time.monotonic()
                say(type="progress", task=self.task, step=step + 1, of=total, loss=float(self.loss))

    def learning_rate(self, step):
        """Of this task's step, by the training section's schedule."""
        training, at = self._trainer.training, step + int(self.first_step or 0)
        peak, warmup = training["learning_rate"], training.get("warmup_steps", 0)
        if at < warmup:
            return peak * (at + 1) / warmup
        kind, length, low = training.get("schedule", "constant"), training.get("schedule_steps", 0), training.get("final_fraction", 0)
        if kind == "constant":
            return peak
        if kind == "wsd":
            return peak * (low + (1 - low) * min(1.0, max(0, length - at) / training["decay_steps"]))
        gone = 1.0 if at >= length else (at - warmup) / (length - warmup)
        return peak * (low + (1 - low) * (1 - gone if kind == "linear" else 0.5 * (1 + np.cos(np.pi * gone))))

    def batches(self, examples):
        """(step, example numbers) of the whole task: `steps` batches, or `epochs` passes; the seed decides the order."""
        size = self._trainer.training.get("batch", 32)
        wanted = self.line.get("steps") and self.line["steps"] * size or max(1, round(self.line["epochs"] * examples))
        generator = np.random.Generator(np.random.Philox(self.seed or 0))
        order = generator.permutation(examples)
        for step in self.steps(-(-wanted // size)):
            count = min(size, wanted - step * size)
            while len(order) < count:  # the next pass, in an order of its own
                order = np.concatenate([order, generator.permutation(examples)])
            yield step, order[:count]
            order = order[count:]


# Members of the training section that every trainer is expected to follow, and those that change what is learned:
# section, member, and the value that asks for nothing.
_TRAINING = {"optimizer", "learning_rate", "momentum", "nesterov", "beta1", "beta2", "epsilon", "weight_decay", "schedule",
             "schedule_steps", "first_step", "warmup_steps", "decay_steps", "final_fraction", "clip_norm", "batch", "loss",
             "optimizer_state", "steps", "epochs", "accumulate", "precision", "activation_checkpointing"}
_OBJECTIVES = {"proximal": ("training", 0), "z_loss": ("training", 0), "order": ("training", "task"),
               "control_variates": ("training", False),
               "start_loss": ("training", False), "personal": ("model", []), "frozen": ("model", []),
               "only": ("model", [])}


class Trainer:
    """Derive from it; see the module's text. `state` (a dict of anything that pickles) is kept between tasks, put into the
    checkpoint, and put back if a task is cancelled: the optimizer's memory belongs there."""

    name, version = "python-trainer", "0.1.0"
    architectures, kinds, warnings = [], [], []
    objectives = []  # of _OBJECTIVES: those that train() follows; a run that wants another is refused
    overlapped = False  # whether train() changes the arrays of self.tensors in place, so that fragments can be taken and
    # merged between two of its steps

    def __init__(self):
        self.tensors, self.state, self.step = {}, {}, 0
        self._memory, self._latest = {}, ""  # of the fragments that travel while train() goes on; the task that ended last
        self._opened, self._checkpoints, self._arrived = False, [], {}

    def open(self):
        raise NotImplementedError

    def initial(self, seed):
        raise TrainerError("this trainer makes no initial tensors", "UNIMPLEMENTED")

    def train(self, task):
        raise NotImplementedError

    def evaluate(self, task):
        raise NotImplementedError

    def generate(self, task):
        raise TrainerError("this trainer generates no text", "UNIMPLEMENTED")

    # What follows is the helper's own.

    def _open(self, line):
        if self._opened:
            raise TrainerError("a run is open already", "FAILED_PRECONDITION")
        self.line = line
        self.work_dir, self.state_dir = line["work_dir"], line["state_dir"]
        self.model, self.training, self.data = line["model"], line["training"], line["data"]
        self.threads, self.seed = line.get("threads", 1), line.get("seed", 0)
        for name in self.training.keys() - _TRAINING - _OBJECTIVES.keys():
            raise TrainerError(f"training.{name} is not known to this trainer")
        for name, (section, nothing) in _OBJECTIVES.items():
            wanted = line[section].get(name, nothing)
            if wanted != nothing and name not in self.objectives:
                raise TrainerError(f"{section}.{name} is {json.dumps(wanted)}, this trainer does not have it", "UNIMPLEMENTED")
        os.makedirs(self.state_dir, exist_ok=True)
        examples = self.open()
        try:
            with open(self._state_path(), "rb") as file:
                self._restore(pickle.load(file))
        except (FileNotFoundError, ValueError):  # none, or one of an earlier version
            pass
        self._opened = True
        say(type="opened", examples=examples, resumed_step=self.step)

    def _state_path(self):
        return os.path.join(self.state_dir, "python-trainer.state")

    def _checkpoint(self):
        _replace(self._state_path(), pickle.dumps(self._saved()))

    def _saved(self):
        return self.tensors, self.state, self.step, self._memory, self._latest

    def _restore(self, saved):
        self.tensors, self.state, self.step, self._memory, self._latest = saved

    def _read(self, line):
        for fragment, source in line.get("read", {}).items():
            self.tensors[fragment] = load(source["path"])
            if line.get("emit") or line.get("merge"):
                memory = self._remembered(fragment)
                memory.update(version=source["version"], merged=0, base=copy.deepcopy(self.tensors[fragment]), in_flight=None, earlier={})

    # Overlapped exchange: docs/trainer-protocol.md has the rules.

    def _follow(self, line):
        if not (line.get("emit") or line.get("merge") or line.get("after")):
            return
        if not self.overlapped:
            raise TrainerError("this trainer cannot emit or merge fragments inside a task", "UNIMPLEMENTED")
        if line.get("after", self._latest) != self._latest and not self.tensors.keys() <= line.get("read", {}).keys():
            raise TrainerError(f'task {line["task"]} goes on from the end of {line["after"]}; this trainer ended '
                               f'{self._latest or "nothing"} last and must read every fragment', "NOT_FOUND")

    def _remembered(self, fragment):
        return self._memory.setdefault(fragment, {"version": 0, "merged": 0, "base": None, "in_flight": None, "earlier": {}})

    def _exchange(self, task, step):
        """What the task gives away and takes in after this step."""
        for emit in task.line.get("emit", []):
            if emit["at_step"] == step:
                self._emit(task, emit)
        for number, plan in enumerate(task.line.get("merge", [])):
            key = plan["fragment"], plan.get("exchange", 0)
            if number in task._merged or plan.get("at_step", 0) > step:
                continue
            if 0 < key[1] <= self._remembered(key[0])["merged"]:
                task._merged.add(number)
                continue
            while plan.get("on_late", "block") == "block" and key not in self._arrived:
                self._look(task.task, wait=True)
            if key in self._arrived:
                line = self._arrived.pop(key)
                self._merge(plan, line)
                task._merged.add(number)
                say(type="merged", task=task.task, fragment=key[0], exchange=key[1], version=line["version"], step=step)

    def _emit(self, task, emit):
        name, exchange = emit["fragment"], emit.get("exchange", 0)
        memory, tensors = self._remembered(name), self.tensors[name]
        if not all(np.isfinite(array).all() for array in tensors.values()):
            raise TrainerError(f'fragment "{name}" holds a value that is not finite', "FAILED_PRECONDITION")
        save(emit["path"], tensors)
        if "base_path" in emit:
            if memory["base"] is None:
                raise TrainerError(f'the change of fragment "{name}" has no base', "FAILED_PRECONDITION")
            save(emit["base_path"], memory["base"])
        if memory["in_flight"] is not None:
            memory["earlier"][memory["in_flight"]] = memory["base"]
        while len(memory["earlier"]) > 2:
            del memory["earlier"][min(memory["earlier"])]
        memory.update(base=copy.deepcopy(tensors), in_flight=exchange)
        say(type="fragment", task=task.task, fragment=name, exchange=exchange, step=emit["at_step"], path=emit["path"],
            base=memory["version"])

    def _merge(self, plan, line):
        name, exchange, rule = plan["fragment"], plan.get("exchange", 0), plan.get("rule", "replace")
        memory, fresh = self._remembered(name), load(line["path"])
        alpha = plan.get("alpha", 1 if rule == "eager" else 0.5)
        if memory["base"] is None and rule != "replace":
            raise TrainerError(f'merge of fragment "{name}", which was never read', "FAILED_PRECONDITION")
        if rule == "eager":
            emitted = memory["base"] if memory["in_flight"] == exchange else memory["earlier"].get(exchange)
            if emitted is None:
                raise TrainerError(f'eager merge of fragment "{name}", of which nothing was emitted', "FAILED_PRECONDITION")
            emitted = copy.deepcopy(emitted)
        memory["earlier"] = {number: base for number, base in memory["earlier"].items() if number > exchange}
        if memory["in_flight"] is not None and memory["in_flight"] <= exchange:
            memory["in_flight"] = None
        memory.update(version=line["version"], merged=max(memory["merged"], exchange), base=memory["base"] or copy.deepcopy(fresh))
        for tensors in (self.tensors[name], memory["base"], *memory["earlier"].values()):
            for tensor, array in tensors.items():
                if rule == "lerp":
                    array[...] = np.float32(alpha) * array + np.float32(1 - alpha) * fresh[tensor]
                elif rule == "eager":
                    array[...] = fresh[tensor] + np.float32(alpha) * (array - emitted[tensor])
                else:
                    array[...] = fresh[tensor]

    def _look(self, task, wait=False):
        """Handles what came while a task runs; `wait`: waits for one line first."""
        while True:
            try:
                line = _lines.get(block=wait)
                wait = False
            except queue.Empty:
                return
            kind = line.get("type")
            if kind == "cancel" and line.get("task") == task:
                raise Cancelled
            if kind == "checkpoint":
                self._checkpoints.append(True)  # written at the task's end: the state between two tasks is what can resume
            elif kind == "merge":
                self._arrived[line["fragment"], line.get("exchange", 0)] = line
            elif kind == "close":
                os._exit(0)
            elif kind != "cancel":
                say(type="error", code="FAILED_PRECONDITION", message=f"{kind}: not while task {task} runs", fatal=False)

    def _task(self, line):
        kind, task = line["type"], Task(self, line)
        if not self._opened:
            raise TrainerError("no run is open; send an open line first", "FAILED_PRECONDITION")
        if kind == "train":
            self._follow(line)
        before = copy.deepcopy(self._saved())
        try:
            if kind == "initialise":
                for fragment, tensors in self.initial(line.get("seed", 0)).items():
                    if fragment in line["write"]:
                        save(line["write"][fragment], tensors)
                say(type="done", task=task.task)
                return
            self._read(line)
            if kind == "generate":
                say(type="done", task=task.task, text=self.generate(task))
                self._restore(before)
                return
            if kind == "evaluate":
                result = self.evaluate(task)
                self._restore(before)
                say(type="done", task=task.task, **result)
                return
            if self.training.get("optimizer_state") == "reset":
                self.state = {}
            result = self.train(task)
            self._latest = task.task
            for fragment, path in line.get("write", {}).items():
                if not all(np.isfinite(array).all() for array in self.tensors[fragment].values()):
                    raise TrainerError(f'fragment "{fragment}" holds a value that is not finite', "FAILED_PRECONDITION")
                save(path, self.tensors[fragment])
            if line.get("checkpoint", True):
                self._checkpoint()
            say(type="done", task=task.task, steps=self.step - before[2], **result)
        except BaseException:
            self._restore(before)
            raise
        finally:
            for plan in line.get("merge", []):
                self._arrived.pop((plan["fragment"], plan.get("exchange", 0)), None)

    def _handle(self, line):
        kind = line.get("type")
        try:
            if kind == "open":
                self._open(line)
            elif kind in ("train", "evaluate", "generate", "initialise"):
                self._task(line)
            elif kind == "checkpoint":
                self._checkpoints.append(True)
            elif kind == "merge":
                self._arrived[line["fragment"], line.get("exchange", 0)] = line
            elif kind != "cancel":
                raise TrainerError(f'type "{kind}" is not known')
        except Cancelled:
            say(type="cancelled", task=line["task"])
        except Exception as error:  # every fault is an answer; only a failed open ends the trainer
            code = getattr(error, "code", "INTERNAL")
            message = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
            fatal = kind == "open" and not self._opened
            say(type="error", code=code if isinstance(code, str) else "INTERNAL", message=message, fatal=fatal,
                **({"task": line["task"]} if "task" in line else {}))
            if fatal:
                sys.exit(1)
        while self._checkpoints:
            self._checkpoints.pop()
            self._checkpoint()
            say(type="checkpointed", step=self.step)


_lines = queue.Queue()


def say(**members):
    """One line to the daemon."""
    _out.write(json.dumps(members) + "\n")
    _out.flush()


_out = sys.stdout


def _listen():
    for text in sys.stdin:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            say(type="error", code="INVALID_ARGUMENT", message="the line is not a JSON object", fatal=False)
            continue
        _lines.put(line)
    os._exit(0)  # the end of stdin: nobody is there any more


def run(trainer):
    """Speaks the protocol until `close` or the end of stdin."""
    say(type="hello", protocol=1, trainer=trainer.name, version=trainer.version, architectures=trainer.architectures,
        kinds=trainer.kinds, warnings=trainer.warnings)
    threading.Thread(target=_listen, daemon=True).start()
    while True:
        line = _lines.get()
        if line.get("type") == "close":
            sys.exit(0)
        trainer._handle(line)
