"""What reads input from outside: for each reader a sound example of each form, and how to spoil it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from annotations import hub, publish, sources
from annotations.campaign import database, exchange, making
from annotations.classes import validation_id, validation_labels
from annotations.errors import BeyondError
from annotations.judgements import IMAGES_FILE, JUDGEMENTS_FILE
from benchmark import prediction_files, records, runs, scorecard
from benchmark.attack_records import read_attacks
from benchmark.criticism import attributes
from benchmark.criticism import records as criticism
from benchmark.explanations import pack, selection
from benchmark.images import open_image_set, read_ids
from benchmark.probes import people
from benchmark.radii import parse_radius
from leaderboard import correctness, destinations, entries, masks, review
from leaderboard.records import check_bounds
from tests.fuzz import damage

ROOT = Path(__file__).resolve().parents[2]
RESNET = ROOT / "leaderboard" / "entries" / "resnet50"


@dataclass(frozen=True)
class Target:
    """A reader and a file for it.

    Attributes:
        name: What is read.
        file: Path of the spoilt file, below the folder that `read` gets.
        sound: A file that is read without complaint.
        read: Reads the folder, or the file in it.
        damage: How to spoil it, beside by bytes.
        beside: Other files that the reader needs, left as they are.
    """

    name: str
    file: str
    sound: Callable[[], bytes]
    read: Callable[[Path], object]
    damage: Callable[[Random, bytes], bytes] | None = None
    beside: Callable[[], dict[str, bytes]] = dict
    checksum: bool = False

    def spoil(self, rng: Random) -> bytes:
        """A spoilt file."""
        if self.damage is not None and rng.random() < 0.6:
            return self.damage(rng, self.sound())
        return damage.bytes_of(rng, self.sound())

    def write(self, folder: Path, data: bytes) -> None:
        """Put the spoilt file and what belongs to it into a folder."""
        for name, other in self.beside().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(other)
        name = self.file
        if self.checksum:  # a part is named after its bytes, or nobody would look into it
            name = name.replace("SUM", hashlib.sha256(data).hexdigest()[:16])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


# Sound examples ------------------------------------------------------------------------------------------


def label(number: int) -> int:
    return int(validation_labels()[number - 1])


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def text(*lines: str) -> Callable[[], bytes]:
    return lambda: ("\n".join(lines) + "\n").encode()


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


@cache
def predictions() -> records.Predictions:
    numbers = range(1, 5)
    logits = np.array([[3, 2, 1], [9, 8, 0], [1, 0, -1], [5, 4, 3]], dtype=np.float32)
    return records.Predictions(
        np.array([validation_id(n) for n in numbers], dtype=object),
        np.array([label(n) for n in numbers], dtype=np.int16),
        np.array([[65, 1, 2], [970, 3, 4], [230, 5, 6], [809, 7, 8]], dtype=np.int16),
        logits,
        np.log(np.exp(logits).sum(axis=1)),
    )


def numpy_file() -> bytes:
    sink = io.BytesIO()
    np.save(sink, predictions().classes)
    return sink.getvalue()


@cache
def label_sets() -> dict[str, bytes]:
    judgements = pa.table(
        {
            "image_id": [validation_id(1), validation_id(1), validation_id(2)],
            "class_index": pa.array([65, 58, 970], pa.int16()),
            "verdict": ["accepted", "rejected", "unsure"],
            "score": pa.array([1.0, 0.0, 0.5], pa.float32()),
            "votes": pa.array([5, 5, 5], pa.int16()),
            "source": ["x", "x", "x"],
        }
    )
    images = pa.table(
        {
            "image_id": [validation_id(1), validation_id(2)],
            "original_label": pa.array([label(1), label(2)], pa.int16()),
            "status": ["evaluable", "excluded"],
            "closed_world": [True, False],
        }
    )
    return {JUDGEMENTS_FILE: parquet(judgements), IMAGES_FILE: parquet(images)}


def source_facts() -> bytes:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in label_sets().items()}
    return dump({"source": "x", "revision": "1", "sha256": sums})


def run_json() -> bytes:
    info = runs.RunInfo(
        model=scorecard.ModelInfo(name="m", spec="m", source={"a": "b"}),
        images=scorecard.ImagesInfo(name="i", n=4, fingerprint="0" * 64, sample=True),
        settings={"dtype": "float32"},
    )
    return info.model_dump_json().encode()


@cache
def attack_part() -> bytes:
    from benchmark.attack_records import ROWS_SCHEMA

    known = {"threat": "linf", "status": "robust", "objective": "original", "image_id": validation_id(1)}
    values: dict[str, Any] = {}
    for field in ROWS_SCHEMA:
        kind = field.type
        if pa.types.is_list(kind):
            values[field.name] = pa.array([[1, 2]], kind)
        elif pa.types.is_string(kind):
            values[field.name] = pa.array([known.get(field.name, "x")], kind)
        elif pa.types.is_boolean(kind):
            values[field.name] = pa.array([True], kind)
        else:
            values[field.name] = pa.array([1], pa.int64()).cast(kind)
    return parquet(pa.table(values, schema=ROWS_SCHEMA))


@cache
def criticism_part() -> bytes:
    values = {}
    for field in criticism.SCHEMA:
        kind = field.type
        odd = {"status": criticism.STATUSES[0], "image_id": validation_id(1)}
        if pa.types.is_string(kind):
            values[field.name] = pa.array([odd.get(field.name, "x")], kind)
        elif pa.types.is_boolean(kind):
            values[field.name] = pa.array([True], kind)
        else:
            values[field.name] = pa.array([1], pa.int64()).cast(kind)
    return parquet(pa.table(values, schema=criticism.SCHEMA))


@cache
def votes() -> bytes:
    return parquet(
        pa.table(
            {
                "question_id": pa.array([1, 1], pa.int64()),
                "image_id": [validation_id(1)] * 2,
                "class_index": pa.array([65, 65], pa.int16()),
                "rater": ["a", "b"],
                "answer": ["yes", "no"],
                "arm": ["", ""],
                "gold": [False, False],
                "response_ms": pa.array([900, None], pa.int32()),
                "sampling_probability": pa.array([1.0, 1.0], pa.float32()),
            }
        )
    )


def label_studio() -> bytes:
    result = {"from_name": "answer", "to_name": "image", "type": "choices", "value": {"choices": ["yes"]}}
    annotation = {"completed_by": {"email": "a@b"}, "result": [result], "lead_time": 1.5}
    data = {"question_id": 1, "image_id": validation_id(1), "class_index": 65}
    return dump([{"data": data, "annotations": [annotation]}])


def label_errors() -> bytes:
    tally = {"given": 1, "guessed": 4, "both": 0, "neither": 0}
    guessed = (label(1) + 1) % 1000
    return dump([{"id": 1, "given_original_label": label(1), "our_guessed_label": guessed, "mturk": tally}])


def correct_bits() -> bytes:
    found = correctness.Correctness.of(
        predictions().image_ids,
        {"top1": np.array([True, False, True, True])},
        annotations={},
    )
    return found.to_bytes()


def review_json() -> bytes:
    return review.Review(entries=[], notes=[], passed=True).model_dump_json().encode()


def table_of_images() -> bytes:
    image = pa.array(
        [{"bytes": b"x", "path": f"{validation_id(1)}.JPEG"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    return parquet(pa.table({"image": image, "label": pa.array([label(1)], pa.int64())}))


def tar_of_images() -> bytes:
    import tarfile

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in (
            ("a.jpg", b"x" * 10),
            ("a.cls", b"5"),
            ("b.jpg", b"y"),
            ("b.cls", b"7"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def safetensors_file() -> bytes:
    from safetensors.numpy import save

    return save({"a": np.zeros((2, 2), np.float32)})


def torch_file() -> bytes:
    import torch

    sink = io.BytesIO()
    torch.save({"a": torch.zeros(2, 2)}, sink)
    return sink.getvalue()


def pack_manifest() -> bytes:
    picture = b"\x89PNG"
    name = f"{hashlib.sha256(picture).hexdigest()}.png"
    item = pack.item_name("x", "clean", 1)
    fields = {
        "item": item,
        "image_id": "x",
        "kind": "clean",
        "shown_class": 1,
        "original_label": 1,
    }
    return dump(
        {
            "manifest_version": pack.MANIFEST_VERSION,
            "model": {},
            "images": {"name": "i", "n": 1, "fingerprint": "0", "sample": True},
            "settings": {},
            "versions": {},
            "items": [fields],
            "pictures": [{"item": item, "arm": "none", "file": name}],
        }
    )


ABOUT = {name: "text" for name, field in publish.About.model_fields.items() if field.annotation is str}


def load_weights(path: Path) -> object:
    from benchmark.models.weights import load_weights as load

    return load(path)


def scorecard_file() -> bytes:
    return (RESNET / "scorecard.json").read_bytes()


def entry(folder: Path) -> object:
    return entries.read_entry(folder / "resnet50")


def entry_files() -> dict[str, bytes]:
    return {f"resnet50/{path.name}": path.read_bytes() for path in RESNET.iterdir()}


def resealed(folder: Path) -> object:
    """An entry whose scorecard was spoilt and whose hash was made to fit, as an attacker would."""
    path = folder / "resnet50" / "entry.yaml"
    values = yaml.safe_load(path.read_bytes())
    data = (folder / "resnet50" / "scorecard.json").read_bytes()
    values["sha256"]["scorecard"] = hashlib.sha256(data).hexdigest()
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    found = entries.read_entry(path.parent)
    return found


def every(run: Path) -> object:
    return [part.to_arrow() for part in records.iter_predictions(run)]


def opened(spec: Callable[[Path], Path]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        images = open_image_set(str(spec(folder)))
        return [handle.read() for chunk in images.chunks(8) for handle in chunk.handles]

    return read


def at(name: str, reader: Callable[..., object], **options: Any) -> Callable[[Path], object]:
    return lambda folder: reader(folder / name, **options)


NUMBERS = [validation_id(number) for number in range(1, 5)]

TARGETS = [
    Target(
        "scorecard",
        "scorecard.json",
        scorecard_file,
        at("scorecard.json", scorecard.read_scorecard),
        damage.json_of,
    ),
    Target("run.json", "run.json", run_json, runs.read_run, damage.json_of),
    Target(
        "entry.yaml",
        "e/entry.yaml",
        (RESNET / "entry.yaml").read_bytes,
        at("e/entry.yaml", entries.read_info),
        damage.yaml_of,
    ),
    Target(
        "entry", "resnet50/entry.yaml", (RESNET / "entry.yaml").read_bytes, entry, damage.yaml_of, entry_files
    ),
    Target(
        "scorecard of an entry",
        "resnet50/scorecard.json",
        scorecard_file,
        resealed,
        damage.json_of,
        entry_files,
    ),
    Target(
        "bits",
        "c.bits",
        correct_bits,
        lambda f: correctness.Correctness.from_bytes((f / "c.bits").read_bytes()),
    ),
    Target(
        "masks", "m.bits", lambda: masks.load_masks().to_bytes(), at("m.bits", masks.load_masks.__wrapped__)
    ),
    Target(
        "review",
        "r.json",
        review_json,
        lambda f: review.to_markdown(review.read_review(f / "r.json")),
        damage.json_of,
    ),
    Target(
        "predictions.csv",
        "p.csv",
        text(
            "file_name,predicted_class,predicted_probability",
            *(f"{i}.JPEG,{n},0.{n}" for n, i in enumerate(NUMBERS)),
        ),
        at("p.csv", prediction_files.read_prediction_file),
        damage.csv_of,
    ),
    Target(
        "predictions.parquet",
        "p.parquet",
        lambda: parquet(predictions().to_arrow()),
        at("p.parquet", prediction_files.read_prediction_file),
        damage.table_of,
    ),
    Target(
        "predictions.npy",
        "p.npy",
        numpy_file,
        lambda f: prediction_files.read_prediction_file(f / "p.npy", ids_file=f / "ids.txt"),
        None,
        lambda: {"ids.txt": "\n".join(NUMBERS).encode()},
    ),
    Target(
        "ids of predictions",
        "ids.txt",
        text(*NUMBERS),
        lambda f: prediction_files.read_prediction_file(f / "p.npy", ids_file=f / "ids.txt"),
        None,
        lambda: {"p.npy": numpy_file()},
    ),
    Target("ids", "ids.txt", text(*NUMBERS), at("ids.txt", read_ids)),
    Target(
        "records",
        "predictions/part-00000-SUM.parquet",
        lambda: parquet(predictions().to_arrow()),
        every,
        damage.table_of,
        checksum=True,
    ),
    Target(
        "skipped",
        "skipped/part-00000-SUM.parquet",
        lambda: parquet(pa.table({"image_id": ["a"], "reason": ["b"]})),
        runs.skipped_images,
        damage.table_of,
        checksum=True,
    ),
    Target(
        "finished",
        "predictions/part-00000-SUM.parquet",
        lambda: parquet(predictions().to_arrow()),
        runs.finished_ids,
        damage.table_of,
        checksum=True,
    ),
    Target(
        "bounds of records",
        "predictions/part-00000-SUM.parquet",
        lambda: parquet(predictions().to_arrow()),
        check_bounds,
        damage.table_of,
        lambda: {"run.json": run_json()},
        checksum=True,
    ),
    Target(
        "attacks",
        "robustness/part-00000-SUM.parquet",
        attack_part,
        read_attacks,
        damage.table_of,
        checksum=True,
    ),
    Target(
        "distances",
        "criticism/part-00000-SUM.parquet",
        criticism_part,
        criticism.read_table,
        damage.table_of,
        checksum=True,
    ),
    Target(
        "judgements",
        JUDGEMENTS_FILE,
        lambda: label_sets()[JUDGEMENTS_FILE],
        sources.read_folder,
        damage.table_of,
        label_sets,
    ),
    Target(
        "images of judgements",
        IMAGES_FILE,
        lambda: label_sets()[IMAGES_FILE],
        sources.read_folder,
        damage.table_of,
        label_sets,
    ),
    Target("source.json", "source.json", source_facts, sources.read_folder, damage.json_of, label_sets),
    Target(
        "mla",
        "m.csv",
        lambda: (
            "id,original_label,proposed_labels,unclear_multi_labels,wrong_multi_labels,is_problematic\n"
            f'{validation_id(1)},{label(1)},"{label(1)},3",4,"5,6",False\n'
            f"{validation_id(2)},{label(2)},{label(2)},,,True\n"
        ).encode(),
        at("m.csv", sources.read_mla),
        damage.csv_of,
    ),
    Target("label errors", "l.json", label_errors, at("l.json", sources.read_label_errors), damage.json_of),
    Target(
        "attributes.csv",
        "a.csv",
        text(
            "image_id,attribute,value,kind,raters,consent_version,aggregation",
            f"{validation_id(1)},weather,rain,scene,,,",
            f"{validation_id(2)},perceived_age,old,person,5,1,majority",
        ),
        at("a.csv", attributes.read_file),
        damage.csv_of,
    ),
    Target(
        "attributes.parquet",
        "a.parquet",
        lambda: parquet(pa.table({"image_id": ["a", "b"], "attribute": ["w", "w"], "value": ["x", "y"]})),
        at("a.parquet", attributes.read_file),
        damage.table_of,
    ),
    Target(
        "pairs.csv",
        "p.csv",
        text("image_id,class_index,priority,sampling_probability,reason,arm", "a,1,0.5,0.5,r,", "b,2,1,1,,"),
        at("p.csv", making.read_pairs),
        damage.csv_of,
    ),
    Target(
        "pairs.parquet",
        "p.parquet",
        lambda: parquet(
            pa.table(
                {"image_id": ["a", "b"], "class_index": pa.array([1, 2], pa.int16()), "priority": [0.1, None]}
            )
        ),
        at("p.parquet", making.read_pairs),
        damage.table_of,
    ),
    Target(
        "gold.csv",
        "g.csv",
        text("image_id,class_index,expected,practice,explanation", "a,1,yes,true,x", "b,2,no,,"),
        at("g.csv", making.read_gold),
        damage.csv_of,
    ),
    Target(
        "gold.parquet",
        "g.parquet",
        lambda: parquet(
            pa.table(
                {
                    "image_id": ["a"],
                    "class_index": pa.array([1], pa.int16()),
                    "expected": ["yes"],
                    "explanation": ["x"],
                }
            )
        ),
        at("g.parquet", making.read_gold),
        damage.table_of,
    ),
    Target(
        "campaign settings",
        "c.yaml",
        text("name: x", "votes: 5", "accept_at: 4"),
        lambda f: making.read_config(f / "c.yaml", {}),
        damage.yaml_of,
    ),
    Target("votes", "v.parquet", votes, at("v.parquet", publish.read_votes), damage.table_of),
    Target(
        "imported votes",
        "v.parquet",
        votes,
        at("v.parquet", exchange.read_votes, kind="parquet"),
        damage.table_of,
    ),
    Target(
        "Label Studio",
        "l.json",
        label_studio,
        at("l.json", exchange.read_votes, kind="label-studio"),
        damage.json_of,
    ),
    Target(
        "MTurk",
        "m.csv",
        text(
            "WorkerId,Input.question_id,Answer.answer,WorkTimeInSeconds,AssignmentStatus,Answer.taskAnswers",
            "w,1,yes,5.5,Approved,",
            'v,1,,²,Approved,"[{""answer"": {""label"": ""no""}}]"',
        ),
        at("m.csv", exchange.read_votes, kind="mturk"),
        damage.csv_of,
    ),
    Target(
        "about",
        "a.yaml",
        lambda: yaml.safe_dump(ABOUT).encode(),
        at("a.yaml", publish.read_about),
        damage.yaml_of,
    ),
    Target(
        "human trials",
        "t/a.csv",
        text(",".join(people.COLUMNS), "subject-01,cat,cat,cat1-dog2.png"),
        at("t", people.read_answers),
        damage.csv_of,
    ),
    Target(
        "pack",
        "manifest.json",
        pack_manifest,
        pack.read_pack,
        damage.json_of,
        lambda: {f"{hashlib.sha256(b'PNG').hexdigest()}.png": b"PNG"},
    ),
    Target(
        "labels.csv",
        "labels.csv",
        text("image_id,class_index,wnid", "a,5,", "b,7,"),
        opened(lambda f: f),
        damage.csv_of,
        lambda: {"a.jpg": b"x", "b.jpg": b"y"},
    ),
    Target(
        "table of images", "t.parquet", table_of_images, opened(lambda f: f / "t.parquet"), damage.table_of
    ),
    Target(
        "saved dataset",
        "state.json",
        lambda: dump({"_data_files": [{"filename": "data.arrow"}]}),
        opened(lambda f: f),
        damage.json_of,
    ),
    Target(
        "splits",
        "dataset_dict.json",
        lambda: dump({"splits": ["validation"]}),
        opened(lambda f: f),
        damage.json_of,
    ),
    Target("tar shard", "t.tar", tar_of_images, opened(lambda f: f / "t.tar")),
    Target("safetensors", "w.safetensors", safetensors_file, at("w.safetensors", load_weights)),
    Target("weights", "w.pth", torch_file, at("w.pth", load_weights)),
]


def slug(text: str) -> object:
    try:
        return entries.check_slug(text)
    except ValueError as error:  # its callers are validators, where this is the way to refuse
        raise BeyondError(str(error)) from None


def load_spec(spec: str) -> object:
    from benchmark.models import load

    return load(spec)


SPECS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "radius": (parse_radius, ["4/255", "0.5", "1e-3"]),
    "mix": (selection.parse_mix, ["1:1:1", "2,1,1", "50/25/25"]),
    "Hub dataset": (hub.parse, ["hub:org/name@v1", "org/name"]),
    "database": (database.parse_url, ["campaign.db", "postgresql://u:p@h:5/d?a=b", "sqlite:///x.db"]),
    "records of an entry": (
        lambda spec: destinations.parse_records(spec, "slug"),
        ["hub:org/name@" + "0" * 40 + ":records/x"],
    ),
    "slug": (slug, ["resnet50", "a.b_c-d"]),
    "annotations": (
        lambda spec: sources.load(spec, offline=True),
        ["mla=x.csv", "consolidated:real+mla", "hub:org/name@" + "0" * 40, "./folder", "label-errors=l.json"],
    ),
    "annotations, several": (sources.split_specs, ["real,mla=labels.csv", "a,b,c"]),
    "model": (
        load_spec,
        [
            "timm:no_such",
            "torchvision:no@SUCH",
            "file.py:factory",
            "efficientnet-lite9",
            "hf:org",
            "timm:x@y.safetensors",
        ],
    ),
    "images": (open_image_set, ["sample:", "hf:org", "no/such/folder", "hf::", "x.tar"]),
    "image id": (prediction_files.image_id_of, ["val/n01440764/ILSVRC2012_val_00000293.JPEG"]),
}


def spoilt_text(rng: Random, examples: list[str]) -> str:
    """An example spoilt by bytes, or odd characters before or after it."""
    example = rng.choice(examples)
    if rng.random() < 0.5:
        return damage.bytes_of(rng, example.encode()).replace(b"\0", b"").decode("utf-8", "surrogateescape")
    odd = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(0, 6)))
    return rng.choice([odd + example, example + odd, odd, rng.choice(ARGUMENTS)])


# What can be an argument of a command: no NUL, and surrogates only where bytes were no UTF-8.
ARGUMENTS = [text for text in damage.TEXTS if "\0" not in text and "\ud800" not in text]
CHARACTERS = "\n\t /\\:@=+,.-~%$#?*[]{}()<>|&;'\"0\u0661\u00b2\u00e9\u202e\udcff\U0001f600aZ"
