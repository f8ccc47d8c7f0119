"""Files compressed by gzip or zstd, read whole."""

from __future__ import annotations

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""What a file's name ends in -> how it is compressed, by the names of pyarrow."""

_PIECE = 2**20
_SMALL = 2**8  # what comes before damage is lost with the piece it is in


def codec_of(path: str) -> str | None:
    """How a file is compressed, by its name; None where it is not."""
    return next((codec for end, codec in CODECS.items() if path.endswith(end)), None)


def inflate(path: str) -> bytes:
    """A file's bytes without the compression its name tells of; also several put end to end.

    Raises:
        ValueError: it cannot be read, is cut off, or is damaged; names it, and the row (of lines,
            from 1) in which what can be read of it ends.
    """
    data, error = _read(path, _PIECE)
    if error is not None:
        data, error = _read(path, _SMALL)
    if error is not None:
        row = 1 + data.count(b"\n")
        raise ValueError(
            f"{path} cannot be read whole: it ends in row {row}, after "
            f"{len(data)} bytes (not compressed): {error}"
        ) from error
    return data


def _read(path: str, piece: int) -> tuple[bytes, Exception | None]:
    """What can be read, a piece at a time, and why no more."""
    import pyarrow as pa

    pieces: list[bytes] = []
    error = None
    try:
        with pa.input_stream(path, compression=codec_of(path)) as stream:
            while found := stream.read(piece):
                pieces.append(found)
    except (pa.ArrowException, OSError) as caught:
        error = caught
    return b"".join(pieces), error
