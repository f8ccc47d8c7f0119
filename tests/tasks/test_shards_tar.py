"""Tar shards: which are meant, what is found in them, what is read of them, what is refused."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from attent.pipeline.source import blocks_of
from attent.tasks.data.shards import TarShards, blocks, cache, files, shard_paths, tar
from attent.tasks.data.shards.kept import Kept
from attent.tasks.data.shards.paths import expand_braces, shards_of_split
from attent.tasks.data.shards.tar_index import members
from tests.tasks.shards import offsets, pack

TEXT = {"a": ("txt",)}


def texts(folder, *counts: int):
    """Shards of texts ``SHARD/ROW``, a shard for each count."""
    for s, count in enumerate(counts):
        rows = [(f"{i:03d}.txt", f"{s}/{i}".encode()) for i in range(count)]
        pack(folder / f"t-{s:03d}.tar", rows)
    return folder


def ruined(path, at: int, data: bytes | None = None):
    """The file cut off at a byte, or with other bytes from there."""
    whole = path.read_bytes()
    rest = b"" if data is None else whole[at + len(data) :]
    path.write_bytes(whole[:at] + (data or b"") + rest)
    return path


# --- which files are meant


def test_patterns_folders_and_lists_name_the_same_shards(tmp_path):
    texts(tmp_path, 1, 1, 1)
    (tmp_path / ".t-009.tar").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_bytes(b"")
    expected = [str(tmp_path / f"t-00{s}.tar") for s in range(3)]
    for meant in (tmp_path, f"{tmp_path}/t-{{000..002}}.tar", f"{tmp_path}/t-*.tar", expected):
        assert shard_paths(meant, (".tar",)) == expected
    assert shard_paths(f"{tmp_path}/t-{{002,000}}.tar", (".tar",)) == expected[2::-2]


def test_braces_count_as_a_shell_does():
    assert expand_braces("a{8..11}") == ["a8", "a9", "a10", "a11"]
    assert expand_braces("{08..10}b") == ["08b", "09b", "10b"]
    assert expand_braces("{0..1}-{x,y}") == ["0-x", "0-y", "1-x", "1-y"]


@pytest.mark.parametrize(
    ("meant", "message"),
    [
        ("t-{000..003}.tar", r"no file .*t-003\.tar, one of .*\{000\.\.003\}"),
        ("t-{2..1}.tar", r"\{2\.\.1\} ends before it begins"),
        ("u-*.tar", r"there is no file .*u-\*\.tar"),
        ("empty", r"the folder .*empty has no file that ends in \.tar"),
        ("{t-000.tar,t-00?.tar}", r"t-000\.tar is given more than once"),
    ],
)
def test_what_stands_for_no_shard_is_refused(tmp_path, meant, message):
    (texts(tmp_path, 1, 1, 1) / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        shard_paths(f"{tmp_path}/{meant}", (".tar",))


def test_a_split_is_what_is_named_by_it(tmp_path):
    def of(split):
        found = shards_of_split(tmp_path, split, (".tar",))
        return [str(os.path.relpath(path, tmp_path)) for path in found]

    assert of("train") == []
    for name in ("train/a.tar", "train/b.tar", "data/test-0.tar", "other.tar"):
        pack(tmp_path / name, [])
    assert of("train") == ["train/a.tar", "train/b.tar"]
    assert of("val") == ["data/test-0.tar"]
    for name in ("validation.tar", "training_0.tar", "trainer.tar"):
        pack(tmp_path / name, [])
    assert of("val") == ["validation.tar"]
    assert of("train") == ["train/a.tar", "train/b.tar"]
    (tmp_path / "train" / "CLASS").mkdir()  # pictures by class, whatever lies beside them
    assert of("train") == []
    assert of("val") == ["validation.tar"]


# --- what is found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path, form):
    """Long names, names of other alphabets, folders, links, empty files, of every writer."""
    path = tmp_path / "t.tar"
    names = ["a.txt", "./b/c.txt", "ü.txt", "d" * 90 + "/" + "e" * 90 + ".txt"]
    if form != tarfile.USTAR_FORMAT:
        names.append("f/" * 200 + "g.txt")
    with tarfile.open(path, "w", format=form) as file:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for number, name in enumerate(names):
            about = tarfile.TarInfo(name)
            about.size = 600 * number  # the first is empty
            about.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # which makes an extension
            file.addfile(about, io.BytesIO(bytes(about.size)))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "a.txt"
        file.addfile(link)
        file.addfile(tarfile.TarInfo("last.txt"))
    found = {member.name: (member.offset, member.size) for member in members(str(path))}
    assert found == offsets(path)
    assert len(found) == len(names) + 1


def test_a_size_beyond_the_octal_digits_is_read(tmp_path):
    """Of 9 GiB, which GNU's format writes in base 256 and pax in an extension; the file is sparse.

    A header takes 512 bytes; pax's extension two blocks more, and its own header is the third.
    """
    for form, expected in ((tarfile.GNU_FORMAT, 512), (tarfile.PAX_FORMAT, 1536)):
        about = tarfile.TarInfo("a.txt")
        about.size = 9 * 2**30
        path = tmp_path / f"{form}.tar"
        with path.open("wb") as file:
            file.write(about.tobuf(form))
            file.truncate(file.tell() + about.size + 1024)
        assert [tuple(m) for m in members(str(path))] == [("a.txt", expected, about.size)]
        with pytest.raises(ValueError, match=r"a\.txt at byte .* is too large"):
            TarShards(path, TEXT)


def test_members_of_a_key_are_an_example(tmp_path):
    """The key ends at the first dot of the name; what has no key is passed over."""
    pack(tmp_path / "t.tar", [
        ("x.y/one.TXT", b"1"), ("x.y/one.seg.png", b"s"), ("readme", b"-"), (".two.txt", b"-"),
        ("__index__.txt", b"-"), ("z/one.txt", b"2"), ("three.json", b"{}"), ("three.txt", b"3"),
    ])  # fmt: skip
    columns = {"text": ("txt",), "seg": ("seg.png", "json")}
    shards = TarShards(tmp_path, columns, optional=("seg",))
    assert [shards.read(i) for i in range(len(shards))] == [
        {"text": b"1", "seg": b"s"}, {"text": b"2"}, {"text": b"3", "seg": b"{}"},
    ]  # fmt: skip
    assert (shards.has("text"), shards.has("seg")) == (3, 2)
    with pytest.raises(ValueError, match=r"t\.tar member z/one\.txt at byte \d+ has no seg"):
        shards.data(1, "seg")
    where = offsets(tmp_path / "t.tar")
    for i, name in enumerate(("x.y/one.TXT", "z/one.txt", "three.txt")):
        assert shards.locate(i) == f"{tmp_path}/t.tar member {name} at byte {where[name][0]}"


def test_blocks_are_shards_and_parts_of_large_ones(tmp_path, monkeypatch):
    """3, 0, 10 and 1 examples, of at most 4 together: 10 is cut after 3, 6 and 10."""
    monkeypatch.setattr(tar, "cut", lambda starts: blocks.cut(starts, part=4))
    shards = TarShards(texts(tmp_path, 3, 0, 10, 1), TEXT)
    assert shards.blocks.tolist() == [0, 3, 6, 9, 13, 14]
    assert blocks_of(shards) is not None
    found = [shards.data(i, "a").decode() for i in (0, 2, 3, 12, 13)]
    assert found == ["0/0", "0/2", "2/0", "2/9", "3/0"]
    for index in (-1, 14):
        with pytest.raises(IndexError, match=f"example {index} of 14"):
            shards.data(index, "a")


# --- what is read


class Counted(files.Files):
    """How often and how much is read."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def read(self, path, offset, size):
        self.reads.append((os.path.basename(path), offset, size))
        return super().read(path, offset, size)


