#!/usr/bin/python3
"""A complete trainer in PyTorch (Debian: python3-torch): `linear` and `mlp` on tables and images, with torch.optim."""

import numpy as np
import torch

from skerry_trainer import Trainer, TrainerError, read_images, read_table, run, split


class TorchTrainer(Trainer):
    name, architectures, kinds = "torch-trainer", ["linear", "mlp"], ["csv", "idx"]

    def open(self):
        if self.model["architecture"] not in self.architectures:
            raise TrainerError(f'model.architecture is {self.model["architecture"]}, this trainer has linear and mlp')
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)
        x, y = read_images(self.data) if self.data["kind"] == "idx" else read_table(self.data)
        if x.shape[1] != self.model["inputs"]:
            raise TrainerError(f'the model takes {self.model["inputs"]} inputs but the data set has {x.shape[1]}')
        loss = self.training.get("loss") or ("mse" if self.model["outputs"] == 1 else "cross_entropy")
        self.regression = loss == "mse"
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.net = self.build()
        self.optimizer = self.build_optimizer()
        self.tensors = self.initial(self.seed)
        return {name: len(split(self.data, len(x), name)) for name in self.data.get("splits", {"train": {}})}

    def build(self):
        if self.model["architecture"] == "linear":
            return torch.nn.Linear(self.model["inputs"], self.model["outputs"], bias=self.model.get("bias", True))
        widths = [self.model["inputs"], *self.model.get("hidden", [128]), self.model["outputs"]]
        self.activation = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}[
            self.model.get("activation", "relu")]
        net = torch.nn.Module()  # its parameters are named as docs/model-layout.md says: layers.0.weight, …
        net.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        return net

    def forward(self, x):
        if self.model["architecture"] == "linear":
            return self.net(x)
        for layer in self.net.layers[:-1]:
            x = self.activation(layer(x))
        return self.net.layers[-1](x)

    def build_optimizer(self):
        t, decay = self.training, self.training.get("weight_decay", 0)
        if t.get("optimizer") == "sgd":
            return torch.optim.SGD(self.net.parameters(), t["learning_rate"], momentum=t.get("momentum", 0),
                                   nesterov=t.get("nesterov", False), weight_decay=decay)
        kind = torch.optim.Adam if t.get("optimizer") == "adam" else torch.optim.AdamW
        return kind(self.net.parameters(), t["learning_rate"], (t.get("beta1", 0.9), t.get("beta2", 0.999)),
                    t.get("epsilon", 1e-8), decay)

    def initial(self, seed):
        torch.manual_seed(seed % 2 ** 63)
        return {"all": {name: value.detach().numpy() for name, value in self.build().named_parameters()}}

    def load_tensors(self):
        """From every fragment's arrays into the network."""
        arrays = {name: array for tensors in self.tensors.values() for name, array in tensors.items()}
        with torch.no_grad():
            for name, value in self.net.named_parameters():
                if name not in arrays or arrays[name].shape != tuple(value.shape):
                    raise TrainerError(f'tensor "{name}" is missing or not {list(value.shape)}')
                value.copy_(torch.from_numpy(arrays[name]))

    def losses(self, rows):
        output = self.forward(self.x[rows])
        if not self.regression:
            return torch.nn.functional.cross_entropy(output, self.y[rows], reduction="none"), output
        target = self.y[rows].float()[:, None] if output.shape[1] == 1 else torch.eye(output.shape[1])[self.y[rows]]
        return ((output - target) ** 2).mean(1), output

    def train(self, task):
        self.load_tensors()
        fresh = self.build_optimizer()
        if "optimizer" in self.state:
            fresh.load_state_dict(self.state["optimizer"])
        self.optimizer = fresh
        first = split(self.data, len(self.x), "train")
        total, seen = 0.0, 0
        for step, numbers in task.batches(len(first)):
            for group in self.optimizer.param_groups:
                group["lr"] = task.learning_rate(step)
            self.optimizer.zero_grad()
            losses, _ = self.losses(torch.from_numpy(np.asarray(numbers) + first.start))
            losses.mean().backward()
            if self.training.get("clip_norm"):
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.training["clip_norm"])
            self.optimizer.step()
            task.loss = losses.mean().item()
            if not np.isfinite(task.loss):
                raise TrainerError("the loss is not finite; lower the learning rate", "FAILED_PRECONDITION")
            total, seen = total + losses.sum().item(), seen + len(numbers)
        self.state["optimizer"] = self.optimizer.state_dict()
        values = dict(self.net.named_parameters())
        self.tensors = {fragment: {name: values[name].detach().numpy().copy() for name in tensors}
                        for fragment, tensors in self.tensors.items()}
        return {"examples": seen, "tokens": 0, "metrics": {"train_loss": total / seen}}

    def evaluate(self, task):
        self.load_tensors()
        rows = torch.tensor(split(self.data, len(self.x), task.split or "holdout"), dtype=torch.long)
        if not len(rows):
            raise TrainerError(f'split "{task.split}" has no examples', "FAILED_PRECONDITION")
        with torch.no_grad():
            losses, output = self.losses(rows)
        metrics = {"loss": losses.mean().item()}
        if not self.regression:
            metrics["accuracy"] = (output.argmax(1) == self.y[rows]).float().mean().item()
        return {"examples": len(rows), "tokens": 0, "metrics": metrics}


if __name__ == "__main__":
    run(TorchTrainer())
