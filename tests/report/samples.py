# SPDX-License-Identifier: Apache-2.0
"""Measurements that look like real ones, for the report's tests."""

from typing import Any

import numpy as np

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
PROVENANCE = {
    "command": "tvm-dynprune run net --json",
    "date": "2026-11-23T10:00:00+00:00",
    "machine": "AMD EPYC, 2 cores",
    "versions": {"tvm": "0.27.0.post1", "tvm_dynprune": "0.1.0"},
    "seed": 0,
}


def make_run(
    *, images: int = 200, soc: str = "host", classes: list[str] = CLASSES
) -> dict[str, Any]:
    """Return the JSON object of a `run` over random images, all optional fields present."""
    random = np.random.default_rng(0)
    labels = random.integers(0, len(classes), images)
    easiness = np.linspace(-0.15, 0.15, len(classes))
    fraction = np.clip(0.4 + easiness[labels] + random.normal(0, 0.06, images), 0, 1)
    predictions = np.where(random.random(images) < 0.9, labels, (labels + 1) % len(classes))
    gates = [
        {
            "name": f"features.{layer}.conv",
            "groups": groups,
            "group_size": 8,
            "open_fraction": 0.4,
            "open_fraction_by_class": np.clip(
                0.2 + 0.15 * layer + easiness + random.normal(0, 0.03, len(classes)), 0, 1
            ).tolist(),
            "open_fraction_by_group": random.beta(0.7, 1, groups).tolist(),
        }
        for layer, groups in enumerate([4, 8, 8, 16])
    ]
    return {
        "kind": "run",
        "network": "fashion_cnn",
        "soc": soc,
        "lowering": "indexed",
        "threads": 1,
        "images": images,
        "classes": classes,
        "labels": labels.tolist(),
        "predictions": predictions.tolist(),
        "accuracy": float((labels == predictions).mean()),
        "macs_dense": 20_000_000,
        "macs": (20_000_000 * (0.1 + 0.9 * fraction**2)).astype(int).tolist(),
        "latency_ms": (0.05 + 0.5 * fraction**2 + random.gamma(1, 0.006, images)).tolist(),
        "latency_dense_ms": random.normal(0.55, 0.01, images).tolist(),
        "open_fraction": fraction.tolist(),
        "gates": gates,
        "mac_cut": 0.71,
        "realised_fraction": 0.93,
        "max_abs_error": 3.2e-6,
        "agreement": {"reference": "masked PyTorch", "equal": images, "of": images},
        "points": [
            {
                "threshold_shift": shift,
                "accuracy": 0.9 - 0.02 * max(shift, 0) ** 2,
                "mac_cut": 0.71 + 0.08 * shift,
                "median_ms": 0.18 - 0.04 * shift,
            }
            for shift in (-2, -1, 0, 1, 2)
        ],
        "provenance": PROVENANCE,
    }


def make_bench() -> dict[str, Any]:
    """Return the JSON object of a `bench` against one other engine."""

    def engine(median_ms: float) -> dict[str, float]:
        return {
            "median_ms": median_ms,
            "p50_ms": median_ms,
            "p95_ms": 1.1 * median_ms,
            "min_ms": 0.95 * median_ms,
            "max_ms": 1.4 * median_ms,
            "runs": 100,
        }

    return {
        "kind": "bench",
        "network": "vgg16_bn",
        "soc": "host",
        "threads": 1,
        "engines": {"dynprune": engine(3.1), "dynprune_dense": engine(8.2), "ncnn": engine(14.6)},
        "mac_cut": 0.7,
        "open_fraction": 0.55,
        "speedup_vs_dense": 2.65,
        "speedup_vs_best_peer": 4.71,
        "realised_fraction": 0.89,
        "max_abs_error": 2e-6,
        "provenance": {**PROVENANCE, "command": "tvm-dynprune bench vgg16_bn --mac-cut 0.7"},
    }


CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def make_history(*, epochs: int = 18, layers: int = 8, old: bool = False) -> list[dict[str, Any]]:
    """Return the epochs of a training for a range; an old log has no gates."""
    random = np.random.default_rng(0)
    history = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        closing = min(1.0, max(0.0, (done - 0.1) / 0.25))
        accuracy = 0.94 - 0.16 * np.exp(-4 * done) - 0.02 * closing * (1 - done)
        gates = {
            f"features.{3 * layer}": float(
                np.clip(1 - closing * (0.3 + 0.06 * layer) + random.normal(0, 0.01), 0, 1)
            )
            for layer in range(layers)
        }
        record: dict[str, Any] = {
            "epoch": epoch,
            "loss": round(0.62 + 1.1 * float(np.exp(-3 * done)), 4),
            "validation_accuracy": round(float(accuracy) - 0.004 * closing, 5),
            "validation_mac_cut": round(-0.003 + 0.723 * closing, 4),
            "validation_accurate_accuracy": round(float(accuracy), 5),
            "validation_accurate_mac_cut": round(-0.003 + 0.523 * closing, 4),
            "seconds": 130.5,
        }
        if not old:
            record["validation_open_fraction"] = round(float(np.mean(list(gates.values()))), 4)
            record["gates"] = gates
        history.append(record)
    return history


def make_checkpoint(*, gate: str | None = "lkam", epochs: int = 18) -> dict[str, Any]:
    """Return the JSON object of a checkpoint's folder, gated or dense."""
    history = make_history(epochs=epochs)
    if gate is None:
        kept = ("epoch", "loss", "validation_accuracy", "seconds")
        history = [{name: record[name] for name in kept} for record in history]
        history[-1] |= {"validation_accuracy": 0.9412, "test_accuracy": 0.9404}
    return {
        "network": "compact_vgg",
        "classes": CIFAR10,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.247, 0.2435, 0.2616],
        "gate": gate,
        "group_size": None if gate is None else 16,
        "training": {
            "network": "compact_vgg",
            "budget": 0.28,
            "accurate_budget": 0.48,
            "start": None if gate is None else "runs/dense",
            "distill": 0.0 if gate is None else 0.5,
            "epochs": 18,
            "slope": [1.0, 3.0],
            "seed": 0,
        },
        "epoch": epochs,
        "history": history,
        "versions": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
        "format": 1,
    }


def make_calibration(network: str = "compact_vgg_lkam") -> dict[str, Any]:
    """Return the JSON object of a `calibrate` over 25 shifts of the thresholds."""
    sweep = [
        {
            "threshold_shift": float(shift),
            "accuracy": round(0.9398 - 0.0005 * float(np.exp(1.6 * (shift + 1.2))), 4),
            "mac_fraction": float(0.28 - 0.1 * shift + 0.005 * shift**2),
            "images": 5000,
        }
        for shift in np.arange(-4, 2.01, 0.25)
    ]
    return {
        "kind": "calibration",
        "network": network,
        "sweep": sweep,
        "points": {"accurate": sweep[8], "balanced": sweep[13], "fast": sweep[17]},
        "provenance": {**PROVENANCE, "command": "tvm-dynprune calibrate artifact --json c.json"},
    }
