"""Peak memory of calibration against the number of samples: it must not grow.

    python tools/calibration_memory.py MODEL_DIR [--samples 64 512 4096] [--calibrator max]

Each count runs in a process of its own, on sentences drawn from the sample text, repeated as often as needed; the peak
is the process's own (VmHWM).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path


def measure(model_dir: Path, samples: int, calibrator: str) -> None:
    import calibration
    import qdq
    from qdq.data.text import sample_text

    model = qdq.load(model_dir)
    qdq.quantize(model, "onnxruntime")
    texts = islice(cycle(qdq.read_samples(sample_text("calibration"))), samples)
    tokenizer = qdq.load_tokenizer(model_dir)
    batches = qdq.encode_batches(texts, tokenizer, batch_size=8, seq_len=128, pad_to=128)
    summary = calibration.calibrate(model, batches, method=calibration.method_named(calibrator))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"{summary.samples:6d} samples {calibrator:10s} peak {int(status['VmHWM'].split()[0]) / 1024:8.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--calibrator", nargs="+", default=["max", "percentile"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for calibrator in options.calibrator:
        for samples in options.samples:
            if options.here:
                measure(options.model_dir, samples, calibrator)
                continue
            request = [str(options.model_dir), "--samples", str(samples), "--calibrator", calibrator, "--here"]
            subprocess.run([sys.executable, __file__, *request], check=True)


if __name__ == "__main__":
    main()