def test_exactly_the_bytes_of_what_is_asked_for_are_read(tmp_path):
    """And of a shard that nothing is asked of none: it may as well be gone."""
    shards = TarShards(texts(tmp_path, 3, 2, 3), TEXT)
    where = {s: offsets(tmp_path / f"t-00{s}.tar") for s in range(3)}
    (tmp_path / "t-001.tar").unlink()
    shards._files = Counted()
    asked = [(1, 0, "001"), (7, 2, "002"), (0, 0, "000")]
    for index, _, _ in asked:
        shards.data(index, "a")
    assert shards._files.reads == [(f"t-00{s}.tar", *where[s][f"{key}.txt"]) for _, s, key in asked]
    with pytest.raises(ValueError, match=r"t-001\.tar cannot be read at byte 512: .*No such file"):
        shards.data(3, "a")


def test_headers_are_all_that_is_read_to_find_members(tmp_path, monkeypatch):
    """Of 6 members of a megabyte eight blocks each, and as many at the end."""
    path = pack(tmp_path / "t.tar", [(f"{i}.txt", bytes(2**20)) for i in range(6)])
    pread, sizes = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *a: sizes.append(a[1]) or pread(*a))
    assert len(TarShards(path, TEXT)) == 6
    assert sizes == [4096] * 7


