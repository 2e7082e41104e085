"""Films of every sort against an independent reading: a plain sequential decode, and counters burnt into the frames."""

from __future__ import annotations

import functools
import os
import struct
import subprocess
import sys
import threading
import time
import types
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests import films
from videoprune import video
from videoprune.errors import EnvironmentProblem, FilmError, UsageError
from videoprune.video import Film, FilmInfo, FrameRule, available_decoders, prefetch, probe, targets


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="session")
def long(home: Path) -> Path:
    """40 s, 25 fps, groups of 250 with B-frames."""
    return films.write(home / "long.mp4", 1000)


@pytest.fixture(scope="session")
def short_groups(home: Path) -> Path:
    """20 s, groups of 12 with B-frames, the index at the head."""
    return films.write(home / "short.mp4", 500, gop=12, container={"movflags": "faststart"})


def look(path: Path, rule: FrameRule, **settings) -> tuple[list[int], np.ndarray, Film]:
    """The counters and the times of the frames that a rule gives, and the film."""
    with Film(path, rule, **settings) as film:
        chunks = list(film)
    index = np.concatenate([c.index for c in chunks])
    assert index.tolist() == list(range(len(index)))
    assert all(c.images.dtype == np.uint8 and c.images.flags.c_contiguous and len(c) == len(c.images) for c in chunks)
    return films.counters(np.concatenate([c.images for c in chunks])), np.concatenate([c.seconds for c in chunks]), film


@functools.lru_cache(maxsize=2)
def everything(path: Path) -> list[tuple[float, np.ndarray]]:
    return films.decode_all(path)


def shown(path: Path, seconds: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """What is shown at `seconds`, by brute force, each frame once."""
    frames, found = everything(path), []
    for second in seconds:
        at = max(i for i, (t, _) in enumerate(frames) if t <= second + 0.0005)
        if not found or found[-1] != at:
            found.append(at)
    return [frames[i] for i in found]


# ------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "bad",
    [
        {"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": True}, {"frames": 0}, {"frames": 1.5}, {"max": 0}, {"start": -1},
        {"start": float("inf")}, {"end": 0}, {"start": 3, "end": 3}, {"fps": 1, "frames": 2}, {"keyframes": 1}, {"fps": "2"},
    ],
)  # fmt: skip
def test_bad_rules_are_refused(bad: dict) -> None:
    with pytest.raises(UsageError) as caught:
        FrameRule(**bad)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def fact(duration: float | None) -> FilmInfo:
    choice = video.StreamChoice(1, 0, "")
    return FilmInfo("x", "pyav", duration, 25.0, None, 4, 4, 0, "h264", "yuv420p", choice, {}, 0.0, 1)


def test_targets() -> None:
    assert targets(fact(2.0), FrameRule(fps=2)).tolist() == [0, 0.5, 1, 1.5]
    assert targets(fact(2.0), FrameRule(fps=2, start=0.25, end=1.25)).tolist() == [0.25, 0.75]
    assert targets(fact(8.0), FrameRule(frames=4)).tolist() == [1, 3, 5, 7]
    assert targets(fact(8.0), FrameRule(fps=1, max=4)).tolist() == [1, 3, 5, 7]
    assert targets(fact(3.0), FrameRule(fps=1, max=4)).tolist() == [0, 1, 2]
    assert targets(fact(0.1), FrameRule()).tolist() == [0]
    assert len(targets(fact(0.1 * 3), FrameRule(fps=10))) == 3  # 0.30000000000000004 s are 3 frames, not 4
    assert targets(fact(4.0), FrameRule(frames=2, end=99)).tolist() == [1, 3]
    with pytest.raises(UsageError, match="past the end"):
        targets(fact(4.0), FrameRule(start=4))
    with pytest.raises(FilmError, match="length"):
        targets(fact(None), FrameRule())


# ------------------------------------------------------------------------------- against a plain sequential decode


def test_long_groups_seek(long: Path) -> None:
    counts, seconds, film = look(long, FrameRule(frames=4))
    assert counts == [125, 375, 625, 875]
    assert seconds.tolist() == pytest.approx([5, 15, 25, 35])
    assert film.stats["decoded"] < 4 * 130
    assert film.stats["seeks"] == 3
    # Non-reference frames on the way are skipped inside the decoder, so it is cheap; the pictures are still exact.
    for (_, image), chunk in zip(shown(long, film.seconds), Film(long, FrameRule(frames=4), chunk=1), strict=True):
        assert np.array_equal(image, chunk.images[0])


