"""Runs preparations with the real clients; HF_ENDPOINT has to be set before they are imported."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any

from budgetsweep.errors import DataError
from trainer.data import blocks
from trainer.data.config import DataConfig
from trainer.data.prepare import prepare
from trainer.data.shards.manifest import load_manifest
from trainer.data.sources import hub

BLOCK_CHARS = 20_000


def run(job: dict[str, Any]) -> dict[str, Any]:
    if "get" in job:
        with urllib.request.urlopen(job["get"]) as answer:
            return {"status": answer.status}
    started = time.monotonic()
    try:
        data = prepare(
            DataConfig(source=job["source"], text_field=job.get("field", "text")),
            "bytes",
            train_tokens=job["tokens"],
            val_tokens=None,
        )
    except DataError as error:
        return {"error": str(error), "seconds": time.monotonic() - started}
    manifest = load_manifest(data.folder)
    return {
        "train": data.data_checksum, "val": data.val_checksum, "n_train": len(data.train),
        "n_val": len(data.val), "revision": manifest.revision, "bad": manifest.bad_examples,
        "folder": str(data.folder), "exhausted": data.exhausted, "description": data.description,
        "torch": "torch" in sys.modules,
    }  # fmt: skip


def main() -> None:
    settings = json.load(sys.stdin)
    blocks.SMALLEST_BLOCK_CHARS = blocks.LARGEST_BLOCK_CHARS = BLOCK_CHARS
    hub.REACH_SECONDS = settings.get("reach_seconds", hub.REACH_SECONDS)
    if settings.get("hurry"):  # the client's waits between its attempts, not its attempts
        time.sleep = lambda seconds: None
    print(json.dumps([run(job) for job in settings["jobs"]]))


if __name__ == "__main__":
    main()
