"""Files compressed by gzip or zstd, read whole."""

from __future__ import annotations

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""What a file's name ends in -> how it is compressed, by the names of pyarrow."""

_PIECE = 2**20


def codec_of(path: str) -> str | None:
    """How a file is compressed, by its name; None where it is not."""
    return next((codec for end, codec in CODECS.items() if path.endswith(end)), None)


def inflate(path: str) -> bytes:
    """A file's bytes without the compression its name tells of; also several put end to end.

    Raises:
        ValueError: it cannot be read, is cut off, or is damaged; names it, and the row (of lines,
            from 1) in which what can be read of it ends.
    """
    import pyarrow as pa

    pieces: list[bytes] = []
    try:
        with pa.input_stream(path, compression=codec_of(path)) as stream:
            while piece := stream.read(_PIECE):
                pieces.append(piece)
    except (pa.ArrowException, OSError) as error:
        size = sum(map(len, pieces))
        row = 1 + sum(piece.count(b"\n") for piece in pieces)
        raise ValueError(
            f"{path} cannot be read whole: it ends in row {row}, after {size} bytes "
            f"(not compressed): {error}"
        ) from error
    return b"".join(pieces)