@pytest.mark.parametrize("seed", range(3))
def test_random_targets_match_a_full_decode(long: Path, short_groups: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for path in (long, short_groups):
        start, count = float(rng.uniform(0, 8)), int(rng.integers(5, 60))
        rule = FrameRule(frames=count, start=start, end=start + float(rng.uniform(3, 12)))
        with Film(path, rule, chunk=7) as film:
            chunks = list(film)
        images, seconds = np.concatenate([c.images for c in chunks]), np.concatenate([c.seconds for c in chunks])
        expected = shown(path, film.seconds)
        assert seconds.tolist() == pytest.approx([t for t, _ in expected])
        assert np.array_equal(images, np.stack([image for _, image in expected]))
        assert {len(c) for c in chunks[:-1]} <= {7}
        assert not film.warnings


def test_few_frames_are_decoded(short_groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    decode = video.Reader._decode
    monkeypatch.setattr(video.Reader, "_decode", lambda self, p: given.append(p) or decode(self, p))
    counts, _, film = look(short_groups, FrameRule(frames=10))
    assert counts == [25, 75, 125, 175, 225, 275, 325, 375, 425, 475]
    assert sum(p is not None for p in given) == film.stats["decoded"] <= 10 * 12
    assert film.stats["seeks"] >= 9


def test_every_frame_in_order(short_groups: Path) -> None:
    counts, seconds, film = look(short_groups, FrameRule(fps=25), threads=2)
    assert counts == list(range(500))
    assert seconds.tolist() == pytest.approx([i / 25 for i in range(500)])
    assert film.stats == {"decoded": 500, "seeks": 0}
    assert len(film) == 500


def test_more_than_there_are(home: Path) -> None:
    path = films.write(home / "tiny.mp4", 5)
    counts, _, film = look(path, FrameRule(frames=50))
    assert counts == [0, 1, 2, 3, 4]
    assert len(film) == 5
    assert look(path, FrameRule(fps=500, start=0.08))[0] == [2, 3, 4]
    assert look(films.write(home / "one.mp4", 1), FrameRule(fps=1))[0] == [0]


def test_a_film_is_read_again_and_in_parts(short_groups: Path) -> None:
    with Film(short_groups, FrameRule(fps=1, start=2, end=5), chunk=2) as film:
        assert [films.counters(c.images) for c in film] == [[50, 75], [100]]
        assert [films.counters(c.images) for c in film.chunks()] == [[50, 75], [100]]
        for chunk in film:
            assert films.counters(chunk.images) == [50, 75]
            break


def test_keyframes_only(short_groups: Path, long: Path) -> None:
    counts, seconds, film = look(short_groups, FrameRule(fps=1, keyframes=True))
    with av.open(str(short_groups)) as container:
        keys = np.array([float(f.pts * f.time_base) for f in container.decode(video=0) if f.key_frame])
    nearest = list(dict.fromkeys(float(keys[np.abs(keys - t).argmin()]) for t in film.seconds))
    assert seconds.tolist() == pytest.approx(nearest)
    assert film.stats["decoded"] == len(nearest)
    assert counts == [round(s * 25) for s in seconds]
    assert look(long, FrameRule(frames=100, keyframes=True))[0] == [0, 250, 500, 750]


# -------------------------------------------------------------------------------------------- sorts of films


@pytest.mark.parametrize("ending", ["mkv", "ts", "mov", "avi", "flv"])
def test_containers(home: Path, ending: str) -> None:
    path = films.write(home / f"container.{ending}", 500, gop=50, tags={"title": "counted"})
    info = probe(path)
    assert info.duration == pytest.approx(20, abs=0.2)
    assert (info.frames is None) == (ending not in {"mov", "avi"})
    for rule in (FrameRule(fps=2), FrameRule(frames=3), FrameRule(fps=25, start=7, end=8)):
        counts, seconds, film = look(path, rule)
        assert counts == [round(s * 25) for s in seconds]
        # FLV counts its length from a zero before the first picture: its last target lies a frame behind the end.
        assert counts == [min(int(t * 25 + 0.02), 499) for t in film.seconds]
        assert not film.warnings
    if ending in {"mkv", "ts"}:
        assert look(path, FrameRule(frames=2))[2].stats["decoded"] <= 100


def test_live_webm_without_length_or_index(home: Path) -> None:
    options = {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "12"}
    path = films.write(home / "live.webm", 150, codec="libvpx", gop=50, options=options, container={"live": "1"})
    info = probe(path)
    assert info.duration == pytest.approx(6, abs=0.1)
    assert any("packet scan" in c for c in info.choices)
    counts, _, film = look(path, FrameRule(frames=6))
    assert counts == [12, 37, 62, 87, 112, 137]
    assert not film.warnings


def test_variable_frame_rate(home: Path) -> None:
    times = [0, 40, 500, 540, 580, 3000, 3040, 7000, 7040, 7080]
    path = films.write(home / "vfr.mkv", 10, times=times, time_base=Fraction(1, 1000), sound=8.0)
    counts, seconds, _ = look(path, FrameRule(fps=2, end=7.2))
    expected = dict.fromkeys(max(i for i, at in enumerate(times) if at <= 500 * k) for k in range(15))
    assert counts == list(expected)
    assert seconds.tolist() == pytest.approx([times[i] / 1000 for i in counts])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ten.mp4", {"pixel_format": "yuv420p10le"}),
        ("odd.mkv", {"pixel_format": "yuv444p", "size": (131, 97)}),
        ("hevc.mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}, "gop": 20}),
        ("av1.mkv", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}, "gop": 20}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}, "gop": 20}),
        ("mpeg2.mpg", {"codec": "mpeg2video", "options": {"bf": "2", "qscale": "2"}, "gop": 12}),
        ("mpeg4.mp4", {"codec": "mpeg4", "options": {"bf": "2", "qscale": "2"}, "gop": 12}),
        ("open.ts", {"options": {"preset": "ultrafast", "bf": "3", "x264-params": "open-gop=1"}, "gop": 15}),
        ("ntsc.mkv", {"fps": Fraction(30000, 1001), "gop": 30}),
        ("fragments.mp4", {"container": {"movflags": "frag_keyframe+empty_moov"}, "gop": 20}),
    ],
)  # fmt: skip
def test_codecs(home: Path, name: str, settings: dict) -> None:
    path = films.write(home / name, 60, **settings)
    for rule in (FrameRule(frames=5), FrameRule(fps=7), FrameRule(fps=float(settings.get("fps", 25)))):
        with Film(path, rule) as film:
            chunks = list(film)
        images, seconds = np.concatenate([c.images for c in chunks]), np.concatenate([c.seconds for c in chunks])
        expected = shown(path, film.seconds)
        assert seconds.tolist() == pytest.approx([t for t, _ in expected])
        assert np.array_equal(images, np.stack([image for _, image in expected])), name
        assert not film.warnings
    counts = films.counters(images)
    assert counts == sorted(set(counts))
    assert len(counts) >= 58
    info = probe(path)
    assert (info.width, info.height) == settings.get("size", (films.WIDTH, films.HEIGHT))
    assert info.pixel_format == settings.get("pixel_format", info.pixel_format)


