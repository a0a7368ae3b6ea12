import io
import os
import stat
import tarfile
import zipfile

import pytest

from steadymap.archives import ArchiveError, extract

FILES = {"val/a.txt": b"first", "val/deep/b.bin": bytes(range(256)) * 9, "c": b""}


def tar(path, members, mode="w"):
    """Write a tar of (TarInfo or name, content) pairs."""
    with tarfile.open(path, mode) as made:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, **values):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def unpacked(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def place(tmp_path):
    """An archive's place in a folder of its own, with a file beside it that must survive."""
    (tmp_path / "in").mkdir()
    (tmp_path / "victim").write_text("untouched")
    return tmp_path / "in" / "archive"


def refused(place, message, **options):
    """Refused with these words, and nothing is left anywhere."""
    root = place.parent.parent
    with pytest.raises(ArchiveError, match=message) as caught:
        extract(place, root / "in" / "out", **options)
    assert str(place) in str(caught.value)
    assert "nothing was unpacked: compare the file's sha256" in str(caught.value)
    assert sorted(p.name for p in root.iterdir()) == ["in", "victim"]
    assert [p.name for p in place.parent.iterdir()] == ["archive"]
    assert (root / "victim").read_text() == "untouched"


class TestWhatIsFine:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
    def test_files_come_out_as_they_went_in(self, place, mode):
        if mode == "zip":
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as made:
                made.writestr("val/", b"")
                for name, content in FILES.items():
                    made.writestr(name, content)
        else:
            folder = (special("val", tarfile.DIRTYPE), b"")
            tar(place, [folder, *FILES.items()], mode)

        assert extract(place, place.with_name("out")) == 3

        assert unpacked(place.with_name("out")) == FILES
        assert sorted(p.name for p in place.parent.iterdir()) == ["archive", "out"]

    def test_names_with_dots_and_other_letters(self, place):
        names = ["./a/./b..c", "Bücher/ü.JPEG", "..d/e.."]
        tar(place, [(name, b"x") for name in names])

        extract(place, place.with_name("out"))

        assert set(unpacked(place.with_name("out"))) == {"a/b..c", "Bücher/ü.JPEG", "..d/e.."}

    def test_rights_are_not_taken_over(self, place):
        info = special("a", tarfile.REGTYPE, mode=0o6777, uid=0, gid=0)
        tar(place, [(info, b"x")])

        extract(place, place.with_name("out"))

        mode = (place.with_name("out") / "a").stat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)

    def test_what_is_there_is_kept(self, place):
        tar(place, FILES.items())
        out = place.with_name("out")
        out.mkdir()
        extract(place, out)

        with pytest.raises(FileExistsError, match="out: is there already; delete it, or name anot"):
            extract(place, out)
        assert unpacked(out) == FILES


class TestMembersOfATar:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("../victim", "its path leads out of the folder"),
            ("a/../../../victim", "its path leads out of the folder"),
            ("..", "its path leads out of the folder"),
            ("/tmp/victim", "its path is absolute"),
            ("//victim", "its path is absolute"),
            ("C:victim", "its path is absolute"),
            ("..\\victim", "its name is empty or has control characters or backslashes"),
            ("a\nb", "its name is empty or has control characters"),
            ("a" * 300, "its name is too long"),
            ("/".join(["a" * 100] * 20), "its name is too long"),
        ],
    )
    def test_places_outside(self, place, name, reason):
        tar(place, [("good", b"x"), (name, b"bad")])

        refused(place, rf"archive: member .*: {reason}")

    @pytest.mark.parametrize(
        ("kind", "link", "reason"),
        [
            (tarfile.SYMTYPE, "../../victim", "it is a link to '../../victim'"),
            (tarfile.SYMTYPE, "good", "it is a link to 'good'"),
            (tarfile.LNKTYPE, "../../victim", "it is a link to '../../victim'"),
            (tarfile.CHRTYPE, "", "it is a device or pipe"),
            (tarfile.BLKTYPE, "", "it is a device or pipe"),
            (tarfile.FIFOTYPE, "", "it is a device or pipe"),
        ],
    )
    def test_links_and_devices(self, place, kind, link, reason):
        tar(place, [("good", b"x"), (special("bad", kind, linkname=link), b"")])

        refused(place, rf"member 'bad': {reason}")

    def test_a_file_through_a_link(self, place):
        """The classic: a link to the outside first, then a file below it."""
        link = special("dir", tarfile.SYMTYPE, linkname="../..")
        tar(place, [(link, b""), ("dir/victim", b"bad")])

        refused(place, "member 'dir': it is a link")

    def test_one_name_twice_and_a_file_as_folder(self, place):
        tar(place, [("a", b"x"), ("./a", b"y")])
        refused(place, "member './a': stands there twice")
        tar(place, [("a", b"x"), ("a/b", b"y")])
        refused(place, "member 'a/b': stands there twice")

    def test_a_sparse_file(self, place):
        """Old GNU format: a header that claims a terabyte of holes."""
        info = special("hole", tarfile.GNUTYPE_SPARSE)
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header[:512])
        place.write_bytes(bytes(header) + bytes(1024))

        refused(place, "member 'hole': it is a sparse file")


