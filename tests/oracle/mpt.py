#!/usr/bin/env python3
"""As transformer.py, for MptForCausalLM."""

import math

import numpy as np

from transformer import causal, heads, main, softmax

_ERF = np.vectorize(math.erf)


def layer_norm(x, weight, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + epsilon)


def alibi(count, length, maximum):
    power = 2 ** math.ceil(math.log2(count))
    slopes = 1.0 / 2 ** (np.arange(1, power + 1) * (maximum / power))
    if power != count:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:count]
    # Only the key's position: a softmax does not see what is added to a whole row.
    return slopes[:, None, None] * np.arange(1 - length, 1)[None, None, :]


def logits(c, t, tokens):
    count, epsilon, length = c["n_heads"], c["layer_norm_epsilon"], tokens.shape[1]
    bias = alibi(count, length, c["attn_config"]["alibi_bias_max"])
    h = t["transformer.wte.weight"][tokens]
    for n in range(c["n_layers"]):
        w = lambda name: t[f"transformer.blocks.{n}.{name}.weight"]
        mixed = layer_norm(h, w("norm_1"), epsilon) @ w("attn.Wqkv").T
        q, k, v = (heads(part, count) for part in np.split(mixed, 3, -1))
        scores = q @ k.swapaxes(2, 3) / math.sqrt(c["d_model"] / count) + bias
        h = h + (softmax(causal(scores)) @ v).swapaxes(1, 2).reshape(*tokens.shape, -1) @ w("attn.out_proj").T
        x = layer_norm(h, w("norm_2"), epsilon) @ w("ffn.up_proj").T
        h = h + (x * 0.5 * (1 + _ERF(x / math.sqrt(2)))) @ w("ffn.down_proj").T
    return layer_norm(h, t["transformer.norm_f.weight"], epsilon) @ t["transformer.wte.weight"].T


if __name__ == "__main__":
    main(logits)
