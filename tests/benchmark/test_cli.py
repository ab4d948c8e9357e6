"""The command line: what it prints, and one clear line with the right exit status for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmark import records
from benchmark.cli import COMMANDS, beyond, main
from tests.benchmark.synthetic import jpeg, write_user_model, write_validation_images


def run(*args: str | Path) -> int:
    """Run `beyond` in this process; returns the exit status."""
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def top5(tmp_path: Path) -> Path:
    """A file of 50,000 predictions that mean nothing: five classes in a row."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "made_up.npy", (rng.integers(0, 1000, (50_000, 1)) + np.arange(5)) % 1000)
    return tmp_path / "made_up.npy"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_validation_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_user_model(tmp_path_factory.mktemp("model"))


def test_help_imports_no_torch_and_lists_every_command() -> None:
    code = (
        "import sys; from benchmark.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'pandas', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(beyond, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_scoring_predictions_imports_no_torch(top5: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from benchmark.cli import main\n"
        f"main(['score', '--predictions', {str(top5)!r}, '--out', {str(tmp_path / 'run')!r}])\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_json_is_all_there_is_on_standard_output(
    top5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score", "--predictions", top5, "--out", tmp_path / "run", "--json") == 0
    out = capsys.readouterr().out
    scorecard = json.loads(out)
    assert out == (tmp_path / "run" / "scorecard.json").read_text()
    assert scorecard["schema_version"] == 1
    metrics = scorecard["tracks"]["rectified"]["metrics"]
    predicted = np.load(top5)
    from annotations.classes import validation_labels

    assert metrics["top1"]["value"] == pytest.approx(
        (predicted[:, 0] == validation_labels()).mean(), abs=1e-12
    )
    assert metrics["top5"]["value"] == pytest.approx(
        (predicted == validation_labels()[:, None]).any(1).mean(), abs=1e-12
    )
    assert metrics["real_accuracy"]["n"] == 46_837


def test_several_files_make_one_run_each(
    top5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.npy"
    np.save(other, np.load(top5)[:, ::-1])
    assert run("score", "--predictions", top5, other, "--out", tmp_path / "runs", "--json") == 0
    names = [card["model"]["name"] for card in json.loads(capsys.readouterr().out)]
    assert names == ["made_up", "other"]
    assert (tmp_path / "runs" / "other" / "scorecard.json").is_file()


def test_rescore_from_records_alone_gives_the_same_bytes(top5: Path, tmp_path: Path) -> None:
    assert run("score", "--predictions", top5, "--out", tmp_path / "run") == 0
    first = (tmp_path / "run" / "scorecard.json").read_bytes()
    top5.unlink()
    (tmp_path / "run" / "scorecard.json").unlink()
    assert run("rescore", tmp_path / "run") == 0
    assert (tmp_path / "run" / "scorecard.json").read_bytes() == first


def test_a_model_from_a_file_is_scored_and_the_run_goes_on(
    images: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("score", model, "--images", images, "--out", tmp_path / "run", "--workers", "0", "--json")
    assert run(*command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["images"]["n"] == 40
    assert first["images"]["sample"] is True
    assert run(*command) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == first
    assert "40 images have a record already" in captured.err


def test_a_damaged_part_is_repaired_with_a_line(
    images: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("score", model, "--images", images, "--out", tmp_path / "run", "--workers", "0", "--json")
    assert run(*command) == 0
    first = capsys.readouterr().out
    (part,) = records.part_paths(tmp_path / "run" / "predictions")
    part.write_bytes(part.read_bytes()[:-100])
    assert run("rescore", tmp_path / "run") == 2
    assert "damaged" in capsys.readouterr().err
    assert run(*command) == 0
    captured = capsys.readouterr()
    assert captured.out == first
    assert "a part was damaged and is made again" in captured.err


def test_skipped_images_are_reported(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_validation_images(tmp_path / "images", 6)
    (folder / "ILSVRC2012_val_00000004.JPEG").write_bytes(b"\xff\xd8 no jpeg")
    command = ("score", model, "--images", folder, "--out", tmp_path / "run", "--workers", "0", "--json")
    assert run(*command) == 2
    assert "ILSVRC2012_val_00000004" in capsys.readouterr().err
    assert run(*command, "--on-error", "skip") == 0
    captured = capsys.readouterr()
    scorecard = json.loads(captured.out)
    assert (scorecard["images"]["n"], scorecard["images"]["skipped"]) == (5, 1)
    assert "1 images skipped" in captured.err


# ------------------------------------------------------------------------------------------------ mistakes


def check_mistake(capsys: pytest.CaptureFixture[str], says: str, *args: str | Path, status: int = 2) -> None:
    capsys.readouterr()
    assert run(*args) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    message = [line for line in captured.err.splitlines() if not line.startswith(("Usage:", "Try ")) and line]
    assert len(message) == 1, captured.err
    assert says in message[0]
    assert "Traceback" not in captured.err


def test_mistakes_in_the_command(
    capsys: pytest.CaptureFixture[str], images: Path, model: str, top5: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "run")
    score = ("score", model, *out)
    check_mistake(capsys, "no such command 'scor'; did you mean 'score'?", "scor")
    check_mistake(capsys, "nothing to score", "score")
    check_mistake(capsys, "a MODEL needs images", *score)
    check_mistake(
        capsys,
        "no such track 'rectifed'; did you mean 'rectified'?",
        *score,
        "--images",
        images,
        "--tracks",
        "rectifed",
    )
    check_mistake(capsys, "do not go together", "score", "--predictions", top5, "--images", images)
    check_mistake(capsys, "name at least one", *score, "--images", images, "--annotations", ",")
    check_mistake(capsys, "twice", "score", "--predictions", top5, *out, "--annotations", "real,real")
    check_mistake(capsys, "'reel'", "score", "--predictions", top5, *out, "--annotations", "reel")
    check_mistake(capsys, "two inputs are called 'made_up'", "score", "--predictions", top5, top5)
    check_mistake(
        capsys, "device 'cuda:99' is not available", *score, "--images", images, "--device", "cuda:99"
    )
    check_mistake(capsys, "no such run", "rescore", tmp_path / "none")
    check_mistake(capsys, "is not a run", "rescore", images)
    assert not (tmp_path / "run").exists()


def test_mistakes_in_images(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run", "--workers", "0")
    check_mistake(capsys, str(tmp_path / "none"), "score", model, "--images", tmp_path / "none", *out)
    (tmp_path / "empty").mkdir()
    check_mistake(capsys, "no images", "score", model, "--images", tmp_path / "empty", *out)
    folder = write_validation_images(tmp_path / "strange", 2)
    (folder / "ILSVRC2012_val_00050001.JPEG").write_bytes(jpeg(1))
    check_mistake(capsys, "ILSVRC2012_val_00050001", "score", model, "--images", folder, *out)


def test_mistakes_of_models(
    capsys: pytest.CaptureFixture[str], images: Path, model: str, tmp_path: Path
) -> None:
    def score(spec: str) -> tuple[str | Path, ...]:
        return ("score", spec, "--images", images, "--out", tmp_path / "run", "--workers", "0", "--overwrite")

    check_mistake(capsys, "did you mean 'efficientnet-lite", *score("efficientnet-lite"))
    check_mistake(capsys, "resnet5000", *score("timm:resnet5000"))
    check_mistake(capsys, "none.py", *score(str(tmp_path / "none.py:model")))
    check_mistake(capsys, "1001", *score(model.replace(":model", ":thousand_and_one")))
    check_mistake(
        capsys,
        "NaN or infinite logits on image 'ILSVRC2012_val_00000001'",
        *score(model.replace(":model", ":nan")),
    )


def test_resuming_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], images: Path, model: str, top5: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run("score", model, "--images", images, "--out", out, "--workers", "0") == 0
    before = (out / "scorecard.json").read_bytes()
    code = Path(model.rsplit(":", 1)[0]).read_text()
    other = tmp_path / "user_model.py"
    other.write_text(code.replace("manual_seed(7)", "manual_seed(8)"))
    check_mistake(
        capsys, "another model, weights;", "score", f"{other}:model", "--images", images, "--out", out
    )
    bigger = write_validation_images(tmp_path / "bigger", 41)
    check_mistake(capsys, "another images;", "score", model, "--images", bigger, "--out", out)
    check_mistake(
        capsys, "another setting top_k;", "score", model, "--images", images, "--out", out, "--top-k", "5"
    )
    check_mistake(capsys, "holds a run with another", "score", "--predictions", top5, "--out", out)
    assert (out / "scorecard.json").read_bytes() == before
    assert run("score", "--predictions", top5, "--out", out, "--overwrite") == 0


def test_a_run_that_is_being_written_is_left_alone(
    capsys: pytest.CaptureFixture[str], top5: Path, tmp_path: Path
) -> None:
    code = "import sys, pathlib\nfrom benchmark.runs import locked\n"
    code += f"with locked(pathlib.Path({str(tmp_path / 'run')!r})):\n"
    code += "    print('held', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        check_mistake(
            capsys, "another beyond is writing", "score", "--predictions", top5, "--out", tmp_path / "run"
        )
        holder.communicate("\n")
    assert run("score", "--predictions", top5, "--out", tmp_path / "run") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    yield from _mount(tmp_path / "small", "size=256k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written."""
    yield from _mount(tmp_path / "ro", "ro")


def _mount(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this test mounts a small file system, which takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_elsewhere_or_later(
    capsys: pytest.CaptureFixture[str], images: Path, model: str, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 200_000)
    command = ("score", model, "--images", images, "--out", small_disk / "run", "--workers", "0")
    check_mistake(capsys, "no space left on the disk", *command)
    (small_disk / "ballast").unlink()
    assert run(*command, "--top-k", "1000") == 0


def test_a_read_only_folder_is_said(
    capsys: pytest.CaptureFixture[str], top5: Path, read_only_disk: Path
) -> None:
    check_mistake(
        capsys, str(read_only_disk), "score", "--predictions", top5, "--out", read_only_disk / "run"
    )


def test_a_file_in_place_of_the_run_is_said(capsys: pytest.CaptureFixture[str], top5: Path) -> None:
    check_mistake(capsys, "is a file, not a folder", "score", "--predictions", top5, "--out", top5)


def test_an_unexpected_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "tracks", ("no.such.module:thing", ""))
    check_mistake(capsys, "internal error: ModuleNotFoundError", "tracks", status=3)


def test_an_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(beyond, "main", interrupt)
    check_mistake(capsys, "interrupted; what was finished is kept", "score", status=130)


def test_a_closed_pipe_is_no_error(top5: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m benchmark score --predictions {top5} --out {tmp_path / 'run'} --json"
    command += " | head -c 10"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == '{\n  "annot'
    assert os.path.exists(tmp_path / "run" / "scorecard.json")


def test_several_models_each_get_a_run_and_one_that_fails_loses_nobody(
    images: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.txt").write_text(f"\ufeff# two\n\n{model.replace(':model', ':nan')}   # gives NaN\n")
    options = ("--images", images, "--models", tmp_path / "models.txt", "--threads", "1")
    assert run("score", model, *options, "--out", tmp_path / "runs", "--json") == 2
    printed, said = capsys.readouterr()
    (scorecard,) = json.loads(printed)  # an array, since several were asked for
    assert scorecard["model"]["spec"] == model
    assert "nan gives NaN or infinite logits on image" in said
    assert said.splitlines()[-1].startswith("error: 1 of 2 models failed (")
    assert len(list((tmp_path / "runs").glob("*/scorecard.json"))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; write one spec a line"),
        ("# none\n", "is empty"),
        (None, "cannot read the list of models"),
    ],
)
def test_a_list_of_models_that_names_none_is_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "models.txt").write_text(text)
    assert run("score", "--models", tmp_path / "models.txt", "--images", images) == 2
    assert message in capsys.readouterr().err
