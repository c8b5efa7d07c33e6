"""Runs in another tool's environment: read an exported file with that tool, save its logits.

Usage: python peer.py (steering-vectors | repeng) MODEL_FOLDER VECTORS IDS OUT.npy
"""

import sys

import numpy as np
import torch
from transformers import GPT2LMHeadModel


def main(tool: str, folder: str, vectors: str, ids: str, out: str) -> None:
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokens = torch.tensor([[int(word) for word in ids.split(",")]])
    with torch.no_grad():
        if tool == "steering-vectors":
            from steering_vectors import SteeringVector

            vector = SteeringVector(**torch.load(vectors, weights_only=True))
            with vector.apply(model):
                logits = model(tokens).logits
        else:
            setattr(np, "float_", np.float64)  # noqa: B010 - repeng 0.4 is older than NumPy 2
            from repeng import ControlModel, ControlVector

            held = ControlVector.import_gguf(vectors)
            assert held.model_type == model.config.model_type
            steered = ControlModel(model, list(held.directions))
            steered.set_control(held)
            logits = steered(tokens).logits
            held.export_gguf(out + ".gguf")  # read again by mechmem
    np.save(out, logits[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