def test_many_threads_read_with_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "OPEN", 2)
    shards = TarShards(texts(tmp_path, *[5] * 8), TEXT)
    expected = [f"{i // 5}/{i % 5}".encode() for i in range(40)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: shards.data(i, "a"), [*range(40)] * 20))
    assert found == expected * 20
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    copy = pickle.loads(pickle.dumps(shards))
    assert [copy.data(i, "a") for i in range(40)] == expected


def test_a_forked_process_reads_though_a_lock_was_held(tmp_path):
    """A fork copies locks as they are, and the threads that would open them it does not."""
    shards = TarShards(texts(tmp_path, 5, 5), TEXT)
    assert shards.data(0, "a") == b"0/0"
    receive, send = os.pipe()
    with shards._files._open._lock:
        child = os.fork()
        if not child:
            os.write(send, shards.data(7, "a"))
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(receive, 16) == b"1/2"
    for end in (receive, send):
        os.close(end)


# --- what is remembered


def test_members_are_found_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    scanned = []
    monkeypatch.setattr(tar, "members", lambda path: scanned.append(path) or members(path))
    texts(tmp_path, 2, 2)
    for _ in range(3):
        assert len(TarShards(tmp_path, TEXT)) == 4
    assert len(scanned) == 2
    pack(tmp_path / "t-001.tar", [(f"{i}.txt", b"new") for i in range(5)])
    shards = TarShards(tmp_path, TEXT)
    assert (len(shards), shards.data(6, "a"), len(scanned)) == (7, b"new", 3)


def test_what_is_remembered_and_damaged_is_found_anew(tmp_path):
    texts(tmp_path, 2)
    TarShards(tmp_path, TEXT)
    (kept,) = tmp_path.glob(".*.npz")
    whole = kept.read_bytes()
    changed = whole[:300] + b"\0" * 40 + whole[340:]
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2], changed):
        kept.write_bytes(damaged)
        shards = TarShards(tmp_path, TEXT)
        assert [shards.data(i, "a") for i in range(2)] == [b"0/0", b"0/1"]
        assert kept.read_bytes() == whole


def test_where_nothing_can_be_written_beside_a_shard_it_is_kept_elsewhere(tmp_path, monkeypatch):
    """In the user's folder of caches, or nowhere. (The tests may be run by root, who may write.)"""
    data = texts(tmp_path / "data", 2)
    write, allowed = cache.write_atomically, [tmp_path / "home"]

    def write_atomically(path, content):
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise PermissionError(path)
        write(path, content)

    monkeypatch.setattr(cache, "write_atomically", write_atomically)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    scanned = []
    monkeypatch.setattr(tar, "members", lambda path: scanned.append(path) or members(path))
    for _ in range(2):
        assert len(TarShards(data, TEXT)) == 2
    assert (len(scanned), len(list(tmp_path.glob("home/attent/shards/*")))) == (1, 1)
    allowed.clear()
    (tmp_path / "home" / "attent").rename(tmp_path / "gone")
    assert len(TarShards(data, TEXT)) == 2


# --- what is refused


