#!/usr/bin/python3
"""A complete trainer in NumPy: the architecture `linear` (softmax or linear regression) on tables and images, with SGD."""

import numpy as np

from skerry_trainer import Trainer, TrainerError, read_images, read_table, run, split


class LinearTrainer(Trainer):
    name, architectures, kinds = "numpy-trainer", ["linear"], ["csv", "idx"]
    objectives = ["proximal"]
    overlapped = True

    def open(self):
        if self.model["architecture"] != "linear":
            raise TrainerError(f'model.architecture is {self.model["architecture"]}, this trainer has linear only')
        if self.training.get("optimizer") != "sgd":
            raise TrainerError(f'training.optimizer is {self.training.get("optimizer", "adamw")}, this trainer has sgd only')
        self.x, self.y = read_images(self.data) if self.data["kind"] == "idx" else read_table(self.data)
        if self.x.shape[1] != self.model["inputs"]:
            raise TrainerError(f'the model takes {self.model["inputs"]} inputs but the data set has {self.x.shape[1]}')
        loss = self.training.get("loss") or ("mse" if self.model["outputs"] == 1 else "cross_entropy")
        self.regression = loss == "mse"
        if not self.regression and self.y.max() >= self.model["outputs"]:
            raise TrainerError(f'label {self.y.max()}, the model has {self.model["outputs"]} outputs')
        self.tensors = self.initial(self.seed)
        return {name: len(split(self.data, len(self.x), name)) for name in self.data.get("splits", {"train": {}})}

    def initial(self, seed):
        # docs/model-layout.md gives the bits that all trainers agree on; the coordinator makes the run's first version from
        # them, so a trainer of one's own only needs some start.
        bound = 1 / np.sqrt(self.model["inputs"])
        shape = (self.model["outputs"], self.model["inputs"])
        weight = np.random.Generator(np.random.Philox(seed)).uniform(-bound, bound, shape).astype(np.float32)
        tensors = {"weight": weight}
        if self.model.get("bias", True):
            tensors["bias"] = np.zeros(self.model["outputs"], np.float32)
        return {"all": tensors}

    def forward(self, rows):
        """(output, its loss's gradient, loss of each row, rows that are right)"""
        tensors = self.tensors["all"]
        output = self.x[rows] @ tensors["weight"].T + tensors.get("bias", np.float32(0))
        if self.regression:
            target = self.y[rows].astype(np.float32)
            target = target[:, None] if output.shape[1] == 1 else np.eye(output.shape[1], dtype=np.float32)[self.y[rows]]
            error = output - target
            return output, 2 * error / error.shape[1], (error ** 2).mean(1), 0
        shifted = np.exp(output - output.max(1, keepdims=True))
        gradient = shifted / shifted.sum(1, keepdims=True)
        losses = -np.log(np.maximum(gradient[np.arange(len(rows)), self.y[rows]], 1e-30))
        gradient[np.arange(len(rows)), self.y[rows]] -= 1
        return output, gradient, losses, int((output.argmax(1) == self.y[rows]).sum())

    def train(self, task):
        first, tensors = split(self.data, len(self.x), "train"), self.tensors["all"]
        momentum, nesterov = self.training.get("momentum", 0), self.training.get("nesterov", False)
        decay, clip = self.training.get("weight_decay", 0), self.training.get("clip_norm", 0)
        velocity = self.state.setdefault("velocity", {name: np.zeros_like(array) for name, array in tensors.items()})
        received, pull = {name: array.copy() for name, array in tensors.items()}, np.float32(self.training.get("proximal", 0))
        total, seen = 0.0, 0
        for step, numbers in task.batches(len(first)):
            rows = numbers + first.start
            _, gradient, losses, _ = self.forward(rows)
            gradients = {"weight": gradient.T @ self.x[rows] / len(rows), "bias": gradient.mean(0)}
            gradients = {name: gradients[name].astype(np.float32) + pull * (tensors[name] - received[name]) for name in tensors}
            norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
            scale = np.float32(min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
            for name, array in tensors.items():
                g = gradients[name] * scale + np.float32(decay) * array
                velocity[name][...] = np.float32(momentum) * velocity[name] + g
                step_by = g + np.float32(momentum) * velocity[name] if nesterov else velocity[name]
                array -= np.float32(task.learning_rate(step)) * step_by
            task.loss = losses.mean()
            if not np.isfinite(task.loss):
                raise TrainerError("the loss is not finite; lower the learning rate", "FAILED_PRECONDITION")
            total, seen = total + float(losses.sum()), seen + len(rows)
        return {"examples": seen, "tokens": 0, "metrics": {"train_loss": total / seen}}

    def evaluate(self, task):
        rows = np.asarray(split(self.data, len(self.x), task.split or "holdout"))
        if not len(rows):
            raise TrainerError(f'split "{task.split}" has no examples', "FAILED_PRECONDITION")
        _, _, losses, right = self.forward(rows)
        metrics = {"loss": float(losses.mean())}
        if not self.regression:
            metrics["accuracy"] = right / len(rows)
        return {"examples": len(rows), "tokens": 0, "metrics": metrics}


if __name__ == "__main__":
    run(LinearTrainer())
