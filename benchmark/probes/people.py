"""What people answered on cue-conflict images, and how to compare answers with theirs.

Reads the published files of Geirhos et al. 2019, one a person, with the columns subj, object_response,
category and imagename (`0001_s5n_s01_0_bird_00_bird3-bird2.png`); more columns are ignored. A person who did
not answer in time has the response `na`, which is neither the shape nor the texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from annotations.errors import BeyondError
from benchmark.statistics import FloatArray, Interval, percentile, seeded

COLUMNS = ("subj", "object_response", "category", "imagename")
NO_ANSWER = "na"
RESAMPLES = 2000

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Answers of P people to I images.

    Attributes:
        people: object (P,) of str, pseudonyms as published, sorted.
        image_ids: object (I,) of str, sorted.
        response: object (P, I) of str, None where a person did not see an image.
    """

    people: npt.NDArray[np.object_]
    image_ids: npt.NDArray[np.object_]
    response: npt.NDArray[np.object_]

    @property
    def seen(self) -> Bools:
        """Which person saw which image: bool (P, I)."""
        return np.asarray(self.response != None, dtype=bool)  # noqa: E711 - elementwise

    def of(self, image_ids: npt.NDArray[np.object_]) -> Answers:
        """The answers to these images, in this order; images that nobody saw are None throughout."""
        at = pd.Index(self.image_ids).get_indexer(pd.Index(image_ids))
        response = self.response[:, at].copy()
        response[:, at < 0] = None
        return Answers(self.people, image_ids, response)


