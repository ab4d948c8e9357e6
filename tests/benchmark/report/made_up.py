"""Made-up scorecards for tests of what people see. No number here is a result of any model."""

from __future__ import annotations

from benchmark.scorecard import AnnotationsInfo, Cell, ImagesInfo, Metric, ModelInfo, Scorecard, Track

Row = dict[str, Cell]

CLASSES = [
    "sunglass",
    "screen",
    "laptop",
    "missile",
    "maillot (638)",
    "tub",
    "corn",
    "crash helmet",
    "space bar",
    "cup",
    "military hat (bearskin or shako)",
    "monitor",
    "mortarboard",
    "mobile phone",
    "cassette player",
    "coffeepot",
    "bath towel",
]


def share(value: float, n: int, half: float, **more: float | int) -> Metric:
    """A metric with a made-up interval of the given half-width."""
    return Metric.model_validate(
        {
            "value": value,
            "ci_low": value - half,
            "ci_high": min(value + half, 1.0),
            "n": n,
            "method": "made up",
            **more,
        }
    )


def full(name: str = "made-up-net", class_prefix: str = "", **model: str) -> Scorecard:
    """A scorecard with everything the rectified track can hold."""
    confusions: list[Row] = [
        {
            "original_index": i,
            "original": f"{class_prefix}{a}",
            "predicted_index": i + 1,
            "predicted": b,
            "n": 33 - 2 * i,
        }
        for i, (a, b) in enumerate(
            [
                ("sunglasses", "sunglasses, dark glasses"),
                ("screen", "desktop computer"),
                ("notebook computer", "laptop"),
                ("projectile", "missile"),
                ("maillot (638)", "maillot (639)"),
                ("tub", "bathtub"),
                ("corn", "ear of corn"),
                ("crash helmet", "motor scooter"),
                ("keyboard", "space bar"),
                ("espresso", "cup"),
                ("plate", "hot pot"),
                ("desk", "monitor"),
                ("academic gown", "mortarboard"),
                ("hand-held computer", "mobile phone"),
            ]
        )
    ]
    gains: list[Row] = [
        {
            "class_index": i,
            "name": f"{class_prefix}{text}",
            "n": 40 + i,
            "standard": round(0.1 + 0.03 * i, 3),
            "rectified": round(0.88 - 0.02 * i + (0.06 if i % 3 else 0), 3),
            "gain": round(0.78 - 0.05 * i + (0.06 if i % 3 else 0), 3),
        }
        for i, text in enumerate(CLASSES)
    ]
    track = Track(
        version=1,
        metrics={
            "top1": share(0.76, 50_000, 0.0037),
            "top5": share(0.93, 50_000, 0.0022),
            "real_accuracy": share(0.83, 46_000, 0.0034),
            "top1_evaluable": share(0.785, 46_000, 0.0037),
            "rectified_error_reduction": share(0.209, 46_000, 0.009),
            "mla": share(0.851, 18_692, 0.0049),
            "mla_plain": share(0.853, 18_692, 0.0051, lower=0.853, upper=0.856, judged=18_638),
            "mla_ppi": share(0.852, 18_692, 0.0041),
            "consolidated_accuracy": share(0.842, 48_000, 0.0033, lower=0.836, upper=0.871, judged=46_500),
            "precision_at_k": share(0.744, 46_000, 0.003),
            "recall_at_k": share(0.741, 46_000, 0.003),
            "mean_average_precision": share(0.812, 46_000, 0.002),
        },
        tables={
            "standard_vs_rectified": [
                {"source": s, "n": n, "standard_error": a, "rectified_error": b, "reduction": 1 - b / a}
                | {"ci_low": 1 - b / a - 0.01, "ci_high": 1 - b / a + 0.01}
                for s, n, a, b in [
                    ("real", 46_000, 0.215, 0.17),
                    ("mla", 18_692, 0.232, 0.147),
                    ("consolidated", 48_000, 0.228, 0.158),
                ]
            ],
            "anatomy": [
                {"category": c, "n": n, "share": n / 10_000}
                for c, n in [
                    ("multi_label", 3100),
                    ("unclear", 640),
                    ("fine_grained", 2800),
                    ("same_superclass", 1150),
                    ("co_occurrence", 900),
                    ("severe", 1210),
                    ("unjudged", 200),
                ]
            ],
            "most_rectified_classes": gains,
            "accepted_confusions": confusions,
            "multilabel_quality": [
                {
                    "source": "real",
                    "n": 46_000,
                    "precision": 0.744,
                    "recall": 0.741,
                    "mean_average_precision": 0.812,
                },
                {
                    "source": "mla",
                    "n": 18_692,
                    "precision": 0.701,
                    "recall": 0.698,
                    "mean_average_precision": None,
                },
            ],
            "sources": [
                {
                    "source": "real",
                    "revision": "timm 1.0",
                    "images": 50_000,
                    "evaluable": 46_000,
                    "accepted": 57_000,
                }
                | {"unsure": 0, "rejected": 0, "judged_share": 1.0},
                {
                    "source": "mla",
                    "revision": "c0ffee",
                    "images": 20_000,
                    "evaluable": 18_692,
                    "accepted": 24_000,
                }
                | {"unsure": 9_000, "rejected": 120_000, "judged_share": 0.9971},
            ],
        },
        notes=["MLA is a mean over classes, ReaL a mean over images; the two are never compared."],
    )
    return Scorecard(
        model=ModelInfo.model_validate(
            {
                "name": name,
                "spec": "timm:made_up",
                "weights_sha256": "0" * 64,
                "parameters": 25_557_032,
                "preprocessing": {"input_size": [224, 224], "interpolation": "bicubic"},
                **model,
            }
        ),
        images=ImagesInfo(name="made-up images", n=50_000, fingerprint="f" * 64),
        annotations=AnnotationsInfo(sources={"real": "timm 1.0", "mla": "c0ffee"}),
        provenance={"beyond": "0.1.0", "dtype": "float32", "seed": 0},
        tracks={"rectified": track},
    )


def tiny() -> Scorecard:
    """Like a scorecard of the twenty sample photographs: few metrics, wide intervals, short tables."""
    track = Track(
        version=1,
        metrics={
            "top1": share(0.9, 20, 0.2),
            "top5": share(1.0, 20, 0.16),
            "sample_accuracy": share(0.88, 17, 0.22, lower=0.82, upper=0.94, judged=15),
        },
        tables={
            "standard_vs_rectified": [
                {
                    "source": "sample",
                    "n": 17,
                    "standard_error": 0.1176,
                    "rectified_error": 0.12,
                    "reduction": -0.02,
                }
            ],
            "anatomy": [
                {"category": "severe", "n": 1, "share": 0.5},
                {"category": "unclear", "n": 1, "share": 0.5},
            ],
            "most_rectified_classes": [],
        },
    )
    return Scorecard(
        model=ModelInfo(name="tiny", spec="tiny"),
        images=ImagesInfo(name="sample", n=20, fingerprint="e" * 64, sample=True),
        annotations=AnnotationsInfo(sources={"sample": "1"}),
        tracks={"rectified": track},
    )


def bare() -> Scorecard:
    """A scorecard with nothing scored."""
    return Scorecard(
        model=ModelInfo(name="bare", spec="preds.npy"),
        images=ImagesInfo(name="none", n=0, fingerprint="d" * 64),
        annotations=AnnotationsInfo(),
    )
