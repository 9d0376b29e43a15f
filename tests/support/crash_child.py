"""What the processes of test_crash.py do; imported once and forked, which saves seconds a test."""

from __future__ import annotations

import json
import logging
import os
import resource
import time
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - the slow import, done before the fork

from budgetsweep.errors import DataError
from trainer.data import blocks, writer
from trainer.data.config import DataConfig
from trainer.data.prepare import prepare

BLOCK_CHARS = 20_000


def prepare_source(source: str, cache: str, said: str, pause: float, limit: int) -> None:
    """Prepare with small blocks, `pause` seconds slower a block, and write the facts to `said`.

    `limit`: most bytes in a file, which acts like a disk that fills up; 0: none.
    """
    os.environ["BUDGETSWEEP_CACHE"] = cache
    logging.basicConfig(filename=said, format="%(message)s", force=True)
    blocks.SMALLEST_BLOCK_CHARS = blocks.LARGEST_BLOCK_CHARS = BLOCK_CHARS
    encode = writer.encode_block

    def slowly(*arguments: Any) -> Any:
        time.sleep(pause)
        return encode(*arguments)

    writer.encode_block = slowly
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        data = prepare(DataConfig(source=source), "bytes", train_tokens=None, val_tokens=None)
        line = json.dumps([data.data_checksum, data.val_checksum, len(data.train), len(data.val)])
    except DataError as error:
        line = f"DataError: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with Path(said).open("a") as file:
        file.write(line + "\n")