def test_edit_list_and_late_start(home: Path) -> None:
    late = films.write(home / "late.mp4", 50, times=range(100, 150), time_base=Fraction(1, 25), sound=2.0)
    info = probe(late)
    counts, seconds, _ = look(late, FrameRule(fps=5))
    assert counts == list(range(0, 50, 5))
    assert seconds[0] == 0
    assert info.duration == pytest.approx(2, abs=0.05)
    early = films.write(home / "early.mkv", 50, times=range(-10, 40), time_base=Fraction(1, 25))
    counts, seconds, _ = look(early, FrameRule(fps=5))
    assert counts == [round(s * 25) for s in seconds]
    assert counts[0] == 0


@pytest.mark.parametrize(
    ("degrees", "flip", "clockwise"), [(-90, False, 90), (90, False, 270), (180, False, 180), (0, True, 180)]
)
def test_rotation(home: Path, degrees: int, flip: bool, clockwise: int) -> None:
    path = films.write(home / f"turn{degrees}{flip}.mp4", 12, rotation=degrees, hflip=flip)
    info = probe(path)
    assert info.rotation == clockwise
    upright = (96, 128) if clockwise % 180 else (128, 96)
    assert (info.width, info.height) == upright
    with Film(path, FrameRule(frames=3)) as film:
        (chunk,) = film
    assert chunk.images.shape == (3, upright[1], upright[0], 3)
    for (_, stored), image in zip(shown(path, film.seconds), chunk.images, strict=True):
        if flip:
            assert np.array_equal(image, stored[:, ::-1])
        else:
            assert np.array_equal(image, np.rot90(stored, -clockwise // 90))
    if not flip:
        assert np.array_equal(look_images(path, "decord").shape, chunk.images.shape)
        assert np.abs(look_images(path, "decord").astype(int) - chunk.images).mean() < 2


def look_images(path: Path, decoder: str) -> np.ndarray:
    with Film(path, FrameRule(frames=3), decoder=decoder) as film:
        return np.concatenate([c.images for c in film])


def test_several_streams(home: Path) -> None:
    second = films.two_streams(home / "second.mkv", default=1)
    info = probe(second)
    assert (info.streams.count, info.streams.chosen) == (2, 1)
    assert "default" in info.streams.reason
    assert look(second, FrameRule(frames=2))[0] == [2048 + 5, 2048 + 15]
    none = films.two_streams(home / "none.mkv", default=None)
    assert probe(none).streams.chosen == 0
    assert look(none, FrameRule(frames=2))[0] == [5, 15]
    assert any("first" in c for c in probe(none).choices)


def test_facts(short_groups: Path, home: Path) -> None:
    info = probe(short_groups)
    assert (info.duration, info.fps, info.frames, info.codec) == (20, 25, 500, "h264")
    assert info.size_bytes == short_groups.stat().st_size
    assert info.start_time == 0
    assert info.decoder == "pyav"
    tagged = films.write(home / "tagged.mp4", 5, tags={"title": "a <b> film"})
    assert probe(tagged).metadata["title"] == "a <b> film"
    strange = home / "a: strange\u00e9 %03d name.mp4"
    strange.write_bytes(tagged.read_bytes())
    assert look(strange, FrameRule(frames=1))[0] == [2]


# -------------------------------------------------------------------------------------------------- damaged films


def test_cut_tail(short_groups: Path, home: Path) -> None:
    data = short_groups.read_bytes()
    path = home / "cut.mp4"
    path.write_bytes(data[: len(data) * 6 // 10])
    counts, seconds, film = look(path, FrameRule(fps=2))
    assert counts == [round(s * 25) for s in seconds]
    assert 8 < seconds[-1] < 14
    assert counts == [int(t * 25 + 0.02) for t in film.seconds[: len(counts)]]
    assert any("left out" in w for w in film.warnings)
    assert look(path, FrameRule(fps=1, keyframes=True))[2].warnings
    with pytest.raises(FilmError, match="no frame"):
        list(Film(path, FrameRule(frames=3, start=18)))


def test_bit_rot_resumes_behind_the_damage(short_groups: Path, home: Path) -> None:
    data = bytearray(short_groups.read_bytes())
    start, end = next((a, b) for kind, a, b in films.boxes(bytes(data)) if kind == b"mdat")
    middle = start + (end - start) * 4 // 10
    data[middle : middle + (end - start) // 10] = np.random.default_rng(0).bytes((end - start) // 10)
    path = home / "rot.mp4"
    path.write_bytes(data)
    counts, seconds, film = look(path, FrameRule(fps=5))
    outside = [(c, s) for c, s in zip(counts, seconds, strict=True) if s < 7 or s > 11]
    assert [c for c, _ in outside] == [round(s * 25) for _, s in outside]
    assert seconds[-1] == pytest.approx(19.8)
    assert film.warnings


@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_cut_streams(home: Path, ending: str) -> None:
    whole = films.write(home / f"whole.{ending}", 250, gop=25)
    path = home / f"half.{ending}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    counts, seconds, film = look(path, FrameRule(fps=5))
    assert counts == [round(s * 25) for s in seconds]
    assert 3 < seconds[-1] < 7
    assert bool(film.warnings) or film.info.duration < 7  # a transport stream has no header that promises more


def test_no_moov(long: Path, home: Path) -> None:
    data = long.read_bytes()
    start = next(a for kind, a, _ in films.boxes(data) if kind == b"moov")
    path = home / "nomoov.mp4"
    path.write_bytes(data[:start])
    with pytest.raises(FilmError, match="moov"):
        probe(path)


def test_zero_length(home: Path) -> None:
    path = films.write(home / "nothing.mkv", 0)
    with pytest.raises(FilmError) as caught:
        probe(path)
    assert caught.value.exit_code == 1
    assert caught.value.stage == "video"


# ------------------------------------------------------------------------------------------------------- refused


def test_what_is_not_a_film(home: Path) -> None:
    empty, text, noise = home / "empty.mp4", home / "text.mp4", home / "noise.mp4"
    empty.write_bytes(b"")
    text.write_text("this is not a film\n" * 50)
    noise.write_bytes(np.random.default_rng(1).bytes(20000))
    sound = films.sound_only(home / "sound.mp4")
    for path, words in ((home / "missing.mp4", "No such file"), (home, "folder"), (empty, "empty"), (text, "text"),
                        (noise, "not a film|not read"), (sound, "audio only"), ("-", "pipe"), ("pipe:0", "pipe"),
                        ("https://example.org/a.mp4", "download"), ("file:///etc/passwd", "download"),
                        (f"concat:{sound}|{sound}", "pipe"), ("/dev/zero", "device"), ("a\0b", "null")):  # fmt: skip
        with pytest.raises(FilmError, match=words) as caught:
            Film(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["mp4", "m3u8", "txt"])
def test_playlists_open_nothing_else(
    short_groups: Path, home: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = home / "canary.ts"
    films.write(canary, 25)
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{canary}'\n",
        "dash": f"<?xml version='1.0'?><MPD><BaseURL>{canary}</BaseURL></MPD>",
        "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
    }
    for sniffed in (
        True,
        False,
    ):  # the second time without our own look at the text: FFmpeg's whitelist alone must hold
        if not sniffed:
            monkeypatch.setattr("videoprune.header._refuse_text", lambda name, head: None)
        for kind, content in lists.items():
            path = home / f"{kind}.{ending}"
            path.write_text(content)
            os.utime(canary, ns=(0, canary.stat().st_mtime_ns))  # so that even `relatime` notes the next reading
            with pytest.raises(FilmError):
                probe(path)
            assert canary.stat().st_atime_ns == 0
    # The canary sings: FFmpeg without the whitelist does read it, so an untouched access time means something.
    with av.open(str(home / f"concat.{ending}"), format="concat", container_options={"safe": "0"}) as container:
        next(container.decode(video=0))
    assert canary.stat().st_atime_ns > 0


def test_external_data_references_stay_closed(short_groups: Path, home: Path) -> None:
    data = bytearray(short_groups.read_bytes())
    at = data.index(b"url \x00\x00\x00\x01")  # "the pictures are in this file" becomes "they are elsewhere"
    data[at + 4 : at + 8] = struct.pack(">I", 0)
    path = home / "dref.mp4"
    path.write_bytes(data)
    assert look(path, FrameRule(frames=1))[0]  # read from the file itself, whatever it says


def test_start_past_the_end(short_groups: Path) -> None:
    with pytest.raises(UsageError, match="past the end") as caught:
        Film(short_groups, FrameRule(start=20))
    assert caught.value.exit_code == 2
    for bad in ({"decoder": "opencv"}, {"chunk": 0}, {"threads": 0}, {"chunk": 1.5}):
        with pytest.raises(UsageError):
            Film(short_groups, **bad)


# ------------------------------------------------------------------------------------------------- other decoders


def test_decord_agrees(long: Path, short_groups: Path, home: Path) -> None:
    vfr = films.write(
        home / "vfr2.mp4", 10, times=[0, 40, 500, 540, 580, 3000, 3040, 7000, 7040, 7080], time_base=Fraction(1, 1000)
    )
    hevc = films.write(home / "hevc2.mp4", 60, codec="libx265", gop=20,
                       options={"preset": "ultrafast", "x265-params": "log-level=none:bframes=4"})  # fmt: skip
    for path, rule in ((long, FrameRule(frames=6)), (short_groups, FrameRule(fps=3)), (vfr, FrameRule(fps=2, end=7.04)),
                       (hevc, FrameRule(frames=9))):  # fmt: skip
        ours, theirs = look(path, rule), look(path, rule, decoder="decord")
        assert ours[0] == theirs[0]
        assert theirs[1].tolist() == pytest.approx(ours[1].tolist(), abs=1e-4)
        assert theirs[2].info.decoder == "decord"
        assert "asked" in theirs[2].info.choices[0]
    with pytest.raises(UsageError, match="keyframes"):
        Film(long, FrameRule(keyframes=True), decoder="decord")
    assert available_decoders()["pyav"].startswith("ok (")


class FakeTensor:
    """The two methods of torch.Tensor that the adapter uses."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array

    def tolist(self) -> list:
        return self.array.tolist()


class FakeVideoDecoder:
    """torchcodec.decoders.VideoDecoder as documented: times in the file's own clock, frames of [begin, end) only."""

    turns = True

    def __init__(self, source, *, stream_index, dimension_order, num_ffmpeg_threads, seek_mode) -> None:
        assert dimension_order == "NHWC"
        assert seek_mode == "exact"
        assert num_ffmpeg_threads == 1
        assert stream_index == 0
        self.frames = [(t + 4.0, np.rot90(image, -1) if self.turns else image) for t, image in films.decode_all(source)]
        facts = {"begin_stream_seconds": 4.0, "end_stream_seconds": self.frames[-1][0] + 0.04}
        self.metadata = types.SimpleNamespace(**facts, **({"rotation": -90.0} if self.turns else {}))

    def get_frames_played_at(self, seconds: list[float]) -> types.SimpleNamespace:
        if any(not 4.0 <= s < self.metadata.end_stream_seconds for s in seconds):
            raise RuntimeError("Invalid pts in seconds")
        at = [max(i for i, (t, _) in enumerate(self.frames) if t <= s) for s in seconds]
        return types.SimpleNamespace(
            data=FakeTensor(np.stack([self.frames[i][1] for i in at])),
            pts_seconds=FakeTensor(np.array([self.frames[i][0] for i in at])),
        )


@pytest.mark.parametrize("turns", [True, False])
def test_torchcodec_adapter(home: Path, monkeypatch: pytest.MonkeyPatch, turns: bool) -> None:
    path = films.write(home / "codec.mp4", 50, rotation=-90)
    package, module = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.decoders")
    package.__version__, package.decoders = "0.11", module
    module.VideoDecoder = type("VideoDecoder", (FakeVideoDecoder,), {"turns": turns})
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    assert available_decoders()["torchcodec"] == "ok (0.11)"
    for rule in (FrameRule(frames=5), FrameRule(fps=60, start=1.0)):
        ours = np.concatenate([c.images for c in Film(path, rule, chunk=3)])
        theirs = list(Film(path, rule, decoder="torchcodec", chunk=3))
        assert np.array_equal(ours, np.concatenate([c.images for c in theirs]))
        assert theirs[0].seconds[0] == pytest.approx(next(iter(Film(path, rule))).seconds[0])


@pytest.mark.parametrize(
    "error", [ImportError("No module"), OSError("libnvrtc.so.13: missing\nmore"), RuntimeError("no FFmpeg")]
)
def test_missing_decoder(short_groups: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'videoprune\[decord\]'") as caught:
        Film(short_groups, decoder="decord")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert "torchcodec" in available_decoders()["torchcodec"]


def test_torch_is_not_imported() -> None:
    code = "import sys, videoprune.video; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------ prefetch


def test_prefetch(short_groups: Path) -> None:
    with Film(short_groups, FrameRule(fps=5), chunk=10) as film:
        counts = [c for chunk in prefetch(film) for c in films.counters(chunk.images)]
        assert counts == list(range(0, 500, 5))
        ahead = prefetch(film, depth=1)
        next(ahead)
        ahead.close()
    with pytest.raises(UsageError):
        prefetch([], depth=0)


def test_prefetch_passes_errors_on_and_stops() -> None:
    closed, made = threading.Event(), []

    def items():
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            closed.set()

    ahead = prefetch(items(), depth=2)
    assert [next(ahead), next(ahead)] == [0, 1]
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 1
    assert closed.wait(1)
    assert len(made) <= 6

    def broken():
        yield 1
        raise FilmError("gone")

    ahead = prefetch(broken())
    assert next(ahead) == 1
    with pytest.raises(FilmError, match="gone"):
        next(ahead)
