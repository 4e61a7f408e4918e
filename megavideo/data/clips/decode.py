"""From the packets of an opened video to decoded frames in presentation order."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av

from megavideo.data.clips.formats import BARE_STREAMS, MOST_PIXELS
from megavideo.data.clips.frame import Frame, StreamTold, upright
from megavideo.errors import DataError

# H.264 and HEVC reorder at most this many frames; a longer jump back is a new start of the clock.
_REORDER_FRAMES = 16
_CLOCK_RESTART_SECONDS = 1.0
# A file that ends this much before the duration its header tells is cut short; headers are that inexact.
_SLACK_SECONDS = 0.5
_SLACK_SHARE = 0.05
# FFmpeg's parser puts the mark of a damaged packet of a transport stream on one that is at most two before it.
_FOLLOWING = 3
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def video_stream(path: Path, container: Any) -> Any:
    """The stream that is read; DataError where there is none. A cover picture is a video stream too, of one frame."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise DataError(f"{path}: holds no video stream")
    if streams[0].codec_context is None:
        raise DataError(f"{path}: its video is of a codec that FFmpeg does not know")
    return streams[0]


def demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of these streams, or of all."""
    try:
        yield from container.demux(*streams)
    except IndexError:
        # PyAV may stumble, after all packets, over a stream that began in the middle of the file and is not asked for.
        return


def whole_packets(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The packets of `stream`; DataError at the end where no stream lasts as long as the header tells.

    The only frame of a video may be shown for as long as the header tells.
    """
    last, num_packets = 0.0, 0
    for packet in demuxed(container):
        if packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            num_packets += packet.size > 0
            yield packet
    if container.duration and num_packets > 1:
        told = (container.duration + (container.start_time or 0)) / av.time_base
        frame = 1.0 / float(stream.average_rate) if stream.average_rate else 0.0
        if last + frame < told - max(_SLACK_SECONDS, _SLACK_SHARE * told):
            raise DataError(f"{path}: cut short (it ends after {last:.2f} s, and its header tells {told:.2f} s)")


def decoded(path: Path, packets: Iterator[Any], stream: Any) -> Iterator[Frame]:
    """The frames of packets, as the decoder gives them. Raises DataError at the first that is damaged."""
    told, decode = stream_told(stream), _decoder(stream)
    if stream.container.format.name in BARE_STREAMS and not told.rate:
        raise DataError(
            f"{path}: a stream without a container that tells no frame rate. Remedy: put it into one, as "
            "`ffmpeg -r RATE -i FILE -c copy FILE.mp4`"
        )
    time_base = float(stream.time_base or 0.0)
    step = 1.0 / told.rate if told.rate else 0.0
    seconds, index = -step, 0
    for packet, following in _with_following(packets):
        if packet.is_corrupt and not _ends_a_part(packet, following):
            raise DataError(f"{path}: damaged near frame {index} (a packet is cut short)")
        try:
            frames = decode(packet)
        except av.FFmpegError as error:
            raise DataError(f"{path}: damaged after frame {index} ({error.strerror})") from error
        for raw in frames:
            if raw.is_corrupt:
                raise DataError(f"{path}: damaged at frame {index} (it decodes only in part)")
            is_timed = raw.pts is not None
            seconds = raw.pts * time_base if is_timed else seconds + step
            yield Frame(raw, seconds, is_timed, upright(raw), told)
            index += 1


def _with_following(packets: Iterator[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Each packet with the next three, fewer at the end."""
    waiting: deque[Any] = deque(islice(packets, _FOLLOWING))
    for packet in packets:
        waiting.append(packet)
        yield waiting.popleft(), list(waiting)
    while waiting:
        yield waiting.popleft(), list(waiting)


def _ends_a_part(packet: Any, following: list[Any]) -> bool:
    """True for one of the last packets of a transport stream to which another was appended.

    FFmpeg calls one cut short, since the count of the transport packets is broken, although nothing of it is lost. The
    clock begins again there, with a key frame.
    """
    if packet.stream.container.format.name != "mpegts":
        return False
    timed = [one for one in (packet, *following) if one.dts is not None]
    return any(later.is_keyframe and later.dts <= earlier.dts for earlier, later in pairwise(timed))


def _decoder(stream: Any) -> Callable[[Any], list[Any]]:
    """What turns packets into frames: FFmpeg's own decoders of VP8 and VP9 leave out alpha, libvpx's do not."""
    options = {"max_pixels": str(MOST_PIXELS)}
    stream.codec_context.options = options
    name = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return lambda packet: packet.decode()
    context: Any = av.CodecContext.create(name, "r")
    context.options = options
    return lambda packet: context.decode(packet if packet.size else None)


def stream_told(stream: Any) -> StreamTold:
    """What the header tells of a video stream."""
    rate, aspect = stream.average_rate, stream.sample_aspect_ratio
    if stream.container.format.name in BARE_STREAMS:
        rate = stream.codec_context.framerate  # what the stream itself tells, if it does
    return StreamTold(float(rate) if rate else 0.0, float(aspect) if aspect else 1.0)


def in_presentation_order(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Sort by time within the reach of a decoder's reordering."""
    waiting: list[tuple[float, int, Frame]] = []
    for index, frame in enumerate(frames):
        seconds = frame.seconds
        if waiting and seconds < waiting[0][0] - _CLOCK_RESTART_SECONDS:
            while waiting:
                yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (seconds, index, frame))
        if len(waiting) > _REORDER_FRAMES:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]