class TestSizes:
    @pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
    def test_a_bomb(self, place, mode):
        tar(place, [("good", b"x"), ("zeros", bytes(40 << 20))], mode)

        refused(place, r"member 'zeros': with it come more than 200 times the archive's size")

    def test_a_bomb_in_a_zip(self, place):
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("good", b"x")
            made.writestr("zeros", bytes(40 << 20))

        refused(place, r"member 'zeros': with it come more than 200 times the archive's size")

    def test_a_bomb_in_a_header(self, place):
        info = special("zeros", tarfile.XHDTYPE)
        tar(place, [(info, bytes(40 << 20))], "w:gz")

        refused(place, r"archive: it unpacks to more than \d+ bytes")

    def test_limits_of_bytes_and_members(self, place):
        tar(place, [("a", bytes(600)), ("b", bytes(600))])

        refused(place, r"member 'b': with it come more than max_bytes 1000", max_bytes=1000)
        refused(place, r"member 'b': it is one of more than 1; ", max_members=1)
        assert extract(place, place.with_name("out"), max_bytes=1200, max_members=2) == 2

    def test_a_size_that_the_archive_does_not_have(self, place):
        with zipfile.ZipFile(place, "w") as made:
            made.writestr("a", b"x" * 100)
        content = place.read_bytes()
        assert content.count((100).to_bytes(4, "little")) == 4
        place.write_bytes(content.replace((100).to_bytes(4, "little"), b"\xff\xff\xff\x7f"))

        refused(place, "the archive is damaged")


class TestDamage:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
    def test_a_cut_tar(self, place, mode, rng):
        tar(place, [(f"{i}", rng.bytes(700)) for i in range(4)], mode)
        whole = place.read_bytes()
        used = len(whole) if mode != "w" else 4 * (512 + 1024)

        for end in range(0, used, 97):
            place.write_bytes(whole[:end])
            refused(place, r"archive: .*(damaged|no file in it)")

    def test_a_cut_or_spoiled_zip(self, place, rng):
        with zipfile.ZipFile(place, "w") as made:
            for index in range(4):
                made.writestr(f"{index}", rng.bytes(700))
        whole = place.read_bytes()

        for end in range(0, len(whole), 97):
            place.write_bytes(whole[:end])
            refused(place, "archive: .*damaged")
        place.write_bytes(whole[:300] + b"spoiled" + whole[307:])
        refused(place, "member '0': the archive is damaged .*CRC")

    def test_no_archive_at_all(self, place):
        for content in (b"hello", bytes(512), os.urandom(2000)):
            place.write_bytes(content)
            refused(place, r"archive: (the archive is damaged|no file in it)")

    def test_an_encrypted_member(self, place):
        with zipfile.ZipFile(place, "w") as made:
            made.writestr("secret", b"x")
        content = bytearray(place.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(signature) + flags] |= 1
        place.write_bytes(content)

        refused(place, "member 'secret': it is encrypted")


class TestMembersOfAZip:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("../victim", "its path leads out of the folder"),
            ("/victim", "its path is absolute"),
            ("..\\victim", "backslashes"),
        ],
    )
    def test_places_outside(self, place, name, reason):
        with zipfile.ZipFile(place, "w") as made:
            made.writestr("good", b"x")
            made.writestr(name, b"bad")

        refused(place, rf"member .*victim': .*{reason}")

    @pytest.mark.parametrize(
        ("kind", "reason"), [(stat.S_IFLNK, "it is a link"), (stat.S_IFCHR, "it is a device")]
    )
    def test_links_and_devices(self, place, kind, reason):
        info = zipfile.ZipInfo("bad")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(place, "w") as made:
            made.writestr("good", b"x")
            made.writestr(info, b"../../victim")

        refused(place, f"member 'bad': {reason}")

    def test_one_name_twice(self, place):
        with zipfile.ZipFile(place, "w") as made:
            made.writestr("a", b"x")
            with pytest.warns(UserWarning, match="Duplicate name"):
                made.writestr("a", b"y")

        refused(place, "member 'a': stands there twice")
