"""Archives and folders of strangers: no name leads out of them, and nothing unpacks to more than is read."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from compress.data import ImageFolder, file_tree
from compress.data.decoding import UnreadableImageError
from compress.data.file_tree import open_file_tree
from compress.errors import DataError
from tests.compress.data.pictures import encoded, noise, write_archive, write_files

PICTURE = encoded(noise(0))


def test_names_that_lead_out_of_an_archive_are_left_out(tmp_path: Path) -> None:
    names = ("../up.png", "a/../../up.png", "/root.png", "a/./b.png", "..\\up.png", "C:/../x.png", "//server/x.png")
    path = write_archive(tmp_path / "x.zip", {**dict.fromkeys(names, PICTURE), "a/1.png": PICTURE, "b/1.png": PICTURE})
    with open_file_tree(path) as tree:
        assert tree.files == ("a/1.png", "b/1.png")
        assert tree.num_hidden_files == len(names) - 1, "two are one name"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.zip"], "nothing is unpacked"


def test_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_archive(tmp_path / "x.zip", {"a/1.png": PICTURE, "b/1.png": PICTURE})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, str(tmp_path / "secret.png"))
    with open_file_tree(path) as tree:
        assert tree.read("a/link.png") == str(tmp_path / "secret.png").encode(), "the text of the link, no picture"


def test_member_that_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_tree, "MAX_FILE_BYTES", 1_000_000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(50_000_000))
    assert path.stat().st_size < 60_000
    with (
        open_file_tree(path) as tree,
        pytest.raises(UnreadableImageError, match="50000000 bytes are more than 1000000"),
    ):
        tree.read("a/1.png")


def test_member_that_says_it_is_small_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(5_000_000))
    content = path.read_bytes()
    path.write_bytes(content.replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with open_file_tree(path) as tree, pytest.raises(UnreadableImageError, match="CRC"):
        tree.read("a/1.png")


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A kernel of deflated zeros, listed a thousand times: 1 MB that unpacks to a thousand of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(1_000_000))
        kernel = archive.infolist()[0]
        for number in range(1, 1000):
            copy = zipfile.ZipInfo(f"a/{number}.png")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                setattr(copy, field, getattr(kernel, field))
            archive.filelist.append(copy)
    path = tmp_path / "overlap.zip"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="lists more bytes than it has: its members overlap"), open_file_tree(path):
        pass


def test_encrypted_and_unknown_members_are_said(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "x.zip", {"a/1.png": PICTURE})
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    for place, value in ((8, b"\x01"), (10, b"\x63")):  # the flag of encryption, a method that nobody has
        changed = bytearray(content)
        changed[directory + place : directory + place + 1] = value
        path.write_bytes(changed)
        with (
            open_file_tree(path) as tree,
            pytest.raises(UnreadableImageError, match="can not be read from the archive"),
        ):
            tree.read("a/1.png")


def test_folder_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    write_files(tmp_path / "set", {"a/1.png": PICTURE, "b/1.png": PICTURE})
    (tmp_path / "set" / "a" / "again").symlink_to(tmp_path / "set")
    with ImageFolder(path=tmp_path / "set").open() as collection:
        assert [image.file for image in collection.images] == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_does_not_hang(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path / "set", {"a/1.png": PICTURE, "b/1.png": PICTURE})
    special = tmp_path / "set" / "a" / "2.png"
    if kind == "fifo":
        os.mkfifo(special)
    else:
        special.symlink_to("/dev/zero")
    with open_file_tree(tmp_path / "set") as tree, pytest.raises(UnreadableImageError, match="is no file"):
        tree.read("a/2.png")
