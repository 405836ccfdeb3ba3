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
