"""Measure the peak memory of calibration for several numbers of samples. It must not grow with them.

    python tools/calibration_memory.py MODEL_DIR [--samples 64 512 4096] [--calibrator max]

Each count runs in a process of its own, on the sample text repeated as often as needed; the peak is the process's own
(VmHWM). `float` is the plain forward on the same batches. glibc keeps freed blocks of changing sizes for itself, which
moves the peak by hundreds of MB from run to run; here it gives them back at once, so that the peak is what is in use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path


def measure(model_dir: Path, samples: int, calibrator: str) -> None:
    import torch

    import calibration
    import qdq
    from qdq.data.text import sample_text

    model = qdq.load(model_dir)
    texts = islice(cycle(qdq.read_samples(sample_text("calibration"))), samples)
    tokenizer = qdq.load_tokenizer(model_dir)
    batches = qdq.encode_batches(texts, tokenizer, batch_size=8, seq_len=128, pad_to=128)
    if calibrator == "float":
        with torch.inference_mode():
            for batch in batches:
                model(**batch)
    else:
        qdq.quantize(model, "onnxruntime")
        calibration.calibrate(model, batches, method=calibration.method_named(calibrator))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"{samples:6d} samples {calibrator:10s} peak {int(status['VmHWM'].split()[0]) / 1024:8.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--calibrator", nargs="+", default=["float", "max", "percentile"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for calibrator in options.calibrator:
        for samples in options.samples:
            if options.here:
                measure(options.model_dir, samples, calibrator)
                continue
            request = [str(options.model_dir), "--samples", str(samples), "--calibrator", calibrator, "--here"]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
            subprocess.run([sys.executable, __file__, *request], check=True, env=environment)


if __name__ == "__main__":
    main()
