#!/usr/bin/env python3
"""What the ways to exchange learn: runs the cells of tests/bench/learning/cells.toml in simulations and writes docs/results.md.

  tests/bench/learning.py [--only CLAIM]... [--size SIZE]... [--regime REGIME] [--seeds N]
                          [--programs DIR] [--data DIR] [--json FILE] [--markdown FILE] [--jobs N]

--only      this claim alone, in the order given (default: all, in the file's order)
--size      cells of this size alone; --regime those of "low" or "best"; --seeds so many of the seeds
--programs  where skerry-sim and skerry-trainer are (default build/release/bin)
--data      where tinyshakespeare.txt is (default $SKERRY_DATA)
--work      texts and models (default build/learning-bench)
--json      the results: cells that it has are not run again, new ones are added as they end (default docs/results/learning.json)
--markdown  the page that is written at the end, with pictures in the directory results beside it; --page writes it of what there is
--list      says which cells are missing, and runs none

Interrupt it at any time and start it again: only the cells under way are lost. Each runs on one core.
"""
import argparse
import concurrent.futures
import csv
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BLOCK = 2048  # bytes of text that stay together when it is dealt out


# ---- texts ----

def gather(files, size):
    """The first `size` bytes of these files."""
    parts, left = [], size
    for file in sorted(files):
        if left <= 0:
            break
        if file.is_file():
            parts.append(file.read_bytes()[:left])
            left -= len(parts[-1])
    return b"".join(parts)


def kinds_of_text():
    """The quickstart's four kinds of text, as much of each as a quarter of Shakespeare."""
    share, modules, headers = pathlib.Path("/usr/share"), pathlib.Path("/usr/share"), pathlib.Path("/usr/include/c++")
    files = {"headers": headers.rglob("*"),
             "cmake": modules.glob("cmake-*/Modules/*.cmake"),
             "python": pathlib.Path("/usr/lib").glob("python3.*/*.py"),
             "licences": list(share.glob("common-licenses/*")) + list(share.glob("doc/*/copyright"))}
    return {kind: gather(found, 280_000) for kind, found in files.items()}


