"""Weights are read without running anything, and pinned by a fingerprint."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from annotations.errors import BeyondError
from benchmark.models import fingerprint, load, load_weights
from benchmark.models.weights import check_classes, download


class Payload:
    """What an attacker would put into a checkpoint: unpickling it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_the_payload_is_a_real_one(tmp_path: Path) -> None:
    """Otherwise the tests below would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["evil.pth", "evil.bin", "evil.pt"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_pickled_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, nested: bool, forced: bool
) -> None:
    if forced:  # torch's own switch to unsafe loading must not reach us
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, ran = tmp_path / name, tmp_path / "ran"
    tensors = {"conv1.weight": torch.zeros(2)}
    torch.save({"state_dict": tensors, "extra": Payload(ran)} if nested else Payload(ran), path)
    with pytest.raises(BeyondError, match=rf"{name} is refused: it holds pickled Python objects .*system"):
        load_weights(path)
    assert not ran.exists()


@pytest.mark.parametrize("spec", ["timm:resnet18@{}", "torchvision:resnet18@{}"])
def test_every_way_in_refuses_pickled_code(tmp_path: Path, spec: str) -> None:
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"fc.weight": Payload(ran)}, path)
    with pytest.raises(BeyondError, match=r"evil\.pth is refused"):
        load(spec.format(path))
    assert not ran.exists()


def test_bare_pickle_and_old_tar_are_refused(tmp_path: Path) -> None:
    bare, tar, ran = tmp_path / "bare.pth", tmp_path / "old.pth", tmp_path / "ran"
    bare.write_bytes(pickle.dumps({"w": Payload(ran)}))
    (tmp_path / "storages").write_bytes(pickle.dumps(Payload(ran)))
    (tmp_path / "pickle").write_bytes(pickle.dumps(Payload(ran)))
    with tarfile.open(tar, "w") as archive:
        for member in ("storages", "pickle"):
            archive.add(tmp_path / member, member)
    for path in (bare, tar):
        with pytest.raises(BeyondError, match=path.name):
            load_weights(path)
    assert not ran.exists()


def test_a_pickle_named_safetensors_is_no_way_around(tmp_path: Path) -> None:
    path, ran = tmp_path / "evil.safetensors", tmp_path / "ran"
    torch.save(Payload(ran), path)
    with pytest.raises(BeyondError, match="not a sound safetensors file"):
        load_weights(path)
    assert not ran.exists()


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_are_unwrapped(tmp_path: Path, key: str | None, prefix: str) -> None:
    tensors = {f"{prefix}a": torch.arange(3.0), f"{prefix}b": torch.ones(2, 2, dtype=torch.float16)}
    torch.save({key: tensors, "epoch": 3} if key else tensors, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth")
    assert list(loaded) == ["a", "b"]
    assert torch.equal(loaded["a"], torch.arange(3.0))
    assert loaded["b"].dtype == torch.float16


def test_safetensors_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 3), "n": torch.tensor(5)}
    save_file(tensors, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 truncated zip"])
@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
def test_damaged_files_get_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BeyondError, match=name) as error:
        load_weights(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [{"epoch": 3}, [torch.zeros(2)], {}, torch.zeros(3)])
def test_files_without_a_state_dict_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(BeyondError, match="holds no state dict"):
        load_weights(tmp_path / "w.pth")


def test_missing_file() -> None:
    with pytest.raises(BeyondError, match=r"no file of weights at nowhere\.pth"):
        load_weights(Path("nowhere.pth"))


def test_metadata_of_a_state_dict_survives(tmp_path: Path) -> None:
    """Torchvision's MNASNet refuses a state dict without the versions of its modules."""
    torch.save(nn.BatchNorm1d(3).state_dict(), tmp_path / "w.pth")
    loaded: Any = load_weights(tmp_path / "w.pth")
    assert loaded._metadata[""]["version"] == 2


def test_fingerprint_changes_with_every_bit_and_name() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    before = fingerprint(layer)
    assert len(before) == 64
    assert fingerprint(nn.Linear(5, 4)) != before
    same = nn.Linear(5, 4)
    same.load_state_dict(layer.state_dict())
    assert fingerprint(same) == before
    with torch.no_grad():
        bits = layer.weight.view(torch.int32)
        bits[0, 0] ^= 1
    assert fingerprint(layer) != before
    bits[0, 0] ^= 1
    assert fingerprint(layer) == before
    assert fingerprint(nn.Sequential(layer)) != before  # other names
    assert fingerprint(layer.half()) != before


def test_fingerprint_ignores_order_strides_and_layout() -> None:
    class Two(nn.Module):
        def __init__(self, *, swapped: bool) -> None:
            super().__init__()
            names = ["a", "b"][:: -1 if swapped else 1]
            for name in names:
                values = torch.arange(24.0).view(1, 2, 3, 4) if name == "a" else torch.ones(2)
                self.register_buffer(name, values)

    first, second = Two(swapped=False), Two(swapped=True)
    second.register_buffer("a", first.state_dict()["a"].contiguous(memory_format=torch.channels_last))
    assert list(first.state_dict()) != list(second.state_dict())
    assert fingerprint(first) == fingerprint(second)


def test_fingerprint_reads_shapes() -> None:
    first, second = nn.Module(), nn.Module()
    first.register_buffer("a", torch.zeros(2, 3))
    second.register_buffer("a", torch.zeros(3, 2))
    assert fingerprint(first) != fingerprint(second)


def test_fingerprint_of_unusual_dtypes() -> None:
    module = nn.Module()
    for i, dtype in enumerate((torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.float64)):
        module.register_buffer(f"b{i}", torch.ones(3).to(dtype))
    module.register_buffer("empty", torch.zeros(0, 4))
    assert len(fingerprint(module)) == 64


@pytest.mark.parametrize(
    ("count", "message"),
    [(1001, "background class first"), (21841, "21841 outputs instead"), (10, "10 outputs")],
)
def test_only_1000_classes(count: int, message: str) -> None:
    with pytest.raises(BeyondError, match=message):
        check_classes(count, "model")
    check_classes(1000, "model")


def test_download_checks_the_hash_in_the_name(tmp_path: Path) -> None:
    content = np.arange(5).tobytes()
    source = tmp_path / "net-00000000.pth"
    source.write_bytes(content)
    with pytest.raises(BeyondError, match="arrived damaged"):
        download(source.as_uri(), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())
    with pytest.raises(BeyondError, match="cannot fetch"):
        download((tmp_path / "absent-00000000.pth").as_uri(), tmp_path / "cache")
    plain = tmp_path / "net.pth"
    plain.write_bytes(content)
    assert download(plain.as_uri(), tmp_path / "cache").read_bytes() == content
    plain.unlink()
    assert download(plain.as_uri(), tmp_path / "cache").read_bytes() == content  # from the cache