def read_answers(folder: Path) -> Answers:
    """Read the published answers: every `*.csv` in a folder.

    Raises:
        BeyondError: There is none, a column is missing, an image name has no shape and texture, or a person
            answers an image twice.
    """
    files = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if not files:
        raise BeyondError(f"{folder} holds no *.csv of people's answers; give the folder of human trials")
    frames = []
    for file in files:
        try:
            frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
        except (ValueError, UnicodeDecodeError) as error:
            raise BeyondError(f"{file} cannot be read as CSV: {error}") from None
        missing = [name for name in COLUMNS if name not in frame]
        if missing:
            raise BeyondError(f"{file} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
        frames.append(frame[list(COLUMNS)])
    table = pd.concat(frames, ignore_index=True)
    # What precedes the last underscore numbers the trial and names the condition.
    table["image_id"] = [Path(name.rsplit("_", 1)[-1]).stem for name in table["imagename"]]
    for image_id, category in zip(table["image_id"], table["category"]):
        if not image_id.startswith(category) or "-" not in image_id:
            raise BeyondError(
                f"{folder}: image {image_id!r} is listed under {category!r}; names are shapeN-textureM.png"
            )
    return answers_from_table(table, where=str(folder))


def answers_from_table(table: pd.DataFrame, *, where: str) -> Answers:
    """Answers from rows of subj, image_id and object_response.

    Raises:
        BeyondError: A person answers an image twice, or there are no rows.
    """
    if not len(table):
        raise BeyondError(f"{where} holds no answers")
    twice = table.duplicated(["subj", "image_id"])
    if twice.any():
        row = table[twice].iloc[0]
        raise BeyondError(
            f"{where}: {row['subj']} answers {row['image_id']} twice; keep one answer a person and image"
        )
    people, person = np.unique(table["subj"].to_numpy(dtype=object), return_inverse=True)
    ids, image = np.unique(table["image_id"].to_numpy(dtype=object), return_inverse=True)
    response = np.full((len(people), len(ids)), None, dtype=object)
    response[person, image] = table["object_response"].to_numpy(dtype=object)
    return Answers(people, ids, response)


def shape_bias(shape: npt.ArrayLike, texture: npt.ArrayLike) -> FloatArray:
    """Shape decisions over shape and texture decisions (Geirhos et al. 2019); NaN where there are none."""
    shape, texture = np.asarray(shape, dtype=np.float64), np.asarray(texture, dtype=np.float64)
    total = shape + texture
    return np.asarray(np.divide(shape, total, out=np.full(total.shape, np.nan), where=total > 0))


@dataclass(frozen=True)
class PeoplesBias:
    """Shape bias of people, with intervals over people and images.

    Attributes:
        pooled: Of all decisions together.
        pooled_interval: Its interval.
        mean: Mean over people of each person's.
        mean_interval: Its interval.
        trials: Number of trials, on images whose cues differ.
        people: Number of people.
    """

    pooled: float
    pooled_interval: Interval
    mean: float
    mean_interval: Interval
    trials: int
    people: int


def peoples_bias(shape: Bools, texture: Bools, seen: Bools) -> PeoplesBias:
    """Shape bias of people; the interval resamples people and images (Owen 2007, Ann. Appl. Stat. 1:386).

    Args:
        shape: bool (P, I), whether a person's answer is the shape; images whose cues differ alone.
        texture: bool (P, I), whether it is the texture.
        seen: bool (P, I), whether the person saw the image.
    """
    s, t = shape.astype(np.float64), texture.astype(np.float64)
    people, images = resampled(s.shape, seeded("shape bias", shape, texture))
    # (B, P): decisions of each person on the resampled images.
    bs, bt = images @ s.T, images @ t.T
    pooled = shape_bias((people * bs).sum(axis=1), (people * bt).sum(axis=1))
    own = shape_bias(bs, bt)
    mean = _weighted_mean(own, people)
    each = shape_bias(s.sum(axis=1), t.sum(axis=1))
    return PeoplesBias(
        pooled=float(shape_bias(s.sum(), t.sum())),
        pooled_interval=percentile(pooled),
        mean=_mean(each),
        mean_interval=percentile(mean),
        trials=int(seen.sum()),
        people=int(seen.any(axis=1).sum()),
    )


def error_consistency(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> FloatArray:
    """Error consistency: Cohen's κ of being right (Geirhos, Meding & Wichmann 2020, eq. 1–3).

    κ = (c_obs − c_exp) / (1 − c_exp), where c_obs is the share of images that both get right or both get
    wrong, and c_exp = p_a p_b + (1 − p_a)(1 − p_b) is what independent errors would give. 1 where they
    always agree, as in the authors' code.

    Args:
        correct_a: bool (…, I), whether a is right on each image.
        correct_b: bool (…, I), whether b is.

    Returns:
        float (…), in [−1, 1]; NaN without images.

    Example:
        >>> round(float(error_consistency([1, 1, 0, 0, 1], [1, 0, 0, 1, 1])), 4)
        0.1667
    """
    a, b = np.broadcast_arrays(np.asarray(correct_a, np.float64), np.asarray(correct_b, np.float64))
    n = np.full(a.shape[:-1], float(a.shape[-1]))
    return _kappa((a * b).sum(axis=-1), a.sum(axis=-1), b.sum(axis=-1), n)


def _kappa(both: FloatArray, right_a: FloatArray, right_b: FloatArray, n: FloatArray) -> FloatArray:
    """κ from weighted counts: images both get right, each gets right, and all."""
    with np.errstate(invalid="ignore", divide="ignore"):
        pa, pb = right_a / n, right_b / n
        observed = 1 - pa - pb + 2 * both / n
        expected = pa * pb + (1 - pa) * (1 - pb)
        # Counts of whole images: agreement is complete when nobody is right alone.
        complete = np.isclose(right_a + right_b, 2 * both, rtol=0, atol=1e-9)
        return np.asarray(
            np.where(n > 0, np.where(complete, 1.0, (observed - expected) / (1 - expected)), np.nan)
        )


@dataclass(frozen=True)
class Consistency:
    """Error consistency with people.

    Attributes:
        each: float (P,), with each person, NaN for one who saw none of the images.
        mean: Mean over people.
        interval: Of the mean, over people and images.
        among_people: Mean over pairs of people, the value to compare with; NaN with one person.
        among_interval: Its interval.
        images: Number of images behind it.
    """

    each: FloatArray
    mean: float
    interval: Interval
    among_people: float
    among_interval: Interval
    images: int


def consistency_with_people(correct: Bools, people_correct: Bools, seen: Bools) -> Consistency:
    """Mean error consistency of a model with people, and of people with each other.

    Args:
        correct: bool (I,), whether the model is right.
        people_correct: bool (P, I), whether each person is.
        seen: bool (P, I), whether the person saw the image.
    """
    people, images = resampled(seen.shape, seeded("error consistency", correct, people_correct, seen))
    one = np.ones((1, seen.shape[1]))
    c, s, m = people_correct.astype(np.float64) * seen, seen.astype(np.float64), correct.astype(np.float64)

    def with_model(w: FloatArray) -> FloatArray:
        return _kappa(w @ (m * c).T, w @ (m * s).T, w @ c.T, w @ s.T)

    i, j = np.triu_indices(len(seen), k=1)
    shared = s[i] * s[j]

    def among(w: FloatArray) -> FloatArray:
        return _kappa(w @ (c[i] * c[j]).T, w @ (c[i] * shared).T, w @ (c[j] * shared).T, w @ shared.T)

    each = with_model(one)[0]
    between = among(one)[0]
    # A person drawn twice would agree with themself: such pairs are left out, as i ≠ j already says.
    return Consistency(
        each=each,
        mean=_mean(each),
        interval=percentile(_weighted_mean(with_model(images), people)),
        among_people=_mean(between),
        among_interval=(
            percentile(_weighted_mean(among(images), people[:, i] * people[:, j]))
            if np.isfinite(between).any()
            else Interval(np.asarray(np.nan), np.asarray(np.nan))
        ),
        images=int(seen.any(axis=0).sum()),
    )


def resampled(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """How often each person (B, P) and each image (B, I) is drawn, independently of each other."""
    people, images = shape
    return (
        rng.multinomial(people, np.full(people, 1 / people), size=RESAMPLES).astype(np.float64),
        rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(np.float64),
    )


def _mean(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _weighted_mean(values: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean of the last axis, leaving out NaN; NaN where nothing has weight."""
    known = np.where(np.isfinite(values), weight, 0.0)
    total = known.sum(axis=-1)
    product = (known * np.where(np.isfinite(values), values, 0.0)).sum(axis=-1)
    return np.asarray(np.divide(product, total, out=np.full(total.shape, np.nan), where=total > 0))
