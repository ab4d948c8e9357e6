from __future__ import annotations

import csv
from pathlib import Path

import pytest

from annotations.errors import BeyondError
from annotations.study.importing import FIELDS, parse_map, parse_values, read_long_csv
from annotations.study.results import analyse
from tests.annotations.study.made_up import study

HEAD = "rater,item,arm,answer,correct\n"
GOOD = HEAD + "ann,a,none,yes,1\nann,b,none,no,0\nbob,a,feature,agree,true\nbob,b,feature,unsure,wrong\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "study.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_plain_form_needs_no_mapping(tmp_path: Path) -> None:
    found = read_long_csv(write(tmp_path, GOOD))
    assert found.items[["item", "verdict", "kind"]].values.tolist() == [
        ["a", "accepted", "adversarial"],
        ["b", "rejected", "adversarial"],
    ]
    given = sorted(found.answers[["item", "arm", "answer"]].values.tolist())
    assert given == [
        ["a", "feature", "yes"],
        ["a", "none", "yes"],
        ["b", "feature", "maybe"],
        ["b", "none", "no"],
    ]
    # Names stay out.
    assert set(found.answers["rater"]) == {"p1", "p2"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_columns_and_values_of_others_are_mapped(tmp_path: Path, delimiter: str) -> None:
    text = (
        "\ufeffWorkerId,stimulus,condition,resp,ms,p\nA1,x,heat,Y es,1500,0.25\nA2,x,control,nope,900,0.25\n"
    )
    found = read_long_csv(
        write(tmp_path, text.replace(",", delimiter)),
        columns=parse_map(
            [
                "rater=WorkerId",
                "item=stimulus",
                "arm=condition",
                "answer=resp",
                "milliseconds=ms",
                "confidence=p",
            ]
        ),
        values=parse_values(["arm:heat=feature", "arm:control=none", "answer:Y es=yes", "answer:nope=no"]),
        made_up=True,
    )
    assert dict(zip(found.answers["arm"], found.answers["answer"])) == {"feature": "yes", "none": "no"}
    assert dict(zip(found.answers["arm"], found.answers["seconds"])) == {"feature": 1.5, "none": 0.9}
    assert found.items["confidence"].tolist() == [0.25]
    assert found.made_up


def test_correct_may_be_of_the_rater(tmp_path: Path) -> None:
    """Whether the rater was right says, with the answer, whether the label is."""
    text = HEAD + "a,x,none,yes,1\nb,x,none,no,0\na,y,none,yes,0\nb,y,none,no,1\na,z,none,maybe,0\n"
    found = read_long_csv(write(tmp_path, text), correct="rater")
    assert dict(zip(found.items["item"], found.items["verdict"])) == {
        "x": "accepted",
        "y": "rejected",
        "z": "unjudged",
    }
    with pytest.raises(BeyondError, match=r"lines 2 and 3.*--correct rater"):
        read_long_csv(write(tmp_path, text))


def test_an_imported_study_gives_the_same_numbers(tmp_path: Path) -> None:
    found = study()
    frame = found.answers.merge(found.items, on="item")
    path = tmp_path / "long.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        names = [name for name in FIELDS if name in frame.columns]
        writer.writerow(names)
        writer.writerows(frame[names].values.tolist())
    again = read_long_csv(path, made_up=True)
    ours, theirs = analyse(found), analyse(again)
    assert theirs.measures == ours.measures
    assert theirs.contrasts == ours.contrasts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (HEAD, "no answers"),
        (
            "rater,item,answer\nr,a,yes\n",
            "no column 'arm'; name it with --map arm=COLUMN, one of rater, item",
        ),
        ("rater,rater,item,arm,answer\n", "two columns 'rater'"),
        (HEAD + "r,a,none,yes\n", "line 2: it does not have 5 cells"),
        (HEAD + "r,a,none,yes,1,2\n", "line 2: it does not have 5 cells"),
        (HEAD + "r,a,sound,yes,1\n", "line 2: arm 'sound' is none of none, feature, example"),
        (HEAD + "r,a,none,hm,1\nr,b,none,hm,1\n", r"answer 'hm' .* \(2 cells are wrong\)"),
        (HEAD + ",a,none,yes,1\n", "line 2: rater is empty"),
        (HEAD + "r,a,none,yes,often\n", "correct 'often'"),
        (HEAD + "r,a,none,yes,1\nr,a,none,no,1\n", "answered item 'a' twice"),
        (HEAD + "r,a,none,yes,1\nr,b,feature,no,1\n", "answered in 2 arms"),
        ("rater,item,arm,answer,seconds,milliseconds\nr,a,none,yes,1,1\n", "both seconds and milliseconds"),
        ("rater,item,arm,answer,seconds\nr,a,none,yes,quick\n", "seconds 'quick' is no number"),
        ("rater,item,arm,answer,shown_class\nr,a,none,yes,4.5\n", "shown_class '4.5' is no whole number"),
        (
            "rater,item,arm,answer,kind\nr,a,none,yes,sham\ns,a,none,yes,clean\n",
            "item 'a' has more than one kind",
        ),
        ('rater,item,arm,answer\n"r,a,none,yes\n', "cannot be read as CSV"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BeyondError, match=words) as error:
        read_long_csv(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    path.write_bytes(b"rater,item\n\xff\xfe")
    with pytest.raises(BeyondError, match="not UTF-8"):
        read_long_csv(path)
    with pytest.raises(BeyondError, match="no such file"):
        read_long_csv(tmp_path / "none.csv")
    with pytest.raises(BeyondError, match="no column 'who' for rater"):
        read_long_csv(write(tmp_path, GOOD), columns={"rater": "who"})


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["rater"], "maps nothing"),
        (["colour=x"], "is no field"),
        (["rater=a", "rater=b"], "mapped twice"),
    ],
)
def test_bad_maps(texts: list[str], words: str) -> None:
    with pytest.raises(BeyondError, match=words):
        parse_map(texts)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["arm=feature"], "means nothing"),
        (["rater:x=y"], "no fixed values"),
        (["arm:x=sound"], "is no arm"),
    ],
)
def test_bad_values(texts: list[str], words: str) -> None:
    with pytest.raises(BeyondError, match=words):
        parse_values(texts)
