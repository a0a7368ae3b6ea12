import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steadymap.store.atomic import (
    StorageError,
    abandoned,
    atomic_file,
    atomic_folder,
    mark_of,
    read_json,
)
from steadymap.store.maps import Maps, write_maps
from steadymap.store.tables import read_table, write_table
from steadymap.store.task_cache import TaskCache


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_file(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one_and_no_other(tmp_path):
    folder = tmp_path / "tables"
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("old")

    def fail():
        with atomic_folder(folder) as temporary:
            (temporary / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "tables") as temporary:
            (temporary / name).touch()

    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["b"]


def test_what_a_kill_leaves_is_told_from_what_is_being_written(tmp_path):
    """By the process in the name, and by age where another process has its id."""
    written = {}

    def leave(kind):
        if kind == "file":
            with atomic_file(tmp_path / "a" / "b.npz") as temporary:
                temporary.touch()
                written[kind] = temporary.name
                raise KeyboardInterrupt
        with atomic_folder(tmp_path / "maps") as temporary:
            written[kind] = temporary.name
            raise KeyboardInterrupt

    for kind in ("file", "folder"):
        with pytest.raises(KeyboardInterrupt):
            leave(kind)
    left = [
        tmp_path / "a" / written["file"],
        mark_of(tmp_path),
        tmp_path / ".0123456789abcdef.shared",
    ]
    for path in left:
        path.touch()
    folder = tmp_path / written["folder"]
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / written["file"]).touch()
    for name in ("table.csv", ".hidden.tmp", ".gitignore", "a.tmp"):
        (tmp_path / name).touch()

    of_a_process = sorted([*left[:2], folder])
    assert abandoned(tmp_path, lives=lambda pid: pid == os.getpid()) == []
    assert abandoned(tmp_path, lives=lambda pid: pid != os.getpid()) == of_a_process
    assert abandoned(tmp_path, lives=lambda pid: True, age=-1) == sorted([*left, folder])
    assert abandoned(tmp_path / "absent", lives=lambda pid: False) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_keep_words_that_look_like_numbers(tmp_path, suffix):
    frame = pd.DataFrame({"value": ["0.10", ""], "image_id": ["007", "8"], "score": [1.5, np.nan]})
    path = tmp_path / f"t.{suffix}"

    write_table(frame, path)
    found = read_table(path)

    assert found["value"].tolist() == ["0.10", ""]
    assert found["image_id"].tolist() == ["007", "8"]
    assert found["score"].isna().tolist() == [False, True]


def test_csv_is_rounded_to_six_digits(tmp_path):
    write_table(pd.DataFrame({"a": [0.123456789, 123456789.0]}), tmp_path / "t.csv")

    assert (tmp_path / "t.csv").read_text() == "a\n0.123457\n1.23457e+08\n"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no.csv: no such table; run the stage"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError, match=r"no.json: no such file; run the stage"):
        read_json(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json: not valid JSON .*delete it and run"):
        read_json(tmp_path / "bad.json")


class TestTaskCache:
    maps = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    def test_what_is_written_is_read(self, tmp_path):
        cache = TaskCache(tmp_path)
        cache.write("abc", self.maps, {"loss": np.array([1.0, 2.0])})

        maps, extra = cache.read("abc")

        assert "abc" in cache
        assert (maps == self.maps).all()
        assert extra["loss"].tolist() == [1.0, 2.0]

    def test_absent_is_none(self, tmp_path):
        assert "abc" not in TaskCache(tmp_path)
        assert TaskCache(tmp_path).read("abc") is None

    @pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
    def test_a_damaged_entry_is_named_dropped_and_computed_again(self, tmp_path, damage, caplog):
        cache = TaskCache(tmp_path)
        cache.write("abc", self.maps, {})
        path = cache.path("abc")
        data = path.read_bytes()
        path.write_bytes({"truncated": data[:-40], "empty": b"", "garbage": b"x" * 200}[damage])

        assert cache.read("abc") is None

        assert "abc.npz: damaged" in caplog.text
        assert "abc" not in cache

    @pytest.mark.parametrize(
        ("number", "remedy"),
        [
            (errno.EIO, "look at the disk or the mount it is on"),
            (errno.ESTALE, "look at the disk or the mount it is on"),
            (errno.EMFILE, "raise the limit on open files"),
            (errno.EACCES, "make it readable"),
        ],
    )
    def test_an_entry_that_cannot_be_read_is_named_and_kept(
        self, tmp_path, monkeypatch, number, remedy
    ):
        cache = TaskCache(tmp_path)
        cache.write("abc", self.maps, {})

        def refused(*arguments, **options):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(np, "load", refused)
            message = rf"abc.npz: {os.strerror(number)}; it can't be read and was left .*{remedy}"
            with pytest.raises(StorageError, match=message):
                cache.read("abc")

        assert (cache.read("abc")[0] == self.maps).all()

    def test_a_failing_disk_is_named_where_an_entry_is_looked_for(self, tmp_path, monkeypatch):
        def refused(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Path, "is_file", refused)
        with pytest.raises(StorageError, match=r"abc.npz: Input/output error; .* look at the disk"):
            "abc" in TaskCache(tmp_path)  # noqa: B015

    def test_a_damaged_entry_of_a_read_only_cache_is_named(self, tmp_path, monkeypatch):
        cache = TaskCache(tmp_path)
        cache.write("abc", self.maps, {})
        cache.path("abc").write_bytes(b"PK")

        def refused(path, **options):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "unlink", refused)
        with pytest.raises(
            StorageError,
            match=r"abc.npz: damaged \(.*\), and can't be removed \(Read-only.*: make its folder",
        ):
            cache.read("abc")

    def test_any_byte_that_changed_is_found_or_harmless(self, tmp_path):
        """Every byte in turn, as a disk would: nothing but damage comes of it."""
        cache = TaskCache(tmp_path)
        cache.write("abc", self.maps, {})
        path, written = cache.path("abc"), cache.path("abc").read_bytes()
        for position in range(len(written)):
            changed = bytearray(written)
            changed[position] ^= 0xFF
            path.write_bytes(bytes(changed))
            found = cache.read("abc")
            assert found is None or (found[0] == self.maps).all()

    def test_maps_of_a_wrong_kind_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"task abc are float64 .*must return float32"):
            TaskCache(tmp_path).write("abc", self.maps.astype(np.float64), {})
        assert not list(tmp_path.rglob("*.npz"))