def test_damage_is_told_with_file_member_and_byte(tmp_path):
    """Three texts of 3 bytes: headers at 0, 1024, 2048, their bytes 512 later, zeros from 3072."""
    whole = (texts(tmp_path, 3) / "t-000.tar").read_bytes()
    cases = [
        (whole[:2700], r"cut off: it ends at byte 2700, after the member 002\.txt"),
        (whole[:2562], r"cut off in the member 002\.txt at byte 2560: it has 3 .* at byte 2562"),
        (whole[:3072], r"cut off: it ends at byte 3072, after the member 002\.txt"),
        (whole[:2100], r"cut off: it ends at byte 2100, after the member 001\.txt"),
        (whole[:1024] + b"x" + whole[1025:], r"damaged at byte 1024, after the member 000\.txt"),
        (whole[:1148] + b"zz" + whole[1150:], r"damaged at byte 1024, after the member 000\.txt"),
        (b"\x1f\x8b" + whole[2:], r"compressed by gzip.* unpack it"),
        (b"\x28\xb5\x2f\xfd" + whole[4:], r"compressed by zstd.* unpack it"),
        (b"PK" + whole[2:], r"is no tar"),
        (b"", r"cut off: it ends at byte 0, with no member in it"),
        (bytes(10240), r"hold no members named KEY\.EXTENSION"),
    ]  # fmt: skip
    for number, (data, message) in enumerate(cases):
        path = tmp_path / f"bad-{number}.tar"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"bad-{number}\.tar.*{message}"):
            TarShards(path, TEXT)


def test_a_shard_that_becomes_shorter_is_told(tmp_path):
    shards = TarShards(texts(tmp_path, 3), TEXT)
    ruined(tmp_path / "t-000.tar", 1538)
    assert shards.data(0, "a") == b"0/0"
    with pytest.raises(ValueError, match=r"001\.txt at byte 1536 is cut off: 2 of 3 bytes"):
        shards.data(1, "a")
    with pytest.raises(ValueError, match=r"at byte 2560 is cut off: 0 of 3 bytes"):
        shards.data(2, "a")


def test_examples_that_lack_a_member_or_have_it_twice_are_told(tmp_path):
    pack(tmp_path / "a.tar", [("1.txt", b""), ("2.jpg", b""), ("2.cls", b""), ("3.txt", b"")])
    with pytest.raises(ValueError, match=r"a\.tar: 1 of 3 examples have no a \(txt\), .* byte 512 "
                       r"with the member 2\.jpg \(cls, jpg\); .* follow each other"):  # fmt: skip
        TarShards(tmp_path / "a.tar", TEXT)
    pack(tmp_path / "b.tar", [("1.txt", b""), ("1.TXT", b"")])
    with pytest.raises(ValueError, match=r"b\.tar: 1\.TXT at byte 1024 is the second \.txt"):
        TarShards(tmp_path / "b.tar", TEXT)


# --- what is kept of what is costly to make


def test_the_least_recently_used_is_let_go_first():
    made = []

    def get(name):
        return kept.get(name, lambda: made.append(name) or name * 2, len)

    kept: Kept[str] = Kept(4)
    assert [get(name) for name in "abacb"] == ["aa", "bb", "aa", "cc", "bb"]
    assert "".join(made) == "abcb"  # c took the place of b, which had waited longer than a
    assert get("wide") == "widewide"  # more than the limit, and kept all the same
    assert get("wide") == "widewide"
    assert made == [*"abcb", "wide"]
    assert kept.made == 5


def test_one_thread_makes_and_the_others_wait():
    kept: Kept[int] = Kept(10)
    made = []
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(kept.get, i % 4, lambda i=i: made.append(i) or i % 4, lambda _: 1)
            for i in range(400)
        ]
    assert [future.result() for future in asked] == [i % 4 for i in range(400)]
    assert sorted(i % 4 for i in made) == [0, 1, 2, 3]


def test_what_cannot_be_made_is_tried_again():
    kept: Kept[int] = Kept(10)
    with pytest.raises(OSError, match="not now"):
        kept.get("a", lambda: (_ for _ in ()).throw(OSError("not now")), lambda _: 1)
    assert kept.get("a", lambda: 3, lambda _: 1) == 3


def test_index_is_compact(tmp_path):
    """Eight bytes for an example and column, whatever the names' lengths."""
    pack(tmp_path / "t.tar", [(f"{i:090d}.txt", b"") for i in range(1000)])
    shards = TarShards(tmp_path, TEXT)
    held = sum(array.nbytes for column in shards._columns.values() for array in column)
    assert held == 8 * 1000
    assert len(pickle.dumps(shards)) < 8 * 1000 + 2000
    assert shards.blocks.dtype == torch.int64
    assert np.all(np.diff(shards._columns["a"].block) == 1)  # nothing but headers between
