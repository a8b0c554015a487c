"""A codec: motion JPEG. Every frame is a JPEG, at the highest quality with which its segment meets the bitrate."""

import io

import numpy as np
import PIL
from PIL import Image

from packager.ladder import short_rate
from player.codecs import Codec
from player.errors import DecodeError
from player.manifest import START_NUMBER
from player.mp4 import read_fragment, write_fragment_head, write_metadata_init

SCHEME_URI = "tag:promptdash-example,2026:jpeg"
WORST, BEST = 1, 95


class JpegLadder:
    """The encoder: one representation for each target bitrate. Its methods are those of packager.ladder.LadderCodec."""

    name = "jpeg"

    def __init__(self, config):
        self.bitrates_bps = {f"jpeg-{short_rate(rate)}": rate for rate in sorted(config.bitrates_bps)}
        self.ranks = dict.fromkeys(self.bitrates_bps)  # only prompts have ranks

    def identity(self):
        return {"bitrates_bps": list(self.bitrates_bps.values()), "pillow": PIL.__version__}

    def prepare(self, folder, stream, frames, progress):
        self.stream = stream
        for name in self.ranks:
            folder.write(folder.init_path(name), write_metadata_init(stream.fps.numerator, SCHEME_URI, b""))

    def fit(self, frames, progress):
        """Return the pictures of every representation: bytes of each frame uint8 [H, W, 3] of a segment."""
        seconds = float(len(frames) / self.stream.fps)
        pictures = {}
        for name, rate_bps in self.bitrates_bps.items():
            low, high = WORST, BEST
            while low < high:  # bisection: more quality is more bytes
                middle = (low + high + 1) // 2
                fits = sum(map(len, jpegs(frames, middle))) * 8 <= rate_bps * seconds
                low, high = (middle, high) if fits else (low, middle - 1)
            pictures[name] = jpegs(frames, low)
            progress(len(pictures) / len(self.bitrates_bps))
        return pictures

    def encode(self, index, fitted, folder):
        """Return the media segments: one sample per frame in a `moof mdat`, as all CMAF segments are."""
        step = self.stream.fps.denominator
        segments = {}
        for name, pictures in fitted.items():
            sizes = [len(picture) for picture in pictures]
            start = index * self.stream.segment_frames * step
            head = write_fragment_head(index + START_NUMBER, start, [step] * len(sizes), sizes)
            segments[name] = head + b"".join(pictures)
        return segments

    def dependencies(self, representation):
        return ()

    def decoder(self, representation, init):
        return JpegDecoder(init)

    def codecs(self, init):
        return JPEG.sample_entry


class JpegDecoder:
    """The decoder: all that the player needs."""

    def __init__(self, init):
        if SCHEME_URI.encode() not in init:
            raise DecodeError(f"init segment is not of {SCHEME_URI}")

    def decode(self, segment):
        """Return the frames uint8 [T, H, W, 3] of a segment."""
        ranges = read_fragment(segment).sample_ranges
        return np.stack([np.asarray(Image.open(io.BytesIO(segment[start:end]))) for start, end in ranges])


def jpegs(frames, quality):
    """Return each frame as a JPEG file."""
    files = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality, optimize=True)
        files.append(file.getvalue())
    return files


JPEG = Codec("urim.jpeg", JpegDecoder, JpegLadder, title="Motion JPEG")