class TestMaps:
    def write(self, folder):
        stacks = {m: np.full((2, 3, 4, 4), k, np.float32) for k, m in enumerate("ab")}
        stacks["b"][1] = 7
        write_maps(
            folder,
            method="smoothgrad",
            image_ids=["x", "y", "z"],
            settings=[
                {"hyperparameters": {"sigma": s}, "task_ids": {"a": "1", "b": "2"}}
                for s in (0.1, 0.2)
            ],
            maps={model: iter(stack) for model, stack in stacks.items()},
            diagnostics=[],
        )

    def test_settings_are_found_by_hyperparameters(self, tmp_path):
        self.write(tmp_path / "maps")
        maps = Maps(tmp_path / "maps")

        assert (maps.read("b", {"sigma": 0.2}) == 7).all()
        assert (maps.read("b", {"sigma": 0.1}) == 1).all()
        assert maps.read("a", {"sigma": 0.1}).shape == (3, 4, 4)
        assert np.load(tmp_path / "maps" / "b.npy", mmap_mode="r").shape == (2, 3, 4, 4)

    def test_what_is_not_there_is_named(self, tmp_path):
        self.write(tmp_path / "maps")
        maps = Maps(tmp_path / "maps")

        with pytest.raises(KeyError, match="no maps of model 'c'; there are"):
            maps.read("c", {"sigma": 0.1})
        with pytest.raises(KeyError, match=r"no maps with {'sigma': 0.3}; run `dvc repro`"):
            maps.read("a", {"sigma": 0.3})

    def test_a_setting_s_images_may_come_in_pieces(self, tmp_path):
        self.write(tmp_path / "whole")
        stacks = np.load(tmp_path / "whole" / "b.npy")
        self.write_pieces(tmp_path / "maps", (stacks[0, :2], stacks[0, 2:], stacks[1]))

        assert (tmp_path / "maps" / "b.npy").read_bytes() == (
            tmp_path / "whole" / "b.npy"
        ).read_bytes()

    @pytest.mark.parametrize(
        ("shapes", "told"),
        [
            ([(3, 4, 4), (2, 4, 4)], r"b.npy: 5 maps for 2 settings of 3 images"),
            ([(3, 4, 4), (4, 4, 4)], r"b.npy: 7 maps for 2 settings of 3 images"),
            ([(3, 4, 4), (3, 4, 5)], r"b.npy: maps of \(4, 5\) beside maps of \(4, 4\)"),
        ],
    )
    def test_maps_that_do_not_fit_leave_nothing(self, tmp_path, shapes, told):
        with pytest.raises(ValueError, match=told):
            self.write_pieces(tmp_path / "maps", [np.zeros(s, np.float32) for s in shapes])
        assert not list(tmp_path.iterdir())

    @staticmethod
    def write_pieces(folder, pieces):
        write_maps(
            folder,
            method="smoothgrad",
            image_ids=["x", "y", "z"],
            settings=[{"hyperparameters": {"sigma": s}, "task_ids": {}} for s in (0.1, 0.2)],
            maps={"b": iter(pieces)},
            diagnostics=[],
        )
