#!/usr/bin/env python3
"""Logits of a model in Hugging Face's layout, in float64, for tests/unit/trainer/hugging_face_test.cc.

    transformer.py DIRECTORY < tokens > logits

DIRECTORY holds config.json and model.safetensors of a LlamaForCausalLM or Qwen3ForCausalLM; `tokens` is a JSON list of
rows. Writes the logits [rows, length, vocabulary] as little-endian float64. Written from the definitions of these classes
(eager attention), not from Skerry's source.
"""

import json
import os
import sys

import numpy as np


def load(directory):
    with open(os.path.join(directory, "config.json")) as file:
        config = json.load(file)
    with open(os.path.join(directory, "model.safetensors"), "rb") as file:
        data = file.read()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        first, end = (begin + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[first:end], "<f4").reshape(entry["shape"]).astype(np.float64)
    return config, tensors


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def causal(scores):
    length = scores.shape[-1]
    return np.where(np.arange(length)[None, :] > np.arange(length)[:, None], -np.inf, scores)


def heads(x, count):
    """[rows, length, count * size] -> [rows, count, length, size]"""
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def rms_norm(x, weight, epsilon):
    return weight * (x / np.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon))


def rotate_half(x):
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], -1)


def logits(config, t, tokens):
    c = config
    assert c["hidden_act"] == "silu" and not c["attention_bias"]
    count, shared, epsilon = c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
    size = c.get("head_dim") or c["hidden_size"] // count
    frequencies = 1.0 / c["rope_theta"] ** (np.arange(0, size, 2) / size)
    angles = np.arange(tokens.shape[1])[:, None] * frequencies
    angles = np.concatenate([angles, angles], -1)
    turn = lambda x: x * np.cos(angles) + rotate_half(x) * np.sin(angles)
    h = t["model.embed_tokens.weight"][tokens]
    for n in range(c["num_hidden_layers"]):
        w = lambda name: t[f"model.layers.{n}.{name}.weight"]
        x = rms_norm(h, w("input_layernorm"), epsilon)
        q = heads(x @ w("self_attn.q_proj").T, count)
        k = heads(x @ w("self_attn.k_proj").T, shared)
        v = heads(x @ w("self_attn.v_proj").T, shared)
        if c["model_type"] == "qwen3":
            q, k = rms_norm(q, w("self_attn.q_norm"), epsilon), rms_norm(k, w("self_attn.k_norm"), epsilon)
        q, k = turn(q), turn(k)
        k, v = np.repeat(k, count // shared, 1), np.repeat(v, count // shared, 1)
        mixed = softmax(causal(q @ k.swapaxes(2, 3) * size ** -0.5)) @ v
        h = h + mixed.swapaxes(1, 2).reshape(*tokens.shape, -1) @ w("self_attn.o_proj").T
        x = rms_norm(h, w("post_attention_layernorm"), epsilon)
        gate = x @ w("mlp.gate_proj").T
        h = h + (gate / (1 + np.exp(-gate)) * (x @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    head = t["model.embed_tokens.weight"] if c["tie_word_embeddings"] else t["lm_head.weight"]
    return rms_norm(h, t["model.norm.weight"], epsilon) @ head.T


def main(function):
    config, tensors = load(sys.argv[1])
    sys.stdout.buffer.write(function(config, tensors, np.array(json.load(sys.stdin))).astype("<f8").tobytes())


if __name__ == "__main__":
    main(logits)