class Texts:
    """Directories with one file for each client, and one to test with. Made when they are asked for."""

    def __init__(self, data, work):
        self.data, self.work, self.made = data, work, {}

    def get(self, name):
        """(directory of the clients' files, test file, {name: other test file}, digest of all)"""
        if name not in self.made:
            self.made[name] = self.make(name)
        return self.made[name]

    def make(self, name):
        source, how = name.rsplit("-", 1)
        if source == "shakespeare":
            texts = {"shakespeare": (self.data / "tinyshakespeare.txt").read_bytes()}
        else:
            texts = kinds_of_text()
        train = {kind: text[: len(text) * 9 // 10] for kind, text in texts.items()}
        held_out = {kind: text[len(text) * 9 // 10:] for kind, text in texts.items()}
        if how == "kinds":
            clients = train
        else:
            whole = b"".join(train.values())
            blocks = [whole[at: at + BLOCK] for at in range(0, len(whole), BLOCK)]
            clients = {"island-%d" % i: b"".join(blocks[i:: int(how)]) for i in range(int(how))}
        if source != "shakespeare":  # of a kind that nobody holds
            held_out["unseen"] = self.get("shakespeare-1")[1].read_bytes()
        directory = self.work / "texts" / name
        (directory / "clients").mkdir(parents=True, exist_ok=True)
        for client, text in clients.items():
            (directory / "clients" / (client + ".txt")).write_bytes(text)
        for kind, text in held_out.items():
            (directory / (kind + ".txt")).write_bytes(text)
        test = directory / "test.txt"
        test.write_bytes(b"".join(text for kind, text in held_out.items() if kind != "unseen"))
        digest = hashlib.sha256(json.dumps([[n, hashlib.sha256(t).hexdigest()] for n, t in sorted({**clients, **held_out}.items())]).encode())
        others = {kind: directory / (kind + ".txt") for kind in held_out} if len(held_out) > 1 else {}
        return directory / "clients", test, others, digest.hexdigest()[:16]


# ---- cells ----

class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.spec_file = HERE / "learning" / "run.toml"
        self.spec = tomllib.loads(self.spec_file.read_text())
        self.table = tomllib.loads((HERE / "learning" / "cells.toml").read_text())
        self.work = pathlib.Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.texts = Texts(pathlib.Path(arguments.data), self.work)
        self.file = pathlib.Path(arguments.json)
        self.results = self.stored()
        self.lock = threading.Lock()
        self.warm_lock = threading.Lock()

    def cell(self, size, method, rate, seed):
        """Everything that decides a cell's result, and the key that follows from it."""
        warm = method.startswith("warm-start")
        entry = self.table["methods"][method]
        settings = {**{key: value for key, value in self.table["sizes"][size].items() if key != "rates"}, **entry.get("set", {})}
        if not warm:
            settings["training.learning_rate"] = rate
        settings["seed"] = seed
        cell = {"method": method, "size": size, "rate": settings.get("training.learning_rate", self.spec["training"]["learning_rate"]), "seed": seed,
                "set": settings, "scenario": dict(self.table.get("scenario", {}), **entry.get("scenario", {})), "data": entry["data"],
                "text": self.texts.get(entry["data"])[3], "spec": self.spec}
        if not warm:
            cell["warm_start"] = self.cell(size, entry.get("warm_start", "warm-start"), None, seed)["key"]
        cell["key"] = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]
        return cell

    def find(self, size, method, rate, seed):
        return self.results.get(self.cell(size, method, rate, seed)["key"])

    def model_of(self, cell):
        return self.work / "models" / cell["key"] / "all.safetensors"

    def command(self, cell, out):
        clients, test, _, _ = self.texts.get(cell["data"])
        words = [os.path.join(self.arguments.programs, "skerry-sim"), str(self.spec_file), "--quiet", "--workers", "1", "--out", str(out),
                 "--data", str(clients), "--partition", "files", "--holdout", "0", "--test", str(test)]
        count = len(list(clients.iterdir()))
        settings = {"participation.start_nodes": count, "participation.quorum": max(1, count // 2), **cell["set"]}
        if settings.get("participation.mode") == "asynchronous" or settings.get("strategy") == "async-diloco":
            settings.pop("participation.quorum")
        for key, value in settings.items():
            words += ["--set", "%s=%s" % (key, json.dumps(value))]
        for key, value in cell["scenario"].items():
            if str(value).startswith("file:"):
                value = "file:%s" % (HERE / "learning" / value[5:])
            words += ["--" + key.replace("_", "-"), str(value)]
        return words

    def run(self, cell):
        """Runs one cell; with it the warm start that it begins with."""
        extra = []
        if "warm_start" in cell:
            warm = self.cell(cell["size"], self.table["methods"][cell["method"]].get("warm_start", "warm-start"), None, cell["seed"])
            with self.warm_lock:
                if not self.model_of(warm).exists():
                    self.keep(warm, self.run(warm))
            extra = ["--initial", str(self.model_of(warm))]
        out = self.work / "runs" / cell["key"]
        environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        ended = subprocess.run(self.command(cell, out) + extra, capture_output=True, text=True, env=environment)
        if not (out / "summary.json").exists():
            raise RuntimeError("%s ended with %d: %s" % (" ".join(self.command(cell, out)), ended.returncode, ended.stderr[-500:]))
        result = self.read(out)
        if result.get("failed", "").startswith("interrupted"):
            raise KeyboardInterrupt
        (out / "model").rename(self.made_room(self.model_of(cell).parent))
        others = self.texts.get(cell["data"])[2]
        if others and "failed" not in result:
            result["kinds"] = {kind: self.measure(cell, file) for kind, file in others.items()}
        subprocess.run(["rm", "-r", str(out)], check=True)
        return result

    @staticmethod
    def made_room(directory):
        subprocess.run(["rm", "-rf", str(directory)], check=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        return directory

    @staticmethod
    def read(out):
        summary = json.loads((out / "summary.json").read_text())
        timing = json.loads((out / "timing.json").read_text())
        with open(out / "rounds.csv") as file:
            rounds = list(csv.DictReader(file))
        with open(out / "clients.csv") as file:
            clients = list(csv.DictReader(file))
        curve = [[int(row["exchange"]), float(row["time_s"]), round(float(row["test_loss"]), 5)] for row in rounds if row.get("test_loss")]
        result = {"loss": curve[-1][2] if curve else None, "exchanges": summary["exchanges"], "virtual_seconds": summary["virtual_seconds"],
                  "bytes_up": sum(int(c["bytes_up"]) for c in clients), "bytes_down": sum(int(c["bytes_down"]) for c in clients),
                  "updates": sum(int(c["counted"]) for c in clients), "seconds": round(timing["cpu_seconds"], 1), "curve": curve}
        if summary["status"] != "completed":
            result["failed"] = summary["status"] + ": " + summary["status_reason"]
        return result

    def measure(self, cell, file):
        """Loss of a cell's model on another text, by the trainer that everybody runs."""
        spec = {section: dict(values) if isinstance(values, dict) else values for section, values in self.spec.items()}
        for key, value in cell["set"].items():
            section, _, name = key.rpartition(".")
            if section in ("model", "training"):
                spec[section][name] = value
        lines = [{"type": "open", "run": "measure", "work_dir": str(self.work), "state_dir": str(self.work / "state" / cell["key"]), "threads": 1, "seed": 1,
                  "model": self.resolved_model(cell), "training": spec["training"],
                  "data": {"kind": "text", "schema": {"encoding": "bytes"}, "path": str(file), "splits": {"holdout": {"from": 0.0, "to": 1.0}}}},
                 {"type": "evaluate", "task": "t-1", "split": "holdout",
                  "read": {f.stem: {"path": str(f), "version": 1} for f in self.model_of(cell).parent.iterdir()}}]
        os.makedirs(self.work / "state" / cell["key"], exist_ok=True)
        with subprocess.Popen([os.path.join(self.arguments.programs, "skerry-trainer")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as trainer:
            trainer.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
            trainer.stdin.flush()
            for line in trainer.stdout:
                answer = json.loads(line)
                if answer["type"] == "done":
                    trainer.stdin.close()
                    return round(answer["metrics"]["loss"], 5)
                if answer["type"] == "error":
                    break
            trainer.kill()
        raise RuntimeError("skerry-trainer: " + line)

    def resolved_model(self, cell):
        model = dict(self.spec["model"])
        model.update({key[6:]: value for key, value in cell["set"].items() if key.startswith("model.")})
        return model

    def stored(self):
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def keep(self, cell, result):
        with self.lock:
            self.results.update(self.stored())  # what another process has found meanwhile
            self.results[cell["key"]] = {**{k: cell[k] for k in ("method", "size", "rate", "seed")}, **result}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            rows = sorted(self.results.items(), key=lambda item: (item[1]["method"], item[1]["size"], item[1]["rate"] or 0, item[1]["seed"]))
            temporary = self.file.with_suffix(".new")
            temporary.write_text("{\n" + ",\n".join("%s: %s" % (json.dumps(k), json.dumps(v)) for k, v in rows) + "\n}\n")
            temporary.replace(self.file)
            print("%s: %s" % (" ".join(str(cell[k]) for k in ("method", "size", "rate", "seed")), result.get("failed") or result["loss"]), file=sys.stderr, flush=True)

    # ---- what a claim needs ----

    def rates(self, claim, method, size):
        entry = self.table["methods"][method]
        return entry.get("rates") or self.table["sizes"][size].get("rates") or self.table["rates"]

    def best_rate(self, claim, size, method):
        """Among the grid at seed 1; None while one of them is missing."""
        method = self.table["methods"][method].get("rate_of", method)
        first = self.table["seeds"][0]
        losses = []
        for rate in self.rates(claim, method, size):
            found = self.find(size, method, rate, first)
            if found is None:
                return None
            if "failed" not in found:
                losses.append((found["loss"], rate))
        return min(losses)[1] if losses else None

    def wanted(self, claim):
        """The cells that the claim needs, as far as is known yet: of each size the grids at the first seed, then the other seeds."""
        cells = []
        for size in claim["sizes"]:
            if self.arguments.size and size not in self.arguments.size:
                continue
            grid, seeds = [], []
            for method in claim["methods"]:
                tuned = self.table["methods"][method].get("rate_of", method)
                grid += [self.cell(size, tuned, rate, self.table["seeds"][0]) for rate in self.rates(claim, tuned, size)]
                best = self.best_rate(claim, size, method)
                if best is None:
                    continue
                regimes = [regime for regime in claim["regimes"] if self.arguments.regime in (None, regime)]
                wanted = min(self.arguments.seeds, self.table["methods"][method].get("seeds", 3))
                for seed in self.table["seeds"][:wanted]:
                    if "best" in regimes:
                        seeds.append(self.cell(size, method, best, seed))
                    if "low" in regimes:
                        seeds.append(self.cell(size, method, self.table["low_rate"], seed))
            cells += grid + sorted(seeds, key=lambda c: c["seed"])
        return cells

    def missing(self, claims):
        found = {}
        for name in claims:
            for cell in self.wanted(self.table["claims"][name]):
                if cell["key"] not in self.results:
                    found.setdefault(cell["key"], cell)
        return list(found.values())

    def fill(self, claims):
        with concurrent.futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            under_way = {}
            while True:
                cells = self.missing(claims)
                for cell in cells:
                    if len(under_way) >= self.arguments.jobs:
                        break
                    if cell["key"] not in {c["key"] for c in under_way.values()}:
                        under_way[pool.submit(self.run, cell)] = cell
                if not under_way:
                    return
                done, _ = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    self.keep(under_way.pop(future), future.result())


# ---- the page ----

INK = ["#1b6ca8", "#c8553d", "#4a7c59", "#8a5a9e", "#b08900", "#555555"]


def mean(values):
    return sum(values) / len(values)


def spread(values, form):
    """The mean, and of several half the distance between the extremes: "1.6753 ± 0.0106"."""
    text = form % mean(values)
    return text if len(values) == 1 else text + " ± " + (form.replace("+", "") % ((max(values) - min(values)) / 2))


def picture(title, curves):
    """Curves {label: [(x, y)]} as SVG: share of the run's tokens against the loss."""
    width, height, left, top, right, bottom = 640, 360, 56, 34, 24, 40
    ys = sorted(y for points in curves.values() for _, y in points)
    high = min(ys[-1], ys[len(ys) // 2] + 4 * (ys[len(ys) // 2] - ys[0]))  # a run that goes astray leaves the picture
    low, high = ys[0] - 0.02 * (high - ys[0]), high + 0.02 * (high - ys[0]) + 1e-9
    at = lambda x, y: (left + x * (width - left - right), top + (high - min(y, high)) / (high - low) * (height - top - bottom))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">' % (width, height),
           '<rect width="100%" height="100%" fill="white"/>', '<text x="%d" y="20" font-size="14">%s</text>' % (left, title)]
    for i in range(5):
        y = low + (high - low) * i / 4
        out.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.2f</text>'
                   % (left, width - right, at(0, y)[1], at(0, y)[1], left - 6, at(0, y)[1] + 4, y))
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%d %%</text>' % (at(i / 4, low)[0], height - bottom + 16, 25 * i))
    out.append('<text x="%.1f" y="%d" text-anchor="middle">tokens after the warm start</text>' % ((left + width) / 2, height - 6))
    for i, (label, points) in enumerate(curves.items()):
        ink = INK[i % len(INK)]
        out.append('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (ink, " ".join("%.1f,%.1f" % at(x, y) for x, y in points)))
        y = top + 14 + 16 * i
        out.append('<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="%s" stroke-width="3"/><text x="%d" y="%d" text-anchor="end">%s</text>'
                   % (width - right - 20, width - right, y - 4, y - 4, ink, width - right - 26, y, label.replace("&", "&amp;").replace("<", "&lt;")))
    return "\n".join(out + ["</svg>"]) + "\n"


class Page:
    def __init__(self, bench, directory):
        self.bench, self.directory = bench, directory

    def found(self, size, method, rate):
        """{seed: result} of those that ended well."""
        cells = {seed: self.bench.find(size, method, rate, seed) for seed in self.bench.table["seeds"]}
        return {seed: cell for seed, cell in cells.items() if cell and "failed" not in cell}

    def rate(self, claim, size, method, regime):
        return self.bench.table["low_rate"] if regime == "low" else self.bench.best_rate(claim, size, method)

    def row(self, claim, size, method, regime):
        rate = self.rate(claim, size, method, regime)
        own = self.found(size, method, rate) if rate else {}
        if not own:
            return None
        against = self.found(size, claim["against"], self.rate(claim, size, claim["against"], regime))
        pairs = [100 * (own[seed]["loss"] / against[seed]["loss"] - 1) for seed in own if seed in against]
        relative = "–" if method == claim["against"] or not pairs else spread(pairs, "%+.2f") + " %"
        limit = claim.get("at_most", {}).get(method)
        if limit is not None and pairs and regime == "best" and size == claim.get("of_size", size):
            relative += " (%s: at most %g %%)" % ("reached" if mean(pairs) <= limit else "**missed**", limit)
        some = own[min(own)]
        bytes_up = some["bytes_up"] / max(1, some["updates"])
        return "| %s | %s | %s, %g | %d | %s | %s | %s | %.0f s |" % (
            size.replace("M", " M"), self.bench.table["methods"][method]["label"], regime, rate, len(own),
            spread([cell["loss"] for cell in own.values()], "%.4f"), relative,
            "{:,.0f}".format(bytes_up), some["virtual_seconds"])

    def claim(self, name):
        claim = self.bench.table["claims"][name]
        lines = ["## " + claim["title"], ""]
        if "text" in claim:
            lines += [claim["text"], ""]
        lines += ["| size | method | regime, rate | seeds | loss | relative | bytes up an update | virtual time |", "|---|---|---|---|---|---|---|---|"]
        for size in claim["sizes"]:
            for regime in claim["regimes"]:
                rows = [self.row(claim, size, method, regime) for method in claim["methods"]]
                lines += [row for row in rows if row]
        lines += self.kinds(claim)
        for size in claim["sizes"]:
            curves = {}
            for method in claim["methods"]:
                rate = self.rate(claim, size, method, "best")
                own = self.found(size, method, rate) if rate else {}
                if own:
                    cell = own[min(own)]
                    curves[self.bench.table["methods"][method]["label"]] = [(e / cell["exchanges"], loss) for e, _, loss in cell["curve"]]
            if len(curves) > 1:
                file = self.directory / ("learning-%s-%s.svg" % (name, size))
                file.write_text(picture("%s, %s parameters, seed 1" % (claim["title"], size.replace("M", " M")), curves))
                lines += ["", "![%s](results/%s)" % (claim["title"], file.name)]
        return lines + [""]

    def kinds(self, claim):
        """Where the test is of several kinds of text: the loss on each."""
        rows = []
        for size in claim["sizes"]:
            for method in claim["methods"]:
                own = self.found(size, method, self.rate(claim, size, method, "best") or 0)
                measured = [cell["kinds"] for cell in own.values() if "kinds" in cell]
                if measured:
                    rows.append((self.bench.table["methods"][method]["label"], {kind: spread([m[kind] for m in measured], "%.4f") for kind in measured[0]}))
        if not rows:
            return []
        heads = list(rows[0][1])
        return ["", "| loss on the held-out text of | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)] + [
            "| %s | %s |" % (label, " | ".join(by_kind[kind] for kind in heads)) for label, by_kind in rows]

    def write(self, file):
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [self.bench.table["page"].strip(), ""]
        for name in self.bench.table["claims"]:
            lines += self.claim(name)
        file.write_text("\n".join(lines).rstrip() + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--size", action="append", default=[])
    parser.add_argument("--regime", choices=["low", "best"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--programs", default=str(ROOT / "build/release/bin"))
    parser.add_argument("--data", default=os.environ.get("SKERRY_DATA", ""))
    parser.add_argument("--work", default=str(ROOT / "build/learning-bench"))
    parser.add_argument("--json", default=str(ROOT / "docs/results/learning.json"))
    parser.add_argument("--markdown", default=str(ROOT / "docs/results.md"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not os.path.isfile(os.path.join(arguments.data, "tinyshakespeare.txt")):
        sys.exit("learning.py: there is no tinyshakespeare.txt in \"%s\"; name its directory with --data or SKERRY_DATA" % arguments.data)
    os.nice(19)
    bench = Bench(arguments)
    claims = arguments.only or list(bench.table["claims"])
    if arguments.page:
        markdown = pathlib.Path(arguments.markdown)
        return Page(bench, markdown.parent / "results").write(markdown)
    if arguments.list:
        for cell in bench.missing(claims):
            print(" ".join(str(cell[k]) for k in ("method", "size", "rate", "seed")))
        return
    bench.fill(claims)
    if arguments.markdown:
        markdown = pathlib.Path(arguments.markdown)
        Page(bench, markdown.parent / "results").write(markdown)


if __name__ == "__main__":
    main()
